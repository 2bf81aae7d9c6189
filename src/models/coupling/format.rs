//! Tensor names, reading and writing; conversion of bgflow checkpoints.
//!
//! | tensor | shape | layer |
//! |---|---|---|
//! | `layers.N.network.L.weight`, `.bias` | `[out, in]`, `[out]` | spline |
//! | `layers.N.shift.L.…`, `layers.N.scale.L.…`, `layers.N.log_alpha` | as above, `[1]` | affine (scale only with two networks) |
//! | `layers.N.shift` | `[coordinates]` | circular shift |

use super::layers::Layer;
use super::CouplingFlow;
use crate::error::{Error, Result};
use crate::io::model_file::{serialize, Data, ModelFile};
use crate::io::write_atomically;
use crate::nn::{Mlp, Real};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Name, shape and place in the parameter vector of one tensor.
struct Entry {
    name: String,
    shape: Vec<usize>,
    place: Range<usize>,
}

fn network(prefix: &str, mlp: &Mlp, entries: &mut Vec<Entry>) {
    for (l, linear) in mlp.layers.iter().enumerate() {
        let (n_out, n_in) = (linear.n_out, linear.n_in);
        let weight = format!("{prefix}.{l}.weight");
        entries.push(Entry { name: weight, shape: vec![n_out, n_in], place: linear.weight() });
        entries.push(Entry { name: format!("{prefix}.{l}.bias"), shape: vec![n_out], place: linear.bias() });
    }
}

fn layout(layers: &[Layer]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = |part: &str| format!("layers.{i}.{part}");
        match layer {
            Layer::Spline(layer) => network(&name("network"), &layer.conditioner.mlp, &mut entries),
            Layer::Affine(layer) => {
                network(&name("shift"), &layer.shift.mlp, &mut entries);
                if let Some(scale) = &layer.scale {
                    network(&name("scale"), &scale.mlp, &mut entries);
                }
                let place = layer.log_alpha..layer.log_alpha + 1;
                entries.push(Entry { name: name("log_alpha"), shape: vec![1], place });
            }
            Layer::Elementwise(layer) => {
                if let Some(place) = layer.parameters() {
                    entries.push(Entry { name: name("shift"), shape: vec![place.len()], place });
                }
            }
            Layer::Whiten(_) => {}
        }
    }
    entries
}

impl<R: Real> CouplingFlow<R> {
    pub(super) fn read_parameters(&mut self, file: &ModelFile) -> Result<()> {
        let entries = layout(&self.layers);
        file.only(&entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>())?;
        for entry in entries {
            let values = file.tensor(&entry.name, &entry.shape)?;
            self.parameters_mut()[entry.place].iter_mut().zip(values).for_each(|(to, &from)| *to = R::from_f64(from));
        }
        Ok(())
    }

    /// The bytes of the model file; parameters are stored as the type they have here.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let store = |values: &[R]| match R::NAME {
            "f32" => Data::F32(values.iter().map(|v| v.to_f64() as f32).collect()),
            _ => Data::F64(values.iter().map(|v| v.to_f64()).collect()),
        };
        let tensors: BTreeMap<_, _> = layout(&self.layers)
            .into_iter()
            .map(|entry| (entry.name, (entry.shape, store(&self.parameters[entry.place]))))
            .collect();
        serialize(&self.card, &tensors)
    }

    /// Writes the model file; the file that was there is replaced only by a complete one.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.to_bytes()?)
    }
}

/// Checkpoints of bgflow: whole alanine-dipeptide generators and RealNVPs.
pub mod bgflow {
    use super::super::layers::{Ends, LayerConfig};
    use super::super::{CouplingConfig, Features};
    use super::*;
    use crate::coordinates::{CoordinatesConfig, Topology, ZMatrix};
    use crate::io::model_file::Tensor;
    use crate::models::card::ModelCard;
    use crate::nn::Activation;
    use serde_json::Value;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    /// Between the number of a block and the tensors of its marginals.
    const MARGINAL: &str = "._flow._delegate.distribution.";

    /// Tensors of a checkpoint by name, without any prefix.
    pub type Tensors = BTreeMap<String, Tensor>;

    /// Builds the model from a checkpoint's tensors (`_blocks.…`) and its configuration.
    ///
    /// With a `z_matrix` in the configuration: a generator in internal coordinates (torsion couplings, angles given torsions,
    /// bonds given both, truncated-normal marginals); `enable_identity_init` must be given, since it changes the density.
    /// Otherwise a RealNVP of dimension `dim`.
    pub fn convert(tensors: &Tensors, config: &Value, topology: Option<Topology>) -> Result<CouplingFlow<f64>> {
        let tensors: Tensors =
            tensors.iter().map(|(k, v)| (k.strip_prefix("w.").unwrap_or(k).to_string(), v.clone())).collect();
        let checkpoint = Checkpoint { tensors: &tensors, read: RefCell::default() };
        let flow = match config.get("z_matrix") {
            Some(rows) => generator(&checkpoint, config, rows, topology),
            None => realnvp(&checkpoint, config),
        }?;
        checkpoint.require_all_read()?;
        Ok(flow)
    }

    /// What blocks hold beside parameters: numbers that follow from others, and constants of the frame and of constrained bonds.
    fn is_buffer(name: &str) -> bool {
        let name = name.rsplit('.').next().unwrap_or(name);
        name.starts_with("_cdf_") || name.starts_with("_values_")
    }

    struct Checkpoint<'a> {
        tensors: &'a Tensors,
        /// Names of the tensors that have become part of the model.
        read: RefCell<BTreeSet<String>>,
    }

    impl Checkpoint<'_> {
        fn get(&self, name: &str) -> Result<&Tensor> {
            self.read.borrow_mut().insert(name.to_string());
            self.tensors.get(name).ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))
        }

        /// Errors: a tensor of a block that is not part of the model: without it the density is another one.
        fn require_all_read(&self) -> Result<()> {
            let read = self.read.borrow();
            let mut blocks = self.tensors.keys().filter(|name| name.starts_with("_blocks.") && !is_buffer(name));
            match blocks.find(|name| !read.contains(*name)) {
                None => Ok(()),
                Some(name) => Err(Error::invalid(format!(
                    "tensor {name} belongs to a block that is not known here: spline and affine couplings, truncated-normal and uniform \
                     marginals are read"
                ))),
            }
        }

        /// Numbers of the blocks that hold a tensor with this ending.
        fn blocks(&self, ending: &str) -> Vec<usize> {
            let number = |name: &String| name.strip_prefix("_blocks.")?.strip_suffix(ending)?.parse().ok();
            let mut blocks: Vec<usize> = self.tensors.keys().filter_map(number).collect();
            blocks.sort_unstable();
            blocks
        }

        /// The N blocks whose marginals have a tensor of this name, in their order; `what` they are.
        fn marginals<const N: usize>(&self, name: &str, what: &str) -> Result<[usize; N]> {
            let blocks = self.blocks(&format!("{MARGINAL}{name}"));
            let n = blocks.len();
            blocks
                .try_into()
                .map_err(|_| Error::invalid(format!("the checkpoint has {n} blocks with {name}, not {N} {what}")))
        }

        fn marginal(&self, block: usize, name: &str) -> Result<Vec<f64>> {
            Ok(self.get(&format!("_blocks.{block}{MARGINAL}{name}"))?.data.clone())
        }

        /// The one end of all coordinates of a marginal.
        fn bound(&self, block: usize, name: &str) -> Result<f64> {
            match self.marginal(block, name)?[..] {
                [first, ref others @ ..] if others.iter().all(|&other| other == first) => Ok(first),
                [] => Err(Error::invalid(format!("tensor _blocks.{block}{MARGINAL}{name} is empty"))),
                _ => Err(Error::invalid(format!(
                    "tensor _blocks.{block}{MARGINAL}{name}: another bound for each coordinate is not read, only one for all"
                ))),
            }
        }

        /// (input, hidden…, output) of a network of linear layers numbered 0, 2, 4…
        fn sizes(&self, prefix: &str) -> Result<Vec<usize>> {
            let mut sizes = Vec::new();
            while let Some(weight) = self.tensors.get(&format!("{prefix}.{}.weight", 2 * sizes.len().saturating_sub(1)))
            {
                let [n_out, n_in] = weight.shape[..] else {
                    return Err(Error::invalid(format!("{prefix}: a weight is not a matrix")));
                };
                if sizes.is_empty() {
                    sizes.push(n_in);
                }
                sizes.push(n_out);
            }
            match sizes.len() {
                0 | 1 => Err(Error::invalid(format!("the checkpoint has no network {prefix}"))),
                _ => Ok(sizes),
            }
        }

        fn fill(&self, prefix: &str, mlp: &Mlp, parameters: &mut [f64]) -> Result<()> {
            for (l, linear) in mlp.layers.iter().enumerate() {
                for (part, place) in [("weight", linear.weight()), ("bias", linear.bias())] {
                    let name = format!("{prefix}.{}.{part}", 2 * l);
                    let data = &self.get(&name)?.data;
                    if data.len() != place.len() {
                        return Err(Error::invalid(format!(
                            "tensor {name}: {} numbers, not {}",
                            data.len(),
                            place.len()
                        )));
                    }
                    parameters[place].copy_from_slice(data);
                }
            }
            Ok(())
        }
    }

    fn card(config: CouplingConfig, coordinates: CoordinatesConfig, topology: Option<Topology>) -> ModelCard {
        ModelCard {
            topology,
            provenance: BTreeMap::from([("converted_from".to_string(), "bgflow".to_string())]),
            ..ModelCard::of_coupling(config, coordinates)
        }
    }

    fn activation(given: &Value) -> Result<Activation> {
        let name = given.as_str().map(|name| Value::from(name.to_lowercase()));
        name.and_then(|name| serde_json::from_value(name).ok())
            .ok_or_else(|| Error::invalid(format!("activation {given}: \"relu\", \"silu\" and \"tanh\" are known")))
    }

    fn generator(
        checkpoint: &Checkpoint,
        config: &Value,
        rows: &Value,
        topology: Option<Topology>,
    ) -> Result<CouplingFlow<f64>> {
        let rows: Vec<[i64; 4]> =
            serde_json::from_value(rows.clone()).map_err(|e| Error::invalid(format!("z_matrix: {e}")))?;
        let zmatrix = ZMatrix::from_rows_with_frame(&rows, rows.len(), |a| format!("atom {}", a + 1))?;
        let identity_init = config["enable_identity_init"].as_bool().ok_or_else(|| {
            Error::invalid("the configuration must say `enable_identity_init` (true or false): the checkpoint is another density under the other")
        })?;
        let activation = match config.get("activation") {
            None => Activation::Silu,
            Some(given) => activation(given)?,
        };
        let constraints = constraints(checkpoint, &zmatrix)?;
        let (n_rows, n_constraints) = (zmatrix.rows.len(), constraints.len());
        let bonds: Vec<usize> = (0..n_rows + 2 - n_constraints).collect();
        let angles: Vec<usize> = (bonds.len()..bonds.len() + n_rows + 1).collect();
        let torsions: Vec<usize> = (bonds.len() + angles.len()..bonds.len() + angles.len() + n_rows).collect();

        let blocks = checkpoint.blocks(".transformer._params_net.net._layers.0.weight");
        let prefix = |block: usize| format!("_blocks.{block}.transformer._params_net.net._layers");
        let Some((&[for_angles, for_bonds], for_torsions)) = blocks.split_last_chunk::<2>().map(|(a, b)| (b, a)) else {
            return Err(Error::invalid("the checkpoint has fewer than two spline couplings"));
        };
        let bins = match config.get("n_bins") {
            None => 8,
            Some(given) => given
                .as_u64()
                .and_then(|bins| usize::try_from(bins).ok())
                .ok_or_else(|| Error::invalid(format!("n_bins: a positive integer is needed, not {given}")))?,
        };
        let spline = |block: usize, transformed: &[usize], periodic: &[usize], plain: &[usize], ends: Ends| {
            let sizes = checkpoint.sizes(&prefix(block))?;
            Ok::<_, Error>(LayerConfig::Spline {
                transformed: transformed.to_vec(),
                features: Features { periodic: periodic.to_vec(), harmonics: 1, plain: plain.to_vec() },
                ends,
                bins,
                interval: [0.0, 1.0],
                hidden: sizes[1..sizes.len() - 1].to_vec(),
                activation,
                identity_init,
            })
        };
        let mut layers = Vec::new();
        for (turn, &block) in for_torsions.iter().enumerate() {
            let conditions = checkpoint.sizes(&prefix(block))?[0] / 2;
            let split =
                if turn % 2 == 0 { torsions.len().saturating_sub(conditions) } else { conditions.min(torsions.len()) };
            let (first, second) = torsions.split_at(split);
            let (moved, seen) = if turn % 2 == 0 { (first, second) } else { (second, first) };
            layers.push(spline(block, moved, seen, &[], Ends::Circular)?);
        }
        layers.push(spline(for_angles, &angles, &torsions, &[], Ends::Free)?);
        layers.push(spline(for_bonds, &bonds, &torsions, &angles, Ends::Free)?);
        let [of_bonds, of_angles] = checkpoint.marginals("_mu", "truncated-normal marginals, of bonds and angles")?;
        let means = checkpoint.marginal(of_bonds, "_mu")?.len();
        if means != bonds.len() {
            return Err(Error::invalid(format!(
                "the checkpoint has {means} bonds with a distribution, the z_matrix {} and {n_constraints} constant ones: `constrained_bond_idx` \
                 (numbers of the constant bonds: the frame's two are 0 and 1, then the rows of the z_matrix but the frame's) and \
                 `constrained_bond_len` (nm) have to name the others",
                n_rows + 2
            )));
        }
        for (block, transformed) in [(of_bonds, &bonds), (of_angles, &angles)] {
            layers.push(LayerConfig::TruncatedNormal {
                transformed: transformed.clone(),
                mean: checkpoint.marginal(block, "_mu")?,
                sd: checkpoint.marginal(block, "_logsigma")?.into_iter().map(f64::exp).collect(),
                lower: checkpoint.bound(block, "_lower_bound")?,
                upper: checkpoint.bound(block, "_upper_bound")?,
            });
        }
        let [of_torsions] = checkpoint.marginals("low", "uniform marginal, of torsions")?;
        layers.push(LayerConfig::Uniform {
            transformed: torsions.clone(),
            low: checkpoint.marginal(of_torsions, "low")?,
            high: checkpoint.marginal(of_torsions, "high")?,
        });
        let coordinates = CoordinatesConfig::Internal {
            frame: zmatrix.frame,
            rows: zmatrix.rows,
            normalize_angles: true,
            constraints,
            stereocentres: Vec::new(),
            cartesian: Vec::new(),
        };
        let uniform = bonds.iter().chain(&angles).chain(&torsions).copied().collect();
        let mut flow = CouplingFlow::new(card(CouplingConfig { uniform, layers }, coordinates, topology))?;
        let layers = flow.layers.clone();
        let parameters = flow.parameters_mut();
        for (layer, &block) in layers.iter().zip(&blocks) {
            if let Layer::Spline(layer) = layer {
                checkpoint.fill(&prefix(block), &layer.conditioner.mlp, parameters)?;
            }
        }
        Ok(flow)
    }

    /// Constrained bonds: `constrained_bond_idx` counts bgflow's bonds (the frame's two, then the rows').
    fn constraints(checkpoint: &Checkpoint, zmatrix: &ZMatrix) -> Result<Vec<(usize, usize, f64)>> {
        let Some(indices) = checkpoint.tensors.get("constrained_bond_idx") else { return Ok(Vec::new()) };
        let lengths = &checkpoint.get("constrained_bond_len")?.data;
        let [a0, a1, a2] = zmatrix.frame;
        let bonds: Vec<(usize, usize)> =
            [(a1, a0), (a2, a1)].into_iter().chain(zmatrix.rows.iter().map(|r| (r[0], r[1]))).collect();
        if lengths.len() != indices.data.len() {
            return Err(Error::invalid(format!(
                "constrained_bond_len has {} lengths for the {} bonds of constrained_bond_idx",
                lengths.len(),
                indices.data.len()
            )));
        }
        let mut seen = vec![false; bonds.len()];
        let each = indices.data.iter().zip(lengths).map(|(&i, &length)| {
            let place = (0..bonds.len()).find(|&place| place as f64 == i && !seen[place]);
            let place = place.ok_or_else(|| Error::invalid(format!("constrained_bond_idx: bond {i}")))?;
            seen[place] = true;
            Ok((bonds[place].0, bonds[place].1, length))
        });
        each.collect()
    }

    /// Split in halves, then couplings that transform the second half given the first, swapping after each.
    fn realnvp(checkpoint: &Checkpoint, config: &Value) -> Result<CouplingFlow<f64>> {
        let dimension = config["dim"].as_u64().ok_or_else(|| {
            Error::invalid("the configuration needs `z_matrix` (internal-coordinate generator) or `dim` (RealNVP)")
        })? as usize;
        let preserve_volume = config["preserve_volume"].as_bool().ok_or_else(|| {
            Error::invalid("the configuration must say `preserve_volume` (true or false): it changes the density")
        })?;
        for (key, expected) in [("activation", Activation::Relu), ("scale_activation", Activation::Tanh)] {
            if config.get(key).is_some_and(|given| activation(given).ok() != Some(expected)) {
                return Err(Error::invalid(format!(
                    "{key} = {}: a RealNVP of bgflow is read with {expected:?}",
                    config[key]
                )));
            }
        }
        let blocks = checkpoint.blocks(".transformer._log_alpha");
        if blocks.is_empty() {
            return Err(Error::invalid("the checkpoint has no affine coupling (_blocks.N.transformer._log_alpha)"));
        }
        let part = |block: usize, part: &str| format!("_blocks.{block}.transformer._{part}_transformation._layers");
        let sizes = checkpoint.sizes(&part(blocks[0], "shift"))?;
        let both = sizes[0].saturating_add(sizes[sizes.len() - 1]);
        if both != dimension {
            return Err(Error::invalid(format!(
                "dim = {dimension}, but the first network goes between {both} coordinates"
            )));
        }
        let all: Vec<usize> = (0..dimension).collect();
        let halves = all.split_at(dimension / 2);
        let mut layers = Vec::new();
        for (turn, &block) in blocks.iter().enumerate() {
            let (seen, moved) = if turn % 2 == 0 { halves } else { (halves.1, halves.0) };
            let sizes = checkpoint.sizes(&part(block, "shift"))?;
            layers.push(LayerConfig::Affine {
                transformed: moved.to_vec(),
                features: Features { periodic: vec![], harmonics: 1, plain: seen.to_vec() },
                hidden: sizes[1..sizes.len() - 1].to_vec(),
                activation: Activation::Relu,
                scale_activation: Some(Activation::Tanh),
                preserve_volume,
            });
        }
        let config = CouplingConfig { uniform: vec![], layers };
        let mut flow = CouplingFlow::new(card(config, CoordinatesConfig::Cartesian { dimension }, None))?;
        let layers = flow.layers.clone();
        let parameters = flow.parameters_mut();
        for (layer, &block) in layers.iter().zip(&blocks) {
            let Layer::Affine(layer) = layer else { continue };
            checkpoint.fill(&part(block, "shift"), &layer.shift.mlp, parameters)?;
            if let Some(scale) = &layer.scale {
                checkpoint.fill(&part(block, "scale"), &scale.mlp, parameters)?;
            }
            let log_alpha = checkpoint.get(&format!("_blocks.{block}.transformer._log_alpha"))?;
            parameters[layer.log_alpha] = log_alpha.data.first().copied().unwrap_or(-1.0);
        }
        Ok(flow)
    }
}
