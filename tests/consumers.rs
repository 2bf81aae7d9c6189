//! An installation by CMake; programs in C99 and C++17 that use it, compiled without a warning and run under
//! AddressSanitizer; and a foreign CMake project that finds it.

#[path = "support/molecule.rs"]
mod molecule;
#[path = "support/symbols.rs"]
mod symbols;
#[path = "support/tarflow.rs"]
mod tarflow;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const GENERATOR: &str = "models/double-well/generator.safetensors";
const STEERABLE: &str = "models/double-well/steerable.safetensors";
const MODES: &str = "models/double-well/modes.safetensors";
const FLOW: &str = "models/ala2/gvp-flow.safetensors";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An empty folder of this name.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}\n{text}");
    text
}

/// CMake from the PATH or from the project's own virtual environment.
fn cmake() -> PathBuf {
    let own = root().join(".venv/bin/cmake");
    if own.exists() {
        own
    } else {
        "cmake".into()
    }
}

fn define(name: &str, path: &Path) -> String {
    format!("-D{name}={}", path.display())
}

/// The prefix of an installation by CMake, made by the first test that asks. It is built where the engines' plugins
/// build it too.
fn installation() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| install(&folder("install"), Path::new("lib")))
}

/// Where cargo builds what is installed.
fn core_target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("core")
}

/// Installs into `folder/prefix`, which is returned, the libraries into `libraries`.
fn install(folder: &Path, libraries: &Path) -> PathBuf {
    let (build, prefix) = (folder.join("build"), folder.join("prefix"));
    let mut configure = Command::new(cmake());
    configure.arg("-S").arg(root()).arg("-B").arg(&build).arg(define("CORE_TARGET", &core_target()));
    configure.arg(define("CMAKE_INSTALL_PREFIX", &prefix)).arg(define("CMAKE_INSTALL_LIBDIR", libraries));
    run(&mut configure);
    run(Command::new(cmake()).arg("--build").arg(&build));
    run(Command::new(cmake()).arg("--install").arg(&build));
    prefix
}

/// As Nix has them.
#[test]
fn libraries_may_have_a_place_of_their_own() {
    installation(); // compiles the library, which two builds at once would do twice
    let folder = folder("install-apart");
    let libraries = folder.join("libraries");
    install(&folder, &libraries);
    assert!(libraries.join("libmodejump.so").canonicalize().unwrap().starts_with(&libraries));
    let told = std::fs::read_to_string(libraries.join("pkgconfig/modejump.pc")).unwrap();
    assert!(told.contains(&format!("libdir={}", libraries.display())), "{told}");
}

/// Compiles a source of the project against the installation.
fn compile(compiler: &str, options: &[&str], source: &str, program: &Path) {
    let (lib, include) = (installation().join("lib"), installation().join("include"));
    let mut compile = Command::new(compiler);
    compile.current_dir(root()).args(options).args(["-Wall", "-Wextra", "-Werror", "-pedantic"]);
    compile.arg("-I").arg(include).arg(source).arg("-o").arg(program).arg("-L").arg(&lib).args(["-lmodejump", "-lm"]);
    run(compile.arg(format!("-Wl,-rpath,{}", lib.display())));
}

fn consumer(compiler: &str, standard: &str, source: &str) {
    let folder = folder(standard);
    let program = folder.join("consumer");
    let sanitizers = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
    compile(compiler, &[&[format!("-std={standard}").as_str()], &sanitizers[..]].concat(), source, &program);
    let molecule = folder.join("molecule.safetensors");
    molecule::four_atoms().save(&molecule).unwrap();
    let tarflow = folder.join("tarflow.safetensors");
    tarflow::write(&tarflow);
    let text = run(Command::new(&program).current_dir(root()).args([
        GENERATOR.as_ref(),
        molecule.as_os_str(),
        MODES.as_ref(),
        STEERABLE.as_ref(),
        tarflow.as_os_str(),
        FLOW.as_ref(),
    ]));
    assert!(text.contains("0 failures"), "{text}");
}

#[test]
fn a_c99_program() {
    consumer("cc", "c99", "tests/c/consumer.c");
}

#[test]
fn a_cpp17_program() {
    consumer("c++", "c++17", "tests/cpp/consumer.cpp");
}

/// What an example prints, run with the generator of the double well.
fn example(name: &str, models: &[&str]) -> String {
    let program = folder(name).join("program");
    compile("c++", &["-std=c++17", "-O2"], &format!("examples/{name}/main.cpp"), &program);
    let missing = Command::new(&program).args(models.iter().map(|_| "missing.safetensors")).output().unwrap();
    let text = String::from_utf8_lossy(&missing.stderr);
    assert!(missing.status.code() == Some(2) && text.contains("missing.safetensors"), "{name}: {text}");
    run(Command::new(&program).current_dir(root()).args(models))
}

#[test]
fn the_double_well_example_finds_the_exact_populations() {
    // The program itself compares with the exact population, by its exit status.
    let text = example("cpp-double-well", &[GENERATOR]);
    assert!(text.contains("with jumps"), "{text}");
}

#[test]
fn every_move_finds_the_exact_populations() {
    // The program compares each by its exit status.
    let text = example("cpp-moves", &[GENERATOR, MODES, STEERABLE]);
    assert_eq!(text.lines().filter(|line| line.contains("accepted")).count(), 9, "{text}");
}

#[test]
fn a_dynamics_loop_of_its_own_finds_the_exact_populations() {
    let text = example("cpp-langevin", &[GENERATOR]);
    let found: f64 = text.strip_prefix("P(x < 0) = ").and_then(|t| t.split(',').next()).unwrap().parse().unwrap();
    assert!((found - 0.727).abs() < 0.02, "{text}");
}

#[test]
fn an_exchange_of_replicas_finds_the_exact_populations() {
    let text = example("cpp-exchange", &[GENERATOR]);
    let found: f64 = text.strip_prefix("P(x < 0) = ").and_then(|t| t.split(',').next()).unwrap().parse().unwrap();
    assert!((found - 0.727).abs() < 0.02, "{text}");
}

#[test]
fn a_foreign_project_finds_the_installed_library() {
    let prefix = installation();
    let listed = std::fs::read_to_string(root().join("abi/symbols.txt")).unwrap();
    assert_eq!(symbols::exported(&prefix.join("lib/libmodejump.so")).join("\n") + "\n", listed);

    // The example is the foreign project: it is copied away, and knows the prefix only.
    let foreign = folder("foreign");
    for file in ["CMakeLists.txt", "main.cpp"] {
        std::fs::copy(root().join("examples/cpp-double-well").join(file), foreign.join(file)).unwrap();
    }
    let mut configure = Command::new(cmake());
    configure.arg("-S").arg(&foreign).arg("-B").arg(foreign.join("build")).arg(define("CMAKE_PREFIX_PATH", prefix));
    run(&mut configure);
    run(Command::new(cmake()).arg("--build").arg(foreign.join("build")));
    run(Command::new(foreign.join("build/double-well")).arg(root().join(GENERATOR)));

    // The same with this project as a subdirectory.
    let within = folder("within");
    let project = std::fs::read_to_string(foreign.join("CMakeLists.txt")).unwrap();
    let subdirectory = format!("add_subdirectory(\"{}\" modejump)", root().display());
    std::fs::write(
        within.join("CMakeLists.txt"),
        project.replace("find_package(modejump 0.1 REQUIRED)", &subdirectory),
    )
    .unwrap();
    std::fs::copy(foreign.join("main.cpp"), within.join("main.cpp")).unwrap();
    let mut configure = Command::new(cmake());
    configure.arg("-S").arg(&within).arg("-B").arg(within.join("build")).arg(define("CORE_TARGET", &core_target()));
    run(&mut configure);
    run(Command::new(cmake()).arg("--build").arg(within.join("build")));
    run(Command::new(within.join("build/double-well")).arg(root().join(GENERATOR)));

    // The static library, with the flags of the pkg-config file.
    let text = std::fs::read_to_string(prefix.join("lib/pkgconfig/modejump.pc")).unwrap();
    assert!(text.contains(&format!("Version: {}", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.starts_with("prefix=${pcfiledir}/../..\n"), "an installed folder can be moved: {text}");
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let flags = run(pkg_config.args(["--cflags", "--libs", "--static", "modejump"]));
    let program = foreign.join("static");
    let mut compile = Command::new("c++");
    compile.args(["-std=c++17", "-O2"]).arg(foreign.join("main.cpp")).arg("-o").arg(&program);
    compile.args(flags.split_whitespace().map(|f| if f == "-lmodejump" { "-l:libmodejump.a" } else { f }));
    run(&mut compile);
    run(Command::new(&program).arg(root().join(GENERATOR)));
}
