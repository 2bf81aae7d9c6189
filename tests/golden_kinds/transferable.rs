//! Transferable TarFlow and Prose of transferable-samplers: peptides of different lengths, padded in the files but not
//! here.

use super::tarflow::{compare_training, tolerance};
use super::{error, Found, Golden};
use modejump::coordinates::peptide::{AtomOrder, Encoding, Peptide};
use modejump::coordinates::Topology;
use modejump::density::{Density, Evaluation};
use modejump::io::model_file::Tensor;
use modejump::models::network::Trainable;
use modejump::models::tarflow::format::{of_transferable_checkpoint, Unsaid};
use modejump::models::tarflow::{transferable, PeptideConfig, Scale, TarFlow, TarNetwork};
use modejump::models::{Flow, ModelCard};
use modejump::nn::{Real, Tape};
use modejump::train::likelihood::negative_log_likelihood_of_all;
use serde_json::Value;
use std::path::Path;

pub fn check(stem: &Path) -> Found {
    match stem.file_name().is_some_and(|name| name == "io_f32") {
        true => Check::<f32>::new(stem).run(stem),
        false => Check::<f64>::new(stem).run(stem),
    }
}

struct Check<R> {
    golden: Golden,
    config: PeptideConfig,
    parameters: Vec<R>,
}

/// The peptide of one configuration in the file: its encoding and its orders, without the padding.
fn peptide(golden: &Golden, config: &PeptideConfig, group: &str, row: usize) -> (Encoding, Vec<Vec<u32>>) {
    let numbers = |name: &str| -> Vec<u32> {
        let tensor = golden.tensor(&format!("{group}_{name}"));
        let width = tensor.shape[1];
        tensor.data[row * width..(row + 1) * width].iter().map(|&v| v as u32).collect()
    };
    let present = |name: &str| numbers(name).into_iter().filter(|&v| v > 0).collect::<Vec<u32>>();
    let encoding = Encoding {
        atom_types: present("enc.atom_type"),
        residue_types: present("enc.aa_type"),
        residue_positions: present("enc.aa_pos"),
        n_residues: numbers("enc.seq_len")[0],
    };
    let atoms = encoding.atom_types.len() as u32;
    // an order ends with the padding
    let order = |order: &AtomOrder| numbers(&format!("perm.{order}")).into_iter().filter(|&k| k < atoms).collect();
    (encoding, config.orders.iter().map(order).collect())
}

impl<R: Real> Check<R> {
    fn new(stem: &Path) -> Check<R> {
        let json = stem.with_file_name("config.json");
        let golden = Golden::open_with(stem, &json);
        let weights = Golden::open_with(&stem.with_file_name("state_f32"), &json).tensors;
        let keys = golden.config["permutation_keys"].as_array().expect("permutation_keys").iter();
        let orders = keys.map(|key| key.as_str().unwrap_or_default().parse().unwrap_or_else(|e| panic!("{e}")));
        let unsaid = Unsaid {
            head_size: golden.config["head_dim"].as_u64().expect("head_dim") as usize,
            orders: Some(orders.collect()),
            base: golden.config["cond"]["sinusoid_div_value"].as_f64().expect("sinusoid_div_value"),
        };
        let (config, tensors) = of_transferable_checkpoint(weights, &unsaid).unwrap_or_else(|e| panic!("{e}"));
        let group = golden.tensors.keys().find_map(|name| name.strip_suffix("_enc.atom_type")).expect("an encoding");
        let (encoding, orders) = peptide(&golden, &config, group, 0);
        let network = TarNetwork::of_encoding(&config, encoding, &orders).unwrap_or_else(|e| panic!("{e}"));
        let parameters = network.layout().read(&tensors).unwrap_or_else(|e| panic!("{e}"));
        Check { golden, config, parameters }
    }

    fn flow(&self, group: &str, row: usize) -> TarFlow<R> {
        let (encoding, orders) = peptide(&self.golden, &self.config, group, row);
        let network = TarNetwork::of_encoding(&self.config, encoding, &orders).unwrap_or_else(|e| panic!("{e}"));
        let atoms = network.dimension() / 3;
        let config = transferable::Config {
            network: self.config.clone(),
            units_per_nm: 1.0,
            noisy_centroid: false,
            stereocentres: vec![],
        };
        let card = ModelCard::of_cartesian(config, 3 * atoms);
        let scale = Scale { units_per_nm: 1.0, centroid: None };
        TarFlow::of_network(network, self.parameters.clone(), scale, card).unwrap_or_else(|e| panic!("{e}"))
    }

    fn run(&self, stem: &Path) -> Found {
        let mut found = self.topologies(stem);
        if self.golden.tensors.contains_key("pad_x") {
            found.extend(self.ragged(stem));
        }
        for name in self.golden.tensors.keys().filter_map(|name| name.strip_suffix("_rev_x")) {
            found.extend(self.samples(name));
        }
        assert!(!found.is_empty(), "{}: neither pad_x nor …_rev_x", stem.display());
        found
    }

    /// Checks rows of different peptides, each with its own network.
    fn ragged(&self, stem: &Path) -> Found {
        let golden = &self.golden;
        let (x, rows) = (golden.tensor("pad_x"), golden.tensor("pad_x").shape[0]);
        let row_of = |tensor: &'_ Tensor, row: usize, d: usize| -> Vec<f64> {
            let width = tensor.data.len() / rows;
            tensor.data[row * width..][..d].to_vec()
        };
        let (of_x, of_log) = tolerance::<R>();
        let [mut blocks, mut z_error, mut log_det_error, mut log_q_error, mut gradient_error] = [0.0f64; 5];
        let mut molecules = Vec::new();
        for row in 0..rows {
            let flow = self.flow("pad", row);
            let d = flow.dimension();
            let expected = |name: &str| row_of(golden.tensor(name), row, d);
            let x = row_of(x, row, d);
            let narrow: Vec<R> = x.iter().map(|&v| R::from_f64(v)).collect();
            let mut tape = Tape::default();
            let recorded = flow.network().record(flow.parameters(), &mut tape, &narrow);
            for (b, &var) in recorded.after.iter().enumerate() {
                let values: Vec<f64> = tape.value(var).iter().map(|v| v.to_f64()).collect();
                blocks = blocks.max(error(&values, &expected(&format!("pad_block{b}_out"))));
            }
            let (mut z, mut log_det, mut log_q) = (vec![0.0; d], [0.0], [Evaluation::inside(0.0)]);
            flow.encode(&x, &mut z, &mut log_det, &mut log_q).unwrap();
            z_error = z_error.max(error(&z, &expected("pad_z")));
            log_det_error = log_det_error.max((-log_det[0] - golden.get("pad_logdet_sum")[row]).abs());
            log_q_error = log_q_error.max((log_q[0].log_density - golden.get("pad_log_q")[row]).abs());
            let mut gradient = vec![0.0; d];
            flow.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap();
            if golden.tensors.contains_key("pad_proposal_energy_grad") {
                gradient.iter_mut().for_each(|g| *g = -*g);
                gradient_error = gradient_error.max(error(&gradient, &expected("pad_proposal_energy_grad")));
            }
            molecules.push((flow, x));
        }
        let mut found: Found = vec![
            ("blocks".into(), blocks, of_x),
            ("z".into(), z_error, of_x),
            ("log-det".into(), log_det_error, of_log),
            ("log q".into(), log_q_error, of_log),
        ];
        if golden.tensors.contains_key("pad_proposal_energy_grad") {
            let of_gradient = if R::NAME == "f64" { 1e-9 } else { 1e-4 };
            found.push(("gradient".into(), gradient_error, of_gradient));
        }
        let path = stem.with_file_name(format!("train_grads_{}", R::NAME));
        if path.with_extension("safetensors").exists() {
            let mut gradient = vec![R::default(); self.parameters.len()];
            let parts: Vec<_> = molecules.iter().map(|(flow, x)| (flow.network(), x.as_slice())).collect();
            let loss = negative_log_likelihood_of_all(&parts, &self.parameters, &mut gradient);
            found.extend(compare_training(&Golden::open_alone(&path), parts[0].0, loss, &gradient));
        }
        found
    }

    /// Checks samples of one peptide.
    fn samples(&self, name: &str) -> Found {
        let get = |what: &str| self.golden.get(&format!("{name}_{what}"));
        let flow = self.flow(name, 0);
        let z = get("z_in");
        let n = z.len() / flow.dimension();
        let (mut x, mut back) = (vec![0.0; z.len()], vec![0.0; z.len()]);
        let (mut there, mut here) = (vec![0.0; n], vec![0.0; n]);
        let (mut log_q, mut log_q_back) = (vec![Evaluation::inside(0.0); n], vec![Evaluation::inside(0.0); n]);
        flow.generate(z, &mut x, &mut there, &mut log_q).unwrap();
        flow.encode(&x, &mut back, &mut here, &mut log_q_back).unwrap();
        let of_x_to_z: Vec<f64> = here.iter().map(|v| -v).collect();
        let values = |log_q: Vec<Evaluation>| log_q.iter().map(|e| e.log_density).collect::<Vec<f64>>();
        let (of_x, of_log) = tolerance::<R>();
        vec![
            (format!("{name} x"), error(&x, get("rev_x")), of_x),
            (format!("{name} z again"), error(&back, get("roundtrip_z")), of_x),
            (format!("{name} log-det"), error(&of_x_to_z, get("fwd_logdet_sum")), of_log),
            (format!("{name} log q of samples"), error(&values(log_q), get("rev_log_q")), of_log),
            (format!("{name} log q"), error(&values(log_q_back), get("rev_log_q")), of_log),
        ]
    }

    /// Counts differing encodings and orders of the peptides in `topologies.json`, if that file exists.
    fn topologies(&self, stem: &Path) -> Found {
        let Ok(text) = std::fs::read_to_string(stem.with_file_name("topologies.json")) else { return Found::new() };
        let peptides: Value = serde_json::from_str(&text).expect("topologies.json");
        let numbers = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).expect("numbers") };
        let (mut encodings, mut orders) = (0, 0);
        for peptide in peptides.as_object().expect("peptides").values() {
            let mut topology = Topology::default();
            let places = numbers(&peptide["encodings"]["aa_pos"]);
            for (atom, place) in peptide["atoms"].as_array().expect("atoms").iter().zip(&places) {
                let [residue, name] = [0, 1].map(|k| atom[k].as_str().expect("a name"));
                topology.names.push(name.into());
                topology.elements.push(name[..1].into());
                topology.residues.push(format!("{residue}{place}"));
            }
            let found = Peptide::of(&topology).unwrap_or_else(|e| panic!("{e}"));
            let Encoding { atom_types, residue_types, residue_positions, n_residues } = &found.encoding;
            for (key, own) in [
                ("atom_type", atom_types),
                ("aa_type", residue_types),
                ("aa_pos", residue_positions),
                ("seq_len", &vec![*n_residues]),
            ] {
                encodings += usize::from(numbers(&peptide["encodings"][key]) != *own);
            }
            for (key, order) in peptide["permutations"].as_object().expect("permutations") {
                let own = found.order(key.parse().unwrap_or_else(|e| panic!("{e}")));
                orders += usize::from(own != numbers(order));
            }
        }
        vec![("encodings".into(), encodings as f64, 0.0), ("orders".into(), orders as f64, 0.0)]
    }
}
