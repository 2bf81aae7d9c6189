//! Memory that is used again, and large buffers on large pages. Weights and activations that are read from end to end,
//! again and again, miss the processor's table of pages of 4 KiB more often than its caches.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Workspaces that are not in use, for any thread, so that a warm call does not allocate.
#[derive(Debug)]
pub struct Spares<T>(Mutex<Vec<T>>);

impl<T> Default for Spares<T> {
    fn default() -> Spares<T> {
        Spares(Mutex::default())
    }
}

impl<T> Spares<T> {
    /// Takes and returns leave the list whole, so it is good after a panic as well.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> Option<T> {
        self.lock().pop()
    }

    pub fn put_back(&self, workspace: T) {
        self.lock().push(workspace);
    }

    /// Runs `body` with a spare workspace, or with one that `make` makes if all are in use.
    pub fn with<A>(&self, make: impl FnOnce() -> T, body: impl FnOnce(&mut T) -> A) -> A {
        let mut workspace = self.take().unwrap_or_else(make);
        let result = body(&mut workspace);
        self.put_back(workspace);
        result
    }
}

/// As [`Vec::resize`] with zeros, with memory of many megabytes on pages of two, where the system gives them to who
/// asks.
pub fn resize<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) {
    if n > buffer.capacity() {
        buffer.reserve(n - buffer.len());
        ask_for_large_pages(buffer);
    }
    buffer.resize(n, T::default());
}

/// So many zeros.
pub fn zeros<T: Clone + Default>(n: usize) -> Vec<T> {
    let mut buffer = Vec::new();
    resize(&mut buffer, n);
    buffer
}

#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(buffer: &Vec<T>) {
    const PAGE: usize = 4096;
    const LARGE: usize = 2 << 20;
    let start = buffer.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + buffer.capacity() * size_of::<T>()) / PAGE * PAGE);
    if end.saturating_sub(first) >= 2 * LARGE {
        // SAFETY: whole pages inside the buffer's memory, of which only the size is advised, not what they hold. Where
        // the system has no such pages it says so, and nothing changes.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages<T>(_: &Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_keep_what_they_hold_and_grow_by_zeros() {
        let mut buffer: Vec<f32> = zeros(3_000_000);
        assert!(buffer.len() == 3_000_000 && buffer.iter().all(|&v| v == 0.0));
        buffer.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
        resize(&mut buffer, 5_000_001);
        assert!(buffer[..3_000_000].iter().enumerate().all(|(i, &v)| v == i as f32));
        assert!(buffer.len() == 5_000_001 && buffer[3_000_000..].iter().all(|&v| v == 0.0));
        resize(&mut buffer, 2);
        assert_eq!(buffer, [0.0, 1.0]);
    }
}
