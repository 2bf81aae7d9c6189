//! Moves: attempts and their statistics.

use super::model::modejump_model;
use super::status::{computing, guarded, require_threads};
use super::structs::*;
use super::target::{modejump_target, Callback};
use super::{box_of, count, read, reference, reference_mut, slice, slice_mut, write, Alone, Versioned};
use crate::annealing::{self, even};
use crate::coordinates::constraints::Constraints;
use crate::density::Exactness;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::modes::Modes;
use crate::moves::{Fate, LatentWalkOptions, Method, Move, Options, Outcome, Path, State, Statistics};
use std::ffi::c_void;
use std::sync::Arc;

/// A move. Calls from several threads wait for each other; a call by its own target, from within an attempt, fails (1).
/// Make one move per replica, since each draws its proposals ahead.
pub struct modejump_move(Alone<MoveOfModel>);

struct MoveOfModel {
    kernel: Box<dyn Move>,
    model: Arc<dyn Model>,
    method: Method,
    options: Options,
    /// K, once it has been set.
    temperature: Option<f64>,
    /// Whether the engine constrains bonds.
    constrained: bool,
}

impl MoveOfModel {
    fn boxed(model: &Arc<dyn Model>, method: Method, options: Options) -> Result<*mut modejump_move> {
        let kernel = method.make(model, options, None)?;
        let model = model.clone();
        let inside = MoveOfModel { kernel, model, method, options, temperature: None, constrained: false };
        Ok(Box::into_raw(Box::new(modejump_move(Alone::new(inside, "move")))))
    }
}

/// Sets the defaults: one independence proposal, seed 0, stride 0, batches of 32. `options->struct_size` must be set.
///
/// # Safety
/// `options` is NULL or points to a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_options_init(options: *mut modejump_move_options) -> i32 {
    // SAFETY: the caller's promise.
    guarded(|| unsafe { write(options, &modejump_move_options::empty()) })
}

/// Makes a move of a model. On success `*out` is a new handle, to be freed with `modejump_move_free`; it keeps the
/// model alive.
///
/// # Safety
/// `model` is NULL or a live handle; `options` is NULL or a struct of the size it says; `out` is NULL or points to a
/// pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_new(
    model: *const modejump_model,
    options: *const modejump_move_options,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, given, out) =
            unsafe { (&reference(model, "model")?.model, read(options)?, reference_mut(out, "out")?) };
        let rotations = (given.rotations > 0).then(|| count(given.rotations));
        let method =
            match given.kind {
                MODEJUMP_INDEPENDENCE if model.modes().is_some() => {
                    without_rotations(&given)?;
                    Method::ModeJump(None)
                }
                MODEJUMP_INDEPENDENCE => Method::Independence { rotations },
                MODEJUMP_ISIR => Method::Isir { rotations },
                MODEJUMP_SURROGATE => return Err(Error::invalid(
                    "modejump_move_options.kind is 2, acceptance by a surrogate: pass the surrogate as the screen of \
                     modejump_move_delayed_acceptance_new",
                )),
                kind => return Err(Error::invalid(format!("modejump_move_options.kind is {kind}: use 0 or 1"))),
            };
        *out = MoveOfModel::boxed(model, method, options_of(&given)?)?;
        Ok(())
    })
}

/// Makes a move by delayed acceptance: `model` proposes without computing its log-density, which may be expensive;
/// `screen` tests the proposals one after the other, `options->proposals` per attempt; if that chain has moved, the
/// exact log-density of `model` decides. Exact whatever the screen, unless `options->kind` is `MODEJUMP_SURROGATE`:
/// then the screen alone decides, and the move is biased. Other kinds are ignored. On success `*out` is a new handle,
/// to be freed with `modejump_move_free`; it keeps both models alive.
///
/// # Safety
/// `model` and `screen` are NULL or live handles; `options` is NULL or a struct of the size it says; `out` is NULL or
/// points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_delayed_acceptance_new(
    model: *const modejump_model,
    screen: *const modejump_model,
    options: *const modejump_move_options,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, screen) = unsafe { (&reference(model, "model")?.model, &reference(screen, "screen")?.model) };
        // SAFETY: the caller's promise.
        let (given, out) = unsafe { (read(options)?, reference_mut(out, "out")?) };
        without_rotations(&given)?;
        let screen = screen.clone();
        let method = match given.kind {
            MODEJUMP_SURROGATE => Method::Surrogate(screen),
            _ => Method::Screened(screen),
        };
        *out = MoveOfModel::boxed(model, method, options_of(&given)?)?;
        Ok(())
    })
}

/// Returns the mode of the configuration `x[dimension]`: a number from 0, in the order of the model's modes, or -1 for
/// none. The result must be a function of x alone and, for a molecule, independent of position and orientation. May be
/// called from any thread, one at a time.
pub type modejump_mode_callback = Option<unsafe extern "C" fn(user: *mut c_void, x: *const f64, dimension: u64) -> i64>;

/// Makes a move that jumps between the modes of a model of kind `modes`; `modejump_move_new` makes the same move of
/// such a model. If `mode` is not NULL, this callback instead of the model says which mode a configuration is in;
/// `user` is passed to it and must stay valid until the move is freed. The options must have one proposal and 0
/// rotations; only the seed is used. On success `*out` is a new handle, to be freed with `modejump_move_free`; it keeps
/// the model alive.
///
/// # Safety
/// `model` is NULL or a live handle; `options` is NULL or a struct of the size it says; `mode` is NULL or a function
/// that may be called as said here; `out` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_mode_jump_new(
    model: *const modejump_model,
    options: *const modejump_move_options,
    mode: modejump_mode_callback,
    user: *mut c_void,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, given, out) =
            unsafe { (&reference(model, "model")?.model, read(options)?, reference_mut(out, "out")?) };
        let modes = match (mode, model.modes()) {
            (Some(callback), Some(generators)) => {
                let function = ModeFunction { callback, user };
                Some(Modes::by(generators.modes().names().to_vec(), move |x| function.of(x))?)
            }
            _ => None,
        };
        without_rotations(&given)?;
        *out = MoveOfModel::boxed(model, Method::ModeJump(modes), options_of(&given)?)?;
        Ok(())
    })
}

/// A caller's mode callback and the `user` pointer that it takes.
struct ModeFunction {
    callback: unsafe extern "C" fn(user: *mut c_void, x: *const f64, dimension: u64) -> i64,
    user: *mut c_void,
}

// SAFETY: the caller promises that the callback may be called from any thread, and a move calls it from one at a time.
unsafe impl Send for ModeFunction {}
// SAFETY: as above.
unsafe impl Sync for ModeFunction {}

impl ModeFunction {
    fn of(&self, x: &[f64]) -> Option<usize> {
        // SAFETY: x is valid for the call; the rest is the caller's promise.
        let mode = unsafe { (self.callback)(self.user, x.as_ptr(), x.len() as u64) };
        usize::try_from(mode).ok()
    }
}

/// Sets the defaults: ten stages of one Langevin step of 2e-6 (nm^2 for molecules). `options->struct_size` must be set.
///
/// # Safety
/// `options` is NULL or points to a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_annealing_options_init(options: *mut modejump_annealing_options) -> i32 {
    // SAFETY: the caller's promise.
    guarded(|| unsafe { write(options, &modejump_annealing_options::empty()) })
}

/// Makes an annealed move: annealed importance sampling carries the proposals of `model` to the target before they are
/// tested, and carries the current configuration back; the weights of the two paths decide. Exact whatever the path.
/// The model needs a gradient, and the target of every attempt needs `reduced_potential_gradient`. `options->kind` is
/// ignored. Refused (6) for a model that keeps bonds at fixed lengths. On success `*out` is a new handle, to be freed
/// with `modejump_move_free`; it keeps the model alive.
///
/// # Safety
/// `model` is NULL or a live handle; `options` and `annealing` are NULL or structs of the size they say; `out` is NULL
/// or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_annealed_new(
    model: *const modejump_model,
    options: *const modejump_move_options,
    annealing: *const modejump_annealing_options,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, given) = unsafe { (&reference(model, "model")?.model, read(options)?) };
        // SAFETY: the caller's promise.
        let (path, out) = unsafe { (read(annealing)?, reference_mut(out, "out")?) };
        without_rotations(&given)?;
        *out = MoveOfModel::boxed(model, Method::Annealed(path_of(&path)?), options_of(&given)?)?;
        Ok(())
    })
}

/// Makes a driven move of a part of the system: this part is pulled to the proposal of `model` in `steps`
/// perturbations, at least 1, between which `relax` of the attempt's target moves the rest; the work decides. Exact
/// whatever the path. With one step the rest is frozen. The path runs in the internal coordinates of the model, if it
/// has any. `options->kind` is ignored, and `options->proposals` must be 1. In the weights of its outcomes the work
/// replaces the difference of potentials. On success `*out` is a new handle, to be freed with `modejump_move_free`; it
/// keeps the model alive.
///
/// # Safety
/// `model` is NULL or a live handle; `options` is NULL or a struct of the size it says; `out` is NULL or points to a
/// pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_driven_new(
    model: *const modejump_model,
    options: *const modejump_move_options,
    steps: u64,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, given, out) =
            unsafe { (&reference(model, "model")?.model, read(options)?, reference_mut(out, "out")?) };
        without_rotations(&given)?;
        *out = MoveOfModel::boxed(model, Method::Driven(count(steps)), options_of(&given)?)?;
        Ok(())
    })
}

/// Sets the defaults: a random walk of the library's widths, seed 0. `options->struct_size` must be set.
///
/// # Safety
/// `options` is NULL or points to a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_latent_walk_options_init(options: *mut modejump_latent_walk_options) -> i32 {
    // SAFETY: the caller's promise.
    guarded(|| unsafe { write(options, &modejump_latent_walk_options::empty()) })
}

/// Makes a move that walks in the latent space of `model`, a flow of all coordinates or of the shape: by small steps of
/// z = T^-1(x), or by Hamiltonian trajectories, for which the target of every attempt needs
/// `reduced_potential_gradient`. Exact whatever the flow. Its statistics have no weights. On success `*out` is a new
/// handle, to be freed with `modejump_move_free`; it keeps the model alive.
///
/// # Safety
/// `model` is NULL or a live handle; `options` is NULL or a struct of the size it says, whose `widths` are
/// NULL or have `n_widths` numbers; `out` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_latent_walk_new(
    model: *const modejump_model,
    options: *const modejump_latent_walk_options,
    out: *mut *mut modejump_move,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, given) = unsafe { (&reference(model, "model")?.model, read(options)?) };
        // SAFETY: the caller's promise.
        let out = unsafe { reference_mut(out, "out")? };
        let mut walk = LatentWalkOptions { leapfrog: count(given.leapfrog), ..LatentWalkOptions::default() };
        if !given.widths.is_null() {
            // SAFETY: the caller's promise.
            walk.widths = unsafe { slice(given.widths, given.n_widths, 1, "widths")? }.to_vec();
        }
        let options = Options { seed: given.seed, ..Options::default() };
        *out = MoveOfModel::boxed(model, Method::LatentWalk(walk), options)?;
        Ok(())
    })
}

/// Largest number of stages used: a path has no random numbers for more.
const MOST_STAGES: u64 = 1 << 21;

fn path_of(given: &modejump_annealing_options) -> Result<Path> {
    let kernel = match given.kernel {
        MODEJUMP_ADJUSTED => annealing::Kernel::Adjusted,
        MODEJUMP_HAMILTONIAN => annealing::Kernel::Hamiltonian { leapfrog: count(given.leapfrog) },
        kernel => {
            return Err(Error::invalid(format!("modejump_annealing_options.kernel is {kernel}: use 0 or 1")));
        }
    };
    let stages = even(count(given.stages.min(MOST_STAGES)), given.step);
    Ok(Path { kernel, stages, moves: count(given.moves) })
}

/// Errors: an average over orientations is requested of a move that makes none.
fn without_rotations(given: &modejump_move_options) -> Result<()> {
    match given.rotations {
        0 => Ok(()),
        rotations => Err(Error::Unsupported(format!(
            "modejump_move_options.rotations is {rotations}, but only independence and i-SIR moves of a single model average over \
             orientations: use 0"
        ))),
    }
}

fn options_of(given: &modejump_move_options) -> Result<Options> {
    for (name, value) in [("draw_ahead", given.draw_ahead), ("partial", given.partial)] {
        if value > 1 {
            return Err(Error::invalid(format!("modejump_move_options.{name} is {value}: use 0 or 1")));
        }
    }
    Ok(Options {
        n_proposals: count(given.proposals),
        seed: given.seed,
        stride: given.stride,
        batch: count(given.batch),
        draw_ahead: given.draw_ahead == 1,
        partial: given.partial == 1,
    })
}

/// Frees a move; NULL does nothing. Fails (1), and frees nothing, if called within an attempt.
///
/// # Safety
/// `move` is NULL or a handle that was not freed, and no call uses it later.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_free(r#move: *mut modejump_move) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        if let Some(this) = unsafe { r#move.as_ref() } {
            drop(this.0.enter()?);
            // SAFETY: the handle came from Box::into_raw and is freed once.
            drop(unsafe { Box::from_raw(r#move) });
        }
        Ok(())
    })
}

/// Tells the move which bonds the engine constrains: `n` pairs of the model's atoms `atoms[n][2]`, their `lengths[n]`
/// in nm, and `masses[dimension / 3]` of all atoms in dalton. The target then gets the metric term 1/2 ln det Z; with n
/// = 0 it has none. Refused (6), naming the bond, unless these are exactly the bonds that the model keeps at a fixed
/// length, with the same lengths.
///
/// # Safety
/// `move` is NULL or a live handle; the arrays are NULL or have that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_set_constraints(
    r#move: *mut modejump_move,
    n: u64,
    atoms: *const u64,
    lengths: *const f64,
    masses: *const f64,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let mut this = unsafe { reference(r#move, "move") }?.0.enter()?;
        // SAFETY: the caller's promise.
        let constraints = unsafe { constraints_of(this.kernel.dimension() / 3, n, (atoms, lengths, masses)) }?;
        let card = this.model.card();
        Constraints::check_kept(card.kept_bonds(), constraints.as_ref(), &|atom| card.label(atom))?;
        let constrained = constraints.is_some();
        if !constrained && !this.constrained {
            return Ok(());
        }
        let mut kernel = this.method.make(&this.model, this.options, constraints)?;
        if let Some(kelvin) = this.temperature {
            kernel.set_temperature(kelvin)?;
        }
        std::mem::swap(kernel.statistics_mut(), this.kernel.statistics_mut());
        this.kernel = kernel;
        this.constrained = constrained;
        Ok(())
    })
}

/// Sets the temperature of the ensemble, in K. A move of a steerable model proposes for this temperature from now on,
/// whatever its training temperature; any other model is for one temperature and stays as it is. Cheap if nothing
/// changes, so it can be called before every attempt. Fails (1) for a temperature that is not positive.
///
/// # Safety
/// `move` is NULL or a live handle.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_set_temperature(r#move: *mut modejump_move, kelvin: f64) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let mut this = unsafe { reference(r#move, "move") }?.0.enter()?;
        this.kernel.set_temperature(kelvin)?;
        this.temperature = Some(kelvin);
        Ok(())
    })
}

/// Constraints of a molecule from a caller's arrays: `n` pairs of atoms, their lengths, the masses of all `n_atoms`
/// atoms. If n is 0 there are none, and the arrays are not read.
///
/// # Safety
/// The arrays are NULL or have that many numbers.
pub(super) unsafe fn constraints_of(
    n_atoms: usize,
    n: u64,
    (atoms, lengths, masses): (*const u64, *const f64, *const f64),
) -> Result<Option<Constraints>> {
    if n == 0 {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let (atoms, lengths, masses) = unsafe {
        (slice(atoms, n, 2, "atoms")?, slice(lengths, n, 1, "lengths")?, slice(masses, n_atoms as u64, 1, "masses")?)
    };
    let index = |atom: u64| usize::try_from(atom).unwrap_or(usize::MAX);
    let in_range = |atom: &u64| index(*atom) < n_atoms;
    if let Some(atom) = atoms.iter().find(|atom| !in_range(atom)) {
        return Err(Error::invalid(format!(
            "atom {atom} is constrained, but the {n_atoms} atoms of the model are counted from 0"
        )));
    }
    let pairs: Vec<[usize; 2]> = atoms.chunks_exact(2).map(|pair| [index(pair[0]), index(pair[1])]).collect();
    Constraints::new(&pairs, lengths, masses).map(Some)
}

/// Makes one attempt: proposes, asks `target` for the reduced potential of the proposals, and accepts or rejects.
/// `state->x` changes if and only if `outcome->outcome` is `MODEJUMP_ACCEPTED`.
///
/// # Safety
/// `move` is NULL or a live handle; the structs are NULL or have the size they say; `state->x` is NULL or points to
/// `dimension` numbers that nobody else uses; `state->box` is NULL or points to nine numbers; the callbacks of `target`
/// do as documented there.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_attempt(
    r#move: *mut modejump_move,
    target: *const modejump_target,
    state: *const modejump_state,
    outcome: *mut modejump_outcome,
) -> i32 {
    guarded(|| {
        // First, so that it is destroyed whatever happens.
        // SAFETY: the caller's promise.
        let mut target = unsafe { Callback::of(target) }?;
        require_threads()?;
        // SAFETY: the caller's promise.
        let (this, given) = unsafe { (reference(r#move, "move")?, read(state)?) };
        let mut this = this.0.enter()?;
        let dimension = this.kernel.dimension();
        target.set_dimension(dimension);
        // An outcome that cannot be written must stop the attempt before x changes.
        // SAFETY: the caller's promise.
        unsafe { super::struct_size(outcome) }?;
        // SAFETY: the caller's promise.
        let mut state = unsafe { state_of(&given, dimension) }?;
        let result = this.kernel.attempt(&mut target, &mut state)?;
        // SAFETY: checked above.
        unsafe { write(outcome, &flat(&result)) }
    })
}

/// Converts a caller's struct to a state.
///
/// # Safety
/// `given.x` is NULL or points to `dimension` numbers that nobody else uses; `given.box` is NULL or points to nine
/// numbers.
pub(super) unsafe fn state_of<'a>(given: &modejump_state, dimension: usize) -> Result<State<'a>> {
    // SAFETY: the caller's promise.
    let x = unsafe { slice_mut(given.x, 1, dimension, "modejump_state.x") }?;
    // SAFETY: the caller's promise.
    let box_vectors = unsafe { box_of(given.r#box) };
    let replica = u32::try_from(given.replica)
        .ok()
        .filter(|r| *r < 1 << 24)
        .ok_or_else(|| Error::invalid(format!("modejump_state.replica is {}: it must be below 2^24", given.replica)))?;
    Ok(State { x, box_vectors, reduced_potential: given.reduced_potential, step: given.step, replica })
}

fn flat(outcome: &Outcome) -> modejump_outcome {
    modejump_outcome {
        struct_size: 0,
        outcome: outcome.fate as u32,
        log_acceptance: outcome.log_acceptance,
        log_weight_current: outcome.log_weight_current,
        log_weight_proposed: outcome.log_weight_proposed,
        log_density_current: outcome.log_density_current,
        log_density_proposed: outcome.log_density_proposed,
        reduced_potential: outcome.reduced_potential,
    }
}

/// Writes the counters.
///
/// # Safety
/// `move` is NULL or a live handle; `statistics` is NULL or a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_statistics(
    r#move: *const modejump_move,
    statistics: *mut modejump_statistics,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let this = unsafe { reference(r#move, "move") }?.0.enter()?;
        // SAFETY: the caller's promise.
        unsafe { write(statistics, &counters(this.kernel.statistics())) }
    })
}

pub(super) fn counters(counted: &Statistics) -> modejump_statistics {
    modejump_statistics {
        struct_size: 0,
        flags: match counted.likelihood() {
            Exactness::Exact => 0,
            _ => MODEJUMP_BY_SURROGATE,
        },
        attempts: counted.attempts(),
        accepted: counted.count(Fate::Accepted),
        rejected: counted.count(Fate::Rejected),
        out_of_support: counted.count(Fate::OutOfSupport),
        singular: counted.count(Fate::Singular),
        non_finite: counted.count(Fate::NonFinite),
        constraint: counted.count(Fate::Constraint),
        chirality: counted.count(Fate::Chirality),
        mean_log_weight: counted.mean_log_weight(),
        ess: counted.effective_fraction(),
        proposals: counted.proposals(),
        screened: counted.screened(),
        exact_evaluations: counted.exact_evaluations(),
        correction_variance: counted.correction_variance(),
        wrong_mode: counted.count(Fate::WrongMode),
        expected_acceptance: counted.expected_acceptance().value,
        expected_acceptance_error: counted.expected_acceptance().standard_error,
    }
}

/// Sets all counters to zero and forgets the log-weights.
///
/// # Safety
/// `move` is NULL or a live handle.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_reset_statistics(r#move: *mut modejump_move) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        unsafe { reference(r#move, "move") }?.0.enter()?.kernel.reset_statistics();
        Ok(())
    })
}

/// Writes into `*n` how many log-weights of proposals are remembered (at most the latest 65536), and into `log_weights`
/// the latest `capacity` of them, or all if there are fewer, oldest first; -inf stands for an unusable proposal. With
/// `capacity` 0, `log_weights` may be NULL.
///
/// # Safety
/// `move` is NULL or a live handle; `log_weights` is NULL or has room for `capacity` numbers; `n` is NULL or a number.
#[no_mangle]
pub unsafe extern "C" fn modejump_move_log_weights(
    r#move: *const modejump_move,
    capacity: u64,
    log_weights: *mut f64,
    n: *mut u64,
) -> i32 {
    guarded(|| -> Result<()> {
        // SAFETY: the caller's promise.
        let (this, n) = unsafe { (reference(r#move, "move")?, reference_mut(n, "n")?) };
        let this = this.0.enter()?;
        let remembered = this.kernel.statistics().log_weights();
        let count = remembered.len() as u64;
        // SAFETY: the caller's promise; never more than there is to write.
        let out = unsafe { slice_mut(log_weights, capacity.min(count), 1, "log_weights") }?;
        let skip = count as usize - out.len();
        out.iter_mut().zip(remembered.skip(skip)).for_each(|(out, w)| *out = w);
        *n = count;
        Ok(())
    })
}
