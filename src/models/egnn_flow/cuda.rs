//! The vector field on a GPU: weights in the layout of `cuda/egnn_flow.cu`.

use super::{Egnn, EgnnConfig};
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::tangents::{program, Block};
use crate::models::field_on_device::{bytes, padded, threads, FieldKernel, FieldOnDevice, Machine, Packing};
use crate::models::network::Evaluator;
use crate::nn::tape::Weight;
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: (&str, &str) = ("egnn_flow", include_str!("../../../cuda/egnn_flow.cu"));

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
    coordinate_back: i32,
    coordinate_bias: i32,
    coordinate_out: i32,
    node: i32,
    node_bias: i32,
    node_out: i32,
    node_out_bias: i32,
}

/// `Network` of the kernels; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct NetworkRecord {
    weights: u64,
    layers: u64,
    embedding: u64,
    time: u64,
    step: f64,
}

/// Kernels for a network of ECNF's sizes, in every variant.
pub fn programs() -> Vec<Program> {
    let config =
        EgnnConfig { features: vec![vec![]; 22], n_features: 22, n_layers: 5, n_hidden: 64, coordinate_range: 15.0 };
    let plain = Machine::ELSEWHERE;
    let single = [0, 1, directions::<f32>(&config, plain.shared)].map(|d| of_config::<f32>(&config, d, plain));
    let double = [0, 1, directions::<f64>(&config, plain.shared)].map(|d| of_config::<f64>(&config, d, plain));
    let others = [Machine::WITH_TENSOR_CORES, Machine::SMALLER];
    let others = others.map(|machine| of_config::<f32>(&config, directions::<f32>(&config, machine.shared), machine));
    single.into_iter().chain(double).chain(others).collect()
}

fn of_config<R: Real>(config: &EgnnConfig, directions: usize, machine: Machine) -> Program {
    let block = block::<R>(config, directions, machine.shared);
    let own = [("HIDDEN", config.n_hidden), ("LAYERS", config.n_layers)];
    program::<R>(SOURCE, config.features.len(), &block, machine, &own)
}

/// Block for derivatives along this many directions at once; counts as `VALUES_MEMORY`, `TANGENTS_MEMORY` and the tape
/// of the kernels do.
fn block<R>(config: &EgnnConfig, directions: usize, shared: usize) -> Block {
    let (n, hidden, even) = (config.features.len(), config.n_hidden, config.n_hidden.next_multiple_of(2));
    let with_tape = usize::from(directions > 0);
    let (lanes, rows) = (padded(n), padded(n) * directions);
    let of_state = hidden + 2 * even + 9;
    let values = |at_once: usize| lanes * (of_state + at_once * (7 + 2 * even + hidden * with_tape));
    let tangents = |at_once: usize| rows * (of_state + 2 * at_once * (3 + even)) + 4 * (3 + even);
    let tape = config.n_layers * (n * (5 + 4 * hidden) + hidden) * lanes;
    Block::new::<R>(n, directions, shared, values, tangents, tape)
}

fn directions<R>(config: &EgnnConfig, shared: usize) -> usize {
    Block::directions::<R>(shared, |directions| block::<R>(config, directions, shared))
}

/// Packs inputs `from` to `from + n` of a layer.
fn inputs<R: Real>(packing: &mut Packing<R>, w: &Weight, from: usize, n: usize) -> i32 {
    packing.matrix(n, w.n_out, |p, i, o| p.at(w.place(from + i, o)))
}

fn transposed<R: Real>(packing: &mut Packing<R>, w: &Weight) -> i32 {
    packing.matrix(w.n_out, w.n_in, |p, o, i| p.at(w.place(i, o)))
}

fn bias<R: Real>(packing: &mut Packing<R>, w: &Weight) -> i32 {
    packing.matrix(1, w.n_out, |p, _, o| w.bias_of(p.parameters)[o].to_f64())
}

impl<R: Real> Evaluator<Egnn, R> {
    /// Copies the field to a GPU and compiles its kernels. Errors: the driver's.
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
                coordinate_back: transposed(&mut packing, &layer.coordinate[0]),
                coordinate_bias: bias(&mut packing, &layer.coordinate[0]),
                coordinate_out: inputs(&mut packing, &layer.coordinate[1], 0, h),
                node: inputs(&mut packing, &layer.node[0], 0, 2 * h),
                node_bias: bias(&mut packing, &layer.node[0]),
                node_out: inputs(&mut packing, &layer.node[1], 0, h),
                node_out_bias: bias(&mut packing, &layer.node[1]),
            })
            .collect();
        let w = &network.embedding;
        let weight = |i: usize, o: usize| packing.at(w.place(i, o));
        let start = |o: usize| w.bias_of(self.parameters())[o].to_f64();
        let [embedding, time] = packing.embedding(&config.features, h, weight, start, config.n_features);
        let (for_program, for_memory, machine) = (config.clone(), config.clone(), Machine::of::<R>(driver));
        let kernel = FieldKernel::new(
            ("egnn_field", 3 * config.features.len(), threads::<R>()),
            move |variant| of_config::<R>(&for_program, variant.directions, machine),
            move |variant| block::<R>(&for_memory, variant.directions, machine.shared).numbers,
        );
        let mut kernel = FieldKernel { directions: directions::<R>(&config, machine.shared), ..kernel };
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
