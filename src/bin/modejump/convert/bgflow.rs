//! `--kind bgflow`.

use super::options::note_unread;
use super::{fits_f32, Checkpoint, Convert, Tensors};
use modejump::coordinates::Topology;
use modejump::io::model_file::Tensor;
use modejump::models::card::ModelConfig;
use modejump::models::coupling::{bgflow, CouplingFlow, Ends, LayerConfig};
use modejump::models::{Model, Precision};
use modejump::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

impl Convert {
    pub(super) fn bgflow(&self) -> Result<()> {
        let (Checkpoint { tensors, unread, .. }, bytes) = self.read()?;
        self.refuse_averages(&tensors)?;
        let mut tensors = self.select(tensors, &unread)?;
        let config = self.bgflow_config()?;
        add_constraints(&mut tensors, &config)?;
        let molecule = self.topology()?;
        if let Some((topology, _)) = &molecule {
            note_order(topology, &config);
        }
        let mut flow = bgflow::convert(&tensors, &config, molecule)
            .map_err(|e| Error::file(&self.checkpoint, format!("could not be read as a bgflow checkpoint: {e}")))?;
        self.complete(flow.card_mut(), &bytes);
        note_torsions(&flow);
        let (bytes, precision) = bytes_of(flow)?;
        self.write(&bytes, precision)?;
        if config.get("z_matrix").is_some() {
            self.note_hands();
        } else if self.topology.is_some() {
            eprintln!("note: a RealNVP does not preserve the handedness of stereocentres");
        }
        Ok(())
    }

    /// The configuration with everything that changes the density; an error lists what is missing.
    fn bgflow_config(&self) -> Result<Value> {
        let config = self.config_file()?;
        const GENERATOR: [(&str, &str); 4] = [
            ("z_matrix", "rows of atom indices as in bgflow, with −1 in those of the frame"),
            ("enable_identity_init", "true or false; option of nflows, changes the density"),
            ("n_bins", "bins per spline"),
            ("activation", "activation function of the networks: silu, relu or tanh"),
        ];
        const REALNVP: [(&str, &str); 5] = [
            ("dim", "dimension of x"),
            ("preserve_volume", "true or false; changes the density"),
            ("final_swap", "true or false; whether the halves of x are also swapped after the last coupling"),
            ("activation", "activation function of the networks that shift: relu, tanh or silu"),
            ("scale_activation", "activation function of the networks that scale"),
        ];
        const OTHERS: [&str; 2] = ["constrained_bond_idx", "constrained_bond_len"];
        let asked_for = GENERATOR.iter().chain(&REALNVP).map(|(key, _)| *key);
        note_unread(&config, &asked_for.chain(OTHERS).collect::<Vec<_>>());
        let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
        let missing = |needed: &[(&str, &str)]| {
            let absent = needed.iter().filter(|(key, _)| !has(key));
            absent.map(|(key, what)| format!("\n  {key}: {what}")).collect::<String>()
        };
        let (for_generator, for_realnvp) = (missing(&GENERATOR), missing(&REALNVP));
        let place = match &self.config {
            Some(path) => format!("{} does not fully define the density; add", path.display()),
            None => "the checkpoint does not fully define its density; use --config FILE.json with".to_string(),
        };
        let reason = match (has("z_matrix"), has("dim")) {
            (true, _) if for_generator.is_empty() => return Ok(config),
            (false, true) if for_realnvp.is_empty() => return Ok(config),
            (true, _) => for_generator,
            (false, true) => for_realnvp,
            (false, false) => {
                format!("\n for a generator in internal coordinates:{for_generator}\n or for a RealNVP:{for_realnvp}")
            }
        };
        Err(Error::invalid(format!("{place}{reason}")))
    }

    /// The tensors of one flow without their prefix: those named PREFIX`_blocks.…`, and the constrained bonds beside
    /// them.
    fn select(&self, tensors: Tensors, unread: &BTreeMap<String, String>) -> Result<Tensors> {
        const MARK: &str = "_blocks.";
        let prefix = self.prefix(&tensors, unread, MARK, "bgflow flow")?;
        self.refuse_other_averages(&tensors, &prefix)?;
        self.refuse_unread(unread, &prefix)?;
        require_prior(&tensors, &prefix).map_err(|e| Error::file(&self.checkpoint, e.to_string()))?;
        let strip = |name: String| match name.strip_prefix(&prefix) {
            Some(rest) if rest.starts_with(MARK) || rest.starts_with("constrained_bond_") => Some(rest.to_string()),
            _ => name.starts_with("constrained_bond_").then_some(name),
        };
        Ok(tensors.into_iter().filter_map(|(name, tensor)| Some((strip(name)?, tensor))).collect())
    }
}

/// Prints a note on which torsions the first coupling is taken to move, which no tensor shows.
fn note_torsions(flow: &CouplingFlow<f64>) {
    let ModelConfig::Coupling(config) = &flow.card().model else { return };
    if let Some(LayerConfig::Spline { transformed, features, ends: Ends::Circular, .. }) = config.layers.first() {
        let (moved, seen) = (transformed.len(), features.periodic.len());
        eprintln!(
            "note: assuming that the first coupling of torsions transforms the first {moved} given the last {seen}; a split by lists of torsions, or \
             one that transforms the last first, has the same tensors but a different density"
        );
    }
}

/// Prints a note if rows of the z-matrix have distances of atoms that are not bonded, as with a topology in another
/// atom order.
fn note_order(topology: &Topology, config: &Value) {
    let rows: Vec<[i64; 4]> =
        config.get("z_matrix").and_then(|rows| serde_json::from_value(rows.clone()).ok()).unwrap_or_default();
    let bonds: Vec<[i64; 2]> = topology.bonds.iter().map(|bond| bond.map(|atom| atom as i64)).collect();
    let is_bond = |i, j| bonds.contains(&[i, j]) || bonds.contains(&[j, i]);
    let to_others: Vec<_> = rows.iter().filter(|row| row[1] >= 0).collect();
    let n = to_others.iter().filter(|row| !is_bond(row[0], row[1])).count();
    if n > 0 && !bonds.is_empty() {
        let rows = to_others.len();
        eprintln!(
            "note: {n} of {rows} rows of z_matrix have the distance between atoms that are not bonded in --topology; check that its atoms are in \
             the model's order"
        );
    }
}

/// Errors: the checkpoint has a prior beside the flow with this prefix, as in bgflow's BoltzmannGenerator, that differs
/// from the prior with which the flow is read.
fn require_prior(tensors: &Tensors, prefix: &str) -> Result<()> {
    let Some(generator) = prefix.strip_suffix("_flow.") else { return Ok(()) };
    let prior = format!("{generator}_prior.");
    for (name, tensor) in tensors.iter().filter(|(name, _)| name.starts_with(&prior)) {
        let expected = match name.rsplit('.').next() {
            Some("_mean" | "_log_diag" | "loc" | "low") => 0.0,
            Some("scale" | "high") => 1.0,
            Some("_rot") => continue, // a rotation has no effect if all variances are equal
            _ => {
                eprintln!("note: {name} is ignored: the prior is assumed to be standard normal, or uniform on [0, 1]");
                continue;
            }
        };
        if let Some(value) = tensor.data.iter().find(|value| **value != expected) {
            return Err(Error::invalid(format!(
                "{name} contains {value}, expected {expected}: the prior must be standard normal, or uniform on [0, 1]"
            )));
        }
    }
    Ok(())
}

/// Adds constrained bonds of the configuration: `constrained_bond_idx` and `constrained_bond_len` (nm). Errors: the
/// checkpoint has different ones.
fn add_constraints(tensors: &mut Tensors, config: &Value) -> Result<()> {
    for key in ["constrained_bond_idx", "constrained_bond_len"] {
        let Some(values) = config.get(key) else { continue };
        let data: Vec<f64> =
            serde_json::from_value(values.clone()).map_err(|e| Error::invalid(format!("configuration, {key}: {e}")))?;
        let there =
            tensors.entry(key.to_string()).or_insert_with(|| Tensor { shape: vec![data.len()], data: data.clone() });
        let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs(); // single precision
        if there.data.len() != data.len() || !there.data.iter().zip(&data).all(same) {
            return Err(Error::invalid(format!(
                "{key}: the checkpoint has {:?}, but --config has {data:?}",
                there.data
            )));
        }
    }
    Ok(())
}

/// The model file, in single precision where that loses nothing.
fn bytes_of(flow: CouplingFlow<f64>) -> Result<(Vec<u8>, Precision)> {
    Ok(match fits_f32(flow.parameters()) {
        true => (flow.cast::<f32>()?.to_bytes()?, Precision::F32),
        false => (flow.to_bytes()?, Precision::F64),
    })
}
