//! Resources that a model holds on a device: memory, workspaces, kernels. All errors here are the driver's (out of
//! memory, a failed copy or launch, compilation).

use super::{Driver, Reading};
use crate::error::Result;
use bytemuck::Pod;
use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// An array in a device's memory.
pub struct Buffer<T> {
    driver: Arc<dyn Driver>,
    address: u64,
    capacity: usize,
    /// Largest capacity that [`Buffer::reserve_parts`] asks for.
    most: usize,
    kind: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// A buffer without memory until it is needed.
    pub fn empty(driver: &Arc<dyn Driver>) -> Buffer<T> {
        Buffer { driver: driver.clone(), address: 0, capacity: 0, most: usize::MAX, kind: PhantomData }
    }

    /// Address; 0 for an empty buffer.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<T: Pod> Buffer<T> {
    /// A buffer for `capacity` numbers, uninitialised.
    pub fn new(driver: &Arc<dyn Driver>, capacity: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer::empty(driver);
        buffer.reserve(capacity.max(1))?;
        Ok(buffer)
    }

    /// A buffer with these values, which have been copied when this returns.
    pub fn of(driver: &Arc<dyn Driver>, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(driver, values.len())?;
        buffer.write(values)?;
        driver.finish()?;
        Ok(buffer)
    }

    /// Makes room for `capacity` numbers; if the buffer has to grow, its contents are lost.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity > self.capacity {
            // free the old memory first, so that both need not fit
            self.free();
            self.address = self.driver.allocate(capacity * size_of::<T>())?;
            self.capacity = capacity;
        }
        Ok(())
    }

    /// Makes room for n parts of `size` numbers, or for as many as the device has memory for; returns how many. Errors:
    /// no room for one.
    pub fn reserve_parts(&mut self, n: usize, size: usize) -> Result<usize> {
        let mut n = n.min(self.most / size.max(1)).max(1);
        while let Err(error) = self.reserve(n * size) {
            if n == 1 {
                return Err(error);
            }
            n = n.div_ceil(2);
            // more is not tried again at every call: the whole device waits when memory is freed
            self.most = n * size;
        }
        Ok(n)
    }

    /// Copies `values` to the buffer, asynchronously: the caller keeps them until the next read or [`Driver::finish`].
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.reserve(values.len())?;
        match values {
            [] => Ok(()),
            _ => self.driver.upload(self.address, bytemuck::cast_slice(values)),
        }
    }

    /// Reads the first `values.len()` numbers. Panics if there are fewer.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        self.driver.download(&mut [self.copy_to(values)])
    }

    /// A copy of the first `values.len()` numbers, for [`Driver::download`]. Panics if there are fewer.
    pub fn copy_to<'a>(&self, values: &'a mut [T]) -> Reading<'a> {
        assert!(
            values.len() <= self.capacity,
            "cannot read from a buffer of {} numbers into {}",
            self.capacity,
            values.len()
        );
        (self.address, bytemuck::cast_slice_mut(values))
    }
}

impl<T> Buffer<T> {
    fn free(&mut self) {
        if self.address != 0 {
            self.driver.free(self.address);
        }
        (self.address, self.capacity) = (0, 0);
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.free();
    }
}

/// Per-call resources on a device besides the model: memory reused between calls, and a queue. Concurrent calls each
/// have their own, so that proposals are drawn ahead while densities are evaluated.
pub struct Workspaces<W> {
    driver: Arc<dyn Driver>,
    make: fn(&Arc<dyn Driver>) -> W,
    idle: Mutex<Vec<(Arc<dyn Driver>, W)>>,
}

impl<W> Workspaces<W> {
    /// Workspaces made by `make`, each with its own queue.
    pub fn on(driver: &Arc<dyn Driver>, make: fn(&Arc<dyn Driver>) -> W) -> Workspaces<W> {
        Workspaces { driver: driver.clone(), make, idle: Mutex::default() }
    }

    /// Takes an idle workspace, or makes a new one.
    pub fn take(&self) -> Result<Workspace<'_, W>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (driver, work) = match idle {
            Some(idle) => idle,
            None => {
                let driver = self.driver.another_queue()?.unwrap_or_else(|| self.driver.clone());
                let work = (self.make)(&driver);
                (driver, work)
            }
        };
        Ok(Workspace { workspaces: self, driver, work: Some(work) })
    }
}

/// One of [`Workspaces`], returned to them at the end of the call; data copied to it must outlive it.
pub struct Workspace<'a, W> {
    workspaces: &'a Workspaces<W>,
    /// Driver with the queue for launches on this memory.
    pub driver: Arc<dyn Driver>,
    work: Option<W>,
}

impl<W> Deref for Workspace<'_, W> {
    type Target = W;

    fn deref(&self) -> &W {
        self.work.as_ref().expect("the memory is held until drop")
    }
}

impl<W> DerefMut for Workspace<'_, W> {
    fn deref_mut(&mut self) -> &mut W {
        self.work.as_mut().expect("the memory is held until drop")
    }
}

impl<W> Drop for Workspace<'_, W> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            // after a failure, copies may still be reading memory that the caller is about to free
            let _ = self.driver.finish();
            let mut idle = self.workspaces.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((self.driver.clone(), work));
        }
    }
}

/// Kernels or related data, compiled on first use.
pub struct Compiled<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Compiled<K, V> {
    fn default() -> Compiled<K, V> {
        Compiled(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Copy> Compiled<K, V> {
    /// The value for `key`, compiled on first use.
    pub fn get(&self, key: K, compile: impl FnOnce() -> Result<V>) -> Result<V> {
        let mut compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = compiled.get(&key) {
            return Ok(*value);
        }
        let value = compile()?;
        compiled.insert(key, value);
        Ok(value)
    }
}
