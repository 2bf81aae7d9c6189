//! Conversion of bgflow checkpoints: whole alanine-dipeptide generators and RealNVPs.

use super::layers::{Ends, Layer, LayerConfig};
use super::{CouplingConfig, CouplingFlow, Features};
use crate::coordinates::chirality::stereocentres;
use crate::coordinates::{CoordinatesConfig, Topology, ZMatrix};
use crate::error::{Error, Result};
use crate::io::model_file::Tensor;
use crate::models::card::ModelCard;
use crate::nn::{Activation, Mlp};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Part of a tensor's name between the number of a block and the name in its marginals.
const MARGINAL: &str = "._flow._delegate.distribution.";

/// Tensors of a checkpoint by name, without any prefix.
pub type Tensors = BTreeMap<String, Tensor>;

/// Builds the model from a checkpoint's tensors (`_blocks.…`) and its configuration.
///
/// With a `z_matrix` in the configuration: a generator in internal coordinates (torsion couplings, angles given
/// torsions, bonds given both, truncated-normal marginals); `enable_identity_init` must be given, since it changes the
/// density. Otherwise a RealNVP of dimension `dim`, with `preserve_volume`, `final_swap` and the activations of both
/// networks.
///
/// `molecule`: atoms in the model's order and their coordinates `[atoms][3]` (nm), which define the chirality of a
/// generator's stereocentres. Errors: a missing or unknown option, tensors that are missing, superfluous or of another
/// architecture (named).
pub fn convert(tensors: &Tensors, config: &Value, molecule: Option<(Topology, Vec<f64>)>) -> Result<CouplingFlow<f64>> {
    let tensors: Tensors =
        tensors.iter().map(|(k, v)| (k.strip_prefix("w.").unwrap_or(k).to_string(), v.clone())).collect();
    let checkpoint = Checkpoint { tensors: &tensors, read: RefCell::default() };
    let flow = match config.get("z_matrix") {
        Some(rows) => generator(&checkpoint, config, rows, molecule),
        None => realnvp(&checkpoint, config, molecule.map(|(topology, _)| topology)),
    }?;
    checkpoint.require_all_read()?;
    Ok(flow)
}

/// Whether a tensor is no parameter: derived numbers, and constants of the frame and of constrained bonds.
fn is_buffer(name: &str) -> bool {
    let name = name.rsplit('.').next().unwrap_or(name);
    name.starts_with("_cdf_") || name.starts_with("_values_")
}

struct Checkpoint<'a> {
    tensors: &'a Tensors,
    /// Names of the tensors used in the model.
    read: RefCell<BTreeSet<String>>,
}

impl Checkpoint<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.read.borrow_mut().insert(name.to_string());
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| Error::invalid(format!("the checkpoint has no tensor {name}")))?;
        match tensor.data.iter().any(|value| value.is_nan()) {
            true => Err(Error::invalid(format!("tensor {name} contains NaN"))),
            false => Ok(tensor),
        }
    }

    /// Requires that all tensors were used. Errors: a tensor of a block was not, without which the density would be
    /// another one.
    fn require_all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let mut blocks = self.tensors.keys().filter(|name| name.starts_with("_blocks.") && !is_buffer(name));
        match blocks.find(|name| !read.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!(
                "tensor {name} belongs to an unknown block: only spline and affine couplings, truncated-normal and \
                 uniform marginals are supported"
            ))),
        }
    }

    /// Numbers of the blocks that have a tensor with this suffix.
    fn blocks(&self, ending: &str) -> Vec<usize> {
        let number = |name: &String| name.strip_prefix("_blocks.")?.strip_suffix(ending)?.parse().ok();
        let mut blocks: Vec<usize> = self.tensors.keys().filter_map(number).collect();
        blocks.sort_unstable();
        blocks
    }

    /// The N blocks whose marginals have a tensor of this name, in order; `what` describes them for the error.
    fn marginals<const N: usize>(&self, name: &str, what: &str) -> Result<[usize; N]> {
        let blocks = self.blocks(&format!("{MARGINAL}{name}"));
        let n = blocks.len();
        blocks
            .try_into()
            .map_err(|_| Error::invalid(format!("the checkpoint has {n} blocks with {name}, expected {N} {what}")))
    }

    fn marginal(&self, block: usize, name: &str) -> Result<Vec<f64>> {
        Ok(self.get(&format!("_blocks.{block}{MARGINAL}{name}"))?.data.clone())
    }

    /// The bound shared by all coordinates of a marginal. Errors: it differs between them.
    fn bound(&self, block: usize, name: &str) -> Result<f64> {
        match self.marginal(block, name)?[..] {
            [first, ref others @ ..] if others.iter().all(|&other| other == first) => Ok(first),
            [] => Err(Error::invalid(format!("tensor _blocks.{block}{MARGINAL}{name} is empty"))),
            _ => Err(Error::invalid(format!(
                "tensor _blocks.{block}{MARGINAL}{name}: a separate bound for each coordinate is not supported, only \
                 one bound for all"
            ))),
        }
    }

    /// Sizes (input, hidden…, output) of a network of linear layers numbered 0, 2, 4…
    fn sizes(&self, prefix: &str) -> Result<Vec<usize>> {
        let mut sizes = Vec::new();
        while let Some(weight) = self.tensors.get(&format!("{prefix}.{}.weight", 2 * sizes.len().saturating_sub(1))) {
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
            let shapes = [vec![linear.n_out, linear.n_in], vec![linear.n_out]];
            for ((part, place), shape) in [("weight", linear.weight()), ("bias", linear.bias())].into_iter().zip(shapes)
            {
                let name = format!("{prefix}.{}.{part}", 2 * l);
                let tensor = self.get(&name)?;
                if tensor.shape != shape {
                    return Err(Error::invalid(format!(
                        "tensor {name} has shape {:?}, expected {shape:?}",
                        tensor.shape
                    )));
                }
                parameters[place].copy_from_slice(&tensor.data);
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

/// Activation under this key of the configuration.
fn activation(config: &Value, key: &str) -> Result<Activation> {
    let given = &config[key];
    let name = given.as_str().map(|name| Value::from(name.to_lowercase()));
    name.and_then(|name| serde_json::from_value(name).ok()).ok_or_else(|| {
        Error::invalid(format!("{key} {given} is not supported; known activations: \"relu\", \"silu\", \"tanh\""))
    })
}

/// Indices of the internal coordinates, in bgflow's order.
struct Numbers {
    bonds: Vec<usize>,
    angles: Vec<usize>,
    torsions: Vec<usize>,
}

impl Numbers {
    /// For a z-matrix of `n_rows` rows, preceded by the frame's two bonds and its angle.
    fn new(n_rows: usize, n_constraints: usize) -> Numbers {
        let bonds: Vec<usize> = (0..n_rows + 2 - n_constraints).collect();
        let angles: Vec<usize> = (bonds.len()..bonds.len() + n_rows + 1).collect();
        let torsions = (bonds.len() + angles.len()..bonds.len() + angles.len() + n_rows).collect();
        Numbers { bonds, angles, torsions }
    }
}

/// Prefix of the networks of spline couplings.
fn spline_network(block: usize) -> String {
    format!("_blocks.{block}.transformer._params_net.net._layers")
}

fn generator(
    checkpoint: &Checkpoint,
    config: &Value,
    rows: &Value,
    molecule: Option<(Topology, Vec<f64>)>,
) -> Result<CouplingFlow<f64>> {
    let rows: Vec<[i64; 4]> =
        serde_json::from_value(rows.clone()).map_err(|e| Error::invalid(format!("z_matrix: {e}")))?;
    let zmatrix = ZMatrix::from_rows_with_frame(&rows, rows.len(), |a| format!("atom {}", a + 1))?;
    let constraints = constraints(checkpoint, &zmatrix)?;
    let numbers = Numbers::new(zmatrix.rows.len(), constraints.len());
    let blocks = checkpoint.blocks(".transformer._params_net.net._layers.0.weight");
    require_numbers(checkpoint, &blocks)?;
    require_lengths(checkpoint, &blocks, &constraints)?;
    let mut layers = spline_layers(checkpoint, config, &numbers, &blocks)?;
    layers.extend(marginals(checkpoint, &numbers, constraints.len())?);
    let coordinates = CoordinatesConfig::Internal {
        frame: zmatrix.frame,
        rows: zmatrix.rows,
        normalize_angles: true,
        constraints,
        stereocentres: molecule.as_ref().map_or(Vec::new(), |(topology, x)| stereocentres(topology, x)),
        cartesian: Vec::new(),
    };
    let Numbers { bonds, angles, torsions } = numbers;
    let uniform = [bonds, angles, torsions].concat();
    let topology = molecule.map(|(topology, _)| topology);
    let mut flow = CouplingFlow::new(card(CouplingConfig { uniform, layers }, coordinates, topology))?;
    let layers = flow.layers.clone();
    let parameters = flow.parameters_mut();
    for (layer, &block) in layers.iter().zip(&blocks) {
        if let Layer::Spline(layer) = layer {
            checkpoint.fill(&spline_network(block), &layer.conditioner.mlp, parameters)?;
        }
    }
    Ok(flow)
}

/// Numbers of the blocks that have tensors, given the number of spline couplings, with the marginals as the last three:
/// all except the split of torsions before their couplings and the merge behind, if there are such couplings.
fn numbers_with_tensors(couplings: usize) -> Vec<usize> {
    match couplings.saturating_sub(2) {
        0 => (0..5).collect(),
        of_torsions => (1..of_torsions + 1).chain(of_torsions + 2..of_torsions + 7).collect(),
    }
}

/// Checks the block numbers. Errors: unexpected gaps between the blocks with tensors, where blocks without tensors may
/// define another density.
fn require_numbers(checkpoint: &Checkpoint, couplings: &[usize]) -> Result<()> {
    let with_tensors = numbers_with_tensors(couplings.len());
    let behind = with_tensors.last().map_or(0, |last| last + 1);
    let marginals =
        [checkpoint.blocks(&format!("{MARGINAL}_mu")), checkpoint.blocks(&format!("{MARGINAL}low"))].concat();
    let found: Vec<usize> = couplings.iter().copied().chain(marginals).collect();
    // constants, of bonds and of the frame, follow directly; too many or too few are reported by the individual parts
    let constants = checkpoint.blocks("._values_0").first().copied().unwrap_or(behind);
    match found.len() == with_tensors.len() && (found != with_tensors || constants != behind) {
        true => Err(Error::invalid(format!(
            "blocks {found:?} have tensors and block {constants} has constants, but a split of torsions, their \
             couplings, a merge, a coupling of angles, one of bonds and the marginals have tensors in blocks \
             {with_tensors:?}, with constants in the next block: other layers without tensors, such as a chirality \
             constraint, are not supported"
        ))),
        false => Ok(()),
    }
}

/// Checks the constant bonds. Errors: the block behind the marginals merges constant bonds of other lengths.
fn require_lengths(checkpoint: &Checkpoint, couplings: &[usize], constraints: &[(usize, usize, f64)]) -> Result<()> {
    let last = numbers_with_tensors(couplings.len()).pop().unwrap_or_default();
    let name = format!("_blocks.{}._values_0", last + 1);
    let Some(merged) = checkpoint.tensors.get(&name).filter(|merged| merged.shape == [constraints.len()]) else {
        return Ok(());
    };
    let given = constraints.iter().map(|(_, _, length)| *length);
    match merged.data.iter().zip(given).find(|(theirs, given)| (*theirs - given).abs() > 1e-6) {
        Some((theirs, given)) => Err(Error::invalid(format!(
            "constrained_bond_len has {given} nm where {name} has {theirs} nm: list constrained_bond_len and \
             constrained_bond_idx in the checkpoint's order of bonds, that of add_merge_constraints"
        ))),
        None => Ok(()),
    }
}

/// Couplings among torsions, then of angles given torsions and of bonds given both.
fn spline_layers(
    checkpoint: &Checkpoint,
    config: &Value,
    numbers: &Numbers,
    blocks: &[usize],
) -> Result<Vec<LayerConfig>> {
    let Numbers { bonds, angles, torsions } = numbers;
    let identity_init = config["enable_identity_init"].as_bool().ok_or_else(|| {
        Error::invalid("the configuration must set `enable_identity_init` (true or false): it changes the density")
    })?;
    let activation = match config.get("activation") {
        Some(_) => activation(config, "activation")?,
        None => Activation::Silu,
    };
    let Some((for_torsions, &[for_angles, for_bonds])) = blocks.split_last_chunk::<2>() else {
        return Err(Error::invalid("the checkpoint has fewer than two spline couplings"));
    };
    let bins = match config.get("n_bins") {
        None => 8,
        Some(given) => given
            .as_u64()
            .and_then(|bins| usize::try_from(bins).ok())
            .ok_or_else(|| Error::invalid(format!("n_bins must be a positive integer, not {given}")))?,
    };
    let spline = |block: usize, transformed: &[usize], periodic: &[usize], plain: &[usize], ends: Ends| {
        let sizes = checkpoint.sizes(&spline_network(block))?;
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
        let conditions = checkpoint.sizes(&spline_network(block))?[0] / 2;
        let split =
            if turn % 2 == 0 { torsions.len().saturating_sub(conditions) } else { conditions.min(torsions.len()) };
        let (first, second) = torsions.split_at(split);
        let (moved, seen) = if turn % 2 == 0 { (first, second) } else { (second, first) };
        layers.push(spline(block, moved, seen, &[], Ends::Circular)?);
    }
    layers.push(spline(for_angles, angles, torsions, &[], Ends::Free)?);
    layers.push(spline(for_bonds, bonds, torsions, angles, Ends::Free)?);
    Ok(layers)
}

/// Truncated normal distributions for bonds and angles, a uniform one for torsions.
fn marginals(checkpoint: &Checkpoint, numbers: &Numbers, n_constraints: usize) -> Result<Vec<LayerConfig>> {
    let Numbers { bonds, angles, torsions } = numbers;
    let [of_bonds, of_angles] = checkpoint.marginals("_mu", "truncated-normal marginals (bonds and angles)")?;
    let means = checkpoint.marginal(of_bonds, "_mu")?.len();
    if means != bonds.len() {
        return Err(Error::invalid(format!(
            "the checkpoint has {means} bonds with a distribution, but the z_matrix has {} bonds, of which \
             {n_constraints} are constant: list all others in `constrained_bond_idx` (indices of the constant bonds: 0 \
             and 1 for those of the frame, then those of the other rows of the z_matrix) and `constrained_bond_len` \
             (nm)",
            bonds.len() + n_constraints
        )));
    }
    let mut layers = Vec::new();
    let [of_torsions] = checkpoint.marginals("low", "uniform marginal (torsions)")?;
    let widest =
        checkpoint.bound(of_angles, "_upper_bound").into_iter().chain(checkpoint.marginal(of_torsions, "high")?);
    if let Some(upper) = widest.into_iter().find(|&upper| upper > 1.0 && upper.is_finite()) {
        return Err(Error::invalid(format!(
            "marginals of angles extend to {upper}: angles in radians (normalize_angles = False) are not supported, \
             only angles in units of π and 2π"
        )));
    }
    for (block, transformed) in [(of_bonds, bonds), (of_angles, angles)] {
        layers.push(LayerConfig::TruncatedNormal {
            transformed: transformed.clone(),
            mean: checkpoint.marginal(block, "_mu")?,
            sd: checkpoint.marginal(block, "_logsigma")?.into_iter().map(f64::exp).collect(),
            lower: checkpoint.bound(block, "_lower_bound")?,
            upper: checkpoint.bound(block, "_upper_bound")?,
        });
    }
    layers.push(LayerConfig::Uniform {
        transformed: torsions.clone(),
        low: checkpoint.marginal(of_torsions, "low")?,
        high: checkpoint.marginal(of_torsions, "high")?,
    });
    Ok(layers)
}

/// Constrained bonds: `constrained_bond_idx` counts bgflow's bonds (the frame's two, then those of the rows).
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
        let place = place
            .ok_or_else(|| Error::invalid(format!("constrained_bond_idx: bond {i} is out of range or repeated")))?;
        seen[place] = true;
        Ok((bonds[place].0, bonds[place].1, length))
    });
    each.collect()
}

/// A split into halves, then couplings that transform the second half given the first, with a swap between each two
/// and, if the configuration says so, after the last. Neither a split nor a swap has tensors.
fn realnvp(checkpoint: &Checkpoint, config: &Value, topology: Option<Topology>) -> Result<CouplingFlow<f64>> {
    let dimension = config["dim"].as_u64().ok_or_else(|| {
        Error::invalid("the configuration needs `z_matrix` (internal-coordinate generator) or `dim` (RealNVP)")
    })? as usize;
    let preserve_volume = config["preserve_volume"].as_bool().ok_or_else(|| {
        Error::invalid("the configuration must set `preserve_volume` (true or false): it changes the density")
    })?;
    let final_swap = config["final_swap"].as_bool().ok_or_else(|| {
        Error::invalid(
            "the configuration must set `final_swap` (true or false): it changes the order of the coordinates",
        )
    })?;
    let (of_shift, of_scale) = (activation(config, "activation")?, activation(config, "scale_activation")?);
    let blocks = checkpoint.blocks(".transformer._log_alpha");
    if blocks.is_empty() {
        return Err(Error::invalid("the checkpoint has no affine coupling (_blocks.N.transformer._log_alpha)"));
    }
    if !blocks.iter().copied().eq((0..blocks.len()).map(|k| 2 * k + 1)) {
        return Err(Error::invalid(format!(
            "affine couplings are in blocks {blocks:?}, but a RealNVP has them in 1, 3, 5, …"
        )));
    }
    let part = |block: usize, part: &str| format!("_blocks.{block}.transformer._{part}_transformation._layers");
    let sizes = checkpoint.sizes(&part(blocks[0], "shift"))?;
    let both = sizes[0].saturating_add(sizes[sizes.len() - 1]);
    if both != dimension {
        return Err(Error::invalid(format!("dim = {dimension}, but the first network has {both} inputs and outputs")));
    }
    let n_swaps = blocks.len() - usize::from(!final_swap);
    // the order does not matter for prior points, as the prior is the same in all coordinates; for x it is the final
    // one
    let half = dimension / 2;
    let halves: [Vec<usize>; 2] = match n_swaps % 2 {
        0 => [(0..half).collect(), (half..dimension).collect()],
        _ => [(dimension - half..dimension).collect(), (0..dimension - half).collect()],
    };
    let mut layers = Vec::new();
    for (turn, &block) in blocks.iter().enumerate() {
        let (seen, moved) = (&halves[turn % 2], &halves[1 - turn % 2]);
        let sizes = checkpoint.sizes(&part(block, "shift"))?;
        layers.push(LayerConfig::Affine {
            transformed: moved.clone(),
            features: Features { periodic: vec![], harmonics: 1, plain: seen.clone() },
            hidden: sizes[1..sizes.len() - 1].to_vec(),
            activation: of_shift,
            scale_activation: Some(of_scale),
            preserve_volume,
        });
    }
    let config = CouplingConfig { uniform: vec![], layers };
    let mut flow = CouplingFlow::new(card(config, CoordinatesConfig::Cartesian { dimension }, topology))?;
    let layers = flow.layers.clone();
    let parameters = flow.parameters_mut();
    for (layer, &block) in layers.iter().zip(&blocks) {
        let Layer::Affine(layer) = layer else { continue };
        checkpoint.fill(&part(block, "shift"), &layer.shift.mlp, parameters)?;
        if let Some(scale) = &layer.scale {
            checkpoint.fill(&part(block, "scale"), &scale.mlp, parameters)?;
        }
        let name = format!("_blocks.{block}.transformer._log_alpha");
        let [log_alpha] = checkpoint.get(&name)?.data[..] else {
            return Err(Error::invalid(format!("tensor {name} must contain a single number")));
        };
        parameters[layer.log_alpha] = log_alpha;
    }
    Ok(flow)
}
