//! What is asked of the NVIDIA driver, by the rules: `cuda_driver/libcuda.c` stands for the driver, runs no kernel, and
//! ends whoever uses memory, a stream or a kernel outside of its context, reads what has not arrived, or leaves
//! something behind.
//!
//! Each test runs itself once more with that library in the dynamic linker's path. Kernels are compiled by NVRTC, which
//! `scripts/nvcc.sh` installs; without it this says that it is skipped.
#![cfg(feature = "cuda")]

use cudarc::driver::sys;
use modejump::c_api::model::*;
use modejump::c_api::structs::*;
use modejump::density::{Evaluation, Status};
use modejump::device::ahead::{self, AheadOfTime};
use modejump::device::{self, Buffer, Device, Program, Workspaces, LOCAL_RANKS};
use modejump::models::{self, Model, Precision};
use modejump::moves::{self, Options, State};
use modejump::target::Target;
use modejump::Result;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;

#[path = "support/networks.rs"]
mod networks;
#[path = "support/wheels.rs"]
mod wheels;

const RULES: &str = "MODEJUMP_TEST_DRIVER_RULES";

/// What the test `name` says and whether it is content, when it runs `body` with the library of rules; `None` where
/// that is not possible.
fn under_rules(name: &str, body: impl FnOnce()) -> Option<(bool, String)> {
    if std::env::var_os(RULES).is_some() {
        body();
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wheels = wheels::folder();
    if !wheels.join("lib").exists() {
        println!("{name}: SKIPPED, {} is not there; scripts/nvcc.sh installs it", wheels.join("lib").display());
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let (source, library) = (root.join("tests/cuda_driver/libcuda.c"), folder.join("libcuda.so"));
    let options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"];
    let compiled = Command::new("cc").args(options).arg(&library).arg(&source).status().unwrap();
    assert!(compiled.success());
    let path = std::env::join_paths([folder.as_path(), &wheels.join("lib")]).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([name, "--exact", "--nocapture"]).env("LD_LIBRARY_PATH", path).env(RULES, "1");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver/cache");
    again.env("MODEJUMP_CACHE", cache);
    again.env_remove("MODEJUMP_DEVICE");
    LOCAL_RANKS.iter().for_each(|name| _ = again.env_remove(name));
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), said))
}

/// The same for a test that has to be content.
fn by_the_rules(name: &str, body: impl FnOnce()) -> Option<String> {
    let (content, said) = under_rules(name, body)?;
    assert!(content, "{said}");
    Some(said)
}

/// The same for one that breaks this rule.
fn against_the_rules(name: &str, rule: &str, body: impl FnOnce()) {
    if let Some((content, said)) = under_rules(name, body) {
        assert!(!content && said.contains(&format!("RULE BROKEN: {rule}")), "{said}");
    }
}

/// A context of the program's own, current on this thread as long as it lives.
struct Own(sys::CUcontext);

impl Own {
    fn new(card: i32) -> Own {
        let mut context = null_mut();
        // SAFETY: a handle to write to; the library takes no parameters and no flags.
        unsafe {
            sys::cuInit(0).result().unwrap();
            sys::cuCtxCreate_v4(&mut context, null_mut(), 0, card).result().unwrap();
        }
        Own(context)
    }

    fn is_current(&self) -> bool {
        let mut context = null_mut();
        // SAFETY: a handle to write to.
        unsafe { sys::cuCtxGetCurrent(&mut context) }.result().unwrap();
        context == self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { sys::cuCtxDestroy_v2(self.0) }.result().unwrap();
    }
}

fn in_current_context(device: Device) -> Result<Device> {
    // SAFETY: the tests drop what they load before the context.
    unsafe { device.in_current_context() }
}

fn load(bytes: &[u8], device: &Device) -> Arc<dyn Model> {
    models::from_bytes_on("model", bytes, Precision::F32, device).unwrap()
}

/// Samples and their log q, as far as that goes without kernels: all zero.
fn use_model(model: &dyn Model) {
    let (n, d) = (5, model.dimension());
    let (mut x, mut log_q) = (vec![0.0; n * d], vec![Evaluation::outside(Status::NonFinite); n]);
    if model.flow().is_some() {
        let streams = |row: usize| modejump::rng::Stream::new(1, modejump::rng::StreamId::Sample, row as u64, 0);
        model.sample(&streams, &mut x, &mut log_q).unwrap();
    }
    model.log_density(&x, &mut log_q).unwrap();
}

struct Flat;

impl Target for Flat {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, _: &[f64], u: &mut [f64]) -> Result<()> {
        u.fill(0.0);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("proposals are not carried anywhere")
    }
}

/// Attempts at steps 10, 20, … with proposals drawn ahead by another thread.
fn attempts(model: &Arc<dyn Model>, n: u64) {
    let options = Options { stride: 10, batch: 2, draw_ahead: true, ..Options::default() };
    let mut move_ = moves::of_model(model, options, None).unwrap();
    for step in 1..=n {
        let mut x = [0.1; 2];
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step: 10 * step, replica: 0 };
        move_.attempt(&mut Flat, &mut state).unwrap();
    }
}

fn double_well() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/generator.safetensors")).unwrap()
}

#[test]
fn models_work_in_the_context_of_the_program() {
    let said = by_the_rules("models_work_in_the_context_of_the_program", || {
        let own = Own::new(1);
        let device = in_current_context(Device::parse("cuda").unwrap()).unwrap();
        assert_eq!(device.describe(), "Rules 1 (cuda:1), in the program's context");
        // one of each kind of launches
        let kinds = ["egnn_flow", "mlp_ebm", "steerable", "tarflow"];
        for (kind, bytes) in networks::all().into_iter().filter(|(kind, _)| kinds.contains(kind)) {
            let model = load(&bytes, &device);
            assert_eq!(model.device(), device.describe(), "{kind}");
            use_model(model.as_ref());
            assert!(own.is_current(), "{kind}");
            // a thread that has never met the context
            std::thread::scope(|scope| scope.spawn(|| use_model(model.as_ref())).join().unwrap());
        }
        drop(device);
        drop(own);
    });
    if let Some(said) = said {
        assert!(
            said.contains("kernel in another context of card 1") && said.contains("destroyed: a context of card 1"),
            "{said}"
        );
        assert!(!said.contains("primary"), "{said}");
    }
}

#[test]
fn moves_that_draw_ahead_leave_nothing_behind() {
    by_the_rules("moves_that_draw_ahead_leave_nothing_behind", || {
        let own = Own::new(0);
        let model = load(&double_well(), &in_current_context(Device::parse("auto").unwrap()).unwrap());
        attempts(&model, 7);
        assert!(own.is_current());
        drop(model);
        drop(own);
    });
}

#[test]
fn the_primary_context_is_made_for_a_model_and_given_back() {
    let said = by_the_rules("the_primary_context_is_made_for_a_model_and_given_back", || {
        let device = Device::cuda(1).unwrap();
        println!("asked for");
        let model = load(&double_well(), &device);
        use_model(model.as_ref());
        attempts(&model, 3);
        drop((model, device));
        println!("dropped");
    });
    if let Some(said) = said {
        let order = ["asked for", "retained: the primary", "kernel in the primary", "released: the primary", "dropped"];
        let places: Vec<_> = order.iter().map(|text| said.find(text)).collect();
        assert!(places.is_sorted() && places[0].is_some(), "{places:?}\n{said}");
        assert_eq!(said.matches("retained:").count(), 1, "{said}");
    }
}

#[test]
fn a_card_that_was_full_is_asked_again() {
    by_the_rules("a_card_that_was_full_is_asked_again", || {
        let device = Device::cuda(0).unwrap();
        let numbers = || Buffer::of(device.driver().unwrap(), &[1.0, 2.0]);
        std::env::set_var("LIBCUDA_FULL", "1");
        let failed = numbers().err().unwrap().to_string();
        assert!(failed.contains("could not get a context on the GPU"), "{failed}");
        std::env::remove_var("LIBCUDA_FULL");
        let mut read = [0.0; 2];
        numbers().unwrap().read(&mut read).unwrap();
        assert_eq!(read, [1.0, 2.0]);
    });
}

#[test]
fn states_take_as_much_memory_as_there_is() {
    by_the_rules("states_take_as_much_memory_as_there_is", || {
        let device = Device::cuda(0).unwrap();
        let mut states = Buffer::<f64>::empty(device.driver().unwrap());
        assert_eq!(states.reserve_parts(3, 10).unwrap(), 3);
        std::env::set_var("LIBCUDA_MEMORY", "1000");
        assert_eq!(states.reserve_parts(100, 10).unwrap(), 7); // by halves
        let address = states.address();
        assert_eq!(states.reserve_parts(100, 10).unwrap(), 7);
        assert_eq!((states.reserve_parts(50, 7).unwrap(), states.address()), (10, address));
        assert!(states.reserve_parts(1, 200).is_err());
    });
}

#[test]
fn a_card_asked_for_by_number_is_the_one_that_is_used() {
    let said = by_the_rules("a_card_asked_for_by_number_is_the_one_that_is_used", || {
        let nothing = in_current_context(Device::parse("cuda").unwrap()).err().unwrap().to_string();
        assert!(nothing.contains("no CUDA context is current"), "{nothing}");
        assert_eq!(in_current_context(Device::cpu()).unwrap().describe(), "cpu");
        let own = Own::new(1);
        let other = in_current_context(Device::parse("cuda:0").unwrap()).unwrap();
        assert_eq!(other.describe(), "Rules 0 (cuda:0)");
        use_model(load(&double_well(), &other).as_ref());
        let same = in_current_context(Device::parse("cuda:1").unwrap()).unwrap();
        assert_eq!(same.describe(), "Rules 1 (cuda:1), in the program's context");
        use_model(load(&double_well(), &same).as_ref());
        drop((same, other));
        drop(own);
    });
    if let Some(said) = said {
        assert!(
            said.contains("kernel in the primary context of card 0") && said.contains("another context of card 1"),
            "{said}"
        );
    }
}

#[test]
fn ranks_on_one_machine_share_out_its_cards() {
    by_the_rules("ranks_on_one_machine_share_out_its_cards", || {
        let cards = ["", "0", "1", "2", "none"].map(|rank| {
            std::env::set_var("OMPI_COMM_WORLD_LOCAL_RANK", rank);
            Device::parse("cuda").unwrap().describe()
        });
        let [first, second] = ["Rules 0 (cuda:0)", "Rules 1 (cuda:1)"];
        assert_eq!(cards, [first, first, second, first, first]);
        std::env::set_var("OMPI_COMM_WORLD_LOCAL_RANK", "1");
        assert_eq!(Device::auto().describe(), second);
        assert_eq!(Device::parse("cuda:0").unwrap().describe(), first);
    });
}

#[test]
fn a_program_in_c_asks_by_a_flag() {
    by_the_rules("a_program_in_c_asks_by_a_flag", || {
        let own = Own::new(0);
        device::set_default(Device::parse("cuda").unwrap());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/generator.safetensors");
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let name = |flags: u32| {
            // SAFETY: structs of this version, handles that are freed once.
            unsafe {
                let mut options: modejump_model_options = std::mem::zeroed();
                options.struct_size = size_of::<modejump_model_options>() as u32;
                assert_eq!(modejump_model_options_init(&mut options), 0);
                options.flags = flags;
                let (mut model, mut name) = (null_mut(), std::ptr::null());
                let status = modejump_model_load_with(path.as_ptr(), &options, &mut model);
                if status != 0 {
                    return status.to_string();
                }
                assert_eq!(modejump::c_api::device::modejump_model_device(model, &mut name), 0);
                let name = std::ffi::CStr::from_ptr(name).to_str().unwrap().to_string();
                modejump_model_free(model);
                name
            }
        };
        let names = [0, MODEJUMP_ON_CPU, MODEJUMP_CURRENT_CONTEXT, 3].map(name);
        assert_eq!(names, ["Rules 0 (cuda:0)", "cpu", "Rules 0 (cuda:0), in the program's context", "1"]);
        drop(own);
    });
}

#[test]
fn calls_at_the_same_time_have_a_queue_each() {
    by_the_rules("calls_at_the_same_time_have_a_queue_each", || {
        let device = Device::cuda(0).unwrap();
        let workspaces = Workspaces::on(device.driver().unwrap(), Buffer::<f64>::empty);
        let take = || {
            let mut workspace = workspaces.take().unwrap();
            workspace.reserve(3).unwrap();
            workspace
        };
        let (one, other) = (take(), take());
        assert!(!Arc::ptr_eq(&one.driver, &other.driver) && one.address() != other.address());
        let address = one.address();
        drop(one);
        assert_eq!(take().address(), address);
        // the machine that all of them are of stays idle, and its memory is that of all
        let model = Buffer::of(device.driver().unwrap(), &[1.0, 2.0]).unwrap();
        let mut read = [0.0; 2];
        model.read(&mut read).unwrap();
        assert_eq!(read, [1.0, 2.0]);
    });
}

#[test]
fn a_call_that_fails_waits_for_its_copies() {
    by_the_rules("a_call_that_fails_waits_for_its_copies", || {
        let device = Device::cuda(0).unwrap();
        let workspaces = Workspaces::on(device.driver().unwrap(), Buffer::<f64>::empty);
        let mut source = [1.0, 2.0];
        // as by `?` before anything is read
        workspaces.take().unwrap().write(&source).unwrap();
        source.fill(3.0);
        workspaces.take().unwrap().read(&mut source).unwrap();
        assert_eq!(source, [1.0, 2.0]);
    });
}

#[test]
fn a_card_asks_for_no_kernels_but_those_compiled_ahead() {
    let asked = |bytes: &[u8], multiprocessors: usize, batches: &[usize]| {
        let title = |program: &Program, _: &str| {
            let constants: Vec<String> = program.definitions().collect();
            Ok(PathBuf::from(format!("{} {}", program.name, constants.join(" "))))
        };
        let machine = Arc::new(AheadOfTime::with("sm_90", multiprocessors, title).unwrap());
        let model = load(bytes, &Device::with_driver(machine.clone()));
        batches.iter().for_each(|&rows| ahead::exercise(model.as_ref(), rows).unwrap());
        BTreeSet::from_iter(machine.files())
    };
    let published = ("graphormer_ebm of 32 heads", networks::graphormer_ebm(32, 32));
    for (kind, bytes) in networks::all().into_iter().chain([published, ("coupling", double_well())]) {
        let compiled = asked(&bytes, ahead::MULTIPROCESSORS, &ahead::BATCHES);
        for multiprocessors in [14, 40, 84, 132, 170] {
            let asked = asked(&bytes, multiprocessors, &[1, 2, 16, 100, 200, 1000, 3000]);
            let missing: Vec<_> = asked.difference(&compiled).collect();
            assert!(missing.is_empty(), "{kind}, {multiprocessors} multiprocessors: {missing:#?}");
        }
    }
}

/// With a folder of its own for compiled kernels.
fn with_cache(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver").join(name).join("cache");
    let _ = std::fs::remove_dir_all(&folder);
    std::env::set_var("MODEJUMP_CACHE", &folder);
    folder.join("kernels")
}

#[test]
fn a_damaged_file_of_kernels_is_written_anew() {
    by_the_rules("a_damaged_file_of_kernels_is_written_anew", || {
        let folder = with_cache("damaged");
        let use_it = || use_model(&*load(&double_well(), &Device::cuda(0).unwrap()));
        use_it();
        let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let sizes = || files.iter().map(|file| std::fs::metadata(file).unwrap().len()).collect::<Vec<_>>();
        let whole = sizes();
        assert!(!files.is_empty());
        // code that no driver loads, and code that was copied in part
        let mut empty = vec![0; 64];
        empty[..4].copy_from_slice(b"\x7fELF");
        for is_half in [false, true] {
            for file in &files {
                let half = || std::fs::read(file).unwrap()[..5000].to_vec();
                std::fs::write(file, if is_half { half() } else { empty.clone() }).unwrap();
            }
            use_it();
            assert_eq!(sizes(), whole);
        }
    });
}

#[test]
fn a_driver_older_than_the_compiler_is_named() {
    by_the_rules("a_driver_older_than_the_compiler_is_named", || {
        with_cache("old");
        std::env::set_var("LIBCUDA_VERSION", "12040");
        let device = Device::cuda(0).unwrap();
        let refused =
            models::from_bytes_on("model", &double_well(), Precision::F32, &device).err().unwrap().to_string();
        assert!(refused.contains("up to 12.4") && refused.contains("nvidia-cuda-nvrtc-cu12"), "{refused}");
    });
}

#[test]
fn kernels_that_an_older_compiler_made_elsewhere_are_used() {
    by_the_rules("kernels_that_an_older_compiler_made_elsewhere_are_used", || {
        let folder = with_cache("elsewhere");
        let elsewhere = Device::with_driver(Arc::new(AheadOfTime::new("sm_90").unwrap()));
        let model = load(&double_well(), &elsewhere);
        ahead::BATCHES.iter().for_each(|&rows| ahead::exercise(model.as_ref(), rows).unwrap());
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            let mut code = std::fs::read(&file).unwrap();
            code[15] = 1;
            let (name, _) = file.to_str().unwrap().split_once("nvrtc").unwrap();
            std::fs::write(format!("{name}nvrtc12.4.cubin"), code).unwrap();
            std::fs::remove_file(file).unwrap();
        }
        std::env::set_var("LIBCUDA_VERSION", "12040");
        use_model(&*load(&double_well(), &Device::cuda(0).unwrap()));
    });
}

#[test]
fn memory_that_is_copied_from_too_late_is_found() {
    let rule = "the source of a copy changed before its stream was waited for";
    against_the_rules("memory_that_is_copied_from_too_late_is_found", rule, || {
        let device = Device::cuda(0).unwrap();
        let mut buffer = Buffer::new(device.driver().unwrap(), 2).unwrap();
        let mut values = [1.0, 2.0];
        buffer.write(&values).unwrap();
        values[1] = 3.0;
        buffer.read(&mut values).unwrap();
    });
}

#[test]
fn a_kernel_that_does_not_wait_for_its_weights_is_found() {
    let rule = "a kernel does not wait for what its thread copies to the card in another stream";
    against_the_rules("a_kernel_that_does_not_wait_for_its_weights_is_found", rule, || {
        let (_own, mut address, mut streams) = (Own::new(0), 0, [null_mut(); 2]);
        let (mut module, mut function, mut parameters) = (null_mut(), null_mut(), [null_mut()]);
        // SAFETY: handles to write to; the library looks at four bytes of the module, and runs nothing.
        unsafe {
            sys::cuMemAlloc_v2(&mut address, 8).result().unwrap();
            streams.iter_mut().for_each(|stream| sys::cuStreamCreate(stream, 1).result().unwrap());
            sys::cuMemcpyHtoDAsync_v2(address, [0_u8; 8].as_ptr().cast(), 8, streams[0]).result().unwrap();
            sys::cuModuleLoadData(&mut module, b"\x7fELF\x02".as_ptr().cast()).result().unwrap();
            sys::cuModuleGetFunction(&mut function, module, c"kernel".as_ptr()).result().unwrap();
            let [parameters, none] = [parameters.as_mut_ptr(), null_mut()];
            let _ = sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, streams[1], parameters, none);
        }
    });
}

#[test]
fn a_model_that_outlives_its_context_is_found() {
    against_the_rules(
        "a_model_that_outlives_its_context_is_found",
        "a context was destroyed with things in it",
        || {
            let own = Own::new(0);
            let model = load(&double_well(), &in_current_context(Device::parse("cuda").unwrap()).unwrap());
            drop(own);
            drop(model);
        },
    );
}

#[test]
fn memory_of_another_context_is_found() {
    against_the_rules("memory_of_another_context_is_found", "memory of another context", || {
        let (_one, mut address) = (Own::new(0), 0);
        // SAFETY: a number to write to; a stream of the context that is current.
        unsafe {
            sys::cuMemAlloc_v2(&mut address, 8).result().unwrap();
            let (_other, mut stream) = (Own::new(0), null_mut());
            sys::cuStreamCreate(&mut stream, 1).result().unwrap();
            sys::cuMemcpyHtoDAsync_v2(address, [0_u8; 8].as_ptr().cast(), 8, stream).result().unwrap();
        }
    });
}
