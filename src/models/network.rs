//! Networks recorded on a tape, with what flows and energy-based models need of them.

use super::field::{EnergyFunction, VectorField};
use super::layout::Layout;
use crate::nn::memory::Spares;
use crate::nn::tape::Packs;
use crate::nn::{Real, Scalar, Tape, Var};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// A time-dependent network on configurations. Its `record` is the model's paper in code.
pub trait Network: Send + Sync {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// Outputs per configuration: `dimension` for a vector field, 1 for an energy.
    fn outputs(&self) -> usize;

    /// As [`VectorField::is_equivariant`].
    fn is_equivariant(&self) -> bool {
        false
    }

    /// Best number of configurations to run together: enough for the matrix products, few enough for the cache.
    fn chunk(&self) -> usize;

    fn layout(&self) -> &Layout;

    /// Records the network for `x[n][dimension]` at `t[n]` on an empty tape; returns the variables of x and of the
    /// output.
    fn record<R: Scalar>(&self, parameters: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var);

    /// For a vector field: f and its divergence at `x[n][dimension]`, written to `both[n][dimension + 1]`, from one
    /// derivative along each coordinate unless the network has a better way. The tape must be empty.
    fn divergence<R: Real>(&self, parameters: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R], both: &mut [f64]) {
        let d = self.dimension();
        let (x, v) = self.record(parameters, tape, t, x);
        let mut seed = vec![R::default(); t.len() * d];
        let values = tape.value(v).chunks_exact(d);
        both.chunks_exact_mut(d + 1).zip(values).for_each(|(row, v)| copy(v, &mut row[..d]));
        both.chunks_exact_mut(d + 1).for_each(|row| row[d] = 0.0);
        for k in 0..d {
            seed.chunks_exact_mut(d).for_each(|row| row[k] = R::from_f64(1.0));
            tape.jvp(parameters, &[(x, &seed)]);
            let tangents = tape.tangent(v).chunks_exact(d);
            both.chunks_exact_mut(d + 1).zip(tangents).for_each(|(row, dv)| row[d] += dv[k].to_f64());
            seed.chunks_exact_mut(d).for_each(|row| row[k] = R::default());
        }
    }
}

/// The properties of a network that a trainer needs.
pub trait Trainable: Send + Sync {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    fn layout(&self) -> &Layout;
}

impl<N: Network> Trainable for N {
    fn dimension(&self) -> usize {
        Network::dimension(self)
    }

    fn layout(&self) -> &Layout {
        Network::layout(self)
    }
}

/// Multi-hot features of every atom, ones at the indices `features[atom]` out of `n_features`, with the sample's time
/// appended: `[samples × atoms][n_features + 1]`.
pub fn features_and_time<R: Scalar>(tape: &mut Tape<R>, features: &[Vec<usize>], n_features: usize, t: &[f64]) -> Var {
    let (atoms, width) = (features.len(), n_features + 1);
    let var = tape.input(t.len() * atoms, width);
    let values = tape.value_mut(var);
    values.fill(R::default());
    for (row, slot) in values.chunks_exact_mut(width).enumerate() {
        features[row % atoms].iter().for_each(|&k| slot[k] = R::from_f64(1.0));
        slot[n_features] = R::from_f64(t[row / atoms]);
    }
    var
}

/// A network with its parameters.
pub struct Evaluator<N, R> {
    pub network: N,
    parameters: Vec<R>,
    /// Parameters repacked for matrix products, made on first use.
    packs: OnceLock<Arc<Packs<R>>>,
    tapes: Spares<Tape<R>>,
}

impl<N: Network, R: Real> Evaluator<N, R> {
    /// Panics if the number of parameters is not the network's.
    pub fn new(network: N, parameters: Vec<R>) -> Evaluator<N, R> {
        assert_eq!(parameters.len(), network.layout().n_parameters());
        Evaluator { network, parameters, packs: OnceLock::new(), tapes: Spares::default() }
    }

    /// Parameters in the order of the [`Layout`].
    pub fn parameters(&self) -> &[R] {
        &self.parameters
    }

    /// Floating-point operations of the matrix products and the attention in one evaluation of one configuration; a
    /// multiply-add counts as two.
    pub fn flops(&self) -> f64 {
        self.recorded_once().flops()
    }

    /// The network recorded for one configuration.
    fn recorded_once(&self) -> Tape<R> {
        let mut tape = Tape::default();
        let x = vec![R::default(); self.network.dimension()];
        self.network.record(&self.parameters, &mut tape, &[0.0], &x);
        tape
    }

    fn with_tape<T>(&self, body: impl FnOnce(&mut Tape<R>) -> T) -> T {
        let packs = || self.packs.get_or_init(|| Arc::new(Packs::of(&self.recorded_once(), &self.parameters)));
        self.tapes.with(
            || Tape::with(packs().clone()),
            |tape| {
                tape.clear();
                body(tape)
            },
        )
    }

    /// Records the network for every chunk and calls `body` with the recording and the chunk's part of `output`.
    fn chunks(
        &self,
        t: &[f64],
        x: &[f64],
        output: &mut [f64],
        body: impl Fn(&mut Tape<R>, (Var, Var), usize, &mut [f64]) + Sync,
    ) {
        self.parts(t, x, output, |tape, (t, x), first, output| {
            let recorded = self.network.record(&self.parameters, tape, t, x);
            body(tape, recorded, first, output);
        });
    }

    /// Calls `body` for every chunk with an empty tape, (t, x), the index of its first row, and its part of `output`.
    fn parts(
        &self,
        t: &[f64],
        x: &[f64],
        output: &mut [f64],
        body: impl Fn(&mut Tape<R>, (&[f64], &[R]), usize, &mut [f64]) + Sync,
    ) {
        if t.is_empty() {
            return;
        }
        let (d, chunk) = (self.network.dimension(), self.network.chunk());
        let width = output.len() / t.len();
        let parts = t.par_chunks(chunk).zip(x.par_chunks(chunk * d)).zip(output.par_chunks_mut(chunk * width));
        parts.enumerate().for_each(|(k, ((t, x), output))| {
            self.with_tape(|tape| body(tape, (t, &narrow(x)), k * chunk, output));
        });
    }
}

fn copy<R: Real>(from: &[R], to: &mut [f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f64());
}

/// Converts f64 values to the network's type.
pub fn narrow<R: Real>(values: &[f64]) -> Vec<R> {
    values.iter().map(|&v| R::from_f64(v)).collect()
}

impl<N: Network, R: Real> VectorField for Evaluator<N, R> {
    fn dimension(&self) -> usize {
        self.network.dimension()
    }

    fn is_equivariant(&self) -> bool {
        self.network.is_equivariant()
    }

    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        self.chunks(t, x, f, |tape, (_, v), _, f| copy(tape.value(v), f));
    }

    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        let d = self.network.dimension();
        let mut both = vec![0.0; t.len() * (d + 1)];
        self.parts(t, x, &mut both, |tape, (t, x), _, both| {
            self.network.divergence(&self.parameters, tape, t, x, both);
        });
        for ((row, f), divergence) in both.chunks_exact(d + 1).zip(f.chunks_exact_mut(d)).zip(divergence) {
            f.copy_from_slice(&row[..d]);
            *divergence = row[d];
        }
    }

    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        let d = self.network.dimension();
        let mut both = vec![0.0; t.len() * 2 * d];
        self.chunks(t, x, &mut both, |tape, (x, v), first, both| {
            tape.jvp(&self.parameters, &[(x, &narrow(&dx[first * d..][..both.len() / 2]))]);
            let rows = tape.value(v).chunks_exact(d).zip(tape.tangent(v).chunks_exact(d));
            for (row, (v, dv)) in both.chunks_exact_mut(2 * d).zip(rows) {
                copy(v, &mut row[..d]);
                copy(dv, &mut row[d..]);
            }
        });
        for (row, (f, df)) in both.chunks_exact(2 * d).zip(f.chunks_exact_mut(d).zip(df.chunks_exact_mut(d))) {
            f.copy_from_slice(&row[..d]);
            df.copy_from_slice(&row[d..]);
        }
    }
}

impl<N: Network, R: Real> EnergyFunction for Evaluator<N, R> {
    fn dimension(&self) -> usize {
        self.network.dimension()
    }

    fn energy(&self, t: &[f64], x: &[f64], energy: &mut [f64]) {
        self.chunks(t, x, energy, |tape, (_, e), _, energy| copy(tape.value(e), energy));
    }

    fn energy_score(&self, t: &[f64], x: &[f64], energy: &mut [f64], score: &mut [f64]) {
        let d = self.network.dimension();
        let mut both = vec![0.0; t.len() * (d + 1)];
        self.chunks(t, x, &mut both, |tape, (x, e), _, both| {
            let ones = vec![R::from_f64(1.0); both.len() / (d + 1)];
            tape.backward(&self.parameters, &[(e, &ones)], None);
            for (row, (score, e)) in
                both.chunks_exact_mut(d + 1).zip(tape.cotangent(x).chunks_exact(d).zip(tape.value(e)))
            {
                copy(score, &mut row[..d]);
                row[d] = e.to_f64();
            }
        });
        for (row, (energy, score)) in both.chunks_exact(d + 1).zip(energy.iter_mut().zip(score.chunks_exact_mut(d))) {
            score.copy_from_slice(&row[..d]);
            *energy = row[d];
        }
    }
}
