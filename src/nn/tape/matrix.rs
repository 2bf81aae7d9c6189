//! Matrix products with parameters, and rows of a parameter table.

use super::{Operation, Point, Tape, Var};
use crate::nn::product::Start;
use crate::nn::real::{vectorised, Matrix, Scalar};
use crate::nn::Linear;
use std::sync::Arc;

/// A weight matrix in the parameter vector, with an optional bias.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    pub at: usize,
    pub n_in: usize,
    pub n_out: usize,
    /// Stride between stored rows.
    stride: usize,
    /// Whether it is stored `[in][out]` instead of `[out][in]`.
    transposed: bool,
    bias: Option<usize>,
    /// Whether it is frozen, and gets no gradient.
    frozen: bool,
}

impl Weight {
    /// A matrix stored `[out][in]`, as PyTorch's linear layers are.
    pub fn new(at: usize, n_in: usize, n_out: usize) -> Weight {
        Weight { at, n_in, n_out, stride: n_in, transposed: false, bias: None, frozen: false }
    }

    /// A matrix stored `[in][out]`.
    pub fn transposed(at: usize, n_in: usize, n_out: usize) -> Weight {
        Weight { at, n_in, n_out, stride: n_out, transposed: true, bias: None, frozen: false }
    }

    /// Adds a bias at offset `at`.
    pub fn with_bias(self, at: usize) -> Weight {
        Weight { bias: Some(at), ..self }
    }

    /// The same matrix without a gradient.
    pub fn frozen(self) -> Weight {
        Weight { frozen: true, ..self }
    }

    /// The same matrix without its bias.
    pub fn without_bias(self) -> Weight {
        Weight { bias: None, ..self }
    }

    /// Part that acts on `n_in` inputs from `start` on, with the bias.
    pub fn of_inputs(self, start: usize, n_in: usize) -> Weight {
        assert!(start + n_in <= self.n_in);
        Weight { at: self.offset(start), n_in, ..self }
    }

    /// Part that gives `n_out` outputs from `start` on.
    pub fn of_outputs(self, start: usize, n_out: usize) -> Weight {
        assert!(start + n_out <= self.n_out);
        Weight { at: self.place(0, start), n_out, bias: self.bias.map(|at| at + start), ..self }
    }

    /// Offset of the weight between an input and an output.
    pub fn place(&self, input: usize, output: usize) -> usize {
        let Matrix { row_stride, column_stride } = self.view();
        self.at + input * row_stride + output * column_stride
    }

    /// The bias among the parameters; empty if there is none.
    pub fn bias_of<'a, R>(&self, parameters: &'a [R]) -> &'a [R] {
        self.bias.map_or(&[], |at| &parameters[at..at + self.n_out])
    }

    fn view(&self) -> Matrix {
        match self.transposed {
            false => Matrix::transposed(self.stride),
            true => Matrix::row_major(self.stride),
        }
    }

    /// Strides as the right-hand side of gy · W.
    fn back(&self) -> Matrix {
        self.view().turned()
    }

    /// Offset of the first weight of input column `column`.
    fn offset(&self, column: usize) -> usize {
        self.at + column * self.view().row_stride
    }

    /// Just past the last weight.
    fn end(&self) -> usize {
        let (rows, columns) = if self.transposed { (self.n_in, self.n_out) } else { (self.n_out, self.n_in) };
        self.at + (rows - 1) * self.stride + columns
    }
}

impl From<&Linear> for Weight {
    fn from(linear: &Linear) -> Weight {
        Weight::new(linear.weight().start, linear.n_in, linear.n_out).with_bias(linear.bias().start)
    }
}

/// y = [a, b, c] W + bias + residual, with the columns of up to three values side by side, without concatenating them.
#[derive(Clone, Debug)]
pub(super) struct LinearOp {
    inputs: [Option<Var>; 3],
    weight: Weight,
    residual: Option<Var>,
    output: Var,
}

impl LinearOp {
    /// Input values, each with the first column of the weight matrix that acts on it.
    fn parts(&self) -> impl Iterator<Item = (Var, usize)> + '_ {
        let parts = self.inputs.iter().flatten();
        parts.scan(0, |column, &var| {
            *column += var.columns;
            Some((var, *column - var.columns))
        })
    }

    /// Weights of each part, as separate matrices.
    pub(super) fn matrices(&self) -> impl Iterator<Item = Weight> + '_ {
        self.parts().map(|(x, column)| self.weight.of_inputs(column, x.columns))
    }

    /// y = start + [a, b, c] W.
    fn product<R: Scalar>(&self, point: &Point<R>, inputs: &[R], start: Start<R>, y: &mut [R]) {
        for (k, ((x, _), w)) in self.parts().zip(self.matrices()).enumerate() {
            let (x, start) = (&inputs[x.range()], if k == 0 { start } else { Start::Output });
            if point.packs.is_some_and(|packs| packs.forward(&w, x, start, y)) {
                continue;
            }
            if let Start::Row(bias) = start {
                y.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
            }
            R::gemm(
                (self.output.rows, w.n_out, w.n_in),
                (&mut *y, Matrix::row_major(w.n_out)),
                (x, Matrix::row_major(w.n_in)),
                (&point.parameters[w.at..w.end()], w.view()),
                !matches!(start, Start::Zero),
            );
        }
    }
}

impl<R: Scalar> Operation<R> for LinearOp {
    fn output(&self) -> Var {
        self.output
    }

    fn products(&self) -> usize {
        self.output.rows * self.weight.n_in * self.weight.n_out
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let n = self.weight.n_out;
        let bias = self.weight.bias.map(|at| &point.parameters[at..at + n]);
        let start = match (bias, self.residual.map(|x| point.value(x))) {
            (Some(bias), Some(residual)) => {
                vectorised!({
                    for (y, x) in output.chunks_exact_mut(n).zip(residual.chunks_exact(n)) {
                        y.iter_mut().zip(x).zip(bias).for_each(|((y, &x), &b)| *y = x + b);
                    }
                });
                Start::Output
            }
            (Some(bias), None) => Start::Row(bias),
            (None, Some(residual)) => {
                output.copy_from_slice(residual);
                Start::Output
            }
            (None, None) => Start::Zero,
        };
        self.product(point, point.values, start, output);
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let residual = self.residual.map(|x| output.copy_from_slice(&tangents[x.range()]));
        let start = residual.map_or(Start::Zero, |()| Start::Output);
        self.product(point, tangents, start, output);
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], gradient: Option<&mut [R]>) {
        let w = &self.weight;
        if let Some(residual) = self.residual {
            let slot = &mut inputs[residual.range()];
            vectorised!(slot.iter_mut().zip(cotangent).for_each(|(s, &g)| *s += g));
        }
        for ((x, _), part) in self.parts().zip(self.matrices()) {
            let slot = &mut inputs[x.range()];
            if point.packs.is_some_and(|packs| packs.back(&part, cotangent, slot)) {
                continue;
            }
            R::gemm(
                (x.rows, x.columns, w.n_out),
                (slot, Matrix::row_major(x.columns)),
                (cotangent, Matrix::row_major(w.n_out)),
                (&point.parameters[part.at..part.end()], part.back()),
                true,
            );
        }
        let Some(gradient) = gradient.filter(|_| !w.frozen) else { return };
        for (x, column) in self.parts() {
            R::gemm(
                (x.columns, w.n_out, x.rows),
                (&mut gradient[w.offset(column)..w.end()], w.view()),
                (point.value(x), Matrix::transposed(x.columns)),
                (cotangent, Matrix::row_major(w.n_out)),
                true,
            );
        }
        if let Some(bias) = w.bias {
            let bias = &mut gradient[bias..bias + w.n_out];
            for row in cotangent.chunks_exact(w.n_out) {
                bias.iter_mut().zip(row).for_each(|(b, &g)| *b += g);
            }
        }
    }
}

/// A table of rows in the parameter vector, and the row that each output row takes.
#[derive(Clone, Debug)]
pub struct Embed {
    pub at: usize,
    pub columns: usize,
    pub types: Arc<[u32]>,
}

#[derive(Clone, Debug)]
pub(super) struct EmbedOp {
    embed: Embed,
    output: Var,
}

impl EmbedOp {
    fn place(&self, row: usize) -> std::ops::Range<usize> {
        let start = self.embed.at + self.embed.types[row % self.embed.types.len()] as usize * self.embed.columns;
        start..start + self.embed.columns
    }
}

impl<R: Scalar> Operation<R> for EmbedOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let rows = output.chunks_exact_mut(self.embed.columns).enumerate();
        rows.for_each(|(row, slot)| slot.copy_from_slice(&point.parameters[self.place(row)]));
    }

    fn jvp(&self, _: &Point<R>, _: &[R], output: &mut [R]) {
        output.fill(R::default());
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], _: &mut [R], gradient: Option<&mut [R]>) {
        let Some(gradient) = gradient else { return };
        for (row, g) in cotangent.chunks_exact(self.embed.columns).enumerate() {
            gradient[self.place(row)].iter_mut().zip(g).for_each(|(slot, &g)| *slot += g);
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// x Wᵀ + b.
    pub fn linear(&mut self, parameters: &[R], weight: impl Into<Weight>, x: Var) -> Var {
        self.linear_of(parameters, weight, &[x])
    }

    /// r + x Wᵀ + b.
    pub fn residual_linear(&mut self, parameters: &[R], weight: impl Into<Weight>, r: Var, x: Var) -> Var {
        self.record_linear(parameters, weight.into(), &[x], Some(r))
    }

    /// [a, b, c] Wᵀ + b of up to three values with equal numbers of rows, whose columns are side by side.
    pub fn linear_of(&mut self, parameters: &[R], weight: impl Into<Weight>, parts: &[Var]) -> Var {
        self.record_linear(parameters, weight.into(), parts, None)
    }

    fn record_linear(&mut self, parameters: &[R], weight: Weight, parts: &[Var], residual: Option<Var>) -> Var {
        let columns: usize = parts.iter().map(|x| x.columns).sum();
        assert!(
            parts.iter().all(|x| x.rows == parts[0].rows) && columns == weight.n_in,
            "parts must match the weights"
        );
        let mut inputs = [None; 3];
        inputs.iter_mut().zip(parts).for_each(|(slot, &x)| *slot = Some(x));
        let output = self.allocate(parts[0].rows, weight.n_out);
        assert!(residual.is_none_or(|r| r.len() == output.len()), "a residual must have the shape of the output");
        self.run(parameters, LinearOp { inputs, weight, residual, output })
    }

    /// Rows of a table, the list of types repeated `samples` times.
    pub fn embed(&mut self, parameters: &[R], embed: &Embed, samples: usize) -> Var {
        let output = self.allocate(samples * embed.types.len(), embed.columns);
        self.run(parameters, EmbedOp { embed: embed.clone(), output })
    }
}
