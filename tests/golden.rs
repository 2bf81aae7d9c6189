//! Parity with reference implementations, for all golden files present.
//!
//! `cargo test --release golden` compares every file of a known kind below `tests/golden`, or below `MODEJUMP_GOLDEN`,
//! and prints one line per file: its name, and for each quantity the largest error and the tolerance. A file of a known
//! kind that cannot be read is a failure. This target has its own main, so that the lines are shown.

mod golden_kinds;

use golden_kinds::{annealing, bar, boltznce, energies, fields, flows, tarflow, Found};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Check = fn(&Path) -> Found;

/// Prefix of the folder name, prefix of the file name, and the check.
const KINDS: &[(&str, &str, Check)] = &[
    ("boltznce", "field_", boltznce::field),
    ("weights", "trained_vector_", boltznce::weights),
    ("weights", "unweighted_", boltznce::weights),
    ("flows", "bar", bar::check),
    ("flows", "icbg_", flows::generator),
    ("flows", "realnvp_", flows::realnvp),
    ("flows", "rqs_raw_", flows::rqs_raw),
    ("flows", "spline_transformer_", flows::spline_transformer),
    ("flows", "ic_relative_", flows::internal),
    ("flows", "ic_global_", flows::internal),
    ("flows", "ic_mixed_", flows::internal),
    ("boltznce", "ode_", boltznce::ode),
    ("boltznce", "fm_loss_", boltznce::flow_matching_loss),
    ("boltznce", "ebm_loss_", energies::losses),
    ("boltznce", "graphormer_field", energies::graphormer),
    ("ecnf", "io_", fields::ecnf),
    ("tarflow", "io_", tarflow::check),
    ("prose", "io_", tarflow::check),
    ("smc_toy", "", annealing::run),
    ("snis", "snis_", annealing::importance),
];

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !filters.is_empty() && !filters.iter().any(|f| "golden_files".contains(f.as_str())) {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n");
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|a| a == "--list") {
        println!("golden_files: test");
        return ExitCode::SUCCESS;
    }
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let root = std::env::var_os("MODEJUMP_GOLDEN").map_or(default, PathBuf::from);
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let (mut passed, mut failed) = (0, 0);
    for file in &files {
        let Some(check) = kind(file) else { continue };
        let stem = file.with_extension("");
        let name = stem.strip_prefix(&root).unwrap_or(&stem).display().to_string();
        let ok = match std::panic::catch_unwind(|| check(&stem)) {
            Ok(found) => report(&name, &found),
            Err(_) => {
                println!("{name}: FAILED, see the message above");
                false
            }
        };
        if ok {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        if failed == 0 { "ok" } else { "FAILED" }
    );
    if passed + failed == 0 {
        eprintln!("no golden file of a known kind below {}", root.display());
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(failed > 0))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
}

fn kind(file: &Path) -> Option<Check> {
    let name = file.file_name()?.to_str()?;
    let folder = file.parent()?.file_name()?.to_str()?;
    KINDS.iter().find(|k| folder.starts_with(k.0) && name.starts_with(k.1)).map(|k| k.2)
}

fn report(name: &str, found: &Found) -> bool {
    let ok = !found.is_empty() && found.iter().all(|(_, e, tolerance)| e <= tolerance);
    let each: Vec<String> = found.iter().map(|(quantity, e, t)| format!("{quantity} {e:.1e} (≤ {t:.0e})")).collect();
    println!("{name}: {}: {}", if ok { "ok" } else { "FAILED" }, each.join(", "));
    ok
}
