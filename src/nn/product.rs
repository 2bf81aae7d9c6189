//! Products of rows with a packed weight matrix, `y[rows][out] = start + x[rows][in] · W`, in register tiles.

// Indices of components and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::lanes::{padded, prefetch, Kernel, Lanes, WIDTH};
use super::memory::zeros;
use super::Real;
use std::ops::Range;

/// Largest number of rows of a register tile.
const MOST_ROWS: usize = 6;

/// Number of rows from which products take long enough to prefetch the next weights.
const MANY: usize = 24;

/// Weights `[column][in][lane]`, with the outputs in columns of whole lanes, the last one zero-padded, so that a
/// register tile reads contiguous memory.
#[derive(Clone, Debug, Default)]
pub struct Packed<R> {
    pub n_in: usize,
    /// Number of outputs.
    pub n_out: usize,
    /// Number of outputs, padded.
    pub width: usize,
    pub weights: Vec<R>,
}

impl<R: Real> Packed<R> {
    /// Packs the values of `weight(in, out)`.
    pub fn new(n_in: usize, n_out: usize, weight: impl Fn(usize, usize) -> f64) -> Packed<R> {
        let width = padded(n_out);
        let mut weights = zeros(n_in * width);
        for (place, lane) in weights.chunks_exact_mut(WIDTH).enumerate() {
            let (column, i) = (place / n_in, place % n_in);
            let outputs = column * WIDTH..n_out;
            lane.iter_mut().zip(outputs).for_each(|(w, o)| *w = R::from_f64(weight(i, o)));
        }
        Packed { n_in, n_out, width, weights }
    }

    /// Packs weights `[out][in]`.
    pub fn transposed(n_in: usize, n_out: usize, weights: &[R]) -> Packed<R> {
        let mut packed = Packed { n_in, n_out, width: padded(n_out), weights: zeros(n_in * padded(n_out)) };
        for (column, rows) in packed.weights.chunks_exact_mut(n_in * WIDTH).zip(weights.chunks(n_in * WIDTH)) {
            for (i, lane) in column.chunks_exact_mut(WIDTH).enumerate() {
                lane.iter_mut().zip(rows.chunks_exact(n_in)).for_each(|(w, row)| *w = row[i]);
            }
        }
        packed
    }

    /// Columns from output `place` on, which must be a multiple of the lane width.
    #[inline(always)]
    pub fn columns(&self, place: usize) -> &[R] {
        &self.weights[place * self.n_in..]
    }

    /// `y[rows][width]` from `x`, whose rows are `stride` apart.
    pub fn apply(&self, rows: usize, x: &[R], stride: usize, start: Start<R>, y: &mut [R]) {
        if rows == 0 {
            return;
        }
        assert!(x.len() >= (rows - 1) * stride + self.n_in && y.len() >= rows * self.width);
        R::vectorised(Product { packed: self, rows, x, stride, start, y, places: self.width, ahead: () });
    }

    /// `y[rows][n_out]` = start + `x[rows][n_in]` W, for contiguous rows and outputs that fill whole lanes.
    pub fn product(&self, x: &[R], start: Start<R>, y: &mut [R]) {
        assert_eq!(self.n_out, self.width, "outputs must fill whole lanes");
        self.apply(y.len() / self.width, x, self.n_in, start, y);
    }

    /// `x[n_in]` = W `y[width]`: the cotangent of a row.
    pub fn apply_transposed(&self, y: &[R], x: &mut [R]) {
        R::vectorised(Transposed { packed: self, y, x });
    }
}

/// A linear layer, packed for products with contiguous rows.
#[derive(Clone, Debug)]
pub struct Dense<R> {
    weights: Packed<R>,
    /// The same weights as bfloat16, if they are such numbers: `[column][in][8]` words, as for [`Lanes::read_halves`].
    halves: Option<Vec<u32>>,
    /// Bias, padded.
    bias: Vec<R>,
}

impl<R: Real> Dense<R> {
    /// `bias` has a number for each output of `weights`.
    pub fn new(weights: Packed<R>, bias: &[R]) -> Dense<R> {
        assert_eq!(weights.n_out, bias.len());
        Dense { weights, halves: None, bias: padded_row(bias) }
    }

    /// The same layer with its weights also stored as bfloat16, which products with a single row, whose time is that of
    /// reading the weights, then read. Panics if a weight is not a bfloat16 number.
    pub fn with_halves(self) -> Dense<R> {
        let word = |lane: &[R], j: usize| {
            let [low, high] = [lane[j], lane[j + WIDTH / 2]].map(|w| {
                let bits = (w.to_f64() as f32).to_bits();
                assert!(bits & 0xffff == 0, "{} is not a bfloat16 number", w.to_f64());
                bits
            });
            low >> 16 | high
        };
        let lanes = self.weights.weights.chunks_exact(WIDTH);
        let halves = lanes.flat_map(|lane| (0..WIDTH / 2).map(move |j| word(lane, j))).collect();
        Dense { halves: Some(halves), ..self }
    }

    /// `y[rows][out]` from `x[rows][in]`. A row's result does not depend on the other rows, to the last bit.
    pub fn apply(&self, x: &[R], y: &mut [R]) {
        self.apply_while(x, y, ());
    }

    /// As [`Dense::apply`], prefetching what is read next.
    pub fn apply_and_fetch(&self, x: &[R], y: &mut [R], ahead: (&[R], Pieces)) {
        self.apply_while(x, y, ahead);
    }

    fn apply_while(&self, x: &[R], y: &mut [R], ahead: impl Ahead) {
        let Packed { n_in, n_out, .. } = self.weights;
        let rows = y.len() / n_out;
        assert!(x.len() == rows * n_in && y.len() == rows * n_out);
        match &self.halves {
            Some(halves) if rows == 1 => R::vectorised(RowOfHalves { halves, bias: &self.bias, x, y }),
            _ => {
                let start = Start::Row(&self.bias);
                R::vectorised(Product { packed: &self.weights, rows, x, stride: n_in, start, y, places: n_out, ahead });
            }
        }
    }
}

/// The bfloat16 number nearest to `value`, ties to even.
pub fn to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    match value.is_finite() {
        true => f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000),
        false => value,
    }
}

/// A row zero-padded to whole lanes.
pub fn padded_row<R: Real>(values: &[R]) -> Vec<R> {
    let mut row = values.to_vec();
    row.resize(padded(values.len()), R::default());
    row
}

/// Initial value of a product's sums.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a, R> {
    Zero,
    /// The same padded row for all rows.
    Row(&'a [R]),
    /// One row each, skipping row `skip`.
    Rows {
        rows: &'a [R],
        skip: usize,
    },
    /// The contents of `y`.
    Output,
}

/// Index of element `r` of a list that skips `skip`.
#[inline(always)]
pub fn without(r: usize, skip: usize) -> usize {
    r + usize::from(r >= skip)
}

/// A single row times bfloat16 weights: the sums of [`Product`], in the same order.
struct RowOfHalves<'a, R> {
    halves: &'a [u32],
    bias: &'a [R],
    x: &'a [R],
    y: &'a mut [R],
}

impl<R: Real> Kernel<R> for RowOfHalves<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let (columns, mut column) = (self.bias.len() / WIDTH, 0);
        while column + 4 <= columns {
            self.columns::<L, 4>(column);
            column += 4;
        }
        while column < columns {
            self.columns::<L, 1>(column);
            column += 1;
        }
    }
}

impl<R: Real> RowOfHalves<'_, R> {
    #[inline(always)]
    fn columns<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        const WORDS: usize = WIDTH / 2;
        let n = self.x.len();
        let halves = &self.halves[column * n * WORDS..][..COLUMNS * n * WORDS];
        let [mut sum] = load_tile::<R, L, 1, COLUMNS>(&self.bias[column * WIDTH..], 0);
        for (k, &x) in self.x.iter().enumerate() {
            let value = L::splat(x);
            for c in 0..COLUMNS {
                // SAFETY: below COLUMNS · n · WORDS, the length of `halves`.
                let weight = unsafe { L::read_halves(halves.as_ptr().add((c * n + k) * WORDS)) };
                sum[c] = value.mul_add(weight, sum[c]);
            }
        }
        let y = &mut self.y[column * WIDTH..];
        store_part([sum], y, 0, y.len().min(COLUMNS * WIDTH));
    }
}

struct Product<'a, R, A> {
    packed: &'a Packed<R>,
    rows: usize,
    x: &'a [R],
    stride: usize,
    start: Start<'a, R>,
    y: &'a mut [R],
    /// Numbers per row of `y`: all padded outputs or, if nothing is read from `y`, fewer.
    places: usize,
    ahead: A,
}

/// Memory to prefetch during a product.
trait Ahead {
    /// Returns a function that prefetches line k of the part that falls to `these` out of `shares`.
    fn fetch(&self, these: Range<usize>, shares: usize) -> impl Fn(usize);
}

/// Nothing to prefetch.
impl Ahead for () {
    #[inline(always)]
    fn fetch(&self, _: Range<usize>, _: usize) -> impl Fn(usize) {
        |_| ()
    }
}

/// Pieces of a buffer: the first `piece` of every `part` numbers of the range.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    pub range: Range<usize>,
    pub part: usize,
    pub piece: usize,
}

/// Pieces of this buffer.
impl<R> Ahead for (&[R], Pieces) {
    #[inline(always)]
    fn fetch(&self, these: Range<usize>, shares: usize) -> impl Fn(usize) {
        let (buffer, Pieces { range, part, piece }) = self;
        let parts = range.len().checked_div(*part).unwrap_or(0);
        let [start, end] = [these.start, these.end].map(|k| range.start + k * parts / shares * part);
        move |k| {
            let place = k * (64 / size_of::<R>());
            if place < *piece {
                let lines = (start + place..end).step_by(*part).map(|at| buffer.get(at..=at));
                lines.for_each(|line| prefetch(line.unwrap_or_default()));
            }
        }
    }
}

impl<R: Real, A: Ahead> Kernel<R> for Product<'_, R, A> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let (columns, mut column) = (self.packed.width / WIDTH, 0);
        // few rows leave registers for more columns, and need them: a single sum would wait for its own previous
        // addition
        let most = match self.rows {
            1 => 4,
            2 => L::COLUMNS.max(2),
            _ => L::COLUMNS,
        };
        while most >= 4 && column + 4 <= columns {
            self.columns::<L, 4>(column);
            column += 4;
        }
        while most >= 2 && column + 2 <= columns {
            self.columns::<L, 2>(column);
            column += 2;
        }
        while column < columns {
            self.columns::<L, 1>(column);
            column += 1;
        }
    }
}

impl<R: Real, A: Ahead> Product<'_, R, A> {
    #[inline(always)]
    fn columns<L: Lanes<R>, const COLUMNS: usize>(&mut self, column: usize) {
        // tiles with equal numbers of rows, up to one: with only a few rows left over, sums would wait for themselves
        let (tiles, mut row) = (self.rows.div_ceil(MOST_ROWS), 0);
        for tile in 0..tiles {
            let rows = (self.rows - row).div_ceil(tiles - tile);
            match rows {
                6 => self.tile::<L, 6, COLUMNS>(row, column),
                5 => self.tile::<L, 5, COLUMNS>(row, column),
                4 => self.tile::<L, 4, COLUMNS>(row, column),
                3 => self.tile::<L, 3, COLUMNS>(row, column),
                2 => self.tile::<L, 2, COLUMNS>(row, column),
                _ => self.tile::<L, 1, COLUMNS>(row, column),
            }
            if self.rows >= MANY {
                self.prefetch((tile, tiles), column + COLUMNS, COLUMNS);
            }
            row += rows;
        }
    }

    /// Prefetches a part of the weights of the `columns` from `column` on during one of the row tiles: with many rows
    /// the next weights come from beyond the nearer caches, and the hardware prefetcher does not anticipate them.
    #[inline(always)]
    fn prefetch(&self, (tile, tiles): (usize, usize), column: usize, columns: usize) {
        let (size, weights) = (self.packed.n_in * WIDTH, &self.packed.weights);
        let (part, end) = ((columns * size).div_ceil(tiles), weights.len().min((column + columns) * size));
        let start = column * size + tile * part;
        prefetch(&weights[start.min(end)..(start + part).min(end)]);
    }

    #[inline(always)]
    fn tile<L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(&mut self, row: usize, column: usize) {
        let width = self.packed.width;
        let place = column * WIDTH;
        let start: [[L; COLUMNS]; ROWS] = match self.start {
            Start::Zero => [[L::zero(); COLUMNS]; ROWS],
            Start::Row(bias) => load_tile(&bias[place..], 0),
            // the skipped row may lie within the tile
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
        // this tile's share of the prefetching
        let (columns, tiles) = (width / WIDTH, self.rows.div_ceil(MOST_ROWS));
        let first = column * tiles + row * tiles / self.rows * COLUMNS;
        let fetch = self.ahead.fetch(first..first + COLUMNS, columns * tiles);
        let sum = accumulate_and(start, x, self.packed.n_in, self.packed.columns(place), fetch);
        let y = &mut self.y[row * self.places + place..];
        if place + COLUMNS * WIDTH <= self.places {
            store_tile(sum, y, self.places);
        } else {
            store_part(sum, y, self.places, self.places - place);
        }
    }
}

/// Stores the first `n` numbers of each row.
#[inline(always)]
fn store_part<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    tile: [[L; COLUMNS]; ROWS],
    to: &mut [R],
    stride: usize,
    n: usize,
) {
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            let mut lane = [R::default(); WIDTH];
            tile[r][c].store(&mut lane);
            let part = to[r * stride..][..n].iter_mut().skip(c * WIDTH);
            part.zip(lane).for_each(|(to, value)| *to = value);
        }
    }
}

/// Loads lanes of ROWS rows that are `stride` apart.
#[inline(always)]
pub fn load_tile<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    from: &[R],
    stride: usize,
) -> [[L; COLUMNS]; ROWS] {
    assert!(from.len() >= (ROWS - 1) * stride + COLUMNS * WIDTH);
    let mut tile = [[L::zero(); COLUMNS]; ROWS];
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            // SAFETY: below (ROWS − 1) · stride + COLUMNS lanes, as asserted.
            tile[r][c] = unsafe { L::read(from.as_ptr().add(r * stride + c * WIDTH)) };
        }
    }
    tile
}

/// Stores lanes of ROWS rows that are `stride` apart.
#[inline(always)]
pub fn store_tile<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    tile: [[L; COLUMNS]; ROWS],
    to: &mut [R],
    stride: usize,
) {
    assert!(to.len() >= (ROWS - 1) * stride + COLUMNS * WIDTH);
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            // SAFETY: below (ROWS − 1) · stride + COLUMNS lanes, as asserted.
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
        for (i, x) in self.x.iter_mut().take(self.packed.n_in).enumerate() {
            let mut sum = L::zero();
            for (column, y) in
                self.packed.weights.chunks_exact(self.packed.n_in * WIDTH).zip(self.y.chunks_exact(WIDTH))
            {
                sum = L::load(&column[i * WIDTH..]).mul_add(L::load(y), sum);
            }
            *x = sum.sum();
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

/// sum + x · W for one register tile: `x.0[ROWS][n]` with rows `x.1` apart, `weights[COLUMNS][n][lane]`.
#[inline(always)]
pub fn accumulate<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    sum: [[L; COLUMNS]; ROWS],
    x: (&[R], usize),
    n: usize,
    weights: &[R],
) -> [[L; COLUMNS]; ROWS] {
    accumulate_and(sum, x, n, weights, |_| ())
}

/// As [`accumulate`], with a side action for each k.
#[inline(always)]
fn accumulate_and<R: Real, L: Lanes<R>, const ROWS: usize, const COLUMNS: usize>(
    mut sum: [[L; COLUMNS]; ROWS],
    x: (&[R], usize),
    n: usize,
    weights: &[R],
    beside: impl Fn(usize),
) -> [[L; COLUMNS]; ROWS] {
    assert!(n == 0 || x.0.len() >= (ROWS - 1) * x.1 + n && weights.len() >= COLUMNS * n * WIDTH);
    let (values, weight) = (x.0.as_ptr(), weights.as_ptr());
    for k in 0..n {
        beside(k);
        let mut w = [L::zero(); COLUMNS];
        for c in 0..COLUMNS {
            // SAFETY: below COLUMNS · n lanes, as asserted.
            w[c] = unsafe { L::read(weight.add((c * n + k) * WIDTH)) };
        }
        for r in 0..ROWS {
            // SAFETY: below (ROWS − 1) · stride + n, as asserted.
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
    fn dense_rows_are_their_definition_whatever_the_batch() {
        let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 50.0;
        for (rows, n_in, n_out) in
            [(1, 3, 5), (2, 40, 70), (3, 5, 40), (5, 7, 33), (13, 17, 64), (9, 16, 49), (65, 33, 129), (30, 150, 64)]
        {
            let flat: Vec<f64> = (0..n_in * n_out).map(value).collect();
            let bias: Vec<f64> = (0..n_out).map(|o| value(7 * o + 2)).collect();
            let dense = Dense::new(Packed::transposed(n_in, n_out, &flat), &bias);
            let x: Vec<f64> = (0..rows * n_in).map(|i| value(3 * i + 1)).collect();
            let mut y = vec![f64::NAN; rows * n_out];
            dense.apply(&x, &mut y);
            for (row, x) in x.chunks_exact(n_in).enumerate() {
                let mut alone = vec![f64::NAN; n_out];
                dense.apply(x, &mut alone);
                assert_eq!(alone, y[row * n_out..][..n_out], "row {row} of {rows}");
                for (o, found) in alone.iter().enumerate() {
                    let truth = bias[o] + (0..n_in).map(|i| flat[o * n_in + i] * x[i]).sum::<f64>();
                    assert!((found - truth).abs() < 1e-13 * n_in as f64);
                }
            }
        }
    }

    #[test]
    fn a_row_of_bfloat16_weights_is_that_of_the_same_numbers() {
        let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 50.0;
        let rounded = |i: usize| f64::from(to_bfloat16(value(i) as f32));
        for (n_in, n_out) in [(1, 3), (17, 64), (33, 150)] {
            let flat: Vec<f32> = (0..n_in * n_out).map(|i| rounded(i) as f32).collect();
            let bias: Vec<f32> = (0..n_out).map(|o| value(7 * o + 2) as f32).collect();
            let plain = Dense::new(Packed::transposed(n_in, n_out, &flat), &bias);
            let x: Vec<f32> = (0..n_in).map(|i| value(3 * i + 1) as f32).collect();
            let [mut y, mut of_halves] = [vec![f32::NAN; n_out], vec![f32::NAN; n_out]];
            plain.apply(&x, &mut y);
            plain.with_halves().apply(&x, &mut of_halves);
            assert_eq!(y, of_halves);
        }
    }

    #[test]
    fn bfloat16_rounds_to_the_nearest_and_ties_to_even() {
        let step = 1.0 / 128.0;
        for (steps, nearest) in [(0.0, 0.0), (0.4, 0.0), (0.5, 0.0), (0.6, 1.0), (1.5, 2.0), (2.5, 2.0)] {
            assert_eq!(to_bfloat16(1.0 + steps * step), 1.0 + nearest * step);
            assert_eq!(to_bfloat16(-1.0 - steps * step), -1.0 - nearest * step);
        }
        assert!(to_bfloat16(f32::NAN).is_nan() && to_bfloat16(f32::INFINITY).is_infinite());
    }

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
