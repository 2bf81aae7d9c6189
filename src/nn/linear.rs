//! y = W x + b with W stored `[out][in]`, as PyTorch does.

use super::real::{Matrix, Real};
use std::ops::Range;

/// Shape and place of a linear layer in the model's parameter vector: the weight matrix, then the bias.
#[derive(Clone, Debug)]
pub struct Linear {
    pub n_in: usize,
    pub n_out: usize,
    offset: usize,
}

impl Linear {
    /// Takes the next n_in·n_out + n_out places after `*end` and advances it.
    pub fn new(n_in: usize, n_out: usize, end: &mut usize) -> Linear {
        let offset = *end;
        *end += n_in * n_out + n_out;
        Linear { n_in, n_out, offset }
    }

    /// Place of the weights `[out][in]`.
    pub fn weight(&self) -> Range<usize> {
        self.offset..self.offset + self.n_in * self.n_out
    }

    /// Place of the bias `[out]`.
    pub fn bias(&self) -> Range<usize> {
        let start = self.offset + self.n_in * self.n_out;
        start..start + self.n_out
    }

    /// `y[n][out]` from `x[n][in]`.
    pub fn forward<R: Real>(&self, parameters: &[R], x: &[R], y: &mut [R]) {
        let n = y.len() / self.n_out;
        let bias = &parameters[self.bias()];
        y.chunks_exact_mut(self.n_out).for_each(|row| row.copy_from_slice(bias));
        self.product(parameters, n, x, y, true);
    }

    /// `y[n][out]` without the bias.
    pub fn forward_linear<R: Real>(&self, parameters: &[R], x: &[R], y: &mut [R]) {
        self.product(parameters, y.len() / self.n_out, x, y, false);
    }

    /// Tangents: `dy[n][out] = dx[n][in] · Wᵀ`.
    pub fn jvp<R: Real>(&self, parameters: &[R], dx: &[R], dy: &mut [R]) {
        self.product(parameters, dy.len() / self.n_out, dx, dy, false);
    }

    fn product<R: Real>(&self, parameters: &[R], n: usize, x: &[R], y: &mut [R], accumulate: bool) {
        R::gemm(
            (n, self.n_out, self.n_in),
            (y, Matrix::row_major(self.n_out)),
            (x, Matrix::row_major(self.n_in)),
            (&parameters[self.weight()], Matrix::transposed(self.n_in)),
            accumulate,
        );
    }

    /// Cotangent of the input: `gx[n][in] = gy[n][out] · W`.
    pub fn vjp_input<R: Real>(&self, parameters: &[R], gy: &[R], gx: &mut [R]) {
        R::gemm(
            (gx.len() / self.n_in, self.n_in, self.n_out),
            (gx, Matrix::row_major(self.n_in)),
            (gy, Matrix::row_major(self.n_out)),
            (&parameters[self.weight()], Matrix::row_major(self.n_in)),
            false,
        );
    }

    /// Adds the cotangents of weights (`gyᵀ x`) and bias (column sums of gy) to `gradient`, which is laid out as the parameters.
    pub fn vjp_parameters<R: Real>(&self, x: &[R], gy: &[R], gradient: &mut [R]) {
        let n = gy.len() / self.n_out;
        R::gemm(
            (self.n_out, self.n_in, n),
            (&mut gradient[self.weight()], Matrix::row_major(self.n_in)),
            (gy, Matrix::transposed(self.n_out)),
            (x, Matrix::row_major(self.n_in)),
            true,
        );
        let bias = &mut gradient[self.bias()];
        for row in gy.chunks_exact(self.n_out) {
            bias.iter_mut().zip(row).for_each(|(b, &g)| *b += g);
        }
    }
}
