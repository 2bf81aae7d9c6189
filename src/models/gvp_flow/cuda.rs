//! The vector field on a GPU: weights in the layout of `cuda/gvp.cuh` and `cuda/gvp_flow.cu`, and block sizes.

use super::layout::{GvpPlaces, NormPlaces, TrunkPlaces};
use super::{GvpConfig, GvpField};
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::tangents::{self, Block};
use crate::models::field_on_device::{
    bytes, padded, threads, FieldKernel, FieldOnDevice, Machine, NormRecord, Packing,
};
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: (&str, &str) = ("gvp_flow", include_str!("../../../cuda/gvp_flow.cu"));

/// `Gvp` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct GvpRecord {
    n_hidden: i32,
    n_out: i32,
    scalars: i32,
    bias: i32,
    inputs: i32,
    hidden: i32,
    outputs: i32,
    gates: i32,
    gate_bias: i32,
    direction_hidden: i32,
    direction_outputs: i32,
    beta: i32,
    scalars_back: i32,
    norms_back: i32,
    hidden_back: i32,
    padding: i32,
}

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    message: GvpRecord,
    update: GvpRecord,
    position: GvpRecord,
    message_norm: NormRecord,
    update_norm: NormRecord,
}

/// `Trunk` of the kernels; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub struct TrunkRecord {
    weights: u64,
    layers: u64,
    embedding: u64,
    time: u64,
    centres: u64,
    inverse_width: f64,
    inverse_message_norm: f64,
    coordinate_range: f64,
}

/// `Network` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct NetworkRecord {
    trunk: TrunkRecord,
    output: u64,
}

/// `n_radial`: number of radial functions, the last of the scalars; if there are any, the first vector is an edge's
/// direction.
fn gvp<R: Real>(packing: &mut Packing<R>, places: &GvpPlaces, n_radial: usize) -> GvpRecord {
    let sizes = places.sizes;
    let (hidden, n_in, n_out) = (sizes.hidden(), sizes.scalars_in + sizes.hidden(), sizes.vectors_out);
    let (n_scalars, first) = (sizes.scalars_in - n_radial, usize::from(n_radial > 0));
    let n_vectors = sizes.vectors_in - first;
    type P<'a, 'b, R> = &'a Packing<'b, R>;
    let wh = |p: P<R>, v: usize, q: usize| p.at(places.wh.start + v * hidden + q);
    let wu = |p: P<R>, q: usize, u: usize| p.at(places.wu.start + q * n_out + u);
    let through = |p: P<R>, v: usize, u: usize| (0..hidden).map(|q| wh(p, v, q) * wu(p, q, u)).sum::<f64>();
    let weight = |p: P<R>, i: usize, o: usize| p.at(places.weight.start + o * n_in + i);
    let gate = |p: P<R>, f: usize, u: usize| p.at(places.gate_weight.start + u * sizes.scalars_out + f);
    // the Jacobian of a single vector is propagated back through the perceptron
    let back = if n_out == 1 { sizes.scalars_out } else { 0 };
    GvpRecord {
        n_hidden: hidden as i32,
        n_out: n_out as i32,
        scalars: packing.matrix(n_scalars, sizes.scalars_out, weight),
        bias: packing.vector(places.bias.start, sizes.scalars_out),
        // radial functions and norms follow the scalars
        inputs: packing.matrix(n_radial + hidden, sizes.scalars_out, |p, i, o| weight(p, n_scalars + i, o)),
        hidden: packing.matrix(n_vectors, hidden, |p, v, q| wh(p, v + first, q)),
        outputs: packing.matrix(n_vectors, n_out, |p, v, u| through(p, v + first, u)),
        gates: packing.matrix(sizes.scalars_out, n_out, gate),
        gate_bias: packing.vector(places.gate_bias.start, n_out),
        direction_hidden: packing.matrix(first, hidden, |p, _, q| wh(p, 0, q)),
        direction_outputs: packing.matrix(first, n_out, |p, _, u| through(p, 0, u)),
        beta: packing.matrix(1, 1, |p, _, _| places.beta.map_or(1.0, |place| p.at(place))),
        scalars_back: packing.matrix(back, n_scalars, |p, o, i| weight(p, i, o)),
        norms_back: packing.matrix(back, hidden, |p, o, q| weight(p, sizes.scalars_in + q, o)),
        hidden_back: packing.matrix(back.min(hidden), n_vectors, |p, q, v| wh(p, v + first, q)),
        padding: 0,
    }
}

/// Kernels for a network of BoltzNCE's sizes, in every variant.
pub fn programs() -> Vec<Program> {
    let (plain, config) = (Machine::ELSEWHERE, boltznce_sizes());
    let single = [0, 1, directions::<f32>(&config, plain.shared)];
    let double = [0, 1, directions::<f64>(&config, plain.shared)];
    let tensor = program::<f32>(SOURCE, &config, single[2], Machine::WITH_TENSOR_CORES);
    let single = single.map(|directions| program::<f32>(SOURCE, &config, directions, plain));
    let double = double.map(|directions| program::<f64>(SOURCE, &config, directions, plain));
    let directions = directions::<f32>(&config, Machine::SMALLER.shared);
    let smaller = program::<f32>(SOURCE, &config, directions, Machine::SMALLER);
    single.into_iter().chain(double).chain([tensor, smaller]).collect()
}

fn boltznce_sizes() -> GvpConfig {
    GvpConfig {
        features: vec![vec![]; 22],
        n_features: 21,
        n_layers: 5,
        n_scalars: 64,
        n_vectors: 16,
        rbf_max: 20.0,
        rbf_count: 16,
        message_norm: 10.0,
        coordinate_range: 10.0,
    }
}

/// Kernels of another source on the same trunk: values, and several directions at once.
pub fn programs_on_trunk(source: (&'static str, &'static str)) -> Vec<Program> {
    let (plain, config) = (Machine::ELSEWHERE, boltznce_sizes());
    let of = |directions| program::<f32>(source, &config, directions, plain);
    let in_f64 = directions::<f64>(&config, plain.shared);
    vec![of(0), of(directions::<f32>(&config, plain.shared)), program::<f64>(source, &config, in_f64, plain)]
}

fn norm<R: Real>(packing: &mut Packing<R>, places: &NormPlaces) -> NormRecord {
    packing.norm(places.weight.start, places.bias.start, places.weight.len())
}

/// Block for derivatives along this many directions at once; counts as `VALUES_MEMORY`, `TANGENTS_MEMORY` and the tape
/// of the kernels do.
fn block<R>(config: &GvpConfig, directions: usize, shared: usize) -> Block {
    let even = |n: usize| n.next_multiple_of(2);
    let (n, scalars, vectors, hidden) =
        (config.features.len(), config.n_scalars, config.n_vectors, config.n_vectors + 1);
    let (lanes, rows) = (padded(n), padded(n) * directions);
    let of_state = 2 * even(scalars) + 3 * vectors + 3 + 3 * even(hidden) + 3 * even(vectors);
    let of_perceptron = scalars + 3 * hidden + 4 * vectors;
    let of_jacobian = of_perceptron + even(scalars) + even(hidden) + 3 * even(vectors);
    let of_row = 4 + even(hidden) + even(scalars) + even(vectors);
    let with_tape = usize::from(directions > 0);
    let of_pair = of_row + config.rbf_count * (1 + with_tape);
    let values = |at_once: usize| lanes * (of_state + of_jacobian * with_tape + at_once * of_pair);
    // rows of sums are four longer than the number of lanes
    let of_sums = 3 * even(vectors) + 3 + even(scalars) + even(vectors);
    let tangents = |at_once: usize| rows * (of_state + at_once * of_row) + 4 * of_sums;
    let of_edge = 5 + scalars + of_perceptron;
    let of_norm = 2 * scalars + 6 * vectors + 1;
    let of_atom = 2 * of_norm + of_perceptron + 3 * (scalars + 3 * vectors);
    let tape = config.n_layers * (n * of_edge + of_atom) * lanes;
    Block::new::<R>(n, directions, shared, values, tangents, tape)
}

fn directions<R>(config: &GvpConfig, shared: usize) -> usize {
    Block::directions::<R>(shared, |directions| block::<R>(config, directions, shared))
}

fn program<R: Real>(
    source: (&'static str, &'static str),
    config: &GvpConfig,
    directions: usize,
    machine: Machine,
) -> Program {
    let own = [
        ("SCALARS", config.n_scalars),
        ("VECTORS", config.n_vectors),
        ("RADIAL", config.rbf_count),
        ("LAYERS", config.n_layers),
    ];
    let block = block::<R>(config, directions, machine.shared);
    tangents::program::<R>(source, config.features.len(), &block, machine, &own)
}

/// The kernel `name` of a source, without its data.
pub fn kernel<R: Real>(
    name: &'static str,
    source: (&'static str, &'static str),
    config: &GvpConfig,
    driver: &Arc<dyn Driver>,
) -> FieldKernel {
    let (for_program, for_memory, machine) = (config.clone(), config.clone(), Machine::of::<R>(driver));
    let kernel = FieldKernel::new(
        (name, 3 * config.features.len(), threads::<R>()),
        move |variant| program::<R>(source, &for_program, variant.directions, machine),
        move |variant| block::<R>(&for_memory, variant.directions, machine.shared).numbers,
    );
    FieldKernel { directions: directions::<R>(config, machine.shared), ..kernel }
}

fn layers<R: Real>(packing: &mut Packing<R>, config: &GvpConfig, places: &TrunkPlaces) -> Vec<LayerRecord> {
    let layers = places.layers.iter().map(|layer| LayerRecord {
        message: gvp(packing, &layer.message, config.rbf_count),
        update: gvp(packing, &layer.update, 0),
        position: gvp(packing, &layer.position, 0),
        message_norm: norm(packing, &layer.message_norm),
        update_norm: norm(packing, &layer.update_norm),
    });
    layers.collect()
}

/// Copies a trunk to the card, together with what `behind` packs for the layers after it. Errors: the driver's.
pub fn keep_trunk<R: Real, T>(
    kernel: &mut FieldKernel,
    parameters: &[R],
    (config, places): (&GvpConfig, &TrunkPlaces),
    behind: impl FnOnce(&mut Packing<R>) -> T,
    driver: &Arc<dyn Driver>,
) -> Result<(TrunkRecord, T)> {
    let mut packing = Packing { parameters, weights: Vec::new() };
    let layers = layers(&mut packing, config, places);
    let behind = behind(&mut packing);
    let n_in = config.n_features + 1;
    let weight = |i: usize, o: usize| packing.at(places.embedding_weight.start + o * n_in + i);
    let bias = |o: usize| packing.at(places.embedding_bias.start + o);
    let [embedding, time] = packing.embedding(&config.features, config.n_scalars, weight, bias, config.n_features);
    let centre = |k: usize| config.rbf_max * k as f64 / (config.rbf_count.max(2) - 1) as f64;
    let centres: Vec<R> = (0..config.rbf_count).map(|k| R::from_f64(centre(k))).collect();
    let trunk = TrunkRecord {
        weights: kernel.keep(driver, &packing.weights)?,
        layers: kernel.keep(driver, &layers)?,
        embedding: kernel.keep(driver, &embedding)?,
        time: kernel.keep(driver, &time)?,
        centres: kernel.keep(driver, &centres)?,
        inverse_width: config.rbf_count as f64 / config.rbf_max,
        inverse_message_norm: 1.0 / config.message_norm,
        coordinate_range: config.coordinate_range,
    };
    Ok((trunk, behind))
}

impl<R: Real> GvpField<R> {
    /// Copies the field to a GPU and compiles its kernels. Errors: the driver's.
    pub fn on_device(&self, driver: &Arc<dyn Driver>) -> Result<FieldOnDevice<R>> {
        let mut kernel = kernel::<R>("gvp_field", SOURCE, &self.config, driver);
        let trunk = (&self.config, &self.places.trunk);
        let output = |packing: &mut Packing<R>| gvp(packing, &self.places.output, 0);
        let (trunk, output) = keep_trunk(&mut kernel, &self.parameters, trunk, output, driver)?;
        kernel.arguments = bytes(&NetworkRecord { trunk, output: kernel.keep(driver, &[output])? });
        FieldOnDevice::new(driver, kernel)
    }
}
