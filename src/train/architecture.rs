//! Builds an untrained generator from a topology and frames.
//!
//! Rotatable torsions keep their circle and a uniform prior; everything else (bonds, angles, improper torsions, peptide
//! bonds) is stiff: nearly Gaussian, so it is whitened by its covariance and given a normal prior. The flow is
//! q(rotatable torsions) · q(stiff | rotatable torsions): circular spline couplings first, then couplings between the
//! stiff halves.
//!
//! A steerable flow has volume-preserving couplings of the stiff halves: conditional on the rotatable torsions, which
//! stay as trained, the stiff coordinates follow the temperature.

use crate::coordinates::constraints::CONFIGURATION_TOLERANCE;
use crate::coordinates::vector::distance;
use crate::coordinates::{chirality, Coordinates, CoordinatesConfig, Topology, ZMatrix};
use crate::density::Status;
use crate::error::{Error, Result};
use crate::models::card::{ModelCard, SteeringConfig};
use crate::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use crate::models::Flow;
use crate::nn::Activation;
use crate::rng::{Stream, StreamId};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Sizes of the generator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DesignOptions {
    /// Pairs of couplings of the rotatable torsions.
    pub torsion_rounds: usize,
    /// Pairs of affine couplings of the stiff coordinates.
    pub affine_rounds: usize,
    /// Pairs of spline couplings of the stiff coordinates.
    pub spline_rounds: usize,
    pub hidden: Vec<usize>,
    pub torsion_hidden: Vec<usize>,
    pub bins: usize,
    /// Fourier modes of the rotatable torsions that conditioners see.
    pub harmonics: usize,
    /// Rows of the z-matrix to keep as Cartesian components (mixed coordinates).
    pub cartesian: Vec<usize>,
    /// Torsions to treat as rotatable whatever the frames show, so that several designs share one latent space: indices
    /// of generator coordinates, of which the torsions are the last.
    pub turning: Vec<usize>,
    /// Whether the flow follows the temperature; all couplings of the stiff coordinates are then affine and
    /// volume-preserving.
    pub steerable: bool,
    pub seed: u64,
}

impl Default for DesignOptions {
    fn default() -> DesignOptions {
        DesignOptions {
            torsion_rounds: 3,
            affine_rounds: 3,
            spline_rounds: 1,
            hidden: vec![128, 128],
            torsion_hidden: vec![64, 64],
            bins: 8,
            harmonics: 3,
            cartesian: Vec::new(),
            turning: Vec::new(),
            steerable: false,
            seed: 1,
        }
    }
}

/// A torsion is stiff if this fraction of frames lies within [`STIFF_WINDOW`] of its circular mean.
const STIFF_SHARE: f64 = 0.999;
/// In turns: a fifth of a turn.
const STIFF_WINDOW: f64 = 0.2;
/// Largest number of rounds of layers of one kind; each round has two layers.
const MOST_ROUNDS: usize = 1000;
/// Half-width of the splines of stiff coordinates, in standard deviations; they are the identity beyond.
const SPLINE_REACH: f64 = 4.0;

/// Builds an untrained flow for a molecule from frames `x[n][atoms][3]` (nm). `constraints` lists bonds of constant
/// length.
///
/// Errors: a disconnected molecule (names the atoms), a constraint that is no bond of the z-matrix, too few usable
/// frames.
pub fn design(
    topology: &Topology,
    frames: &[f64],
    constraints: &[(usize, usize, f64)],
    options: &DesignOptions,
) -> Result<CouplingFlow<f32>> {
    let dimension = 3 * topology.n_atoms();
    if frames.len() < dimension || !frames.len().is_multiple_of(dimension) {
        return Err(Error::invalid(format!(
            "found {} numbers, expected whole frames of {} atoms",
            frames.len(),
            topology.n_atoms()
        )));
    }
    let (config, coordinates) = coordinates_of(topology, &frames[..dimension], constraints, options)?;
    let u = encode(&coordinates, frames, dimension);
    let d = coordinates.dimension_u();
    if u.len() < 4 * d * d {
        let why = broken_constraint(topology, frames, constraints);
        let (usable, n) = (u.len() / d, frames.len() / dimension);
        return Err(Error::invalid(format!(
            "{usable} of {n} frames are usable, too few to fit {d} coordinates{why}; at least {} are required",
            4 * d
        )));
    }
    of_coordinates(topology, config, (&u, d), options)
}

/// Checks that [`design`] will need nothing further except frames, before these are made, which takes long.
/// `x0[atoms][3]` in nm.
///
/// Errors: those of [`design`].
pub fn check_design(
    topology: &Topology,
    x0: &[f64],
    constraints: &[(usize, usize, f64)],
    options: &DesignOptions,
) -> Result<()> {
    let (config, coordinates) = coordinates_of(topology, x0, constraints, options)?;
    let d = coordinates.dimension_u();
    let mut stream = Stream::new(options.seed, StreamId::Initialise, 0, 0);
    let u: Vec<f64> = (0..4 * d * d).map(|_| stream.uniform()).collect();
    of_coordinates(topology, config, (&u, d), options).map(drop)
}

/// Internal coordinates of the molecule, with the chirality it has at `x[atoms][3]`.
fn coordinates_of(
    topology: &Topology,
    x: &[f64],
    constraints: &[(usize, usize, f64)],
    options: &DesignOptions,
) -> Result<(CoordinatesConfig, Coordinates)> {
    let DesignOptions { torsion_rounds, affine_rounds, spline_rounds, .. } = *options;
    let rounds = [("torsion", torsion_rounds), ("affine", affine_rounds), ("spline", spline_rounds)];
    if let Some((name, n)) = rounds.iter().find(|(_, n)| *n > MOST_ROUNDS) {
        return Err(Error::invalid(format!("`{name}_rounds` = {n}: must be at most {MOST_ROUNDS}")));
    }
    let zmatrix = ZMatrix::automatic(topology)?;
    let config = CoordinatesConfig::Internal {
        frame: zmatrix.frame,
        rows: zmatrix.rows,
        normalize_angles: true,
        constraints: constraints.to_vec(),
        stereocentres: chirality::stereocentres(topology, x),
        cartesian: options.cartesian.clone(),
    };
    let coordinates = Coordinates::new(&config, |a| topology.label(a))?;
    let d = coordinates.dimension_u();
    let torsions = d + 3 - topology.n_atoms()..d;
    match options.turning.iter().find(|i| !torsions.contains(i)) {
        None => Ok((config, coordinates)),
        Some(i) => Err(Error::invalid(format!(
            "`turning`: coordinate {i} of the generator is not a torsion; the torsions of this molecule are {} to {}",
            torsions.start,
            d - 1
        ))),
    }
}

/// Builds an untrained flow from generator coordinates `u[n][d]` of frames.
fn of_coordinates(
    topology: &Topology,
    config: CoordinatesConfig,
    (u, d): (&[f64], usize),
    options: &DesignOptions,
) -> Result<CouplingFlow<f32>> {
    let n_torsions = topology.n_atoms() - 3;
    let (turning, centres) = classify(u, d, n_torsions, options);
    let layers = layers(u, d, n_torsions, &turning, &centres, options)?;
    let card = ModelCard {
        topology: Some(topology.clone()),
        steering: options.steerable.then_some(SteeringConfig { auxiliary: 0 }),
        ..ModelCard::of_coupling(CouplingConfig { uniform: turning, layers }, config)
    };
    let mut flow = CouplingFlow::new(card)?;
    flow.initialise(options.seed);
    Ok(flow)
}

/// Generator coordinates of those frames that have them.
fn encode(coordinates: &Coordinates, frames: &[f64], dimension: usize) -> Vec<f64> {
    let d = coordinates.dimension_u();
    let mut u = Vec::with_capacity(frames.len() / dimension * d);
    let mut row = vec![0.0; d];
    for x in frames.chunks_exact(dimension) {
        if coordinates.encode(x, &mut row).1 == Status::Inside {
            u.extend_from_slice(&row);
        }
    }
    u
}

/// Describes the first constrained bond that has another length in some frames; empty if there is none.
fn broken_constraint(topology: &Topology, frames: &[f64], constraints: &[(usize, usize, f64)]) -> String {
    for &(i, j, kept) in constraints {
        let lengths = frames.chunks_exact(3 * topology.n_atoms()).map(|x| distance(x, i, j));
        let is_broken = |length: &f64| (length / kept - 1.0).abs() > CONFIGURATION_TOLERANCE;
        if let Some(length) = lengths.clone().find(is_broken) {
            return format!(
                ": the System constrains {} - {} to {kept} nm, but in {} of {} frames it has another length, such as {length:.5} nm; \
                 constraints and frames must be of the same force field, and frames must have more than the three decimals of gro and most xtc \
                 files (use trr, dcd, or xtc with a higher precision)",
                topology.label(i),
                topology.label(j),
                lengths.filter(is_broken).count(),
                frames.len() / (3 * topology.n_atoms())
            );
        }
    }
    String::new()
}

/// Signed distance on the circle of circumference one.
fn turn(a: f64) -> f64 {
    a - a.round()
}

/// Indices of the rotatable torsions, and the circular mean of every torsion. Torsions are the last coordinates.
fn classify(u: &[f64], d: usize, n_torsions: usize, options: &DesignOptions) -> (Vec<usize>, Vec<f64>) {
    let n = (u.len() / d) as f64;
    let mut turning = Vec::new();
    let mut centres = Vec::with_capacity(n_torsions);
    for i in d - n_torsions..d {
        let values = || u.iter().skip(i).step_by(d);
        let (sin, cos) = values().fold((0.0, 0.0), |(s, c), v| (s + (2.0 * PI * v).sin(), c + (2.0 * PI * v).cos()));
        let centre = f64::atan2(sin, cos) / (2.0 * PI);
        if options.cartesian.contains(&(i + n_torsions - d)) {
            centres.push(0.0); // no torsion stands here
            continue;
        }
        let within = values().filter(|&&v| turn(v - centre).abs() < STIFF_WINDOW).count() as f64;
        if within < STIFF_SHARE * n || options.turning.contains(&i) {
            turning.push(i);
        }
        centres.push(centre);
    }
    (turning, centres)
}

/// One design per set of frames, all sharing one latent space: a torsion that is rotatable in any is rotatable in all.
///
/// Errors: those of [`design`].
pub fn designs(
    topology: &Topology,
    frames: &[Vec<f64>],
    constraints: &[(usize, usize, f64)],
    options: &DesignOptions,
) -> Result<Vec<CouplingFlow<f32>>> {
    let all = |options: &DesignOptions| -> Result<Vec<CouplingFlow<f32>>> {
        frames.iter().map(|frames| design(topology, frames, constraints, options)).collect()
    };
    let turns =
        |flow: &CouplingFlow<f32>| (0..flow.latent_dimension()).filter(|&i| flow.is_uniform(i)).collect::<Vec<_>>();
    let turning = all(options)?.iter().flat_map(turns).collect();
    all(&DesignOptions { turning, ..options.clone() })
}

fn layers(
    u: &[f64],
    d: usize,
    n_torsions: usize,
    turning: &[usize],
    centres: &[f64],
    options: &DesignOptions,
) -> Result<Vec<LayerConfig>> {
    let stiff: Vec<usize> = (0..d).filter(|i| !turning.contains(i)).collect();
    let is_torsion = |i: usize| i >= d - n_torsions && !options.cartesian.contains(&(i + n_torsions - d));
    let wrapped: Vec<usize> = stiff.iter().copied().filter(|&i| is_torsion(i)).collect();
    // the mean of a wrapped torsion is moved to half a turn
    let shift: Vec<f64> = wrapped.iter().map(|&i| centres[i + n_torsions - d] - 0.5).collect();
    let (mean, matrix) = whitening(u, d, &stiff, |i, v| match wrapped.iter().position(|&w| w == i) {
        Some(w) => (v - shift[w]).rem_euclid(1.0),
        None => v,
    })?;
    let mut layers = torsion_layers(turning, &stiff, options);
    layers.extend(stiff_layers(&stiff, turning, options));
    layers.push(LayerConfig::Whiten { transformed: stiff, mean, matrix });
    if !wrapped.is_empty() {
        layers.push(LayerConfig::Wrap { transformed: wrapped, shift });
    }
    Ok(layers)
}

/// Circular spline couplings between two halves of the rotatable torsions, with learned shifts between them. A single
/// torsion is conditioned on the latent variables of the stiff coordinates.
fn torsion_layers(turning: &[usize], stiff: &[usize], options: &DesignOptions) -> Vec<LayerConfig> {
    let mut layers = Vec::new();
    let spline = |transformed: &[usize], periodic: &[usize], plain: &[usize]| LayerConfig::Spline {
        transformed: transformed.to_vec(),
        features: Features { periodic: periodic.to_vec(), harmonics: options.harmonics, plain: plain.to_vec() },
        ends: Ends::Circular,
        bins: options.bins.max(8) * 2,
        interval: [0.0, 1.0],
        hidden: options.torsion_hidden.clone(),
        activation: Activation::Silu,
        identity_init: true,
    };
    if turning.len() < 2 {
        // a steerable flow preserves the volume of the stiff coordinates, whose variance would affect the torsion
        if turning.len() == 1 && !stiff.is_empty() && !options.steerable {
            layers.push(spline(turning, &[], stiff));
            layers.push(LayerConfig::Shift { transformed: turning.to_vec() });
        }
        return layers;
    }
    for round in 0..options.torsion_rounds {
        // halves differ from round to round, so that every pair of torsions meets
        let side = |&(k, _): &(usize, &usize)| (k >> (round % 2)) % 2 == 0;
        let (a, b): (Vec<_>, Vec<_>) = turning.iter().enumerate().partition(side);
        let strip = |list: Vec<(usize, &usize)>| list.into_iter().map(|(_, &i)| i).collect::<Vec<_>>();
        let (a, b) = (strip(a), strip(b));
        if a.is_empty() || b.is_empty() {
            continue;
        }
        for (moved, seen) in [(&a, &b), (&b, &a)] {
            layers.push(spline(moved, seen, &[]));
        }
        layers.push(LayerConfig::Shift { transformed: turning.to_vec() });
    }
    layers
}

/// Couplings of each half of the stiff coordinates given the other half and all rotatable torsions.
fn stiff_layers(stiff: &[usize], turning: &[usize], options: &DesignOptions) -> Vec<LayerConfig> {
    let affine = |transformed: &[usize], features: Features, preserve_volume: bool| LayerConfig::Affine {
        transformed: transformed.to_vec(),
        features,
        hidden: options.hidden.clone(),
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume,
    };
    let mut layers = Vec::new();
    for round in 0..options.spline_rounds + options.affine_rounds {
        let side = |&(k, _): &(usize, &usize)| match round % 3 {
            0 => k % 2 == 0,
            1 => k % 4 < 2,
            _ => (k % 4 == 0) || (k % 4 == 3),
        };
        let (a, b): (Vec<_>, Vec<_>) = stiff.iter().enumerate().partition(side);
        let strip = |list: Vec<(usize, &usize)>| list.into_iter().map(|(_, &i)| i).collect::<Vec<_>>();
        let (a, b) = (strip(a), strip(b));
        for (moved, seen) in [(&a, &b), (&b, &a)] {
            let features = Features { periodic: turning.to_vec(), harmonics: options.harmonics, plain: seen.clone() };
            if moved.is_empty() || features.is_empty() {
                continue;
            }
            layers.push(if round < options.spline_rounds && !options.steerable {
                LayerConfig::Spline {
                    transformed: moved.clone(),
                    features,
                    ends: Ends::Linear,
                    bins: options.bins,
                    interval: [-SPLINE_REACH, SPLINE_REACH],
                    hidden: options.hidden.clone(),
                    activation: Activation::Silu,
                    identity_init: true,
                }
            } else {
                affine(moved, features, options.steerable)
            });
        }
    }
    if options.steerable && !turning.is_empty() && !stiff.is_empty() {
        // widths that differ between basins of the torsions
        let features = Features { periodic: turning.to_vec(), harmonics: options.harmonics, plain: vec![] };
        layers.push(affine(stiff, features, false));
    }
    layers
}

/// Mean and Cholesky factor of the covariance of the chosen coordinates, after `map`. Errors: a coordinate that does
/// not vary.
fn whitening(u: &[f64], d: usize, chosen: &[usize], map: impl Fn(usize, f64) -> f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let (n, m) = (u.len() / d, chosen.len());
    let values: Vec<f64> =
        u.chunks_exact(d).flat_map(|row| chosen.iter().map(|&i| map(i, row[i])).collect::<Vec<_>>()).collect();
    let mut mean = vec![0.0; m];
    values.chunks_exact(m).for_each(|row| mean.iter_mut().zip(row).for_each(|(s, v)| *s += v / n as f64));
    let mut covariance = vec![0.0; m * m];
    for row in values.chunks_exact(m) {
        for i in 0..m {
            let a = (row[i] - mean[i]) / n as f64;
            (0..=i).for_each(|j| covariance[i * m + j] += a * (row[j] - mean[j]));
        }
    }
    // Cholesky, in place in the lower triangle
    for i in 0..m {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| covariance[i * m + k] * covariance[j * m + k]).sum();
            let rest = covariance[i * m + j] - sum;
            covariance[i * m + j] = if i == j { rest.sqrt() } else { rest / covariance[j * m + j] };
        }
        let varies = covariance[i * m + i] > 1e-9; // false for NaN too
        if !varies {
            return Err(Error::invalid(format!(
                "generator coordinate {} does not vary in the frames; it may be constrained, or there are too few frames",
                chosen[i]
            )));
        }
    }
    Ok((mean, covariance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::vector::{atom, torsion};
    use crate::density::{Density, Evaluation};
    use crate::train::{Phase, TrainOptions, Trainer};
    use std::path::Path;

    fn pdb() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2/topology.pdb")
    }

    fn ala2() -> Topology {
        Topology::from_pdb(&pdb()).unwrap().0
    }

    /// One configuration of alanine dipeptide with small independent displacements.
    fn frames(topology: &Topology) -> Vec<f64> {
        let (_, x0) = Topology::from_pdb(&pdb()).unwrap();
        assert_eq!(x0.len(), 3 * topology.n_atoms());
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        (0..16_000).flat_map(|_| x0.iter().map(|x| x + 0.004 * stream.normal()).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn an_untrained_design_is_a_density_near_its_frames() {
        let topology = ala2();
        let x = frames(&topology);
        for (cartesian, steerable) in [(vec![], false), (vec![0, 1], false), (vec![], true)] {
            let options = DesignOptions { cartesian, steerable, ..DesignOptions::default() };
            let flow = design(&topology, &x, &[], &options).unwrap();
            assert_eq!(crate::models::Model::steering(&flow).is_some(), steerable);
            assert_eq!(crate::models::Flow::latent_dimension(&flow), 60);
            let mut log_q = vec![Evaluation::inside(0.0); 200];
            flow.log_density(&x[..66 * 200], &mut log_q).unwrap();
            assert!(log_q.iter().all(|e| e.is_inside()));
            let mut y = vec![0.0; 66 * 200];
            flow.sample(&|row| Stream::new(2, StreamId::Test, row as u64, 0), &mut y, &mut log_q).unwrap();
            assert!(log_q.iter().filter(|e| e.is_inside()).count() > 190);
        }
    }

    /// H-O-O-H, whose torsion is near a quarter of a turn on either side.
    #[test]
    fn the_one_turning_torsion_of_a_molecule_is_learned() {
        let mut topology = Topology {
            names: ["H1", "O1", "O2", "H2"].map(String::from).to_vec(),
            elements: ["H", "O", "O", "H"].map(String::from).to_vec(),
            residues: vec!["HOH1".into(); 4],
            ..Topology::default()
        };
        topology.set_bonds([[0, 1], [1, 2], [2, 3]]);
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let mut frame = || {
            let side = if stream.uniform() < 0.5 { 1.0 } else { -1.0 };
            let phi: f64 = side * 0.5 * PI + 0.2 * stream.normal();
            let mut near = |x: f64| x + 0.003 * stream.normal();
            let (a, b, length) = (near(0.1), near(0.1), near(0.15));
            let (c, d) = (near(0.03), near(0.03));
            vec![b, 0.0, -c, 0.0, 0.0, 0.0, 0.0, 0.0, length, a * phi.cos(), a * phi.sin(), length + d]
        };
        let frames: Vec<f64> = (0..4000).flat_map(|_| frame()).collect();
        let sizes = DesignOptions { torsion_hidden: vec![16], hidden: vec![16], ..DesignOptions::default() };
        let flow = design(&topology, &frames, &[], &sizes).unwrap();
        let phase = Phase { steps: 300, batch: 256, rate: 5e-3, ..Phase::default() };
        let options = TrainOptions { phases: vec![phase], average: 0.98, ..TrainOptions::default() };
        let mut trainer = Trainer::new(flow, &frames, None, options).unwrap();
        while !trainer.is_finished() {
            trainer.step().unwrap();
        }
        let n = 2000;
        let (mut x, mut log_q) = (vec![0.0; 12 * n], vec![Evaluation::inside(0.0); n]);
        let streams = |row: usize| Stream::new(2, StreamId::Sample, row as u64, 0);
        trainer.averaged().unwrap().sample(&streams, &mut x, &mut log_q).unwrap();
        let is_near = |x: &[f64]| {
            let [i, j, k, l] = [0, 1, 2, 3].map(|a| atom(x, a));
            (torsion(i, j, k, l).abs() - 0.5 * PI).abs() < 0.6
        };
        let near = x.chunks_exact(12).filter(|x| is_near(x)).count() as f64 / n as f64;
        assert!(near > 0.9, "{near}, and 0.38 of a uniform torsion");
    }

    #[test]
    fn what_a_design_lacks_is_found_without_frames() {
        let (topology, x0) = Topology::from_pdb(&pdb()).unwrap();
        let complaint = |constraints: &[(usize, usize, f64)], options: DesignOptions| {
            check_design(&topology, &x0, constraints, &options).unwrap_err().to_string()
        };
        check_design(&topology, &x0, &[], &DesignOptions::default()).unwrap();
        assert!(complaint(&[(1, 2, 0.17)], DesignOptions::default()).contains("not a bond of the z-matrix"));
        let of = |turning: Vec<usize>| DesignOptions { turning, ..DesignOptions::default() };
        assert!(complaint(&[], of(vec![3])).contains("coordinate 3 of the generator is not a torsion"));
        assert!(complaint(&[], DesignOptions { cartesian: vec![99], ..of(vec![]) }).contains("99"));
        assert!(!complaint(&[], DesignOptions { bins: 1, ..of(vec![]) }).is_empty());
    }

    #[test]
    fn frames_that_break_a_constraint_are_not_used() {
        let topology = ala2();
        let error = design(&topology, &frames(&topology), &[(0, 1, 0.109)], &DesignOptions::default()).err();
        let message = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(
            message.contains("frames are usable, too few to fit 59 coordinates: the System constrains"),
            "{message}"
        );
        assert!(message.contains("to 0.109 nm, but in 1") && message.contains("of 16000 frames"), "{message}");
    }
}
