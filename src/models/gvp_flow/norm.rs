//! Layer normalisation of scalars and vectors (Jing et al., ICLR 2021):
//! s ← LayerNorm(s), V ← V / (√(mean_u max(|V_u|², 1e-8) + 1e-5) + 1e-5).

use super::gvp::{grow, SMALLEST_SQUARE};
use super::layout::NormPlaces;
use crate::nn::lanes::{Kernel, Lanes, WIDTH};
use crate::nn::product::{padded_row, Packed};
use crate::nn::Real;

const EPSILON: f64 = 1e-5;

#[derive(Clone, Debug)]
pub struct GvpLayerNorm<R> {
    weight: Vec<R>,
    bias: Vec<R>,
    /// One, and zero in the padding.
    scalar_mask: Vec<R>,
    vector_mask: Vec<R>,
    n_scalars: f64,
    n_vectors: f64,
}

/// Intermediates per row for the derivatives.
#[derive(Clone, Debug, Default)]
pub struct NormTape<R> {
    /// (s − mean)/sd, and weight/sd.
    normal: Vec<R>,
    scale: Vec<R>,
    /// V, its factor, and minus the gradient of the factor with respect to V, divided by the factor.
    vectors: Vec<R>,
    factor: Vec<R>,
    gradient: Vec<R>,
}

impl<R: Real> GvpLayerNorm<R> {
    /// Packs weight and bias of the scalars.
    pub fn new(parameters: &[R], places: &NormPlaces, n_vectors: usize) -> GvpLayerNorm<R> {
        let mask = |n: usize| Packed::new(1, n, |_, _| 1.0).weights;
        let n_scalars = places.weight.len();
        GvpLayerNorm {
            weight: padded_row(&parameters[places.weight.clone()]),
            bias: padded_row(&parameters[places.bias.clone()]),
            scalar_mask: mask(n_scalars),
            vector_mask: mask(n_vectors),
            n_scalars: n_scalars as f64,
            n_vectors: n_vectors as f64,
        }
    }

    /// Normalises `rows` rows in place; fills the tape, if given, for [`Self::jvp`].
    pub fn forward(&self, rows: usize, s: &mut [R], v: &mut [R], mut tape: Option<&mut NormTape<R>>) {
        if let Some(tape) = &mut tape {
            let (f, u) = (self.weight.len(), self.vector_mask.len());
            grow(&mut tape.normal, rows * f);
            grow(&mut tape.scale, rows * f);
            grow(&mut tape.vectors, rows * 3 * u);
            grow(&mut tape.gradient, rows * 3 * u);
            grow(&mut tape.factor, rows);
        }
        R::vectorised(Forward { norm: self, rows, s, v, tape });
    }

    /// Transforms tangents in place, `ds[rows][scalars]` and `dv[rows][3][vectors]`, at row `at` of the tape.
    pub fn jvp(&self, tape: &NormTape<R>, at: usize, rows: usize, ds: &mut [R], dv: &mut [R]) {
        R::vectorised(Jvp { norm: self, tape, at, rows, ds, dv });
    }
}

struct Forward<'a, R> {
    norm: &'a GvpLayerNorm<R>,
    rows: usize,
    s: &'a mut [R],
    v: &'a mut [R],
    tape: Option<&'a mut NormTape<R>>,
}

impl<R: Real> Kernel<R> for Forward<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(mut self) {
        let norm = self.norm;
        let (f, u) = (norm.weight.len(), norm.vector_mask.len());
        for row in 0..self.rows {
            let s = &mut self.s[row * f..][..f];
            let (mut sum, mut squares) = (L::zero(), L::zero());
            for s in s.chunks_exact(WIDTH) {
                sum = sum.add(L::load(s));
            }
            let mean = L::splat(R::from_f64(sum.sum().to_f64() / norm.n_scalars));
            for (s, mask) in s.chunks_exact_mut(WIDTH).zip(norm.scalar_mask.chunks_exact(WIDTH)) {
                let centred = L::load(s).sub(mean).mul(L::load(mask));
                squares = centred.mul_add(centred, squares);
                centred.store(s);
            }
            let inverse = R::from_f64(1.0 / (squares.sum().to_f64() / norm.n_scalars + EPSILON).sqrt());
            for i in (0..f).step_by(WIDTH) {
                let normal = L::load(&s[i..]).mul(L::splat(inverse));
                let weight = L::load(&norm.weight[i..]);
                weight.mul_add(normal, L::load(&norm.bias[i..])).store(&mut s[i..]);
                if let Some(tape) = &mut self.tape {
                    normal.store(&mut tape.normal[row * f + i..]);
                    weight.mul(L::splat(inverse)).store(&mut tape.scale[row * f + i..]);
                }
            }
            self.vectors::<L>(row, u);
        }
    }
}

impl<R: Real> Forward<'_, R> {
    #[inline(always)]
    fn vectors<L: Lanes<R>>(&mut self, row: usize, width: usize) {
        let norm = self.norm;
        let smallest = L::splat(R::from_f64(SMALLEST_SQUARE));
        let v = &mut self.v[row * 3 * width..][..3 * width];
        let mut sum = L::zero();
        for u in (0..width).step_by(WIDTH) {
            sum = square::<R, L>(v, u, width).at_least(smallest).mul_add(L::load(&norm.vector_mask[u..]), sum);
        }
        let root = (sum.sum().to_f64() / norm.n_vectors + EPSILON).sqrt();
        let factor = 1.0 / (root + EPSILON);
        if let Some(tape) = &mut self.tape {
            tape.factor[row] = R::from_f64(factor);
            let by = L::splat(R::from_f64(factor / (norm.n_vectors * root)));
            for u in (0..width).step_by(WIDTH) {
                let square = square::<R, L>(v, u, width);
                for c in 0..3 {
                    let part = L::load(&v[c * width + u..]);
                    part.mul(by).where_above(square, smallest).store(&mut tape.gradient[(row * 3 + c) * width + u..]);
                }
            }
        }
        let factor = L::splat(R::from_f64(factor));
        for v in v.chunks_exact_mut(WIDTH) {
            L::load(v).mul(factor).store(v);
        }
        if let Some(tape) = &mut self.tape {
            tape.vectors[row * 3 * width..][..3 * width].copy_from_slice(v);
        }
    }
}

/// |V_u|² of the vectors from u on, in `[3][width]`.
#[inline(always)]
fn square<R: Real, L: Lanes<R>>(v: &[R], u: usize, width: usize) -> L {
    let mut sum = L::zero();
    for c in 0..3 {
        let part = L::load(&v[c * width + u..]);
        sum = part.mul_add(part, sum);
    }
    sum
}

struct Jvp<'a, R> {
    norm: &'a GvpLayerNorm<R>,
    tape: &'a NormTape<R>,
    at: usize,
    rows: usize,
    ds: &'a mut [R],
    dv: &'a mut [R],
}

impl<R: Real> Kernel<R> for Jvp<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        let (f, u) = (self.norm.weight.len(), 3 * self.norm.vector_mask.len());
        let normal = &self.tape.normal[self.at * f..][..f];
        let scale = &self.tape.scale[self.at * f..][..f];
        let (vectors, gradient) = (&self.tape.vectors[self.at * u..][..u], &self.tape.gradient[self.at * u..][..u]);
        let factor = L::splat(self.tape.factor[self.at]);
        let inverse = R::from_f64(1.0 / self.norm.n_scalars);
        for row in 0..self.rows {
            // ds ← weight/sd (ds − mean(ds) − normal · mean(normal · ds))
            let ds = &mut self.ds[row * f..][..f];
            let (mut sum, mut along) = (L::zero(), L::zero());
            for i in (0..f).step_by(WIDTH) {
                let part = L::load(&ds[i..]);
                sum = sum.add(part);
                along = part.mul_add(L::load(&normal[i..]), along);
            }
            let mean = L::splat(R::default() - sum.sum() * inverse);
            let along = L::splat(R::default() - along.sum() * inverse);
            for i in (0..f).step_by(WIDTH) {
                let part = along.mul_add(L::load(&normal[i..]), L::load(&ds[i..]).add(mean));
                part.mul(L::load(&scale[i..])).store(&mut ds[i..]);
            }
            // dV ← factor dV − V′ (gradient · dV)
            let dv = &mut self.dv[row * u..][..u];
            let mut along = L::zero();
            for i in (0..u).step_by(WIDTH) {
                along = L::load(&dv[i..]).mul_add(L::load(&gradient[i..]), along);
            }
            let along = L::splat(R::default() - along.sum());
            for i in (0..u).step_by(WIDTH) {
                let scaled = factor.mul(L::load(&dv[i..]));
                along.mul_add(L::load(&vectors[i..]), scaled).store(&mut dv[i..]);
            }
        }
    }
}
