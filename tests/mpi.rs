//! Samples, weights and annealing on MPI ranks, as a user runs them. `mpirun` is that of the library the program is
//! linked with: `scripts/mpi.sh` sets the PATH.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MODEL: &str = "models/ala2/model.safetensors";
const SYSTEM: [&str; 2] = ["--system", "models/ala2/system.xml"];
const BIN: &str = env!("CARGO_BIN_EXE_modejump");

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("modejump-mpi-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn mpirun(arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).env("RAYON_NUM_THREADS", "1").args(arguments);
    command
}

fn run(mut command: Command) -> Result<String, String> {
    let run = command.output().unwrap();
    match run.status.success() {
        true => Ok(String::from_utf8(run.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned()),
    }
}

/// What the ranks print, and the file they write.
fn on_ranks(ranks: usize, command: &[&str], output: &Path) -> (String, Vec<u8>) {
    let ranks = ranks.to_string();
    let arguments = [&["-n", &ranks, BIN], command, &["-o", output.to_str().unwrap()]].concat();
    let printed = run(mpirun(&arguments)).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    (printed, std::fs::read(output).unwrap())
}

#[test]
fn any_number_of_ranks_gives_the_same_to_the_last_bit() {
    let folder = folder("same");
    // 41 rows are not a multiple of anything
    let smc =
        [&["smc", MODEL, "-n", "41", "--pilots", "20", "--share", "0.7", "--threshold", "0.9", "--json"], &SYSTEM[..]];
    let reweight = [&["reweight", MODEL, "-n", "41", "--json"], &SYSTEM[..]];
    let surrogate = [&reweight[0][..], &SYSTEM, &["--surrogate", MODEL, "--exact-subset", "21"]];
    let sample = ["sample", MODEL, "-n", "41", "--json"];
    // ranks with a single particle
    let few = [&["smc", MODEL, "-n", "5", "--stages", "3", "--json"], &SYSTEM[..]];
    let commands =
        [smc.concat(), few.concat(), reweight.concat(), sample.to_vec(), [&sample[..], &["--points-only"]].concat()];
    for command in &commands {
        let output = folder.join("output.safetensors");
        let alone = on_ranks(1, command, &output);
        assert_eq!(alone.0.lines().count(), 1, "{}", alone.0);
        for ranks in [2, 4] {
            assert!(on_ranks(ranks, command, &output) == alone, "{command:?} on {ranks} ranks");
        }
    }
    // seconds differ, weights do not
    let series = |ranks| {
        let (_, file) = on_ranks(ranks, &surrogate.concat(), &folder.join("output.json"));
        serde_json::from_slice::<serde_json::Value>(&file).unwrap()["series"].take()
    };
    assert_eq!(series(1), series(3));
    std::fs::remove_dir_all(folder).unwrap();
}

/// The processes of the program with this argument.
fn processes(argument: &str) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let of_program = |id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        words[0] == BIN.as_bytes() && words.contains(&argument.as_bytes())
    };
    ids.filter(of_program).collect()
}

#[test]
fn a_rank_that_dies_ends_the_run_which_others_continue() {
    let folder = folder("killed");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (state, whole, continued) = (path("run.ckpt"), path("whole.safetensors"), path("continued.safetensors"));
    // long after its first checkpoint it is still running
    let smc = [&["smc", MODEL, "-n", "60", "--stages", "400", "--step", "1e-6", "--json"], &SYSTEM[..]].concat();
    let expected = on_ranks(1, &smc, Path::new(&whole));
    let with_state = [&smc[..], &["--checkpoint", &state]].concat();
    let mut child = mpirun(&[&["-n", "3", BIN], &with_state[..], &["-o", &continued]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !Path::new(&state).exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its first checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let ranks = processes(&state);
    assert_eq!(ranks.len(), 3);
    assert!(Command::new("kill").args(["-9", &ranks[2].to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success(), "mpirun tells of the rank that died");
    assert!(!Path::new(&continued).exists(), "the run was over before the rank died");
    assert!(on_ranks(2, &with_state, Path::new(&continued)) == expected);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Two ranks with different commands, which must say why they fail; `mpirun` may lose the last lines of ranks that it ends.
fn fail_apart(first: &[&str], second: &[&str], reason: &str) {
    let command = [&["-n", "1", BIN], first, &[":", "-n", "1", BIN], second].concat();
    let mut told = String::new();
    for _ in 0..5 {
        told = run(mpirun(&command)).unwrap_err();
        if told.contains(reason) {
            return;
        }
    }
    panic!("{told}");
}

#[test]
fn a_rank_that_errs_ends_the_others_and_says_why() {
    let folder = folder("errs");
    let output = folder.join("output.safetensors");
    let sample = |model| ["sample", model, "-n", "10", "-o", output.to_str().unwrap()];
    fail_apart(&sample(MODEL), &sample("models/none.safetensors"), "rank 1 of 2: models/none.safetensors");
    assert!(!output.exists());
    let smc = |seed| [&["smc", MODEL, "-n", "10", "--stages", "2", "--seed", seed], &SYSTEM[..]].concat();
    // both say the same; the first one ends the other
    let reason = "rank 0 of 2: rank 1 has a model, a System or options different from those of rank 0";
    fail_apart(&smc("1"), &smc("2"), reason);
    let reweight = |n| [&["reweight", MODEL, "-n", n], &SYSTEM[..]].concat();
    fail_apart(&reweight("10"), &reweight("30"), reason);
    let seeded = |seed| [&sample(MODEL)[..], &["--seed", seed]].concat();
    fail_apart(&seeded("1"), &seeded("2"), reason);
    assert!(!output.exists());
    std::fs::remove_dir_all(folder).unwrap();
}
