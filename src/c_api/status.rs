//! Status codes, the last error of a thread, and versions.

use crate::error::{Error, Result};
use crate::parallel::start_threads;
use std::cell::RefCell;
use std::ffi::{c_char, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};

/// Version of this interface. It changes when a function or the meaning of an existing field changes.
pub const MODEJUMP_ABI_VERSION: u32 = 1;

/// The call succeeded.
pub const MODEJUMP_OK: i32 = 0;
/// An argument is NULL or has the wrong size, range or meaning.
pub const MODEJUMP_INVALID_INPUT: i32 = 1;
/// A model file is malformed, truncated or of another format version.
pub const MODEJUMP_BAD_MODEL: i32 = 2;
/// Another file cannot be understood.
pub const MODEJUMP_BAD_FILE: i32 = 3;
/// The operating system refused.
pub const MODEJUMP_IO_ERROR: i32 = 4;
/// The molecular-dynamics engine failed.
pub const MODEJUMP_ENGINE_ERROR: i32 = 5;
/// The combination asked for would not be exact, or does not exist.
pub const MODEJUMP_UNSUPPORTED: i32 = 6;
/// A callback of the caller returned a status other than 0.
pub const MODEJUMP_CALLBACK_FAILED: i32 = 254;
/// A defect of the library. Please report it.
pub const MODEJUMP_INTERNAL_ERROR: i32 = 255;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of a C function: errors and panics become a status and the thread's last error.
pub(super) fn guarded(body: impl FnOnce() -> Result<()>) -> i32 {
    let (status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return MODEJUMP_OK,
        Ok(Err(error)) => (code(&error), error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            (MODEJUMP_INTERNAL_ERROR, format!("internal error, report it as a bug: {text}"))
        }
    };
    remember(&message);
    status
}

/// As [`guarded`], for calls that may start threads of the library or wait for them: a process forked after such a call
/// has none of these threads, and would wait for ever.
pub(super) fn computing(body: impl FnOnce() -> Result<()>) -> i32 {
    guarded(|| {
        require_threads()?;
        body()
    })
}

/// Errors: this process was forked from one that may have started threads of the library; threads that the system
/// refuses.
pub(super) fn require_threads() -> Result<()> {
    static OWNER: AtomicU32 = AtomicU32::new(0);
    let this = std::process::id();
    match OWNER.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
        Err(owner) if owner != this => Err(Error::Unsupported(
            "this process was forked from one that has used modejump, and lacks the threads of the library: start a new process instead (Python's \
             multiprocessing with \"spawn\" or \"forkserver\"), or fork before the first sample, density or move"
                .into(),
        )),
        _ => start_threads(),
    }
}

fn code(error: &Error) -> i32 {
    match error {
        Error::InvalidInput(_) => MODEJUMP_INVALID_INPUT,
        Error::Model { .. } => MODEJUMP_BAD_MODEL,
        Error::File { .. } => MODEJUMP_BAD_FILE,
        Error::Io { .. } => MODEJUMP_IO_ERROR,
        Error::Engine(_) => MODEJUMP_ENGINE_ERROR,
        Error::Callback(_) => MODEJUMP_CALLBACK_FAILED,
        Error::Unsupported(_) => MODEJUMP_UNSUPPORTED,
    }
}

/// Sets the thread's last error. A message cannot hold a NUL; it is cut there.
pub(super) fn remember(message: &str) {
    let text = message.split('\0').next().unwrap_or_default();
    // A thread that is ending has no last error any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
}

/// Takes the thread's last error, and leaves it empty.
pub(super) fn take() -> String {
    let taken = LAST_ERROR.try_with(|last| std::mem::take(&mut *last.borrow_mut()));
    taken.unwrap_or_default().to_string_lossy().into_owned()
}

/// `MODEJUMP_ABI_VERSION` of the library. Compare it with that of the header before anything else.
#[no_mangle]
pub extern "C" fn modejump_abi_version() -> u32 {
    MODEJUMP_ABI_VERSION
}

/// Version of the library, such as "0.1.0". Static, never NULL.
#[no_mangle]
pub extern "C" fn modejump_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version holds no NUL"),
    };
    VERSION.as_ptr()
}

/// Writes the message of the last failed call on this thread, in UTF-8; empty if there was none. It belongs to the
/// library and is valid until the next call on this thread.
///
/// # Safety
/// `message` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_last_error(message: *mut *const c_char) -> i32 {
    // Not through `guarded` alone: reading the message must not replace it.
    match message.is_null() {
        true => guarded(|| Err(Error::invalid("message is NULL"))),
        false => guarded(|| {
            let text = LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr());
            // SAFETY: not NULL, and the caller promises a pointer there.
            unsafe { message.write(text) };
            Ok(())
        }),
    }
}

/// Sets this thread's last error, for callbacks that then return a status other than 0. NULL clears it.
///
/// # Safety
/// `message` is NULL or a NUL-terminated string.
#[no_mangle]
pub unsafe extern "C" fn modejump_set_last_error(message: *const c_char) -> i32 {
    guarded(|| {
        let text = match message.is_null() {
            true => String::new(),
            // SAFETY: not NULL, and the caller promises a terminated string.
            false => unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned(),
        };
        remember(&text);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        let mut message = std::ptr::null();
        // SAFETY: a valid pointer to a pointer, and a message the library just wrote.
        unsafe {
            assert_eq!(modejump_last_error(&mut message), MODEJUMP_OK);
            CStr::from_ptr(message).to_str().unwrap().to_owned()
        }
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_message() {
        // as of a panic, but past the hook, which belongs to the process and its other tests
        let status = guarded(|| std::panic::resume_unwind(Box::new(format!("index {} is wrong", 7))));
        assert_eq!(status, MODEJUMP_INTERNAL_ERROR);
        assert!(last().contains("index 7 is wrong"));
    }

    #[test]
    fn every_kind_of_error_has_its_own_status() {
        let io = || std::io::Error::other("x");
        let errors = [
            Error::invalid("a"),
            Error::model("a", "b"),
            Error::file("a", "b"),
            Error::io("a", io()),
            Error::Engine("a".into()),
            Error::Unsupported("a".into()),
            Error::Callback("a".into()),
        ];
        let codes: Vec<i32> = errors.iter().map(code).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 254]);
    }

    #[test]
    fn messages_belong_to_their_thread() {
        remember("mine\0rest");
        assert_eq!(std::thread::spawn(last).join().unwrap(), "");
        assert_eq!(last(), "mine");
        assert_eq!(last(), "mine", "reading leaves the message");
        assert_eq!(take(), "mine");
        assert_eq!(last(), "");
    }
}
