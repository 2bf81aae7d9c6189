//! Energies ending in a residual network on a GPU: weights in the layout of `cuda/mlp_ebm.cu`. The part of an
//! `invariant_ebm` before its network is in `invariant_ebm/cuda.rs`.

use super::trunk::Trunk;
use super::MlpNetwork;
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::{
    bytes, needs_scratch, EnergyKernel, FieldKernel, LinearRecord, Machine, Numbers, Packing,
};
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: &str = include_str!("../../../cuda/mlp_ebm.cu");

/// Configurations of a block: lanes of a product.
const ROWS: usize = 8;
/// Threads of a block: two of 256 outputs each, for all its configurations.
const THREADS: usize = 128;

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    linear: LinearRecord,
    beta: i32,
}

/// `Arguments` of the kernel after the batch: addresses on the card, and offsets into the weights. Those of invariants
/// are zero if there are none.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub struct Arguments {
    pub weights: u64,
    pub layers: u64,
    pub volumes: u64,
    pub swaps: u64,
    pub ends: u64,
    pub by_atom: u64,
    pub whitening: LinearRecord,
    pub gate: LinearRecord,
    pub input: LinearRecord,
    pub output: LinearRecord,
    pub variance: i32,
    pub padding: i32,
}

/// Sizes that kernels are compiled for.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Inputs of the network, without those of the time.
    pub inputs: usize,
    pub times: usize,
    pub width: usize,
    pub layers: usize,
    pub molecule: Option<Molecule>,
}

/// Source of the inputs, if they are not the coordinates.
#[derive(Clone, Copy)]
pub struct Molecule {
    pub atoms: usize,
    pub volumes: usize,
    pub swaps: usize,
    /// Whether the interpolant is trigonometric.
    pub trigonometric: bool,
}

/// Kernels for a network of eight wells in the plane, and for that of alanine dipeptide, in every variant, also without
/// shared memory.
pub fn programs() -> Vec<Program> {
    let molecule = Molecule { atoms: 22, volumes: 61, swaps: 8, trigonometric: true };
    let of_molecule = Sizes { inputs: 208, times: 8, width: 256, layers: 3, molecule: Some(molecule) };
    let of_plane = Sizes { inputs: 2, times: 1, width: 64, layers: 3, molecule: None };
    let plain = Machine::ELSEWHERE;
    let of = |sizes: Sizes| {
        [false, true].map(|score| [sizes.program::<f32>(score, plain), sizes.program::<f64>(score, plain)])
    };
    let others = [Machine { shared: 0, ..plain }, Machine::WITH_TENSOR_CORES];
    let others = others.map(|machine| of_molecule.program::<f32>(true, machine));
    [of_molecule, of_plane].into_iter().flat_map(of).flatten().chain(others).collect()
}

impl Sizes {
    fn dimension(&self) -> usize {
        self.molecule.map_or(self.inputs, |molecule| 3 * molecule.atoms)
    }

    /// Numbers in a block's state: `MEMORY` of the kernel.
    fn memory(&self, score: bool) -> usize {
        let even = |n: usize| n.next_multiple_of(2);
        let Sizes { inputs, times, layers, .. } = *self;
        let width = even(self.width);
        let (before, by_vectors) = self.molecule.map_or((0, 0), |Molecule { atoms, volumes, swaps, .. }| {
            let numbers = atoms * (atoms - 1) / 2 + volumes;
            (7 * atoms + swaps + even(numbers) + inputs, if score { 9 * volumes } else { 0 })
        });
        let kept = if score { layers } else { 1 };
        ROWS * (before + inputs + times + width + (kept * width).max(by_vectors) + THREADS / ROWS)
    }

    fn program<R: Real>(&self, score: bool, Machine { shared, tensor }: Machine) -> Program {
        let mut constants: Vec<(_, &dyn std::fmt::Display)> = Vec::new();
        let (real, number) = (crate::device::program::real::<R>(), u8::from);
        let (score_too, scratch) = (number(score), number(needs_scratch::<R>(self.memory(score), shared)));
        let (of_molecule, tensor) = (number(self.molecule.is_some()), number(tensor));
        constants.extend::<[(_, &dyn std::fmt::Display); 10]>([
            ("REAL", &real),
            ("TENSOR", &tensor),
            ("THREADS", &THREADS),
            ("INPUTS", &self.inputs),
            ("TIMES", &self.times),
            ("WIDTH", &self.width),
            ("LAYERS", &self.layers),
            ("SCORE", &score_too),
            ("SCRATCH", &scratch),
            ("INVARIANT", &of_molecule),
        ]);
        let trigonometric = number(self.molecule.is_some_and(|molecule| molecule.trigonometric));
        if let Some(Molecule { atoms, volumes, swaps, .. }) = &self.molecule {
            constants.extend::<[(_, &dyn std::fmt::Display); 4]>([
                ("ATOMS", atoms),
                ("VOLUMES", volumes),
                ("SWAPS", swaps),
                ("TRIGONOMETRIC", &trigonometric),
            ]);
        }
        Program::new("mlp_ebm", SOURCE, &constants)
    }

    /// The kernel without its data.
    pub fn kernel<R: Real>(self, driver: &Arc<dyn Driver>) -> FieldKernel {
        let machine = Machine::of::<R>(driver);
        let kernel = FieldKernel::new(
            ("mlp", self.dimension(), THREADS),
            move |variant| self.program::<R>(variant.directions > 0, machine),
            move |variant| Numbers::of_state(self.memory(variant.directions > 0)),
        );
        FieldKernel { rows: ROWS, ..kernel }
    }
}

/// The kernel with its network's weights. Errors: the driver's.
pub fn with_trunk<R: Real>(
    mut kernel: FieldKernel,
    trunk: &Trunk,
    mut packing: Packing<R>,
    arguments: Arguments,
    driver: &Arc<dyn Driver>,
) -> Result<FieldKernel> {
    let mut layer = |layer: &super::trunk::Layer| LayerRecord {
        linear: packing.linear(&layer.weight),
        beta: packing.vector(layer.beta, 1),
    };
    let layers: Vec<LayerRecord> = trunk.layers.iter().map(&mut layer).collect();
    let (input, output) = (packing.linear(&trunk.input), packing.linear(&trunk.output));
    let weights = kernel.keep(driver, &packing.weights)?;
    let layers = kernel.keep(driver, &layers)?;
    kernel.arguments = bytes(&Arguments { weights, layers, input, output, ..arguments });
    Ok(kernel)
}

impl EnergyKernel for MlpNetwork {
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel> {
        let super::MlpConfig { dimension, width, layers } = self.config;
        let sizes = Sizes { inputs: dimension, times: 1, width, layers, molecule: None };
        let packing = Packing { parameters, weights: Vec::new() };
        with_trunk(sizes.kernel::<R>(driver), &self.trunk, packing, Arguments::default(), driver)
    }
}
