//! The C ABI. Each file mirrors the one of its name in `src/`; nothing here computes, and nothing outside is
//! `extern "C"`.
//!
//! `include/modejump.h` is made from these files by cbindgen (`tests/header.rs`). The rules, which every function
//! keeps:
//! - the result is an `int32_t` status, 0 for success; out-pointers are written only on success;
//! - handles are opaque, and are freed by the `_free` function of their type, which takes NULL;
//! - structs begin with `struct_size`, set by the caller to `sizeof` of its own version;
//! - a body is one `catch_unwind`: no panic crosses the border.
#![allow(non_camel_case_types)]

pub mod bijection;
pub mod device;
pub mod exchange;
pub mod model;
pub mod moves;
pub mod status;
pub mod structs;
pub mod target;

use crate::coordinates::whole::{box_from_slice, BoxVectors};
use crate::error::{Error, Result};
use std::ffi::{c_char, CStr};
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// A reference from a pointer that must not be NULL.
///
/// # Safety
/// `pointer` is NULL or points to a live `T` that nobody changes during the call.
unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// # Safety
/// `pointer` is NULL or points to a `T` that nobody else uses during the call.
unsafe fn reference_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// State behind a handle, for one call at a time: calls of other threads wait.
struct Alone<T> {
    inside: Mutex<T>,
    /// The thread whose call is inside.
    thread: Mutex<Option<ThreadId>>,
    name: &'static str,
}

impl<T> Alone<T> {
    fn new(inside: T, name: &'static str) -> Alone<T> {
        Alone { inside: Mutex::new(inside), thread: Mutex::new(None), name }
    }

    /// Errors: this thread is inside already, in a callback of the target during an attempt.
    fn enter(&self) -> Result<Inside<'_, T>> {
        let this = std::thread::current().id();
        if *lock(&self.thread) == Some(this) {
            return Err(Error::invalid(format!(
                "this {} is in use by the attempt that called back: it can be used again after the attempt has finished",
                self.name
            )));
        }
        let inside = lock(&self.inside);
        *lock(&self.thread) = Some(this);
        Ok(Inside { inside, thread: &self.thread })
    }
}

/// Locks a mutex even if a call panicked while it held it: that call has reported the panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Exclusive access of one call to the state of a handle.
struct Inside<'a, T> {
    inside: MutexGuard<'a, T>,
    thread: &'a Mutex<Option<ThreadId>>,
}

impl<T> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        *lock(self.thread) = None;
    }
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inside
    }
}

impl<T> DerefMut for Inside<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inside
    }
}

/// The box vectors of a caller's nine numbers, if there are any.
///
/// # Safety
/// `numbers` is NULL or points to nine numbers.
unsafe fn box_of(numbers: *const f64) -> Option<BoxVectors> {
    // SAFETY: the caller's promise.
    (!numbers.is_null()).then(|| box_from_slice(unsafe { &*numbers.cast::<[f64; 9]>() }))
}

/// `rows` × `columns` numbers to read; an empty slice if there are none, whatever the pointer.
///
/// # Safety
/// `pointer` is NULL or points to that many numbers, which nobody changes during the call.
unsafe fn slice<'a, T>(pointer: *const T, rows: u64, columns: usize, name: &str) -> Result<&'a [T]> {
    let length = length::<T>(rows, columns, name)?;
    if length == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, the length does not overflow, and the caller promises the memory.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// `rows` × `columns` numbers to write.
///
/// # Safety
/// `pointer` is NULL or points to that many numbers, which nobody else uses during the call.
unsafe fn slice_mut<'a, T>(pointer: *mut T, rows: u64, columns: usize, name: &str) -> Result<&'a mut [T]> {
    let length = length::<T>(rows, columns, name)?;
    if length == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: as in `slice`.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
}

fn length<T>(rows: u64, columns: usize, name: &str) -> Result<usize> {
    usize::try_from(rows)
        .ok()
        .and_then(|rows| rows.checked_mul(columns))
        .filter(|length| length.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize))
        .ok_or_else(|| Error::invalid(format!("{name}: {rows} rows of {columns} numbers do not fit into memory")))
}

/// A caller's string, which must not be NULL.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string that lives as long as `'a`.
unsafe fn utf8<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, and the caller promises a terminated string.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Error::invalid(format!("{name} is not UTF-8")))
}

/// A caller's path, in the bytes of the file system.
///
/// # Safety
/// As for [`utf8`].
unsafe fn path<'a>(path: *const c_char) -> Result<&'a Path> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        if path.is_null() {
            return Err(null("path"));
        }
        // SAFETY: not NULL, and the caller promises a terminated string.
        Ok(Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes())))
    }
    #[cfg(not(unix))]
    // SAFETY: the caller's promise.
    Ok(Path::new(unsafe { utf8(path, "path") }?))
}

/// A caller's count; one that is too large for this machine becomes the largest `usize`.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn null(name: &str) -> Error {
    Error::invalid(format!("{name} is NULL"))
}

/// A plain struct of the ABI: its first field is `struct_size`, every bit pattern of the others is a valid value, and
/// the fields within `FIRST` bytes were there in the first version.
///
/// # Safety
/// Implementors are `repr(C)`, begin with a `u32` of that meaning, and hold integers, floats, pointers and nullable
/// function pointers only.
unsafe trait Versioned: Copy {
    const NAME: &'static str;
    /// Size of the first version of the struct: a smaller size is an error.
    const FIRST: usize;
    /// Sizes of later versions except the current one: the ends of the fields that existed before further ones were
    /// appended.
    const LATER: &'static [usize] = &[];
    fn empty() -> Self;
    /// Flags of which none is known yet.
    fn reserved_flags(&self) -> u32 {
        0
    }
}

/// Copies the part of a caller's struct that caller and library both know; the rest is as in `empty`.
///
/// # Safety
/// `pointer` is NULL or points to as many bytes as its `struct_size` says.
unsafe fn read<T: Versioned>(pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let value = unsafe { read_unchecked(pointer) }?;
    require_known_flags(&value)?;
    Ok(value)
}

fn require_known_flags<T: Versioned>(value: &T) -> Result<()> {
    match value.reserved_flags() {
        0 => Ok(()),
        flags => Err(Error::invalid(format!("{}.flags is {flags}, but must be 0", T::NAME))),
    }
}

/// As [`read`], with any flags.
///
/// # Safety
/// As for [`read`].
unsafe fn read_unchecked<T: Versioned>(pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(pointer) }?;
    let mut value = T::empty();
    // SAFETY: both sides have at least this many bytes, and any bytes make a valid T.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast::<u8>(), size);
    }
    Ok(value)
}

/// Writes as much of `value` as the caller's struct has room for; its `struct_size` is kept.
///
/// # Safety
/// As for [`read`], and the memory may be written.
unsafe fn write<T: Versioned>(pointer: *mut T, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(pointer) }?;
    let skip = size_of::<u32>();
    // SAFETY: both sides have at least `size` bytes; the first four are left out.
    unsafe {
        let from = (&raw const *value).cast::<u8>().add(skip);
        std::ptr::copy_nonoverlapping(from, pointer.cast::<u8>().add(skip), size - skip);
    }
    Ok(())
}

/// Number of bytes that caller and library both know: the size of the last version that fits in the caller's struct.
///
/// # Safety
/// `pointer` is NULL or points to at least four readable bytes.
unsafe fn struct_size<T: Versioned>(pointer: *const T) -> Result<usize> {
    if pointer.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: not NULL, and the first field is a u32.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::FIRST {
        return Err(Error::invalid(format!(
            "{}.struct_size is {size}: set it to sizeof({}), at least {}",
            T::NAME,
            T::NAME,
            T::FIRST
        )));
    }
    // a field that fits only in part does not count
    let versions = T::LATER.iter().chain([&size_of::<T>()]).copied().filter(|&version| version <= size);
    Ok(versions.max().unwrap_or(T::FIRST))
}
