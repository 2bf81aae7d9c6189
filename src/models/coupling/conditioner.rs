//! Conditioner of a coupling: features of the coordinates that it leaves unchanged, and the network on them.

use crate::error::{Error, Result};
use crate::nn::{Activation, Mlp, MlpTape, Parameters, Real};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Features: cos 2πkc of all periodic coordinates, then sin 2πkc of all, for k = 1…harmonics; then the plain
/// coordinates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// Coordinates of period one.
    #[serde(default)]
    pub periodic: Vec<usize>,
    #[serde(default = "one")]
    pub harmonics: usize,
    #[serde(default)]
    pub plain: Vec<usize>,
}

fn one() -> usize {
    1
}

impl Features {
    /// Number of features.
    pub fn len(&self) -> usize {
        2 * self.harmonics * self.periodic.len() + self.plain.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All coordinates that are read.
    pub fn coordinates(&self) -> impl Iterator<Item = usize> + '_ {
        self.periodic.iter().chain(&self.plain).copied()
    }

    fn write<R: Real>(&self, u: &[f64], features: &mut [R]) {
        let p = self.periodic.len();
        for (c, &i) in self.periodic.iter().enumerate() {
            // multiples of an angle by successive rotation
            let (sin, cos) = (2.0 * PI * u[i]).sin_cos();
            let (mut sin_k, mut cos_k) = (sin, cos);
            for block in features.chunks_exact_mut(2 * p).take(self.harmonics) {
                (block[c], block[p + c]) = (R::from_f64(cos_k), R::from_f64(sin_k));
                (sin_k, cos_k) = (sin_k * cos + cos_k * sin, cos_k * cos - sin_k * sin);
            }
        }
        for (feature, &i) in features[2 * self.harmonics * p..].iter_mut().zip(&self.plain) {
            *feature = R::from_f64(u[i]);
        }
    }

    /// Adds to the cotangent of u; `features` are the values written by the forward pass.
    fn vjp<R: Real>(&self, features: &[R], g_features: &[R], gu: &mut [f64]) {
        let p = self.periodic.len();
        for k in 0..self.harmonics {
            let (block, g) = (&features[2 * k * p..], &g_features[2 * k * p..]);
            let omega = 2.0 * PI * (k + 1) as f64;
            for (c, &i) in self.periodic.iter().enumerate() {
                let (cos, sin) = (block[c].to_f64(), block[p + c].to_f64());
                gu[i] += omega * (g[p + c].to_f64() * cos - g[c].to_f64() * sin);
            }
        }
        for (g, &i) in g_features[2 * self.harmonics * p..].iter().zip(&self.plain) {
            gu[i] += g.to_f64();
        }
    }
}

/// Features and the perceptron on them.
#[derive(Clone, Debug)]
pub struct Conditioner {
    pub features: Features,
    pub mlp: Mlp,
}

/// Workspace of a conditioner, with `output[rows][n_out]` and its cotangent.
#[derive(Clone, Debug, Default)]
pub struct ConditionerTape<R> {
    mlp: MlpTape<R>,
    pub output: Vec<R>,
    pub g_output: Vec<R>,
    g_features: Vec<R>,
}

impl Conditioner {
    /// Appends the network's parameters at `*end`. Errors: no features, no harmonics, no outputs, or an empty hidden
    /// layer.
    pub fn new(
        features: &Features,
        hidden: &[usize],
        n_out: usize,
        activation: Activation,
        end: &mut usize,
    ) -> Result<Conditioner> {
        if features.is_empty() || features.harmonics == 0 || n_out == 0 || hidden.contains(&0) {
            return Err(Error::invalid(
                "a coupling layer requires conditioning coordinates, harmonics, outputs and non-empty hidden layers",
            ));
        }
        let sizes: Vec<usize> = [features.len()].into_iter().chain(hidden.iter().copied()).chain([n_out]).collect();
        Ok(Conditioner { features: features.clone(), mlp: Mlp::new(&sizes, activation, end) })
    }

    /// Fills `tape.output` for the rows of `u[rows][dimension]`.
    pub fn forward<R: Real>(
        &self,
        parameters: &Parameters<R>,
        u: &[f64],
        dimension: usize,
        tape: &mut ConditionerTape<R>,
    ) {
        let rows = u.len() / dimension;
        let n_features = self.features.len();
        let input = tape.mlp.input(&self.mlp, rows);
        for (u, features) in u.chunks_exact(dimension).zip(input.chunks_exact_mut(n_features)) {
            self.features.write(u, features);
        }
        tape.output.resize(rows * self.mlp.n_out(), R::default());
        self.mlp.forward(parameters, &mut tape.mlp, &mut tape.output);
    }

    /// Backward pass from `tape.g_output`: adds the cotangents of u and, if `gradient` is given, of the parameters.
    pub fn vjp<R: Real>(
        &self,
        parameters: &Parameters<R>,
        tape: &mut ConditionerTape<R>,
        gu: &mut [f64],
        dimension: usize,
        gradient: Option<&mut [R]>,
    ) {
        let n_features = self.features.len();
        tape.g_features.resize(gu.len() / dimension * n_features, R::default());
        self.mlp.vjp(parameters, &mut tape.mlp, &tape.g_output, gradient, Some(&mut tape.g_features));
        let rows = tape.mlp.last_input().chunks_exact(n_features).zip(tape.g_features.chunks_exact(n_features));
        for (gu, (features, g_features)) in gu.chunks_exact_mut(dimension).zip(rows) {
            self.features.vjp(features, g_features, gu);
        }
    }
}
