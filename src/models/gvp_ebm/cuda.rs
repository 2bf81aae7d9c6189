//! The energy on a GPU: weights in the layout of `cuda/gvp.cuh` and `cuda/gvp_ebm.cu`.

use super::GvpEnergy;
use crate::device::{Driver, Program};
use crate::error::Result;
use crate::models::field_on_device::{bytes, EnergyKernel, FieldKernel, LinearRecord};
use crate::models::gvp_flow::cuda::{keep_trunk, kernel, programs_on_trunk, TrunkRecord};
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: (&str, &str) = ("gvp_ebm", include_str!("../../../cuda/gvp_ebm.cu"));

/// `Arguments` of the kernel after the batch.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    trunk: TrunkRecord,
    energy: [LinearRecord; 2],
}

/// Kernels for a network of BoltzNCE's sizes; the other variants of the trunk are covered by the field.
pub fn programs() -> Vec<Program> {
    programs_on_trunk(SOURCE)
}

impl EnergyKernel for GvpEnergy {
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel> {
        let trunk = (self.config(), self.trunk.places());
        let mut kernel = kernel::<R>("gvp_energy", SOURCE, trunk.0, driver);
        let (trunk, energy) =
            keep_trunk(&mut kernel, parameters, trunk, |packing| self.energy.map(|w| packing.linear(&w)), driver)?;
        kernel.arguments = bytes(&Arguments { trunk, energy });
        Ok(FieldKernel { shares: kernel.dimension.div_ceil(kernel.directions), ..kernel })
    }
}
