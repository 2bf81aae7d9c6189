//! Products of a weight matrix with panels of tangents and with the messages of pairs, in register tiles.

// Indices of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::{Geometry, Matrix, Pairs};
use crate::nn::lanes::{Kernel, Lanes, WIDTH};
use crate::nn::product::{accumulate, load_tile};
use crate::nn::Real;

/// Largest number of rows of a register tile.
const MOST_ROWS: usize = 6;
/// Largest number of columns of a register tile.
pub(super) const MOST_COLUMNS: usize = 4;

/// Runs a kernel on all columns, as many at once as fit into the registers.
macro_rules! by_columns {
    ($kernel:ident, $lanes:ident) => {
        let mut column = 0;
        while $lanes::COLUMNS >= 4 && column + 4 <= $kernel.columns {
            $kernel.columns::<$lanes, 4>(column);
            column += 4;
        }
        while $lanes::COLUMNS >= 2 && column + 2 <= $kernel.columns {
            $kernel.columns::<$lanes, 2>(column);
            column += 2;
        }
        while column < $kernel.columns {
            $kernel.columns::<$lanes, 1>(column);
            column += 1;
        }
    };
}

/// y = M x, or y += M x, for panels.
pub(super) struct PanelProduct<'a, R> {
    pub(super) matrix: Matrix<'a, R>,
    pub(super) columns: usize,
    pub(super) x: &'a [R],
    pub(super) y: &'a mut [R],
    pub(super) add: bool,
}

impl<R: Real> Kernel<R> for PanelProduct<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        by_columns!(self, L);
    }
}

impl<R: Real> PanelProduct<'_, R> {
    #[inline(always)]
    fn columns<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        let Matrix { n_in, n_out, .. } = self.matrix;
        let (x, y) = (&self.x[column * n_in * WIDTH..], &mut self.y[column * n_out * WIDTH..]);
        self.matrix.times::<L, COLUMNS>(x, &mut Stored { y, n_out, add: self.add });
    }
}

/// Receives the rows of a product, each some columns of a panel. A trait rather than a closure, which would not be
/// inlined.
trait Rows<R: Real, L: Lanes<R>, const COLUMNS: usize> {
    /// Must be `#[inline(always)]`.
    fn put(&mut self, row: usize, lanes: [L; COLUMNS]);
}

/// Stores the rows, or adds them.
struct Stored<'a, R> {
    y: &'a mut [R],
    n_out: usize,
    add: bool,
}

impl<R: Real, L: Lanes<R>, const COLUMNS: usize> Rows<R, L, COLUMNS> for Stored<'_, R> {
    #[inline(always)]
    fn put(&mut self, row: usize, lanes: [L; COLUMNS]) {
        for c in 0..COLUMNS {
            let to = &mut self.y[(c * self.n_out + row) * WIDTH..];
            let before = if self.add { L::load(to) } else { L::zero() };
            before.add(lanes[c]).store(to);
        }
    }
}

/// Adds gain ∘ row + gated to_gate to a sum.
struct Weighed<'a, R, L, const COLUMNS: usize> {
    gain: &'a [R],
    gated: &'a [R],
    to_gate: [L; COLUMNS],
    sum: &'a mut [R],
}

impl<R: Real, L: Lanes<R>, const COLUMNS: usize> Rows<R, L, COLUMNS> for Weighed<'_, R, L, COLUMNS> {
    #[inline(always)]
    fn put(&mut self, row: usize, lanes: [L; COLUMNS]) {
        let (gain, gated) = (L::splat(self.gain[row]), L::splat(self.gated[row]));
        for c in 0..COLUMNS {
            let to = &mut self.sum[(c * self.gain.len() + row) * WIDTH..];
            gain.mul_add(lanes[c], gated.mul_add(self.to_gate[c], L::load(to))).store(to);
        }
    }
}

impl<R: Real> Matrix<'_, R> {
    /// Passes on the rows of M x, for some columns of the panels.
    #[inline(always)]
    fn times<L: Lanes<R>, const COLUMNS: usize>(&self, x: &[R], to: &mut impl Rows<R, L, COLUMNS>) {
        // tiles with equal numbers of rows, up to one
        let (tiles, mut row) = (self.n_out.div_ceil(MOST_ROWS), 0);
        for tile in 0..tiles {
            let rows = (self.n_out - row).div_ceil(tiles - tile);
            match rows {
                6 => self.tile::<L, 6, COLUMNS>(row, x, to),
                5 => self.tile::<L, 5, COLUMNS>(row, x, to),
                4 => self.tile::<L, 4, COLUMNS>(row, x, to),
                3 => self.tile::<L, 3, COLUMNS>(row, x, to),
                2 => self.tile::<L, 2, COLUMNS>(row, x, to),
                _ => self.tile::<L, 1, COLUMNS>(row, x, to),
            }
            row += rows;
        }
    }

    #[inline(always)]
    fn tile<L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
        &self,
        row: usize,
        x: &[R],
        to: &mut impl Rows<R, L, COLUMNS>,
    ) {
        let zero = [[L::zero(); COLUMNS]; ROWS];
        let weights = (&self.rows[row * self.stride..], self.stride);
        let sum: [[L; COLUMNS]; ROWS] = accumulate(zero, weights, self.n_in, x);
        for r in 0..ROWS {
            to.put(row + r, sum[r]);
        }
    }
}

/// Tangents of the messages to atom i, and of its position.
pub(super) struct Messages<'a, R> {
    pub(super) i: usize,
    pub(super) n: usize,
    pub(super) columns: usize,
    pub(super) pairs: &'a Pairs<'a, R>,
    /// x_i − x_j of the input.
    pub(super) start: &'a [R],
    pub(super) step: R,
    pub(super) of_source: &'a [R],
    pub(super) of_destination: &'a [R],
    pub(super) x: &'a [R],
    /// da of some columns.
    pub(super) changes: &'a mut [R],
    pub(super) sum: &'a mut [R],
    pub(super) next: &'a mut [R],
}

impl<R: Real> Kernel<R> for Messages<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        by_columns!(self, L);
    }
}

impl<R: Real> Messages<'_, R> {
    #[inline(always)]
    fn columns<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        let own = self.i;
        for j in (0..self.n).filter(|&j| j != own) {
            let pair = self.i * self.n + j;
            let (change, dr) = self.distances::<L, COLUMNS>(column, j);
            let [to_gate, to_step] = self.changes::<L, COLUMNS>(column, j, dr);
            self.add_message::<L, COLUMNS>(column, pair, to_gate);
            self.add_step::<L, COLUMNS>(column, pair, (change, dr), to_step);
        }
    }

    /// d(x_i − x_j) and dr_ij.
    #[inline(always)]
    fn distances<L: Lanes<R>, const COLUMNS: usize>(
        &self,
        column: usize,
        j: usize,
    ) -> ([[L; COLUMNS]; 3], [L; COLUMNS]) {
        let width = self.columns * WIDTH;
        let mut change = [[L::zero(); COLUMNS]; 3];
        let mut dr = [L::zero(); COLUMNS];
        for axis in 0..3 {
            let [own, other] = [self.i, j].map(|atom| &self.x[(3 * atom + axis) * width + column * WIDTH..]);
            let [own] = load_tile::<R, L, 1, COLUMNS>(own, 0);
            let [other] = load_tile::<R, L, 1, COLUMNS>(other, 0);
            let d = self.pairs.geometry[self.i * self.n + j].d[axis];
            let twice = L::splat(d + d);
            for c in 0..COLUMNS {
                change[axis][c] = own[c].sub(other[c]);
                dr[c] = twice.mul_add(change[axis][c], dr[c]);
            }
        }
        (change, dr)
    }

    /// Writes da to `changes`; returns z·da and y·da.
    #[inline(always)]
    fn changes<L: Lanes<R>, const COLUMNS: usize>(
        &mut self,
        column: usize,
        j: usize,
        dr: [L; COLUMNS],
    ) -> [[L; COLUMNS]; 2] {
        let (hidden, pair) = (self.pairs.hidden, self.i * self.n + j);
        let da = self.start_distances::<L, COLUMNS>(column, j);
        let place = column * hidden * WIDTH;
        let own = &self.of_destination[place..];
        let other = &self.of_source[j * self.of_destination.len() + place..];
        let [slope, z, y] =
            [&self.pairs.slope, &self.pairs.to_gate, &self.pairs.to_step].map(|of| self.pairs.row(of, pair));
        let (of_r, of_a) = (&self.pairs.of_r[..hidden], &self.pairs.of_a[..hidden]);
        let mut sums = [[L::zero(); COLUMNS]; 2];
        for c in 0..COLUMNS {
            let range = c * hidden * WIDTH..(c + 1) * hidden * WIDTH;
            let lanes = own[range.clone()].chunks_exact(WIDTH).zip(other[range.clone()].chunks_exact(WIDTH));
            for (k, ((own, other), to)) in lanes.zip(self.changes[range].chunks_exact_mut(WIDTH)).enumerate() {
                let sum = L::splat(of_r[k]).mul_add(dr[c], L::load(own).add(L::load(other)));
                let change = L::splat(slope[k]).mul(L::splat(of_a[k]).mul_add(da[c], sum));
                change.store(to);
                sums[0][c] = L::splat(z[k]).mul_add(change, sums[0][c]);
                sums[1][c] = L::splat(y[k]).mul_add(change, sums[1][c]);
            }
        }
        sums
    }

    /// da_ij, non-zero along only six directions.
    #[inline(always)]
    fn start_distances<L: Lanes<R>, const COLUMNS: usize>(&self, column: usize, j: usize) -> [L; COLUMNS] {
        let mut lanes = [R::default(); MOST_COLUMNS * WIDTH];
        let d = &self.start[3 * (self.i * self.n + j)..][..3];
        for (moved, sign) in [(self.i, R::from_f64(2.0)), (j, R::from_f64(-2.0))] {
            for axis in (0..3).filter(|_| moved + 1 < self.n) {
                let direction = (3 * moved + axis).wrapping_sub(column * WIDTH);
                if let Some(lane) = lanes[..COLUMNS * WIDTH].get_mut(direction) {
                    *lane = sign * d[axis];
                }
            }
        }
        load_tile::<R, L, 1, COLUMNS>(&lanes, 0)[0]
    }

    /// dm̄ of a pair.
    #[inline(always)]
    fn add_message<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize, pair: usize, to_gate: [L; COLUMNS]) {
        let hidden = self.pairs.hidden;
        let [gain, gated] = [&self.pairs.gain, &self.pairs.gated].map(|of| self.pairs.row(of, pair));
        let sum = &mut self.sum[column * hidden * WIDTH..][..COLUMNS * hidden * WIDTH];
        let changes = &self.changes[..COLUMNS * hidden * WIDTH];
        self.pairs.edge.times::<L, COLUMNS>(changes, &mut Weighed { gain, gated, to_gate, sum });
    }

    /// Tangent of the step of atom i away from j.
    #[inline(always)]
    fn add_step<L: Lanes<R>, const COLUMNS: usize>(
        &mut self,
        column: usize,
        pair: usize,
        (change, dr): ([[L; COLUMNS]; 3], [L; COLUMNS]),
        dc: [L; COLUMNS],
    ) {
        let Geometry { d, inverse, slope, c } = self.pairs.geometry[pair];
        let width = self.columns * WIDTH;
        let [of_change, of_dr, of_dc] = [c * inverse, c * slope, inverse].map(|factor| L::splat(self.step * factor));
        for axis in 0..3 {
            let along = L::splat(d[axis]);
            for k in 0..COLUMNS {
                let to = &mut self.next[axis * width + (column + k) * WIDTH..];
                let far = of_dr.mul_add(dr[k], of_dc.mul(dc[k]));
                of_change.mul_add(change[axis][k], along.mul_add(far, L::load(to))).store(to);
            }
        }
    }
}
