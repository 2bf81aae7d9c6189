//! What a shared library exports.

use std::path::Path;
use std::process::Command;

/// Sorted names of the defined dynamic symbols.
pub fn exported(library: &Path) -> Vec<String> {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output().expect("nm (binutils)");
    assert!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut symbols: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_string).collect();
    symbols.sort();
    symbols
}
