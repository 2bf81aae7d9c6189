//! `modejump evaluate`: output of the network of a continuous flow or an energy-based model.

use super::common::{frames_of, load, PrecisionFlag};
use clap::Args;
use modejump::io::model_file::{open_tensors, write_tensors, Data, Tensor};
use modejump::io::{check_apart, check_writable, trajectory, write_atomically};
use modejump::models::continuous::{ContinuousConfig, Parametrisation};
use modejump::models::{EnergyFunction, VectorField};
use modejump::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Evaluate {
    /// Model file with a vector field or an energy
    model: PathBuf,
    /// safetensors with `x` [n][atoms][3] and `t` [n], both in the network's own units; other tensors are ignored
    input: PathBuf,
    /// safetensors (f64). For a vector field: `velocity` [n][atoms][3], the network's output, and `divergence` [n], the
    /// trace of its Jacobian ∂f/∂x over all coordinates; if the output is the end point of the path, also `drift`, the
    /// velocity dx/dt that follows from it, and `drift_divergence`. For an energy: `energy` [n] = log p_t + constant,
    /// and `score` [n][atoms][3], its gradient
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

type Arrays = BTreeMap<String, (Vec<usize>, Data)>;

impl Evaluate {
    pub fn run(self) -> Result<()> {
        trajectory::require_tensors(&self.output, "network outputs")?;
        check_apart(&self.output, [&self.model, &self.input])?;
        check_writable(&self.output)?;
        let model = load(&self.model, &self.precision)?;
        let input = Input::read(&self.input, model.dimension())?;
        let arrays = match (model.field(), model.energy()) {
            (Some(field), _) => input.field(field, model.card().model.flow()),
            (None, Some(energy)) => input.energy(energy),
            (None, None) => {
                let reason =
                    "has neither a vector field nor an energy; use `modejump log-density` to evaluate its density";
                return Err(Error::Model { path: self.model.display().to_string(), reason: reason.into() });
            }
        };
        model.field().map_or(Ok(()), |field| field.failure())?;
        model.energy().map_or(Ok(()), |energy| energy.failure())?;
        write_atomically(&self.output, &write_tensors(&arrays, Default::default())?)?;
        let (output, n) = (self.output.display().to_string(), input.t.len());
        let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
        match self.json {
            true => println!("{}", serde_json::json!({ "output": output, "n": n, "tensors": names })),
            false => println!("{output}: {} of {}", names.join(", "), frames_of(n)),
        }
        Ok(())
    }
}

/// Configurations and times in the network's units.
struct Input {
    t: Vec<f64>,
    x: Vec<f64>,
    shape: Vec<usize>,
}

impl Input {
    /// Errors: a tensor that is missing, of another shape or not finite.
    fn read(path: &Path, dimension: usize) -> Result<Input> {
        let (mut tensors, _) = open_tensors(path)?;
        let mut take = |name: &str| -> Result<Tensor> {
            let absent =
                || Error::file(path, format!("tensor `{name}` is missing; `x` [n][atoms][3] and `t` [n] are required"));
            let tensor = tensors.remove(name).ok_or_else(absent)?;
            match tensor.data.iter().position(|v| !v.is_finite()) {
                Some(i) => Err(Error::file(path, format!("`{name}` contains {} at position {i}", tensor.data[i]))),
                None => Ok(tensor),
            }
        };
        let (x, t) = (take("x")?, take("t")?);
        let (n, atoms) = match x.shape[..] {
            [n, atoms, 3] if 3 * atoms == dimension => (n, atoms),
            _ => {
                let (found, atoms) = (x.shape, dimension / 3);
                return Err(Error::file(path, format!("`x` has shape {found:?}, expected [n, {atoms}, 3]")));
            }
        };
        match t.data.len() == n {
            true => Ok(Input { t: t.data, x: x.data, shape: vec![n, atoms, 3] }),
            false => Err(Error::file(path, format!("`t` has {} values for {n} configurations", t.data.len()))),
        }
    }

    fn per_row(&self, values: Vec<f64>) -> (Vec<usize>, Data) {
        (vec![self.t.len()], Data::F64(values))
    }

    fn per_coordinate(&self, values: Vec<f64>) -> (Vec<usize>, Data) {
        (self.shape.clone(), Data::F64(values))
    }

    fn field(&self, field: &dyn VectorField, config: Option<&ContinuousConfig>) -> Arrays {
        let (mut f, mut divergence) = (vec![0.0; self.x.len()], vec![0.0; self.t.len()]);
        field.evaluate_divergence(&self.t, &self.x, &mut f, &mut divergence);
        let mut arrays = Arrays::new();
        if let Some(config) = config.filter(|c| c.parametrisation == Parametrisation::Endpoint) {
            let (drift, of_drift) = self.drift(config, &f, &divergence);
            arrays.insert("drift".into(), self.per_coordinate(drift));
            arrays.insert("drift_divergence".into(), self.per_row(of_drift));
        }
        arrays.insert("velocity".into(), self.per_coordinate(f));
        arrays.insert("divergence".into(), self.per_row(divergence));
        arrays
    }

    /// dx/dt = a x + b f and its divergence; not finite at the end of the path.
    fn drift(&self, config: &ContinuousConfig, f: &[f64], divergence: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.x.len() / self.t.len().max(1);
        let at_end = self.t.iter().filter(|&&t| config.schedule(t).sigma == 0.0).count();
        if at_end > 0 {
            eprintln!("note: `drift` is not finite at the end of the path ({at_end} rows)");
        }
        let factors: Vec<(f64, f64)> = self.t.iter().map(|&t| config.schedule(t).by_endpoint()).collect();
        let drift = self.x.iter().zip(f).enumerate().map(|(i, (x, f))| factors[i / d].0 * x + factors[i / d].1 * f);
        let of_drift = factors.iter().zip(divergence).map(|((a, b), divergence)| a * d as f64 + b * divergence);
        (drift.collect(), of_drift.collect())
    }

    fn energy(&self, function: &dyn EnergyFunction) -> Arrays {
        let (mut energy, mut score) = (vec![0.0; self.t.len()], vec![0.0; self.x.len()]);
        function.energy_score(&self.t, &self.x, &mut energy, &mut score);
        Arrays::from([("energy".to_string(), self.per_row(energy)), ("score".to_string(), self.per_coordinate(score))])
    }
}
