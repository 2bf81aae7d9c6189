//! What a model keeps of a machine: memory, workspaces, kernels.

use super::Driver;
use crate::error::Result;
use bytemuck::Pod;
use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers in a machine's memory.
pub struct Buffer<T> {
    driver: Arc<dyn Driver>,
    address: u64,
    capacity: usize,
    kind: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// Without memory, until there is need of it.
    pub fn empty(driver: &Arc<dyn Driver>) -> Buffer<T> {
        Buffer { driver: driver.clone(), address: 0, capacity: 0, kind: PhantomData }
    }

    /// 0 where there is none.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<T: Pod> Buffer<T> {
    pub fn new(driver: &Arc<dyn Driver>, capacity: usize) -> Result<Buffer<T>> {
        let bytes = capacity.max(1) * std::mem::size_of::<T>();
        Ok(Buffer { driver: driver.clone(), address: driver.allocate(bytes)?, capacity, kind: PhantomData })
    }

    /// Of these values, which are there when this returns.
    pub fn of(driver: &Arc<dyn Driver>, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(driver, values.len())?;
        buffer.write(values)?;
        driver.finish()?;
        Ok(buffer)
    }

    /// Makes room for `capacity` numbers; what was there is lost if there was less.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity > self.capacity {
            // the old memory first, so that there need not be room for both
            *self = Buffer::empty(&self.driver);
            *self = Buffer::new(&self.driver, capacity)?;
        }
        Ok(())
    }

    /// The caller keeps `values` until the next read, or [`Driver::finish`].
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.reserve(values.len())?;
        match values {
            [] => Ok(()),
            _ => self.driver.upload(self.address, bytemuck::cast_slice(values)),
        }
    }

    /// The first numbers, as many as `values` holds.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        assert!(values.len() <= self.capacity, "a buffer of {} numbers was asked for {}", self.capacity, values.len());
        match values {
            [] => Ok(()),
            _ => self.driver.download(self.address, bytemuck::cast_slice_mut(values)),
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.driver.free(self.address);
        }
    }
}

/// What calls need on a machine beside the model: memory that is kept for the next call, and a queue. Calls that run at
/// the same time have each their own, so that proposals are drawn ahead while densities are asked for.
pub struct Workspaces<W> {
    driver: Arc<dyn Driver>,
    make: fn(&Arc<dyn Driver>) -> W,
    idle: Mutex<Vec<(Arc<dyn Driver>, W)>>,
}

impl<W> Workspaces<W> {
    /// Each made by `make`, for a queue of its own.
    pub fn on(driver: &Arc<dyn Driver>, make: fn(&Arc<dyn Driver>) -> W) -> Workspaces<W> {
        Workspaces { driver: driver.clone(), make, idle: Mutex::default() }
    }

    /// One that nobody uses, or a new one.
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

/// One of [`Workspaces`], which goes back when the call is over, and what is copied to it outlives it.
pub struct Workspace<'a, W> {
    workspaces: &'a Workspaces<W>,
    /// With the queue for launches on this memory.
    pub driver: Arc<dyn Driver>,
    work: Option<W>,
}

impl<W> Deref for Workspace<'_, W> {
    type Target = W;

    fn deref(&self) -> &W {
        self.work.as_ref().expect("it is there until the end")
    }
}

impl<W> DerefMut for Workspace<'_, W> {
    fn deref_mut(&mut self) -> &mut W {
        self.work.as_mut().expect("it is there until the end")
    }
}

impl<W> Drop for Workspace<'_, W> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            // after a failure copies may be under way, from memory that the caller is about to give back
            let _ = self.driver.finish();
            let mut idle = self.workspaces.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((self.driver.clone(), work));
        }
    }
}

/// Kernels, or what belongs to them, that are compiled when they are first asked for.
pub struct Compiled<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Compiled<K, V> {
    fn default() -> Compiled<K, V> {
        Compiled(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Copy> Compiled<K, V> {
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
