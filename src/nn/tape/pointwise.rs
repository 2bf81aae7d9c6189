//! Element-wise operations.

use super::norm::sum_of_triples;
use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};

/// y = α a + β b + γ.
#[derive(Clone, Debug)]
pub(super) struct CombineOp {
    a: (f64, Var),
    b: Option<(f64, Var)>,
    constant: f64,
    output: Var,
}

impl CombineOp {
    fn apply<R: Scalar>(&self, inputs: &[R], constant: R, y: &mut [R]) {
        let (alpha, a) = (R::from_f64(self.a.0), &inputs[self.a.1.range()]);
        vectorised!(match self.b {
            None => y.iter_mut().zip(a).for_each(|(y, &a)| *y = alpha * a + constant),
            Some((beta, b)) => {
                let (beta, b) = (R::from_f64(beta), &inputs[b.range()]);
                y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = alpha * a + beta * b + constant)
            }
        });
    }
}

impl<R: Scalar> Operation<R> for CombineOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        self.apply(point.values, R::from_f64(self.constant), output);
    }

    fn jvp(&self, _: &Point<R>, tangents: &[R], output: &mut [R]) {
        self.apply(tangents, R::default(), output);
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        for (factor, x) in [Some(self.a), self.b].into_iter().flatten() {
            let (factor, slot) = (R::from_f64(factor), &mut inputs[x.range()]);
            vectorised!(slot.iter_mut().zip(cotangent).for_each(|(s, &g)| *s += factor * g));
        }
    }
}

/// y = a b.
#[derive(Clone, Debug)]
pub(super) struct ProductOp {
    a: Var,
    b: Var,
    output: Var,
}

impl<R: Scalar> Operation<R> for ProductOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (a, b) = (point.value(self.a), point.value(self.b));
        vectorised!(output.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = a * b));
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (a, b) = (point.value(self.a), point.value(self.b));
        let (da, db) = (&tangents[self.a.range()], &tangents[self.b.range()]);
        vectorised!((0..output.len()).for_each(|i| output[i] = da[i] * b[i] + a[i] * db[i]));
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        for (x, other) in [(self.a, self.b), (self.b, self.a)] {
            let (slot, other) = (&mut inputs[x.range()], point.value(other));
            vectorised!(slot.iter_mut().zip(cotangent).zip(other).for_each(|((s, &g), &o)| *s += g * o));
        }
    }
}

/// y[r][k][c] = a[r][k][c] · b[r][c]: every block of b's columns in a row of a is multiplied by b's row.
#[derive(Clone, Debug)]
pub(super) struct ScaleOp {
    a: Var,
    b: Var,
    output: Var,
}

/// Pairs of a row of a (`columns` wide) and a row of b (`width` wide).
fn rows<'a, R>(a: &'a [R], columns: usize, b: &'a [R], width: usize) -> impl Iterator<Item = (&'a [R], &'a [R])> {
    a.chunks_exact(columns).zip(b.chunks_exact(width))
}

impl<R: Scalar> Operation<R> for ScaleOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (a, b, n, w) = (point.value(self.a), point.value(self.b), self.a.columns, self.b.columns);
        vectorised!({
            for ((a, b), y) in rows(a, n, b, w).zip(output.chunks_exact_mut(n)) {
                if w == 1 {
                    y.iter_mut().zip(a).for_each(|(y, &a)| *y = a * b[0]);
                    continue;
                }
                for (a, y) in a.chunks_exact(w).zip(y.chunks_exact_mut(w)) {
                    y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = a * b);
                }
            }
        });
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (n, w) = (self.a.columns, self.b.columns);
        let values = rows(point.value(self.a), n, point.value(self.b), w);
        let tangents = rows(&tangents[self.a.range()], n, &tangents[self.b.range()], w);
        for (((a, b), (da, db)), y) in values.zip(tangents).zip(output.chunks_exact_mut(n)) {
            vectorised!((0..n).for_each(|i| y[i] = da[i] * b[i % w] + a[i] * db[i % w]));
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (n, w) = (self.a.columns, self.b.columns);
        let (a, b) = (point.value(self.a), point.value(self.b));
        let slots = inputs[self.a.range()].chunks_exact_mut(n);
        vectorised!({
            for ((slot, g), b) in slots.zip(cotangent.chunks_exact(n)).zip(b.chunks_exact(w)) {
                for (slot, g) in slot.chunks_exact_mut(w).zip(g.chunks_exact(w)) {
                    slot.iter_mut().zip(g).zip(b).for_each(|((s, &g), &b)| *s += g * b);
                }
            }
        });
        let slots = inputs[self.b.range()].chunks_exact_mut(w);
        vectorised!({
            for ((slot, g), a) in slots.zip(cotangent.chunks_exact(n)).zip(a.chunks_exact(n)) {
                if w == 1 {
                    slot[0] += g.iter().zip(a).map(|(&g, &a)| g * a).sum::<R>();
                    continue;
                }
                for (g, a) in g.chunks_exact(w).zip(a.chunks_exact(w)) {
                    slot.iter_mut().zip(g).zip(a).for_each(|((s, &g), &a)| *s += g * a);
                }
            }
        });
    }
}

/// Functions of one variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    Silu,
    /// x Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016), by the error function.
    Gelu,
    Exp,
    Sigmoid,
    Tanh,
    /// 1/x.
    Reciprocal,
    /// max(x, floor), with derivative 0 below.
    AtLeast(f64),
    /// √x.
    Root,
}

#[derive(Clone, Debug)]
pub(super) struct FunctionOp {
    function: Function,
    x: Var,
    output: Var,
}

impl FunctionOp {
    /// gradient ← gradient · f′(x), with y = f(x).
    fn differentiate<R: Scalar>(&self, x: &[R], y: &[R], gradient: &mut [R]) {
        let one = R::from_f64(1.0);
        let each = gradient.iter_mut().zip(x.iter().zip(y));
        match self.function {
            Function::Silu => R::silu_backward(x, gradient),
            Function::Gelu => gelu_backward(x, gradient),
            Function::Exp => vectorised!(each.for_each(|(g, (_, &y))| *g *= y)),
            Function::Sigmoid => vectorised!(each.for_each(|(g, (_, &y))| *g *= y * (one - y))),
            Function::Tanh => vectorised!(each.for_each(|(g, (_, &y))| *g *= one - y * y)),
            Function::Reciprocal => vectorised!(each.for_each(|(g, (_, &y))| *g *= -y * y)),
            Function::AtLeast(floor) => {
                let (floor, zero) = (R::from_f64(floor), R::default());
                vectorised!(each.for_each(|(g, (&x, _))| *g = if x < floor { zero } else { *g }))
            }
            Function::Root => {
                let half = R::from_f64(0.5);
                vectorised!(each.for_each(|(g, (_, &y))| *g = *g * half / y))
            }
        }
    }
}

impl<R: Scalar> Operation<R> for FunctionOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, y: &mut [R]) {
        let x = point.value(self.x);
        let one = R::from_f64(1.0);
        match self.function {
            Function::Silu => R::silu_slice(x, y),
            Function::Gelu => gelu(x, y),
            Function::Exp => {
                y.copy_from_slice(x);
                R::exp_slice(y)
            }
            Function::Sigmoid => R::sigmoid_slice(x, y),
            Function::Tanh => {
                y.copy_from_slice(x);
                R::tanh_slice(y)
            }
            Function::Reciprocal => vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y = one / x)),
            Function::AtLeast(floor) => {
                let floor = R::from_f64(floor);
                vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < floor { floor } else { x }))
            }
            Function::Root => vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y = x.sqrt())),
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        output.copy_from_slice(&tangents[self.x.range()]);
        self.differentiate(point.value(self.x), point.value(self.output), output);
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        const BLOCK: usize = 256;
        let mut scratch = [R::default(); BLOCK];
        let (x, y) = (point.value(self.x).chunks(BLOCK), point.value(self.output).chunks(BLOCK));
        let blocks = inputs[self.x.range()].chunks_mut(BLOCK).zip(cotangent.chunks(BLOCK));
        for ((slot, g), (x, y)) in blocks.zip(x.zip(y)) {
            let scratch = &mut scratch[..g.len()];
            scratch.copy_from_slice(g);
            self.differentiate(x, y, scratch);
            slot.iter_mut().zip(scratch).for_each(|(s, g)| *s += *g);
        }
    }
}

/// Writes Φ(x) to `phi`.
fn normal_distribution<R: Scalar>(x: &[R], phi: &mut [R]) {
    let (half, one) = (R::from_f64(0.5), R::from_f64(1.0));
    let root = R::from_f64(std::f64::consts::FRAC_1_SQRT_2);
    vectorised!(phi.iter_mut().zip(x).for_each(|(p, &x)| *p = root * x));
    R::erf_slice(phi);
    vectorised!(phi.iter_mut().for_each(|p| *p = half * (one + *p)));
}

/// y = x Φ(x).
pub fn gelu<R: Scalar>(x: &[R], y: &mut [R]) {
    normal_distribution(x, y);
    vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x));
}

/// gradient ← gradient · (Φ(x) + x φ(x)), φ the normal density.
fn gelu_backward<R: Scalar>(x: &[R], gradient: &mut [R]) {
    const BLOCK: usize = 256;
    let (mut phi, mut density) = ([R::default(); BLOCK], [R::default(); BLOCK]);
    let (minus_half, factor) = (R::from_f64(-0.5), R::from_f64(0.398_942_280_401_432_7)); // 1/√2π
    for (x, g) in x.chunks(BLOCK).zip(gradient.chunks_mut(BLOCK)) {
        let (phi, density) = (&mut phi[..x.len()], &mut density[..x.len()]);
        normal_distribution(x, phi);
        vectorised!(density.iter_mut().zip(x).for_each(|(d, &x)| *d = minus_half * x * x));
        R::exp_slice(density);
        vectorised!({
            let each = g.iter_mut().zip(x).zip(phi.iter().zip(density.iter()));
            each.for_each(|((g, &x), (&phi, &density))| *g *= phi + factor * x * density)
        });
    }
}

/// y = x σ(βx) with a learned slope β (Ramachandran et al. 2017).
#[derive(Clone, Debug)]
pub(super) struct SwishOp {
    x: Var,
    /// Offset of β in the parameters.
    beta: usize,
    output: Var,
}

impl SwishOp {
    /// Writes σ(βx) to `sigmoid`.
    fn sigmoid<R: Scalar>(&self, beta: R, x: &[R], sigmoid: &mut [R]) {
        let mut scaled = [R::default(); SWISH_BLOCK];
        let scaled = &mut scaled[..x.len()];
        vectorised!(scaled.iter_mut().zip(x).for_each(|(s, &x)| *s = beta * x));
        R::sigmoid_slice(scaled, sigmoid);
    }
}

const SWISH_BLOCK: usize = 256;

impl<R: Scalar> Operation<R> for SwishOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let beta = point.parameters[self.beta];
        for (y, x) in output.chunks_mut(SWISH_BLOCK).zip(point.value(self.x).chunks(SWISH_BLOCK)) {
            self.sigmoid(beta, x, y);
            vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x));
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (beta, one) = (point.parameters[self.beta], R::from_f64(1.0));
        let x = point.value(self.x).chunks(SWISH_BLOCK).zip(tangents[self.x.range()].chunks(SWISH_BLOCK));
        for ((x, dx), y) in x.zip(output.chunks_mut(SWISH_BLOCK)) {
            self.sigmoid(beta, x, y);
            vectorised!({
                let each = y.iter_mut().zip(x).zip(dx);
                each.for_each(|((y, &x), &dx)| *y = dx * *y * (one + beta * x * (one - *y)))
            });
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], gradient: Option<&mut [R]>) {
        let (beta, one) = (point.parameters[self.beta], R::from_f64(1.0));
        let mut sigmoid = [R::default(); SWISH_BLOCK];
        let by_beta = |g, s, x| g * x * x * s * (one - s);
        let (mut g_beta, is_wanted) = (R::default(), gradient.is_some());
        let blocks = inputs[self.x.range()].chunks_mut(SWISH_BLOCK).zip(cotangent.chunks(SWISH_BLOCK));
        for ((slot, g), x) in blocks.zip(point.value(self.x).chunks(SWISH_BLOCK)) {
            let sigmoid = &mut sigmoid[..x.len()];
            self.sigmoid(beta, x, sigmoid);
            vectorised!({
                for ((slot, &g), (&s, &x)) in slot.iter_mut().zip(g).zip(sigmoid.iter().zip(x)) {
                    *slot += g * s * (one + beta * x * (one - s));
                }
            });
            if is_wanted {
                g_beta += vectorised!(sum_of_triples(g, sigmoid, x, by_beta));
            }
        }
        if let Some(gradient) = gradient {
            gradient[self.beta] += g_beta;
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// α a + β b + γ.
    pub fn combine(&mut self, a: (f64, Var), b: (f64, Var), constant: f64) -> Var {
        assert_eq!((a.1.rows, a.1.columns), (b.1.rows, b.1.columns));
        let output = self.allocate(a.1.rows, a.1.columns);
        self.run(&[], CombineOp { a, b: Some(b), constant, output })
    }

    /// a + b.
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        self.combine((1.0, a), (1.0, b), 0.0)
    }

    /// α a + γ.
    pub fn affine(&mut self, factor: f64, a: Var, constant: f64) -> Var {
        let output = self.allocate(a.rows, a.columns);
        self.run(&[], CombineOp { a: (factor, a), b: None, constant, output })
    }

    /// a b, element by element.
    pub fn product(&mut self, a: Var, b: Var) -> Var {
        assert_eq!((a.rows, a.columns), (b.rows, b.columns));
        let output = self.allocate(a.rows, a.columns);
        self.run(&[], ProductOp { a, b, output })
    }

    /// Multiplies every block of b's columns in a row of a by b's row: gates of vectors, and factors of whole rows.
    pub fn scale(&mut self, a: Var, b: Var) -> Var {
        assert!(a.rows == b.rows && a.columns.is_multiple_of(b.columns));
        let output = self.allocate(a.rows, a.columns);
        self.run(&[], ScaleOp { a, b, output })
    }

    /// f(x), element by element.
    pub fn function(&mut self, function: Function, x: Var) -> Var {
        let output = self.allocate(x.rows, x.columns);
        self.run(&[], FunctionOp { function, x, output })
    }

    /// x σ(x).
    pub fn silu(&mut self, x: Var) -> Var {
        self.function(Function::Silu, x)
    }

    /// x Φ(x).
    pub fn gelu(&mut self, x: Var) -> Var {
        self.function(Function::Gelu, x)
    }

    /// x σ(βx) with β the parameter at `beta`.
    pub fn swish(&mut self, parameters: &[R], beta: usize, x: Var) -> Var {
        let output = self.allocate(x.rows, x.columns);
        self.run(parameters, SwishOp { x, beta, output })
    }
}
