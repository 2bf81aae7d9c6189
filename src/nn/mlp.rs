//! Multi-layer perceptron: linear, activation, linear, …, linear.

use super::{Activation, Linear, Parameters, Real};

/// A perceptron: layers of a matrix and a bias, with one activation between them.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub layers: Vec<Linear>,
    pub activation: Activation,
}

/// Intermediates of a forward pass for the backward pass, and scratch space. Buffers grow once and are kept.
#[derive(Clone, Debug, Default)]
pub struct MlpTape<R> {
    rows: usize,
    /// Input, then the activated output of every hidden layer.
    post: Vec<Vec<R>>,
    /// Hidden values before the activation.
    pre: Vec<Vec<R>>,
    /// Cotangents of the hidden layers.
    cotangent: Vec<Vec<R>>,
}

impl<R: Real> MlpTape<R> {
    /// The input `[rows][n_in]`, to be filled before [`Mlp::forward`].
    pub fn input(&mut self, mlp: &Mlp, rows: usize) -> &mut [R] {
        let n_layers = mlp.layers.len();
        self.rows = rows;
        self.post.resize_with(n_layers, Vec::new);
        self.pre.resize_with(n_layers - 1, Vec::new);
        self.cotangent.resize_with(n_layers - 1, Vec::new);
        for (layer, buffer) in mlp.layers.iter().zip(&mut self.post) {
            buffer.resize(rows * layer.n_in, R::default());
        }
        for (layer, buffer) in mlp.layers.iter().zip(&mut self.pre) {
            buffer.resize(rows * layer.n_out, R::default());
        }
        &mut self.post[0]
    }

    /// The input of the last forward pass.
    pub fn last_input(&self) -> &[R] {
        &self.post[0]
    }
}

impl Mlp {
    /// `sizes` = input, hidden…, output; parameters are appended at `*end`.
    pub fn new(sizes: &[usize], activation: Activation, end: &mut usize) -> Mlp {
        let layers = sizes.windows(2).map(|pair| Linear::new(pair[0], pair[1], end)).collect();
        Mlp { layers, activation }
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.layers[0].n_in
    }

    /// Number of outputs.
    pub fn n_out(&self) -> usize {
        self.layers[self.layers.len() - 1].n_out
    }

    /// Writes `y[rows][n_out]` for the input held by the tape.
    pub fn forward<R: Real>(&self, parameters: &Parameters<R>, tape: &mut MlpTape<R>, y: &mut [R]) {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers[..last].iter().enumerate() {
            layer.forward(parameters, &tape.post[i], &mut tape.pre[i]);
            self.activation.forward(&tape.pre[i], &mut tape.post[i + 1]);
        }
        self.layers[last].forward(parameters, &tape.post[last], y);
    }

    /// Tangent `dy[rows][n_out]` along the input tangent `dx[rows][n_in]`, at the point held by the tape.
    pub fn jvp<R: Real>(&self, parameters: &[R], tape: &MlpTape<R>, dx: &[R], dy: &mut [R]) {
        let last = self.layers.len() - 1;
        let mut tangent = dx.to_vec();
        for (i, layer) in self.layers[..last].iter().enumerate() {
            let mut next = vec![R::default(); tape.rows * layer.n_out];
            layer.jvp(parameters, &tangent, &mut next);
            self.activation.backward(&tape.pre[i], &tape.post[i + 1], &mut next);
            tangent = next;
        }
        self.layers[last].jvp(parameters, &tangent, dy);
    }

    /// Backward pass from the cotangent `gy[rows][n_out]`: writes the input's cotangent to `gx`, and adds the
    /// parameters' to `gradient`, each if given.
    pub fn vjp<R: Real>(
        &self,
        parameters: &Parameters<R>,
        tape: &mut MlpTape<R>,
        gy: &[R],
        mut gradient: Option<&mut [R]>,
        gx: Option<&mut [R]>,
    ) {
        let MlpTape { rows, post, pre, cotangent } = tape;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let (below, above) = cotangent.split_at_mut(i);
            let incoming: &[R] = if above.is_empty() { gy } else { &above[0] };
            if let Some(gradient) = gradient.as_deref_mut() {
                layer.vjp_parameters(&post[i], incoming, gradient);
            }
            if i > 0 {
                let outgoing = &mut below[i - 1];
                outgoing.resize(*rows * layer.n_in, R::default());
                layer.vjp_input(parameters, incoming, outgoing);
                self.activation.backward(&pre[i - 1], &post[i], outgoing);
            } else if let Some(gx) = gx {
                layer.vjp_input(parameters, incoming, gx);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    fn normals(n: usize, index: u64) -> Vec<f64> {
        let mut stream = Stream::new(5, StreamId::Test, index, 0);
        (0..n).map(|_| stream.normal()).collect()
    }

    fn parameters<R: Real>(mlp: &Mlp, values: &[f64]) -> Parameters<R> {
        let mut parameters = Parameters::new(values.len(), mlp.layers.clone());
        parameters.values_mut().iter_mut().zip(values).for_each(|(p, &v)| *p = R::from_f64(v));
        parameters
    }

    fn run(mlp: &Mlp, values: &[f64], x: &[f64], tape: &mut MlpTape<f64>) -> Vec<f64> {
        let parameters = parameters(mlp, values);
        let rows = x.len() / mlp.n_in();
        tape.input(mlp, rows).copy_from_slice(x);
        let mut y = vec![0.0; rows * mlp.n_out()];
        mlp.forward(&parameters, tape, &mut y);
        y
    }

    #[test]
    fn derivatives_match_differences() {
        for activation in [Activation::Silu, Activation::Tanh] {
            let mut end = 0;
            let mlp = Mlp::new(&[5, 7, 6, 3], activation, &mut end);
            let rows = 4;
            let (parameters, x) = (normals(end, 0), normals(rows * 5, 1));
            let (dp, dx, gy) = (normals(end, 2), normals(rows * 5, 3), normals(rows * 3, 4));
            let mut tape = MlpTape::default();
            run(&mlp, &parameters, &x, &mut tape);
            let mut dy = vec![0.0; rows * 3];
            mlp.jvp(&parameters, &tape, &dx, &mut dy);
            let (mut gradient, mut gx) = (vec![0.0; end], vec![0.0; rows * 5]);
            let packed = self::parameters(&mlp, &parameters);
            mlp.vjp(&packed, &mut tape, &gy, Some(&mut gradient), Some(&mut gx));

            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let h = 1e-5;
            let along = |v: &[f64], d: &[f64], s: f64| v.iter().zip(d).map(|(v, d)| v + s * h * d).collect::<Vec<_>>();
            let mut scratch = MlpTape::default();
            let mut value = |p: &[f64], x: &[f64]| dot(&gy, &run(&mlp, p, x, &mut scratch));
            let by_x =
                (value(&parameters, &along(&x, &dx, 1.0)) - value(&parameters, &along(&x, &dx, -1.0))) / (2.0 * h);
            let by_p =
                (value(&along(&parameters, &dp, 1.0), &x) - value(&along(&parameters, &dp, -1.0), &x)) / (2.0 * h);
            assert!((dot(&gy, &dy) - by_x).abs() < 1e-7 * by_x.abs().max(1.0));
            assert!((dot(&gx, &dx) - by_x).abs() < 1e-7 * by_x.abs().max(1.0));
            assert!((dot(&gradient, &dp) - by_p).abs() < 1e-7 * by_p.abs().max(1.0));
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let mut end = 0;
        let mlp = Mlp::new(&[9, 33, 17], Activation::Silu, &mut end);
        let parameters: Parameters<f32> = parameters(&mlp, &normals(end, 6));
        let x: Vec<f32> = normals(64 * 9, 7).iter().map(|&v| v as f32).collect();
        let mut tape = MlpTape::default();
        let mut whole = vec![0.0; 64 * 17];
        tape.input(&mlp, 64).copy_from_slice(&x);
        mlp.forward(&parameters, &mut tape, &mut whole);
        for row in [0, 13, 63] {
            let mut alone = vec![0.0; 17];
            tape.input(&mlp, 1).copy_from_slice(&x[row * 9..][..9]);
            mlp.forward(&parameters, &mut tape, &mut alone);
            assert_eq!(alone, whole[row * 17..][..17], "row {row}");
        }
    }
}
