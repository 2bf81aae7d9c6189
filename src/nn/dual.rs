//! Dual numbers. A network run on [`Dual`] gives its values and their derivatives along one direction; run forward and
//! backward, it gives the derivative of its gradient along that direction, with no further calculus.

use super::real::{Matrix, Real, Scalar};
use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// value + slope ε with ε² = 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dual<R> {
    pub value: R,
    pub slope: R,
}

impl<R: Real> Dual<R> {
    /// value + slope ε.
    pub fn new(value: R, slope: R) -> Dual<R> {
        Dual { value, slope }
    }

    /// Applies f to the values, and f′ (a function of x and f(x)) to the slopes.
    fn each(values: &mut [Dual<R>], f: impl Fn(&mut [R]), derivative: impl Fn(R, R) -> R) {
        const BLOCK: usize = 128;
        let mut y = [R::default(); BLOCK];
        for block in values.chunks_mut(BLOCK) {
            let y = &mut y[..block.len()];
            y.iter_mut().zip(block.iter()).for_each(|(y, x)| *y = x.value);
            f(y);
            for (x, &y) in block.iter_mut().zip(y.iter()) {
                *x = Dual::new(y, derivative(x.value, y) * x.slope);
            }
        }
    }
}

impl<R: Real> Add for Dual<R> {
    type Output = Dual<R>;
    fn add(self, other: Dual<R>) -> Dual<R> {
        Dual::new(self.value + other.value, self.slope + other.slope)
    }
}

impl<R: Real> Sub for Dual<R> {
    type Output = Dual<R>;
    fn sub(self, other: Dual<R>) -> Dual<R> {
        Dual::new(self.value - other.value, self.slope - other.slope)
    }
}

impl<R: Real> Mul for Dual<R> {
    type Output = Dual<R>;
    fn mul(self, other: Dual<R>) -> Dual<R> {
        Dual::new(self.value * other.value, self.value * other.slope + self.slope * other.value)
    }
}

impl<R: Real> Div for Dual<R> {
    type Output = Dual<R>;
    fn div(self, other: Dual<R>) -> Dual<R> {
        let value = self.value / other.value;
        Dual::new(value, (self.slope - value * other.slope) / other.value)
    }
}

impl<R: Real> Neg for Dual<R> {
    type Output = Dual<R>;
    fn neg(self) -> Dual<R> {
        Dual::new(-self.value, -self.slope)
    }
}

impl<R: Real> AddAssign for Dual<R> {
    fn add_assign(&mut self, other: Dual<R>) {
        *self = *self + other;
    }
}

impl<R: Real> MulAssign for Dual<R> {
    fn mul_assign(&mut self, other: Dual<R>) {
        *self = *self * other;
    }
}

impl<R: Real> std::iter::Sum for Dual<R> {
    fn sum<I: Iterator<Item = Dual<R>>>(all: I) -> Dual<R> {
        all.fold(Dual::default(), |a, b| a + b)
    }
}

/// Compares by value alone.
impl<R: Real> PartialOrd for Dual<R> {
    fn partial_cmp(&self, other: &Dual<R>) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

fn values<R: Real>(x: &[Dual<R>]) -> Vec<R> {
    x.iter().map(|x| x.value).collect()
}

fn slopes<R: Real>(x: &[Dual<R>]) -> Vec<R> {
    x.iter().map(|x| x.slope).collect()
}

impl<R: Real> Scalar for Dual<R> {
    const NAME: &'static str = "dual";

    fn from_f64(value: f64) -> Dual<R> {
        Dual::new(R::from_f64(value), R::default())
    }

    fn to_f64(self) -> f64 {
        self.value.to_f64()
    }

    fn sqrt(self) -> Dual<R> {
        let root = self.value.sqrt();
        Dual::new(root, R::from_f64(0.5) * self.slope / root)
    }

    fn exp_slice(x: &mut [Dual<R>]) {
        Dual::each(x, R::exp_slice, |_, y| y);
    }

    fn tanh_slice(x: &mut [Dual<R>]) {
        Dual::each(x, R::tanh_slice, |_, y| R::from_f64(1.0) - y * y);
    }

    fn sigmoid_slice(x: &[Dual<R>], y: &mut [Dual<R>]) {
        y.copy_from_slice(x);
        Dual::each(y, sigmoid, |_, y| y * (R::from_f64(1.0) - y));
    }

    fn silu_slice(x: &[Dual<R>], y: &mut [Dual<R>]) {
        Dual::sigmoid_slice(x, y);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
    }

    fn silu_backward(x: &[Dual<R>], gradient: &mut [Dual<R>]) {
        let one = Dual::from_f64(1.0);
        let mut sigmoid = x.to_vec();
        Dual::sigmoid_slice(x, &mut sigmoid);
        gradient.iter_mut().zip(x.iter().zip(sigmoid)).for_each(|(g, (&x, s))| *g *= s * (one + x * (one - s)));
    }

    fn erf_slice(x: &mut [Dual<R>]) {
        const TWO_BY_ROOT_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI;
        Dual::each(x, R::erf_slice, |x, _| {
            let mut e = [-x * x];
            R::exp_slice(&mut e);
            R::from_f64(TWO_BY_ROOT_PI) * e[0]
        });
    }

    fn softplus_slice(x: &mut [Dual<R>]) {
        Dual::each(x, R::softplus_slice, |x, _| {
            let mut s = [x];
            sigmoid(&mut s);
            s[0]
        });
    }

    fn gemm(
        shape: (usize, usize, usize),
        dst: (&mut [Dual<R>], Matrix),
        lhs: (&[Dual<R>], Matrix),
        rhs: (&[Dual<R>], Matrix),
        accumulate: bool,
    ) {
        let (mut value, mut slope) = (values(dst.0), slopes(dst.0));
        let (a, da, b, db) = (values(lhs.0), slopes(lhs.0), values(rhs.0), slopes(rhs.0));
        R::gemm(shape, (&mut value, dst.1), (&a, lhs.1), (&b, rhs.1), accumulate);
        if !accumulate {
            slope.fill(R::default());
        }
        // parameters usually have zero slopes
        let moves = |slopes: &[R]| slopes.iter().any(|s| *s != R::default());
        if moves(&da) {
            R::gemm(shape, (&mut slope, dst.1), (&da, lhs.1), (&b, rhs.1), true);
        }
        if moves(&db) {
            R::gemm(shape, (&mut slope, dst.1), (&a, lhs.1), (&db, rhs.1), true);
        }
        dst.0.iter_mut().zip(value.into_iter().zip(slope)).for_each(|(y, (v, s))| *y = Dual::new(v, s));
    }
}

fn sigmoid<R: Real>(y: &mut [R]) {
    let x = y.to_vec();
    R::sigmoid_slice(&x, y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_match_differences() {
        type D = Dual<f64>;
        type Function = fn(D) -> D;
        let functions: [(&str, Function); 9] = [
            ("arithmetic", |x| (x * x - D::from_f64(2.0)) / (x + D::from_f64(3.0)) + -x),
            ("assignment", |mut x| {
                x += x * x;
                x *= x;
                x
            }),
            ("root", |x| (x * x + D::from_f64(1.0)).sqrt()),
            ("exp", |x| slice(x, D::exp_slice)),
            ("tanh", |x| slice(x, D::tanh_slice)),
            ("softplus", |x| slice(x, D::softplus_slice)),
            ("sigmoid", |x| slice(x, |y| D::sigmoid_slice(&[y[0]], y))),
            ("silu", |x| slice(x, |y| D::silu_slice(&[y[0]], y))),
            ("silu\'", |x| {
                let mut g = [D::from_f64(1.0)];
                D::silu_backward(&[x], &mut g);
                g[0]
            }),
        ];
        let h = 1e-6;
        for (name, f) in functions {
            for x in [-2.0, -0.3, 0.4, 1.7] {
                let difference = (f(D::from_f64(x + h)).value - f(D::from_f64(x - h)).value) / (2.0 * h);
                let slope = f(D::new(x, 1.0)).slope;
                assert!((slope - difference).abs() < 1e-7 * difference.abs().max(1.0), "{name} at {x}");
            }
        }
    }

    fn slice(x: Dual<f64>, f: fn(&mut [Dual<f64>])) -> Dual<f64> {
        let mut y = [x];
        f(&mut y);
        y[0]
    }

    #[test]
    fn products_have_the_slopes_of_their_entries() {
        let matrix = |seed: f64| -> Vec<Dual<f64>> {
            (0..4).map(|i| Dual::new((seed + f64::from(i)).sin(), (seed * f64::from(i)).cos())).collect()
        };
        let fixed = |m: &[Dual<f64>]| m.iter().map(|v| Dual::new(v.value, 0.0)).collect::<Vec<_>>();
        let (a, b, start) = (matrix(1.0), matrix(2.0), matrix(3.0));
        let view = Matrix::row_major(2);
        for (a, b) in [(a.clone(), b.clone()), (a.clone(), fixed(&b)), (fixed(&a), b.clone()), (fixed(&a), fixed(&b))] {
            for accumulate in [true, false] {
                let before = |k: usize| if accumulate { start[k] } else { Dual::default() };
                let product = |k: usize| a[k / 2 * 2] * b[k % 2] + a[k / 2 * 2 + 1] * b[k % 2 + 2];
                let mut c = start.clone();
                Dual::gemm((2, 2, 2), (&mut c, view), (&a, view), (&b, view), accumulate);
                for (k, c) in c.iter().enumerate() {
                    let expected = before(k) + product(k);
                    assert!((c.value - expected.value).abs() < 1e-14 && (c.slope - expected.slope).abs() < 1e-14);
                }
            }
        }
    }
}
