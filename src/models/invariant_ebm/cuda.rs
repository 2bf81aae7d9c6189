//! Distances, volumes and their whitening on a GPU, in the layout of `cuda/mlp_ebm.cu`.

use super::{InvariantNetwork, LENGTHS};
use crate::device::Driver;
use crate::error::Result;
use crate::models::continuous::Interpolant;
use crate::models::field_on_device::{EnergyKernel, FieldKernel, Packing};
use crate::models::mlp_ebm::cuda::{with_trunk, Arguments, Molecule, Sizes};
use crate::nn::tape::Swap;
use crate::nn::Real;
use std::sync::Arc;

/// A vector between two atoms, in the kernel's types.
fn ends([from, to]: [usize; 2]) -> [i32; 2] {
    [from as i32, to as i32]
}

/// `Swap` of the kernel.
fn swap(swap: &Swap) -> Vec<i32> {
    let volume = swap.volume.map(ends);
    [&ends(swap.alike)[..], volume.as_flattened(), &[i32::from(swap.positive)]].concat()
}

/// For each atom the [vector, sign] of all vectors of the volumes that end or begin there, and where each atom's list
/// begins.
fn by_atom(volumes: &[[[usize; 2]; 3]], atoms: usize) -> (Vec<[i32; 2]>, Vec<i32>) {
    let (mut sorted, mut starts) = (Vec::new(), vec![0]);
    for atom in 0..atoms {
        for (vector, &[from, to]) in volumes.as_flattened().iter().enumerate() {
            sorted.extend([(to, 1), (from, -1)].iter().filter(|end| end.0 == atom).map(|end| [vector as i32, end.1]));
        }
        starts.push(sorted.len() as i32);
    }
    (sorted, starts)
}

impl EnergyKernel for InvariantNetwork {
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel> {
        let super::InvariantConfig { atoms, inputs, width, layers, interpolant, .. } = self.config;
        let (volumes, swaps) = (&self.invariants.volumes, &self.invariants.swaps);
        let molecule = Molecule {
            atoms,
            volumes: volumes.len(),
            swaps: swaps.len(),
            trigonometric: interpolant == Interpolant::Trigonometric,
        };
        let sizes = Sizes { inputs, times: LENGTHS.len(), width, layers, molecule: Some(molecule) };
        let mut kernel = sizes.kernel::<R>(driver);
        let mut packing = Packing { parameters, weights: Vec::new() };
        let (sorted, starts) = by_atom(volumes, atoms);
        let vectors: Vec<[i32; 2]> = volumes.as_flattened().iter().copied().map(ends).collect();
        let arguments = Arguments {
            volumes: kernel.keep(driver, &vectors)?,
            swaps: kernel.keep(driver, &swaps.iter().flat_map(swap).collect::<Vec<i32>>())?,
            ends: kernel.keep(driver, &sorted)?,
            by_atom: kernel.keep(driver, &starts)?,
            whitening: packing.linear(&self.whitening),
            gate: packing.linear(&self.gate),
            variance: packing.vector(self.variance, 2 * inputs),
            ..Arguments::default()
        };
        with_trunk(kernel, &self.trunk, packing, arguments, driver)
    }
}
