//! Names, shapes and places of the parameters: one flat vector in the order of BoltzNCE's state dict.

use super::GvpConfig;
use crate::models::network::Layout;
use std::ops::Range;

/// Numbers of scalars and vectors that go into and come out of a geometric vector perceptron.
#[derive(Clone, Copy, Debug)]
pub struct GvpSizes {
    pub scalars_in: usize,
    pub vectors_in: usize,
    pub scalars_out: usize,
    pub vectors_out: usize,
}

impl GvpSizes {
    pub fn hidden(&self) -> usize {
        self.vectors_in.max(self.vectors_out)
    }
}

/// Places of the parameters of a geometric vector perceptron.
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
    /// Slope of the activation; one without.
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

pub struct Places {
    /// All tensors by name.
    pub layout: Layout,
    /// `[scalars][features + 1]`, time last.
    pub embedding_weight: Range<usize>,
    pub embedding_bias: Range<usize>,
    pub layers: Vec<LayerPlaces>,
    pub output: GvpPlaces,
}

#[derive(Default)]
struct Builder {
    layout: Layout,
}

impl Builder {
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

impl Places {
    pub fn new(config: &GvpConfig) -> Places {
        let (f, v) = (config.n_scalars, config.n_vectors);
        let sizes =
            |scalars_in, vectors_in, vectors_out| GvpSizes { scalars_in, vectors_in, scalars_out: f, vectors_out };
        let mut builder = Builder::default();
        let embedding_weight = builder.tensor("initial_embedding.0.weight".into(), &[f, config.n_features + 1]);
        let embedding_bias = builder.tensor("initial_embedding.0.bias".into(), &[f]);
        let layer = |l: usize| {
            let name = |part: &str| format!("convs.{l}.{part}");
            LayerPlaces {
                message: builder.gvp(&name("edge_message.0"), sizes(f + config.rbf_count, v + 1, v), true),
                update: builder.gvp(&name("node_update.0"), sizes(f, v, v), true),
                position: builder.gvp(&name("node_position_update"), sizes(f, v, 1), false),
                message_norm: builder.norm(&name("message_layer_norm"), f),
                update_norm: builder.norm(&name("update_layer_norm"), f),
            }
        };
        let layers = (0..config.n_layers).map(layer).collect();
        let output = builder.gvp("position_updater.gvps.0", sizes(f, v, 1), false);
        Places { layout: builder.layout, embedding_weight, embedding_bias, layers, output }
    }
}
