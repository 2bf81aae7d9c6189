//! Linear layers y = W x + b, with W stored `[out][in]` as in PyTorch.

use super::real::{Matrix, Real};
use super::Parameters;
use std::ops::Range;

/// Shape and offset of a linear layer in the model's parameter vector: the weight matrix, then the bias.
#[derive(Clone, Debug)]
pub struct Linear {
    pub n_in: usize,
    pub n_out: usize,
    offset: usize,
}

impl Linear {
    /// Takes the next n_in·n_out + n_out places from `*end` on and advances it.
    pub fn new(n_in: usize, n_out: usize, end: &mut usize) -> Linear {
        let offset = *end;
        *end += n_in * n_out + n_out;
        Linear { n_in, n_out, offset }
    }

    /// Range of the weights `[out][in]`.
    pub fn weight(&self) -> Range<usize> {
        self.offset..self.offset + self.n_in * self.n_out
    }

    /// Range of the bias `[out]`.
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

    /// Cotangent of the input: `gx[n][in] = gy[n][out] · W`. The bits of a row do not depend on the others.
    pub fn vjp_input<R: Real>(&self, parameters: &Parameters<R>, gy: &[R], gx: &mut [R]) {
        parameters.back(self).apply(gy, gx);
    }

    /// Adds the cotangents of weights (`gyᵀ x`) and bias (column sums of gy) to `gradient`, which has the parameters'
    /// layout.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes on both sides of those of the vectors in products.
    fn cotangents_of_a_row_are_the_same_in_every_batch<R: Real + PartialEq>() {
        let values = |n: usize| (0..n).map(|i| R::from_f64((i as f64 * 0.7).sin())).collect::<Vec<R>>();
        for (n_in, n_out) in [(64, 128), (33, 7), (5, 1), (1, 9)] {
            let layer = Linear::new(n_in, n_out, &mut 0);
            let mut parameters = Parameters::new(n_in * n_out + n_out, vec![layer.clone()]);
            parameters.values_mut().copy_from_slice(&values(n_in * n_out + n_out));
            let (g, mut all) = (values(70 * n_out), vec![R::default(); 70 * n_in]);
            layer.vjp_input(&parameters, &g, &mut all);
            for n in 1..70 {
                let mut gx = vec![R::default(); n * n_in];
                layer.vjp_input(&parameters, &g[..n * n_out], &mut gx);
                assert!(gx == all[..n * n_in], "{n_in} to {n_out}, {n} rows");
            }
        }
    }

    #[test]
    fn cotangents_are_the_same_in_every_batch() {
        cotangents_of_a_row_are_the_same_in_every_batch::<f32>();
        cotangents_of_a_row_are_the_same_in_every_batch::<f64>();
    }
}
