//! `modejump convert`

use clap::Args;
use modejump::coordinates::Topology;
use modejump::io::model_file::{self, Tensor};
use modejump::io::pytorch;
use modejump::models::coupling::{bgflow, CouplingFlow};
use modejump::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Convert {
    /// Checkpoint of another program: safetensors or PyTorch (.pt, .pth, .ckpt; read as data, nothing in it is executed)
    checkpoint: PathBuf,
    /// What made it; known: bgflow (internal-coordinate spline generators and RealNVPs of bgflow with nflows)
    #[arg(long)]
    kind: String,
    /// The model file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Configuration (JSON): what the checkpoint does not say, such as z_matrix, n_bins, enable_identity_init
    #[arg(long)]
    config: Option<PathBuf>,
    /// Topology (PDB, atoms in the model's order): lets moves check atoms by name
    #[arg(long)]
    topology: Option<PathBuf>,
    /// Temperature that the model was trained for, K
    #[arg(long)]
    temperature: Option<f64>,
    /// Which of several networks in the checkpoint, such as `state_dict.flow.`
    #[arg(long)]
    prefix: Option<String>,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        match self.kind.as_str() {
            "bgflow" => self.bgflow(),
            other => Err(Error::invalid(format!("--kind {other} is not known; known kinds: bgflow"))),
        }
    }

    fn bgflow(&self) -> Result<()> {
        if let Some(t) = self.temperature.filter(|t| !(*t > 0.0 && t.is_finite())) {
            return Err(Error::invalid(format!("--temperature {t}: a positive number of kelvin is needed")));
        }
        let bytes = std::fs::read(&self.checkpoint).map_err(|e| Error::io(&self.checkpoint, e))?;
        let mut tensors = self.select(read_any(&self.checkpoint, &bytes)?)?;
        let config = self.config()?;
        add_constraints(&mut tensors, &config)?;
        let topology =
            self.topology.as_ref().map(|path| Topology::from_pdb(path)).transpose()?.map(|(topology, _)| topology);
        let mut flow = bgflow::convert(&tensors, &config, topology)
            .map_err(|e| Error::file(&self.checkpoint, format!("as a bgflow checkpoint: {e}")))?;
        let card = flow.card_mut();
        card.temperature = self.temperature;
        let file = self.checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        card.provenance.insert("source".into(), format!("{file} ({})", model_file::hash(&bytes)));
        card.provenance.insert("converted_by".into(), format!("modejump {}", env!("CARGO_PKG_VERSION")));
        save(flow, &self.output)?;
        if self.temperature.is_none() {
            eprintln!("note: the model's temperature is not known; --temperature records it");
        }
        if self.topology.is_none() && config.get("z_matrix").is_some() {
            eprintln!("note: atom names are not known; with --topology moves can check the order of atoms");
        }
        Ok(())
    }

    /// The configuration with everything that changes the density; an error lists what is missing.
    fn config(&self) -> Result<Value> {
        let config = match &self.config {
            None => Value::Object(Default::default()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
                serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?
            }
        };
        const GENERATOR: [(&str, &str); 4] = [
            ("z_matrix", "rows of atom indices as bgflow takes them, the frame's with −1"),
            ("enable_identity_init", "true or false; nflows' option, changes the density"),
            ("n_bins", "bins per spline"),
            ("activation", "of the networks: silu, relu or tanh"),
        ];
        const REALNVP: [(&str, &str); 2] =
            [("dim", "dimension of x"), ("preserve_volume", "true or false; changes the density")];
        let has = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
        let missing = |needed: &[(&str, &str)]| {
            let absent = needed.iter().filter(|(key, _)| !has(key));
            absent.map(|(key, what)| format!("\n  {key}: {what}")).collect::<String>()
        };
        let (for_generator, for_realnvp) = (missing(&GENERATOR), missing(&REALNVP));
        let place = match &self.config {
            Some(path) => format!("{} lacks", path.display()),
            None => "the checkpoint does not say all of its density; give --config FILE.json with".to_string(),
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

    /// The tensors of one flow without their prefix: those named PREFIX`_blocks.…`, and the constrained bonds beside them.
    fn select(&self, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        const MARK: &str = "_blocks.";
        let prefix_of = |name: &String| match name.split_once(MARK) {
            Some((prefix, _)) if prefix.is_empty() || prefix.ends_with('.') => Some(prefix.to_string()),
            _ => None,
        };
        let found: BTreeSet<String> = tensors.keys().filter_map(prefix_of).collect();
        let list = |names: &[&str]| names.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
        let names: Vec<&str> = found.iter().map(String::as_str).collect();
        let prefix = match (&self.prefix, &names[..]) {
            (Some(given), _) if found.contains(given) => given.as_str(),
            (Some(given), _) => {
                let reason = format!("no flow with the prefix `{given}`; there are: {}", list(&names));
                return Err(Error::file(&self.checkpoint, reason));
            }
            (None, [only]) => only,
            (None, []) => {
                let some: Vec<&str> = tensors.keys().take(5).map(String::as_str).collect();
                let reason = format!("no tensors `_blocks.…`: not a bgflow flow. It holds {} …", list(&some));
                return Err(Error::file(&self.checkpoint, reason));
            }
            (None, several) => {
                let reason = format!("several flows; choose with --prefix: {}", list(several));
                return Err(Error::file(&self.checkpoint, reason));
            }
        };
        let strip = |name: String| match name.strip_prefix(prefix) {
            Some(rest) if rest.starts_with(MARK) || rest.starts_with("constrained_bond_") => Some(rest.to_string()),
            _ => name.starts_with("constrained_bond_").then_some(name),
        };
        Ok(tensors.into_iter().filter_map(|(name, tensor)| Some((strip(name)?, tensor))).collect())
    }
}

/// Constrained bonds may stand in the configuration: `constrained_bond_idx` and `constrained_bond_len` (nm).
fn add_constraints(tensors: &mut BTreeMap<String, Tensor>, config: &Value) -> Result<()> {
    for key in ["constrained_bond_idx", "constrained_bond_len"] {
        let Some(values) = config.get(key) else { continue };
        let data: Vec<f64> =
            serde_json::from_value(values.clone()).map_err(|e| Error::invalid(format!("configuration, {key}: {e}")))?;
        tensors.entry(key.to_string()).or_insert(Tensor { shape: vec![data.len()], data });
    }
    Ok(())
}

/// Tensors of a safetensors or PyTorch file, told apart by their first bytes.
pub fn read_any(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let name = path.display().to_string();
    let pytorch_name = path.extension().is_some_and(|e| e == "pt" || e == "pth" || e == "ckpt");
    match bytes.starts_with(&pytorch::MAGIC) || pytorch_name {
        true => pytorch::read_tensors(&name, bytes),
        false => Ok(model_file::read_tensors(&name, bytes)?.0),
    }
}

/// Stores single precision where that loses nothing.
fn save(flow: CouplingFlow<f64>, path: &Path) -> Result<()> {
    match flow.parameters().iter().all(|&p| f64::from(p as f32) == p) {
        true => flow.cast::<f32>()?.save(path),
        false => flow.save(path),
    }
}
