//! Gaussian expansions of distances.

use super::norm::{sum, sum_of_triples};
use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};
use std::sync::Arc;

/// exp(−((d − μ_k)/w)²) with fixed, evenly spaced μ_k from 0 to `max`, and w = max/count.
#[derive(Clone, Copy, Debug)]
pub struct RadialBasis {
    pub max: f64,
    pub count: usize,
}

#[derive(Clone, Debug)]
pub(super) struct RadialBasisOp {
    d: Var,
    basis: RadialBasis,
    output: Var,
}

impl RadialBasisOp {
    /// μ_k and 1/w.
    fn means<R: Scalar>(&self) -> (Vec<R>, R) {
        let RadialBasis { max, count } = self.basis;
        let step = R::from_f64(max / (count.max(2) - 1) as f64);
        ((0..count).map(|k| step * R::from_f64(k as f64)).collect(), R::from_f64(count as f64 / max))
    }

    /// μ_k and −2/w²: a Gaussian's logarithmic derivative is −2 (d − μ_k)/w².
    fn slopes<R: Scalar>(&self) -> (Vec<R>, R) {
        let (means, w) = self.means::<R>();
        (means, R::from_f64(-2.0) * w * w)
    }
}

impl<R: Scalar> Operation<R> for RadialBasisOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (means, w) = self.means::<R>();
        vectorised!({
            for (&d, y) in point.value(self.d).iter().zip(output.chunks_exact_mut(self.basis.count)) {
                for (y, &mean) in y.iter_mut().zip(&means) {
                    let z = (d - mean) * w;
                    *y = -(z * z);
                }
            }
        });
        R::exp_slice(output);
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (n, (means, slope)) = (self.basis.count, self.slopes::<R>());
        let distances = point.value(self.d).iter().zip(&tangents[self.d.range()]);
        for ((&d, &dd), (y, dy)) in
            distances.zip(point.value(self.output).chunks_exact(n).zip(output.chunks_exact_mut(n)))
        {
            dy.iter_mut().zip(y).zip(&means).for_each(|((dy, &y), &mean)| *dy = y * slope * (d - mean) * dd);
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (n, (means, slope)) = (self.basis.count, self.slopes::<R>());
        let rows = point.value(self.output).chunks_exact(n).zip(cotangent.chunks_exact(n));
        vectorised!({
            for ((&d, slot), (y, g)) in point.value(self.d).iter().zip(&mut inputs[self.d.range()]).zip(rows) {
                *slot += slope * sum_of_triples(y, g, &means, |y, g, mean| g * y * (d - mean));
            }
        });
    }
}

/// G_k(y) = exp(−((y − μ_k)/s_k)²/2) / (√(2·3.14159) s_k), s_k = |σ_k| + 1e-5, with learned μ and σ (Graphormer-3D, Shi
/// et al. 2022; the truncated π is part of trained checkpoints, and just a factor that later weights absorb).
#[derive(Clone, Copy, Debug)]
pub struct Gaussians {
    pub means: usize,
    pub widths: usize,
    pub count: usize,
}

#[derive(Clone, Debug)]
pub(super) struct GaussiansOp {
    y: Var,
    gaussians: Gaussians,
    output: Var,
}

/// √(2·3.14159)
const NORMALISER: f64 = 2.5066272160016134;

/// For every Gaussian: mean, inverse width, and sign of σ.
struct Kernels<R> {
    means: Vec<R>,
    inverses: Vec<R>,
    signs: Vec<R>,
}

impl GaussiansOp {
    fn kernels<R: Scalar>(&self, parameters: &[R]) -> Kernels<R> {
        let Gaussians { means, widths, count } = self.gaussians;
        let (one, floor) = (R::from_f64(1.0), R::from_f64(1e-5));
        let widths = &parameters[widths..widths + count];
        let signs: Vec<R> = widths.iter().map(|&w| if w < R::default() { -one } else { one }).collect();
        let inverses = widths.iter().zip(&signs).map(|(&w, &sign)| one / (sign * w + floor)).collect();
        Kernels { means: parameters[means..means + count].to_vec(), inverses, signs }
    }
}

impl<R: Scalar> Operation<R> for GaussiansOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let n = self.gaussians.count;
        let (half, factor) = (R::from_f64(-0.5), R::from_f64(1.0 / NORMALISER));
        let Kernels { means, inverses, .. } = self.kernels(point.parameters);
        vectorised!({
            for (&y, g) in point.value(self.y).iter().zip(output.chunks_exact_mut(n)) {
                for (g, (&mean, &inverse)) in g.iter_mut().zip(means.iter().zip(&inverses)) {
                    let z = (y - mean) * inverse;
                    *g = half * z * z;
                }
            }
        });
        R::exp_slice(output);
        vectorised!({
            for g in output.chunks_exact_mut(n) {
                g.iter_mut().zip(&inverses).for_each(|(g, &inverse)| *g = *g * factor * inverse);
            }
        });
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let n = self.gaussians.count;
        let Kernels { means, inverses, .. } = self.kernels(point.parameters);
        let rows = point.value(self.y).iter().zip(&tangents[self.y.range()]);
        let values = point.value(self.output).chunks_exact(n).zip(output.chunks_exact_mut(n));
        vectorised!({
            for ((&y, &dy), (g, dg)) in rows.zip(values) {
                for ((dg, &g), (&mean, &inverse)) in dg.iter_mut().zip(g).zip(means.iter().zip(&inverses)) {
                    *dg = -(g * (y - mean) * inverse * inverse * dy);
                }
            }
        });
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], gradient: Option<&mut [R]>) {
        let Gaussians { means: at_means, widths: at_widths, count: n } = self.gaussians;
        let Kernels { means, inverses, signs } = self.kernels(point.parameters);
        let rows =
            || point.value(self.y).iter().zip(point.value(self.output).chunks_exact(n).zip(cotangent.chunks_exact(n)));
        let mut slopes = vec![R::default(); n];
        let slots = inputs[self.y.range()].iter_mut();
        vectorised!({
            for (slot, (&y, (value, g))) in slots.zip(rows()) {
                let terms = value.iter().zip(g).zip(means.iter().zip(&inverses));
                for (slope, ((&value, &g), (&mean, &inverse))) in slopes.iter_mut().zip(terms) {
                    *slope = g * value * inverse * inverse * (y - mean);
                }
                *slot += -sum(&slopes, |slope| slope);
            }
        });
        let Some(gradient) = gradient else { return };
        let one = R::from_f64(1.0);
        for (&y, (value, g)) in rows() {
            for k in 0..n {
                let z = (y - means[k]) * inverses[k];
                let gv = g[k] * value[k] * inverses[k];
                gradient[at_means + k] += gv * z;
                gradient[at_widths + k] += signs[k] * gv * (z * z - one);
            }
        }
    }
}

/// `y = a[type] x + b[type]` for a column of numbers whose types repeat from sample to sample.
#[derive(Clone, Debug)]
pub struct TypedAffine {
    pub factor: usize,
    pub shift: usize,
    pub types: Arc<[u32]>,
}

#[derive(Clone, Debug)]
pub(super) struct TypedAffineOp {
    x: Var,
    affine: TypedAffine,
    output: Var,
}

impl TypedAffineOp {
    fn types(&self) -> impl Iterator<Item = usize> + '_ {
        self.affine.types.iter().cycle().map(|&t| t as usize)
    }
}

impl<R: Scalar> Operation<R> for TypedAffineOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (a, b) = (&point.parameters[self.affine.factor..], &point.parameters[self.affine.shift..]);
        let rows = point.value(self.x).iter().zip(output).zip(self.types());
        rows.for_each(|((&x, y), t)| *y = a[t] * x + b[t]);
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let a = &point.parameters[self.affine.factor..];
        let rows = tangents[self.x.range()].iter().zip(output).zip(self.types());
        rows.for_each(|((&dx, dy), t)| *dy = a[t] * dx);
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], gradient: Option<&mut [R]>) {
        let a = &point.parameters[self.affine.factor..];
        let rows = inputs[self.x.range()].iter_mut().zip(cotangent).zip(self.types());
        rows.for_each(|((slot, &g), t)| *slot += a[t] * g);
        let Some(gradient) = gradient else { return };
        for ((&x, &g), t) in point.value(self.x).iter().zip(cotangent).zip(self.types()) {
            gradient[self.affine.factor + t] += g * x;
            gradient[self.affine.shift + t] += g;
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Gaussians of distances: `[rows][1]` to `[rows][count]`.
    pub fn radial_basis(&mut self, basis: RadialBasis, d: Var) -> Var {
        assert_eq!(d.columns, 1);
        let output = self.allocate(d.rows, basis.count);
        self.run(&[], RadialBasisOp { d, basis, output })
    }

    /// Learned Gaussians of numbers: `[rows][1]` to `[rows][count]`.
    pub fn gaussians(&mut self, parameters: &[R], gaussians: Gaussians, y: Var) -> Var {
        assert_eq!(y.columns, 1);
        let output = self.allocate(y.rows, gaussians.count);
        self.run(parameters, GaussiansOp { y, gaussians, output })
    }

    /// `a[type] x + b[type]` of numbers `[rows][1]`.
    pub fn typed_affine(&mut self, parameters: &[R], affine: &TypedAffine, x: Var) -> Var {
        assert!(x.columns == 1 && x.rows.is_multiple_of(affine.types.len()));
        let output = self.allocate(x.rows, 1);
        self.run(parameters, TypedAffineOp { x, affine: affine.clone(), output })
    }
}
