use super::card::*;
use super::transforms::Plan;
use std::f64::consts::TAU;

/// Kernels of one thread and of one warp, by hand.
const TEXT: &str = r#"
.version 8.8
.target sm_90
.address_size 64
.visible .entry add_one(.param .u64 array, .param .u32 by) {
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [array];
    ld.param.u32 %r1, [by];
    ld.global.u32 %r2, [%rd1];
    add.s32 %r3, %r2, %r1;
    st.global.u32 [%rd1], %r3;
    ret;
}
// each lane puts its number there and reads that of the next one, without a barrier
.visible .entry lockstep(.param .u64 array) {
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    .shared .align 4 .b8 numbers[128];
    ld.param.u64 %rd1, [array];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    mov.u64 %rd3, numbers;
    add.s64 %rd4, %rd3, %rd2;
    st.volatile.shared.u32 [%rd4], %r1;
    add.s32 %r2, %r1, 1;
    and.b32 %r3, %r2, 31;
    mul.wide.u32 %rd5, %r3, 4;
    add.s64 %rd6, %rd3, %rd5;
    ld.volatile.shared.u32 %r4, [%rd6];
    add.s64 %rd7, %rd1, %rd2;
    st.global.u32 [%rd7], %r4;
    ret;
}
// what half of the lanes think, by a guarded instruction; and a comparison that is true together with another
.visible .entry votes(.param .u64 array) {
    .reg .pred %p<6>;
    .reg .b16 %rs<2>;
    .reg .f32 %f<3>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [array];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    setp.lt.u32 %p1, %r1, 16;
    setp.gt.and.u32 %p2, %r1, 7, %p1;
    vote.sync.ballot.b32 %r2, %p2, -1;
    vote.sync.any.pred %p3, %p2, -1;
    vote.sync.all.pred %p4, %p2, -1;
    selp.b32 %r3, 1, 0, %p3;
    @%p4 add.s32 %r3, %r3, 2;
    @!%p4 add.s32 %r3, %r3, 4;
    // 1.0003 to the next number of half precision
    mov.f32 %f1, 0f3F8009D5;
    cvt.rp.f16.f32 %rs1, %f1;
    cvt.f32.f16 %f2, %rs1;
    mov.b32 %r4, %f2;
    setp.eq.s32 %p5, %r1, 0;
    selp.b32 %r5, %r2, %r3, %p5;
    setp.eq.s32 %p5, %r1, 1;
    selp.b32 %r6, %r4, %r5, %p5;
    st.global.u32 [%rd3], %r6;
    ret;
}
"#;

const ONE: Shape = Shape { grid: 1, threads: 1, shared: 0, together: false };
const WARP: Shape = Shape { threads: 32, ..ONE };
const MODULE: Handle = 101;
const ADD_ONE: Handle = 102;
const LOCKSTEP: Handle = 103;
const VOTES: Handle = 104;
const SIDE: Handle = 105;
const OTHER_SIDE: Handle = 106;
const BLOCKING: Handle = 107;
const SEEING: Handle = 108;
const EVENT: Handle = 109;

/// A card with a context and that many numbers on it, zero.
fn card_with(numbers: usize) -> (Card, Handle, u64) {
    let mut card = Card::default();
    let handle = card.new_context();
    let array = card.allocate(handle, 4 * numbers).unwrap();
    let context = card.context(handle).unwrap();
    context.load(MODULE, TEXT).unwrap();
    for (kernel, name) in [(ADD_ONE, "add_one"), (LOCKSTEP, "lockstep"), (VOTES, "votes")] {
        context.find(kernel, MODULE, name).unwrap();
    }
    context.new_stream(SIDE, false);
    context.new_stream(OTHER_SIDE, false);
    context.give(DEFAULT, Work::Write { to: array, bytes: vec![0; 4 * numbers] }).unwrap();
    context.wait(DEFAULT).unwrap();
    (card, handle, array)
}

fn add(array: u64, by: u32) -> Work {
    let argument = [&array.to_le_bytes()[..], &by.to_le_bytes()].concat();
    Work::Launch { kernel: ADD_ONE, shape: ONE, argument }
}

/// What is there without waiting for anything.
fn seen(context: &mut Context, array: u64, n: usize) -> Vec<u32> {
    let mut numbers = vec![0_u32; n];
    context.new_stream(SEEING, false);
    context.give(SEEING, Work::Copy { to: numbers.as_mut_ptr() as u64, from: array, bytes: 4 * n }).unwrap();
    context.destroy_stream(SEEING).unwrap();
    numbers
}

#[test]
fn work_is_done_when_its_stream_is_waited_for() {
    let (mut card, handle, array) = card_with(1);
    let context = card.context(handle).unwrap();
    context.give(SIDE, add(array, 3)).unwrap();
    assert_eq!(seen(context, array, 1), [0]);
    context.wait(OTHER_SIDE).unwrap();
    assert_eq!(seen(context, array, 1), [0]);
    context.wait(SIDE).unwrap();
    assert_eq!(seen(context, array, 1), [3]);
}

#[test]
fn an_event_has_another_stream_wait() {
    let (mut card, handle, array) = card_with(1);
    let context = card.context(handle).unwrap();
    context.give(SIDE, add(array, 1)).unwrap();
    context.record(EVENT, SIDE).unwrap();
    context.give(SIDE, add(array, 10)).unwrap();
    let (stream, position) = context.recorded(EVENT).unwrap();
    context.give(OTHER_SIDE, Work::After { stream, position }).unwrap();
    context.wait(OTHER_SIDE).unwrap();
    // what came after the event is not waited for
    assert_eq!(seen(context, array, 1), [1]);
}

#[test]
fn the_default_stream_waits_for_blocking_streams_only() {
    let (mut card, handle, array) = card_with(1);
    let context = card.context(handle).unwrap();
    context.new_stream(BLOCKING, true);
    context.give(BLOCKING, add(array, 1)).unwrap();
    context.give(SIDE, add(array, 100)).unwrap();
    context.give(DEFAULT, add(array, 10)).unwrap();
    context.wait(DEFAULT).unwrap();
    assert_eq!(seen(context, array, 1), [11]);
}

#[test]
fn memory_that_was_freed_or_is_of_another_context_is_not_reached() {
    let (mut card, handle, array) = card_with(1);
    let other = card.new_context();
    let foreign = card.allocate(other, 4).unwrap();
    let context = card.context(handle).unwrap();
    context.give(SIDE, add(foreign, 1)).unwrap();
    assert_eq!(context.wait(SIDE), Err(LAUNCH_FAILED));
    card.free(handle, array).unwrap();
    assert_eq!(card.free(handle, array), Err(INVALID_VALUE));
    let context = card.context(handle).unwrap();
    context.give(SIDE, add(array, 1)).unwrap();
    assert_eq!(context.wait(SIDE), Err(LAUNCH_FAILED));
}

#[test]
fn pinned_memory_has_two_addresses() {
    let (mut card, handle, _) = card_with(1);
    let address = card.allocate(handle, 4).unwrap();
    let context = card.context(handle).unwrap();
    let host = context.pin(address).unwrap();
    // SAFETY: four bytes that were just pinned.
    unsafe { (host as *mut u32).write(5) };
    assert_eq!(context.address_of_pinned(host), Some(address));
    context.give(SIDE, add(address, 2)).unwrap();
    context.wait(SIDE).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { (host as *const u32).read() }, 7);
    assert_eq!(context.unpin(host), Ok(address));
}

fn warp(kernel: Handle) -> Vec<u32> {
    let (mut card, handle, array) = card_with(32);
    let context = card.context(handle).unwrap();
    context.give(SIDE, Work::Launch { kernel, shape: WARP, argument: array.to_le_bytes().to_vec() }).unwrap();
    context.wait(SIDE).unwrap();
    seen(context, array, 32)
}

#[test]
fn lanes_go_on_together_at_volatile_memory() {
    assert_eq!(warp(LOCKSTEP), (0..32).map(|lane| (lane + 1) % 32).collect::<Vec<_>>());
}

#[test]
fn lanes_vote_and_instructions_are_guarded() {
    let said = warp(VOTES);
    assert_eq!(said[0], 0xff00);
    assert_eq!(f32::from_bits(said[1]), 1.0 + 1.0 / 1024.0);
    assert!(said[2..].iter().all(|&said| said == 5), "{said:?}");
}

/// A wave of two of three dimensions, odd numbers of points among them; its spectrum, and back.
fn transformed<T: Copy + Default + Into<f64> + 'static>(real: impl Fn(f64) -> T, kinds: [i32; 2], tolerance: f64) {
    let n = [3, 4, 5];
    let wave = |i: usize, k: usize| (TAU * (i as f64 / 3.0 + 2.0 * k as f64 / 5.0)).cos();
    let x: Vec<T> = (0..60).map(|place| real(wave(place / 20, place % 5))).collect();
    let (mut spectrum, mut back) = (vec![T::default(); 2 * 3 * 4 * 3], vec![T::default(); 60]);
    let (mut card, width) = (Card::default(), size_of::<T>());
    let handle = card.new_context();
    let arrays = [60, 72, 60].map(|numbers| card.allocate(handle, width * numbers).unwrap());
    let context = card.context(handle).unwrap();
    let [to, from] = kinds.map(|kind| Plan::new(n, kind).unwrap());
    for work in [
        Work::Copy { to: arrays[0], from: x.as_ptr() as u64, bytes: width * 60 },
        Work::Transform { plan: to, to: arrays[1], from: arrays[0] },
        Work::Transform { plan: from, to: arrays[2], from: arrays[1] },
        Work::Copy { to: spectrum.as_mut_ptr() as u64, from: arrays[1], bytes: width * 72 },
        Work::Copy { to: back.as_mut_ptr() as u64, from: arrays[2], bytes: width * 60 },
    ] {
        context.give(DEFAULT, work).unwrap();
    }
    context.wait(DEFAULT).unwrap();
    let close = |x: T, y: f64| (x.into() - y).abs() < tolerance;
    // half of 60 points at the wave's numbers (1, 0, 2); those of the other half are its conjugate's
    let here = 2 * (4 * 3 + 2);
    assert!(spectrum.iter().enumerate().all(|(place, &x)| close(x, if place == here { 30.0 } else { 0.0 })));
    assert!(x.iter().zip(back).all(|(&x, back)| close(back, 60.0 * x.into())));
}

#[test]
fn transforms_find_a_wave_and_give_it_back() {
    transformed(|x| x as f32, [0x2a, 0x2c], 1e-4);
    transformed(|x| x, [0x6a, 0x6c], 1e-12);
    assert!(Plan::new([2; 3], 0x29).is_none());
}

#[test]
fn text_that_is_not_understood_is_refused() {
    let (mut card, handle, _) = card_with(1);
    let context = card.context(handle).unwrap();
    assert_eq!(context.load(200, &TEXT.replace("add.s32", "conjure.s32")), Err(INVALID_PTX));
    assert_eq!(context.find(201, MODULE, "nothing"), Err(NOT_FOUND));
}
