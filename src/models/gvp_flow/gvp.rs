//! The geometric vector perceptron (s, V) → (s′, V′) (Jing et al., ICLR 2021, with vector gating).
//!
//! ```text
//! Vh = Whᵀ V,  Vu = Wuᵀ Vh,  n(x) = √max(|x|², 1e-8)
//! a = W [s ; n(Vh)] + b,  s′ = a σ(βa),  g = Wg s′ + bg,  V′ = σ(g) Vu
//! ```
//!
//! [`Gvp::linear`] is the part that is linear in (s, V): W_s s + b, Whᵀ V and (Wh Wu)ᵀ V; for messages it is computed
//! once per source. [`Gvp::scalars`] and [`Gvp::vectors`] are the rest, for a set of rows; `tangent.rs` has the
//! derivatives.
//!
//! Rows of scalars are `[scalars]`, rows of vectors `[3][vectors]`, each zero-padded to whole lanes.

// Indices of components and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::edges::Edges;
use super::layout::GvpPlaces;
use crate::nn::lanes::{padded, Kernel, Lanes, WIDTH};
use crate::nn::product::{padded_row, without, Packed, Start};
use crate::nn::Real;

/// Floor of squared norms.
pub const SMALLEST_SQUARE: f64 = 1e-8;

/// Weights, packed for the kernels.
#[derive(Clone, Debug)]
pub struct Gvp<R> {
    /// W_s and b.
    scalars: Packed<R>,
    bias: Vec<R>,
    /// Wh and Wh Wu, without a message's direction.
    hidden: Packed<R>,
    pub outputs: Packed<R>,
    /// W of the radial functions (messages only) and of the norms.
    radial: Packed<R>,
    pub norms: Packed<R>,
    pub gates: Packed<R>,
    gate_bias: Vec<R>,
    /// Rows of Wh and Wh Wu for the direction of an edge, the first vector of a message.
    pub direction_hidden: Vec<R>,
    pub direction_outputs: Vec<R>,
    beta: R,
}

/// The linear part of a perceptron for a set of rows.
#[derive(Clone, Debug, Default)]
pub struct Linear<R> {
    pub scalars: Vec<R>,
    pub hidden: Vec<R>,
    pub outputs: Vec<R>,
}

/// Intermediates of a perceptron per row, for its derivatives.
#[derive(Clone, Debug, Default)]
pub struct Tape<R> {
    /// ds′/da.
    pub slope: Vec<R>,
    /// ∂n/∂Vh, `[3][hidden]`.
    pub hidden: Vec<R>,
    /// σ(g), and σ′(g) Vu.
    pub gate: Vec<R>,
    pub gated: Vec<R>,
    /// W times the derivative of the radial functions with respect to the distance.
    pub radial: Vec<R>,
}

/// Scratch rows.
#[derive(Clone, Debug, Default)]
pub struct Scratch<R> {
    radial: Vec<R>,
    radial_slopes: Vec<R>,
    norms: Vec<R>,
    /// a, then s′.
    scalars: Vec<R>,
    gates: Vec<R>,
}

/// Gaussians exp(−((d − μ)/width)²).
#[derive(Clone, Debug)]
pub struct Radial<R> {
    /// μ, padded; the weights of the padding are zero.
    pub centres: Vec<R>,
    pub inverse_width: R,
}

/// Grows a buffer, which never shrinks, so that a warm call does not allocate.
pub fn grow<R: Real>(buffer: &mut Vec<R>, n: usize) {
    if buffer.len() < n {
        buffer.resize(n, R::default());
    }
}

impl<R: Real> Gvp<R> {
    /// `n_radial`: number of radial functions, the last of the scalars; if there are any, the first vector is an edge's
    /// direction.
    pub fn new(parameters: &[R], places: &GvpPlaces, n_radial: usize) -> Gvp<R> {
        let sizes = places.sizes;
        let (hidden, n_in) = (sizes.hidden(), sizes.scalars_in + sizes.hidden());
        let (n_scalars, first) = (sizes.scalars_in - n_radial, usize::from(n_radial > 0));
        let at = |i: usize| parameters[i].to_f64();
        let wh = |v: usize, q: usize| at(places.wh.start + v * hidden + q);
        let wu = |q: usize, u: usize| at(places.wu.start + q * sizes.vectors_out + u);
        let product = |v: usize, u: usize| (0..hidden).map(|q| wh(v, q) * wu(q, u)).sum::<f64>();
        let weight = |i: usize, o: usize| at(places.weight.start + o * n_in + i);
        let gate = |f: usize, u: usize| at(places.gate_weight.start + u * sizes.scalars_out + f);
        let radial = |k: usize, o: usize| if k < n_radial { weight(n_scalars + k, o) } else { 0.0 };
        Gvp {
            scalars: Packed::new(n_scalars, sizes.scalars_out, weight),
            bias: padded_row(&parameters[places.bias.clone()]),
            hidden: Packed::new(sizes.vectors_in - first, hidden, |v, q| wh(v + first, q)),
            outputs: Packed::new(sizes.vectors_in - first, sizes.vectors_out, |v, u| product(v + first, u)),
            radial: Packed::new(padded(n_radial), sizes.scalars_out, radial),
            norms: Packed::new(hidden, sizes.scalars_out, |q, o| weight(sizes.scalars_in + q, o)),
            gates: Packed::new(sizes.scalars_out, sizes.vectors_out, gate),
            gate_bias: padded_row(&parameters[places.gate_bias.clone()]),
            direction_hidden: Packed::new(1, hidden, |_, q| wh(0, q)).weights,
            direction_outputs: Packed::new(1, sizes.vectors_out, |_, u| product(0, u)).weights,
            beta: places.beta.map_or(R::from_f64(1.0), |i| parameters[i]),
        }
    }

    /// Padded row widths: scalars, hidden vectors, output vectors.
    pub fn widths(&self) -> [usize; 3] {
        [self.scalars.width, self.hidden.width, self.outputs.width]
    }

    /// Linear part of `rows` rows; for tangents without the bias.
    pub fn linear(&self, rows: usize, s: &[R], v: &[R], bias: bool, linear: &mut Linear<R>) {
        let ([f, h, u], n_v) = (self.widths(), padded(self.hidden.n_in));
        grow(&mut linear.scalars, rows * f);
        grow(&mut linear.hidden, rows * 3 * h);
        grow(&mut linear.outputs, rows * 3 * u);
        let start = if bias { Start::Row(&self.bias) } else { Start::Zero };
        self.scalars.apply(rows, s, padded(self.scalars.n_in), start, &mut linear.scalars);
        self.hidden.apply(3 * rows, v, n_v, Start::Zero, &mut linear.hidden);
        self.outputs.apply(3 * rows, v, n_v, Start::Zero, &mut linear.outputs);
    }

    /// s′ of `rows` rows, left in `scratch`. They are the rows of `linear`, except for the destination of `edges`. With
    /// a tape, also the derivatives, from row `tape.1` on.
    pub fn scalars(
        &self,
        rows: usize,
        linear: &Linear<R>,
        edges: Option<(&Edges<R>, &Radial<R>)>,
        scratch: &mut Scratch<R>,
        mut tape: Option<(&mut Tape<R>, usize)>,
    ) {
        let ([f, h, _], k) = (self.widths(), self.radial.n_in);
        grow(&mut scratch.norms, rows * h);
        grow(&mut scratch.scalars, rows * f);
        let skip = edges.map_or(usize::MAX, |(edges, _)| edges.destination);
        let hidden = tape.as_mut().map(|(tape, first)| {
            grow(&mut tape.hidden, (*first + rows) * 3 * h);
            &mut tape.hidden[*first * 3 * h..]
        });
        let edge = edges.map(|(edges, _)| edges);
        R::vectorised(Norms { gvp: self, rows, linear, edges: edge, norms: &mut scratch.norms, tape: hidden });
        let mut start = Start::Rows { rows: &linear.scalars, skip };
        if let Some((edges, radial)) = edges {
            grow(&mut scratch.radial, rows * k);
            if let Some((tape, first)) = &mut tape {
                grow(&mut scratch.radial_slopes, rows * k);
                grow(&mut tape.radial, (*first + rows) * f);
            }
            let slopes = tape.is_some().then_some(&mut scratch.radial_slopes[..]);
            R::vectorised(Gaussians { radial, rows, edges, values: &mut scratch.radial, slopes });
            self.radial.apply(rows, &scratch.radial, k, start, &mut scratch.scalars);
            start = Start::Output;
            if let Some((tape, first)) = &mut tape {
                self.radial.apply(rows, &scratch.radial_slopes, k, Start::Zero, &mut tape.radial[*first * f..]);
            }
        }
        self.norms.apply(rows, &scratch.norms, h, start, &mut scratch.scalars);
        let slope = tape.map(|(tape, first)| {
            grow(&mut tape.slope, (first + rows) * f);
            &mut tape.slope[first * f..][..rows * f]
        });
        R::vectorised(Swish { beta: self.beta, values: &mut scratch.scalars[..rows * f], slope });
    }

    /// After [`Gvp::scalars`]: adds s′ and V′ of each row to `s` and `v`, or all to the first row if `sum`.
    pub fn vectors(
        &self,
        rows: usize,
        linear: &Linear<R>,
        edges: Option<&Edges<R>>,
        scratch: &mut Scratch<R>,
        tape: Option<(&mut Tape<R>, usize)>,
        (s, v, sum): (&mut [R], &mut [R], bool),
    ) {
        let u = self.widths()[2];
        self.gate_values(rows, scratch);
        let tape = tape.map(|(tape, first)| {
            grow(&mut tape.gate, (first + rows) * u);
            grow(&mut tape.gated, (first + rows) * 3 * u);
            (&mut tape.gate[first * u..], &mut tape.gated[first * 3 * u..])
        });
        R::vectorised(Gate { gvp: self, rows, linear, edges, scratch, tape, s, v, sum });
    }

    /// After [`Gvp::scalars`]: g of each row, left in `scratch`.
    pub fn gate_values(&self, rows: usize, scratch: &mut Scratch<R>) {
        grow(&mut scratch.gates, rows * self.gates.width);
        let start = Start::Row(&self.gate_bias);
        self.gates.apply(rows, &scratch.scalars, self.scalars.width, start, &mut scratch.gates);
    }

    /// After [`Gvp::gate_values`]: g of a row, for a single output vector.
    pub fn gate(&self, row: usize, scratch: &Scratch<R>) -> R {
        scratch.gates[row * self.gates.width]
    }

    /// Vu of a row of the linear part, for a single output vector.
    pub fn single_output(&self, row: usize, linear: &Linear<R>) -> [f64; 3] {
        [0, 1, 2].map(|c| linear.outputs[(row * 3 + c) * self.outputs.width].to_f64())
    }

    /// Gradient of w·s′ with respect to `[scalars]` and `[3][vectors]`, from the tape of a row. `scratch` is
    /// overwritten.
    pub fn gradient(
        &self,
        weights: &[R],
        (tape, row): (&Tape<R>, usize),
        scratch: &mut Scratch<R>,
        by_s: &mut [R],
        by_v: &mut [R],
    ) {
        let ([f, h, _], n_v) = (self.widths(), padded(self.hidden.n_in));
        let (by_a, by_n) = (&mut scratch.scalars[..f], &mut scratch.norms[..h]);
        for ((a, &w), &slope) in by_a.iter_mut().zip(weights).zip(&tape.slope[row * f..]) {
            *a = w * slope;
        }
        self.scalars.apply_transposed(by_a, by_s);
        self.norms.apply_transposed(by_a, by_n);
        grow(&mut scratch.radial, h);
        let by_hidden = &mut scratch.radial[..h];
        for (hidden, by_v) in tape.hidden[row * 3 * h..][..3 * h].chunks_exact(h).zip(by_v.chunks_exact_mut(n_v)) {
            by_hidden.iter_mut().zip(by_n.iter()).zip(hidden).for_each(|((to, &n), &h)| *to = n * h);
            self.hidden.apply_transposed(by_hidden, by_v);
        }
    }
}

/// Kernel: norms of the hidden vectors.
struct Norms<'a, R> {
    gvp: &'a Gvp<R>,
    rows: usize,
    linear: &'a Linear<R>,
    edges: Option<&'a Edges<R>>,
    norms: &'a mut [R],
    tape: Option<&'a mut [R]>,
}

impl<R: Real> Kernel<R> for Norms<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let width = self.gvp.hidden.width;
        let smallest = L::splat(R::from_f64(SMALLEST_SQUARE));
        let skip = self.edges.map_or(usize::MAX, |edges| edges.destination);
        for row in 0..self.rows {
            let source = without(row, skip);
            let hidden = &self.linear.hidden[source * 3 * width..][..3 * width];
            for q in (0..width).step_by(WIDTH) {
                let mut h = [L::zero(); 3];
                let mut square = L::zero();
                for c in 0..3 {
                    h[c] = L::load(&hidden[c * width + q..]);
                    if let Some(edges) = self.edges {
                        let along = L::splat(edges.direction[c * edges.stride + source]);
                        h[c] = along.mul_add(L::load(&self.gvp.direction_hidden[q..]), h[c]);
                    }
                    square = h[c].mul_add(h[c], square);
                }
                let norm = square.at_least(smallest).sqrt();
                norm.store(&mut self.norms[row * width + q..]);
                if let Some(tape) = &mut self.tape {
                    for c in 0..3 {
                        h[c].div(norm).where_above(square, smallest).store(&mut tape[(row * 3 + c) * width + q..]);
                    }
                }
            }
        }
    }
}

/// Kernel: radial functions, and their derivatives if wanted.
struct Gaussians<'a, R> {
    radial: &'a Radial<R>,
    rows: usize,
    edges: &'a Edges<R>,
    values: &'a mut [R],
    slopes: Option<&'a mut [R]>,
}

impl<R: Real> Kernel<R> for Gaussians<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let width = self.radial.centres.len();
        let inverse = L::splat(self.radial.inverse_width);
        let minus_two = L::splat(R::from_f64(-2.0)).mul(inverse);
        for row in 0..self.rows {
            let d = self.edges.distance[without(row, self.edges.destination)];
            for k in (0..width).step_by(WIDTH) {
                let z = L::splat(d).sub(L::load(&self.radial.centres[k..])).mul(inverse);
                let value = L::zero().sub(z.mul(z)).exp();
                value.store(&mut self.values[row * width + k..]);
                if let Some(slopes) = &mut self.slopes {
                    minus_two.mul(z).mul(value).store(&mut slopes[row * width + k..]);
                }
            }
        }
    }
}

/// values ← a σ(a).
pub fn silu<R: Real>(values: &mut [R]) {
    R::vectorised(Swish { beta: R::from_f64(1.0), values, slope: None });
}

/// Kernel: values ← a σ(βa), and its derivative.
struct Swish<'a, R> {
    beta: R,
    values: &'a mut [R],
    slope: Option<&'a mut [R]>,
}

impl<R: Real> Kernel<R> for Swish<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let (beta, one) = (L::splat(self.beta), L::splat(R::from_f64(1.0)));
        for (i, values) in self.values.chunks_exact_mut(WIDTH).enumerate() {
            let a = L::load(values);
            let scaled = beta.mul(a);
            let sigmoid = scaled.sigmoid();
            a.mul(sigmoid).store(values);
            if let Some(slope) = &mut self.slope {
                let slope = &mut slope[i * WIDTH..];
                sigmoid.mul(scaled.mul_add(one.sub(sigmoid), one)).store(slope);
            }
        }
    }
}

/// Kernel: V′ = σ(g) Vu, with the sums.
struct Gate<'a, R> {
    gvp: &'a Gvp<R>,
    rows: usize,
    linear: &'a Linear<R>,
    edges: Option<&'a Edges<R>>,
    scratch: &'a Scratch<R>,
    tape: Option<(&'a mut [R], &'a mut [R])>,
    s: &'a mut [R],
    v: &'a mut [R],
    sum: bool,
}

impl<R: Real> Kernel<R> for Gate<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let [f, _, width] = self.gvp.widths();
        for i in (0..f).step_by(WIDTH) {
            self.scalars::<L>(i);
        }
        for u in (0..width).step_by(WIDTH) {
            self.vectors::<L>(u);
        }
    }
}

impl<R: Real> Gate<'_, R> {
    #[inline(always)]
    fn scalars<L: Lanes<R>>(&mut self, i: usize) {
        let f = self.gvp.scalars.width;
        if !self.sum {
            for row in 0..self.rows {
                let to = &mut self.s[row * f + i..];
                L::load(to).add(L::load(&self.scratch.scalars[row * f + i..])).store(to);
            }
            return;
        }
        let mut total = L::load(&self.s[i..]);
        for row in 0..self.rows {
            total = total.add(L::load(&self.scratch.scalars[row * f + i..]));
        }
        total.store(&mut self.s[i..]);
    }

    #[inline(always)]
    fn vectors<L: Lanes<R>>(&mut self, u: usize) {
        let width = self.gvp.outputs.width;
        let one = L::splat(R::from_f64(1.0));
        let along = L::load(&self.gvp.direction_outputs[u..]);
        let skip = self.edges.map_or(usize::MAX, |edges| edges.destination);
        let mut total = [L::zero(); 3];
        for row in 0..self.rows {
            let source = without(row, skip);
            let gate = L::load(&self.scratch.gates[row * width + u..]).sigmoid();
            for c in 0..3 {
                let mut vu = L::load(&self.linear.outputs[(source * 3 + c) * width + u..]);
                if let Some(edges) = self.edges {
                    vu = L::splat(edges.direction[c * edges.stride + source]).mul_add(along, vu);
                }
                total[c] = gate.mul_add(vu, total[c]);
                if let Some((_, gated)) = &mut self.tape {
                    gate.mul(one.sub(gate)).mul(vu).store(&mut gated[(row * 3 + c) * width + u..]);
                }
            }
            if let Some((gates, _)) = &mut self.tape {
                gate.store(&mut gates[row * width + u..]);
            }
            if !self.sum || row + 1 == self.rows {
                let to = if self.sum { 0 } else { row };
                for c in 0..3 {
                    let v = &mut self.v[(to * 3 + c) * width + u..];
                    L::load(v).add(total[c]).store(v);
                    total[c] = L::zero();
                }
            }
        }
    }
}
