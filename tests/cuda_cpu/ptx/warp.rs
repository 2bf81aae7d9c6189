//! What lanes of a warp do together: they wait for each other, exchange values and multiply matrices.

use super::code::{Meeting, Module, Operation, Shuffle, Vote};
use super::machine::{Result, State, Thread};

pub const WARP: usize = 32;

impl Thread {
    /// Over what it waited at.
    pub fn go_on(&mut self) {
        self.frames.last_mut().unwrap().at += 1;
        self.state = State::Ready;
    }

    fn meeting<'m>(&self, module: &'m Module) -> Option<&'m Meeting> {
        let frame = self.frames.last()?;
        match &module.functions[frame.function].operations[frame.at] {
            Operation::Meet(meeting) if self.state == State::AtMeeting => Some(meeting),
            _ => None,
        }
    }

    fn register(&self, register: u32) -> u64 {
        self.registers[self.frame().registers + register as usize]
    }

    fn set(&mut self, register: u32, value: u64) {
        let base = self.frame().registers;
        self.registers[base + register as usize] = value;
    }

    /// The lanes that it waits for.
    fn mask(&self, meeting: &Meeting) -> u32 {
        match *meeting {
            Meeting::Shuffle { mask, .. } | Meeting::Vote { mask, .. } | Meeting::Wait { mask } => {
                self.register(mask) as u32
            }
            Meeting::Multiply { .. } => u32::MAX,
        }
    }
}

/// Lets those lanes of a warp go on whose turn it is; whether there are any.
pub fn take_turns(warp: &mut [Thread]) -> bool {
    let place = |thread: &Thread| (thread.state == State::AtTurn).then(|| (thread.frame().function, thread.frame().at));
    let Some(first) = warp.iter().filter_map(place).min() else { return false };
    warp.iter_mut().filter(|thread| place(thread) == Some(first)).for_each(Thread::go_on);
    true
}

/// Lets those lanes of a warp go on that all met; whether any did.
pub fn meet(warp: &mut [Thread], module: &Module) -> Result<bool> {
    let mut any = false;
    for lane in 0..warp.len() {
        let thread = &warp[lane];
        let Some(meeting) = thread.meeting(module) else { continue };
        let (mask, at) = (thread.mask(meeting), (thread.frame().function, thread.frame().at));
        let lanes: Vec<usize> = (0..WARP).filter(|lane| mask >> lane & 1 == 1).collect();
        if !lanes.contains(&lane) || lanes.iter().any(|&lane| lane >= warp.len()) {
            return Err(format!("{}: a mask {mask:#x} of other lanes", thread.place(module)));
        }
        let here = |thread: &Thread| thread.meeting(module).is_some_and(|other| thread.mask(other) == mask);
        if !lanes.iter().map(|&lane| &warp[lane]).all(|t| here(t) && (t.frame().function, t.frame().at) == at) {
            continue;
        }
        match *meeting {
            Meeting::Wait { .. } => (),
            Meeting::Vote { how, to, value, .. } => vote(warp, &lanes, how, (to, value)),
            Meeting::Shuffle { how, to, there, value, by, clamp, .. } => {
                shuffle(warp, &lanes, (how, value, by, clamp), (to, there));
            }
            Meeting::Multiply { d, a, b, c } => multiply(warp, d, (a, b, c)),
        }
        lanes.iter().for_each(|&lane| warp[lane].go_on());
        any = true;
    }
    Ok(any)
}

/// The lane whose value a lane gets, and whether it is one (PTX ISA, shfl.sync).
fn source(how: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, segment) = (by & 31, clamp >> 8 & 31);
    let (first, last) = (lane & segment, lane & segment | clamp & 31 & !segment);
    let (source, there) = match how {
        Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
        Shuffle::Index => (first | by & !segment, first | by & !segment <= last),
        Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= last as i32),
        Shuffle::Down => (lane + by, lane + by <= last),
    };
    (if there { source } else { lane }, there)
}

fn vote(warp: &mut [Thread], lanes: &[usize], how: Vote, (to, value): (u32, u32)) {
    let votes: u64 = lanes.iter().map(|&lane| (warp[lane].register(value) & 1) << lane).sum();
    let result = match how {
        Vote::Ballot => votes,
        Vote::Any => u64::from(votes != 0),
        Vote::All => u64::from(votes.count_ones() as usize == lanes.len()),
    };
    lanes.iter().for_each(|&lane| warp[lane].set(to, result));
}

/// A value of a lane that is not there is no number.
fn shuffle(
    warp: &mut [Thread],
    lanes: &[usize],
    (how, value, by, clamp): (Shuffle, u32, u32, u32),
    (to, there): (u32, u32),
) {
    let mut given = [u32::MAX; WARP];
    lanes.iter().for_each(|&lane| given[lane] = warp[lane].register(value) as u32);
    for &lane in lanes {
        let [by, clamp] = [by, clamp].map(|register| warp[lane].register(register) as u32);
        let (from, whether) = source(how, lane as u32, by, clamp);
        warp[lane].set(to, given[from as usize].into());
        warp[lane].set(there, whether.into());
    }
}

/// What is left of a number in f32 where nothing is rounded up.
fn cut_off(x: f64) -> f32 {
    let nearest = x as f32;
    match f64::from(nearest).abs() > x.abs() {
        true if nearest > 0.0 => nearest.next_down(),
        true => nearest.next_up(),
        false => nearest,
    }
}

/// d = a b + c of m16n8k8 with TF32 (PTX ISA, fragments of m16n8k8), four products at once, of whose sum what does not fit
/// is cut off (`fibres.h`).
fn multiply(warp: &mut [Thread], d: [u32; 4], (a, b, c): ([u32; 4], [u32; 2], [u32; 4])) {
    let seen = |thread: &Thread, register| f64::from(f32::from_bits(thread.register(register) as u32 & !0x1fff));
    let (mut rows, mut columns) = ([[0.0; 8]; 16], [[0.0; 8]; 8]);
    for (lane, thread) in warp.iter().enumerate() {
        let (group, k) = (lane / 4, lane % 4);
        for (i, &a) in a.iter().enumerate() {
            rows[group + 8 * (i % 2)][k + 4 * (i / 2)] = seen(thread, a);
        }
        for (i, &b) in b.iter().enumerate() {
            columns[group][k + 4 * i] = seen(thread, b);
        }
    }
    for (lane, thread) in warp.iter_mut().enumerate() {
        let sums: [f32; 4] = std::array::from_fn(|i| {
            let (row, column) = (&rows[lane / 4 + 8 * (i / 2)], &columns[lane % 4 * 2 + i % 2]);
            let start = f32::from_bits(thread.register(c[i]) as u32);
            row.chunks(4).zip(column.chunks(4)).fold(start, |sum, (row, column)| {
                cut_off(row.iter().zip(column).fold(sum.into(), |sum: f64, (a, b)| sum + a * b))
            })
        });
        d.iter().zip(sums).for_each(|(&d, sum)| thread.set(d, sum.to_bits().into()));
    }
}
