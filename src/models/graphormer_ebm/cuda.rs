//! The energy on a GPU: weights as `cuda/graphormer_ebm.cu` reads them.

use super::{Graphormer, GraphormerConfig, Version};
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::{
    bytes, needs_scratch, padded, EnergyKernel, FieldKernel, LinearRecord, Machine, NormRecord, Numbers, Packing,
};
use crate::nn::tape::LayerNorm;
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: &str = include_str!("../../../cuda/graphormer_ebm.cu");

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    attention_norm: NormRecord,
    forward_norm: NormRecord,
    qkv: LinearRecord,
    out: LinearRecord,
    first: LinearRecord,
    second: LinearRecord,
}

/// `Arguments` of the kernel behind the batch; addresses on the card, and places in the weights.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    weights: u64,
    layers: u64,
    time_first: LinearRecord,
    time_second: LinearRecord,
    bias_first: LinearRecord,
    bias_second: LinearRecord,
    edge: LinearRecord,
    energy_first: LinearRecord,
    energy_second: LinearRecord,
    final_norm: NormRecord,
    atoms: i32,
    means: i32,
    inverse_widths: i32,
    factor: i32,
    shift: i32,
}

/// The kernels for a network of BoltzNCE's sizes, in every variant.
pub fn programs() -> Vec<Program> {
    let config = GraphormerConfig {
        version: Version::Boltznce,
        types: vec![0; 22],
        n_types: 21,
        n_layers: 8,
        blocks: 1,
        width: 256,
        feed_forward: 256,
        heads: 32,
        kernels: 50,
    };
    let of = |score| {
        [
            program::<f32>(&config, 1, score, Machine::ELSEWHERE),
            program::<f32>(&config, 1, score, Machine::WITH_TENSOR_CORES),
            program::<f64>(&config, 1, score, Machine::ELSEWHERE),
        ]
    };
    [false, true].into_iter().flat_map(of).collect()
}

/// A round of a product of 256 outputs in 24 lanes. f64 networks need more registers each; by tensor cores eight warps have 16 outputs in two
/// rounds.
fn threads<R>(machine: Machine) -> usize {
    match size_of::<R>() {
        4 if !machine.tensor => 384,
        _ => 256,
    }
}

fn program<R: Real>(config: &GraphormerConfig, times: usize, score: bool, machine: Machine) -> Program {
    let scratch = needs_scratch::<R>(memory::<R>(config, times, score, machine), machine.shared);
    let constants: [(_, &dyn std::fmt::Display); 14] = [
        ("REAL", &crate::device::program::real::<R>()),
        ("TENSOR", &u8::from(machine.tensor)),
        ("THREADS", &threads::<R>(machine)),
        ("ATOMS", &config.types.len()),
        ("PADDED", &padded(config.types.len())),
        ("WIDTH", &config.width),
        ("FORWARD", &config.feed_forward),
        ("HEADS", &config.heads),
        ("KERNELS", &config.kernels),
        ("LAYERS", &(config.n_layers * config.blocks)),
        ("TIMES", &times),
        ("BOLTZNCE", &u8::from(config.version == Version::Boltznce)),
        ("SCORE", &u8::from(score)),
        ("SCRATCH", &u8::from(scratch)),
    ];
    Program::new("graphormer_ebm", SOURCE, &constants)
}

/// Numbers of a block's state, as `ENERGY_MEMORY` and `SCORE_MEMORY` of the kernel count them.
fn memory<R>(config: &GraphormerConfig, times: usize, score: bool, machine: Machine) -> usize {
    let even = |n: usize| n.next_multiple_of(2);
    let (n, lanes) = (config.types.len(), padded(config.types.len()));
    let (d, h, k) = (even(config.width), even(config.heads), even(config.kernels));
    let hidden = d.max(even(config.feed_forward));
    let partials = (threads::<R>(machine) / lanes).max(1);
    let energy = lanes * (5 * d + hidden + n * h + 3 * k + 10 + partials) + times.next_multiple_of(4);
    let layers = config.n_layers * config.blocks;
    let back = lanes * (2 * layers * d + 5 * d + hidden + n * h + 2 * h + 6 + k);
    energy + if score { back } else { 0 }
}

impl<R: Real> Packing<'_, R> {
    fn norm_of(&mut self, norm: &LayerNorm, width: usize) -> NormRecord {
        self.norm(norm.weight, norm.bias, width)
    }

    /// Numbers one after the other.
    fn numbers(&mut self, n: usize, value: impl Fn(&Self, usize) -> f64) -> i32 {
        self.matrix(1, n, |p, _, i| value(p, i))
    }
}

impl EnergyKernel for Graphormer {
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel> {
        let (network, config) = (self, self.config.clone());
        let (n, d, times) = (config.types.len(), config.width, network.time[0].n_out);
        let mut packing = Packing { parameters, weights: Vec::new() };
        let mut layer = |layer: &super::Layer| LayerRecord {
            attention_norm: packing.norm_of(&layer.attention_norm, d),
            forward_norm: packing.norm_of(&layer.forward_norm, d),
            qkv: packing.linear(&layer.qkv),
            out: packing.linear(&layer.out),
            first: packing.linear(&layer.forward[0]),
            second: packing.linear(&layer.forward[1]),
        };
        let layers: Vec<LayerRecord> = network.layers.iter().map(&mut layer).collect();
        let (gaussians, distance, atoms) = (network.gaussians, &network.distance, &network.atoms);
        let row = |atom: usize| atoms.at + atoms.types[atom] as usize * d;
        let mut arguments = Arguments {
            time_first: packing.linear(&network.time[0]),
            time_second: packing.linear(&network.time[1]),
            bias_first: packing.linear(&network.bias[0]),
            bias_second: packing.linear(&network.bias[1]),
            edge: packing.linear(&network.edge),
            energy_first: packing.linear(&network.energy[0]),
            energy_second: packing.linear(&network.energy[1]),
            final_norm: packing.norm_of(&network.final_norm, d),
            atoms: packing.numbers(n * d, |p, i| p.at(row(i / d) + i % d)),
            means: packing.vector(gaussians.means, gaussians.count),
            inverse_widths: packing.numbers(gaussians.count, |p, k| 1.0 / (p.at(gaussians.widths + k).abs() + 1e-5)),
            factor: packing.numbers(n * n, |p, pair| p.at(distance.factor + distance.types[pair] as usize)),
            shift: packing.numbers(n * n, |p, pair| p.at(distance.shift + distance.types[pair] as usize)),
            ..Arguments::default()
        };
        let (for_program, for_memory) = (config.clone(), config.clone());
        let machine = Machine::of::<R>(driver);
        let mut kernel = FieldKernel::new(
            ("graphormer", 3 * n, threads::<R>(machine)),
            move |directions| program::<R>(&for_program, times, directions > 0, machine),
            move |directions| Numbers::of_state(memory::<R>(&for_memory, times, directions > 0, machine)),
        );
        arguments.weights = kernel.keep(driver, &packing.weights)?;
        arguments.layers = kernel.keep(driver, &layers.repeat(config.blocks))?;
        kernel.arguments = bytes(&arguments);
        Ok(kernel)
    }
}
