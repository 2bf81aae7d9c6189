//! Contents of a `.tpr` file, as far as jumps need them: read from the output of `gmx dump -s`, which every version
//! provides for its own files, so that no private format has to be known here.

use crate::coordinates::whole::BoxVectors;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Integrator of the dynamics. Both store velocities half a step behind the positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrator {
    /// `md`: leap-frog, with a thermostat.
    LeapFrog,
    /// `sd`: kick, half drift, friction and noise, half drift.
    Langevin,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Atom {
    pub name: String,
    /// Residue label, such as `ALA2`.
    pub residue: String,
    /// Mass, dalton; 0 for virtual sites.
    pub mass: f64,
}

/// A run input as made by `gmx grompp`.
#[derive(Clone, Debug)]
pub struct RunInput {
    pub integrator: Integrator,
    /// Time step, ps.
    pub timestep: f64,
    /// Temperature, K.
    pub temperature: f64,
    /// `ld-seed`, which grompp draws unless the user sets it.
    pub seed: u64,
    /// `init-step`, at which the run begins.
    pub first_step: i64,
    /// Steps between frames with forces; 0 for none.
    pub force_frames: i64,
    /// Whether the system has periodic boundaries.
    pub periodic: bool,
    /// Box vectors, nm, to the printed digits.
    pub box_vectors: BoxVectors,
    pub atoms: Vec<Atom>,
    /// Constraints as pairs of atoms and lengths in nm, including SETTLE's three.
    pub constraints: Vec<(usize, usize, f64)>,
    /// Virtual sites, each with the atoms it follows.
    pub sites: Vec<Vec<usize>>,
    /// Steps between couplings to a Nosé–Hoover bath; 0 without one.
    pub bath_interval: u64,
    /// For every atom, its centre-of-mass motion group (`comm-grps`); empty if there is only one.
    pub momentum_groups: Vec<usize>,
}

/// Options that must have one of the listed values, and the reason.
const REQUIRED: &[(&str, &[&str], &str)] = &[
    (
        "comm-mode",
        &["Linear", "None", "Linear-acceleration-correction"],
        "a jump changes the angular momentum; use Linear",
    ),
    ("mts", &["false"], "with multiple time steps, a step has no single force"),
    ("pcoupl", &["No"], "pressure coupling has not been tested with jumps; run at constant volume"),
    ("pull", &["false"], "pulling is not included in the energy used to accept jumps, or depends on the history"),
    ("awh", &["false"], "the bias depends on the history"),
    ("rotation", &["false"], "enforced rotation depends on time"),
    ("disre", &["No"], "distance restraints may be time averages"),
    ("free-energy", &["no"], "perturbed states have not been tested with jumps"),
    ("simulated-tempering", &["false"], "jumps are accepted at a fixed temperature"),
    ("swapcoords", &["no"], "it exchanges molecules on its own"),
    ("QMMM", &["false"], "parts of the energy have not been tested with jumps"),
    ("interactiveMD", &["false"], "external forces have no energy"),
    ("cos-acceleration", &["0"], "the system is not in equilibrium"),
];

impl RunInput {
    /// Parses the output of `gmx dump -s`. Errors: text that cannot be parsed, options that do not go with jumps, with
    /// the reason.
    pub fn parse(dump: &str) -> Result<RunInput> {
        let (options, topology) = dump.split_once("\ntopology:").ok_or_else(|| missing("topology"))?;
        let options = Options::new(options);
        options.refuse()?;
        let is_held = ["(POSRES)", "(FBPOSRES)"].iter().any(|restraint| topology.contains(restraint))
            || options.find("nwall").is_some_and(|walls| walls != "0");
        if let Some(mode) = options.find("comm-mode").filter(|&mode| is_held && mode != "None") {
            let why = "with position restraints or walls, the dynamics keeps the centre of mass fixed, but jumps do \
                       not; use None";
            return Err(refused("comm-mode", mode, why));
        }
        let integrator = match options.get("integrator")? {
            "md" => Integrator::LeapFrog,
            "sd" => Integrator::Langevin,
            other => return Err(refused("integrator", other, "jumps require the integrator sd or md")),
        };
        if integrator == Integrator::LeapFrog && !["V-rescale", "Nose-Hoover"].contains(&options.get("tcoupl")?) {
            let why = "jumps require a constant temperature; use sd, or md with V-rescale or Nose-Hoover";
            return Err(refused("tcoupl", options.get("tcoupl")?, why));
        }
        let of_bath = integrator == Integrator::LeapFrog && options.get("tcoupl")? == "Nose-Hoover";
        let bath_interval = if of_bath { options.number("nsttcouple")? as u64 } else { 0 };
        let system = System::parse(topology)?;
        let mut box_vectors = [[0.0; 3]; 3];
        for (i, row) in box_vectors.iter_mut().enumerate() {
            let line = topology.lines().find(|line| line.trim_start().starts_with(&format!("box[    {i}]=")));
            let numbers = line.and_then(braces).ok_or_else(|| missing("box"))?;
            *row = numbers.try_into().map_err(|_| missing("box"))?;
        }
        Ok(RunInput {
            integrator,
            timestep: options.number("dt")?,
            temperature: options.temperature()?,
            seed: options.get("ld-seed")?.parse::<i64>().map_err(|_| missing("ld-seed"))? as u64,
            first_step: options.number("init-step")? as i64,
            force_frames: options.number("nstfout")? as i64,
            periodic: options.get("pbc")? != "no",
            box_vectors,
            momentum_groups: momentum_groups(topology, system.atoms.len())?,
            atoms: system.atoms,
            constraints: system.constraints,
            bath_interval,
            sites: system.sites,
        })
    }
}

/// Minimum number of couplings to a Nosé–Hoover bath between two jumps, unless it couples at every step.
const COUPLINGS: u64 = 10;

impl RunInput {
    /// Errors: jumps so frequent that a Nosé–Hoover bath hardly sees the effect of its friction before velocities are
    /// redrawn: the friction then drifts, and the temperature with it (measured with `nsttcouple = 10`, `tau-t = 1` and
    /// a jump every 10 steps: 284 K instead of 300).
    pub fn check_interval(&self, steps: u64) -> Result<()> {
        let n = self.bath_interval;
        if n <= 1 || steps >= COUPLINGS * n {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "Nose-Hoover coupling every {n} steps and jumps every {steps}: the bath would not follow; set nsttcouple = \
             1, use V-rescale, or jump every {} steps or less often",
            COUPLINGS * n
        )))
    }
}

fn missing(what: &str) -> Error {
    Error::Engine(format!(
        "could not read {what} from the output of gmx dump: check that the .tpr file was made by this version of \
         GROMACS"
    ))
}

fn refused(option: &str, value: &str, why: &str) -> Error {
    Error::Unsupported(format!("the .tpr file has {option} = {value}: {why}"))
}

/// Numbers in `{ 1.0, 2.0, 3.0}` at the end of a line.
fn braces(line: &str) -> Option<Vec<f64>> {
    let inside = line.split_once('{')?.1.split_once('}')?.0;
    inside.split(',').map(|v| v.trim().parse().ok()).collect()
}

/// Lines `name = value` and `name: values` before the topology, as (section, name, value).
struct Options<'a> {
    lines: Vec<(&'a str, &'a str, &'a str)>,
}

impl<'a> Options<'a> {
    fn new(text: &'a str) -> Options<'a> {
        let mut section = "";
        let mut lines = Vec::new();
        for line in text.lines().map(str::trim) {
            let pair = line.split_once('=').or_else(|| line.split_once(':'));
            match pair.map(|(name, value)| (name.trim(), value.trim())) {
                Some((name, "")) if line.ends_with(':') => section = name,
                Some((name, value)) => lines.push((section, name, value)),
                None => {}
            }
        }
        Options { lines }
    }

    fn find(&self, name: &str) -> Option<&'a str> {
        self.lines.iter().find(|line| line.1 == name).map(|line| line.2)
    }

    fn get(&self, name: &str) -> Result<&'a str> {
        self.find(name).ok_or_else(|| missing(name))
    }

    fn number(&self, name: &str) -> Result<f64> {
        self.get(name)?.parse().map_err(|_| missing(name))
    }

    /// The common temperature of all groups. Errors: different temperatures, groups without a thermostat.
    fn temperature(&self) -> Result<f64> {
        let parse = |name| -> Result<Vec<f64>> {
            let values = self.get(name)?.split_whitespace().map(|v| v.parse().map_err(|_| missing(name)));
            values.collect()
        };
        let (temperatures, times) = (parse("ref-t")?, parse("tau-t")?);
        let first = *temperatures.first().ok_or_else(|| missing("ref-t"))?;
        let one = temperatures.iter().all(|&t| t == first) && first > 0.0;
        if !one {
            return Err(refused("ref-t", self.get("ref-t")?, "all groups must have the same positive temperature"));
        }
        if times.iter().any(|&tau| tau <= 0.0) {
            return Err(refused("tau-t", self.get("tau-t")?, "every group must have a thermostat"));
        }
        Ok(first)
    }

    fn refuse(&self) -> Result<()> {
        for (name, allowed, why) in REQUIRED {
            // an option unknown to this version is not on
            if let Some(value) = self.find(name).filter(|value| !allowed.contains(value)) {
                return Err(refused(name, value, why));
            }
        }
        for (section, name, value) in &self.lines {
            match *name {
                "active" if *value == "true" => {
                    return Err(refused(section, "active", "it has not been tested with jumps"));
                }
                "E0" if value.parse() != Ok(0.0) => {
                    return Err(refused("electric field E0", value, "its energy is not part of the potential energy"));
                }
                "annealing" if value.split_whitespace().any(|v| v != "No") => {
                    return Err(refused("annealing", value, "jumps are accepted at a fixed temperature"));
                }
                name if name.starts_with("deform") && moves_the_box(value) => {
                    return Err(refused("deform", value, "the system is not in equilibrium"));
                }
                "nfreeze" if value.contains('Y') => {
                    return Err(refused("freezegrps", value, "frozen atoms have not been tested with jumps"));
                }
                "acc" if value.split_whitespace().any(|v| v.parse() != Ok(0.0)) => {
                    return Err(refused("accelerate", value, "the system is not in equilibrium"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Centre-of-mass motion group of every atom, from its column in the table of all atoms' groups, which has a single
/// line (`*`) if each kind has one group.
fn momentum_groups(topology: &str, atoms: usize) -> Result<Vec<usize>> {
    let lines = || topology.lines().map(str::trim);
    let mut kinds = lines().filter(|line| line.starts_with("grp["));
    let Some(kind) = kinds.position(|line| line.starts_with("grp[VCM")) else { return Ok(Vec::new()) };
    let rows = lines().filter(|line| line.starts_with("groupnr[") && !line.contains('*'));
    let group = |line: &str| line.split_once('=')?.1.split_whitespace().nth(kind)?.parse().ok();
    let groups: Vec<usize> = rows.map(group).collect::<Option<_>>().ok_or_else(|| missing("groupnr"))?;
    match groups.is_empty() || groups.len() == atoms {
        true => Ok(groups),
        false => Err(missing("groupnr of every atom")),
    }
}

/// Whether a row of numbers, with or without braces, has a non-zero one.
fn moves_the_box(row: &str) -> bool {
    let numbers = row.trim_matches(['{', '}']).split([',', ' ']).map(str::trim).filter(|text| !text.is_empty());
    numbers.map(str::parse::<f64>).any(|number| number.is_ok_and(|v| v != 0.0))
}

#[derive(Default)]
struct MoleculeType {
    masses: Vec<f64>,
    residue_of: Vec<usize>,
    names: Vec<String>,
    /// Names and numbers of residues.
    residues: Vec<(String, f64)>,
    constraints: Vec<(usize, usize, f64)>,
    sites: Vec<Vec<usize>>,
}

#[derive(Default)]
struct System {
    atoms: Vec<Atom>,
    constraints: Vec<(usize, usize, f64)>,
    sites: Vec<Vec<usize>>,
    /// Number of single-residue molecules so far.
    of_one_residue: u64,
}

impl System {
    fn parse(text: &str) -> Result<System> {
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        let mut lengths: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let mut types: Vec<MoleculeType> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line == "x:" || line.starts_with("x (") {
                break; // coordinates follow the topology
            }
            if line.starts_with("atom[") && line.contains("Shell,") {
                return Err(refused("ptype", "Shell", "shells follow their atoms, which jumps do not support"));
            }
            read_line(line, &mut blocks, &mut lengths, &mut types).ok_or_else(|| missing(&format!("line `{line}`")))?;
        }
        let mut system = System::default();
        for (kind, molecules) in blocks {
            let molecule = types.get(kind).ok_or_else(|| missing("molecule type"))?;
            for _ in 0..molecules {
                system.add(molecule).ok_or_else(|| missing("atoms"))?;
            }
        }
        match system.atoms.is_empty() {
            true => Err(missing("atoms")),
            false => Ok(system),
        }
    }

    fn add(&mut self, molecule: &MoleculeType) -> Option<()> {
        let first = self.atoms.len();
        // GROMACS numbers these through the whole system, which distinguishes neighbouring molecules
        self.of_one_residue += u64::from(molecule.residues.len() == 1);
        for (i, &mass) in molecule.masses.iter().enumerate() {
            let (name, number) = molecule.residues.get(*molecule.residue_of.get(i)?)?;
            let residue = match molecule.residues.len() {
                1 => format!("{name}{}", self.of_one_residue),
                _ => format!("{name}{number}"),
            };
            self.atoms.push(Atom { name: molecule.names.get(i)?.clone(), residue, mass });
        }
        self.constraints.extend(molecule.constraints.iter().map(|&(a, b, length)| (first + a, first + b, length)));
        self.sites.extend(molecule.sites.iter().map(|site| site.iter().map(|atom| first + atom).collect()));
        Some(())
    }
}

/// Reads one line into the tables; None if it cannot be parsed.
fn read_line(
    line: &str,
    blocks: &mut Vec<(usize, usize)>,
    lengths: &mut BTreeMap<usize, Vec<f64>>,
    types: &mut Vec<MoleculeType>,
) -> Option<()> {
    if line.starts_with("moltype (") {
        types.push(MoleculeType::default());
    } else if line.starts_with("moltype ") && line.contains('=') {
        blocks.push((line.split_once('=')?.1.split_whitespace().next()?.parse().ok()?, 1));
    } else if line.starts_with("#molecules") {
        blocks.last_mut()?.1 = line.split_once('=')?.1.trim().parse().ok()?;
    } else if line.starts_with("functype[") && (line.contains("=CONSTR") || line.contains("=SETTLE")) {
        lengths.insert(
            index(line)?,
            [field(line, "dA="), field(line, "doh="), field(line, "dhh=")].into_iter().flatten().collect(),
        );
    } else if line.starts_with("atom[") && line.contains("resind=") {
        let molecule = types.last_mut()?;
        molecule.masses.push(field(line, " m=")?);
        molecule.residue_of.push(field(line, "resind=")? as usize);
    } else if line.starts_with("atom[") && line.contains("{name=") {
        types.last_mut()?.names.push(quoted(line)?);
    } else if line.starts_with("residue[") {
        types.last_mut()?.residues.push((quoted(line)?, field(line, "nr=")?));
    } else if line.contains(" (CONSTR) ") || line.contains(" (CONSTRNC) ") || line.contains(" (SETTLE) ") {
        let of_type = lengths.get(&(field(line, "type=")? as usize))?;
        let atoms = atoms_of_interaction(line)?;
        let constraints = &mut types.last_mut()?.constraints;
        match (&atoms[..], &of_type[..]) {
            (&[a, b], &[length]) => constraints.push((a, b, length)),
            (&[o, a, b], &[long, short]) => constraints.extend([(o, a, long), (o, b, long), (a, b, short)]),
            _ => return None,
        }
    } else if line.contains("type=") && line.contains(" (VSITE") {
        types.last_mut()?.sites.push(atoms_of_interaction(line)?);
    }
    Some(())
}

/// Atoms at the end of a line such as `0 type=12 (CONSTR)  4  5`.
fn atoms_of_interaction(line: &str) -> Option<Vec<usize>> {
    Some(line.rsplit_once(')')?.1.split_whitespace().map_while(|v| v.parse().ok()).collect())
}

/// Number in the first brackets.
fn index(line: &str) -> Option<usize> {
    line.split_once('[')?.1.split_once(']')?.0.trim().parse().ok()
}

/// Number after `name`.
fn field(line: &str, name: &str) -> Option<f64> {
    let rest = line.split_once(name)?.1.trim_start();
    rest.split(|c: char| c == ',' || c == '}' || c.is_whitespace()).next()?.parse().ok()
}

fn quoted(line: &str) -> Option<String> {
    line.split('"').nth(1).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of gmx dump (GROMACS 2022.5) for alanine dipeptide in 878 waters with constraints, without the
    /// interaction lines.
    const DUMP: &str = include_str!("../../../tests/golden/gromacs/dump.txt");

    #[test]
    fn the_dump_of_a_solvated_molecule_is_understood() {
        let input = RunInput::parse(DUMP).unwrap();
        assert_eq!((input.integrator, input.temperature, input.timestep), (Integrator::LeapFrog, 300.0, 0.002));
        assert_eq!((input.force_frames, input.periodic), (1000, true));
        assert!(input.momentum_groups.is_empty() && input.sites.is_empty());
        let last = DUMP.lines().rfind(|line| line.contains(" (SETTLE) ")).unwrap();
        let with_site = RunInput::parse(&DUMP.replacen(last, &format!("{last}\n 0 type=116 (VSITE2)   2   0   1"), 1));
        let sites = with_site.unwrap().sites;
        assert_eq!((sites.len(), &sites[1][..]), (878, &[27, 25, 26][..]));
        let row = |atom: usize| {
            format!("groupnr[{atom:5}] =    0     0     0     0     0     0     {}     0     0     0 ", atom / 10)
        };
        let rows = |n: usize| (0..n).map(row).collect::<Vec<_>>().join("\n   ");
        let all = "groupnr[    *] =    0     0     0     0     0     0     0     0     0     0 ";
        let parted = RunInput::parse(&DUMP.replacen(all, &rows(22 + 3 * 878), 1)).unwrap();
        assert_eq!(
            parted.momentum_groups[..21],
            [[0; 10], [1; 10]].concat().into_iter().chain([2]).collect::<Vec<_>>()
        );
        assert!(RunInput::parse(&DUMP.replacen(all, &rows(20), 1)).unwrap_err().to_string().contains("groupnr"));
        assert_eq!(input.box_vectors, [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]]);
        assert_eq!(input.atoms.len(), 22 + 3 * 878);
        assert_eq!(input.atoms[10], Atom { name: "CB".into(), residue: "ALA2".into(), mass: 12.01 });
        assert_eq!(input.atoms[2655], Atom { name: "HW2".into(), residue: "SOL878".into(), mass: 1.008 });
        assert_eq!(input.constraints.len(), 12 + 3 * 878);
        assert_eq!(input.constraints[3], (6, 7, 0.101000004));
        assert_eq!(input.constraints[12..15], [(22, 23, 0.0957200006), (22, 24, 0.0957200006), (23, 24, 0.151390001)]);
    }

    #[test]
    fn a_bath_that_would_not_follow_is_refused() {
        RunInput::parse(DUMP).unwrap().check_interval(1).unwrap();
        let coupled = |interval: u64| {
            let dump = DUMP.replace("tcoupl                         = V-rescale", "tcoupl = Nose-Hoover");
            let (before, rest) = dump.split_once("nsttcouple").unwrap();
            let (_, after) = rest.split_once('\n').unwrap();
            RunInput::parse(&format!("{before}nsttcouple = {interval}\n{after}")).unwrap()
        };
        coupled(1).check_interval(1).unwrap();
        coupled(10).check_interval(100).unwrap();
        let message = coupled(10).check_interval(99).unwrap_err().to_string();
        assert!(
            message.contains("every 10 steps and jumps every 99") && message.contains("every 100 steps"),
            "{message}"
        );
    }

    #[test]
    fn what_jumps_do_not_go_with_is_refused_with_the_option_and_the_reason() {
        for (from, to, words) in [
            ("integrator                     = md", "integrator = bd", ["bd", "sd or md"]),
            ("tcoupl                         = V-rescale", "tcoupl = Berendsen", ["Berendsen", "V-rescale"]),
            ("comm-mode                      = Linear", "comm-mode = Angular", ["Angular", "angular momentum"]),
            ("nwall                          = 0", "nwall = 2", ["comm-mode = Linear", "use None"]),
            ("(CONSTR)", "(POSRES)", ["comm-mode = Linear", "position restraints"]),
            ("pcoupl                         = No", "pcoupl = C-rescale", ["C-rescale", "constant volume"]),
            ("awh                            = false", "awh = true", ["awh", "depends on the history"]),
            ("pull                           = false", "pull = true", ["pull", "history"]),
            ("mts                            = false", "mts = true", ["mts", "force"]),
            ("free-energy                    = no", "free-energy = yes", ["free-energy", "tested"]),
            ("annealing:          No", "annealing:   Single", ["annealing", "fixed"]),
            ("ref-t:         300", "ref-t:   300 310", ["ref-t", "same positive"]),
            ("tau-t:         0.1", "tau-t:   -1", ["tau-t", "thermostat"]),
            ("nfreeze:           N", "nfreeze:  Y", ["freezegrps", "tested"]),
            ("active                     = false", "active = true", ["density-guided-simulation", "tested"]),
            ("E0                       = 0", "E0 = 0.5", ["E0", "potential energy"]),
            ("deform[    1]={ 0.00000e+00", "deform[    1]={ 1.00000e-02", ["deform", "equilibrium"]),
            ("ptype=    Atom", "ptype=    Shell", ["Shell", "follow"]),
        ] {
            assert!(DUMP.contains(from), "{from}");
            let message = RunInput::parse(&DUMP.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn text_that_is_no_dump_is_an_error_and_never_a_panic() {
        for length in (0..DUMP.len()).step_by(97).filter(|&i| DUMP.is_char_boundary(i)) {
            let _ = RunInput::parse(&DUMP[..length]);
        }
        assert!(RunInput::parse("").unwrap_err().to_string().contains("tpr"));
        let lines: Vec<&str> = DUMP.lines().collect();
        for skipped in 0..lines.len() {
            let rest = [&lines[..skipped], &lines[skipped + 1..]].concat().join("\n");
            let _ = RunInput::parse(&rest);
        }
    }
}
