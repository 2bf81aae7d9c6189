//! `modejump convert`: one file per kind of checkpoint.

mod averages;
mod bgflow;
mod boltznce;
mod ecnf;
mod graphormer;
mod options;
mod tarflow;
mod transferable;

use clap::Args;
use modejump::coordinates::Topology;
use modejump::io::check_apart;
use modejump::io::model_file::{self, Tensor};
use modejump::io::pytorch;
use modejump::models::ModelCard;
use modejump::{Error, Result};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Convert {
    /// Checkpoint of another program: safetensors or PyTorch (.pt, .pth, .ckpt; read as data, nothing in it is
    /// executed). Or the model file of a transferable model, to bind it to another --topology
    checkpoint: PathBuf,
    /// Program and kind of the checkpoint: bgflow (internal-coordinate spline generators and RealNVPs of bgflow with
    /// nflows), boltznce-gvp and boltznce-graphormer (vector fields and energies of BoltzNCE), ecnf and tarflow
    /// (continuous and autoregressive flows of transferable-samplers), transferable-tarflow and prose (transferable
    /// flows for all peptides)
    #[arg(long)]
    kind: String,
    /// Model file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Configuration (JSON) with what the checkpoint does not contain, such as z_matrix, n_bins, enable_identity_init
    /// (bgflow); features, endpoint, interpolant, units_per_nm (boltznce-gvp); types, blocks, units_per_nm
    /// (boltznce-graphormer); features, coords_range, std (ecnf); std (tarflow, transferable-tarflow, prose). Without
    /// it an error lists everything that is needed
    #[arg(long)]
    config: Option<PathBuf>,
    /// Topology (PDB, atoms in the model's order): with it moves check atoms by name, and stereocentres get their
    /// handedness
    #[arg(long)]
    topology: Option<PathBuf>,
    /// Standard deviation by which the training data was divided, nm: `std` of --config
    #[arg(long)]
    std: Option<f64>,
    /// Temperature that the model was trained for, K
    #[arg(long)]
    temperature: Option<f64>,
    /// Prefix of the network to convert if the checkpoint has several, such as `state_dict.flow.`
    #[arg(long)]
    prefix: Option<String>,
    /// Convert the weights themselves if the checkpoint also has moving averages (`shadow_params`) of them
    #[arg(long)]
    raw_weights: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

type Tensors = BTreeMap<String, Tensor>;

impl Convert {
    pub fn run(self) -> Result<()> {
        if let Some(t) = self.temperature {
            modejump::target::require_temperature(t)?;
        }
        check_apart(&self.output, [&self.checkpoint].into_iter().chain(&self.config).chain(&self.topology))?;
        match self.kind.as_str() {
            "bgflow" => self.bgflow(),
            "boltznce-gvp" => self.boltznce(),
            "boltznce-graphormer" => self.graphormer(),
            "ecnf" => self.ecnf(),
            "tarflow" => self.tarflow(),
            "transferable-tarflow" | "prose" => self.transferable(),
            other => {
                const KNOWN: &str =
                    "bgflow, boltznce-gvp, boltznce-graphormer, ecnf, tarflow, transferable-tarflow, prose";
                Err(Error::invalid(format!("--kind {other} is not known; known kinds: {KNOWN}")))
            }
        }?;
        self.report()
    }

    /// Reads the model file that was written, and prints a summary of it.
    fn report(&self) -> Result<()> {
        let bytes = modejump::io::read(&self.output)?;
        let name = self.output.display().to_string();
        let file = model_file::read(&name, &bytes)?;
        let parameters: usize = file.tensors.values().map(|tensor| tensor.data.len()).sum();
        let kind = file.card.model.kind();
        match self.json {
            true => println!("{}", json!({ "output": name, "model": kind, "parameters": parameters })),
            false => println!("{name}: {kind}, {parameters} parameters"),
        }
        Ok(())
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        modejump::io::read(&self.checkpoint)
    }

    /// The checkpoint and its bytes. Errors: a file that cannot be read, or is a model file of modejump.
    fn read(&self) -> Result<(Checkpoint, Vec<u8>)> {
        let bytes = self.bytes()?;
        let checkpoint = read_any(&self.checkpoint, &bytes)?;
        match checkpoint.metadata.contains_key(model_file::KEY) {
            true => {
                let reason = "already a modejump model file: there is nothing to convert";
                Err(Error::file(&self.checkpoint, reason))
            }
            false => Ok((checkpoint, bytes)),
        }
    }

    /// Errors: one of these tensors, which are not read, belongs to the network with this prefix.
    fn refuse_unread(&self, unread: &BTreeMap<String, String>, prefix: &str) -> Result<()> {
        match unread.iter().find(|(name, _)| name.starts_with(prefix)) {
            Some((name, reason)) => Err(Error::file(&self.checkpoint, format!("tensor `{name}`: {reason}"))),
            None => Ok(()),
        }
    }

    /// The JSON object of --config, or an empty one, with --std added. Errors: --std contradicts `std` of --config.
    fn config_file(&self) -> Result<Value> {
        let mut options = match &self.config {
            Some(path) => crate::common::read_json(path)?,
            None => json!({}),
        };
        let Some(std) = self.std else { return Ok(options) };
        let Some(into) = options.as_object_mut() else {
            return Err(Error::invalid("--config: expected a JSON object"));
        };
        match into.insert("std".into(), json!(std)).filter(|given| given.as_f64() != Some(std)) {
            Some(given) => {
                Err(Error::invalid(format!("--std {std} does not match `std` of --config, which is {given}")))
            }
            None => Ok(options),
        }
    }

    /// Atoms of --topology and their coordinates `[atoms][3]`, nm.
    fn topology(&self) -> Result<Option<(Topology, Vec<f64>)>> {
        self.topology.as_ref().map(|path| Topology::from_pdb(path)).transpose()
    }

    /// Adds the entries of the card that do not depend on the kind of the model.
    fn complete(&self, card: &mut ModelCard, bytes: &[u8]) {
        card.temperature = self.temperature;
        let file = self.checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        card.provenance.insert("source".into(), format!("{file} ({})", model_file::hash(bytes)));
        card.provenance.insert("converted_by".into(), format!("modejump {}", env!("CARGO_PKG_VERSION")));
        if self.temperature.is_none() {
            eprintln!("note: the model's temperature is unknown; use --temperature to record it");
        }
    }

    /// Prefix of the only network whose tensors are named PREFIX`mark`…, or of the one that --prefix selects; `what`
    /// describes such a network in messages.
    fn prefix(&self, tensors: &Tensors, unread: &BTreeMap<String, String>, mark: &str, what: &str) -> Result<String> {
        let prefix_of = |name: &String| match name.split_once(mark) {
            Some((prefix, _)) if prefix.is_empty() || prefix.ends_with('.') => Some(prefix.to_string()),
            _ => None,
        };
        let found: BTreeSet<String> = tensors.keys().filter_map(prefix_of).collect();
        let list = |names: &[&str]| names.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
        let names: Vec<&str> = found.iter().map(String::as_str).collect();
        let unread = unread.iter().find(|(name, _)| name.contains(mark));
        let reason = match (&self.prefix, &names[..]) {
            (Some(given), _) if found.contains(given) => return Ok(given.clone()),
            (None, [only]) => return Ok(only.to_string()),
            (None, &[weights, averages]) if is_averaging(weights, averages) => {
                let taken = if self.raw_weights { weights } else { averages };
                if !self.raw_weights {
                    eprintln!("note: converting the moving averages of the weights, {averages}…; use --raw-weights to convert the weights themselves");
                }
                return Ok(taken.to_string());
            }
            (Some(given), _) => format!("no {what} with the prefix `{given}`; known prefixes: {}", list(&names)),
            (None, []) if tensors.keys().any(|name| name.contains("_modules.")) => {
                "contains a whole module instead of its tensors: save the module's state_dict()".into()
            }
            (None, []) => match unread {
                Some((name, reason)) => format!("tensor `{name}`: {reason}"),
                None => {
                    let some: Vec<&str> = tensors.keys().take(5).map(String::as_str).collect();
                    format!("no {what} found: expected tensors `{mark}…`, found {} …", list(&some))
                }
            },
            (None, several) => format!("more than one {what} found; choose one with --prefix: {}", list(several)),
        };
        Err(Error::file(&self.checkpoint, reason))
    }
}

/// Whether these prefixes are those of Lightning's WeightAveraging, which stores the averages in place of the weights.
fn is_averaging(weights: &str, averages: &str) -> bool {
    let network = weights.strip_prefix("current_model_state.");
    network.is_some() && network == averages.strip_prefix("state_dict.")
}

/// A safetensors or PyTorch file.
pub struct Checkpoint {
    pub tensors: Tensors,
    /// Metadata of a safetensors file.
    pub metadata: HashMap<String, String>,
    /// Tensors of unsupported kinds, with the reason.
    pub unread: BTreeMap<String, String>,
}

/// Reads a safetensors or PyTorch file, distinguished by their first bytes.
pub fn read_any(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    let name = path.display().to_string();
    let pytorch_name =
        ["pt", "pth", "ckpt"].iter().any(|known| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(known)));
    match (bytes.starts_with(&pytorch::MAGIC), model_file::read_checkpoint(&name, bytes)) {
        (false, Ok((tensors, metadata))) => Ok(Checkpoint { tensors, metadata, unread: BTreeMap::new() }),
        (false, Err(error)) if !pytorch_name => Err(error),
        // a PyTorch file, or neither format, but named like one
        _ => {
            let pytorch::Contents { tensors, unread } = pytorch::read_tensors(&name, bytes)?;
            Ok(Checkpoint { tensors, metadata: HashMap::new(), unread })
        }
    }
}

/// Whether single precision represents all parameters exactly.
fn fits_f32(parameters: &[f64]) -> bool {
    parameters.iter().all(|&p| f64::from(p as f32) == p)
}
