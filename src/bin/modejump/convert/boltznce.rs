//! `--kind boltznce-gvp`.

use super::{fits_f32, read_any, Convert, Tensors};
use modejump::coordinates::chirality::stereocentres;
use modejump::coordinates::Topology;
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::gvp_flow::{boltznce, Config, GvpConfig};
use modejump::ode::Method;
use modejump::{Error, Result};
use serde_json::Value;

/// The tensor that shows a vector field.
const MARK: &str = "initial_embedding.0.weight";
/// Classes of the 22 atoms of alanine dipeptide in BoltzNCE's data set (ACE: CH3 first), and their elements.
const AD2: [usize; 22] = [0, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10, 12, 12, 12, 14, 15, 16, 17, 18, 20, 20, 20];
const AD2_ELEMENTS: &str = "CHHHCONHCHCHHHCONHCHHH";
/// Where BoltzNCE ends the integration for alanine dipeptide, and always for endpoint models.
const LAST_TIME: f64 = 1e-3;
const NOTICE: &str = "BoltzNCE, https://github.com/RishalAggarwal/BoltzNCE. MIT License. Copyright (c) 2025 RishalAggarwal. \
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation \
files (the \"Software\"), to deal in the Software without restriction, including without limitation the rights to use, copy, \
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the \
Software is furnished to do so, subject to the following conditions: The above copyright notice and this permission notice \
shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY \
OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR \
PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER \
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR \
THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

impl Convert {
    pub(super) fn boltznce(&self) -> Result<()> {
        let bytes = self.bytes()?;
        let (tensors, metadata) = read_any(&self.checkpoint, &bytes)?;
        let prefix = self.prefix(&tensors, MARK, "vector field of BoltzNCE")?;
        let strip = |(name, tensor): (String, _)| Some((name.strip_prefix(&prefix)?.to_string(), tensor));
        let tensors: Tensors = tensors.into_iter().filter_map(strip).collect();
        let options = self.options(metadata.get("arch"))?;
        let topology = self.topology()?;

        let as_boltznce = |e: Error| Error::file(&self.checkpoint, format!("as a vector field of BoltzNCE: {e}"));
        let network = boltznce::network(&tensors, &options, features(&options)?).map_err(as_boltznce)?;
        if let Some((topology, _)) = &topology {
            check_topology(topology, &network, &options)?;
        }
        let field = boltznce::field(&tensors, network.clone()).map_err(as_boltznce)?;
        let mut flow = flow(&options)?;
        if let Some((topology, x)) = &topology {
            flow.stereocentres = stereocentres(topology, x);
        }

        let mut card =
            ModelCard::of_cartesian(ModelConfig::GvpFlow(Config { network, flow }), field.config().features.len());
        card.topology = topology.map(|(topology, _)| topology);
        self.complete(&mut card, &bytes);
        card.provenance.insert("converted_from".into(), "boltznce-gvp".into());
        card.provenance.insert("notice".into(), NOTICE.into());
        if let Some(source) = metadata.get("source") {
            card.provenance.insert("checkpoint".into(), source.clone());
        }
        match fits_f32(field.parameters()) {
            true => field.cast::<f32>()?.save(&card, &self.output)?,
            false => field.save(&card, &self.output)?,
        }
        if options.get("tmin").is_none() {
            eprintln!("note: the integration ends at t = {LAST_TIME}, as BoltzNCE's; `tmin` in --config changes that");
        }
        if self.topology.is_none() {
            eprintln!("note: the hands of stereocentres are not known, so samples are of both; --topology gives them");
        }
        Ok(())
    }

    /// The architecture in the checkpoint's metadata together with --config; an error lists what is missing.
    fn options(&self, arch: Option<&String>) -> Result<Value> {
        let arch: Value = match arch {
            None => Value::Object(Default::default()),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| Error::file(&self.checkpoint, format!("metadata `arch`: {e}")))?,
        };
        let mut options = self.config_file()?;
        let into = options.as_object_mut().ok_or_else(|| Error::invalid("--config: not a JSON object"))?;
        for (key, value) in arch.as_object().into_iter().flatten() {
            match into.get(key).filter(|given| !same(given, value)) {
                Some(given) => {
                    let reason = format!("{key}: the checkpoint says {value}, --config says {given}");
                    return Err(Error::file(&self.checkpoint, reason));
                }
                None => into.insert(key.clone(), value.clone()),
            };
        }
        if let Some(scale) = into.get("coord_scale_per_nm").cloned() {
            into.entry("units_per_nm").or_insert(scale);
        }
        let mut missing = boltznce::missing(&options);
        let mut need = |there: bool, what: &str| {
            if !there {
                missing.push(what.to_string());
            }
        };
        let has = |key: &str| options.get(key).is_some();
        need(
            has("features") || options["dataset"] == "ad2",
            "features: per atom the list of its set features; or dataset: \"ad2\" (alanine dipeptide, ACE CH3 first)",
        );
        need(
            options["endpoint"].is_boolean(),
            "endpoint: true if the network gives the data point, false if the velocity",
        );
        need(options["interpolant"].is_string(), "interpolant: \"linear\" or \"trig\"");
        need(options["units_per_nm"].is_number(), "units_per_nm: units of the network per nm (10 for Å)");
        match missing.is_empty() {
            true => Ok(options),
            false => Err(Error::invalid(format!(
                "{} does not say all of its density; give --config FILE.json with\n  {}",
                self.checkpoint.display(),
                missing.join("\n  ")
            ))),
        }
    }
}

/// Equal values; 20 and 20.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// Set features of every atom: a list of lists, or a list of classes.
fn features(options: &Value) -> Result<Vec<Vec<usize>>> {
    let Some(given) = options.get("features") else { return Ok(AD2.map(|class| vec![class]).to_vec()) };
    serde_json::from_value::<Vec<Vec<usize>>>(given.clone())
        .or_else(|_| {
            let classes: Vec<usize> = serde_json::from_value(given.clone())?;
            Ok(classes.into_iter().map(|class| vec![class]).collect())
        })
        .map_err(|e: serde_json::Error| {
            Error::invalid(format!("features: {e}; an index or a list of indices per atom is needed"))
        })
}

fn flow(options: &Value) -> Result<ContinuousConfig> {
    let interpolant = match options["interpolant"].as_str() {
        Some("linear") => Interpolant::Linear,
        Some("trig") => Interpolant::Trigonometric,
        _ => return Err(Error::invalid(format!("interpolant: {}; linear and trig are known", options["interpolant"]))),
    };
    let units_per_nm = options["units_per_nm"].as_f64().filter(|u| *u > 0.0 && u.is_finite());
    let last = options.get("tmin").map_or(Some(LAST_TIME), Value::as_f64).filter(|t| (0.0..1.0).contains(t));
    Ok(ContinuousConfig {
        parametrisation: match options["endpoint"] == true {
            true => Parametrisation::Endpoint,
            false => Parametrisation::Velocity,
        },
        interpolant,
        times: [1.0, last.ok_or_else(|| Error::invalid("tmin: a number from 0 to 1 is needed"))?],
        units_per_nm: units_per_nm.ok_or_else(|| Error::invalid("units_per_nm: a positive number is needed"))?,
        stereocentres: Vec::new(),
        prior: Prior::default(),
        divergence: Divergence::default(),
        solver: Method::default(),
    })
}

/// Atoms with the same features are of one element, and those of alanine dipeptide in its order.
fn check_topology(topology: &Topology, network: &GvpConfig, options: &Value) -> Result<()> {
    let (n, features) = (topology.n_atoms(), &network.features);
    if n != features.len() {
        return Err(Error::invalid(format!("the topology has {n} atoms, the model {}", features.len())));
    }
    for atom in 0..n {
        let element = &topology.elements[atom];
        if options["dataset"] == "ad2" && *element != AD2_ELEMENTS[atom..=atom] {
            let expected = &AD2_ELEMENTS[atom..=atom];
            let label = topology.label(atom);
            return Err(Error::invalid(format!("{label} is {element}, in BoltzNCE's order of ad2 it is {expected}")));
        }
        if let Some(same) = (0..atom).find(|&a| features[a] == features[atom] && topology.elements[a] != *element) {
            let (a, b) = (topology.label(same), topology.label(atom));
            return Err(Error::invalid(format!("{a} and {b} have the same features but other elements")));
        }
    }
    Ok(())
}
