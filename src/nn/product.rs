//! Products of rows with a packed weight matrix, `y[rows][out] = start + x[rows][in] · W`, by register tiles.

// Indices of components and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::lanes::{padded, Kernel, Lanes, WIDTH};
use super::Real;

/// Weights `[in][out]`, `out` padded to whole lanes with zeros.
#[derive(Clone, Debug, Default)]
pub struct Packed<R> {
    pub n_in: usize,
    /// Outputs, padded.
    pub width: usize,
    pub weights: Vec<R>,
}

impl<R: Real> Packed<R> {
    /// From `weight(in, out)`.
    pub fn new(n_in: usize, n_out: usize, weight: impl Fn(usize, usize) -> f64) -> Packed<R> {
        let width = padded(n_out);
        let mut weights = vec![R::default(); n_in * width];
        for (i, row) in weights.chunks_exact_mut(width).enumerate() {
            row[..n_out].iter_mut().enumerate().for_each(|(o, w)| *w = R::from_f64(weight(i, o)));
        }
        Packed { n_in, width, weights }
    }

    /// `y[rows][width]`, from `x` whose rows are `stride` apart.
    pub fn apply(&self, rows: usize, x: &[R], stride: usize, start: Start<R>, y: &mut [R]) {
        if rows == 0 {
            return;
        }
        assert!(x.len() >= (rows - 1) * stride + self.n_in && y.len() >= rows * self.width);
        R::vectorised(Product { packed: self, rows, x, stride, start, y });
    }

    /// `x[n_in]` = W `y[width]`: the cotangent of a row.
    pub fn apply_transposed(&self, y: &[R], x: &mut [R]) {
        R::vectorised(Transposed { packed: self, y, x });
    }
}

/// A row padded to whole lanes.
pub fn padded_row<R: Real>(values: &[R]) -> Vec<R> {
    let mut row = values.to_vec();
    row.resize(padded(values.len()), R::default());
    row
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a, R> {
    Zero,
    /// The same padded row for all.
    Row(&'a [R]),
    /// A row for each, leaving out the row `skip`.
    Rows {
        rows: &'a [R],
        skip: usize,
    },
    /// What `y` holds.
    Output,
}

/// The place of number `r` in a list that leaves out `skip`.
#[inline(always)]
pub fn without(r: usize, skip: usize) -> usize {
    r + usize::from(r >= skip)
}

struct Product<'a, R> {
    packed: &'a Packed<R>,
    rows: usize,
    x: &'a [R],
    stride: usize,
    start: Start<'a, R>,
    y: &'a mut [R],
}

impl<R: Real> Kernel<R> for Product<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let (columns, mut column) = (self.packed.width / WIDTH, 0);
        while L::COLUMNS >= 4 && column + 4 <= columns {
            self.columns::<L, 4>(column);
            column += 4;
        }
        while L::COLUMNS >= 2 && column + 2 <= columns {
            self.columns::<L, 2>(column);
            column += 2;
        }
        while column < columns {
            self.columns::<L, 1>(column);
            column += 1;
        }
    }
}

impl<R: Real> Product<'_, R> {
    #[inline(always)]
    fn columns<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        let mut row = 0;
        while row + 6 <= self.rows {
            self.tile::<L, 6, COLUMNS>(row, column);
            row += 6;
        }
        while row + 3 <= self.rows {
            self.tile::<L, 3, COLUMNS>(row, column);
            row += 3;
        }
        while row < self.rows {
            self.tile::<L, 1, COLUMNS>(row, column);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(&mut self, row: usize, column: usize) {
        let width = self.packed.width;
        let place = column * WIDTH;
        let start: [[L; COLUMNS]; ROWS] = match self.start {
            Start::Zero => [[L::zero(); COLUMNS]; ROWS],
            Start::Row(bias) => load_tile(&bias[place..], 0),
            // the row that is left out may lie within the tile
            Start::Rows { rows, skip } if row < skip && skip < row + ROWS => {
                let mut start = [[L::zero(); COLUMNS]; ROWS];
                for r in 0..ROWS {
                    start[r] = load_tile::<R, L, 1, COLUMNS>(&rows[without(row + r, skip) * width + place..], width)[0];
                }
                start
            }
            Start::Rows { rows, skip } => load_tile(&rows[without(row, skip) * width + place..], width),
            Start::Output => load_tile(&self.y[row * width + place..], width),
        };
        let x = (&self.x[row * self.stride..], self.stride);
        let sum = accumulate(start, x, self.packed.n_in, (&self.packed.weights[place..], width));
        store_tile(sum, &mut self.y[row * width + place..], width);
    }
}

/// Lanes of ROWS rows that are `stride` apart.
#[inline(always)]
pub fn load_tile<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    from: &[R],
    stride: usize,
) -> [[L; COLUMNS]; ROWS] {
    assert!(from.len() >= (ROWS - 1) * stride + COLUMNS * WIDTH);
    let mut tile = [[L::zero(); COLUMNS]; ROWS];
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            // SAFETY: below (ROWS − 1) · stride + COLUMNS lanes, which the assertion checked.
            tile[r][c] = unsafe { L::read(from.as_ptr().add(r * stride + c * WIDTH)) };
        }
    }
    tile
}

#[inline(always)]
pub fn store_tile<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    tile: [[L; COLUMNS]; ROWS],
    to: &mut [R],
    stride: usize,
) {
    assert!(to.len() >= (ROWS - 1) * stride + COLUMNS * WIDTH);
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            // SAFETY: below (ROWS − 1) · stride + COLUMNS lanes, which the assertion checked.
            unsafe { tile[r][c].write(to.as_mut_ptr().add(r * stride + c * WIDTH)) };
        }
    }
}

struct Transposed<'a, R> {
    packed: &'a Packed<R>,
    y: &'a [R],
    x: &'a mut [R],
}

impl<R: Real> Kernel<R> for Transposed<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        for (weights, x) in self.packed.weights.chunks_exact(self.packed.width).zip(self.x) {
            *x = dot::<R, L>(weights, self.y);
        }
    }
}

/// Σ a·b of padded rows.
#[inline(always)]
pub fn dot<R: Real, L: Lanes<R>>(a: &[R], b: &[R]) -> R {
    let mut sum = L::zero();
    for (a, b) in a.chunks_exact(WIDTH).zip(b.chunks_exact(WIDTH)) {
        sum = L::load(a).mul_add(L::load(b), sum);
    }
    sum.sum()
}

/// sum + x · W of one register tile: `x.0[ROWS][n]` with rows `x.1` apart, `weights.0[n][COLUMNS lanes]` likewise.
#[inline(always)]
pub fn accumulate<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    mut sum: [[L; COLUMNS]; ROWS],
    x: (&[R], usize),
    n: usize,
    weights: (&[R], usize),
) -> [[L; COLUMNS]; ROWS] {
    assert!(n == 0 || x.0.len() >= (ROWS - 1) * x.1 + n && weights.0.len() >= (n - 1) * weights.1 + COLUMNS * WIDTH);
    let (values, weight) = (x.0.as_ptr(), weights.0.as_ptr());
    for k in 0..n {
        let mut w = [L::zero(); COLUMNS];
        for c in 0..COLUMNS {
            // SAFETY: below (n − 1) · stride + COLUMNS lanes, which the assertion checked.
            w[c] = unsafe { L::read(weight.add(k * weights.1 + c * WIDTH)) };
        }
        for r in 0..ROWS {
            // SAFETY: below (ROWS − 1) · stride + n, which the assertion checked.
            let value = L::splat(unsafe { *values.add(r * x.1 + k) });
            for c in 0..COLUMNS {
                sum[r][c] = value.mul_add(w[c], sum[r][c]);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_match_their_definition_for_all_remainders() {
        let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 50.0;
        for (rows, n_in, n_out) in [(1, 3, 5), (13, 17, 64), (9, 16, 48), (6, 1, 129), (20, 65, 16)] {
            let packed = Packed::<f32>::new(n_in, n_out, |i, o| value(i * n_out + o));
            let double = Packed::<f64>::new(n_in, n_out, |i, o| value(i * n_out + o));
            let stride = n_in + 2;
            let x: Vec<f64> = (0..rows * stride).map(|i| value(3 * i + 1)).collect();
            let x32: Vec<f32> = x.iter().map(|&v| v as f32).collect();
            let bias: Vec<f64> = (0..packed.width).map(|i| value(7 * i)).collect();
            let (mut y, mut y32) = (vec![0.0; rows * packed.width], vec![1.0; rows * packed.width]);
            double.apply(rows, &x, stride, Start::Row(&bias), &mut y);
            packed.apply(rows, &x32, stride, Start::Output, &mut y32);
            for r in 0..rows {
                for o in 0..n_out {
                    let truth: f64 = (0..n_in).map(|i| x[r * stride + i] * value(i * n_out + o)).sum();
                    assert!((y[r * packed.width + o] - truth - bias[o]).abs() < 1e-13 * n_in as f64);
                    assert!((f64::from(y32[r * packed.width + o]) - truth - 1.0).abs() < 1e-6 * n_in as f64);
                }
            }
        }
    }
}
