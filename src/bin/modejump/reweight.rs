//! `modejump reweight`: what a generator's importance weights say about the target.

use super::common::{load, PrecisionFlag};
use clap::Args;
use modejump::coordinates::vector::{atom, torsion};
use modejump::density::Evaluation;
use modejump::histogram::on_arc;
use modejump::rng::{Stream, StreamId};
use modejump::{free_energy, weights, Error, Result};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Reweight {
    /// Model file
    model: PathBuf,
    /// OpenMM System (XML) with the model's atoms
    #[arg(long)]
    system: PathBuf,
    /// K; the model's temperature when absent
    #[arg(long)]
    temperature: Option<f64>,
    #[arg(short, long, default_value_t = 20_000)]
    n: usize,
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// State whose free energy against the rest is wanted: from,to in radian of the first backbone φ
    #[arg(long, default_value = "0,2.2", value_delimiter = ',')]
    state: Vec<f64>,
    /// JSON with the summary and the series that `modejump plot` draws
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Reweight {
    pub fn run(self) -> Result<()> {
        let model = load(&self.model, &self.precision)?;
        let temperature = self
            .temperature
            .or(model.card().temperature)
            .ok_or_else(|| Error::invalid("the model file has no temperature; give --temperature"))?;
        let dimension = model.dimension();
        let (mut x, mut log_q) = (vec![0.0; self.n * dimension], vec![Evaluation::inside(0.0); self.n]);
        model.sample(&|row| Stream::new(self.seed, StreamId::Sample, row as u64, 0), &mut x, &mut log_q)?;
        let mut u = vec![0.0; self.n];
        self.energies(temperature, dimension, &x, &mut u)?;
        let log_weight = weights::log_weights(&u, &log_q)?;

        let log_z = weights::log_normaliser(&log_weight)?;
        let mut summary = json!({
            "model": self.model.display().to_string(),
            "temperature": temperature,
            "n": self.n,
            "ess": weights::effective_sample_size(&log_weight)? / self.n as f64,
            "pareto_k": weights::pareto_k(&log_weight)?,
            "acceptance": weights::acceptance(&log_weight),
            "rejected": log_weight.iter().filter(|w| !w.is_finite()).count(),
            "log_z": log_z.value,
            "log_z_stderr": log_z.standard_error,
        });
        // JSON knows no infinities: rejected samples are counted in the summary and left out of the series
        let finite = |values: &[f64]| -> Vec<f64> {
            values.iter().zip(&log_weight).filter(|(_, w)| w.is_finite()).map(|(v, _)| *v).collect()
        };
        let mut series =
            json!({ "name": "generator", "reduced_potential": finite(&u), "log_weight": finite(&log_weight) });
        if let Some([phi, psi]) = model.card().topology.as_ref().and_then(|t| t.phi_psi()) {
            let angles = |atoms: [usize; 4]| -> Vec<f64> {
                let four = |x: &[f64]| atoms.map(|a| atom(x, a));
                x.chunks_exact(dimension).map(four).map(|[a, b, c, d]| torsion(a, b, c, d)).collect()
            };
            let (phi, psi) = (angles(phi), angles(psi));
            let [from, to] = self.state[..] else { return Err(Error::invalid("--state takes two numbers: from,to")) };
            let inside: Vec<Option<bool>> = phi.iter().map(|&a| Some(on_arc(a, from, to))).collect();
            match free_energy::between_states(&log_weight, &inside) {
                Ok(delta_f) => {
                    summary["delta_f_kT"] = json!(delta_f.value);
                    summary["delta_f_stderr"] = json!(delta_f.standard_error);
                }
                // a generator without one of the states is worth a report all the same
                Err(error) => eprintln!("modejump: no free-energy difference: {error}"),
            }
            series["phi"] = json!(finite(&phi));
            series["psi"] = json!(finite(&psi));
        }
        if let Some(path) = &self.output {
            let document = json!({ "summary": summary, "series": [series] });
            modejump::io::write_atomically(path, document.to_string().as_bytes())?;
        }
        self.report(&summary);
        Ok(())
    }

    fn report(&self, s: &serde_json::Value) {
        if self.json {
            println!("{s}");
            return;
        }
        let f = |key: &str| s[key].as_f64().unwrap_or(f64::NAN);
        println!("samples           {}", self.n);
        println!("ESS               {:.1} %", 100.0 * f("ess"));
        println!(
            "Pareto k          {:.2}{}",
            f("pareto_k"),
            if f("pareto_k") > 0.7 { "  (weights are unreliable above 0.7)" } else { "" }
        );
        println!("acceptance        {:.1} % for one fresh proposal in equilibrium", 100.0 * f("acceptance"));
        println!("log Z             {:.4} ± {:.4}", f("log_z"), f("log_z_stderr"));
        if s.get("delta_f_kT").is_some() {
            println!("ΔF(state − rest)  {:.3} ± {:.3} kT", f("delta_f_kT"), f("delta_f_stderr"));
        }
    }

    #[cfg(feature = "openmm")]
    fn energies(&self, temperature: f64, dimension: usize, x: &[f64], u: &mut [f64]) -> Result<()> {
        use modejump::engines::openmm::{OpenMmTarget, System};
        use modejump::target::Target;
        let system = System::from_xml_file(&self.system)?;
        if 3 * system.n_particles() != dimension {
            let message = format!("{} particles, the model has {} atoms", system.n_particles(), dimension / 3);
            return Err(Error::file(&self.system, message));
        }
        OpenMmTarget::new(&system, temperature, super::common::threads())?.reduced_potential(x, u)
    }

    #[cfg(not(feature = "openmm"))]
    fn energies(&self, _: f64, _: usize, _: &[f64], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported("--system needs a build with `--features openmm`".into()))
    }
}
