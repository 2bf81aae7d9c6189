//! y = W x + b with W stored `[out][in]`, as PyTorch does.

use super::real::{Matrix, Real};
use super::Parameters;
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
    pub fn forward<R: Real>(&self, parameters: &Parameters<R>, x: &[R], y: &mut [R]) {
        parameters.dense(self).apply(x, y);
    }

    /// Tangents: `dy[n][out] = dx[n][in] · Wᵀ`.
    pub fn jvp<R: Real>(&self, parameters: &[R], dx: &[R], dy: &mut [R]) {
        R::gemm(
            (dy.len() / self.n_out, self.n_out, self.n_in),
            (dy, Matrix::row_major(self.n_out)),
            (dx, Matrix::row_major(self.n_in)),
            (&parameters[self.weight()], Matrix::transposed(self.n_in)),
            false,
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
