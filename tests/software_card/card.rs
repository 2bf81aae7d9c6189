//! What the card holds and is asked to do: contexts, memory, modules, and streams. Work of a stream is done as late as it
//! may be, when somebody waits for it, so that whoever should wait and does not sees that.

use super::code::{window, Module, GLOBAL};
use super::machine::{self, address_of, array_of, Arrays, Launch};
use super::parse;
use super::transforms::Plan;
use std::collections::{HashMap, VecDeque};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// The driver's numbers of errors.
pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const INVALID_CONTEXT: i32 = 201;
pub const INVALID_PTX: i32 = 218;
pub const INVALID_HANDLE: i32 = 400;
pub const NOT_FOUND: i32 = 500;
pub const LAUNCH_FAILED: i32 = 719;

pub type Result<T> = std::result::Result<T, i32>;

/// Of a context, stream, event, module or kernel.
pub type Handle = u64;
/// Waits for streams that are blocking, and they for it.
pub const DEFAULT: Handle = 0;
/// Numbers that addresses have room for.
const MOST_ARRAYS: usize = 1 << 16;

pub enum Work {
    Launch {
        kernel: Handle,
        shape: Shape,
        argument: Vec<u8>,
    },
    Write {
        to: u64,
        bytes: Vec<u8>,
    },
    /// Addresses of the card or of the host.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Transform {
        plan: Plan,
        to: u64,
        from: u64,
    },
    /// Waits for another stream's first so many pieces of work.
    After {
        stream: Handle,
        position: u64,
    },
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: u32,
    pub threads: u32,
    pub shared: usize,
    pub together: bool,
}

#[derive(Default)]
struct Stream {
    blocking: bool,
    queue: VecDeque<Work>,
    given: u64,
    done: u64,
}

pub struct Kernel {
    module: Handle,
    pub function: usize,
}

#[derive(Default)]
pub struct Context {
    arrays: Arrays,
    /// Host memory of which the card has addresses, too: where, bytes, the card's address.
    pinned: Vec<(u64, usize, u64)>,
    streams: HashMap<Handle, Stream>,
    /// Stream and position of the last record.
    events: HashMap<Handle, (Handle, u64)>,
    pub modules: HashMap<Handle, Module>,
    pub kernels: HashMap<Handle, Kernel>,
    launches: u64,
}

/// What was asked for: launches, copies to the card, to the host and on the card, and how often the host waited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub launches: u64,
    pub to_card: u64,
    pub to_host: u64,
    pub on_card: u64,
    pub waits: u64,
}

#[derive(Default)]
pub struct Card {
    pub counts: Counts,
    pub contexts: HashMap<Handle, Context>,
    /// The primary one, and how often it is retained.
    pub primary: Option<(Handle, usize)>,
    pub plans: HashMap<i32, Plan>,
    handles: Handle,
    /// No two contexts have arrays of the same number, so an address of another context leads nowhere.
    arrays: usize,
    free: VecDeque<usize>,
}

/// Whether an address is of the card's memory, and not of the host's.
pub fn is_on_card(address: u64) -> bool {
    window(address) == GLOBAL
}

pub fn card() -> MutexGuard<'static, Card> {
    static CARD: LazyLock<Mutex<Card>> = LazyLock::new(Mutex::default);
    CARD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Card {
    pub fn context(&mut self, handle: Handle) -> Result<&mut Context> {
        self.contexts.get_mut(&handle).ok_or(INVALID_CONTEXT)
    }

    pub fn new_handle(&mut self) -> Handle {
        self.handles += 1;
        self.handles
    }

    pub fn new_context(&mut self) -> Handle {
        let handle = self.new_handle();
        let streams = HashMap::from([(DEFAULT, Stream { blocking: true, ..Stream::default() })]);
        self.contexts.insert(handle, Context { streams, ..Context::default() });
        handle
    }

    pub fn destroy_context(&mut self, handle: Handle) -> Result<()> {
        let mut context = self.contexts.remove(&handle).ok_or(INVALID_CONTEXT)?;
        context.finish()?;
        let used = context.arrays.iter().enumerate().filter(|(_, array)| array.is_some());
        self.free.extend(used.map(|(number, _)| number));
        Ok(())
    }

    /// Memory of `context`, NaN at first; a number that was freed is used again when there is no other.
    pub fn allocate(&mut self, context: Handle, bytes: usize) -> Result<u64> {
        let number = match self.arrays {
            MOST_ARRAYS => self.free.pop_front().ok_or(OUT_OF_MEMORY)?,
            number => {
                self.arrays += 1;
                number
            }
        };
        let arrays = &mut self.context(context)?.arrays;
        arrays.resize(arrays.len().max(number + 1), None);
        arrays[number] = Some(vec![0xff; bytes]);
        Ok(address_of(number))
    }

    /// Waits for all work, as the driver does.
    pub fn free(&mut self, context: Handle, address: u64) -> Result<()> {
        let context = self.context(context)?;
        context.finish()?;
        if !is_on_card(address) || address_of(array_of(address)) != address {
            return Err(INVALID_VALUE);
        }
        let array = context.arrays.get_mut(array_of(address)).and_then(Option::take);
        self.free.push_back(array_of(address));
        array.map(|_| ()).ok_or(INVALID_VALUE)
    }
}

impl Context {
    fn stream(&mut self, stream: Handle) -> Result<&mut Stream> {
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)
    }

    pub fn new_stream(&mut self, handle: Handle, blocking: bool) {
        self.streams.insert(handle, Stream { blocking, ..Stream::default() });
    }

    pub fn destroy_stream(&mut self, handle: Handle) -> Result<()> {
        self.wait(handle)?;
        self.streams.remove(&handle).map(|_| ()).ok_or(INVALID_HANDLE)
    }

    pub fn load(&mut self, handle: Handle, text: &str) -> Result<()> {
        let module = parse::parse(text).map_err(|said| {
            eprintln!("software card: {said}");
            INVALID_PTX
        })?;
        self.modules.insert(handle, module);
        Ok(())
    }

    pub fn find(&mut self, handle: Handle, module: Handle, name: &str) -> Result<()> {
        let function = *self.modules.get(&module).ok_or(INVALID_HANDLE)?.names.get(name).ok_or(NOT_FOUND)?;
        self.kernels.insert(handle, Kernel { module, function });
        Ok(())
    }

    /// A kernel's module and number in it.
    pub fn kernel(&self, kernel: Handle) -> Result<(&Module, usize)> {
        let kernel = self.kernels.get(&kernel).ok_or(INVALID_HANDLE)?;
        Ok((self.modules.get(&kernel.module).ok_or(INVALID_HANDLE)?, kernel.function))
    }

    pub fn pin(&mut self, address: u64) -> Result<u64> {
        let array = self.arrays[array_of(address)].as_ref().ok_or(INVALID_VALUE)?;
        let host = array.as_ptr() as u64;
        self.pinned.push((host, array.len(), address));
        Ok(host)
    }

    pub fn unpin(&mut self, host: u64) -> Result<u64> {
        let at = self.pinned.iter().position(|pinned| pinned.0 == host).ok_or(INVALID_VALUE)?;
        Ok(self.pinned.remove(at).2)
    }

    /// The card's address of pinned memory of the host.
    pub fn address_of_pinned(&self, host: u64) -> Option<u64> {
        let of = self.pinned.iter().find(|&&(start, bytes, _)| (start..start + bytes as u64).contains(&host))?;
        Some(of.2 + (host - of.0))
    }

    pub fn record(&mut self, event: Handle, stream: Handle) -> Result<()> {
        let position = self.stream(stream)?.given;
        self.events.insert(event, (stream, position));
        Ok(())
    }

    /// What an event waits for; nothing where it was never recorded, or its stream is gone.
    pub fn recorded(&self, event: Handle) -> Option<(Handle, u64)> {
        self.events.get(&event).copied().filter(|(stream, _)| self.streams.contains_key(stream))
    }

    pub fn forget(&mut self, event: Handle) {
        self.events.remove(&event);
    }

    pub fn give(&mut self, stream: Handle, work: Work) -> Result<()> {
        if self.stream(stream)?.blocking {
            let waits = |other: &Handle| *other != stream && (*other == DEFAULT || stream == DEFAULT);
            let others: Vec<(Handle, u64)> = self
                .streams
                .iter()
                .filter(|(other, of)| waits(other) && of.blocking)
                .map(|(other, of)| (*other, of.given))
                .collect();
            for (stream_before, position) in others {
                self.push(stream, Work::After { stream: stream_before, position })?;
            }
        }
        self.push(stream, work)
    }

    fn push(&mut self, stream: Handle, work: Work) -> Result<()> {
        let stream = self.stream(stream)?;
        stream.queue.push_back(work);
        stream.given += 1;
        Ok(())
    }

    pub fn finish(&mut self) -> Result<()> {
        let streams: Vec<Handle> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.wait(stream))
    }

    pub fn wait(&mut self, stream: Handle) -> Result<()> {
        let given = self.stream(stream)?.given;
        self.wait_until(stream, given)
    }

    /// Does a stream's work up to a position.
    pub fn wait_until(&mut self, stream: Handle, position: u64) -> Result<()> {
        while self.stream(stream)?.done < position {
            let Some(work) = self.stream(stream)?.queue.pop_front() else { break };
            let done = self.work(work);
            self.stream(stream)?.done += 1;
            done?;
        }
        Ok(())
    }

    fn work(&mut self, work: Work) -> Result<()> {
        match work {
            Work::After { stream, .. } if !self.streams.contains_key(&stream) => Ok(()),
            Work::After { stream, position } => self.wait_until(stream, position),
            Work::Write { to, bytes } => {
                self.memory(to, bytes.len())?.copy_from_slice(&bytes);
                Ok(())
            }
            Work::Copy { to, from, bytes } => self.copy(to, from, bytes),
            Work::Transform { plan, to, from } => self.transform(&plan, to, from),
            Work::Launch { kernel, shape, argument } => self.launch(kernel, shape, &argument),
        }
    }

    pub fn memory(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        let start = (address & 0xffff_ffff) as usize;
        let array = if is_on_card(address) { self.arrays.get_mut(array_of(address)) } else { None };
        let array = array.and_then(|array| array.as_deref_mut());
        array.and_then(|array| array.get_mut(start..start + bytes)).ok_or_else(|| {
            eprintln!("software card: {bytes} bytes at {address:#x} are not in this context's memory");
            INVALID_VALUE
        })
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        match (is_on_card(to), is_on_card(from)) {
            (true, true) => {
                let moved = self.memory(from, bytes)?.to_vec();
                self.memory(to, bytes)?.copy_from_slice(&moved);
            }
            (true, false) => {
                let to = self.memory(to, bytes)?;
                // SAFETY: the caller says that so much can be read there.
                unsafe { std::ptr::copy(from as *const u8, to.as_mut_ptr(), bytes) };
            }
            (false, true) => {
                let from = self.memory(from, bytes)?;
                // SAFETY: the caller says that so much can be written there.
                unsafe { std::ptr::copy(from.as_ptr(), to as *mut u8, bytes) };
            }
            (false, false) => return Err(INVALID_VALUE),
        }
        Ok(())
    }

    fn launch(&mut self, kernel: Handle, shape: Shape, argument: &[u8]) -> Result<()> {
        self.launches += 1;
        let kernel = self.kernels.get(&kernel).ok_or(INVALID_HANDLE)?;
        let module = self.modules.get(&kernel.module).ok_or(INVALID_HANDLE)?;
        let Shape { grid, threads, shared, together } = shape;
        let launch =
            Launch { module, kernel: kernel.function, grid, threads, shared, argument, together, seed: self.launches };
        machine::run(&launch, &mut self.arrays).map(|_| ()).map_err(|said| {
            eprintln!("software card: {}: {said}", module.functions[kernel.function].name);
            LAUNCH_FAILED
        })
    }
}
