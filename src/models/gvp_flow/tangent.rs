//! Forward-mode derivatives of the geometric vector perceptron, along any number of directions at once, one row each.

use super::edges::EdgeTangents;
use super::gvp::{grow, Gvp, Linear, Tape};
use crate::nn::lanes::{Kernel, Lanes, WIDTH};
use crate::nn::product::{accumulate, load_tile, store_tile};
use crate::nn::Real;

#[derive(Clone, Debug, Default)]
pub struct TangentScratch<R> {
    norms: Vec<R>,
    scalars: Vec<R>,
    gates: Vec<R>,
}

/// Adds the tangents of (s′, V′) at one row of a tape to `ds[rows][scalars]` and `dv[rows][3][vectors]`.
pub struct Tangents<'a, R> {
    pub gvp: &'a Gvp<R>,
    pub tape: &'a Tape<R>,
    /// Row of the tape.
    pub at: usize,
    pub rows: usize,
    /// Tangents of the linear part, from row `first` on.
    pub linear: &'a Linear<R>,
    pub first: usize,
    /// Tangents of the edge, and their first direction.
    pub edge: Option<(&'a EdgeTangents<R>, usize)>,
    pub scratch: &'a mut TangentScratch<R>,
    pub ds: &'a mut [R],
    pub dv: &'a mut [R],
}

impl<R: Real> Tangents<'_, R> {
    /// Runs the kernel.
    pub fn add(self) {
        let [f, h, u] = self.gvp.widths();
        grow(&mut self.scratch.norms, self.rows * h);
        grow(&mut self.scratch.scalars, self.rows * f);
        grow(&mut self.scratch.gates, self.rows * u);
        R::vectorised(self);
    }

    /// dn = Σ_c ∂n/∂Vh_c · dVh_c, for some rows.
    #[inline(always)]
    fn norms_tile<L: Lanes<R>, const ROWS: usize>(&mut self, row: usize, q: usize, by: [L; 3], by_direction: [L; 3]) {
        let width = self.gvp.widths()[1];
        let mut sum = [[L::zero(); 1]; ROWS];
        for c in 0..3 {
            let hidden: [[L; 1]; ROWS] =
                load_tile(&self.linear.hidden[((self.first + row) * 3 + c) * width + q..], 3 * width);
            for r in 0..ROWS {
                sum[r][0] = by[c].mul_add(hidden[r][0], sum[r][0]);
            }
            if let Some((edge, first)) = self.edge {
                let direction = &edge.direction[c * edge.stride + first + row..][..ROWS];
                for r in 0..ROWS {
                    sum[r][0] = L::splat(direction[r]).mul_add(by_direction[c], sum[r][0]);
                }
            }
        }
        store_tile(sum, &mut self.scratch.norms[row * width + q..], width);
    }

    #[inline(always)]
    fn norms<L: Lanes<R>>(&mut self) {
        let width = self.gvp.widths()[1];
        for q in (0..width).step_by(WIDTH) {
            let mut by = [L::zero(); 3];
            let mut by_direction = [L::zero(); 3];
            for c in 0..3 {
                by[c] = L::load(&self.tape.hidden[(self.at * 3 + c) * width + q..]);
                by_direction[c] = by[c].mul(L::load(&self.gvp.direction_hidden[q..]));
            }
            let mut row = 0;
            while row + 6 <= self.rows {
                self.norms_tile::<L, 6>(row, q, by, by_direction);
                row += 6;
            }
            while row < self.rows {
                self.norms_tile::<L, 1>(row, q, by, by_direction);
                row += 1;
            }
        }
    }

    /// ds′ = slope · (W_s ds + (W r′) dd + W dn), for a register tile.
    #[inline(always)]
    fn scalars_tile<L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(&mut self, row: usize, column: usize) {
        let [width, h, _] = self.gvp.widths();
        let place = column * WIDTH;
        let mut sum: [[L; COLUMNS]; ROWS] =
            load_tile(&self.linear.scalars[(self.first + row) * width + place..], width);
        if let Some((edge, first)) = self.edge {
            let radial: [[L; COLUMNS]; 1] = load_tile(&self.tape.radial[self.at * width + place..], 0);
            let distance = &edge.distance[first + row..][..ROWS];
            for r in 0..ROWS {
                for c in 0..COLUMNS {
                    sum[r][c] = L::splat(distance[r]).mul_add(radial[0][c], sum[r][c]);
                }
            }
        }
        let norms = &self.gvp.norms;
        let x = (&self.scratch.norms[row * h..], h);
        let mut sum = accumulate(sum, x, norms.n_in, norms.columns(place));
        let slope: [[L; COLUMNS]; 1] = load_tile(&self.tape.slope[self.at * width + place..], 0);
        let ds = &mut self.ds[row * width + place..];
        let mut total: [[L; COLUMNS]; ROWS] = load_tile(ds, width);
        for r in 0..ROWS {
            for c in 0..COLUMNS {
                sum[r][c] = slope[0][c].mul(sum[r][c]);
                total[r][c] = total[r][c].add(sum[r][c]);
            }
        }
        store_tile(total, ds, width);
        store_tile(sum, &mut self.scratch.scalars[row * width + place..], width);
    }

    #[inline(always)]
    fn scalars<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        let mut row = 0;
        while row + 6 <= self.rows {
            self.scalars_tile::<L, 6, COLUMNS>(row, column);
            row += 6;
        }
        while row + 3 <= self.rows {
            self.scalars_tile::<L, 3, COLUMNS>(row, column);
            row += 3;
        }
        while row < self.rows {
            self.scalars_tile::<L, 1, COLUMNS>(row, column);
            row += 1;
        }
    }

    /// dV′ = σ(g) dVu + σ′(g) Vu (Wg ds′), for some rows.
    #[inline(always)]
    fn vectors_tile<L: Lanes<R>, const ROWS: usize>(&mut self, row: usize, u: usize) {
        let [f, _, width] = self.gvp.widths();
        let gates = &self.gvp.gates;
        let x = (&self.scratch.scalars[row * f..], f);
        let dg = accumulate([[L::zero(); 1]; ROWS], x, gates.n_in, gates.columns(u));
        let gate = L::load(&self.tape.gate[self.at * width + u..]);
        let by_direction = gate.mul(L::load(&self.gvp.direction_outputs[u..]));
        for c in 0..3 {
            let gated = L::load(&self.tape.gated[(self.at * 3 + c) * width + u..]);
            let outputs: [[L; 1]; ROWS] =
                load_tile(&self.linear.outputs[((self.first + row) * 3 + c) * width + u..], 3 * width);
            let dv = &mut self.dv[(row * 3 + c) * width + u..];
            let mut sum: [[L; 1]; ROWS] = load_tile(dv, 3 * width);
            for r in 0..ROWS {
                sum[r][0] = gate.mul_add(outputs[r][0], dg[r][0].mul_add(gated, sum[r][0]));
            }
            if let Some((edge, first)) = self.edge {
                let direction = &edge.direction[c * edge.stride + first + row..][..ROWS];
                for r in 0..ROWS {
                    sum[r][0] = L::splat(direction[r]).mul_add(by_direction, sum[r][0]);
                }
            }
            store_tile(sum, dv, 3 * width);
        }
    }

    #[inline(always)]
    fn vectors<L: Lanes<R>>(&mut self, u: usize) {
        let mut row = 0;
        while row + 6 <= self.rows {
            self.vectors_tile::<L, 6>(row, u);
            row += 6;
        }
        while row + 3 <= self.rows {
            self.vectors_tile::<L, 3>(row, u);
            row += 3;
        }
        while row < self.rows {
            self.vectors_tile::<L, 1>(row, u);
            row += 1;
        }
    }
}

impl<R: Real> Kernel<R> for Tangents<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let [f, _, u] = self.gvp.widths();
        self.norms::<L>();
        let (columns, mut column) = (f / WIDTH, 0);
        while L::COLUMNS >= 4 && column + 4 <= columns {
            self.scalars::<L, 4>(column);
            column += 4;
        }
        while L::COLUMNS >= 2 && column + 2 <= columns {
            self.scalars::<L, 2>(column);
            column += 2;
        }
        while column < columns {
            self.scalars::<L, 1>(column);
            column += 1;
        }
        for u in (0..u).step_by(WIDTH) {
            self.vectors::<L>(u);
        }
    }
}
