//! `modejump compare`: distances between two samples of one molecule.

mod side;

use super::common::{number, tail_in_words, tail_index, PlatformFlag, RuleFlag, TorsionFlag};
use super::plot::{draw, Series};
use clap::Args;
use modejump::coordinates::Topology;
use modejump::io::trajectory::{Format, Frames};
use modejump::io::{check_apart, check_writable};
use modejump::metrics::{self, Features};
use modejump::rng::{Stream, StreamId};
use modejump::tica::Tica;
use modejump::{weights, Error, Result};
use serde::Serialize;
use serde_json::{json, Value};
use side::{Observed, Side};
use std::path::{Path, PathBuf};
#[cfg(feature = "openmm")]
use std::sync::Once;

#[derive(Args)]
pub struct Compare {
    /// Reference A: a trajectory in the order of time, or independent samples, which have no slow components: pdb, gro,
    /// dcd, xtc, trr, npy or safetensors
    a: PathBuf,
    /// Sample B, compared with the reference
    b: PathBuf,
    /// PDB file with the atoms of both in their order; not needed if one of them is a PDB file
    #[arg(long)]
    topology: Option<PathBuf>,
    /// OpenMM System (XML) for the energies of both; without it those in the files are used (`reduced_potential`)
    #[arg(long, requires = "temperature")]
    system: Option<PathBuf>,
    /// Temperature of the energies, K
    #[arg(long, requires = "system")]
    temperature: Option<f64>,
    /// Count all frames equally, even if a file has weights (`log_weight`, as written by `smc`)
    #[arg(long, conflicts_with = "reweight")]
    unweighted: bool,
    /// Weight a generator's samples (files with `log_density`, as written by `sample`) by exp(-u)/q
    #[arg(long)]
    reweight: bool,
    #[command(flatten)]
    rule: RuleFlag,
    #[command(flatten)]
    torsions: TorsionFlag,
    /// Lag time, in frames of A, for the slowest components of A; 0 to leave them out
    #[arg(long, default_value_t = 100)]
    lag: usize,
    /// Maximum number of points of either side in exact optimal transport, whose cost grows as their cube
    #[arg(long, default_value_t = 1000)]
    points: usize,
    /// Seed of the draws of points
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// Folder for compare.json and the figures
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Number of draws of the points of exact transport. One suffices if it takes each frame of both sides once: for equally
/// many frames of equal weight, and no more than points.
const DRAWS: u64 = 4;

/// Ensures that the box of the System is mentioned only once.
#[cfg(feature = "openmm")]
static PERIODIC: Once = Once::new();

/// Distances between two samples; absent if the data for them are missing.
#[derive(Serialize)]
struct Distances {
    energy_w1: Option<f64>,
    energy_w2: Option<f64>,
    torsion_w2: Option<f64>,
    torsion_w2_sd: Option<f64>,
    torsion_w2_sliced: Option<f64>,
    tica_w2: Option<f64>,
    tica_w2_sd: Option<f64>,
    ramachandran_jsd: Option<f64>,
}

impl Compare {
    pub fn run(self) -> Result<()> {
        if self.points == 0 {
            return Err(Error::invalid("--points 0: must be at least 1"));
        }
        if let Some(folder) = &self.output {
            modejump::io::make_folder(folder)?;
            let document = folder.join("compare.json");
            let given = [&self.a, &self.b].into_iter().chain(&self.topology).chain(&self.system);
            check_apart(&document, given)?;
            check_writable(&document)?;
        }
        let topology = self.the_topology()?;
        let torsions = self.torsions.of(topology.n_atoms(), Some(&topology))?;
        let mut a = Side::read(&self.a, &topology, &self)?;
        let mut b = Side::read(&self.b, &topology, &self)?;
        leave_out_other_temperatures(&mut a, &mut b);
        if self.reweight {
            require_density(&a, &b)?;
        }
        let slow = self.slow_components(&a, &topology);
        let [of_a, of_b] = [&a, &b].map(|side| Observed::of(side, &torsions, slow.as_ref()));
        tell_of_gaps([&a, &b], &of_a);
        let between = self.distances(&of_a, &of_b)?;
        let half = of_a.n() / 2;
        // one half may have no weight
        let halves = self.distances(&of_a.part(0..half), &of_a.part(half..of_a.n()));
        let halves =
            halves.inspect_err(|reason| eprintln!("modejump: no distance between the halves of A: {reason}")).ok();
        let summary = json!({
            "a": self.describe(&a)?,
            "b": self.describe(&b)?,
            "points": self.points,
            "lag": slow.as_ref().map(|_| self.lag),
            "tica_eigenvalues": slow.as_ref().map(|(_, tica)| &tica.eigenvalues),
            "between": between,
            "halves_of_a": halves,
        });
        match self.json {
            true => println!("{summary}"),
            false => report(&summary, self.torsions.pairs_in_words()),
        }
        let rule = self.rule.rule().name();
        match &self.output {
            Some(folder) => {
                let series = |letter, side, observed| series(rule, letter, side, observed, &torsions.axes);
                self.write(folder, &summary, [series("A", &a, &of_a), series("B", &b, &of_b)])
            }
            None => Ok(()),
        }
    }

    fn the_topology(&self) -> Result<Topology> {
        let has_names = |path: &&PathBuf| Format::Pdb.is_of(path);
        let path = self.topology.as_ref().or([&self.a, &self.b].into_iter().find(has_names));
        let path = path.ok_or_else(|| Error::invalid("--topology with a PDB file is required"))?;
        Ok(Topology::from_pdb(path)?.0)
    }

    /// u of frames by the System, if there is one, and ½ ln det Z of the bonds that it constrains if the frames include
    /// `samples` to be weighted, i.e. those with a log q. Errors name a bond that the System constrains and the samples
    /// vary, or the reverse.
    #[cfg(feature = "openmm")]
    fn energies(
        &self,
        frames: &Frames,
        topology: &Topology,
        samples: Option<&Frames>,
    ) -> Result<Option<[Vec<f64>; 2]>> {
        use super::common::{target, target_of_samples};
        use modejump::target::Target;
        let (Some(path), Some(temperature)) = (&self.system, self.temperature) else { return Ok(None) };
        let (x, dimension, system) = (&frames.x, frames.dimension, self.platform.read_system(path)?);
        let mut target = match samples {
            Some(samples) => target_of_samples(path, &system, &samples.x, topology, temperature)?,
            None => target(path, &system, dimension, Some(topology), temperature)?,
        };
        // a force that does not report whether it is periodic may well be
        if system.is_periodic().unwrap_or(true) {
            PERIODIC.call_once(|| {
                eprintln!(
                    "modejump: {} is periodic: energies are computed in its default box, and boxes in the files are ignored",
                    path.display()
                );
            });
        }
        let mut u = vec![0.0; x.len() / dimension];
        target.reduced_potential(x, &mut u)?;
        let log_metric = x.chunks_exact(dimension).map(|x| target.log_metric(x)).collect();
        Ok(Some([u, log_metric]))
    }

    #[cfg(not(feature = "openmm"))]
    fn energies(&self, _: &Frames, _: &Topology, _: Option<&Frames>) -> Result<Option<[Vec<f64>; 2]>> {
        match &self.system {
            Some(_) => Err(Error::Unsupported("--system needs a build with `--features openmm`".into())),
            None => Ok(None),
        }
    }

    /// The two slowest components of A; prints the reason if there are none.
    fn slow_components(&self, a: &Side, topology: &Topology) -> Option<(Features, Tica)> {
        if self.lag == 0 {
            return None;
        }
        let fitted = match (&a.log_weight, a.has_density, a.by_turns) {
            (Some(_), _, _) => Err(Error::invalid("weighted samples are not a trajectory")),
            (None, true, _) => {
                Err(Error::invalid("the file has `log_density`: samples of a generator are not a trajectory"))
            }
            (None, false, true) => Err(Error::invalid(
                "the file has `walker` or `epoch`: alternating frames of several walkers are not a trajectory",
            )),
            (None, false, false) => Features::new(topology).and_then(|features| {
                let tica = Tica::fit(&features.of(&a.x), features.dimension(), self.lag, 2)?;
                match tica.eigenvalues[..] {
                    [largest, ..] if largest > 0.0 => Ok((features, tica)),
                    _ => Err(Error::invalid(format!("no correlation is left after {} frames", self.lag))),
                }
            }),
        };
        fitted.inspect_err(|reason| eprintln!("modejump: no slow components of {}: {reason}", a.name)).ok()
    }

    fn distances(&self, a: &Observed, b: &Observed) -> Result<Distances> {
        let (of_a, of_b) = (a.weights()?, b.weights()?);
        let is_even = |weights: &[f64]| weights.iter().all(|w| *w == weights[0]);
        let takes_all = a.n() == b.n() && a.n() <= self.points && is_even(&of_a) && is_even(&of_b);
        let draws = if takes_all { 1 } else { DRAWS };
        let energies = match (a.energies()?, b.energies()?) {
            (Some((x, v)), Some((y, w))) => {
                let (a, b) = (metrics::Cloud::new(&x, 1, &v)?, metrics::Cloud::new(&y, 1, &w)?);
                Some(metrics::energy_distances(a, b)?)
            }
            _ => None,
        };
        let mut distances = Distances {
            energy_w1: energies.map(|w| w[0]),
            energy_w2: energies.map(|w| w[1]),
            torsion_w2: None,
            torsion_w2_sd: None,
            torsion_w2_sliced: None,
            tica_w2: None,
            tica_w2_sd: None,
            ramachandran_jsd: None,
        };
        if !a.torsions.is_empty() {
            let (x, y) = (a.cloud(&a.torsions, &of_a)?, b.cloud(&b.torsions, &of_b)?);
            let [mean, sd] = self.over_draws(draws, |stream| metrics::torsion_distance(x, y, self.points, stream));
            (distances.torsion_w2, distances.torsion_w2_sd) = (Some(mean), Some(sd));
            distances.torsion_w2_sliced = Some(metrics::sliced_torsion_distance(x, y, &mut self.stream(0))?);
        }
        if !a.pairs.is_empty() {
            let (x, y) = (a.cloud(&a.pairs, &of_a)?, b.cloud(&b.pairs, &of_b)?);
            distances.ramachandran_jsd = Some(metrics::ramachandran_divergence(x, y)?);
        }
        if let (Some(x), Some(y)) = (&a.components, &b.components) {
            let (x, y) = (a.cloud(x, &of_a)?, b.cloud(y, &of_b)?);
            let [mean, sd] = self.over_draws(draws, |stream| metrics::plane_distance(x, y, self.points, stream));
            (distances.tica_w2, distances.tica_w2_sd) = (Some(mean), Some(sd));
        }
        Ok(distances)
    }

    fn stream(&self, draw: u64) -> Stream {
        Stream::new(self.seed, StreamId::Resample, draw, 0)
    }

    /// Mean and standard deviation of a distance over several draws of its points; the latter is 0 for one draw.
    fn over_draws(&self, draws: u64, distance: impl Fn(&mut Stream) -> f64) -> [f64; 2] {
        let all: Vec<f64> = (0..draws).map(|draw| distance(&mut self.stream(draw))).collect();
        if let [only] = all[..] {
            return [only, 0.0];
        }
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let squares: f64 = all.iter().map(|d| (d - mean).powi(2)).sum();
        [mean, (squares / (all.len() - 1) as f64).sqrt()]
    }

    /// Summary of one side: its file, its energies, and the quality of its weights.
    fn describe(&self, side: &Side) -> Result<Value> {
        let mut about = json!({ "file": side.name, "n": side.n });
        if let Some(lost) = side.without_energy {
            about["without_finite_energy"] = json!(lost);
        }
        if let (Some(raw), Some(ruled)) = (&side.raw, &side.log_weight) {
            let share = |w: &[f64]| weights::effective_sample_size(w).map(|ess| ess / side.n as f64);
            about["ess"] = json!(share(raw)?);
            about["pareto_k"] = tail_index(weights::pareto_k(raw)?);
            about["weights"] = json!(self.rule.rule().name());
            about["ess_of_weights"] = json!(share(ruled)?);
            if let Some(ancestor) = &side.ancestor {
                about["independent"] = json!(weights::effective_families(ruled, ancestor));
            }
        }
        Ok(about)
    }

    fn write(&self, folder: &Path, summary: &Value, series: [Series; 2]) -> Result<()> {
        let path = folder.join("compare.json");
        let again = path.exists();
        let document = json!({ "summary": summary, "series": series });
        modejump::io::write_atomically(&path, document.to_string().as_bytes())?;
        const FIGURES: [&str; 4] = ["energy.svg", "ramachandran.svg", "tica.svg", "log_weights.svg"];
        let written = draw(folder, &series, &FIGURES)?;
        // removes those of an earlier comparison that this one does not have
        let is_stale = |path: &PathBuf| again && !written.contains(path) && path.exists();
        for stale in FIGURES.map(|name| folder.join(name)).into_iter().filter(is_stale) {
            std::fs::remove_file(&stale).map_err(|e| Error::io(&stale, e))?;
        }
        if !self.json {
            [path].iter().chain(&written).for_each(|path| println!("{}", path.display()));
        }
        Ok(())
    }
}

/// Warns if the reduced potentials are of two temperatures: their distance is then no measure of the difference of the
/// samples.
fn leave_out_other_temperatures(a: &mut Side, b: &mut Side) {
    if let (Some(of_a), Some(of_b)) = (a.temperature, b.temperature) {
        if (of_a - of_b).abs() > 1e-6 * of_a {
            let (a_name, b_name) = (&a.name, &b.name);
            eprintln!(
                "modejump: the energies in {a_name} are divided by kT at {of_a} K, those in {b_name} at {of_b} K: they are not compared; \
                 use --system and --temperature to compute both at one temperature"
            );
            (a.u, b.u) = (None, None);
        }
    }
}

/// Explains dashes in the table, unless another message has done so.
fn tell_of_gaps(sides: [&Side; 2], of_a: &Observed) {
    let without: Vec<&str> =
        sides.iter().filter(|side| side.without_energy.is_none()).map(|side| side.name.as_str()).collect();
    if !without.is_empty() {
        let names = without.join(" and ");
        eprintln!("modejump: no energies in {names} (`reduced_potential`): energies are not compared; use --system and --temperature");
    }
    if of_a.torsions.is_empty() {
        eprintln!("modejump: no backbone φ, ψ in this molecule: torsions are not compared; choose some with --torsion");
    } else if of_a.pairs.is_empty() {
        eprintln!(
            "modejump: no pairs of torsions, such as φ and ψ of a residue: their joint distribution is not compared"
        );
    }
}

/// For --reweight: reports which side has no density. Errors: neither has one.
fn require_density(a: &Side, b: &Side) -> Result<()> {
    if !a.has_density && !b.has_density {
        return Err(Error::invalid(format!(
            "--reweight: neither {} nor {} has `log_density`, which `modejump sample` writes to safetensors files",
            a.name, b.name
        )));
    }
    for side in [a, b].into_iter().filter(|side| !side.has_density) {
        let weights = if side.raw.is_some() { "have the weights of the file" } else { "count equally" };
        eprintln!("modejump: {} has no `log_density` and is not reweighted: its frames {weights}", side.name);
    }
    Ok(())
}

/// Series for `modejump plot`; frames without weight or energy are left out, since JSON has no infinities.
fn series(rule: &str, letter: &str, side: &Side, observed: &Observed, axes: &[String]) -> Series {
    let kept: Vec<usize> = (0..side.n)
        .filter(|&i| side.log_weight.as_ref().is_none_or(|w| w[i].is_finite()))
        .filter(|&i| side.u.as_ref().is_none_or(|u| u[i].is_finite()))
        .collect();
    let column = |rows: &[f64], k: usize| -> Vec<f64> {
        let d = rows.len() / side.n;
        kept.iter().filter(|_| k < d).map(|&i| rows[d * i + k]).collect()
    };
    let of = |rows: &Option<Vec<f64>>, k: usize| rows.as_ref().map_or(Vec::new(), |rows| column(rows, k));
    let name = Path::new(&side.name).file_name().map_or(side.name.clone(), |name| name.to_string_lossy().into_owned());
    Series {
        name: format!("{letter}: {name}"),
        n: side.n,
        axes: axes.to_vec(),
        phi: column(&observed.shown, 0),
        psi: column(&observed.shown, 1),
        tic1: of(&observed.components, 0),
        tic2: of(&observed.components, 1),
        reduced_potential: of(&side.u, 0),
        by_turns: side.by_turns,
        log_weight: of(&side.log_weight, 0),
        ancestor: side.ancestor.iter().flat_map(|ancestor| kept.iter().map(|&i| ancestor[i])).collect(),
        raw_log_weight: side.raw.iter().flatten().copied().filter(|w| w.is_finite()).collect(),
        weights: side.raw.as_ref().map_or(String::new(), |_| rule.into()),
    }
}

fn report(s: &Value, pairs: &str) {
    for (name, side) in [("A", &s["a"]), ("B", &s["b"])] {
        println!("{name}  {}, {} frames", side["file"].as_str().unwrap_or_default(), side["n"]);
        if let Some(lost) = side["without_finite_energy"].as_u64().filter(|lost| *lost > 0) {
            println!("   {lost} frames without a finite energy, excluded from the energies");
        }
        if let (Some(ess), Some(used)) = (side["ess"].as_f64(), side["ess_of_weights"].as_f64()) {
            let k = tail_in_words(number(side, "pareto_k"));
            let rule = side["weights"].as_str().unwrap_or_default();
            println!("   raw weights: ESS {:.1} %, Pareto k {k}", 100.0 * ess);
            println!("   weights used: {rule}, ESS {:.1} %", 100.0 * used);
            if let Some(independent) = side["independent"].as_f64() {
                println!("   equivalent to {independent:.1} independent samples: the others are copies by resampling");
            }
        }
    }
    if let Some(eigenvalues) = s["tica_eigenvalues"].as_array() {
        let eigenvalues: Vec<String> =
            eigenvalues.iter().filter_map(Value::as_f64).map(|v| format!("{v:.3}")).collect();
        println!("slowest components of A: eigenvalues {} at a lag of {} frames", eigenvalues.join(", "), s["lag"]);
    }
    println!("{:34} {:>17} {:>17}", "", "A to B", "halves of A");
    let pairs = format!("Jensen-Shannon of {pairs}, bits");
    for (key, label) in [
        ("energy_w1", "energy W1, kT"),
        ("energy_w2", "energy W2, kT"),
        ("torsion_w2", "torsion W2, rad"),
        ("torsion_w2_sliced", "torsion W2, sliced, all frames"),
        ("tica_w2", "W2 of the two slowest components"),
        ("ramachandran_jsd", &pairs),
    ] {
        let value = |of: &str| {
            let spread = s[of][format!("{key}_sd")].as_f64().filter(|sd| *sd > 0.0);
            let spread = spread.map_or(String::new(), |sd| format!(" ± {sd:.4}"));
            s[of][key].as_f64().map_or("–".to_string(), |v| format!("{v:.4}{spread}"))
        };
        println!("{label:34} {:>17} {:>17}", value("between"), value("halves_of_a"));
    }
    let has_spread = |of: &str| ["torsion_w2_sd", "tica_w2_sd"].iter().any(|key| number(&s[of], key) > 0.0);
    if has_spread("between") || has_spread("halves_of_a") {
        println!(
            "(mean ± standard deviation over {DRAWS} draws of at most {} frames from each side; with more frames the distances are smaller)",
            s["points"]
        );
    }
}
