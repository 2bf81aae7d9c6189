//! Sets the SONAME of the shared library and, with feature `openmm`, compiles the bridge to the OpenMM C++ API.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmodejump.so.0");
    }
    #[cfg(feature = "openmm")]
    openmm::build();
}

#[cfg(feature = "openmm")]
mod openmm {
    use std::env;
    use std::path::{Path, PathBuf};

    const BRIDGE: &str = "src/engines/openmm";
    /// The plugin's code of what gives way in a driven move, and of what holds a System in space.
    const SHARED: &str = "openmm-plugin/openmmapi/src";

    pub fn build() {
        println!("cargo:rerun-if-env-changed=OPENMM_DIR");
        for file in ["ffi.rs", "bridge.h", "bridge.cpp"] {
            println!("cargo:rerun-if-changed={BRIDGE}/{file}");
        }
        for file in ["Solvent.h", "Solvent.cpp", "Space.h", "Space.cpp", "Philox.h"] {
            println!("cargo:rerun-if-changed={SHARED}/{file}");
        }
        let root = find();
        cxx_build::bridge(format!("{BRIDGE}/ffi.rs"))
            .file(format!("{BRIDGE}/bridge.cpp"))
            .file(format!("{SHARED}/Solvent.cpp"))
            .file(format!("{SHARED}/Space.cpp"))
            .include(SHARED)
            // As system headers: their warnings are not ours.
            .flag("-isystem")
            .flag(root.join("include").display().to_string())
            .std("c++17")
            .compile("modejump_openmm_bridge");
        let lib = root.join("lib");
        println!("cargo:rustc-link-search=native={}", lib.display());
        println!("cargo:rustc-link-lib=dylib=OpenMM");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        println!("cargo:rustc-env=MODEJUMP_OPENMM_PLUGINS={}", lib.join("plugins").display());
    }

    /// The folder with OpenMM's `include` and `lib`: `OPENMM_DIR`, else the pip wheel in `.venv`.
    fn find() -> PathBuf {
        if let Some(directory) = env::var_os("OPENMM_DIR") {
            let root = PathBuf::from(directory);
            return check(&root).unwrap_or_else(|reason| panic!("OPENMM_DIR={}: {reason}", root.display()));
        }
        let venv = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap()).join(".venv");
        println!("cargo:rerun-if-changed={}", venv.join(".requirements").display());
        let found = std::fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
        let wheel = found.map(|entry| entry.path().join("site-packages/OpenMM.libs")).find(|root| check(root).is_ok());
        wheel.unwrap_or_else(|| {
            panic!(
                "feature `openmm` requires OpenMM 8.6 and its headers: run scripts/venv.sh, which installs the wheel into {}, \
                 or set OPENMM_DIR to a folder with include/OpenMM.h and lib/libOpenMM.so",
                venv.display()
            )
        })
    }

    fn check(root: &Path) -> Result<PathBuf, String> {
        for file in ["include/OpenMM.h", "lib/libOpenMM.so"] {
            if !root.join(file).exists() {
                return Err(format!("{file} is missing; set it to the folder that contains OpenMM's include and lib"));
            }
        }
        root.canonicalize().map_err(|error| error.to_string())
    }
}
