//! The residual network at the end of energies.

use crate::models::layout::Layout;
use crate::nn::tape::Weight;
use crate::nn::{Scalar, Tape, Var};

#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub weight: Weight,
    /// Offset of the slope β.
    pub beta: usize,
}

/// h = W₀ inputs + b₀;  every layer: h += swish_β(W h + b);  E = w·h + c.
#[derive(Clone, Debug)]
pub struct Trunk {
    pub(super) input: Weight,
    pub(super) layers: Vec<Layer>,
    pub(super) output: Weight,
}

impl Trunk {
    /// Appends its tensors to `layout`, named `input`, `layers.k` and `output`.
    pub fn new(layout: &mut Layout, inputs: usize, width: usize, layers: usize) -> Trunk {
        let input = layout.linear("input", inputs, width);
        let layer = |k: usize| Layer {
            weight: layout.linear(&format!("layers.{k}"), width, width),
            beta: layout.tensor(format!("layers.{k}.beta"), &[]),
        };
        let layers = (0..layers).map(layer).collect();
        Trunk { input, layers, output: layout.linear("output", width, 1) }
    }

    /// E `[n][1]` of inputs whose columns stand side by side.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, inputs: &[Var]) -> Var {
        let mut h = tape.linear_of(p, self.input, inputs);
        for layer in &self.layers {
            let a = tape.linear(p, layer.weight, h);
            let a = tape.swish(p, layer.beta, a);
            h = tape.add(h, a);
        }
        tape.linear(p, self.output, h)
    }
}
