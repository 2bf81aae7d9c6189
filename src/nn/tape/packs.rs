//! Weights packed for products once instead of in every product.

use super::{Record, Tape, Weight};
use crate::nn::lanes::WIDTH;
use crate::nn::product::{Packed, Start};
use crate::nn::Real;
use std::collections::HashMap;

/// Packed weight matrices of a network with constant parameters, W for y = x W and Wᵀ for the backward pass. Matrices
/// whose outputs do not fill whole lanes are left out.
pub struct Packs<R> {
    forward: Matrices<R>,
    back: Matrices<R>,
    product: Product<R>,
}

/// Packed matrices by offset, inputs and outputs of the weights.
type Matrices<R> = HashMap<(usize, usize, usize), Packed<R>>;

/// [`Packed::product`], which exists for floating-point numbers but not for other scalars.
type Product<R> = fn(&Packed<R>, &[R], Start<R>, &mut [R]);

impl<R: Real> Packs<R> {
    /// Packs the weights of all products recorded on a tape.
    pub fn of(tape: &Tape<R>, parameters: &[R]) -> Packs<R> {
        let mut packs = Packs { forward: HashMap::new(), back: HashMap::new(), product: Packed::product };
        for record in &tape.records {
            let Record::Linear(op) = record else { continue };
            op.matrices().for_each(|w| packs.add(&w, parameters));
        }
        packs
    }

    fn add(&mut self, w: &Weight, parameters: &[R]) {
        let weight = |i, o| parameters[w.place(i, o)].to_f64();
        if w.n_out.is_multiple_of(WIDTH) {
            self.forward.entry(key(w)).or_insert_with(|| Packed::new(w.n_in, w.n_out, weight));
        }
        if w.n_in.is_multiple_of(WIDTH) {
            self.back.entry(key(w)).or_insert_with(|| Packed::new(w.n_out, w.n_in, |o, i| weight(i, o)));
        }
    }
}

impl<R> Packs<R> {
    /// y = start + x W; false if the matrix is not packed.
    pub(super) fn forward(&self, w: &Weight, x: &[R], start: Start<R>, y: &mut [R]) -> bool {
        let packed = self.forward.get(&key(w));
        packed.map(|packed| (self.product)(packed, x, start, y)).is_some()
    }

    /// x = x + y Wᵀ; false if the matrix is not packed.
    pub(super) fn back(&self, w: &Weight, y: &[R], x: &mut [R]) -> bool {
        let packed = self.back.get(&key(w));
        packed.map(|packed| (self.product)(packed, y, Start::Output, x)).is_some()
    }

    /// Whether W and Wᵀ are packed.
    #[cfg(test)]
    pub(super) fn has(&self, w: &Weight) -> [bool; 2] {
        [&self.forward, &self.back].map(|matrices| matrices.contains_key(&key(w)))
    }
}

impl<R> std::fmt::Debug for Packs<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} packed matrices", self.forward.len() + self.back.len())
    }
}

fn key(w: &Weight) -> (usize, usize, usize) {
    (w.at, w.n_in, w.n_out)
}
