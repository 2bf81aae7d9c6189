//! The driver's functions (CUDA driver API).

use super::card::*;
use super::compiler::HEADER;
use std::cell::RefCell;
use std::ffi::{c_char, c_void, CStr};

thread_local! {
    /// Contexts that were made current on this thread, the last of which is.
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

fn current() -> Option<Handle> {
    CURRENT.with_borrow(|stack| stack.last().copied()).filter(|&context| context != 0)
}

fn set_current(context: Handle) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.push(context);
    });
}

pub fn status(result: Result<()>) -> i32 {
    result.err().unwrap_or(0)
}

/// Writes to the caller's variable.
pub fn put<T>(to: *mut T, value: T) {
    // SAFETY: whoever calls the driver passes variables, and room for what is documented.
    unsafe { to.write(value) };
}

/// The caller's text.
fn text_at(text: *const c_char) -> String {
    // SAFETY: texts end with 0.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The caller's bytes.
fn bytes_at(address: u64, bytes: usize) -> Vec<u8> {
    // SAFETY: the caller has as many there as it says, or as a kernel's parameter has.
    unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec()
}

/// In the context that is current.
fn within(body: impl FnOnce(&mut Context) -> Result<()>) -> i32 {
    with_card(|card, context| body(card.context(context)?))
}

pub fn with_card(body: impl FnOnce(&mut Card, Handle) -> Result<()>) -> i32 {
    status(current().ok_or(INVALID_CONTEXT).and_then(|context| body(&mut card(), context)))
}

/// Something new in the context that is current, and its handle.
fn made(to: *mut Handle, make: impl FnOnce(&mut Context, Handle) -> Result<()>) -> i32 {
    with_card(|card, context| {
        let handle = card.new_handle();
        make(card.context(context)?, handle)?;
        put(to, handle);
        Ok(())
    })
}

/// Counts so far, which are zero again; not a function of NVIDIA's.
#[no_mangle]
pub extern "C" fn software_card_counts(counts: *mut Counts) {
    put(counts, std::mem::take(&mut card().counts));
}

/// Waits for what `body` says, which is counted.
fn waiting(body: impl FnOnce(&mut Context) -> Result<()>) -> i32 {
    card().counts.waits += 1;
    within(body)
}

#[no_mangle]
pub extern "C" fn cuInit(_: u32) -> i32 {
    0
}

#[no_mangle]
pub extern "C" fn cuProfilerStop() -> i32 {
    0
}

#[no_mangle]
pub extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    put(version, 13000);
    0
}

fn name_of(error: i32) -> &'static CStr {
    match error {
        0 => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => c"CUDA_ERROR_UNKNOWN",
    }
}

#[no_mangle]
pub extern "C" fn cuGetErrorName(error: i32, text: *mut *const c_char) -> i32 {
    put(text, name_of(error).as_ptr());
    0
}

#[no_mangle]
pub extern "C" fn cuGetErrorString(error: i32, text: *mut *const c_char) -> i32 {
    cuGetErrorName(error, text)
}

#[no_mangle]
pub extern "C" fn cuDeviceGetCount(count: *mut i32) -> i32 {
    put(count, 1);
    0
}

#[no_mangle]
pub extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    put(device, ordinal);
    if ordinal == 0 {
        0
    } else {
        101
    }
}

#[no_mangle]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, _: i32) -> i32 {
    const NAME: &CStr = c"Software card";
    if (length as usize) < NAME.count_bytes() + 1 {
        return INVALID_VALUE;
    }
    NAME.to_bytes_with_nul().iter().enumerate().for_each(|(i, &byte)| put(name.wrapping_add(i), byte as c_char));
    0
}

#[no_mangle]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: i32) -> i32 {
    put(bytes, 16 << 30);
    0
}

#[no_mangle]
pub extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, _: i32, _: i32) -> i32 {
    put(can, 0);
    0
}

#[no_mangle]
pub extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _: i32) -> i32 {
    let known = match attribute {
        1 | 2 => 1024,   // threads of a block
        8 => 48 << 10,   // shared memory of a block
        10 => 32,        // threads of a warp
        13 => 1_000_000, // clock rate
        16 => 1,         // multiprocessors
        17 => 0,         // whether kernels that take long are ended
        20 => 0,         // compute mode
        75 => 9,         // compute capability
        76 => 0,
        81 => 227 << 10, // shared memory of a multiprocessor
        97 => 227 << 10, // shared memory of a block that asks for more
        _ => {
            eprintln!("software card: attribute {attribute} is unknown");
            return INVALID_VALUE;
        }
    };
    put(value, known);
    0
}

#[no_mangle]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _: i32) -> i32 {
    let mut card = card();
    let (handle, retained) = match card.primary {
        Some(primary) => primary,
        None => (card.new_context(), 0),
    };
    card.primary = Some((handle, retained + 1));
    put(context, handle);
    0
}

#[no_mangle]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: i32) -> i32 {
    let mut card = card();
    match card.primary {
        None => INVALID_CONTEXT,
        Some((handle, 1)) => {
            card.primary = None;
            status(card.destroy_context(handle))
        }
        Some((handle, retained)) => {
            card.primary = Some((handle, retained - 1));
            0
        }
    }
}

#[no_mangle]
pub extern "C" fn cuCtxCreate_v4(context: *mut Handle, _: *mut c_void, _: u32, _: i32) -> i32 {
    let handle = card().new_context();
    CURRENT.with_borrow_mut(|stack| stack.push(handle));
    put(context, handle);
    0
}

#[no_mangle]
pub extern "C" fn cuCtxCreate_v2(context: *mut Handle, flags: u32, device: i32) -> i32 {
    cuCtxCreate_v4(context, std::ptr::null_mut(), flags, device)
}

#[no_mangle]
pub extern "C" fn cuCtxDestroy_v2(context: Handle) -> i32 {
    CURRENT.with_borrow_mut(|stack| stack.pop_if(|top| *top == context));
    status(card().destroy_context(context))
}

#[no_mangle]
pub extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> i32 {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
    0
}

#[no_mangle]
pub extern "C" fn cuCtxPopCurrent_v2(context: *mut Handle) -> i32 {
    let popped = CURRENT.with_borrow_mut(Vec::pop);
    if !context.is_null() {
        put(context, popped.unwrap_or(0));
    }
    popped.map_or(INVALID_CONTEXT, |_| 0)
}

#[no_mangle]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> i32 {
    set_current(context);
    0
}

#[no_mangle]
pub extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> i32 {
    put(context, current().unwrap_or(0));
    0
}

#[no_mangle]
pub extern "C" fn cuCtxGetDevice(device: *mut i32) -> i32 {
    put(device, 0);
    current().map_or(INVALID_CONTEXT, |_| 0)
}

#[no_mangle]
pub extern "C" fn cuCtxSetCacheConfig(_: i32) -> i32 {
    0
}

#[no_mangle]
pub extern "C" fn cuCtxEnablePeerAccess(_: Handle, _: u32) -> i32 {
    INVALID_VALUE
}

#[no_mangle]
pub extern "C" fn cuCtxSynchronize() -> i32 {
    waiting(Context::finish)
}

#[no_mangle]
pub extern "C" fn cuStreamCreate(stream: *mut Handle, flags: u32) -> i32 {
    made(stream, |context, handle| {
        context.new_stream(handle, flags & 1 == 0);
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> i32 {
    within(|context| context.destroy_stream(stream))
}

#[no_mangle]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> i32 {
    waiting(|context| context.wait(stream))
}

#[no_mangle]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _: u32) -> i32 {
    within(|context| match context.recorded(event) {
        Some((of, position)) => context.give(stream, Work::After { stream: of, position }),
        None => Ok(()),
    })
}

#[no_mangle]
pub extern "C" fn cuEventCreate(event: *mut Handle, _: u32) -> i32 {
    put(event, card().new_handle());
    0
}

#[no_mangle]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> i32 {
    within(|context| {
        context.forget(event);
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> i32 {
    within(|context| context.record(event, stream))
}

#[no_mangle]
pub extern "C" fn cuEventSynchronize(event: Handle) -> i32 {
    waiting(|context| match context.recorded(event) {
        Some((stream, position)) => context.wait_until(stream, position),
        None => Ok(()),
    })
}

fn load(module: *mut Handle, text: &str) -> i32 {
    made(module, |context, handle| context.load(handle, text))
}

#[no_mangle]
pub extern "C" fn cuModuleLoad(module: *mut Handle, file: *const c_char) -> i32 {
    std::fs::read_to_string(text_at(file)).map_or(NOT_FOUND, |text| load(module, text.trim_end_matches('\0')))
}

/// Text, behind the header of a cubin or without.
#[no_mangle]
pub extern "C" fn cuModuleLoadData(module: *mut Handle, code: *const u8) -> i32 {
    let text = text_at(code.cast());
    match text.starts_with("\x7fELF") {
        true => load(module, &text_at(code.wrapping_add(HEADER.len()).cast())),
        false => load(module, &text),
    }
}

#[no_mangle]
pub extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    code: *const u8,
    _: u32,
    _: *mut i32,
    _: *mut *mut c_void,
) -> i32 {
    cuModuleLoadData(module, code)
}

#[no_mangle]
pub extern "C" fn cuModuleUnload(module: Handle) -> i32 {
    within(|context| context.modules.remove(&module).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[no_mangle]
pub extern "C" fn cuModuleGetFunction(kernel: *mut Handle, module: Handle, name: *const c_char) -> i32 {
    made(kernel, |context, handle| context.find(handle, module, &text_at(name)))
}

#[no_mangle]
pub extern "C" fn cuFuncGetAttribute(value: *mut i32, attribute: i32, kernel: Handle) -> i32 {
    within(|context| {
        let (module, function) = context.kernel(kernel)?;
        let known = match attribute {
            0 => module.functions[function].most_threads.unwrap_or(1024) as i32,
            1 => module.shared as i32,
            _ => return Err(INVALID_VALUE),
        };
        put(value, known);
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn cuFuncSetAttribute(kernel: Handle, _: i32, _: i32) -> i32 {
    within(|context| context.kernel(kernel).map(|_| ()))
}

#[no_mangle]
pub extern "C" fn cuFuncSetCacheConfig(kernel: Handle, _: i32) -> i32 {
    within(|context| context.kernel(kernel).map(|_| ()))
}

#[no_mangle]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut i32,
    kernel: Handle,
    _: i32,
    _: usize,
) -> i32 {
    put(blocks, 2);
    within(|context| context.kernel(kernel).map(|_| ()))
}

#[no_mangle]
pub extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> i32 {
    with_card(|card, context| {
        put(address, card.allocate(context, bytes)?);
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    with_card(|card, context| card.free(context, address))
}

#[no_mangle]
pub extern "C" fn cuMemHostAlloc(host: *mut u64, bytes: usize, _: u32) -> i32 {
    with_card(|card, context| {
        let address = card.allocate(context, bytes)?;
        put(host, card.context(context)?.pin(address)?);
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn cuMemFreeHost(host: u64) -> i32 {
    with_card(|card, context| {
        let address = card.context(context)?.unpin(host)?;
        card.free(context, address)
    })
}

#[no_mangle]
pub extern "C" fn cuMemHostGetDevicePointer_v2(address: *mut u64, host: u64, _: u32) -> i32 {
    within(|context| {
        put(address, context.address_of_pinned(host).ok_or(INVALID_VALUE)?);
        Ok(())
    })
}

/// Memory that is not pinned is read or written before the function returns, in any case.
fn copy(to: u64, from: u64, bytes: usize, stream: Handle, waits: bool) -> i32 {
    with_card(|card, context| {
        let counts = &mut card.counts;
        *match (is_on_card(to), is_on_card(from)) {
            (true, true) => &mut counts.on_card,
            (true, false) => &mut counts.to_card,
            (false, _) => &mut counts.to_host,
        } += 1;
        let here = card.context(context)?;
        let pageable = |place| !is_on_card(place) && here.address_of_pinned(place).is_none();
        let (reads, writes) = (pageable(from), pageable(to));
        let work = match reads {
            true => Work::Write { to, bytes: bytes_at(from, bytes) },
            false => Work::Copy { to, from, bytes },
        };
        here.give(stream, work)?;
        if !waits && !writes {
            return Ok(());
        }
        card.counts.waits += 1;
        card.context(context)?.wait(stream)
    })
}

macro_rules! copies_that_wait {
    ($($name:ident)*) => {$(
        #[no_mangle]
        pub extern "C" fn $name(to: u64, from: u64, bytes: usize) -> i32 {
            copy(to, from, bytes, DEFAULT, true)
        }
    )*};
}
copies_that_wait! { cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 }

macro_rules! copies {
    ($($name:ident)*) => {$(
        #[no_mangle]
        pub extern "C" fn $name(to: u64, from: u64, bytes: usize, stream: Handle) -> i32 {
            copy(to, from, bytes, stream, false)
        }
    )*};
}
copies! { cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyAsync }

/// In one dimension.
fn launch(
    kernel: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    (shared, together): (u32, bool),
    stream: Handle,
    parameters: *const *const u8,
) -> i32 {
    if grid[1..] != [1, 1] || block[1..] != [1, 1] || grid[0] == 0 || !(1..=1024).contains(&block[0]) {
        return INVALID_VALUE;
    }
    with_card(|card, context| {
        card.counts.launches += 1;
        let context = card.context(context)?;
        let (module, function) = context.kernel(kernel)?;
        let code = &module.functions[function];
        let mut argument = vec![0; code.argument];
        for (i, place) in code.arguments.iter().enumerate() {
            // SAFETY: the caller has a pointer for each parameter.
            let given = bytes_at(unsafe { *parameters.add(i) } as u64, place.bytes);
            argument[place.offset..place.offset + place.bytes].copy_from_slice(&given);
        }
        let shape = Shape { grid: grid[0], threads: block[0], shared: shared as usize, together };
        context.give(stream, Work::Launch { kernel, shape, argument })
    })
}

#[no_mangle]
pub extern "C" fn cuLaunchKernel(
    kernel: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    parameters: *const *const u8,
    _: *mut *mut c_void,
) -> i32 {
    launch(kernel, [gx, gy, gz], [bx, by, bz], (shared, false), stream, parameters)
}

#[no_mangle]
pub extern "C" fn cuLaunchCooperativeKernel(
    kernel: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    parameters: *const *const u8,
) -> i32 {
    launch(kernel, [gx, gy, gz], [bx, by, bz], (shared, true), stream, parameters)
}

/// NVRTC looks for tables that nobody else knows.
#[no_mangle]
pub extern "C" fn cuGetExportTable(_: *mut *const c_void, _: *const c_void) -> i32 {
    NOT_FOUND
}
