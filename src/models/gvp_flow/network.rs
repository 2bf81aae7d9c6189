//! Passes through the network: values, and values with tangents, layer by layer for one configuration.

// Indices of components and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::edges::{EdgeTangents, Edges};
use super::gvp::{silu, Gvp, Linear, Radial, Scratch, Tape};
use super::layout::{LayerPlaces, Places};
use super::norm::{GvpLayerNorm, NormTape};
use super::position::{JacobianProduct, OutputScratch, VectorOutput};
use super::tangent::{TangentScratch, Tangents};
use super::GvpConfig;
use crate::nn::lanes::{padded, WIDTH};
use crate::nn::product::{without, Packed};
use crate::nn::Real;

#[derive(Clone, Debug)]
struct Layer<R> {
    message: Gvp<R>,
    update: Gvp<R>,
    position: VectorOutput<R>,
    message_norm: GvpLayerNorm<R>,
    update_norm: GvpLayerNorm<R>,
}

/// The network, with its weights packed for the kernels.
#[derive(Clone, Debug)]
pub struct Network<R> {
    n_atoms: usize,
    /// Widths of padded rows.
    f: usize,
    u: usize,
    /// Embedding of every atom without the time, and the weights of the time.
    embedding: Vec<R>,
    time_weights: Vec<R>,
    radial: Radial<R>,
    message_factor: R,
    layers: Vec<Layer<R>>,
    output: VectorOutput<R>,
}

/// Workspace of a pass; buffers grow once.
#[derive(Clone, Debug, Default)]
pub struct Workspace<R> {
    /// `[3][atoms]`, padded.
    x: Vec<R>,
    step: Vec<[R; 3]>,
    s: Vec<R>,
    v: Vec<R>,
    edges: Vec<Edges<R>>,
    linear: Linear<R>,
    scratch: Scratch<R>,
    message_s: Vec<R>,
    message_v: Vec<R>,
    output: OutputScratch<R>,
    tapes: Tapes<R>,
    tangents: TangentState<R>,
}

/// Derivatives of the current layer.
#[derive(Clone, Debug, Default)]
struct Tapes<R> {
    message: Tape<R>,
    message_norm: NormTape<R>,
    update: Tape<R>,
    /// Jacobian of the position update or, after the last layer, of the output.
    jacobian: Vec<R>,
    update_norm: NormTape<R>,
}

/// Tangents along several directions: `ds[atom][direction][scalars]`, `dv[atom][direction][3][vectors]`,
/// `dx[atom][3][stride]`.
#[derive(Clone, Debug, Default)]
struct TangentState<R> {
    n: usize,
    stride: usize,
    ds: Vec<R>,
    dv: Vec<R>,
    dx: Vec<R>,
    next_dx: Vec<R>,
    linear: Linear<R>,
    update_linear: Linear<R>,
    edge: EdgeTangents<R>,
    scratch: TangentScratch<R>,
    message_s: Vec<R>,
    message_v: Vec<R>,
    /// For the first layer: unit vectors and zeros `[3][lanes]`, an empty linear part, and the tangents of one edge.
    unit: Vec<R>,
    none: Vec<R>,
    no_linear: Linear<R>,
    pair_s: Vec<R>,
    pair_v: Vec<R>,
}

impl<R: Real> Network<R> {
    /// Packs the parameters at the given places.
    pub fn new(config: &GvpConfig, places: &Places, parameters: &[R]) -> Network<R> {
        let n_in = config.n_features + 1;
        let weight = |i: usize, o: usize| parameters[places.trunk.embedding_weight.start + o * n_in + i].to_f64();
        let bias = |o: usize| parameters[places.trunk.embedding_bias.start + o].to_f64();
        let features = &config.features;
        let embed = |atom: usize, o: usize| bias(o) + features[atom].iter().map(|&i| weight(i, o)).sum::<f64>();
        let layer = |places: &LayerPlaces| Layer {
            message: Gvp::new(parameters, &places.message, config.rbf_count),
            update: Gvp::new(parameters, &places.update, 0),
            position: VectorOutput::new(parameters, &places.position, Some(config.coordinate_range)),
            message_norm: GvpLayerNorm::new(parameters, &places.message_norm, config.n_vectors),
            update_norm: GvpLayerNorm::new(parameters, &places.update_norm, config.n_vectors),
        };
        let centre = |k: usize| config.rbf_max * k as f64 / (config.rbf_count.max(2) - 1) as f64;
        Network {
            n_atoms: features.len(),
            f: padded(config.n_scalars),
            u: padded(config.n_vectors),
            embedding: (0..features.len())
                .flat_map(|atom| Packed::new(1, config.n_scalars, |_, o| embed(atom, o)).weights)
                .collect(),
            time_weights: Packed::new(1, config.n_scalars, |_, o| weight(config.n_features, o)).weights,
            radial: Radial {
                centres: Packed::new(1, config.rbf_count, |_, k| centre(k)).weights,
                inverse_width: R::from_f64(config.rbf_count as f64 / config.rbf_max),
            },
            message_factor: R::from_f64(1.0 / config.message_norm),
            layers: places.trunk.layers.iter().map(layer).collect(),
            output: VectorOutput::new(parameters, &places.output, None),
        }
    }

    /// f of one configuration `x[atoms][3]`.
    pub fn evaluate(&self, t: f64, x: &[f64], ws: &mut Workspace<R>, f: &mut [f64]) {
        self.begin(t, x, ws);
        for l in 0..self.layers.len() {
            self.layer(l, ws, false);
        }
        self.finish(ws, false, f);
    }

    /// f and its divergence, from tangents along the coordinates of all atoms but the last; those along the last follow
    /// from translation invariance. In the first layer an edge depends only on its own two atoms, and in the last layer
    /// only each atom's tangents along its own coordinates are needed.
    pub fn evaluate_divergence(&self, t: f64, x: &[f64], ws: &mut Workspace<R>, f: &mut [f64]) -> f64 {
        self.begin(t, x, ws);
        let n = 3 * self.n_atoms;
        self.begin_tangents(n, ws);
        for i in 0..n {
            ws.tangents.dx[i * ws.tangents.stride + i] = R::from_f64(1.0);
        }
        let last = self.layers.len() - 1;
        for l in 0..last {
            self.layer(l, ws, true);
            self.tangents(l, ws, 0..n - 3, l == 0);
        }
        self.layer(last, ws, true);
        self.finish(ws, true, f);
        self.complete(ws);
        self.linear_tangents(last, ws);
        (0..self.n_atoms).map(|atom| self.trace(last, atom, ws)).sum()
    }

    /// f and its Jacobian–vector product along dx.
    pub fn evaluate_jvp(&self, t: f64, x: &[f64], dx: &[f64], ws: &mut Workspace<R>, f: &mut [f64], df: &mut [f64]) {
        self.begin(t, x, ws);
        self.begin_tangents(1, ws);
        for (to, &from) in ws.tangents.dx.chunks_exact_mut(ws.tangents.stride).zip(dx) {
            to[0] = R::from_f64(from);
        }
        for l in 0..self.layers.len() {
            self.layer(l, ws, true);
            if l + 1 == self.layers.len() {
                self.finish(ws, true, f);
            }
            self.tangents(l, ws, 0..1, false);
        }
        for (to, from) in df.iter_mut().zip(ws.tangents.dx.chunks_exact(ws.tangents.stride)) {
            *to = from[0].to_f64();
        }
    }

    fn begin(&self, t: f64, x: &[f64], ws: &mut Workspace<R>) {
        let n = self.n_atoms;
        let mut centre = [0.0; 3];
        x.chunks_exact(3).for_each(|x| (0..3).for_each(|c| centre[c] += x[c] / n as f64));
        let stride = padded(n);
        ws.x.resize(3 * stride, R::default());
        for (atom, x) in x.chunks_exact(3).enumerate() {
            (0..3).for_each(|c| ws.x[c * stride + atom] = R::from_f64(x[c] - centre[c]));
        }
        ws.step.resize(n, [R::default(); 3]);
        ws.edges.resize_with(n, Edges::default);
        ws.s.clear();
        ws.s.extend_from_slice(&self.embedding);
        let t = R::from_f64(t);
        for s in ws.s.chunks_exact_mut(self.f) {
            s.iter_mut().zip(&self.time_weights).for_each(|(s, &w)| *s += t * w);
        }
        silu(&mut ws.s);
        ws.v.clear();
        ws.v.resize(n * 3 * self.u, R::default());
    }

    /// Runs one layer in place, filling the tapes for [`Self::tangents`] if `tape`. The coordinate step of the last
    /// layer is never used.
    fn layer(&self, l: usize, ws: &mut Workspace<R>, tape: bool) {
        let (layer, n) = (&self.layers[l], self.n_atoms);
        let Workspace { x, step, s, v, edges, linear, scratch, message_s, message_v, output, tapes, .. } = ws;
        layer.message.linear(n, s, v, true, linear);
        message_s.resize(self.f, R::default());
        message_v.resize(3 * self.u, R::default());
        for i in 0..n {
            edges[i].set(x, i);
            message_s.fill(R::default());
            message_v.fill(R::default());
            let edge = &edges[i];
            let place = i * (n - 1);
            let message_tape = tape.then_some((&mut tapes.message, place));
            layer.message.scalars(n - 1, linear, Some((edge, &self.radial)), scratch, message_tape);
            let message_tape = tape.then_some((&mut tapes.message, place));
            let sum = (&mut message_s[..], &mut message_v[..], true);
            layer.message.vectors(n - 1, linear, Some(edge), scratch, message_tape, sum);
            add_scaled(&mut s[i * self.f..], message_s, self.message_factor);
            add_scaled(&mut v[i * 3 * self.u..], message_v, self.message_factor);
        }
        layer.message_norm.forward(n, s, v, tape.then_some(&mut tapes.message_norm));
        layer.update.linear(n, s, v, true, linear);
        layer.update.scalars(n, linear, None, scratch, tape.then_some((&mut tapes.update, 0)));
        layer.update.vectors(n, linear, None, scratch, tape.then_some((&mut tapes.update, 0)), (s, v, false));
        if l + 1 < self.layers.len() {
            layer.position.forward(s, v, output, step, tape.then_some(&mut tapes.jacobian));
            let stride = x.len() / 3;
            step.iter().enumerate().for_each(|(atom, d)| (0..3).for_each(|c| x[c * stride + atom] += d[c]));
        }
        layer.update_norm.forward(n, s, v, tape.then_some(&mut tapes.update_norm));
    }

    fn finish(&self, ws: &mut Workspace<R>, jacobian: bool, f: &mut [f64]) {
        self.output.forward(&ws.s, &ws.v, &mut ws.output, &mut ws.step, jacobian.then_some(&mut ws.tapes.jacobian));
        f.iter_mut().zip(ws.step.iter().flatten()).for_each(|(f, v)| *f = v.to_f64());
    }

    /// Sets zero tangents along n directions.
    fn begin_tangents(&self, n: usize, ws: &mut Workspace<R>) {
        let state = &mut ws.tangents;
        (state.n, state.stride) = (n, padded(n));
        for (buffer, length) in [
            (&mut state.ds, self.n_atoms * n * self.f),
            (&mut state.dv, self.n_atoms * n * 3 * self.u),
            (&mut state.dx, self.n_atoms * 3 * state.stride),
            (&mut state.next_dx, self.n_atoms * 3 * state.stride),
        ] {
            buffer.clear();
            buffer.resize(length, R::default());
        }
        state.none.resize(3 * WIDTH, R::default());
        state.unit.resize(3 * WIDTH, R::default());
        (0..3).for_each(|c| state.unit[c * WIDTH + c] = R::from_f64(1.0));
        state.pair_s.resize(3 * self.f, R::default());
        state.pair_v.resize(9 * self.u, R::default());
        let [f, h, u] = self.layers[0].message.widths();
        state.no_linear.scalars.resize(3 * f, R::default());
        state.no_linear.hidden.resize(9 * h, R::default());
        state.no_linear.outputs.resize(9 * u, R::default());
    }

    /// Linear part of the tangents of all messages.
    fn linear_tangents(&self, l: usize, ws: &mut Workspace<R>) {
        let state = &mut ws.tangents;
        self.layers[l].message.linear(self.n_atoms * state.n, &state.ds, &state.dv, false, &mut state.linear);
    }

    /// Tangents of one layer in place, along `directions`; `pairwise` for the first layer of a divergence. In the last
    /// layer dx becomes the tangent of the output.
    fn tangents(&self, l: usize, ws: &mut Workspace<R>, directions: std::ops::Range<usize>, pairwise: bool) {
        if !pairwise {
            self.linear_tangents(l, ws);
        }
        match l + 1 == self.layers.len() {
            true => ws.tangents.next_dx.fill(R::default()),
            false => ws.tangents.next_dx.copy_from_slice(&ws.tangents.dx),
        }
        for atom in 0..self.n_atoms {
            self.begin_messages(directions.len(), ws);
            match pairwise {
                true => self.pairwise_messages(l, atom, ws),
                false => self.messages(l, atom, directions.clone(), ws),
            }
            self.node(l, atom, directions.clone(), ws);
        }
        std::mem::swap(&mut ws.tangents.dx, &mut ws.tangents.next_dx);
    }

    fn begin_messages(&self, rows: usize, ws: &mut Workspace<R>) {
        let state = &mut ws.tangents;
        state.message_s.clear();
        state.message_s.resize(rows * self.f, R::default());
        state.message_v.clear();
        state.message_v.resize(rows * 3 * self.u, R::default());
    }

    /// Tangents of the sum of messages to an atom.
    fn messages(&self, l: usize, atom: usize, directions: std::ops::Range<usize>, ws: &mut Workspace<R>) {
        let Workspace { edges, tapes, tangents: state, .. } = ws;
        for e in 0..self.n_atoms - 1 {
            let source = without(e, atom);
            let width = 3 * state.stride;
            let dx = (&state.dx[source * width..][..width], &state.dx[atom * width..][..width]);
            state.edge.set(&edges[atom], source, dx, state.stride);
            Tangents {
                gvp: &self.layers[l].message,
                tape: &tapes.message,
                at: atom * (self.n_atoms - 1) + e,
                rows: directions.len(),
                linear: &state.linear,
                first: source * state.n + directions.start,
                edge: Some((&state.edge, directions.start)),
                scratch: &mut state.scratch,
                ds: &mut state.message_s,
                dv: &mut state.message_v,
            }
            .add();
        }
    }

    /// As [`Self::messages`], in the first layer, where s and V do not depend on x: an edge has only the three
    /// directions of its source, and opposite ones for its destination.
    fn pairwise_messages(&self, l: usize, atom: usize, ws: &mut Workspace<R>) {
        let Workspace { edges, tapes, tangents: state, .. } = ws;
        let (f, u) = (self.f, 3 * self.u);
        for e in 0..self.n_atoms - 1 {
            let source = without(e, atom);
            state.edge.set(&edges[atom], source, (&state.unit, &state.none), WIDTH);
            state.pair_s.fill(R::default());
            state.pair_v.fill(R::default());
            Tangents {
                gvp: &self.layers[l].message,
                tape: &tapes.message,
                at: atom * (self.n_atoms - 1) + e,
                rows: 3,
                linear: &state.no_linear,
                first: 0,
                edge: Some((&state.edge, 0)),
                scratch: &mut state.scratch,
                ds: &mut state.pair_s,
                dv: &mut state.pair_v,
            }
            .add();
            let one = R::from_f64(1.0);
            for (moved, sign) in [(source, one), (atom, -one)] {
                if moved + 1 < self.n_atoms {
                    add_scaled(&mut state.message_s[3 * moved * f..], &state.pair_s, sign);
                    add_scaled(&mut state.message_v[3 * moved * u..], &state.pair_v, sign);
                }
            }
        }
    }

    /// Fills in the tangents along the last atom from translation invariance.
    fn complete(&self, ws: &mut Workspace<R>) {
        let state = &mut ws.tangents;
        let last = state.n - 3;
        let rows = |buffer: &mut Vec<R>, width: usize| {
            for rows in buffer.chunks_exact_mut(state.n * width) {
                let (others, own) = rows.split_at_mut(last * width);
                own.fill(R::default());
                others.chunks_exact(3 * width).for_each(|other| add_scaled(own, other, R::from_f64(-1.0)));
            }
        };
        rows(&mut state.ds, self.f);
        rows(&mut state.dv, 3 * self.u);
        for row in state.dx.chunks_exact_mut(state.stride) {
            for c in 0..3 {
                row[last + c] = -(0..last / 3).map(|k| row[3 * k + c]).sum::<R>();
            }
        }
    }

    /// Σ_c ∂f_c/∂x_c of one atom, in the last layer.
    fn trace(&self, l: usize, atom: usize, ws: &mut Workspace<R>) -> f64 {
        let directions = 3 * atom..3 * atom + 3;
        self.begin_messages(3, ws);
        self.messages(l, atom, directions.clone(), ws);
        let state = &mut ws.tangents;
        let width = 3 * state.stride;
        state.next_dx[atom * width..][..width].fill(R::default());
        self.node(l, atom, directions, ws);
        let (df, stride) = (&ws.tangents.next_dx[atom * width..], ws.tangents.stride);
        (0..3).map(|c| df[c * stride + 3 * atom + c].to_f64()).sum()
    }

    /// Tangents of an atom from those of its messages: norms, update, and coordinate step or output.
    fn node(&self, l: usize, atom: usize, directions: std::ops::Range<usize>, ws: &mut Workspace<R>) {
        let (layer, rows) = (&self.layers[l], directions.len());
        let Workspace { tapes, tangents: state, .. } = ws;
        let first = atom * state.n + directions.start;
        let ds = &mut state.ds[first * self.f..][..rows * self.f];
        let dv = &mut state.dv[first * 3 * self.u..][..rows * 3 * self.u];
        add_scaled(ds, &state.message_s, self.message_factor);
        add_scaled(dv, &state.message_v, self.message_factor);
        layer.message_norm.jvp(&tapes.message_norm, atom, rows, ds, dv);
        layer.update.linear(rows, ds, dv, false, &mut state.update_linear);
        Tangents {
            gvp: &layer.update,
            tape: &tapes.update,
            at: atom,
            rows,
            linear: &state.update_linear,
            first: 0,
            edge: None,
            scratch: &mut state.scratch,
            ds,
            dv,
        }
        .add();
        let last = l + 1 == self.layers.len();
        let width = 3 * state.stride;
        let to = &mut state.next_dx[atom * width..][..width];
        let n = 3 * self.output.n_inputs();
        let jacobian = &tapes.jacobian[atom * n..][..n];
        let mut product = |ds: &[R], dv: &[R]| {
            let to = &mut to[directions.start..];
            R::vectorised(JacobianProduct { jacobian, rows, ds, dv, to, stride: state.stride });
        };
        if !last {
            product(ds, dv);
        }
        layer.update_norm.jvp(&tapes.update_norm, atom, rows, ds, dv);
        if last {
            product(ds, dv);
        }
    }
}

/// to += factor · from.
fn add_scaled<R: Real>(to: &mut [R], from: &[R], factor: R) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += factor * from);
}
