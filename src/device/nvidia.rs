//! NVIDIA's cards, through the driver library, which is looked up at run time: the same binary runs with and without
//! one.

use super::{compile, tensor_cores, Driver, KernelId, Program, Reading};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{c_void, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Opens card `ordinal`, once for the process and shared. Errors: no driver library, no such card.
pub fn open(ordinal: usize) -> Result<Arc<dyn Driver>> {
    static OPEN: Mutex<Vec<(usize, Weak<Queue>)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = open.iter().find(|(o, _)| *o == ordinal).and_then(|(_, queue)| queue.upgrade()) {
        return Ok(queue);
    }
    let queue = Arc::new(Queue::on(Arc::new(guarded(|| Card::new(ordinal))?)));
    open.retain(|(o, _)| *o != ordinal);
    open.push((ordinal, Arc::downgrade(&queue)));
    Ok(queue)
}

/// Opens one of the cards for the process with this local rank. Errors: those of [`open`].
pub fn open_for(process: usize) -> Result<Arc<dyn Driver>> {
    open(process % guarded(count)?.max(1))
}

/// Turns cudarc's panic about a symbol that an old driver lacks into an error.
fn guarded<T>(body: impl FnOnce() -> Result<T> + std::panic::UnwindSafe) -> Result<T> {
    std::panic::catch_unwind(body).unwrap_or_else(|_| {
        Err(Error::Unsupported("the NVIDIA driver is too old for this program; update it, or use device cpu".into()))
    })
}

/// Makes a context current on this thread until dropped. The surrounding program may have a context of its own there
/// (as OpenMM does), which is restored.
struct Current;

impl Current {
    fn of(context: sys::CUcontext) -> std::result::Result<Current, result::DriverError> {
        // SAFETY: the caller holds the context.
        unsafe { sys::cuCtxPushCurrent_v2(context) }.result().map(|()| Current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: removes what `of` pushed, on the same thread, since a `Current` stays in the function that made it.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// One card, the context that kernels run in on it, and the kernels.
struct Card {
    name: String,
    device: sys::CUdevice,
    architecture: String,
    shared_memory: usize,
    memory: usize,
    multiprocessors: usize,
    has_watchdog: bool,
    /// The primary context is created on first use: it takes some hundred MiB of the card.
    context: OnFirstUse<Context>,
    kernels: Mutex<Kernels>,
    /// Held while a program is compiled, which is not to stop the launches of other threads.
    compiling: Mutex<()>,
}

/// A handle made when it is first needed. A failure is not kept: the GPU may have been full for a while.
struct OnFirstUse<T>(Mutex<Option<T>>);

impl<T: Copy> OnFirstUse<T> {
    fn nothing() -> OnFirstUse<T> {
        OnFirstUse(Mutex::new(None))
    }

    fn get<E>(&self, make: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<T, E> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_none() {
            *made = Some(make()?);
        }
        Ok(made.expect("it was just made"))
    }

    /// What was made, if anything.
    fn made(&mut self) -> Option<T> {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy)]
enum Context {
    /// Primary context of the process, retained by the card.
    Primary(sys::CUcontext),
    /// Context created by the surrounding program.
    OfProgram(sys::CUcontext),
}

#[derive(Default)]
struct Kernels {
    modules: HashMap<Program, sys::CUmodule>,
    functions: Vec<(sys::CUmodule, String, sys::CUfunction)>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every call does
// first.
unsafe impl Send for Card {}
// SAFETY: as above; the tables are behind a lock.
unsafe impl Sync for Card {}

/// Number of cards that the driver shows.
fn count() -> Result<usize> {
    // SAFETY: opens the library, which has no side effects.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Unsupported(
            "could not find libcuda, the library of the NVIDIA driver; install the driver, or use device cpu".into(),
        ));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
            error("the libcuda that was found is a stub for linkers; take its folder out of LD_LIBRARY_PATH", e)
        }
        _ => error("could not initialise the NVIDIA driver", e),
    })?;
    Ok(result::device::get_count().map_err(|e| error("could not count the GPUs", e))? as usize)
}

impl Card {
    fn new(ordinal: usize) -> Result<Card> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::invalid(format!("GPU {ordinal} is not available; number of GPUs: {count}")));
        }
        let device = result::device::get(ordinal as i32).map_err(|e| error("could not open the GPU", e))?;
        let get = |attribute| {
            // SAFETY: the device was just found.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(|e| error("could not query the GPU", e))
        };
        use sys::CUdevice_attribute as Attribute;
        let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) < (7, 5) {
            return Err(Error::Unsupported(format!(
                "GPU {ordinal} has compute capability {major}.{minor}; kernels require 7.5 (Turing) or later"
            )));
        }
        let name = result::device::get_name(device).map_err(|e| error("could not get the name of the GPU", e))?;
        // SAFETY: the device was just found.
        let memory = unsafe { result::device::total_mem(device) }
            .map_err(|e| error("could not get the size of the GPU's memory", e))?;
        Ok(Card {
            name: format!("{name} (cuda:{ordinal})"),
            device,
            architecture: format!("sm_{major}{minor}"),
            shared_memory: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            memory,
            multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            has_watchdog: get(Attribute::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT)? != 0,
            context: OnFirstUse::nothing(),
            kernels: Mutex::default(),
            compiling: Mutex::default(),
        })
    }

    /// The card of the context that is current on this thread, for work in that context; None if `only` is another
    /// card.
    fn in_current_context(only: Option<sys::CUdevice>) -> Result<Option<Card>> {
        let (mut context, mut device) = (std::ptr::null_mut(), 0);
        // SAFETY: writes to a handle.
        let found = unsafe { sys::cuCtxGetCurrent(&mut context) }.result();
        found.map_err(|e| error("could not get the CUDA context of this thread", e))?;
        if context.is_null() {
            return Err(Error::invalid(
                "no CUDA context is current on this thread; make the program's context current before loading the \
                 model",
            ));
        }
        // SAFETY: writes to a number; the context is current.
        let found = unsafe { sys::cuCtxGetDevice(&mut device) }.result();
        found.map_err(|e| error("could not get the device of this thread's CUDA context", e))?;
        if only.is_some_and(|only| only != device) {
            return Ok(None);
        }
        let mut card = Card::new(device as usize)?; // a device's handle is its number
        card.name += ", in the program's context";
        card.context = OnFirstUse(Mutex::new(Some(Context::OfProgram(context))));
        Ok(Some(card))
    }

    /// Makes the card's context current for a call; the calling thread may never have used it.
    fn enter(&self) -> Result<Current> {
        let context = self.context.get(|| {
            // SAFETY: the device was found; the context is released when the card is dropped.
            unsafe { result::primary_ctx::retain(self.device) }.map(Context::Primary)
        });
        let (Context::Primary(context) | Context::OfProgram(context)) =
            context.map_err(|e| error("could not get a context on the GPU", e))?;
        Current::of(context).map_err(|e| error("could not make the GPU's context current", e))
    }

    fn kernels(&self) -> MutexGuard<'_, Kernels> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self, kernel: KernelId) -> sys::CUfunction {
        self.kernels().functions[kernel.0].2
    }

    /// A program's module, compiled and loaded if it was not yet. The context must be current.
    fn module(&self, program: &Program) -> Result<sys::CUmodule> {
        let _one_at_a_time = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = self.kernels().modules.get(program) {
            return Ok(*module);
        }
        let load = |code: &[u8]| {
            // SAFETY: `code` is a cubin, with its length in it; the driver copies it.
            unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(|e| not_loaded(program, e))
        };
        let module = compile::load(program, &self.architecture, load)?;
        self.kernels().modules.insert(program.clone(), module);
        Ok(module)
    }

    /// Kernel `name` of a loaded module, allowed as much shared memory per block as there is. The context must be
    /// current.
    fn find(&self, module: sys::CUmodule, program: &Program, name: &str) -> Result<sys::CUfunction> {
        use sys::CUfunction_attribute as Attribute;
        let c_name = CString::new(name).map_err(|e| Error::invalid(e.to_string()))?;
        // SAFETY: the module is loaded and never unloaded while the card lives.
        let function = unsafe { result::module::get_function(module, c_name) }
            .map_err(|e| error(&format!("{}.cu has no kernel {name}", program.name), e))?;
        // SAFETY: the function was just found.
        unsafe {
            result::function::get_function_attribute(function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
                .and_then(|fixed| {
                    let most = self.shared_memory as i32 - fixed;
                    let allowed = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    result::function::set_function_attribute(function, allowed, most)
                })
                .map_err(|e| error(&format!("{}: could not set the shared memory of {name}", self.name), e))?;
        }
        Ok(function)
    }
}

/// A stream of a card, where launches and copies follow each other.
struct Queue {
    card: Arc<Card>,
    stream: OnFirstUse<sys::CUstream>,
    /// How many calls have begun something, and how many of them were waited for. Other threads may begin and wait too.
    begun: AtomicU64,
    waited: AtomicU64,
    /// [`PINNED`] bytes of the host that the card writes to directly; none before they are needed.
    pinned: Mutex<Option<*mut u8>>,
}

/// Downloads of at most this many bytes go through pinned memory: the driver waits for each copy to other memory.
const PINNED: usize = 1 << 16;

// SAFETY: as for a card.
unsafe impl Send for Queue {}
// SAFETY: as for a card.
unsafe impl Sync for Queue {}

impl Queue {
    fn on(card: Arc<Card>) -> Queue {
        let (begun, waited) = (AtomicU64::new(0), AtomicU64::new(0));
        Queue { card, stream: OnFirstUse::nothing(), begun, waited, pinned: Mutex::default() }
    }

    /// As [`Card::enter`], and returns the stream.
    fn enter(&self) -> Result<(Current, sys::CUstream)> {
        let current = self.card.enter()?;
        let stream = self.stream.get(|| result::stream::create(result::stream::StreamKind::NonBlocking));
        Ok((current, stream.map_err(|e| error("could not create a stream on the GPU", e))?))
    }

    /// What a call returned that may have begun something; counted afterwards, as another thread may be waiting.
    fn begun<T>(&self, called: T) -> T {
        self.begun.fetch_add(1, Ordering::AcqRel);
        called
    }

    fn wait(&self, stream: sys::CUstream) -> std::result::Result<(), result::DriverError> {
        // what another thread begins during the wait is not waited for
        let begun = self.begun.load(Ordering::Acquire);
        // SAFETY: the stream is this queue's.
        unsafe { result::stream::synchronize(stream) }?;
        self.waited.fetch_max(begun, Ordering::AcqRel);
        Ok(())
    }

    fn read_all(
        &self,
        readings: &mut [Reading],
        stream: sys::CUstream,
    ) -> std::result::Result<(), result::DriverError> {
        for (address, bytes) in readings.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            // SAFETY: the buffer holds that much; the stream is waited for before `bytes` is looked at.
            self.begun(unsafe { result::memcpy_dtoh_async(bytes, *address, stream) })?;
        }
        self.wait(stream)
    }

    /// The same for at most [`PINNED`] bytes.
    fn read_pinned(
        &self,
        readings: &mut [Reading],
        stream: sys::CUstream,
    ) -> std::result::Result<(), result::DriverError> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let start = match *pinned {
            Some(start) => start,
            // SAFETY: the context is current; the memory is freed with the queue.
            None => *pinned.insert(unsafe { result::malloc_host(PINNED, 0) }?.cast()),
        };
        // SAFETY: as many bytes as were allocated, of which nobody else has a reference while the lock is held.
        let mut rest = unsafe { std::slice::from_raw_parts_mut(start, PINNED) };
        let mut staged = Vec::with_capacity(readings.len());
        for (address, bytes) in readings.iter() {
            let (part, others) = rest.split_at_mut(bytes.len());
            staged.push((*address, part));
            rest = others;
        }
        self.read_all(&mut staged, stream)?;
        readings.iter_mut().zip(staged).for_each(|((_, bytes), (_, part))| bytes.copy_from_slice(part));
        Ok(())
    }

    fn failed(&self, what: &str, e: result::DriverError) -> Error {
        let advice = match e.0 {
            sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
                "; its driver stops kernels that run for seconds, as on cards with a display: use f32 networks, \
                 another card or device cpu"
            }
            sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | sys::CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED => {
                "; no further work is possible on this card until the process has ended; please report it"
            }
            _ => "",
        };
        error(&format!("{}: {what}{advice}", self.card.name), e)
    }
}

impl Driver for Queue {
    fn describe(&self) -> String {
        self.card.name.clone()
    }

    fn shared_memory(&self) -> usize {
        self.card.shared_memory
    }

    fn memory(&self) -> usize {
        self.card.memory
    }

    fn tensor_cores(&self) -> bool {
        tensor_cores(&self.card.architecture)
    }

    fn has_watchdog(&self) -> bool {
        self.card.has_watchdog
    }

    fn multiprocessors(&self) -> usize {
        self.card.multiprocessors
    }

    unsafe fn in_current_context(&self, only_here: bool) -> Result<Option<Arc<dyn Driver>>> {
        let only = only_here.then_some(self.card.device);
        let card = guarded(|| Card::in_current_context(only))?;
        Ok(card.map(|card| Arc::new(Queue::on(Arc::new(card))) as Arc<dyn Driver>))
    }

    fn another_queue(&self) -> Result<Option<Arc<dyn Driver>>> {
        self.finish()?;
        Ok(Some(Arc::new(Queue::on(self.card.clone()))))
    }

    fn finish(&self) -> Result<()> {
        if self.waited.load(Ordering::Acquire) >= self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let (_current, stream) = self.enter()?;
        self.wait(stream).map_err(|e| self.failed("a kernel or a copy to the GPU failed", e))
    }

    fn kernel(&self, program: &Program, name: &str) -> Result<KernelId> {
        let _current = self.card.enter()?;
        let module = self.card.module(program)?;
        let mut kernels = self.card.kernels();
        if let Some(id) = kernels.functions.iter().position(|(m, n, _)| *m == module && n == name) {
            return Ok(KernelId(id));
        }
        let function = self.card.find(module, program, name)?;
        kernels.functions.push((module, name.to_string(), function));
        Ok(KernelId(kernels.functions.len() - 1))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _current = self.card.enter()?;
        // SAFETY: the context is current.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| {
            let mib = bytes.div_ceil(1 << 20);
            self.failed(
                &format!("could not allocate {mib} MiB of memory; use smaller batches, or a GPU with more free memory"),
                e,
            )
        })
    }

    fn free(&self, address: u64) {
        if let Ok(_current) = self.card.enter() {
            // SAFETY: the address came from `allocate`, and its owner is being dropped; the driver waits for running
            // kernels.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let (_current, stream) = self.enter()?;
        // SAFETY: the buffer has room, as `Buffer::write` sees to; the caller keeps `bytes` until the stream is waited
        // for.
        self.begun(unsafe { result::memcpy_htod_async(address, bytes, stream) })
            .map_err(|e| self.failed("a copy to the GPU failed", e))
    }

    fn download(&self, readings: &mut [Reading]) -> Result<()> {
        let (_current, stream) = self.enter()?;
        let small = readings.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= PINNED;
        let copied = if small { self.read_pinned(readings, stream) } else { self.read_all(readings, stream) };
        copied.map_err(|e| self.failed("a kernel or a copy from the GPU failed", e))
    }

    unsafe fn launch(&self, kernel: KernelId, grid: u32, block: u32, shared: usize, argument: &[u8]) -> Result<()> {
        let (_current, stream) = self.enter()?;
        let function = self.card.function(kernel);
        let mut parameters = [argument.as_ptr() as *mut c_void];
        let (grid, block) = ((grid, 1, 1), (block, 1, 1));
        // SAFETY: the function is loaded; the argument is the caller's promise, and is copied before return.
        self.begun(unsafe { result::launch_kernel(function, grid, block, shared as u32, stream, &mut parameters) })
            .map_err(|e| self.failed("could not start a kernel", e))
    }

    fn resident(&self, kernel: KernelId, block: u32, shared: usize) -> Result<usize> {
        let _current = self.card.enter()?;
        let function = self.card.function(kernel);
        // SAFETY: the function is loaded.
        let each = unsafe { result::occupancy::max_active_block_per_multiprocessor(function, block as i32, shared) }
            .map_err(|e| self.failed("could not count the blocks that run at once", e))?;
        Ok(each as usize * self.card.multiprocessors)
    }

    unsafe fn launch_together(
        &self,
        kernel: KernelId,
        grid: u32,
        block: u32,
        shared: usize,
        argument: &[u8],
    ) -> Result<()> {
        let (_current, stream) = self.enter()?;
        let function = self.card.function(kernel);
        let mut parameters = [argument.as_ptr() as *mut c_void];
        let (grid, block) = ((grid, 1, 1), (block, 1, 1));
        // SAFETY: as for `launch`.
        let launched =
            unsafe { result::launch_cooperative_kernel(function, grid, block, shared as u32, stream, &mut parameters) };
        self.begun(launched).map_err(|e| self.failed("could not start a kernel", e))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // without a stream nothing was run
        let Some(stream) = self.stream.made() else { return };
        let Ok(_current) = self.card.enter() else { return };
        let pinned = self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // SAFETY: nobody uses the stream any more, nor its pinned memory; it is drained first.
        unsafe {
            let _ = result::stream::synchronize(stream);
            let _ = result::stream::destroy(stream);
            let _ = pinned.map(|pinned| result::free_host(pinned.cast()));
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let Some(context) = self.context.made() else { return };
        if let Ok(_current) = self.enter() {
            for module in self.kernels().modules.values() {
                // SAFETY: nobody uses its kernels any more.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
        if let Context::Primary(_) = context {
            // SAFETY: was retained once, by this card.
            let _ = unsafe { result::primary_ctx::release(self.device) };
        }
    }
}

/// Adds advice if the compiler is newer than the driver: one of the same major version makes code that it can load.
fn not_loaded(program: &Program, e: result::DriverError) -> Error {
    let failed = format!("the driver could not load {}.cu", program.name);
    let mut driver = 0;
    // SAFETY: writes to a number.
    let asked = unsafe { sys::cuDriverGetVersion(&mut driver) }.result();
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    match (asked, compile::version()) {
        (Ok(()), Ok(compiler)) if compiler.0 > major => error(
            &format!(
                "{failed}, compiled by NVRTC {}.{}: the driver supports CUDA up to {major}.{minor}; update it, or put \
                 the NVRTC of CUDA {major} in LD_LIBRARY_PATH instead (`pip install nvidia-cuda-nvrtc-cu{major}`; that of \
                 CUDA 11 is found by the name libnvrtc.so.11, a link to its libnvrtc.so.11.2)",
                compiler.0, compiler.1
            ),
            e,
        ),
        _ => error(&failed, e),
    }
}

fn error(what: &str, error: result::DriverError) -> Error {
    Error::Engine(format!("{what}: {error}"))
}
