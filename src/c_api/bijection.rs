//! Bijections: maps between the configurations of two models.

use super::model::modejump_model;
use super::status::{computing, guarded};
use super::{reference, reference_mut, slice, slice_mut};
use crate::bijection::{Bijection, Mapped};
use crate::density::{Evaluation, Status};
use crate::error::{Error, Result};
use crate::moves::Fate;

/// An invertible map between configurations. Const functions may be called from several threads at once.
pub struct modejump_bijection {
    map: Bijection,
    inverse: Bijection,
}

impl modejump_bijection {
    pub(super) fn map(&self) -> &Bijection {
        &self.map
    }
}

/// Makes the map f = T_to o T_from^-1 of two flows with a common latent space. Refused (6) for models without a latent
/// space, without exact log-determinants or with auxiliary coordinates, and unless both describe all coordinates or
/// both the shape; refused (1) for models with different atoms, latent spaces or frames. On success `*out` is a new
/// handle, to be freed with `modejump_bijection_free`; it keeps both models alive.
///
/// # Safety
/// `from` and `to` are NULL or live handles; `out` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_bijection_new(
    from: *const modejump_model,
    to: *const modejump_model,
    out: *mut *mut modejump_bijection,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (&reference(from, "from")?.model, &reference(to, "to")?.model) };
        // SAFETY: the caller's promise.
        let out = unsafe { reference_mut(out, "out") }?;
        let map = Bijection::new(from.clone(), to.clone())?;
        *out = Box::into_raw(Box::new(modejump_bijection { inverse: map.inverse(), map }));
        Ok(())
    })
}

/// Frees a bijection; NULL does nothing. Exchanges made from it stay valid.
///
/// # Safety
/// `bijection` is NULL or a handle that was not freed; no other call uses it.
#[no_mangle]
pub unsafe extern "C" fn modejump_bijection_free(bijection: *mut modejump_bijection) -> i32 {
    guarded(|| {
        if !bijection.is_null() {
            // SAFETY: the handle came from Box::into_raw and is freed once.
            drop(unsafe { Box::from_raw(bijection) });
        }
        Ok(())
    })
}

/// Maps `n` configurations `x[n][dimension]`, whole molecules: writes y = f(x), or f^-1(x) if `inverse` is 1, into
/// `y[n][dimension]`, ln |dy/dx| into `log_det[n]`, and into `status[n]` 0 or the reason why there is no image
/// (`MODEJUMP_OUT_OF_SUPPORT` to `MODEJUMP_CHIRALITY`), in which case y is x and the logarithm -inf. A map in internal
/// coordinates changes the shape only: y keeps the frame of x.
///
/// # Safety
/// `bijection` is NULL or a live handle; the arrays are NULL or have that many numbers; `y` may be `x`.
#[no_mangle]
pub unsafe extern "C" fn modejump_bijection_map(
    bijection: *const modejump_bijection,
    inverse: u32,
    n: u64,
    x: *const f64,
    y: *mut f64,
    log_det: *mut f64,
    status: *mut u32,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let this = unsafe { reference(bijection, "bijection") }?;
        let map = match inverse {
            0 => &this.map,
            1 => &this.inverse,
            other => return Err(Error::invalid(format!("inverse is {other}: use 0 or 1"))),
        };
        // A copy, so that y may be x.
        // SAFETY: the caller's promise.
        let x = unsafe { slice(x, n, map.dimension(), "x") }?.to_vec();
        let (images, mapped) = images(map, &x)?;
        // SAFETY: the caller's promise; what was read of x is not used any more.
        let (y, log_det) = unsafe { (slice_mut(y, n, map.dimension(), "y")?, slice_mut(log_det, n, 1, "log_det")?) };
        // SAFETY: the caller's promise.
        let status = unsafe { slice_mut(status, n, 1, "status") }?;
        y.copy_from_slice(&images);
        for ((log_det, status), mapped) in log_det.iter_mut().zip(status).zip(&mapped) {
            *log_det = mapped.log_det();
            *status = match mapped.status() {
                Status::Inside => 0,
                status => Fate::of(status) as u32,
            };
        }
        Ok(())
    })
}

fn images(map: &Bijection, x: &[f64]) -> Result<(Vec<f64>, Vec<Mapped>)> {
    let nowhere = Evaluation::outside(Status::NonFinite);
    let mut mapped = vec![Mapped { forward: nowhere, reverse: nowhere }; x.len() / map.dimension()];
    let mut y = vec![0.0; x.len()];
    map.map(x, &mut y, &mut mapped)?;
    Ok((y, mapped))
}
