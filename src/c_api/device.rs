//! Where models run.

use super::model::modejump_model;
use super::status::guarded;
use super::{reference, reference_mut, utf8};
use crate::device::{self, set_default, Device};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ffi::{c_char, CString};

/// Sets where models loaded from now on run, in this copy of the library: "cpu", "auto" (a GPU, if there is one),
/// "cuda" or "cuda:N". Without this call the environment variable MODEJUMP_DEVICE decides; if it is not set, models run
/// on the CPU. Fails if there is no such device, and says what is missing.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string.
#[no_mangle]
pub unsafe extern "C" fn modejump_set_device(name: *const c_char) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        set_default(Device::parse(unsafe { utf8(name, "name") }?)?);
        Ok(())
    })
}

/// Writes where models loaded from now on run: "cpu", or the name of a GPU. The string belongs to the thread and is
/// valid until it calls this function again.
///
/// # Safety
/// `name` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_device(name: *mut *const c_char) -> i32 {
    thread_local! {
        static NAME: RefCell<CString> = RefCell::default();
    }
    guarded(|| -> Result<()> {
        // SAFETY: the caller's promise.
        let out = unsafe { reference_mut(name, "name") }?;
        let text = CString::new(device::default()?.describe()).map_err(|e| Error::invalid(format!("device: {e}")))?;
        *out = NAME.with(|name| {
            *name.borrow_mut() = text;
            name.borrow().as_ptr()
        });
        Ok(())
    })
}

/// Writes where a model runs: "cpu", or the name of a GPU. The string belongs to the model.
///
/// # Safety
/// `model` is NULL or a live handle; `name` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_device(model: *const modejump_model, name: *mut *const c_char) -> i32 {
    guarded(|| -> Result<()> {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(name, "name")?) };
        *out = model.device.as_ptr();
        Ok(())
    })
}
