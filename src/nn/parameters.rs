//! The parameters of a model whose perceptrons are asked for many more values than they have changes.

use super::product::{Dense, Packed};
use super::{Linear, Real};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::OnceLock;

/// One flat vector, and beside it the weights of linear layers laid out for products: made when first needed after a change,
/// so that a product neither lays them out again nor asks for memory.
#[derive(Debug)]
pub struct Parameters<R> {
    values: Vec<R>,
    layers: Vec<Linear>,
    /// By the place of a layer's weights.
    dense: OnceLock<BTreeMap<usize, Dense<R>>>,
    /// Those of the way back, from outputs to inputs.
    back: OnceLock<BTreeMap<usize, Dense<R>>>,
}

impl<R: Real> Parameters<R> {
    /// Zeros.
    pub fn new(n: usize, layers: Vec<Linear>) -> Parameters<R> {
        Parameters { values: vec![R::default(); n], layers, dense: OnceLock::new(), back: OnceLock::new() }
    }

    /// To be changed.
    pub fn values_mut(&mut self) -> &mut [R] {
        self.dense.take();
        self.back.take();
        &mut self.values
    }

    /// The layer, ready for products. It must be one of those that these parameters were made for.
    pub(super) fn dense(&self, layer: &Linear) -> &Dense<R> {
        let pack = |layer: &Linear| {
            let weights = Packed::transposed(layer.n_in, layer.n_out, &self.values[layer.weight()]);
            (layer.weight().start, Dense::new(weights, &self.values[layer.bias()]))
        };
        &self.dense.get_or_init(|| self.layers.iter().map(pack).collect())[&layer.weight().start]
    }

    /// Its transpose without the bias, for cotangents.
    pub(super) fn back(&self, layer: &Linear) -> &Dense<R> {
        let pack = |layer: &Linear| {
            let weight = |o: usize, i: usize| self.values[layer.weight().start + o * layer.n_in + i].to_f64();
            (
                layer.weight().start,
                Dense::new(Packed::new(layer.n_out, layer.n_in, weight), &vec![R::default(); layer.n_in]),
            )
        };
        &self.back.get_or_init(|| self.layers.iter().map(pack).collect())[&layer.weight().start]
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
