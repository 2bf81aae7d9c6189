//! Names, shapes and offsets of the parameters: one flat vector in the order of BoltzNCE's state dict.

use super::GvpConfig;
use crate::models::layout::{Layout, Start};
use std::ops::Range;

/// Numbers of input and output scalars and vectors of a geometric vector perceptron.
#[derive(Clone, Copy, Debug)]
pub struct GvpSizes {
    pub scalars_in: usize,
    pub vectors_in: usize,
    pub scalars_out: usize,
    pub vectors_out: usize,
}

impl GvpSizes {
    /// Number of hidden vectors.
    pub fn hidden(&self) -> usize {
        self.vectors_in.max(self.vectors_out)
    }
}

/// Parameter ranges of a geometric vector perceptron.
#[derive(Clone, Debug)]
pub struct GvpPlaces {
    pub sizes: GvpSizes,
    /// `[vectors_in][hidden]`
    pub wh: Range<usize>,
    /// `[hidden][vectors_out]`
    pub wu: Range<usize>,
    /// `[scalars_out][scalars_in + hidden]`
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    /// Offset of the activation's slope; None if it is fixed at one.
    pub beta: Option<usize>,
    /// `[vectors_out][scalars_out]`
    pub gate_weight: Range<usize>,
    pub gate_bias: Range<usize>,
}

#[derive(Clone, Debug)]
pub struct NormPlaces {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

#[derive(Clone, Debug)]
pub struct LayerPlaces {
    pub message: GvpPlaces,
    pub update: GvpPlaces,
    pub position: GvpPlaces,
    pub message_norm: NormPlaces,
    pub update_norm: NormPlaces,
}

/// Parameter ranges of everything except the output.
#[derive(Clone, Debug)]
pub struct TrunkPlaces {
    /// `[scalars][features + 1]`, time last.
    pub embedding_weight: Range<usize>,
    pub embedding_bias: Range<usize>,
    pub layers: Vec<LayerPlaces>,
}

pub struct Places {
    /// All tensors by name.
    pub layout: Layout,
    pub trunk: TrunkPlaces,
    pub output: GvpPlaces,
}

/// Initial values of parameters other than weights and biases of linear layers; the matrices of vectors are stored
/// `[in][out]`.
pub fn start(name: &str, shape: &[usize]) -> Option<Start> {
    match shape {
        [] => Some(Start::At(1.0)),
        _ if name.ends_with("feat_norm.weight") => Some(Start::At(1.0)),
        _ if name.ends_with("feat_norm.bias") => Some(Start::At(0.0)),
        [n_in, _] if name.ends_with("Wh") || name.ends_with("Wu") => Some(Start::Within(1.0 / (*n_in as f64).sqrt())),
        _ => None,
    }
}

struct Builder<'a> {
    layout: &'a mut Layout,
}

impl Builder<'_> {
    fn tensor(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let start = self.layout.tensor(name, shape);
        start..self.layout.n_parameters()
    }

    fn gvp(&mut self, prefix: &str, sizes: GvpSizes, beta: bool) -> GvpPlaces {
        let GvpSizes { scalars_in, vectors_in, scalars_out, vectors_out } = sizes;
        let hidden = sizes.hidden();
        let name = |part: &str| format!("{prefix}.{part}");
        GvpPlaces {
            sizes,
            wh: self.tensor(name("Wh"), &[vectors_in, hidden]),
            wu: self.tensor(name("Wu"), &[hidden, vectors_out]),
            weight: self.tensor(name("to_feats_out.0.weight"), &[scalars_out, scalars_in + hidden]),
            bias: self.tensor(name("to_feats_out.0.bias"), &[scalars_out]),
            beta: beta.then(|| self.tensor(name("to_feats_out.1.beta"), &[]).start),
            gate_weight: self.tensor(name("scalar_to_vector_gates.weight"), &[vectors_out, scalars_out]),
            gate_bias: self.tensor(name("scalar_to_vector_gates.bias"), &[vectors_out]),
        }
    }

    fn norm(&mut self, prefix: &str, n: usize) -> NormPlaces {
        NormPlaces {
            weight: self.tensor(format!("{prefix}.feat_norm.weight"), &[n]),
            bias: self.tensor(format!("{prefix}.feat_norm.bias"), &[n]),
        }
    }
}

/// Sizes of a perceptron from scalars_in and vectors_in to n_scalars and vectors_out.
fn sizes(config: &GvpConfig, scalars_in: usize, vectors_in: usize, vectors_out: usize) -> GvpSizes {
    GvpSizes { scalars_in, vectors_in, scalars_out: config.n_scalars, vectors_out }
}

impl TrunkPlaces {
    /// Appends the tensors to a layout.
    pub fn new(config: &GvpConfig, layout: &mut Layout) -> TrunkPlaces {
        let (f, v) = (config.n_scalars, config.n_vectors);
        let mut builder = Builder { layout };
        let embedding_weight = builder.tensor("initial_embedding.0.weight".into(), &[f, config.n_features + 1]);
        let embedding_bias = builder.tensor("initial_embedding.0.bias".into(), &[f]);
        let layer = |l: usize| {
            let name = |part: &str| format!("convs.{l}.{part}");
            LayerPlaces {
                message: builder.gvp(&name("edge_message.0"), sizes(config, f + config.rbf_count, v + 1, v), true),
                update: builder.gvp(&name("node_update.0"), sizes(config, f, v, v), true),
                position: builder.gvp(&name("node_position_update"), sizes(config, f, v, 1), false),
                message_norm: builder.norm(&name("message_layer_norm"), f),
                update_norm: builder.norm(&name("update_layer_norm"), f),
            }
        };
        let layers = (0..config.n_layers).map(layer).collect();
        TrunkPlaces { embedding_weight, embedding_bias, layers }
    }
}

impl Places {
    /// Lays out all parameters.
    pub fn new(config: &GvpConfig) -> Places {
        let mut layout = Layout::default();
        let trunk = TrunkPlaces::new(config, &mut layout);
        let sizes = sizes(config, config.n_scalars, config.n_vectors, 1);
        let output = Builder { layout: &mut layout }.gvp("position_updater.gvps.0", sizes, false);
        Places { layout, trunk, output }
    }
}
