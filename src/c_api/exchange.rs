//! Exchanges between replicas that the engine owns.

use super::bijection::modejump_bijection;
use super::moves::{constraints_of, counters, state_of};
use super::status::{computing, guarded, require_threads};
use super::structs::*;
use super::target::{modejump_target, Callback};
use super::{read, reference, reference_mut, write, Alone};
use crate::error::Error;
use crate::moves::Exchange;

/// Swaps of two replicas through a map. Calls from several threads wait for each other; a call by its own targets, from
/// within an attempt, fails (1).
pub struct modejump_exchange(Alone<Exchange>);

/// Makes an exchange between a replica a, whose configurations `bijection` maps from, and a replica b, whose
/// configurations it maps to. `seed` is that of the Metropolis tests: exchanges tried at the same step, such as those
/// of the pairs of a ladder, need different seeds, or different replica numbers in their states. On success `*out` is a
/// new handle, to be freed with `modejump_exchange_free`; it keeps the map alive.
///
/// # Safety
/// `bijection` is NULL or a live handle; `out` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_new(
    bijection: *const modejump_bijection,
    seed: u64,
    out: *mut *mut modejump_exchange,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (bijection, out) = unsafe { (reference(bijection, "bijection")?, reference_mut(out, "out")?) };
        let exchange = Exchange::new(bijection.map().clone(), seed);
        *out = Box::into_raw(Box::new(modejump_exchange(Alone::new(exchange, "exchange"))));
        Ok(())
    })
}

/// Sets whether configurations take position and orientation along to the other replica (1), for engines that exchange
/// the ensembles of their replicas and not the configurations, or each replica keeps its own (0, the default). Matters
/// for maps in internal coordinates only.
///
/// # Safety
/// `exchange` is NULL or a live handle.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_carry_frames(exchange: *mut modejump_exchange, yes: u32) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let mut this = unsafe { reference(exchange, "exchange") }?.0.enter()?;
        match yes {
            0 | 1 => this.carry_frames(yes == 1),
            other => return Err(Error::invalid(format!("carry_frames is {other}: use 0 or 1"))),
        }
        Ok(())
    })
}

/// Frees an exchange; NULL does nothing. Fails (1), and frees nothing, if called within an attempt.
///
/// # Safety
/// `exchange` is NULL or a handle that was not freed, and no call uses it later.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_free(exchange: *mut modejump_exchange) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        if let Some(this) = unsafe { exchange.as_ref() } {
            drop(this.0.enter()?);
            // SAFETY: the handle came from Box::into_raw and is freed once.
            drop(unsafe { Box::from_raw(exchange) });
        }
        Ok(())
    })
}

/// Tells the exchange which bonds the engine constrains in both replicas, as `modejump_move_set_constraints` does for a
/// move. With n = 0 the engine constrains none. Refused (6), naming the bond, unless these are exactly the bonds that
/// both models keep at a fixed length, with the same lengths.
///
/// # Safety
/// `exchange` is NULL or a live handle; the arrays are NULL or have that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_set_constraints(
    exchange: *mut modejump_exchange,
    n: u64,
    atoms: *const u64,
    lengths: *const f64,
    masses: *const f64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let mut this = unsafe { reference(exchange, "exchange") }?.0.enter()?;
        // SAFETY: the caller's promise.
        let constraints = unsafe { constraints_of(this.dimension() / 3, n, (atoms, lengths, masses)) }?;
        this.set_constraints(constraints)
    })
}

/// Makes one attempt: maps the configuration of each replica to the ensemble of the other, asks each target for the
/// reduced potential of its new configuration, and accepts or rejects both together. `a->x` and `b->x` change if and
/// only if `outcome->outcome` is `MODEJUMP_ACCEPTED`. The steps of the states must be equal and their replicas
/// different: the random number is a function of seed, step and the two replicas.
///
/// # Safety
/// `exchange` is NULL or a live handle; the structs are NULL or have the size they say; `x` of each state is NULL or
/// points to `dimension` numbers of its own; `box` is NULL or points to nine numbers; the callbacks do as documented
/// there.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_attempt(
    exchange: *mut modejump_exchange,
    target_a: *const modejump_target,
    target_b: *const modejump_target,
    a: *const modejump_state,
    b: *const modejump_state,
    outcome: *mut modejump_exchange_outcome,
) -> i32 {
    guarded(|| {
        // First, and both, so that each is destroyed whatever happens.
        // SAFETY: the caller's promise.
        let [target_a, target_b] = unsafe { [Callback::of(target_a), Callback::of(target_b)] };
        let (mut target_a, mut target_b) = (target_a?, target_b?);
        require_threads()?;
        // SAFETY: the caller's promise.
        let (this, a, b) = unsafe { (reference(exchange, "exchange")?, read(a)?, read(b)?) };
        let mut this = this.0.enter()?;
        let dimension = this.dimension();
        target_a.set_dimension(dimension);
        target_b.set_dimension(dimension);
        if std::ptr::eq(a.x, b.x) {
            return Err(Error::invalid("both states have the same x: each replica needs its own"));
        }
        // An outcome that cannot be written must stop the attempt before x changes.
        // SAFETY: the caller's promise.
        unsafe { super::struct_size(outcome) }?;
        // SAFETY: the caller's promise.
        let (mut a, mut b) = unsafe { (state_of(&a, dimension)?, state_of(&b, dimension)?) };
        let result = this.attempt([&mut target_a, &mut target_b], [&mut a, &mut b])?;
        let values = modejump_exchange_outcome {
            struct_size: 0,
            outcome: result.fate as u32,
            log_acceptance: result.log_acceptance,
            log_weight_a: result.log_weights[0],
            log_weight_b: result.log_weights[1],
            reduced_potential_a: result.reduced_potentials[0],
            reduced_potential_b: result.reduced_potentials[1],
        };
        // SAFETY: checked above.
        unsafe { write(outcome, &values) }
    })
}

/// Writes the counters. Weights are those of the mapped configurations of a as samples of b.
///
/// # Safety
/// `exchange` is NULL or a live handle; `statistics` is NULL or a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_statistics(
    exchange: *const modejump_exchange,
    statistics: *mut modejump_statistics,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let this = unsafe { reference(exchange, "exchange") }?.0.enter()?;
        // SAFETY: the caller's promise.
        unsafe { write(statistics, &counters(this.statistics())) }
    })
}

/// Sets all counters to zero.
///
/// # Safety
/// `exchange` is NULL or a live handle.
#[no_mangle]
pub unsafe extern "C" fn modejump_exchange_reset_statistics(exchange: *mut modejump_exchange) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        unsafe { reference(exchange, "exchange") }?.0.enter()?.statistics_mut().reset();
        Ok(())
    })
}
