//! Parameters of a model whose perceptrons are evaluated much more often than they change.

use super::product::{Dense, Packed};
use super::{Linear, Real, Scalar};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::OnceLock;

/// One flat vector, and the weights of linear layers packed for products: made on first use after a change, so that a
/// product neither packs them again nor allocates.
#[derive(Debug)]
pub struct Parameters<R> {
    values: Vec<R>,
    layers: Vec<Linear>,
    dense: OnceLock<Table<R>>,
    /// Packed transposes for the backward pass, from outputs to inputs.
    back: OnceLock<Table<R>>,
}

/// Packed layers by the offset of their weights.
type Table<R> = BTreeMap<usize, Dense<R>>;

impl<R: Real> Parameters<R> {
    /// `n` zeros for these layers.
    pub fn new(n: usize, layers: Vec<Linear>) -> Parameters<R> {
        Parameters { values: vec![R::default(); n], layers, dense: OnceLock::new(), back: OnceLock::new() }
    }

    /// Mutable values; discards the packed weights.
    pub fn values_mut(&mut self) -> &mut [R] {
        self.dense.take();
        self.back.take();
        &mut self.values
    }

    /// The layer packed for products. It must be one of those that these parameters were made for.
    pub(super) fn dense(&self, layer: &Linear) -> &Dense<R> {
        self.laid_out(layer, &self.dense, |layer| {
            let weights = Packed::transposed(layer.n_in, layer.n_out, &self.values[layer.weight()]);
            Dense::new(weights, &self.values[layer.bias()])
        })
    }

    /// The layer's transpose without bias, for cotangents.
    pub(super) fn back(&self, layer: &Linear) -> &Dense<R> {
        self.laid_out(layer, &self.back, |layer| {
            let weight = |o: usize, i: usize| self.values[layer.weight().start + o * layer.n_in + i].to_f64();
            Dense::new(Packed::new(layer.n_out, layer.n_in, weight), &vec![R::default(); layer.n_in])
        })
    }

    /// The layer in a table, which is made with `dense` if absent.
    fn laid_out<'a>(
        &'a self,
        layer: &Linear,
        table: &'a OnceLock<Table<R>>,
        dense: impl Fn(&Linear) -> Dense<R>,
    ) -> &'a Dense<R> {
        let all = || self.layers.iter().map(|layer| (layer.weight().start, dense(layer))).collect();
        &table.get_or_init(all)[&layer.weight().start]
    }
}

impl<R: Clone> Clone for Parameters<R> {
    fn clone(&self) -> Parameters<R> {
        let (dense, back) = (OnceLock::new(), OnceLock::new());
        Parameters { values: self.values.clone(), layers: self.layers.clone(), dense, back }
    }
}

impl<R> Deref for Parameters<R> {
    type Target = [R];

    fn deref(&self) -> &[R] {
        &self.values
    }
}

/// Adds partial sums of a gradient to it, in their order.
pub fn add_lanes<R: Scalar>(lanes: &[Vec<R>], gradient: &mut [R]) {
    const BLOCK: usize = 16_384;
    gradient.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sum)| {
        for lane in lanes {
            sum.iter_mut().zip(&lane[block * BLOCK..]).for_each(|(s, &g)| *s += g);
        }
    });
}
