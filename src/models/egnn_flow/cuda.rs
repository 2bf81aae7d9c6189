//! The vector field on a GPU: weights as `cuda/egnn_flow.cu` reads them.

use super::{Egnn, EgnnConfig};
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::{
    bytes, destinations, needs_scratch, padded, threads, FieldKernel, FieldOnDevice, Machine, Numbers, Packing,
};
use crate::models::network::Evaluator;
use crate::nn::tape::Weight;
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: &str = include_str!("../../../cuda/egnn_flow.cu");

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    source: i32,
    destination: i32,
    edge_bias: i32,
    pair: i32,
    edge: i32,
    edge_out_bias: i32,
    attention: i32,
    attention_bias: i32,
    coordinate: i32,
    coordinate_bias: i32,
    coordinate_out: i32,
    node: i32,
    node_bias: i32,
    node_out: i32,
    node_out_bias: i32,
    padding: i32,
}

/// `Network` of the kernels; addresses on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct NetworkRecord {
    weights: u64,
    layers: u64,
    embedding: u64,
    time: u64,
    step: f64,
}

/// Directions of a share of a divergence: the coordinates of an atom, where the state of jets with a component for each of them and one for the value
/// fits into shared memory.
const WIDEST: usize = 3;

/// The kernels for a network of ECNF's sizes, in every variant.
pub fn programs() -> Vec<Program> {
    let config =
        EgnnConfig { features: vec![vec![]; 22], n_features: 22, n_layers: 5, n_hidden: 64, coordinate_range: 15.0 };
    let of = |d| [program::<f32>(&config, d, Machine::ELSEWHERE), program::<f64>(&config, d, Machine::ELSEWHERE)];
    let by_tensor_cores = program::<f32>(&config, WIDEST, Machine::WITH_TENSOR_CORES);
    [0, 1, WIDEST].into_iter().flat_map(of).chain([by_tensor_cores]).collect()
}

fn program<R: Real>(config: &EgnnConfig, directions: usize, Machine { shared, tensor }: Machine) -> Program {
    let at_once = at_once::<R>(config, directions, shared);
    let constants: [(_, &dyn std::fmt::Display); 10] = [
        ("REAL", &crate::device::program::real::<R>()),
        ("TENSOR", &u8::from(tensor)),
        ("THREADS", &threads::<R>()),
        ("COMPONENTS", &(directions + 1)),
        ("DESTINATIONS", &at_once),
        ("SCRATCH", &u8::from(needs_scratch::<R>(memory(config, directions, at_once), shared))),
        ("ATOMS", &config.features.len()),
        ("PADDED", &padded(config.features.len())),
        ("HIDDEN", &config.n_hidden),
        ("LAYERS", &config.n_layers),
    ];
    Program::new("egnn_flow", SOURCE, &constants)
}

/// Numbers of a block's state with messages to so many atoms at once, as `MEMORY` of the kernel counts them.
fn memory(config: &EgnnConfig, directions: usize, at_once: usize) -> usize {
    let (hidden, even) = (config.n_hidden, config.n_hidden.next_multiple_of(2));
    padded(config.features.len()) * (directions + 1) * (2 * hidden + 9 + 2 * even + at_once * (2 * even + 7))
}

fn at_once<R>(config: &EgnnConfig, directions: usize, shared: usize) -> usize {
    let lanes = padded(config.features.len()) * (directions + 1);
    destinations::<R>(lanes, shared, |number| memory(config, directions, number))
}

/// Inputs `from` to `from + n` of a layer.
fn inputs<R: Real>(packing: &mut Packing<R>, w: &Weight, from: usize, n: usize) -> i32 {
    packing.matrix(n, w.n_out, |p, i, o| p.at(w.place(from + i, o)))
}

fn bias<R: Real>(packing: &mut Packing<R>, w: &Weight) -> i32 {
    packing.matrix(1, w.n_out, |p, _, o| w.bias_of(p.parameters)[o].to_f64())
}

impl<R: Real> Evaluator<Egnn, R> {
    /// Copies the field to a machine and compiles its kernels.
    pub fn on_device(&self, driver: &Arc<dyn Driver>) -> Result<FieldOnDevice<R>> {
        let (network, config) = (&self.network, self.network.config.clone());
        let h = config.n_hidden;
        let mut packing = Packing { parameters: self.parameters(), weights: Vec::new() };
        let layers: Vec<LayerRecord> = network
            .layers
            .iter()
            .map(|layer| LayerRecord {
                destination: inputs(&mut packing, &layer.edge[0], 0, h),
                source: inputs(&mut packing, &layer.edge[0], h, h),
                pair: inputs(&mut packing, &layer.edge[0], 2 * h, 2),
                edge_bias: bias(&mut packing, &layer.edge[0]),
                edge: inputs(&mut packing, &layer.edge[1], 0, h),
                edge_out_bias: bias(&mut packing, &layer.edge[1]),
                attention: inputs(&mut packing, &layer.attention, 0, h),
                attention_bias: bias(&mut packing, &layer.attention),
                coordinate: inputs(&mut packing, &layer.coordinate[0], 0, h),
                coordinate_bias: bias(&mut packing, &layer.coordinate[0]),
                coordinate_out: inputs(&mut packing, &layer.coordinate[1], 0, h),
                node: inputs(&mut packing, &layer.node[0], 0, 2 * h),
                node_bias: bias(&mut packing, &layer.node[0]),
                node_out: inputs(&mut packing, &layer.node[1], 0, h),
                node_out_bias: bias(&mut packing, &layer.node[1]),
                padding: 0,
            })
            .collect();
        let w = &network.embedding;
        let weight = |i: usize, o: usize| packing.at(w.place(i, o));
        let start = |o: usize| w.bias_of(self.parameters())[o].to_f64();
        let [embedding, time] = packing.embedding(&config.features, h, weight, start, config.n_features);
        let (for_program, for_memory) = (config.clone(), config.clone());
        let machine = Machine::of::<R>(driver);
        let state =
            move |directions| memory(&for_memory, directions, at_once::<R>(&for_memory, directions, machine.shared));
        let directions = if needs_scratch::<R>(state(WIDEST), machine.shared) { 1 } else { WIDEST };
        let kernel = FieldKernel::new(
            ("egnn_field", 3 * config.features.len(), threads::<R>()),
            move |variant| program::<R>(&for_program, variant.directions, machine),
            move |variant| Numbers::of_state(state(variant.directions)),
        );
        let mut kernel = FieldKernel { directions, ..kernel };
        kernel.arguments = bytes(&NetworkRecord {
            weights: kernel.keep(driver, &packing.weights)?,
            layers: kernel.keep(driver, &layers)?,
            embedding: kernel.keep(driver, &embedding)?,
            time: kernel.keep(driver, &time)?,
            step: config.coordinate_range / config.n_layers as f64,
        });
        FieldOnDevice::new(driver, kernel)
    }
}
