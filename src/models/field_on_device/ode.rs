//! The ODE of a continuous flow in one launch (`cuda/ode.cuh`): distribution of the work, and the kernel's arguments.

use super::{BlockShape, FieldOnDevice, Variant};
use crate::device::{Buffer, Driver};
use crate::error::Result;
use crate::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use crate::models::field::PathSolver;
use crate::nn::Real;
use crate::ode::{End, Method, Report};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Name of the kernel for paths, which every field has besides that of its values.
const KERNEL: &str = "paths";

/// `Ode` of the kernels; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Ode {
    x: u64,
    integral: u64,
    reports: u64,
    probes: u64,
    blocks: u64,
    teams: u64,
    arrivals: u64,
    scratch: u64,
    start: f64,
    end: f64,
    absolute: f64,
    relative: f64,
    tolerance: f64,
    n: i32,
    team: i32,
    n_probes: i32,
    method: i32,
    steps: i32,
    nodes: i32,
    mean_free: i32,
    parametrisation: i32,
    from_data: i32,
    padding: i32,
}

impl Ode {
    /// Arguments from the flow's configuration.
    fn of(flow: &ContinuousConfig, [start, end]: [f64; 2]) -> Ode {
        let ode = Ode {
            start,
            end,
            mean_free: i32::from(flow.prior == Prior::MeanFree),
            parametrisation: match (flow.parametrisation, flow.interpolant) {
                (Parametrisation::Velocity, _) => 0,
                (Parametrisation::Endpoint, Interpolant::Linear) => 1,
                (Parametrisation::Endpoint, Interpolant::Trigonometric) => 2,
            },
            from_data: i32::from(flow.times[0] > flow.times[1]),
            ..Ode::default()
        };
        match flow.solver {
            Method::Euler { steps } => Ode { method: 0, steps: steps as i32, ..ode },
            Method::Rk4 { steps } => Ode { method: 1, steps: steps as i32, ..ode },
            Method::DormandPrince { absolute, relative, log_density, quadrature, max_steps } => {
                let (steps, nodes) = (max_steps as i32, quadrature as i32);
                Ode { method: 2, steps, nodes, absolute, relative, tolerance: log_density, ..ode }
            }
        }
    }
}

/// `Report` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ReportRecord {
    evaluations: i32,
    accepted: i32,
    rejected: i32,
    end: i32,
}

/// Device memory for the paths of a batch; what a block keeps of its field is separate.
pub(super) struct Work {
    x: Buffer<f64>,
    integral: Buffer<f64>,
    reports: Buffer<ReportRecord>,
    probes: Buffer<f64>,
    blocks: Buffer<f64>,
    teams: Buffer<f64>,
    arrivals: Buffer<u32>,
}

impl Work {
    pub(super) fn new(driver: &Arc<dyn Driver>) -> Work {
        Work {
            x: Buffer::empty(driver),
            integral: Buffer::empty(driver),
            reports: Buffer::empty(driver),
            probes: Buffer::empty(driver),
            blocks: Buffer::empty(driver),
            teams: Buffer::empty(driver),
            arrivals: Buffer::empty(driver),
        }
    }
}

impl ReportRecord {
    fn report(self) -> Report {
        Report {
            evaluations: self.evaluations as usize,
            accepted: self.accepted as usize,
            rejected: self.rejected as usize,
            end: match self.end {
                0 => End::Done,
                1 => End::StepBudget,
                2 => End::StepUnderflow,
                _ => End::NonFinite,
            },
        }
    }
}

/// Blocks per team, with `resident` blocks running at once, for n samples with this many shares of a divergence: as few
/// as take at most a tenth longer than the best number, counted in shares computed in sequence. Each block computes the
/// values by itself, which takes about as long as a share: slightly less by the multiply-adds of either field with a
/// tape, but their other operations take longer.
fn team_size(n: usize, shares: usize, resident: usize) -> usize {
    let time = |blocks: usize| n.div_ceil(resident / blocks) * (1 + shares.div_ceil(blocks));
    let most = shares.min(resident);
    let best = (1..=most).map(time).min().unwrap_or(0);
    (1..=most).find(|&blocks| 10 * time(blocks) <= 11 * best).unwrap_or(1)
}

/// Samples that a team carries in one launch: enough that blocks seldom wait for the slowest; one if kernels that take
/// seconds are killed.
fn samples_of_a_team(driver: &dyn Driver) -> usize {
    if driver.has_watchdog() {
        1
    } else {
        16
    }
}

impl<R: Real> PathSolver for FieldOnDevice<R> {
    fn carry(
        &self,
        flow: &ContinuousConfig,
        span: [f64; 2],
        probes: &[f64],
        x: &mut [f64],
        integral: &mut [f64],
    ) -> Result<Vec<Report>> {
        let d = self.kernel.dimension;
        let n = x.len() / d;
        if n == 0 {
            return Ok(Vec::new());
        }
        let (directions, shares) = match flow.divergence {
            _ if integral.is_empty() => (0, 1),
            Divergence::Exact => (self.kernel.directions, self.shares()),
            Divergence::Hutchinson { probes } => (1, probes),
        };
        let block = self.block(KERNEL, Variant::of_blocks(directions))?;
        let team = team_size(n, shares, block.resident);
        let ode = Ode { team: team as i32, n_probes: shares as i32, ..Ode::of(flow, span) };
        let rows = block.resident / team * samples_of_a_team(&*self.driver);
        let mut reports = Vec::with_capacity(n);
        for (launch, x) in x.chunks_mut(rows * d).enumerate() {
            let part = |all: usize| launch * rows * all / n..(launch * rows + x.len() / d) * all / n;
            let (of_probes, of_integral) = (part(probes.len()), part(integral.len()));
            let (probes, integral) = (&probes[of_probes], &mut integral[of_integral]);
            reports.extend(self.launch_paths(&block, &ode, probes, x, integral)?);
        }
        Ok(reports)
    }
}

impl<R: Real> FieldOnDevice<R> {
    /// Launches once for all of these samples, with as many teams as there is work or room for.
    fn launch_paths(
        &self,
        block: &BlockShape,
        ode: &Ode,
        probes: &[f64],
        x: &mut [f64],
        integral: &mut [f64],
    ) -> Result<Vec<Report>> {
        let (d, team, shares) = (self.kernel.dimension, ode.team as usize, ode.n_probes as usize);
        let n = x.len() / d;
        let teams = n.min(block.resident / team);
        let none_yet = vec![0; teams];
        let mut workspace = self.work.take()?;
        let driver = workspace.driver.clone();
        let super::Work { scratch, paths: work, .. } = &mut *workspace;
        work.x.write(x)?;
        work.integral.write(integral)?;
        work.reports.reserve(n)?;
        work.probes.write(probes)?;
        work.blocks.reserve(teams * team * 10 * (d + 1))?;
        work.teams.reserve(teams * 2 * (d + shares))?;
        work.arrivals.write(&none_yet)?;
        // last, as it takes as much as there is
        let teams = scratch.reserve_parts(teams, team * block.scratch)?;
        let grid = teams * team;
        let or_null = |buffer: u64, empty: bool| if empty { 0 } else { buffer };
        let ode = Ode {
            x: work.x.address(),
            integral: or_null(work.integral.address(), integral.is_empty()),
            reports: work.reports.address(),
            probes: or_null(work.probes.address(), probes.is_empty()),
            blocks: work.blocks.address(),
            teams: work.teams.address(),
            arrivals: work.arrivals.address(),
            scratch: or_null(scratch.address(), block.scratch == 0),
            n: n as i32,
            ..*ode
        };
        let argument = [bytemuck::bytes_of(&ode), &self.kernel.arguments].concat();
        let (grid, threads) = (grid as u32, self.kernel.threads as u32);
        // SAFETY: the kernel takes `Ode` and its model's arguments; buffers have room for n samples, and for this many
        // teams and blocks, and live until the results are read.
        unsafe {
            match team {
                1 => driver.launch(block.kernel, grid, threads, block.shared, &argument)?,
                _ => driver.launch_together(block.kernel, grid, threads, block.shared, &argument)?,
            }
        }
        let mut records = vec![ReportRecord::default(); n];
        let reports = work.reports.copy_to(&mut records);
        driver.download(&mut [work.x.copy_to(x), work.integral.copy_to(integral), reports])?;
        Ok(records.into_iter().map(ReportRecord::report).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For a card with 132 blocks, and the 16 shares of 22 atoms.
    #[test]
    fn teams_fill_the_card_where_samples_do_not() {
        let size = |n| team_size(n, 16, 132);
        // one sample: one share per block; as many samples as blocks: not shared; many more: likewise
        assert_eq!([size(1), size(8), size(66), size(132), size(4096)], [16, 16, 2, 1, 1]);
        // slightly more than one round: two blocks in three rounds are nearly as good as four in five
        assert_eq!(size(150), 2);
        assert_eq!([team_size(5, 1, 132), team_size(5, 16, 1)], [1, 1]);
    }
}
