//! The exact divergence of the field: derivatives of all layers along many coordinates at once.
//!
//! Only the sum of a layer's messages over the sources has to be carried along every direction. With p_ij = W₁ [h_i,
//! h_j, r_ij, a_ij] + b₁, q = W₂ silu(p) + b₂, m = silu(q) and g = σ(w_a·m + b_a),
//!
//! ```text
//! dm̄_ij = g silu′(q) ∘ W₂ da + g (1 − g) m (z·da),   da = silu′(p) ∘ dp      (m̄ = g m)
//! dc_ij = y·da                                                               (c = tanh(w_c·silu(W_c m̄ + b_c)))
//! ```
//!
//! where z and y, one vector per pair, are found by reverse mode from the gate and the step c, both scalars. So a pair
//! costs one product with W₂ per direction, and less in two of the layers: in the first, only r_ij and a_ij depend on
//! x, so dm̄ and dc are a vector and a number times dr_ij; in the last, the trace needs only dc, along the coordinates
//! of its own atom. By translation invariance, derivatives along the last atom are minus the sum of the others.
//!
//! Directions are lanes: an atom's tangents are panels `[column][number][lane]`, whose columns have [`WIDTH`]
//! directions.

// Indices of axes and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

mod kernels;

use super::{Egnn, Layer, Recorded, RecordedLayer};
use crate::models::network::Evaluator;
use crate::nn::lanes::{padded, WIDTH};
use crate::nn::product::{Dense, Packed};
use crate::nn::tape::Weight;
use crate::nn::{Real, Tape};
use kernels::{Messages, PanelProduct, MOST_COLUMNS};

impl Egnn {
    /// Σ ∂v/∂x of the one configuration on the tape.
    pub(super) fn trace<R: Real>(&self, p: &[R], tape: &Tape<R>, recorded: &Recorded) -> f64 {
        if self.n_atoms() == 1 {
            return 0.0;
        }
        let mut tangents = Tangents::new(self.n_atoms(), self.config.n_hidden, self.step());
        let (last, others) = recorded.layers.split_last().expect("at least one layer");
        let start = tape.value(recorded.layers[0].d);
        for (l, (layer, values)) in self.layers.iter().zip(others).enumerate() {
            let pairs = Pairs::new(p, tape, layer, values);
            match l {
                0 => tangents.first_messages(p, layer, &pairs),
                _ => tangents.messages(p, layer, &pairs, start),
            }
            tangents.update(p, layer, &derivative(tape.value(values.node)), l == 0);
        }
        let layer = &self.layers[others.len()];
        tangents.trace(p, layer, &Pairs::new(p, tape, layer, last), start)
    }
}

impl<R: Real> Evaluator<Egnn, R> {
    /// As [`Evaluator::flops`], for the field with its divergence: products with W₂ in the layers between the first and
    /// the last, and those of atoms and pairs.
    pub fn divergence_flops(&self) -> f64 {
        let network = &self.network;
        let [n, h, layers] = [network.n_atoms(), network.config.n_hidden, network.layers.len()].map(|v| v as f64);
        let directions = 3.0 * (n - 1.0);
        let messages = (layers - 2.0).max(0.0) * n * directions * (n + 1.0) * h * h;
        let updates = (layers - 1.0) * n * directions * 3.0 * h * h;
        let backwards = layers * n * n * 3.0 * h * h;
        self.flops() + 2.0 * (messages + updates + backwards)
    }
}

/// silu′.
fn derivative<R: Real>(pre: &[R]) -> Vec<R> {
    let mut slope = vec![R::from_f64(1.0); pre.len()];
    R::silu_backward(pre, &mut slope);
    slope
}

/// A part of a layer's weights `[out][in]` among the parameters.
#[derive(Clone, Copy)]
struct Matrix<'a, R> {
    rows: &'a [R],
    stride: usize,
    n_in: usize,
    n_out: usize,
}

impl<'a, R: Real> Matrix<'a, R> {
    fn new(p: &'a [R], w: Weight) -> Matrix<'a, R> {
        let (first, second) = (w.place(0, 0), w.place(0, 1));
        Matrix { rows: &p[first..], stride: second - first, n_in: w.n_in, n_out: w.n_out }
    }

    fn at(&self, out: usize, input: usize) -> R {
        self.rows[out * self.stride + input]
    }

    /// The weights packed for products `[rows][in]` to `[rows][out]`.
    fn forward(&self) -> Dense<R> {
        let weights = Packed::new(self.n_in, self.n_out, |i, o| self.at(o, i).to_f64());
        Dense::new(weights, &vec![R::default(); self.n_out])
    }

    /// The transposed weights, packed for the backward pass.
    fn back(&self) -> Dense<R> {
        let weights = Packed::new(self.n_out, self.n_in, |o, i| self.at(o, i).to_f64());
        Dense::new(weights, &vec![R::default(); self.n_in])
    }
}

fn times<R: Real>(dense: &Dense<R>, x: &[R]) -> Vec<R> {
    let mut y = vec![R::default(); x.len()];
    dense.apply(x, &mut y);
    y
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// Intermediates for the derivatives of a layer's messages: `[i][j][hidden]` each, for j → i.
struct Pairs<'a, R> {
    hidden: usize,
    /// silu′(p)
    slope: Vec<R>,
    /// g silu′(q)
    gain: Vec<R>,
    /// g (1 − g) m
    gated: Vec<R>,
    /// z and y
    to_gate: Vec<R>,
    to_step: Vec<R>,
    geometry: Vec<Geometry<R>>,
    of_r: Vec<R>,
    of_a: Vec<R>,
    edge: Matrix<'a, R>,
}

/// Per pair: x_i − x_j, 1/(√(r + 1e-8) + 1) and its derivative with respect to r, and c.
#[derive(Clone, Copy)]
struct Geometry<R> {
    d: [R; 3],
    inverse: R,
    slope: R,
    c: R,
}

impl<'a, R: Real> Pairs<'a, R> {
    fn new(p: &'a [R], tape: &Tape<R>, layer: &Layer, values: &RecordedLayer) -> Pairs<'a, R> {
        let hidden = layer.edge[1].n_out;
        let matrix = |w: Weight| Matrix::new(p, w);
        let (of_step, of_gate) = (matrix(layer.coordinate[1]).rows, matrix(layer.attention).rows);
        let slope = derivative(tape.value(values.first));
        let mut gain = derivative(tape.value(values.second));
        let (m, gates, steps) = (tape.value(values.message), tape.value(values.gate), tape.value(values.c));
        // backwards from c to m̄
        let mut back = of_step[..hidden].repeat(steps.len());
        R::silu_backward(tape.value(values.coordinate), &mut back);
        let mut back = times(&matrix(layer.coordinate[0]).back(), &back);
        let (mut to_gate, mut gated) = (gain.clone(), m.to_vec());
        let one = R::from_f64(1.0);
        let rows = back.chunks_exact_mut(hidden).zip(gain.chunks_exact_mut(hidden));
        let rows = rows.zip(to_gate.chunks_exact_mut(hidden).zip(gated.chunks_exact_mut(hidden)));
        for (((back, gain), (to_gate, m)), (&g, &c)) in rows.zip(gates.iter().zip(steps)) {
            let (through_tanh, through_gate) = (one - c * c, g * (one - g));
            // y before W₂: what m̄ = g m contributes, through m and through g
            let along_gate = through_tanh * through_gate * dot(back, m);
            for k in 0..hidden {
                to_gate[k] *= of_gate[k];
                gain[k] *= g;
                back[k] = through_tanh * back[k] * gain[k] + along_gate * to_gate[k];
                m[k] *= through_gate;
            }
        }
        let edge = matrix(layer.edge[1]);
        let second = edge.back();
        let column = |k: usize| {
            let of = matrix(layer.edge[0].of_inputs(2 * hidden + k, 1));
            (0..hidden).map(|o| of.at(o, 0)).collect()
        };
        let inverses = tape.value(values.inverse).iter().zip(tape.value(values.r));
        let geometry = tape.value(values.d).chunks_exact(3).zip(inverses).zip(steps);
        let geometry = geometry.map(|((d, (&inverse, &r)), &c)| {
            let root = (r + R::from_f64(1e-8)).sqrt();
            Geometry { d: [d[0], d[1], d[2]], inverse, slope: -inverse * inverse / (root + root), c }
        });
        Pairs {
            hidden,
            slope,
            gain,
            gated,
            to_gate: times(&second, &to_gate),
            to_step: times(&second, &back),
            geometry: geometry.collect(),
            of_r: column(0),
            of_a: column(1),
            edge,
        }
    }

    /// Numbers of one pair.
    fn row<'b>(&self, of: &'b [R], pair: usize) -> &'b [R] {
        &of[pair * self.hidden..][..self.hidden]
    }
}

/// Tangents along the coordinates of all atoms but the last.
struct Tangents<R> {
    n: usize,
    hidden: usize,
    /// range / layers
    step: R,
    /// Columns of directions.
    columns: usize,
    /// Panels of the atoms.
    h: Vec<R>,
    sum: Vec<R>,
    of_source: Vec<R>,
    of_destination: Vec<R>,
    /// `[atom][axis][direction]`
    x: Vec<R>,
    next: Vec<R>,
}

impl<R: Real> Tangents<R> {
    fn new(n: usize, hidden: usize, step: f64) -> Tangents<R> {
        let width = padded(3 * (n - 1));
        let zeros = |numbers: usize| vec![R::default(); n * numbers * width];
        let mut x = zeros(3);
        (0..3 * (n - 1)).for_each(|i| x[i * width + i] = R::from_f64(1.0));
        Tangents {
            n,
            hidden,
            step: R::from_f64(step),
            columns: width / WIDTH,
            h: zeros(hidden),
            sum: zeros(hidden),
            of_source: zeros(hidden),
            of_destination: zeros(hidden),
            next: x.clone(),
            x,
        }
    }

    /// Size of an atom's panel.
    fn panel(&self) -> usize {
        self.columns * self.hidden * WIDTH
    }

    fn width(&self) -> usize {
        self.columns * WIDTH
    }

    /// Index of a number in an atom's panel.
    fn place(&self, atom: usize, number: usize, direction: usize) -> usize {
        atom * self.panel() + (direction / WIDTH * self.hidden + number) * WIDTH + direction % WIDTH
    }

    /// Messages of the first layer: those of a pair vary only along its two atoms, through r_ij.
    fn first_messages(&mut self, p: &[R], layer: &Layer, pairs: &Pairs<R>) {
        let (n, hidden, width) = (self.n, self.hidden, self.width());
        let of_both: Vec<R> = pairs.of_r.iter().zip(&pairs.of_a).map(|(&r, &a)| r + a).collect();
        let mut change = pairs.slope.clone();
        change.chunks_exact_mut(hidden).for_each(|row| row.iter_mut().zip(&of_both).for_each(|(c, &w)| *c *= w));
        let message = times(&Matrix::new(p, layer.edge[1]).forward(), &change);
        for (i, j) in (0..n * n).map(|pair| (pair / n, pair % n)).filter(|(i, j)| i != j) {
            let pair = i * n + j;
            let [change, gain, gated, message] =
                [&change, &pairs.gain, &pairs.gated, &message].map(|of| pairs.row(of, pair));
            let along_gate = dot(pairs.row(&pairs.to_gate, pair), change);
            let dc = dot(pairs.row(&pairs.to_step, pair), change);
            let Geometry { d, inverse, slope, c } = pairs.geometry[pair];
            for (moved, sign) in [(i, R::from_f64(1.0)), (j, R::from_f64(-1.0))] {
                for axis in (0..3).filter(|_| moved + 1 < n) {
                    let (direction, dr) = (3 * moved + axis, (sign + sign) * d[axis]);
                    for k in 0..hidden {
                        let place = self.place(i, k, direction);
                        self.sum[place] += dr * (gain[k] * message[k] + gated[k] * along_gate);
                    }
                    for to in 0..3 {
                        let own = if to == axis { sign * inverse * c } else { R::default() };
                        let change = own + d[to] * dr * (slope * c + inverse * dc);
                        self.next[(3 * i + to) * width + direction] += self.step * change;
                    }
                }
            }
        }
    }

    /// Messages of a layer between the first and the last.
    fn messages(&mut self, p: &[R], layer: &Layer, pairs: &Pairs<R>, start: &[R]) {
        let (n, hidden, columns, panel) = (self.n, self.hidden, self.columns, self.panel());
        let [destination, source] =
            [0, hidden].map(|from| Matrix::new(p, layer.edge[0].without_bias().of_inputs(from, hidden)));
        for (matrix, to) in [(destination, &mut self.of_destination), (source, &mut self.of_source)] {
            for (x, y) in self.h.chunks_exact(panel).zip(to.chunks_exact_mut(panel)) {
                R::vectorised(PanelProduct { matrix, columns, x, y, add: false });
            }
        }
        self.sum.fill(R::default());
        let mut changes = vec![R::default(); MOST_COLUMNS * hidden * WIDTH];
        let rows = self.sum.chunks_exact_mut(panel).zip(self.next.chunks_exact_mut(3 * columns * WIDTH));
        for (i, (sum, next)) in rows.enumerate() {
            R::vectorised(Messages {
                i,
                n,
                columns,
                pairs,
                start,
                step: self.step,
                of_source: &self.of_source,
                of_destination: &self.of_destination[i * panel..][..panel],
                x: &self.x,
                changes: &mut changes,
                sum,
                next,
            });
        }
    }

    /// Updates features and positions after a layer; `slope` is silu′ of N₁ [h, Σ m̄] + c₁ for each atom.
    fn update(&mut self, p: &[R], layer: &Layer, slope: &[R], first: bool) {
        let (hidden, columns, panel) = (self.hidden, self.columns, self.panel());
        let [of_h, of_sum] = [0, hidden].map(|from| Matrix::new(p, layer.node[0].of_inputs(from, hidden)));
        let out = Matrix::new(p, layer.node[1]);
        let mut inner = vec![R::default(); panel];
        for (atom, slope) in slope.chunks_exact(hidden).enumerate() {
            let place = atom * panel..(atom + 1) * panel;
            let (h, sum) = (&mut self.h[place.clone()], &self.sum[place]);
            R::vectorised(PanelProduct { matrix: of_sum, columns, x: sum, y: &mut inner, add: false });
            if !first {
                R::vectorised(PanelProduct { matrix: of_h, columns, x: h, y: &mut inner, add: true });
            }
            for (k, lanes) in inner.chunks_exact_mut(WIDTH).enumerate() {
                lanes.iter_mut().for_each(|value| *value *= slope[k % hidden]);
            }
            R::vectorised(PanelProduct { matrix: out, columns, x: &inner, y: h, add: true });
        }
        self.x.copy_from_slice(&self.next);
    }

    /// Σ_i ∂v_i/∂x_i from the last layer. Centring drops out by translation invariance.
    fn trace(&self, p: &[R], layer: &Layer, pairs: &Pairs<R>, start: &[R]) -> f64 {
        let (n, hidden) = (self.n, self.hidden);
        // derivative of y with respect to p, and from there to the features of the destination and of the source
        let by_first: Vec<R> = pairs.to_step.iter().zip(&pairs.slope).map(|(&y, &slope)| y * slope).collect();
        let [by_destination, by_source] = [0, hidden].map(|from| {
            let part = layer.edge[0].without_bias().of_inputs(from, hidden);
            times(&Matrix::new(p, part).back(), &by_first)
        });
        let (features, positions) = (self.features(), self.positions());
        let row = |atom: usize, direction: usize| &features[(atom * 3 * n + direction) * hidden..][..hidden];
        let mut trace = 0.0;
        for (i, axis) in (0..3 * n).map(|direction| (direction / 3, direction % 3)) {
            let direction = 3 * i + axis;
            let own = &positions[(i * 3 * n + direction) * 3..][..3];
            trace += (own[axis] - R::from_f64(1.0)).to_f64();
            for j in (0..n).filter(|&j| j != i) {
                let pair = i * n + j;
                let other = &positions[(j * 3 * n + direction) * 3..][..3];
                let Geometry { d, inverse, slope, c } = pairs.geometry[pair];
                let change: [R; 3] = std::array::from_fn(|k| own[k] - other[k]);
                let dr = R::from_f64(2.0) * dot(&d, &change);
                let da = R::from_f64(2.0) * start[3 * pair + axis];
                let by_first = pairs.row(&by_first, pair);
                let dc = dot(pairs.row(&by_destination, pair), row(i, direction))
                    + dot(pairs.row(&by_source, pair), row(j, direction))
                    + dr * dot(by_first, &pairs.of_r)
                    + da * dot(by_first, &pairs.of_a);
                let step = c * (inverse * change[axis] + d[axis] * slope * dr) + d[axis] * inverse * dc;
                trace += (self.step * step).to_f64();
            }
        }
        trace
    }

    /// `[atom][direction][numbers]` of features and of positions, including the directions of the last atom.
    fn features(&self) -> Vec<R> {
        self.along_all(self.hidden, |_, _| 0.0, |atom, k, direction| self.h[self.place(atom, k, direction)])
    }

    fn positions(&self) -> Vec<R> {
        let (width, translated) = (self.width(), |axis, along| f64::from(u8::from(axis == along)));
        self.along_all(3, translated, |atom, axis, direction| self.x[(3 * atom + axis) * width + direction])
    }

    /// `translated`: change of a number when all atoms move along an axis.
    fn along_all(
        &self,
        numbers: usize,
        translated: impl Fn(usize, usize) -> f64,
        of: impl Fn(usize, usize, usize) -> R,
    ) -> Vec<R> {
        let (n, last) = (self.n, 3 * (self.n - 1));
        let mut rows = vec![R::default(); n * 3 * n * numbers];
        for (atom, rows) in rows.chunks_exact_mut(3 * n * numbers).enumerate() {
            let (others, own) = rows.split_at_mut(last * numbers);
            own.iter_mut().enumerate().for_each(|(i, v)| *v = R::from_f64(translated(i % numbers, i / numbers)));
            // in the order of the panels
            for first in (0..last).step_by(WIDTH) {
                for k in 0..numbers {
                    for direction in first..last.min(first + WIDTH) {
                        let value = of(atom, k, direction);
                        others[direction * numbers + k] = value;
                        own[direction % 3 * numbers + k] += -value;
                    }
                }
            }
        }
        rows
    }
}
