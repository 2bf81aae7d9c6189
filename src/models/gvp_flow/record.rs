//! The network recorded on a tape, for training.

use super::layout::{GvpPlaces, LayerPlaces, NormPlaces, Places, TrunkPlaces};
use super::GvpConfig;
use crate::error::Result;
use crate::models::layout::Layout;
use crate::models::network::{features_and_time, Network};
use crate::nn::tape::{Function, LayerNorm, RadialBasis, Weight};
use crate::nn::{Scalar, Tape, Var};

/// Embedding and layers as tape operations.
#[derive(Clone, Debug)]
pub struct Trunk {
    config: GvpConfig,
    places: TrunkPlaces,
}

/// The network as tape operations, with the parameters of [`super::GvpField`] in the same order.
pub struct GvpNetwork {
    trunk: Trunk,
    layout: Layout,
    output: Perceptron,
}

/// Weights of one geometric vector perceptron.
struct Perceptron {
    wh: Weight,
    wu: Weight,
    scalars: Weight,
    beta: Option<usize>,
    gates: Weight,
}

impl Perceptron {
    fn new(places: &GvpPlaces) -> Perceptron {
        let sizes = places.sizes;
        let hidden = sizes.hidden();
        Perceptron {
            wh: Weight::transposed(places.wh.start, sizes.vectors_in, hidden),
            wu: Weight::transposed(places.wu.start, hidden, sizes.vectors_out),
            scalars: Weight::new(places.weight.start, sizes.scalars_in + hidden, sizes.scalars_out)
                .with_bias(places.bias.start),
            beta: places.beta,
            gates: Weight::new(places.gate_weight.start, sizes.scalars_out, sizes.vectors_out)
                .with_bias(places.gate_bias.start),
        }
    }

    /// Computes (s′, V′) with gates act(g) from W [s ; ·] without its bias and without the part of the norms, and from
    /// Vh `[rows][3 h]`.
    fn finish<R: Scalar>(
        &self,
        p: &[R],
        tape: &mut Tape<R>,
        (a, parts): (Option<Var>, &[Var]),
        vh: Var,
        gate: Option<Function>,
    ) -> (Var, Var) {
        let (rows, hidden) = (vh.rows, vh.columns / 3);
        let norms = length(tape, vh);
        let used: Vec<Var> = parts.iter().copied().chain([norms]).collect();
        let width: usize = used.iter().map(|x| x.columns).sum();
        let rest = tape.linear_of(p, self.scalars.of_inputs(self.scalars.n_in - width, width), &used);
        let a = match a {
            Some(a) => tape.add(a, rest),
            None => rest,
        };
        let s = match self.beta {
            Some(beta) => tape.swish(p, beta, a),
            None => tape.silu(a),
        };
        let g = tape.linear(p, self.gates, s);
        let vectors = tape.linear(p, self.wu, vh.reshape(3 * rows, hidden));
        let mut vectors = vectors.reshape(rows, 3 * self.wu.n_out);
        if self.wu.n_out == 1 {
            let n = length(tape, vectors);
            let inverse = tape.function(Function::Reciprocal, n);
            vectors = tape.scale(vectors, inverse);
        }
        let g = match gate {
            Some(function) => tape.function(function, g),
            None => g,
        };
        (s, tape.scale(vectors, g))
    }

    fn apply<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, s: Var, v: Var, gate: Option<Function>) -> (Var, Var) {
        let vh = tape.linear(p, self.wh, v.reshape(3 * v.rows, self.wh.n_in)).reshape(v.rows, 3 * self.wh.n_out);
        self.finish(p, tape, (None, &[s]), vh, gate)
    }
}

/// n(x) = √max(|x|², 1e-8) of vectors.
fn length<R: Scalar>(tape: &mut Tape<R>, v: Var) -> Var {
    let squared = tape.squared_length(v);
    let squared = tape.function(Function::AtLeast(1e-8), squared);
    tape.function(Function::Root, squared)
}

/// Scalars: layer normalisation; vectors: divided by √(mean max(|V|², 1e-8) + 1e-5) + 1e-5.
fn normalise<R: Scalar>(p: &[R], tape: &mut Tape<R>, norm: &NormPlaces, s: Var, v: Var) -> (Var, Var) {
    let s = tape.layer_norm(p, LayerNorm { weight: norm.weight.start, bias: norm.bias.start }, s);
    let squared = tape.squared_length(v);
    let squared = tape.function(Function::AtLeast(1e-8), squared);
    let mean = tape.mean_columns(squared);
    let mean = tape.affine(1.0, mean, 1e-5);
    let root = tape.function(Function::Root, mean);
    let root = tape.affine(1.0, root, 1e-5);
    let inverse = tape.function(Function::Reciprocal, root);
    (s, tape.scale(v, inverse))
}

impl Trunk {
    /// Appends the tensors to a layout. Errors name the option.
    pub fn new(config: GvpConfig, layout: &mut Layout) -> Result<Trunk> {
        config.check()?;
        let places = TrunkPlaces::new(&config, layout);
        Ok(Trunk { config, places })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &GvpConfig {
        &self.config
    }

    /// Parameter ranges of the trunk.
    pub fn places(&self) -> &TrunkPlaces {
        &self.places
    }

    /// Number of atoms.
    pub fn n_atoms(&self) -> usize {
        self.config.features.len()
    }

    /// The sum Σ_j of messages, and the rest of a layer up to its second norm.
    fn layer<R: Scalar>(
        &self,
        p: &[R],
        tape: &mut Tape<R>,
        places: &LayerPlaces,
        (s, v, x): (Var, Var, Var),
    ) -> (Var, Var, Var) {
        let n = self.n_atoms();
        let GvpConfig { n_scalars, n_vectors, rbf_max, rbf_count, message_norm, coordinate_range, .. } = self.config;
        let d = tape.pairs(Some((1.0, x)), Some((-1.0, x)), n);
        let r = length(tape, d);
        let r = tape.affine(1.0, r, 1e-8);
        let inverse = tape.function(Function::Reciprocal, r);
        let u = tape.scale(d, inverse);
        let rbf = tape.radial_basis(RadialBasis { max: rbf_max, count: rbf_count }, r);

        // terms that depend only on the source are computed once per atom
        let message = Perceptron::new(&places.message);
        let (pairs, hidden) = (u.rows, message.wh.n_out);
        let of_source = tape.linear(p, message.scalars.without_bias().of_inputs(0, n_scalars), s);
        let of_source = tape.pairs(Some((1.0, of_source)), None, n);
        let vh = tape.linear(p, message.wh.of_inputs(1, n_vectors), v.reshape(3 * v.rows, n_vectors));
        let vh = tape.pairs(Some((1.0, vh.reshape(v.rows, 3 * hidden))), None, n);
        let along = tape.linear(p, message.wh.of_inputs(0, 1), u.reshape(3 * pairs, 1)).reshape(pairs, 3 * hidden);
        let vh = tape.add(vh, along);
        let (ms, mv) = message.finish(p, tape, (Some(of_source), &[rbf]), vh, Some(Function::Sigmoid));
        let ms = tape.sum_pairs(ms, n, false);
        let mv = tape.sum_pairs(mv, n, false);
        let s = tape.combine((1.0, s), (1.0 / message_norm, ms), 0.0);
        let v = tape.combine((1.0, v), (1.0 / message_norm, mv), 0.0);
        let (s, v) = normalise(p, tape, &places.message_norm, s, v);

        let (us, uv) = Perceptron::new(&places.update).apply(p, tape, s, v, Some(Function::Sigmoid));
        let (s, v) = (tape.add(s, us), tape.add(v, uv));
        let (_, step) = Perceptron::new(&places.position).apply(p, tape, s, v, Some(Function::Tanh));
        let x = tape.combine((1.0, x), (coordinate_range, step), 0.0);
        let (s, v) = normalise(p, tape, &places.update_norm, s, v);
        (s, v, x)
    }

    /// Variables of x, of the atoms' scalars `[n × atoms][n_scalars]` and of their vectors.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var, Var) {
        let config = &self.config;
        let rows = t.len() * self.n_atoms();
        let input = tape.input(rows, 3);
        tape.value_mut(input).copy_from_slice(x);
        let features = features_and_time(tape, &self.config.features, self.config.n_features, t);
        let embedding = Weight::new(self.places.embedding_weight.start, config.n_features + 1, config.n_scalars)
            .with_bias(self.places.embedding_bias.start);
        let s = tape.linear(p, embedding, features);
        let s = tape.silu(s);
        let v = tape.input(rows, 3 * config.n_vectors);
        tape.value_mut(v).fill(R::default());
        let (s, v, _) = self.places.layers.iter().fold((s, v, input), |state, layer| self.layer(p, tape, layer, state));
        (input, s, v)
    }
}

impl GvpNetwork {
    /// Lays out the parameters. Errors name the option.
    pub fn new(config: GvpConfig) -> Result<GvpNetwork> {
        config.check()?;
        let Places { layout, trunk, output } = Places::new(&config);
        Ok(GvpNetwork { trunk: Trunk { config, places: trunk }, layout, output: Perceptron::new(&output) })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &GvpConfig {
        &self.trunk.config
    }
}

impl Network for GvpNetwork {
    fn dimension(&self) -> usize {
        3 * self.trunk.n_atoms()
    }

    fn outputs(&self) -> usize {
        self.dimension()
    }

    fn chunk(&self) -> usize {
        1
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let (input, s, v) = self.trunk.record(p, tape, t, x);
        let (_, f) = self.output.apply(p, tape, s, v, None);
        (input, f)
    }
}
