//! A target that the caller supplies.

use super::status;
use super::{read_unchecked, require_known_flags, Versioned};
use crate::error::{Error, Result};
use crate::target::Target;
use std::ffi::c_void;
use std::mem::offset_of;

/// The caller's reduced potential u(x) = (U + pV)/kT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_target {
    /// sizeof(modejump_target)
    pub struct_size: u32,
    /// 0
    pub flags: u32,
    /// Passed to the callbacks.
    pub user: *mut c_void,
    /// Writes u of the `n` configurations `x[n][dimension]` into `u[n]`. NaN or infinity rejects a configuration.
    /// Returns 0, or another number after `modejump_set_last_error`: the call that needed the value then fails
    /// with 254. Must not throw.
    pub reduced_potential: Option<unsafe extern "C" fn(user: *mut c_void, n: u64, x: *const f64, u: *mut f64) -> i32>,
    /// NULL, or a function that is called with `user` exactly once before the function that got this struct returns,
    /// whatever its status.
    pub destroy: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// NULL, or as `reduced_potential`, and also writes du/dx into `gradient[n][dimension]`: needed by annealed moves,
    /// and by latent walks with trajectories.
    pub reduced_potential_gradient:
        Option<unsafe extern "C" fn(user: *mut c_void, n: u64, x: *const f64, u: *mut f64, gradient: *mut f64) -> i32>,
    /// NULL, or a function that moves the rest of the system (a solvent), which is not in `x[dimension]`, with x held
    /// fixed, by a kernel that is reversible for exp(-u(x, .)), and writes the u that results: needed by driven moves.
    /// Its random numbers must be a function of the attempt and of `stage`, counted from 0 in each attempt.
    /// `reduced_potential` refers to the current positions of the solvent. After an attempt that failed or was not
    /// accepted, the caller puts the solvent back to where it was.
    pub relax: Option<unsafe extern "C" fn(user: *mut c_void, x: *const f64, stage: u64, u: *mut f64) -> i32>,
}

// SAFETY: repr(C), begins with struct_size, any bytes are a value (function pointers are nullable).
unsafe impl Versioned for modejump_target {
    const NAME: &'static str = "modejump_target";
    const FIRST: usize = offset_of!(modejump_target, reduced_potential_gradient);
    const LATER: &'static [usize] = &[offset_of!(modejump_target, relax)];
    fn empty() -> modejump_target {
        modejump_target {
            struct_size: 0,
            flags: 0,
            user: std::ptr::null_mut(),
            reduced_potential: None,
            destroy: None,
            reduced_potential_gradient: None,
            relax: None,
        }
    }
    fn reserved_flags(&self) -> u32 {
        self.flags
    }
}

/// Owner of a `modejump_target`: calls `destroy` when dropped.
pub(super) struct Callback {
    target: modejump_target,
    dimension: usize,
}

impl Callback {
    /// Takes the caller's target over: from here on it is destroyed exactly once, whatever happens. Errors: no target, a
    /// struct that is too small, unknown flags.
    ///
    /// # Safety
    /// `target` is NULL or a struct of the size it says, with callbacks of a living caller.
    pub(super) unsafe fn of(target: *const modejump_target) -> Result<Callback> {
        // SAFETY: the caller's promise.
        let callback = Callback { target: unsafe { read_unchecked(target) }?, dimension: 0 };
        require_known_flags(&callback.target)?;
        Ok(callback)
    }

    pub(super) fn set_dimension(&mut self, dimension: usize) {
        self.dimension = dimension;
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        if let Some(destroy) = self.target.destroy {
            // SAFETY: the caller's function with the caller's pointer, once.
            unsafe { destroy(self.target.user) };
        }
    }
}

impl Target for Callback {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        let function =
            self.target.reduced_potential.ok_or_else(|| Error::invalid("modejump_target.reduced_potential is NULL"))?;
        status::remember("");
        // Shows a callback that forgets to write.
        u.fill(f64::NAN);
        // SAFETY: the slices have n × dimension and n numbers, and the function is the caller's.
        let code = unsafe { function(self.target.user, u.len() as u64, x.as_ptr(), u.as_mut_ptr()) };
        outcome("reduced_potential", code)
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        let function = self.target.reduced_potential_gradient.ok_or_else(|| {
            Error::invalid(
                "modejump_target.reduced_potential_gradient is NULL: annealed moves and latent walks by trajectories require it",
            )
        })?;
        status::remember("");
        u.fill(f64::NAN);
        gradient.fill(f64::NAN);
        // SAFETY: the slices have n × dimension and n numbers, and the function is the caller's.
        let code =
            unsafe { function(self.target.user, u.len() as u64, x.as_ptr(), u.as_mut_ptr(), gradient.as_mut_ptr()) };
        outcome("reduced_potential_gradient", code)
    }

    fn relax(&mut self, x: &[f64], stage: u32) -> Result<f64> {
        let function = self.target.relax.ok_or_else(|| {
            Error::invalid("modejump_target.relax is NULL: driven moves of more than one step require it")
        })?;
        status::remember("");
        let mut u = f64::NAN;
        // SAFETY: x has `dimension` numbers, u is one, and the function is the caller's.
        let code = unsafe { function(self.target.user, x.as_ptr(), u64::from(stage), &mut u) };
        outcome("relax", code)?;
        Ok(u)
    }
}

/// Converts the status that a callback returned.
fn outcome(name: &str, code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let message = status::take();
    let message = if message.is_empty() { "no message".to_string() } else { message };
    Err(Error::Callback(format!("{name} returned {code}: {message}")))
}
