//! The energy on a GPU: weights in the layout of `cuda/graphormer_ebm.cu`.

use super::{Graphormer, GraphormerConfig, Version};
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::{
    bytes, needs_scratch, padded, EnergyKernel, FieldKernel, LinearRecord, Machine, NormRecord, Numbers, Packing,
    Variant,
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

/// `Arguments` of the kernel after the batch: addresses on the card, and offsets into the weights.
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

/// Kernels for a network of BoltzNCE's sizes, in every variant.
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
    let of = |directions| {
        let (blocks, teams) = (Variant::of_blocks(directions), Variant { directions, team: team(&config) });
        [
            program::<f32>(&config, 1, blocks, Machine::ELSEWHERE),
            program::<f32>(&config, 1, blocks, Machine::WITH_TENSOR_CORES),
            program::<f64>(&config, 1, blocks, Machine::ELSEWHERE),
            program::<f32>(&config, 1, teams, Machine::ELSEWHERE),
            program::<f64>(&config, 1, teams, Machine::ELSEWHERE),
        ]
    };
    [0, 1].into_iter().flat_map(of).collect()
}

/// Blocks of a team for few configurations: one per head, up to a number that a card has many times over.
fn team(config: &GraphormerConfig) -> usize {
    config.heads.min(32)
}

/// Threads: one round of a product of 256 outputs in 24 lanes. f64 networks need more registers per thread; with tensor
/// cores eight warps have 16 outputs each, in two rounds.
fn threads<R>(machine: Machine) -> usize {
    match size_of::<R>() {
        4 if !machine.tensor => 384,
        _ => 256,
    }
}

fn program<R: Real>(config: &GraphormerConfig, times: usize, variant: Variant, machine: Machine) -> Program {
    let scratch = needs_scratch::<R>(memory::<R>(config, times, variant, machine).state, machine.shared);
    let constants: [(_, &dyn std::fmt::Display); 15] = [
        ("REAL", &crate::device::program::real::<R>()),
        ("TENSOR", &u8::from(machine.tensor)),
        ("TEAM", &variant.team),
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
        ("SCORE", &u8::from(variant.directions > 0)),
        ("SCRATCH", &u8::from(scratch)),
    ];
    Program::new("graphormer_ebm", SOURCE, &constants)
}

/// Numbers of a block, as counted by `NEAR` and `FAR` of the kernel.
fn memory<R>(config: &GraphormerConfig, times: usize, variant: Variant, machine: Machine) -> Numbers {
    let even = |n: usize| n.next_multiple_of(2);
    let (n, lanes) = (config.types.len(), padded(config.types.len()));
    let (heads, d, h) = (config.heads, even(config.width), even(config.heads));
    let (f, k) = (even(config.feed_forward), even(config.kernels));
    let of_head = config.width / heads;
    let (qkv, mixed) = (heads * even(3 * of_head), heads * even(of_head));
    let Variant { directions, team } = variant;
    let (score, in_team) = (usize::from(directions > 0), usize::from(team > 1));
    let own_heads = heads.div_ceil(team);
    let own_outputs = |n: usize| even(n.div_ceil(team));
    let chunks = |inputs: usize| inputs.div_ceil(32);

    let a = d.max(mixed).max(k);
    let work = (own_heads * even(3 * of_head)).max(d).max(f).max(3 * k + h);
    let sums = (chunks(config.kernels.max(heads)) * k.max(h))
        .max(chunks(config.width) * (own_heads * even(3 * of_head)).max(own_outputs(f.max(k))))
        .max(chunks(qkv.max(config.feed_forward).max(config.kernels)) * own_outputs(d));
    let partials = (threads::<R>(machine) / lanes).max(1);
    let back = 2 * own_heads + d + a + qkv;
    let near = 10 + partials + a + work + in_team * (sums + n * own_heads * (2 + 2 * score)) + [d, back][score];
    let layers = config.n_layers * config.blocks;
    let of_team = mixed + d.max(f) + k + [d, a + qkv][score];
    let far = n * h * (1 + score) + score * ((2 * layers + 1) * d + 3 * n) + in_team * of_team;
    let state = near * lanes + times.next_multiple_of(4);
    match (score, team) {
        (0, 1) => Numbers::of_state(state + far * lanes),
        _ => Numbers { state, tape: far.div_ceil(team) * lanes },
    }
}

impl<R: Real> Packing<'_, R> {
    fn norm_of(&mut self, norm: &LayerNorm, width: usize) -> NormRecord {
        self.norm(norm.weight, norm.bias, width)
    }

    /// Appends n consecutive numbers; returns their offset.
    fn numbers(&mut self, n: usize, value: impl Fn(&Self, usize) -> f64) -> i32 {
        self.matrix(1, n, |p, _, i| value(p, i))
    }
}

impl EnergyKernel for Graphormer {
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel> {
        let (network, config) = (self, self.config.clone());
        let (n, d, times) = (config.types.len(), config.width, network.time[0].n_out);
        // heads are innermost in the network, and consecutive in the kernel
        let of_head = d / config.heads;
        let in_order = |parts: usize| -> Vec<Option<usize>> {
            let places = |head: usize| {
                let place =
                    move |k: usize| (k < parts * of_head).then(|| k / of_head * d + k % of_head * config.heads + head);
                (0..(parts * of_head).next_multiple_of(2)).map(place)
            };
            (0..config.heads).flat_map(places).collect()
        };
        let (of_qkv, of_mixed, rows) = (in_order(3), in_order(1), (0..d).map(Some).collect::<Vec<_>>());
        let mut packing = Packing { parameters, weights: Vec::new() };
        let mut layer = |layer: &super::Layer| LayerRecord {
            attention_norm: packing.norm_of(&layer.attention_norm, d),
            forward_norm: packing.norm_of(&layer.forward_norm, d),
            qkv: packing.linear_in_order(&layer.qkv, &rows, &of_qkv),
            out: packing.linear_in_order(&layer.out, &of_mixed, &rows),
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
            move |variant| program::<R>(&for_program, times, variant, machine),
            move |variant| memory::<R>(&for_memory, times, variant, machine),
        );
        // products on tensor cores are not shared among blocks
        kernel.team = if machine.tensor { 1 } else { team(&config) };
        arguments.weights = kernel.keep(driver, &packing.weights)?;
        arguments.layers = kernel.keep(driver, &layers.repeat(config.blocks))?;
        kernel.arguments = bytes(&arguments);
        Ok(kernel)
    }
}
