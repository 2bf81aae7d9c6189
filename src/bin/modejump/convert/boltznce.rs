//! `--kind boltznce-gvp`.

use super::options::{check_and_note, check_topology, features, lacks, units_per_nm, UNITS};
use super::{fits_f32, Convert};
use modejump::coordinates::chirality::stereocentres;
use modejump::models::card::ModelCard;
use modejump::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::gvp_flow::{boltznce, Config, GvpConfig};
use modejump::models::Precision;
use modejump::ode::Method;
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that identifies a vector field.
const MARK: &str = "initial_embedding.0.weight";
const WHAT: &str = "vector field of BoltzNCE";
/// Classes and elements of the 22 atoms of alanine dipeptide in BoltzNCE's data set (first atom: CH3 of ACE).
pub(super) const AD2: [usize; 22] = [0, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10, 12, 12, 12, 14, 15, 16, 17, 18, 20, 20, 20];
pub(super) const AD2_ELEMENTS: &str = "CHHHCONHCHCHHHCONHCHHH";
/// Time at which BoltzNCE ends the integration for alanine dipeptide, and always for endpoint models.
const LAST_TIME: f64 = 1e-3;
pub(super) const NOTICE: &str = "BoltzNCE, https://github.com/RishalAggarwal/BoltzNCE. MIT License. Copyright (c) 2025 RishalAggarwal. \
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
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        let options = self.options(metadata.get("arch"))?;
        self.require(missing(&options))?;
        let topology = self.topology()?;

        let as_boltznce = |e: Error| Error::file(&self.checkpoint, format!("could not be read as a {WHAT}: {e}"));
        let ad2 = options["dataset"] == "ad2";
        let features = features(&options, "features")?.unwrap_or_else(|| AD2.map(|class| vec![class]).to_vec());
        if ad2 && features != AD2.map(|class| vec![class]) {
            return Err(as_boltznce(Error::invalid(
                "`dataset` is \"ad2\", but `features` does not match it: remove one of them",
            )));
        }
        let network = boltznce::network(&tensors, &options, features).map_err(as_boltznce)?;
        check_and_note(&options, &said(&network), &self.config_file()?, READ).map_err(as_boltznce)?;
        if let Some((topology, _)) = &topology {
            check_topology(topology, &network.features, ad2.then_some(AD2_ELEMENTS))?;
        }
        let field = boltznce::field(&tensors, network.clone()).map_err(as_boltznce)?;
        let mut flow = flow(&options)?;
        if let Some((topology, x)) = &topology {
            flow.stereocentres = stereocentres(topology, x);
        }

        let mut card = ModelCard::of_cartesian(Config { network, flow }, 3 * field.config().features.len());
        card.topology = topology.map(|(topology, _)| topology);
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        card.provenance.insert("notice".into(), NOTICE.into());
        match fits_f32(field.parameters()) {
            true => self.write(&field.cast::<f32>()?.to_bytes(&card)?, Precision::F32)?,
            false => self.write(&field.to_bytes(&card)?, Precision::F64)?,
        }
        if options.get("tmin").is_none() {
            eprintln!(
                "note: the integration ends at t = {LAST_TIME}, as in BoltzNCE; set `tmin` in --config to change it"
            );
        }
        self.note_hands();
        Ok(())
    }
}

/// Keys that --config may have: those that are required, those with only one supported value, and those that the
/// tensors give as well.
const READ: &[&str] = &[
    "dataset",
    "features",
    "endpoint",
    "interpolant",
    "units_per_nm",
    "coord_scale_per_nm",
    "tmin",
    "rbf_dmax",
    "message_norm",
    "coords_range",
    "n_message_gvps",
    "n_update_gvps",
    "n_coord_gvps",
    "use_dst_feats",
    "vector_gating",
    "n_cp_feats",
    "self_conditioning",
    "scalar_activation",
    "units",
];

/// Options that are determined by the tensors.
fn said(network: &GvpConfig) -> Vec<(&'static str, Value)> {
    vec![
        ("n_features", json!(network.n_features)),
        ("n_layers", json!(network.n_layers)),
        ("n_hidden", json!(network.n_scalars)),
        ("n_vec", json!(network.n_vectors)),
        ("rbf_dim", json!(network.rbf_count)),
    ]
}

/// Missing options that a vector field needs, one line each.
fn missing(options: &Value) -> Vec<String> {
    let mut missing = boltznce::missing(options);
    let dataset = options["dataset"] == "ad2";
    missing.extend(lacks(&[
        (
            options.get("features").is_some() || dataset,
            "features: for each atom, the list of its set features; or dataset: \"ad2\" (alanine dipeptide, ACE CH3 first)",
        ),
        (options["endpoint"].is_boolean(), "endpoint: true if the network predicts the data point, false if the velocity"),
        (options["interpolant"].is_string(), "interpolant: \"linear\" or \"trig\""),
        (options["units_per_nm"].is_number(), UNITS),
    ]));
    missing
}

fn flow(options: &Value) -> Result<ContinuousConfig> {
    let interpolant = match options["interpolant"].as_str() {
        Some("linear") => Interpolant::Linear,
        Some("trig") => Interpolant::Trigonometric,
        _ => {
            return Err(Error::invalid(format!(
                "unknown interpolant {}; known interpolants: linear, trig",
                options["interpolant"]
            )))
        }
    };
    let last = options.get("tmin").map_or(Some(LAST_TIME), Value::as_f64).filter(|t| (0.0..1.0).contains(t));
    Ok(ContinuousConfig {
        parametrisation: match options["endpoint"] == true {
            true => Parametrisation::Endpoint,
            false => Parametrisation::Velocity,
        },
        interpolant,
        times: [1.0, last.ok_or_else(|| Error::invalid("tmin: must be at least 0 and less than 1"))?],
        units_per_nm: units_per_nm(options)?,
        stereocentres: Vec::new(),
        prior: Prior::default(),
        divergence: Divergence::default(),
        solver: Method::default(),
    })
}
