//! What is fuzzed. Shared by the fuzz targets and by the replay in `tests/fuzz_corpus.rs`.
#![allow(dead_code)] // each target uses its own half

use modejump::c_api::{model::*, moves::*, status::*, structs::*, target::modejump_target};
use modejump::density::Evaluation;
use modejump::models::continuous::Divergence;
use modejump::models::Model;
use modejump::moves::{ModeJump, Options};
use modejump::ode::Method;
use modejump::rng::{Stream, StreamId};
use modejump::Error;
use std::ffi::{c_char, c_void, CStr};
use std::ptr::{null, null_mut};

/// A model file of two plain coordinates.
pub const MODEL: &[u8] = include_bytes!("../models/double-well/generator.safetensors");
/// Two modes of two plain coordinates.
pub const MODES: &[u8] = include_bytes!("../models/double-well/modes.safetensors");

/// Any bytes either load or are refused with a message; what loads can be sampled and evaluated.
pub fn model_loader(data: &[u8]) {
    match modejump::models::load_bytes("fuzzed", data) {
        Ok(model) => {
            if model.modes().is_some() {
                if let Err(error) = ModeJump::of_model(&model, None, Options::default()) {
                    assert!(!error.to_string().is_empty());
                }
            }
            evaluate(&*model)
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Two configurations through everything that a model offers; NaN may come out of a network, but not as a log-density.
fn evaluate(model: &dyn Model) {
    let d = model.dimension();
    let mut x: Vec<f64> = (0..2 * d).map(|i| 0.1 * (i % 7) as f64).collect();
    let mut gradient = vec![0.0; 2 * d];
    if let Some(field) = model.field() {
        field.evaluate(&[0.5; 2], &x, &mut gradient);
        field.evaluate_divergence(&[0.5; 2], &x, &mut gradient, &mut [0.0; 2]);
    }
    if let Some(energy) = model.energy() {
        energy.energy_score(&[0.5; 2], &x, &mut [0.0; 2], &mut gradient);
    }
    if is_quick(model) {
        let mut log_density = [Evaluation::inside(0.0); 2];
        let streams = |row: usize| Stream::new(1, StreamId::Sample, row as u64, 0);
        known(model.sample(&streams, &mut x, &mut log_density));
        known(model.log_density(&x, &mut log_density));
        known(model.log_density_gradient(&x, &mut log_density, &mut gradient));
        assert!(log_density.iter().all(|e| !e.log_density.is_nan()));
        if let Ok(cold) = model.at_temperature(200.0) {
            known(cold.log_density(&x, &mut log_density));
            assert!(log_density.iter().all(|e| !e.log_density.is_nan()));
        }
    }
}

/// Not a continuous flow that evaluates its network thousands of times a sample, as its file may rightly ask.
fn is_quick(model: &dyn Model) -> bool {
    if let Some(modes) = model.modes() {
        return modes.generators().iter().all(|generator| is_quick(&**generator));
    }
    let Some(flow) = model.card().model.flow() else { return true };
    let (Method::Rk4 { steps } | Method::Euler { steps } | Method::DormandPrince { max_steps: steps, .. }) =
        flow.solver;
    let probes = match flow.divergence {
        Divergence::Exact => model.dimension(),
        Divergence::Hutchinson { probes } => probes,
    };
    steps * probes <= 300
}

/// Done, or not to be had of this kind of model.
fn known(result: modejump::Result<()>) {
    assert!(matches!(result, Ok(()) | Err(Error::Unsupported(_))), "{result:?}");
}

/// Numbers taken from the fuzzer's bytes; zeros when they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
    /// An ordinary number, a special one, or any bits at all.
    fn number(&mut self) -> f64 {
        match self.byte() {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => f64::from_bits(self.word()),
            byte => f64::from(byte) / 64.0 - 2.0,
        }
    }
    fn coin(&mut self) -> bool {
        !self.byte().is_multiple_of(4)
    }
    /// The pointer, or NULL one time in four.
    fn maybe<T>(&mut self, pointer: *const T) -> *const T {
        if self.coin() {
            pointer
        } else {
            null()
        }
    }
    fn maybe_mut<T>(&mut self, pointer: *mut T) -> *mut T {
        self.maybe(pointer).cast_mut()
    }
    /// The right size, or any up to it: a struct must never be read beyond its memory.
    fn size<T>(&mut self) -> u32 {
        let right = size_of::<T>() as u32;
        if self.coin() {
            right
        } else {
            u32::from(self.byte()) % (right + 1)
        }
    }
}

/// What a callback does, and how often it was destroyed.
struct Engine {
    status: i32,
    u: f64,
    destroyed: u32,
}

unsafe extern "C" fn potential(user: *mut c_void, n: u64, x: *const f64, u: *mut f64) -> i32 {
    // SAFETY: the harness passes an Engine, the library n rows of two coordinates and n numbers.
    unsafe {
        let engine = &*user.cast::<Engine>();
        for i in 0..n as usize {
            assert!((*x.add(2 * i)).is_finite() && (*x.add(2 * i + 1)).is_finite(), "NaN reached the engine");
            *u.add(i) = engine.u;
        }
        engine.status
    }
}

unsafe extern "C" fn relax(user: *mut c_void, x: *const f64, _: u64, u: *mut f64) -> i32 {
    // SAFETY: one configuration, one number.
    unsafe { potential(user, 1, x, u) }
}

unsafe extern "C" fn potential_gradient(user: *mut c_void, n: u64, x: *const f64, u: *mut f64, g: *mut f64) -> i32 {
    // SAFETY: as above, and two numbers of the gradient in a row.
    unsafe {
        (0..2 * n as usize).for_each(|i| *g.add(i) = (*user.cast::<Engine>()).u);
        potential(user, n, x, u)
    }
}

unsafe extern "C" fn destroy(user: *mut c_void) {
    // SAFETY: the harness passes an Engine.
    unsafe { (*user.cast::<Engine>()).destroyed += 1 };
}

/// A status of the list, and a message whenever it is not 0. A panic inside would be 255.
fn expect_known(status: i32) -> bool {
    assert!((0..=6).contains(&status) || status == MODEJUMP_CALLBACK_FAILED, "status {status}");
    let mut message: *const c_char = null();
    // SAFETY: a valid pointer, and a message that the library just wrote.
    unsafe {
        assert_eq!(modejump_last_error(&mut message), MODEJUMP_OK);
        assert!(status == MODEJUMP_OK || !CStr::from_ptr(message).to_bytes().is_empty());
    }
    status == MODEJUMP_OK
}

/// The bytes are a program: which functions are called, with which of their pointers NULL, structs short, numbers
/// strange.
pub fn c_entries(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut model: *mut modejump_model = null_mut();
    let mut kernel: *mut modejump_move = null_mut();
    // SAFETY: pointers are NULL or to live memory of the size that goes with them; handles are freed once, at the end.
    unsafe {
        assert_eq!(modejump_model_load_buffer(MODEL.as_ptr(), MODEL.len() as u64, &mut model), MODEJUMP_OK);
        for _ in 0..12 {
            match bytes.byte() % 6 {
                0 => models(&mut bytes, model),
                1 => densities(&mut bytes, model),
                2 => renew(&mut bytes, model, &mut kernel),
                3 => attempt(&mut bytes, kernel),
                4 => statistics(&mut bytes, kernel),
                _ => constraints(&mut bytes, kernel),
            }
        }
        expect_known(modejump_move_free(kernel));
        expect_known(modejump_model_free(model));
    }
}

unsafe fn models(bytes: &mut Bytes, model: *mut modejump_model) {
    let (mut dimension, mut text, mut other) = (7u64, null(), null_mut());
    // SAFETY: see `c_entries`.
    unsafe {
        let written = expect_known(modejump_model_dimension(bytes.maybe(model), bytes.maybe_mut(&mut dimension)));
        assert_eq!(dimension, if written { 2 } else { 7 }, "written on success only");
        expect_known(modejump_model_metadata(bytes.maybe(model), bytes.maybe_mut(&mut text)));
        expect_known(modejump_model_hash(bytes.maybe(model), bytes.maybe_mut(&mut text)));
        let (mut variance, mut auxiliary) = (7.0, 7u64);
        expect_known(modejump_model_steering(
            bytes.maybe(model),
            bytes.maybe_mut(&mut variance),
            bytes.maybe_mut(&mut auxiliary),
        ));
        assert!(!expect_known(modejump_model_at_temperature(
            bytes.maybe(model),
            bytes.number(),
            bytes.maybe_mut(&mut other)
        )));
        let (labels, mut order) = ([c"ABC1".as_ptr(), bytes.maybe(c"C0".as_ptr())], [0u64; 2]);
        let labels = bytes.maybe(labels.as_ptr());
        let n = u64::from(bytes.byte() % 3);
        let place = bytes.maybe_mut(order.as_mut_ptr());
        expect_known(modejump_model_match_atoms(bytes.maybe(model), n, labels, labels, place));
        let masses = [bytes.number(), bytes.number()];
        expect_known(modejump_model_check_masses(bytes.maybe(model), n, bytes.maybe(masses.as_ptr())));
        let short = bytes.word() % (MODEL.len() as u64);
        let data = bytes.maybe(MODEL.as_ptr());
        assert!(!expect_known(modejump_model_load_buffer(data, short, bytes.maybe_mut(&mut other))));
        let path = bytes.maybe(c"/no/such/model".as_ptr());
        assert!(!expect_known(modejump_model_load(path, bytes.maybe_mut(&mut other))));
        load_with(bytes, &mut other);
        assert!(other.is_null());
        expect_known(modejump_set_last_error(bytes.maybe(c"text".as_ptr())));
    }
}

unsafe fn load_with(bytes: &mut Bytes, other: &mut *mut modejump_model) {
    let mut options = modejump_model_options {
        struct_size: bytes.size::<modejump_model_options>(),
        precision: u32::from(bytes.byte() % 4),
        decoding: u32::from(bytes.byte() % 4),
        flags: 0,
        segment: bytes.word(),
        decoding_passes: bytes.word(),
        decoding_tolerance: bytes.number(),
    };
    // SAFETY: see `c_entries`; the handle is freed here.
    unsafe {
        let path = bytes.maybe(c"/no/such/model".as_ptr());
        assert!(!expect_known(modejump_model_load_with(path, bytes.maybe(&options), bytes.maybe_mut(other))));
        let (data, length) = (bytes.maybe(MODEL.as_ptr()), MODEL.len() as u64);
        let given = bytes.maybe(&options);
        if expect_known(modejump_model_load_buffer_with(data, length, given, bytes.maybe_mut(other))) {
            assert_eq!(options.decoding, MODEJUMP_SEQUENTIAL, "a coupling flow has no tokens");
            expect_known(modejump_model_free(*other));
            *other = null_mut();
        }
        expect_known(modejump_model_options_init(bytes.maybe_mut(&mut options)));
    }
}

unsafe fn densities(bytes: &mut Bytes, model: *mut modejump_model) {
    let n = u64::from(bytes.byte() % 5);
    let mut x: Vec<f64> = (0..8).map(|_| bytes.number()).collect();
    let (mut log_density, mut gradient) = ([0.5; 4], [0.5; 8]);
    // SAFETY: see `c_entries`; four rows of two coordinates at most.
    unsafe {
        let (out, slope) = (log_density.as_mut_ptr(), gradient.as_mut_ptr());
        expect_known(modejump_model_log_density(bytes.maybe(model), n, bytes.maybe(x.as_ptr()), bytes.maybe_mut(out)));
        let x_in = bytes.maybe(x.as_ptr());
        let status = modejump_model_log_density_gradient(
            bytes.maybe(model),
            n,
            x_in,
            bytes.maybe_mut(out),
            bytes.maybe_mut(slope),
        );
        expect_known(status);
        let (seed, first) = (bytes.word(), bytes.word());
        let x_out = bytes.maybe_mut(x.as_mut_ptr());
        expect_known(modejump_model_sample(bytes.maybe(model), seed, first, n, x_out, bytes.maybe_mut(out)));
        // More rows than memory can hold are refused before anything is touched.
        assert!(!expect_known(modejump_model_log_density(model, u64::MAX - bytes.word() % 1000, x.as_ptr(), out)));
    }
    assert!(log_density.iter().all(|v| !v.is_nan()));
}

unsafe fn renew(bytes: &mut Bytes, model: *mut modejump_model, kernel: &mut *mut modejump_move) {
    let mut options = modejump_move_options {
        struct_size: bytes.size::<modejump_move_options>(),
        kind: 0,
        proposals: 0,
        seed: 0,
        stride: 0,
        batch: 0,
        draw_ahead: 0,
        rotations: 0,
        partial: 0,
    };
    // SAFETY: see `c_entries`.
    unsafe {
        expect_known(modejump_move_options_init(bytes.maybe_mut(&mut options)));
        options.kind = u32::from(bytes.byte() % 6);
        options.proposals = u64::from(bytes.byte() % 6);
        options.seed = bytes.word();
        options.stride = if bytes.coin() { u64::from(bytes.byte()) } else { bytes.word() };
        options.batch = if bytes.coin() { u64::from(bytes.byte() % 9) } else { bytes.word() | 1 << 40 };
        options.draw_ahead = if bytes.coin() { u64::from(bytes.byte() % 2) } else { bytes.word() };
        options.rotations = if bytes.coin() { 0 } else { bytes.word() };
        let mut fresh = null_mut();
        let (model, given, out) = (bytes.maybe(model), bytes.maybe(&options), bytes.maybe_mut(&mut fresh));
        let made = match options.kind {
            2 => modejump_move_delayed_acceptance_new(model, bytes.maybe(model), given, out),
            4 => {
                let annealing = modejump_annealing_options {
                    struct_size: bytes.size::<modejump_annealing_options>(),
                    kernel: u32::from(bytes.byte() % 3),
                    stages: u64::from(bytes.byte() % 4),
                    moves: if bytes.coin() { u64::from(bytes.byte() % 3) } else { bytes.word() | 1 << 40 },
                    leapfrog: u64::from(bytes.byte() % 3),
                    step: bytes.number(),
                };
                modejump_move_annealed_new(model, given, bytes.maybe(&annealing), out)
            }
            5 => {
                let steps = if bytes.coin() { u64::from(bytes.byte() % 5) } else { bytes.word() };
                modejump_move_driven_new(model, given, steps, out)
            }
            _ => modejump_move_new(model, given, out),
        };
        if expect_known(made) {
            expect_known(modejump_move_free(*kernel));
            *kernel = fresh;
        }
        assert_eq!(fresh.is_null(), *kernel != fresh || kernel.is_null());
    }
}

unsafe fn attempt(bytes: &mut Bytes, kernel: *mut modejump_move) {
    let mut engine = Engine { status: i32::from(bytes.byte() == 9), u: bytes.number(), destroyed: 0 };
    let target = modejump_target {
        struct_size: bytes.size::<modejump_target>(),
        flags: 0,
        user: (&raw mut engine).cast(),
        reduced_potential: bytes.coin().then_some(potential as unsafe extern "C" fn(_, _, _, _) -> _),
        destroy: Some(destroy),
        reduced_potential_gradient: bytes
            .coin()
            .then_some(potential_gradient as unsafe extern "C" fn(_, _, _, _, _) -> _),
        relax: bytes.coin().then_some(relax as unsafe extern "C" fn(_, _, _, _) -> _),
    };
    let mut x = [bytes.number(), bytes.number()];
    let before = x.map(f64::to_bits);
    let lattice: [f64; 9] = std::array::from_fn(|_| bytes.number());
    let state = modejump_state {
        struct_size: bytes.size::<modejump_state>(),
        flags: 0,
        step: bytes.word(),
        replica: if bytes.coin() { u64::from(bytes.byte()) } else { bytes.word() },
        reduced_potential: bytes.number(),
        x: bytes.maybe_mut(x.as_mut_ptr()),
        r#box: bytes.maybe(lattice.as_ptr()),
    };
    let mut outcome: modejump_outcome = modejump_outcome {
        struct_size: bytes.size::<modejump_outcome>(),
        outcome: 77,
        log_acceptance: 0.0,
        log_weight_current: 0.0,
        log_weight_proposed: 0.0,
        log_density_current: 0.0,
        log_density_proposed: 0.0,
        reduced_potential: 0.0,
    };
    let target_pointer = bytes.maybe(&target);
    // the gradient came later: a struct without it is whole too
    let first = std::mem::offset_of!(modejump_target, reduced_potential_gradient);
    let whole = !target_pointer.is_null() && target.struct_size as usize >= first;
    // SAFETY: see `c_entries`.
    let ok = unsafe {
        let out = bytes.maybe_mut(&mut outcome);
        expect_known(modejump_move_attempt(kernel, target_pointer, bytes.maybe(&state), out))
    };
    assert_eq!(engine.destroyed, u32::from(whole), "the target is destroyed exactly once");
    assert_eq!(outcome.outcome == 77, !ok, "written on success only");
    if outcome.outcome != MODEJUMP_ACCEPTED {
        assert_eq!(x.map(f64::to_bits), before, "x changes on acceptance only");
    } else {
        assert!(x.iter().all(|v| v.is_finite()));
    }
}

unsafe fn statistics(bytes: &mut Bytes, kernel: *mut modejump_move) {
    // SAFETY: see `c_entries`; a struct of zeros is a value.
    unsafe {
        let mut counts: modejump_statistics = std::mem::zeroed();
        counts.struct_size = bytes.size::<modejump_statistics>();
        if expect_known(modejump_move_statistics(bytes.maybe(kernel), bytes.maybe_mut(&mut counts))) {
            assert!(counts.accepted <= counts.attempts);
        }
        let (mut weights, mut n) = ([0.0; 8], 0);
        let capacity = u64::from(bytes.byte() % 9);
        let out = bytes.maybe_mut(weights.as_mut_ptr());
        expect_known(modejump_move_log_weights(bytes.maybe(kernel), capacity, out, bytes.maybe_mut(&mut n)));
        expect_known(modejump_move_set_temperature(bytes.maybe_mut(kernel), bytes.number()));
        if bytes.byte() == 5 {
            expect_known(modejump_move_reset_statistics(bytes.maybe_mut(kernel)));
        }
    }
}

unsafe fn constraints(bytes: &mut Bytes, kernel: *mut modejump_move) {
    let atoms = [bytes.word() % 3, bytes.word()];
    let (length, masses) = ([bytes.number()], [bytes.number(), bytes.number()]);
    // SAFETY: see `c_entries`; one pair at most.
    unsafe {
        let n = u64::from(bytes.byte() % 2);
        let (a, l) = (bytes.maybe(atoms.as_ptr()), bytes.maybe(length.as_ptr()));
        let status = modejump_move_set_constraints(bytes.maybe_mut(kernel), n, a, l, bytes.maybe(masses.as_ptr()));
        let ok = expect_known(status);
        assert!(!ok || n == 0, "a model of plain coordinates has no bond to keep");
    }
}
