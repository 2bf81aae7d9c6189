//! Tables of a flow for the kernels: layers, networks with their weights, internal coordinates.

use crate::coordinates::{Coordinates, InternalCoordinates, ZMatrix};
use crate::models::coupling::affine::AffineCoupling;
use crate::models::coupling::conditioner::Conditioner;
use crate::models::coupling::elementwise::{Elementwise, Kind};
use crate::models::coupling::layers::{Ends, Layer};
use crate::models::coupling::spline_coupling::SplineCoupling;
use crate::models::coupling::CouplingFlow;
use crate::nn::{Activation, Linear, Real};
use bytemuck::{Pod, Zeroable};

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct LayerRecord {
    kind: i32,
    n: i32,
    transformed: i32,
    numbers: i32,
    kept: i32,
    ends: i32,
    bins: i32,
    preserve_volume: i32,
    n_networks: i32,
    networks: [NetworkRecord; 2],
}

/// `Network` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct NetworkRecord {
    periodic: i32,
    n_periodic: i32,
    harmonics: i32,
    plain: i32,
    n_plain: i32,
    dense: i32,
    n_dense: i32,
    out: i32,
}

/// `Internal` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct InternalRecord {
    n_atoms: i32,
    pub n_rows: i32,
    n_free: i32,
    normalize_angles: i32,
    frame: i32,
    rows: i32,
    cartesian: i32,
    slot: i32,
    order: i32,
    levels: i32,
    n_levels: i32,
    stereocentres: i32,
    n_stereocentres: i32,
    lengths: i32,
    parts: i32,
    padding: i32,
    log_volume: f64,
}

/// Tables that the kernel reads, before they are copied to the card.
#[derive(Default)]
pub(super) struct Tables<R> {
    pub tables: Vec<i32>,
    pub numbers: Vec<f64>,
    pub weights: Vec<R>,
    pub layers: Vec<LayerRecord>,
    pub internal: InternalRecord,
    pub draws: i32,
    /// Numbers per row for the inputs and hidden values of a network, and for its outputs.
    pub hidden: usize,
    pub outputs: usize,
    /// Numbers per row kept for the backward pass: coordinates of all layers, derivatives of one layer's activations.
    pub values: usize,
    slopes: usize,
}

impl<R: Real> Tables<R> {
    /// Packs a flow.
    pub fn of(flow: &CouplingFlow<R>) -> Tables<R> {
        let mut tables = Tables::default();
        flow.layers.iter().for_each(|layer| {
            let record = tables.layer(layer, &flow.parameters);
            tables.layers.push(LayerRecord { kept: tables.values as i32, ..record });
            tables.values += record.n as usize;
        });
        if let Coordinates::Internal(internal, centres) = &*flow.coordinates {
            tables.internal = tables.internal(internal);
            let flat = |s: &crate::coordinates::Stereocentre| {
                let [a, b, c] = s.neighbours;
                [s.centre, a, b, c, usize::from(s.positive)]
            };
            tables.internal.stereocentres = tables.put(centres.iter().flat_map(flat));
            tables.internal.n_stereocentres = centres.len() as i32;
        }
        tables.draws = tables.put_draws(&flow.uniform);
        tables
    }

    /// Doubles per row kept for the backward pass: coordinates, and the larger of derivatives of activations and
    /// cotangents of the atoms of every row and of the frame.
    pub fn kept(&self) -> usize {
        let slopes = (self.slopes * size_of::<R>()).div_ceil(size_of::<f64>());
        self.values + slopes.max(12 * (self.internal.n_rows as usize + 1))
    }

    fn put(&mut self, values: impl IntoIterator<Item = usize>) -> i32 {
        let start = self.tables.len() as i32;
        self.tables.extend(values.into_iter().map(|v| v as i32));
        start
    }

    fn put_numbers(&mut self, values: impl IntoIterator<Item = f64>) -> i32 {
        let start = self.numbers.len() as i32;
        self.numbers.extend(values);
        start
    }

    /// For every coordinate the position in its stream of the number that `CouplingFlow::draw_latent` takes, and its
    /// kind: 0 for a uniform number, 1 and 2 for the first and second normal of a pair.
    fn put_draws(&mut self, uniform: &[bool]) -> i32 {
        let (mut position, mut pair) = (0, None);
        let draws: Vec<usize> = uniform
            .iter()
            .flat_map(|&uniform| {
                if uniform {
                    position += 1;
                    return [position - 1, 0];
                }
                match pair.take() {
                    Some(first) => [first, 2],
                    None => {
                        pair = Some(position);
                        position += 2;
                        [position - 2, 1]
                    }
                }
            })
            .collect();
        self.put(draws)
    }

    fn layer(&mut self, layer: &Layer, parameters: &[R]) -> LayerRecord {
        match layer {
            Layer::Spline(spline) => self.spline(spline, parameters),
            Layer::Affine(affine) => self.affine(affine, parameters),
            Layer::Elementwise(elementwise) => self.elementwise(elementwise, parameters),
            Layer::Whiten(whiten) => LayerRecord {
                kind: 6,
                n: whiten.transformed.len() as i32,
                transformed: self.put(whiten.transformed.iter().copied()),
                numbers: self
                    .put_numbers([whiten.log_det].into_iter().chain(whiten.mean.clone()).chain(whiten.matrix.clone())),
                ..LayerRecord::default()
            },
        }
    }

    fn spline(&mut self, spline: &SplineCoupling, parameters: &[R]) -> LayerRecord {
        let network = self.network(&spline.conditioner, parameters, &mut 0);
        self.outputs = self.outputs.max(spline.conditioner.mlp.n_out().next_multiple_of(2));
        LayerRecord {
            kind: 0,
            n: spline.transformed.len() as i32,
            transformed: self.put(spline.transformed.iter().copied()),
            numbers: self.put_numbers([spline.left, spline.span, spline.beta]),
            ends: match spline.ends {
                Ends::Free => 0,
                Ends::Circular => 1,
                Ends::Linear => 2,
            },
            bins: spline.bins as i32,
            n_networks: 1,
            networks: [network, NetworkRecord::default()],
            ..LayerRecord::default()
        }
    }

    fn affine(&mut self, affine: &AffineCoupling, parameters: &[R]) -> LayerRecord {
        let mut slopes = 0;
        let network = self.network(&affine.shift, parameters, &mut slopes);
        let scale = affine.scale.as_ref().map(|scale| self.network(scale, parameters, &mut slopes));
        let outputs = |conditioner: &Conditioner| conditioner.mlp.n_out().next_multiple_of(2);
        let n_out = outputs(&affine.shift);
        self.outputs = self.outputs.max(n_out + affine.scale.as_ref().map_or(0, outputs));
        LayerRecord {
            kind: 1,
            n: affine.transformed.len() as i32,
            transformed: self.put(affine.transformed.iter().copied()),
            numbers: self.put_numbers([parameters[affine.log_alpha].to_f64().exp()]),
            preserve_volume: i32::from(affine.preserve_volume),
            n_networks: 1 + i32::from(scale.is_some()),
            networks: [network, NetworkRecord { out: n_out as i32, ..scale.unwrap_or_default() }],
            ..LayerRecord::default()
        }
    }

    fn elementwise(&mut self, elementwise: &Elementwise, parameters: &[R]) -> LayerRecord {
        let n = elementwise.transformed.len();
        let (kind, numbers) = match &elementwise.kind {
            Kind::Shift(start) => (2, parameters[*start..start + n].iter().map(|p| p.to_f64()).collect()),
            Kind::Wrap(shift) => (3, shift.clone()),
            Kind::TruncatedNormal(each) => {
                let flat = each.iter().flat_map(|t| [t.mean, t.sd, t.lower, t.upper, t.below, t.mass, t.log_scale]);
                (4, flat.collect())
            }
            Kind::Uniform(each) => (5, each.iter().flat_map(|&(low, high, log)| [low, high, log]).collect()),
        };
        LayerRecord {
            kind,
            n: n as i32,
            transformed: self.put(elementwise.transformed.iter().copied()),
            numbers: self.put_numbers(numbers),
            ..LayerRecord::default()
        }
    }

    /// `slopes`: the number of activation derivatives that already have places in the layer.
    fn network(&mut self, conditioner: &Conditioner, parameters: &[R], slopes: &mut usize) -> NetworkRecord {
        let (features, mlp) = (&conditioner.features, &conditioner.mlp);
        let last = mlp.layers.len() - 1;
        let mut dense = Vec::new();
        for (i, linear) in mlp.layers.iter().enumerate() {
            self.hidden = self.hidden.max(linear.n_in.next_multiple_of(2));
            let [weight, back, bias] = self.linear(linear, parameters);
            let activation = match mlp.activation {
                _ if i == last => 3,
                Activation::Relu => 0,
                Activation::Silu => 1,
                Activation::Tanh => 2,
            };
            let n_out = linear.n_out.next_multiple_of(2);
            dense.extend([linear.n_in, n_out, weight, back, bias, activation, *slopes]);
            *slopes += if i == last { 0 } else { n_out };
        }
        self.slopes = self.slopes.max(*slopes);
        NetworkRecord {
            periodic: self.put(features.periodic.iter().copied()),
            n_periodic: features.periodic.len() as i32,
            harmonics: features.harmonics as i32,
            plain: self.put(features.plain.iter().copied()),
            n_plain: features.plain.len() as i32,
            dense: self.put(dense),
            n_dense: mlp.layers.len() as i32,
            out: 0,
        }
    }

    /// Appends weights as `[in][out]` and as `[out][in]`, and the bias, with the last dimension padded to even by
    /// zeros; returns their offsets.
    fn linear(&mut self, linear: &Linear, parameters: &[R]) -> [usize; 3] {
        let (n_in, n_out) = (linear.n_in, linear.n_out);
        let columns = n_out.next_multiple_of(2);
        let values = &parameters[linear.weight()];
        let at = |k: usize, o: usize| if k < n_in && o < n_out { values[o * n_in + k] } else { R::default() };
        let weight = self.weights.len();
        self.weights.extend((0..n_in).flat_map(|k| (0..columns).map(move |o| (k, o))).map(|(k, o)| at(k, o)));
        let back = self.weights.len();
        let inputs = 0..n_in.next_multiple_of(2);
        self.weights.extend((0..columns).flat_map(|o| inputs.clone().map(move |k| (k, o))).map(|(k, o)| at(k, o)));
        let bias = self.weights.len();
        self.weights.extend_from_slice(&parameters[linear.bias()]);
        self.weights.resize(bias + columns, R::default());
        [weight, back, bias]
    }

    /// For every atom the offsets of its cotangents: 4 · row + its position among the row's atoms, the frame being the
    /// last row.
    fn parts(&mut self, zmatrix: &ZMatrix) -> i32 {
        let rows = zmatrix.rows.iter().map(|row| &row[..]).chain([&zmatrix.frame[..]]);
        let mut of_atom = vec![Vec::new(); zmatrix.rows.len() + 3];
        for (r, row) in rows.enumerate() {
            row.iter().enumerate().for_each(|(role, &atom)| of_atom[atom].push(4 * r + role));
        }
        let first = self.tables.len() + of_atom.len() + 1;
        let ends = of_atom.iter().scan(first, |end, parts| {
            *end += parts.len();
            Some(*end)
        });
        let start = self.put([first].into_iter().chain(ends));
        self.put(of_atom.concat());
        start
    }

    fn internal(&mut self, internal: &InternalCoordinates) -> InternalRecord {
        let zmatrix = &internal.zmatrix;
        let levels = levels(&zmatrix.rows, &zmatrix.order);
        InternalRecord {
            n_atoms: internal.n_atoms() as i32,
            n_rows: zmatrix.rows.len() as i32,
            n_free: internal.n_bonds() as i32,
            normalize_angles: i32::from(internal.normalize_angles()),
            frame: self.put(zmatrix.frame),
            rows: self.put(zmatrix.rows.iter().flatten().copied()),
            cartesian: self.put(internal.cartesian.iter().map(|&c| usize::from(c))),
            // usize::MAX, a constrained bond, becomes −1
            slot: self.put(internal.slot.iter().copied()),
            order: self.put(levels.iter().flatten().copied()),
            n_levels: levels.len() as i32,
            levels: self.put(
                levels
                    .iter()
                    .scan(0, |end, level| {
                        *end += level.len();
                        Some(*end - level.len())
                    })
                    .chain([zmatrix.rows.len()])
                    .collect::<Vec<_>>(),
            ),
            lengths: self.put_numbers(internal.fixed.iter().map(|length| length.unwrap_or(0.0))),
            parts: self.parts(zmatrix),
            log_volume: internal.log_volume(),
            ..InternalRecord::default()
        }
    }
}

/// Groups the rows of a z-matrix into levels, whose reference atoms are placed by earlier levels.
fn levels(rows: &[[usize; 4]], order: &[usize]) -> Vec<Vec<usize>> {
    let mut level_of_atom = vec![0; rows.len() + 3];
    let mut levels: Vec<Vec<usize>> = Vec::new();
    for &row in order {
        let [atom, references @ ..] = rows[row];
        let level = references.iter().map(|&a| level_of_atom[a]).max().unwrap_or(0);
        level_of_atom[atom] = level + 1;
        if levels.len() == level {
            levels.push(Vec::new());
        }
        levels[level].push(row);
    }
    levels
}
