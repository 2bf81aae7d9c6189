//! NVRTC, passed through: PTX is made instead of machine code.

use std::ffi::{c_char, c_void, CStr, CString};
use std::sync::OnceLock;

const OUT_OF_MEMORY: i32 = 1;
/// As the header of an ELF file without tables begins, which is what cubins are.
pub const HEADER: [u8; 64] = {
    let mut header = [0; 64];
    (header[0], header[1], header[2], header[3], header[4]) = (0x7f, b'E', b'L', b'F', 2);
    header
};

extern "C" {
    fn dlopen(file: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// A function of NVIDIA's library, whose path is in `SOFTWARE_CARD_NVRTC`.
fn real(name: &CStr) -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let library = *LIBRARY.get_or_init(|| {
        let path = std::env::var("SOFTWARE_CARD_NVRTC").expect("SOFTWARE_CARD_NVRTC names libnvrtc.so");
        let path = CString::new(path).unwrap();
        // SAFETY: a path that ends with 0; now, and with names of its own.
        let library = unsafe { dlopen(path.as_ptr(), 2 | 8) };
        assert!(!library.is_null(), "{path:?} cannot be loaded");
        library as usize
    });
    // SAFETY: a library that stays loaded, and a name that ends with 0.
    let function = unsafe { dlsym(library as *mut c_void, name.as_ptr()) };
    assert!(!function.is_null(), "NVRTC has no {name:?}");
    function
}

macro_rules! passed_on {
    ($($name:ident($($argument:ident),*);)*) => {$(
        #[no_mangle]
        pub unsafe extern "C" fn $name($($argument: usize),*) -> i32 {
            let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).unwrap();
            // SAFETY: NVIDIA's declaration; numbers are as wide as registers.
            unsafe {
                let function: unsafe extern "C" fn($(passed_on!(@type $argument)),*) -> i32 = std::mem::transmute(real(name));
                function($($argument),*)
            }
        }
    )*};
    (@type $argument:ident) => { usize };
}
passed_on! {
    nvrtcCreateProgram(program, source, name, n, headers, names);
    nvrtcDestroyProgram(program);
    nvrtcGetNumSupportedArchs(n);
    nvrtcGetSupportedArchs(architectures);
    nvrtcGetPTX(program, text);
    nvrtcGetPTXSize(program, size);
    nvrtcGetProgramLog(program, text);
    nvrtcGetProgramLogSize(program, size);
    nvrtcVersion(major, minor);
}

#[no_mangle]
pub unsafe extern "C" fn nvrtcGetErrorString(error: i32) -> *const c_char {
    // SAFETY: NVIDIA's declaration.
    unsafe {
        let function: unsafe extern "C" fn(i32) -> *const c_char = std::mem::transmute(real(c"nvrtcGetErrorString"));
        function(error)
    }
}

/// For a virtual architecture, as no machine code is wanted.
#[no_mangle]
pub unsafe extern "C" fn nvrtcCompileProgram(program: usize, n: i32, options: *const *const c_char) -> i32 {
    // SAFETY: NVIDIA's declaration; so many options, each of which ends with 0.
    unsafe {
        let given = (0..n as usize).map(|i| CStr::from_ptr(*options.add(i)).to_string_lossy().into_owned());
        let changed = given.map(|option| CString::new(option.replace("=sm_", "=compute_")).unwrap());
        let changed: Vec<CString> = changed.collect();
        let pointers: Vec<*const c_char> = changed.iter().map(|option| option.as_ptr()).collect();
        let function: unsafe extern "C" fn(usize, i32, *const *const c_char) -> i32 =
            std::mem::transmute(real(c"nvrtcCompileProgram"));
        function(program, n, pointers.as_ptr())
    }
}

#[no_mangle]
pub unsafe extern "C" fn nvrtcGetCUBINSize(program: usize, size: *mut usize) -> i32 {
    // SAFETY: the caller's number.
    unsafe {
        let status = nvrtcGetPTXSize(program, size as usize);
        *size += HEADER.len();
        status
    }
}

#[no_mangle]
pub unsafe extern "C" fn nvrtcGetCUBIN(program: usize, code: *mut u8) -> i32 {
    if code.is_null() {
        return OUT_OF_MEMORY;
    }
    // SAFETY: the caller has as much room as the function above said.
    unsafe {
        std::ptr::copy_nonoverlapping(HEADER.as_ptr(), code, HEADER.len());
        nvrtcGetPTX(program, code.add(HEADER.len()) as usize)
    }
}

macro_rules! refused {
    ($($name:ident)*) => {$(
        /// Not supported.
        #[no_mangle]
        pub extern "C" fn $name() -> i32 {
            16
        }
    )*};
}
refused! {
    cufftExecC2C cufftExecZ2Z cufftGetVersion
}
