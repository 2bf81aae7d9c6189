//! `modejump exchange`: learned replica exchange in OpenMM from Rust.

use crate::common::PrecisionFlag;
use crate::dynamics::Dynamics;
use clap::Args;
use modejump::Result;
use std::path::PathBuf;

#[derive(Args)]
pub struct Exchange {
    /// Topology and start: PDB file with the atoms in the order of the System; a periodic box is taken from the System
    #[arg(long)]
    topology: PathBuf,
    /// OpenMM System (XML)
    #[arg(long)]
    system: PathBuf,
    /// One model per temperature: neighbours exchange through the latent space that their models share
    #[arg(long, required = true, num_args = 2.., value_name = "FILE")]
    models: Vec<PathBuf>,
    /// Temperatures, K, in the order of the models [default: those of the models]
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    temperatures: Option<Vec<f64>>,
    /// Number of exchanges to try between each pair of neighbours
    #[arg(short = 'n', long, default_value_t = 10_000)]
    exchanges: u64,
    /// Exchanges before these that are neither recorded nor averaged (but count as exchanges): all replicas start from
    /// one configuration
    #[arg(long, default_value_t = 0)]
    equilibrate: u64,
    /// Steps between exchanges
    #[arg(long, visible_alias = "frequency", default_value_t = 100)]
    interval: u64,
    #[command(flatten)]
    dynamics: Dynamics,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Trajectories, one per temperature in the order of the models, with a frame after every exchange: pdb, gro, dcd,
    /// xtc, trr, npy or safetensors (with `reduced_potential`), written every minute, at the end, and when SIGINT or
    /// SIGTERM ends the run; the last ones may be omitted
    #[arg(short, long, num_args = 1.., value_name = "FILE")]
    output: Vec<PathBuf>,
    /// State of the run with its frames, written every minute, at the end, and when SIGINT or SIGTERM ends the run. If
    /// the file exists, the run continues from it, bit for bit (except if the System has a barostat, or a cut-off on
    /// the platform CPU, whose neighbour lists OpenMM does not save); a finished run continues with more --exchanges
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[cfg(not(feature = "openmm"))]
impl Exchange {
    pub fn run(self) -> Result<()> {
        Err(modejump::Error::Unsupported("`modejump exchange` needs a build with `--features openmm`".into()))
    }
}

#[cfg(feature = "openmm")]
mod run {
    use super::*;
    use crate::common::{
        hash_of, interrupted, load, require_order, temperature, warn_of_temperature, watch_signals, Progress,
    };
    use crate::dynamics::{
        add_means, earlier, failed, require_frames, require_whole, show_means, start, tell_of_memory, Kept, Record,
    };
    use modejump::engines::openmm::{ExchangingReplicas, ReplicasState};
    use modejump::io::checkpoint::{self, Identity, Kind};
    use modejump::io::{check_apart, check_writable, trajectory};
    use modejump::models::steering::follow;
    use modejump::models::Model;
    use modejump::Error;
    use serde::{Deserialize, Serialize};
    use serde_json::{json, Value};
    use std::sync::Arc;

    const RUN: Kind = Kind { magic: *b"MJ-EXCHA", version: 7 };

    /// State from which a run continues.
    #[derive(Serialize, Deserialize)]
    struct Saved {
        /// Exchanges done in equilibration.
        equilibrated: u64,
        /// Exchanges done after it.
        done: u64,
        replicas: ReplicasState,
        /// One record per temperature.
        records: Vec<Record>,
    }

    impl Exchange {
        pub fn run(self) -> Result<()> {
            for (option, number) in [("exchanges", self.exchanges), ("interval", self.interval)] {
                if number == 0 {
                    return Err(Error::invalid(format!("--{option} 0: must be at least 1")));
                }
            }
            watch_signals()?;
            let (topology, x0, system) = start(&self.topology, &self.system)?;
            let models = self.models.iter().map(|path| load(path, &self.precision)).collect::<Result<Vec<_>>>()?;
            models.iter().try_for_each(|model| require_order(&self.topology, &topology, model.as_ref()))?;
            let temperatures = self.temperatures(&models)?;
            let at = |(i, model)| temperatures.get(i).map_or(Ok(Arc::clone(model)), |&kelvin| follow(model, kelvin));
            let models = models.iter().enumerate().map(at).collect::<Result<Vec<_>>>()?;
            let pairs = models.iter().zip(&temperatures);
            pairs.for_each(|(model, &kelvin)| warn_of_temperature(model.as_ref(), kelvin, "exchanges"));
            if self.output.len() > models.len() {
                return Err(Error::invalid(format!(
                    "{} trajectories for {} temperatures: --output takes at most one file per temperature",
                    self.output.len(),
                    models.len()
                )));
            }
            let given = || [&self.topology, &self.system].into_iter().chain(&self.models);
            for (i, path) in self.output.iter().enumerate() {
                check_apart(path, given().chain(&self.checkpoint).chain(&self.output[..i]))?;
                trajectory::check(path, x0.len(), Some(&topology))?;
            }
            let kept = self.checkpoint.as_ref().map_or(self.output.len(), |_| models.len());
            tell_of_memory(kept as u64 * self.exchanges, system.n_particles());
            let dynamics = self.dynamics.at(temperatures[0]);
            let mut replicas = ExchangingReplicas::new(&system, &dynamics, &models, &temperatures, self.interval)?;
            let identity = self.identity(&models, &temperatures)?;
            let asked = ("exchanges", self.exchanges);
            let before = earlier(self.checkpoint.as_deref(), RUN, &identity, asked, |saved: &Saved| saved.done)?;
            let mut saved = match before {
                Some(before) => {
                    replicas.go_on_from(&before.replicas)?;
                    if before.equilibrated < self.equilibrate {
                        eprintln!("resuming after {} equilibration exchanges", before.equilibrated);
                    }
                    before
                }
                None => {
                    if let Some(path) = &self.checkpoint {
                        check_apart(path, given())?;
                        check_writable(path)?;
                    }
                    replicas.start(&x0)?;
                    let records = models.iter().map(|_| Record::default()).collect();
                    Saved { equilibrated: 0, done: 0, replicas: ReplicasState::default(), records }
                }
            };
            // writes every file that can be written, with the frames before a failure
            let write = |records: &[Record]| -> Result<()> {
                let outputs = self.output.iter().zip(records).zip(&temperatures);
                let outputs = outputs.filter(|((_, record), _)| record.n() > 0);
                let written: Vec<Result<()>> =
                    outputs.map(|((path, record), &t)| record.write(path, &topology, &self.dynamics.at(t))).collect();
                written.into_iter().collect()
            };
            let keep = |replicas: &mut ExchangingReplicas, saved: &mut Saved| -> Result<()> {
                let Some(path) = &self.checkpoint else { return Ok(()) };
                saved.replicas = replicas.state()?;
                checkpoint::save_run(path, RUN, &identity, saved)
            };
            let mut kept = Kept::of(&self.output);
            let run = self.record_run(&mut replicas, &mut saved, &mut |replicas, saved| {
                kept.when_due(|| write(&saved.records).and(keep(replicas, saved)))
            });
            let written = write(&saved.records);
            run?;
            let written = written.and(keep(&mut replicas, &mut saved));
            if let Err(interrupted) = require_frames(&saved.records[0], self.exchanges, self.checkpoint.as_deref()) {
                return written.and(Err(interrupted));
            }
            // the report is printed even if the disk is full by now
            self.report(&replicas, &saved.records, &temperatures);
            written.and(require_whole(saved.done, self.exchanges, "exchanges"))
        }

        /// Identity of the run: everything that changes its results, except the number of exchanges.
        fn identity(&self, models: &[Arc<dyn Model>], temperatures: &[f64]) -> Result<Identity> {
            let run = Identity::default().with_content("file for --topology", hash_of(&self.topology)?);
            let mut run = run.with_content("file for --system", hash_of(&self.system)?);
            for (i, (model, kelvin)) in models.iter().zip(temperatures).enumerate() {
                run = run.with_content(&format!("model {}", i + 1), model.hash());
                run = run.with(&format!("temperature {}", i + 1), kelvin);
            }
            let run = self.precision.identify(self.dynamics.identify(run));
            Ok(run.with("--interval", self.interval).with("--equilibrate", self.equilibrate))
        }

        fn temperatures(&self, models: &[Arc<dyn Model>]) -> Result<Vec<f64>> {
            match &self.temperatures {
                Some(given) => Ok(given.clone()),
                None => models.iter().map(|model| temperature(None, model.as_ref())).collect(),
            }
        }

        /// Runs the exchanges and records those after the equilibration; `after` gets replicas and records after each.
        fn record_run(
            &self,
            replicas: &mut ExchangingReplicas,
            saved: &mut Saved,
            after: &mut dyn FnMut(&mut ExchangingReplicas, &mut Saved),
        ) -> Result<()> {
            let steps = |done: u64| done * self.interval + 1..=(done + 1) * self.interval;
            let mut progress = Progress::new(self.equilibrate, "equilibration exchanges");
            while saved.equilibrated < self.equilibrate && !interrupted() {
                replicas.iterate().map_err(|e| failed(e, steps(saved.equilibrated)))?;
                saved.equilibrated += 1;
                after(replicas, saved);
                progress.show(saved.equilibrated, String::new());
            }
            progress.end();
            let mut progress = Progress::new(self.exchanges, "exchanges");
            while saved.done < self.exchanges && !interrupted() {
                replicas.iterate().map_err(|e| failed(e, steps(saved.done)))?;
                saved.done += 1;
                for (i, (record, simulation)) in saved.records.iter_mut().zip(replicas.simulations()).enumerate() {
                    let keeps_positions = self.checkpoint.is_some() || i < self.output.len();
                    record.take(simulation, saved.done * self.interval, keeps_positions)?;
                }
                after(replicas, saved);
                let accepted: Vec<String> =
                    replicas.statistics().map(|s| format!("{:.0} %", 100.0 * s.acceptance())).collect();
                progress.show(saved.done, format!("accepted {}", accepted.join(", ")));
            }
            progress.end();
            Ok(())
        }

        fn report(&self, replicas: &ExchangingReplicas, records: &[Record], temperatures: &[f64]) {
            let mut ensembles: Vec<Value> = Vec::new();
            for (record, kelvin) in records.iter().zip(temperatures) {
                let mut ensemble = json!({ "temperature": kelvin });
                if let Some(means) = record.means() {
                    add_means(&mut ensemble, &means);
                    if !self.json {
                        println!("{kelvin} K: {}", show_means(&means));
                    }
                }
                ensembles.push(ensemble);
            }
            if ensembles.iter().any(|ensemble| ensemble.get("u_mean").is_none()) {
                let n = records[0].n();
                eprintln!("modejump: too few frames for mean energies and temperatures ({n}); use more --exchanges");
            }
            let mut pairs: Vec<Value> = Vec::new();
            for (s, kelvin) in replicas.statistics().zip(temperatures.windows(2)) {
                pairs.push(json!({ "temperatures": kelvin, "attempts": s.attempts(), "acceptance": s.acceptance() }));
                if !self.json {
                    let (a, b, accepted) = (kelvin[0], kelvin[1], 100.0 * s.acceptance());
                    println!("{a} K and {b} K: {} exchanges attempted, {accepted:.1} % accepted", s.attempts());
                }
            }
            if self.json {
                println!("{}", json!({ "ensembles": ensembles, "exchanges": pairs }));
            }
        }
    }
}
