//! Reused workspaces, and large buffers on huge pages: weights and activations that are repeatedly read from end to end
//! miss the TLB of 4 KiB pages more often than the caches.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Idle workspaces, reused by any thread so that a warm call does not allocate.
#[derive(Debug)]
pub struct Spares<T>(Mutex<Vec<T>>);

impl<T> Default for Spares<T> {
    fn default() -> Spares<T> {
        Spares(Mutex::default())
    }
}

impl<T> Spares<T> {
    /// The list is valid after a panic, too: it changes by whole workspaces only.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an idle workspace out, if there is one.
    pub fn take(&self) -> Option<T> {
        self.lock().pop()
    }

    /// Puts a workspace back for later calls.
    pub fn put_back(&self, workspace: T) {
        self.lock().push(workspace);
    }

    /// Runs `body` with an idle workspace; `make` creates one if all are in use.
    pub fn with<A>(&self, make: impl FnOnce() -> T, body: impl FnOnce(&mut T) -> A) -> A {
        let mut workspace = self.take().unwrap_or_else(make);
        let result = body(&mut workspace);
        self.put_back(workspace);
        result
    }
}

/// As [`Vec::resize`] with zeros; buffers of many megabytes are placed on 2 MiB pages if the system provides them on
/// request.
pub fn resize<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) {
    if n > buffer.capacity() {
        buffer.reserve(n - buffer.len());
        ask_for_large_pages(buffer);
    }
    buffer.resize(n, T::default());
}

/// A vector of `n` zeros, on huge pages where it is big.
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
        // SAFETY: whole pages inside the buffer's memory; only their size is advised, not their contents. A system
        // without such pages returns an error, and nothing changes.
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
