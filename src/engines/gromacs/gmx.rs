//! The programs of GROMACS, run one at a time in their own working directory.

use super::run_input::RunInput;
use crate::error::{Error, Result};
use crate::io::gromacs::edr;
use crate::io::gromacs::trr::{self, Frame};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Options of mdrun that the driver sets itself, or that would have effects it cannot see; docs/gromacs.md and the help
/// of --mdrun list them.
const OURS: [&str; 18] = [
    "-s",
    "-cpi",
    "-cpo",
    "-append",
    "-noappend",
    "-nsteps",
    "-rerun",
    "-deffnm",
    "-multidir",
    "-replex",
    "-plumed",
    "-ei",
    "-tunepme",
    "-notunepme",
    "-noconfout",
    "-cpt",
    "-cpnum",
    "-maxh",
];

/// With a GPU or separate PME ranks, tuning would give the dynamics another cut-off and grid than a rerun has.
const SAME_ENERGY: &str = "-notunepme";

/// Commands for `gmx` and its `mdrun`: program and options.
#[derive(Clone, Debug)]
pub struct Gmx {
    gmx: Vec<String>,
    mdrun: Vec<String>,
}

/// Potential energy in kJ/mol and forces `[atoms][3]` in kJ/(mol nm).
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub energy: f64,
    pub forces: Vec<f64>,
}

impl Gmx {
    /// Command lines such as `gmx` and `mpirun -np 4 gmx_mpi mdrun -ntomp 2`, with words quoted as in a shell; without
    /// the second, `mdrun` of the first is used. Errors: a line that is empty or has an unbalanced quote, an option of
    /// mdrun that is reserved here.
    pub fn new(gmx: &str, mdrun: Option<&str>) -> Result<Gmx> {
        let gmx = words("--gmx", gmx)?;
        let mdrun = match mdrun {
            Some(line) => words("--mdrun", line)?,
            None => [gmx.clone(), vec!["mdrun".into()]].concat(),
        };
        if gmx.is_empty() || mdrun.is_empty() {
            return Err(Error::invalid("the command that runs gmx or mdrun is empty"));
        }
        // GROMACS takes --maxh for -maxh
        let is_ours =
            |word: &&String| OURS.contains(&word.strip_prefix('-').filter(|w| w.starts_with('-')).unwrap_or(word));
        if let Some(option) = mdrun.iter().find(is_ours) {
            let own = if option == "-maxh" { "; use --maxh of `modejump gromacs` instead" } else { "" };
            return Err(Error::invalid(format!("mdrun's option {option} is not supported here: remove it{own}")));
        }
        Ok(Gmx { gmx, mdrun })
    }

    /// Reads the contents of a `.tpr` file. Errors: a missing file, a failing `gmx dump`, settings that do not go with
    /// jumps.
    pub fn read(&self, tpr: &Path) -> Result<RunInput> {
        if !tpr.is_file() {
            return Err(Error::file(
                tpr,
                "run input file not found: create it with gmx grompp, or pass another with --tpr",
            ));
        }
        let output = run(&self.gmx, Path::new("."), ["dump".as_ref(), "-s".as_ref(), tpr.as_os_str()])?;
        RunInput::parse(&String::from_utf8_lossy(&output.stdout)).map_err(|e| match e {
            Error::Unsupported(reason) => Error::Unsupported(format!("{}: {reason}", tpr.display())),
            Error::Engine(reason) => Error::Engine(format!("{} dump -s {}: {reason}", shown(&self.gmx), tpr.display())),
            other => other,
        })
    }

    /// Runs `steps` of dynamics in `folder`, from a checkpoint or from the start. Leaves `next.cpt` there, and the
    /// output files of the run, of which that of the energies is returned. Errors: mdrun fails, or does not write these.
    pub fn segment(&self, folder: &Path, tpr: &Path, from: Option<&Path>, steps: u64) -> Result<PathBuf> {
        let steps = steps.to_string();
        let mut arguments: Vec<&OsStr> = vec![SAME_ENERGY.as_ref(), "-s".as_ref(), tpr.as_os_str()];
        if let Some(from) = from {
            arguments.extend(["-cpi".as_ref(), from.as_os_str()]);
        }
        let names = [
            "-nsteps",
            &steps,
            "-noappend",
            "-cpo",
            "next.cpt",
            "-c",
            "confout.gro",
            "-e",
            "ener.edr",
            "-x",
            "traj.xtc",
            "-o",
            "traj.trr",
            "-g",
            "md.log",
        ];
        arguments.extend(names.map(OsStr::new));
        let output = run(&self.mdrun, folder, arguments)?;
        let energies = part(folder, "ener", ".edr")?.ok_or_else(|| self.without("ener.edr", &output))?;
        self.check_output(folder, &["next.cpt"], &output)?;
        Ok(energies)
    }

    /// Errors: a file that a successful mdrun should have left is missing.
    fn check_output(&self, folder: &Path, files: &[&str], output: &Output) -> Result<()> {
        match files.iter().find(|file| !folder.join(file).is_file()) {
            Some(file) => Err(self.without(file, output)),
            None => Ok(()),
        }
    }

    /// Error of an mdrun that reported success, but did not write a file.
    fn without(&self, file: &str, output: &Output) -> Error {
        let said = complaint(&String::from_utf8_lossy(&output.stderr));
        let message = format!(
            "{} reported success but did not write {file}: check that the command given as --mdrun runs mdrun and \
             passes on its options and its exit status\n{said}",
            shown(&self.mdrun)
        );
        Error::Engine(message.trim_end().into())
    }

    /// Evaluates energies and forces of configurations of the whole system, in `folder`; None for one whose energy
    /// GROMACS calls infinite or absurd, which ends its run. Errors: GROMACS fails otherwise, forces are missing.
    pub fn rerun(&self, folder: &Path, tpr: &Path, frames: &[Frame]) -> Result<Vec<Option<Evaluation>>> {
        match self.rerun_all(folder, tpr, frames) {
            Ok(evaluations) => Ok(evaluations.into_iter().map(Some).collect()),
            Err(Error::Engine(message)) if is_absurd(&message) => match frames.len() {
                1 => Ok(vec![None]),
                n => {
                    let (a, b) = frames.split_at(n / 2);
                    Ok([self.rerun(folder, tpr, a)?, self.rerun(folder, tpr, b)?].concat())
                }
            },
            Err(e) => Err(e),
        }
    }

    fn rerun_all(&self, folder: &Path, tpr: &Path, frames: &[Frame]) -> Result<Vec<Evaluation>> {
        let input = folder.join("rerun.trr");
        std::fs::write(&input, trr::write(frames)).map_err(|e| Error::io(&input, e))?;
        let names =
            ["-rerun", "rerun.trr", "-e", "rerun.edr", "-o", "forces.trr", "-x", "rerun.xtc", "-g", "rerun.log"];
        let arguments = [SAME_ENERGY.as_ref(), "-s".as_ref(), tpr.as_os_str()].into_iter().chain(names.map(OsStr::new));
        let output = run(&self.mdrun, folder, arguments)?;
        self.check_output(folder, &["rerun.edr", "forces.trr"], &output)?;
        let energies = energies(&folder.join("rerun.edr"))?.potential;
        let path = folder.join("forces.trr");
        let forces = read_with(&path, trr::read)?;
        if energies.len() != frames.len() || forces.len() != frames.len() {
            let (e, f, n) = (energies.len(), forces.len(), frames.len());
            return Err(Error::file(
                &path,
                format!("found {e} energies and {f} frames of forces for {n} configurations"),
            ));
        }
        let evaluation = |(energy, frame): (f64, Frame)| Evaluation { energy, forces: frame.f };
        Ok(energies.into_iter().zip(forces).map(evaluation).collect())
    }
}

/// Contents of a segment's `.edr` file.
pub(super) struct Series {
    pub steps: Vec<i64>,
    /// Potential energy, kJ/mol.
    pub potential: Vec<f64>,
    /// Temperature, K; empty in a rerun.
    pub temperature: Vec<f64>,
}

pub(super) fn energies(path: &Path) -> Result<Series> {
    let energies = read_with(path, edr::read)?;
    let series = |name| energies.series(name).map_err(|e| Error::file(path, e));
    let temperature = series("Temperature").unwrap_or_default();
    Ok(Series { potential: series("Potential")?, temperature, steps: energies.steps })
}

pub(super) fn read_with<T>(path: &Path, read: impl Fn(&[u8]) -> std::result::Result<T, String>) -> Result<T> {
    let bytes = crate::io::read(path)?;
    read(&bytes).map_err(|e| Error::file(path, e))
}

/// Words of the command line given as an option, split as by a shell but without expansions, with absolute paths: mdrun
/// runs in a folder of its own. Errors: an unbalanced quote.
fn words(option: &str, line: &str) -> Result<Vec<String>> {
    let words = shlex::split(line).ok_or_else(|| {
        Error::invalid(format!(
            "{option} `{line}` has a quote that is not closed, or a backslash at its end: quote as in a shell, such as \
             '/opt/my programs/gmx'"
        ))
    })?;
    Ok(words.into_iter().map(from_anywhere).collect())
}

/// A command as it is written in a shell.
fn shown(command: &[String]) -> String {
    shlex::try_join(command.iter().map(String::as_str)).unwrap_or_else(|_| command.join(" "))
}

/// Makes a word absolute if it is a path to a file relative to this folder; names of programs and options stay
/// unchanged.
fn from_anywhere(word: String) -> String {
    let is_path = word.contains('/') || Path::new(&word).extension().is_some();
    // keep symbolic links, since programs may depend on their own name
    let whole = std::path::absolute(&word).ok().filter(|path| is_path && path.is_file());
    whole.map_or(word, |path| path.to_string_lossy().into_owned())
}

/// Whether GROMACS stopped because of the energy of a configuration, which then counts as infinite.
fn is_absurd(message: &str) -> bool {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |text| message.contains(text);
    says("The total potential energy is") && (says("which is not finite") || says("which is extremely high"))
        || says("An atom is beyond the wall")
        || says("A tabulated") && says("is out of the table range")
        // on several ranks, of a molecule that is torn apart
        || says("bonded interactions could not be calculated because some atoms")
}

/// Runs a program to completion. Errors: it cannot be started, or fails, with its error message.
fn run<'a>(command: &[String], folder: &Path, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<Output> {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).args(arguments).current_dir(folder).env("GMX_MAXBACKUP", "-1");
    process.stdin(std::process::Stdio::null());
    ends_with_this_thread(&mut process);
    let shown = shown(command);
    let output = process.output().map_err(|e| {
        Error::Engine(format!(
            "could not run {shown}: {e}; check that GROMACS is installed and on the PATH, or pass its command with \
             --gmx or --mdrun"
        ))
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Engine(format!("{shown} failed ({}):\n{}", output.status, complaint(&said))))
}

/// Has the system send the program SIGTERM when this thread ends: a run that is killed leaves no mdrun behind, which
/// could go on for hours.
#[cfg(target_os = "linux")]
fn ends_with_this_thread(process: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: only asks for a signal.
    let ask = || match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec this makes one system call, which allocates nothing and takes no lock.
    unsafe { process.pre_exec(ask) };
}

#[cfg(not(target_os = "linux"))]
fn ends_with_this_thread(_: &mut Command) {}

/// Error message in the output of GROMACS: the text between its rules (which notices of MPI also have), else the last
/// lines.
fn complaint(said: &str) -> String {
    const RULE: &str = "-------------------------------------------------------";
    let parts: Vec<&str> = said.split(RULE).map(|part| part.trim().trim_matches('-').trim()).collect();
    let error = parts.iter().rev().find(|part| part.contains("Program:") || part.contains("Source file:"));
    match error.or(parts.get(1)) {
        Some(error) => error.to_string(),
        None => {
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            lines[lines.len().saturating_sub(8)..].join("\n")
        }
    }
}

/// The file in a segment's folder named `stem.partNNNN` plus `extension`, if any.
pub(super) fn part(folder: &Path, stem: &str, extension: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(&format!("{stem}.part")) && name.ends_with(extension) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_and_options_that_are_ours_refused() {
        let gmx = Gmx::new("gmx", None).unwrap();
        assert_eq!(gmx.mdrun, ["gmx", "mdrun"]);
        assert_eq!(Gmx::new("gmx_mpi", Some("mpirun -np 2 gmx_mpi mdrun")).unwrap().mdrun.len(), 5);
        for option in ["-plumed p.dat", "--plumed p.dat", "--noconfout"] {
            let refused = Gmx::new("gmx", Some(&format!("gmx mdrun {option}"))).unwrap_err().to_string();
            assert!(refused.contains(option.split(' ').next().unwrap()), "{refused}");
        }
        assert!(Gmx::new("", None).is_err());
    }

    #[test]
    fn words_are_quoted_as_in_a_shell() {
        let line = r#"'/my programs/gmx' mdrun -x "a 'b' \"c\"" d\ e $HOME *"#;
        let mdrun = Gmx::new("gmx", Some(line)).unwrap().mdrun;
        assert_eq!(mdrun, ["/my programs/gmx", "mdrun", "-x", r#"a 'b' "c""#, "d e", "$HOME", "*"]);
        assert_eq!(words("--mdrun", &shown(&mdrun)).unwrap(), mdrun);
        for line in ["'gmx mdrun", "gmx \"mdrun", "gmx mdrun\\"] {
            let message = Gmx::new("gmx", Some(line)).unwrap_err().to_string();
            assert!(message.contains(&format!("--mdrun `{line}` has a quote")), "{message}");
        }
    }

    #[test]
    fn options_that_are_ours_are_documented() {
        let page = include_str!("../../../docs/gromacs.md");
        let missing: Vec<_> = OURS.iter().filter(|option| !page.contains(&format!("`{option}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_program_that_succeeds_and_writes_nothing_is_named() {
        let folder = std::env::temp_dir().join(format!("modejump-nothing-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let gmx = Gmx::new("gmx", Some("sh -c 'echo Fatal >&2'")).unwrap();
        let dynamics = gmx.segment(&folder, Path::new("topol.tpr"), None, 10).unwrap_err().to_string();
        let rerun = gmx.rerun(&folder, Path::new("topol.tpr"), &[Frame::default()]).unwrap_err().to_string();
        for (message, file) in [(dynamics, "ener.edr"), (rerun, "rerun.edr")] {
            let words = ["sh -c 'echo Fatal >&2'", file, "--mdrun", "\nFatal"];
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
            assert!(!message.contains("modejump-nothing"), "{message}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn files_that_are_named_from_here_are_found_in_other_folders() {
        let whole = |word: &str| from_anywhere(word.into());
        assert!(Path::new(&whole("./Cargo.toml")).is_absolute() && Path::new(&whole("Cargo.toml")).is_absolute());
        assert_eq!(["mdrun", "src", "-ntomp", "no/such.xvg"].map(whole), ["mdrun", "src", "-ntomp", "no/such.xvg"]);
    }

    #[test]
    fn a_program_that_is_missing_or_fails_is_told() {
        let here = Path::new(".");
        let none = run(&["no-such-gmx".into()], here, []).unwrap_err().to_string();
        assert!(none.contains("no-such-gmx") && none.contains("--gmx"), "{none}");
        let fails = "echo one >&2; echo -------------------------------------------------------; \
                     echo 'Fatal error: no' ; false";
        let said = run(&["sh".into(), "-c".into(), fails.into()], here, []).unwrap_err().to_string();
        assert!(said.contains("one") && said.contains("exit status: 1"), "{said}");
        assert_eq!(
            complaint(&format!("hello\n{0}{1}\nFatal error:\nno\n{0}{1}\n", "-".repeat(50), "-----")),
            "Fatal error:\nno"
        );
        let rule = "-".repeat(55);
        let notice = format!("{rule}-----\nBy default ports are not used\n{rule}-----\n");
        let error =
            format!("{rule}\nProgram: gmx mdrun\n\nFatal error:\nnothing works\n\nFor more, see the manual\n{rule}\n");
        for text in [error.clone(), notice.clone() + &error, error.clone() + &notice] {
            let found = complaint(&text);
            assert!(
                found.starts_with("Program") && found.contains("nothing works") && !found.contains("ports"),
                "{found}"
            );
        }
        assert_eq!(complaint(&notice), "By default ports are not used");
        assert!(is_absurd("Step 20: The total potential energy is nan, which is\nnot finite. The LJ"));
        assert!(is_absurd("An atom is beyond the wall: coordinates 1 1 -0.02,\ndistance -0.02"));
        assert!(is_absurd("A tabulated bond interaction table number 0 is out of the table\nrange: r 9.1"));
        assert!(is_absurd(
            "21 of the 706 bonded interactions could not be calculated because some atoms\ninvolved moved"
        ));
    }
}
