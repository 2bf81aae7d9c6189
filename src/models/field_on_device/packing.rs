//! Weights packed for the kernels.

use crate::nn::tape::Weight;
use crate::nn::Real;
use bytemuck::{NoUninit, Pod, Zeroable};

/// Number of atoms padded to a multiple of eight, the unit of a product's lanes.
pub fn padded(n_atoms: usize) -> usize {
    n_atoms.next_multiple_of(8)
}

/// `Norm` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub struct NormRecord {
    pub weight: i32,
    pub bias: i32,
}

/// `Linear` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub struct LinearRecord {
    forward: i32,
    back: i32,
    bias: i32,
}

/// Weights to be copied to the card: matrices as `[in][out]` with an even number of outputs, every tensor at an even
/// offset.
pub struct Packing<'a, R> {
    pub parameters: &'a [R],
    pub weights: Vec<R>,
}

impl<R: Real> Packing<'_, R> {
    /// Parameter at this offset.
    pub fn at(&self, place: usize) -> f64 {
        self.parameters[place].to_f64()
    }

    /// Appends a matrix of these values; returns its offset.
    pub fn matrix(&mut self, n_in: usize, n_out: usize, value: impl Fn(&Self, usize, usize) -> f64) -> i32 {
        let start = self.weights.len();
        for i in 0..n_in {
            for o in 0..n_out.next_multiple_of(2) {
                let value = if o < n_out { value(self, i, o) } else { 0.0 };
                self.weights.push(R::from_f64(value));
            }
        }
        start as i32
    }

    /// Appends a linear layer's parameters; returns their offsets.
    pub fn linear(&mut self, w: &Weight) -> LinearRecord {
        let all = |n| (0..n).map(Some).collect::<Vec<_>>();
        self.linear_in_order(w, &all(w.n_in), &all(w.n_out))
    }

    /// As [`Packing::linear`], with inputs and outputs in these orders; None stands for zeros.
    pub fn linear_in_order(&mut self, w: &Weight, inputs: &[Option<usize>], outputs: &[Option<usize>]) -> LinearRecord {
        let weight = |p: &Self, i: usize, o: usize| match (inputs[i], outputs[o]) {
            (Some(i), Some(o)) => p.at(w.place(i, o)),
            _ => 0.0,
        };
        let bias = |p: &Self, o: usize| outputs[o].map_or(0.0, |o| w.bias_of(p.parameters)[o].to_f64());
        LinearRecord {
            forward: self.matrix(inputs.len(), outputs.len(), weight),
            back: self.matrix(outputs.len(), inputs.len(), |p, o, i| weight(p, i, o)),
            bias: self.matrix(1, outputs.len(), |p, _, o| bias(p, o)),
        }
    }

    /// Appends the parameters of a layer normalisation; returns their offsets.
    pub fn norm(&mut self, weight: usize, bias: usize, n: usize) -> NormRecord {
        NormRecord { weight: self.vector(weight, n), bias: self.vector(bias, n) }
    }

    /// First layer applied to every atom's features without the time, `[atoms][n]`, and its weights for the time.
    pub fn embedding(
        &self,
        features: &[Vec<usize>],
        n: usize,
        weight: impl Fn(usize, usize) -> f64,
        bias: impl Fn(usize) -> f64,
        time: usize,
    ) -> [Vec<R>; 2] {
        let of_atom = |set: &Vec<usize>, o: usize| bias(o) + set.iter().map(|&i| weight(i, o)).sum::<f64>();
        let rows = features.iter().flat_map(|set| (0..n).map(move |o| (set, o)));
        let atoms = rows.map(|(set, o)| R::from_f64(of_atom(set, o))).collect();
        [atoms, (0..n).map(|o| R::from_f64(weight(time, o))).collect()]
    }

    /// Appends n parameters from `start` on; returns their offset.
    pub fn vector(&mut self, start: usize, n: usize) -> i32 {
        self.matrix(1, n, |p, _, o| p.at(start + o))
    }
}

/// Bytes of a model's part of the argument.
pub fn bytes<T: NoUninit>(arguments: &T) -> Vec<u8> {
    bytemuck::bytes_of(arguments).to_vec()
}
