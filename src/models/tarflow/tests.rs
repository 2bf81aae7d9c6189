use super::*;
use crate::coordinates::AtomOrder;
use crate::models::layout::Start;
use crate::rng::StreamId;

/// Random parameters, small in the last layers so that e^a stays bounded.
fn parameters(network: &TarNetwork, seed: u64) -> Vec<f64> {
    let special = |name: &str, _: &[usize]| name.contains("proj_out").then_some(Start::Within(0.1));
    network.layout().initialise(&mut Stream::new(seed, StreamId::Test, 0, 0), special)
}

fn small(token_size: usize, centroid: Option<f64>) -> TarFlow<f64> {
    let network = TarFlowConfig {
        tokens: 12 / token_size,
        token_size,
        channels: 8,
        blocks: 3,
        layers: 2,
        heads: 2,
        expansion: 2,
    };
    let config = Config { network, units_per_nm: 4.0, centroid, stereocentres: vec![] };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let parameters = parameters(&network, 3);
    let card = ModelCard::of_cartesian(config.clone(), 12);
    TarFlow::new(parameters, config, card, String::new()).unwrap()
}

fn config_of(flow: &TarFlow<f64>) -> Config {
    match &flow.card.model {
        ModelConfig::Tarflow(config) => config.clone(),
        other => panic!("{}", other.kind()),
    }
}

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

fn log_q(flow: &TarFlow<f64>, x: &[f64]) -> f64 {
    let mut evaluation = [Evaluation::inside(0.0)];
    flow.log_density(x, &mut evaluation).unwrap();
    evaluation[0].log_density
}

#[test]
fn decoding_inverts_the_network_and_both_agree_on_log_q() {
    for token_size in [1, 2, 3] {
        let flow = small(token_size, None);
        let n = 5;
        let z = normals(12 * n, 1);
        let (mut x, mut back) = (vec![0.0; z.len()], vec![0.0; z.len()]);
        let (mut there, mut here) = (vec![0.0; n], vec![0.0; n]);
        let nowhere = Evaluation::outside(Status::NonFinite);
        let (mut p, mut q) = (vec![nowhere; n], vec![nowhere; n]);
        flow.generate(&z, &mut x, &mut there, &mut p).unwrap();
        flow.encode(&x, &mut back, &mut here, &mut q).unwrap();
        for (a, b) in back.iter().zip(&z).chain(here.iter().zip(&there)) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        assert!(p.iter().zip(&q).all(|(p, q)| (p.log_density - q.log_density).abs() < 1e-12));
        assert!(x.iter().zip(&z).any(|(x, z)| (4.0 * x - z).abs() > 0.05), "the network does something");
        // ln|∂x/∂z| of the first sample from differences
        let h = 1e-6;
        let jacobian = nalgebra::DMatrix::from_fn(12, 12, |i, j| {
            let mut ends = [1.0, -1.0].map(|sign| {
                let mut z = z[..12].to_vec();
                z[j] += sign * h;
                let mut x = vec![0.0; 12];
                flow.generate(&z, &mut x, &mut [0.0], &mut [nowhere]).unwrap();
                x[i]
            });
            ends[0] -= ends[1];
            ends[0] / (2.0 * h)
        });
        assert!((jacobian.determinant().abs().ln() - there[0]).abs() < 1e-7);
    }
}

/// x, ln|∂x/∂z| and log q of latent points.
fn generated(flow: &TarFlow<f64>, z: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n = z.len() / flow.dimension();
    let (mut x, mut log_det) = (vec![0.0; z.len()], vec![0.0; n]);
    let mut evaluations = vec![Evaluation::outside(Status::NonFinite); n];
    flow.generate(z, &mut x, &mut log_det, &mut evaluations).unwrap();
    (x, log_det, evaluations.iter().map(|e| e.log_density).collect())
}

fn by_iteration(flow: &TarFlow<f64>, how: Jacobi) -> TarFlow<f64> {
    flow.with_options(Options { decoding: Decoding::Jacobi(how), ..Options::default() }).unwrap()
}

/// A single token is unchanged, since none precedes it.
#[test]
fn a_single_token_has_the_normal_density() {
    let flow = small(12, None);
    let x = normals(12, 8);
    let (mut z, mut log_det, mut found) = (vec![0.0; 12], [0.0], [Evaluation::inside(0.0)]);
    flow.encode(&x, &mut z, &mut log_det, &mut found).unwrap();
    assert!(z.iter().zip(&x).all(|(z, x)| *z == 4.0 * x) && (log_det[0] + 12.0 * 4f64.ln()).abs() < 1e-12);
    assert_eq!(generated(&flow, &z).0, x);
}

#[test]
fn decoding_by_iteration_gives_the_samples_of_decoding_in_turn() {
    let flows = [small(1, None), small(3, Some(0.5)), transferable(VARIANTS[1], &GLYCINE)];
    for flow in flows {
        let (n, d) = (5, flow.dimension());
        let z = normals(d * n, 1);
        let (x, log_det, log_q) = generated(&flow, &z);
        for segment in [1, 3, usize::MAX] {
            let together = by_iteration(&flow, Jacobi { segment, tolerance: 1e-9, passes: 1000 });
            let (y, log_det_y, log_q_y) = generated(&together, &z);
            for (a, b) in y.iter().zip(&x).chain(log_det_y.iter().zip(&log_det)).chain(log_q_y.iter().zip(&log_q)) {
                assert!((a - b).abs() < 1e-8, "segments of {segment}: {a} {b}");
            }
            let Decoded { samples, passes, fallbacks } = together.decoded();
            let turns = (n * flow.network.blocks.len() * (flow.network.config().tokens - 1)) as u64;
            assert_eq!((samples, fallbacks), (n as u64, 0));
            assert!(if segment == 1 { passes == turns } else { passes <= turns }, "{passes} passes, {turns} turns");
            // equal, to the last bit, to the likelihood of x and to the sample alone
            let mut again = vec![Evaluation::inside(0.0); n];
            together.log_density(&y, &mut again).unwrap();
            assert!(again.iter().zip(&log_q_y).all(|(a, q)| (a.log_density - q).abs() < 1e-12));
            let alone = generated(&together, &z[2 * d..3 * d]);
            assert_eq!((&alone.0[..], alone.2[0]), (&y[2 * d..3 * d], log_q_y[2]));
        }
    }
}

#[test]
fn what_does_not_come_to_rest_is_decoded_in_turn() {
    let flow = small(1, None);
    let z = normals(12 * 4, 1);
    let expected = generated(&flow, &z);
    // too few passes, and a tolerance below the rounding errors of the encoding
    for how in [
        Jacobi { passes: 2, tolerance: 1e-12, ..Jacobi::default() },
        Jacobi { passes: 1000, tolerance: 1e-20, ..Jacobi::default() },
    ] {
        let together = by_iteration(&flow, how);
        assert_eq!(generated(&together, &z), expected);
        assert_eq!((together.decoded().samples, together.decoded().fallbacks), (4, 4));
    }
    for (how, word) in [
        (Jacobi { segment: 0, ..Jacobi::default() }, "segments of 0"),
        (Jacobi { passes: 0, ..Jacobi::default() }, "0 passes"),
        (Jacobi { tolerance: f64::NAN, ..Jacobi::default() }, "tolerance NaN"),
        (Jacobi { tolerance: 0.01, ..Jacobi::default() }, "use 0.001 or less"),
    ] {
        let options = Options { decoding: Decoding::Jacobi(how), ..Options::default() };
        assert!(flow.with_options(options).err().unwrap().to_string().contains(word));
    }
}

/// Samples and configurations of the wrong hand have zero density; log q of the others is unchanged.
#[test]
fn a_wrong_hand_has_no_density() {
    let free = small(3, None);
    let hand = |centre| Config {
        stereocentres: vec![Stereocentre { centre, neighbours: [1, 2, 3], positive: true }],
        ..config_of(&free)
    };
    let build = |config: Config| {
        let card = ModelCard { model: ModelConfig::Tarflow(config.clone()), ..free.card.clone() };
        TarFlow::new(free.parameters.to_vec(), config, card, String::new())
    };
    let flow = build(hand(0)).unwrap();
    let z = normals(12 * 16, 1);
    let (mut x, mut log_det) = (vec![0.0; z.len()], vec![0.0; 16]);
    let (mut drawn, mut all, mut found) =
        ([Evaluation::inside(0.0); 16], [Evaluation::inside(0.0); 16], [Evaluation::inside(0.0); 16]);
    free.generate(&z, &mut x, &mut log_det, &mut all).unwrap();
    flow.generate(&z, &mut x, &mut log_det, &mut drawn).unwrap();
    let mut gradient = vec![0.0; x.len()];
    flow.log_density_gradient(&x, &mut found, &mut gradient).unwrap();
    let mut wrong = 0;
    for (row, x) in x.chunks_exact(12).enumerate() {
        let expected = match hand(0).stereocentres[0].holds(x) {
            true => all[row],
            false => Evaluation::outside(Status::WrongChirality),
        };
        wrong += usize::from(!expected.is_inside());
        assert_eq!((drawn[row], found[row].status), (expected, expected.status));
        assert!(expected.is_inside() || gradient[12 * row..][..12].iter().all(|g| *g == 0.0));
        let image: Vec<f64> = x.iter().map(|v| -v).collect();
        assert_eq!(log_q(&flow, &image).is_finite(), !expected.is_inside());
    }
    assert!((1..16).contains(&wrong), "{wrong}");
    assert!(build(hand(4)).err().unwrap().to_string().contains("atom 5, but the model has 4"));
}

#[test]
fn a_file_cannot_ask_for_more_layers_than_there_are_in_earnest() {
    let config = config_of(&small(3, None)).network;
    let message = TarNetwork::new(TarFlowConfig { blocks: 64, layers: 256, ..config }).err().unwrap().to_string();
    assert!(message.contains("blocks x layers = 16384"), "{message}");
}

/// A single sample reads the weights as bfloat16; a likelihood, and samples together, read the same values as f32.
#[test]
fn a_model_with_bfloat16_weights_is_the_model_of_the_rounded_ones() {
    let full = small(3, Some(0.5));
    let matrix: Vec<f32> = full.parameters().iter().map(|&p| p as f32).collect();
    let cast = |p: Vec<f32>| TarFlow::<f32>::new(p, config_of(&full), full.card.clone(), "hash".into()).unwrap();
    let of_halves = cast(matrix.clone()).with_bfloat16_weights().unwrap();
    assert_eq!(of_halves.hash(), "hash");
    let changed = |(a, b): (&f32, &f32)| (a - b).abs() > 0.0;
    let pairs = || of_halves.parameters().iter().zip(&matrix);
    assert!(pairs().all(|(a, b)| (a - b).abs() <= b.abs() / 256.0) && pairs().filter(|&p| changed(p)).count() > 100);
    let rounded = cast(of_halves.parameters().to_vec());
    let z = normals(36, 6);
    let run = |flow: &TarFlow<f32>, z: &[f64]| {
        let n = z.len() / 12;
        let (mut x, mut log_det) = (vec![0.0; z.len()], vec![0.0; n]);
        let mut log_q = vec![Evaluation::inside(0.0); n];
        flow.generate(z, &mut x, &mut log_det, &mut log_q).unwrap();
        let mut asked = log_q.clone();
        flow.log_density(&x, &mut asked).unwrap();
        for (a, b) in asked.iter().zip(&log_q) {
            assert!((a.log_density - b.log_density).abs() < 2e-5, "{a:?} {b:?}");
        }
        (x, log_det, log_q)
    };
    assert!(run(&of_halves, &z) == run(&rounded, &z) && run(&of_halves, &z[..12]) == run(&rounded, &z[..12]));
    let one = run(&of_halves, &z[..12]).2[0].log_density;
    let exact = run(&cast(matrix.clone()), &z[..12]).2[0].log_density;
    assert!((one - exact).abs() < 0.1 && one != exact, "{one} {exact}");
}

#[test]
fn the_gradient_matches_differences() {
    let options = Options { centroid: Centroid::Chi3, ..Options::default() };
    for flow in [small(3, None), small(3, Some(0.5)), small(3, Some(0.5)).with_options(options).unwrap()] {
        let x: Vec<f64> = normals(24, 2).iter().map(|v| 0.3 * v).collect();
        let (mut evaluations, mut gradient) = ([Evaluation::inside(0.0); 2], vec![0.0; 24]);
        flow.log_density_gradient(&x, &mut evaluations, &mut gradient).unwrap();
        for row in 0..2 {
            let x = &x[12 * row..12 * (row + 1)];
            assert!((evaluations[row].log_density - log_q(&flow, x)).abs() < 1e-12);
            for k in 0..12 {
                let [above, below] = [1e-6, -1e-6].map(|h| {
                    let mut x = x.to_vec();
                    x[k] += h;
                    log_q(&flow, &x)
                });
                let difference = (above - below) / 2e-6;
                assert!((gradient[12 * row + k] - difference).abs() < 1e-6 * difference.abs().max(1.0));
            }
        }
    }
}

#[test]
fn the_density_is_normalised() {
    // two coordinates: one token at a time, over a grid
    let network = TarFlowConfig { tokens: 2, token_size: 1, channels: 4, blocks: 2, layers: 1, heads: 1, expansion: 2 };
    let config = Config { network, units_per_nm: 2.0, centroid: None, stereocentres: vec![] };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let parameters = parameters(&network, 7);
    let mut card = ModelCard::of_cartesian(config.clone(), 3);
    card.coordinates = CoordinatesConfig::Cartesian { dimension: 2 };
    let flow = TarFlow::new(parameters, config, card, String::new()).unwrap();
    let (n, reach) = (400, 6.0);
    let at = |i: usize| reach * (2.0 * (i as f64 + 0.5) / n as f64 - 1.0);
    let x: Vec<f64> = (0..n * n).flat_map(|k| [at(k / n), at(k % n)]).collect();
    let mut evaluations = vec![Evaluation::inside(0.0); n * n];
    flow.log_density(&x, &mut evaluations).unwrap();
    let cell = (2.0 * reach / n as f64).powi(2);
    let total: f64 = evaluations.iter().map(|e| e.log_density.exp() * cell).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");
}

#[test]
fn a_new_network_is_the_identity_and_noise_of_the_centroid_is_taken_out() {
    // the density of the identity: normal with std 1/4 nm in 12 coordinates; its centroid has std 1/8 nm
    let flow = small(3, Some(0.5));
    let identity = flow.network.initial::<f64>(1);
    let flow = TarFlow::new(identity, config_of(&flow), flow.card.clone(), String::new()).unwrap();
    assert_eq!(flow.scope(), Scope::Noisy { sigma: 0.125 });
    let x: Vec<f64> = normals(12, 3).iter().map(|v| 0.25 * v).collect();
    let mut centred = x.clone();
    crate::coordinates::vector::centre(&mut centred);
    // the rest is the normal density of the nine centred coordinates, wherever the centroid is
    let expected = -8.0 * centred.iter().map(|v| v * v).sum::<f64>() - 4.5 * (LOG_2_PI - 2.0 * 4.0f64.ln());
    for x in [&x, &centred] {
        assert!((log_q(&flow, x) - expected).abs() < 1e-12);
    }
}

#[test]
fn a_perfect_model_keeps_all_effective_samples_with_gauss3_and_six_of_ten_with_chi3() {
    use crate::moves::{Generator, Independence};
    use crate::weights::{effective_sample_size, log_weights};
    let flow = small(3, Some(0.5));
    let identity = flow.network.initial::<f64>(1);
    let flow = TarFlow::new(identity, config_of(&flow), flow.card.clone(), String::new()).unwrap();
    let n = 50_000;
    let streams = |row: usize| Stream::new(8, StreamId::Test, row as u64, 0);
    // normal density with std 1/4 nm of the centred coordinates
    let u = |x: &[f64]| {
        let mut x = x.to_vec();
        crate::coordinates::vector::centre(&mut x);
        8.0 * x.iter().map(|v| v * v).sum::<f64>()
    };
    for (centroid, expected, error) in [(Centroid::Gauss3, 1.0, 1e-9), (Centroid::Chi3, 0.6, 0.015)] {
        let flow = flow.with_options(Options { centroid, ..Options::default() }).unwrap();
        let (mut x, mut log_q) = (vec![0.0; 12 * n], vec![Evaluation::inside(0.0); n]);
        flow.sample(&streams, &mut x, &mut log_q).unwrap();
        let u: Vec<f64> = x.chunks_exact(12).map(u).collect();
        let ess = effective_sample_size(&log_weights(&u, &log_q).unwrap()).unwrap() / n as f64;
        assert!((ess - expected).abs() < error, "{centroid:?}: {ess}");
        let model: Arc<dyn Model> = Arc::new(flow);
        match (centroid, Generator::of_model(&model, Default::default())) {
            (Centroid::Gauss3, generator) => drop(Independence::new(generator.unwrap())),
            (Centroid::Chi3, generator) => {
                assert!(generator.err().unwrap().to_string().contains("acceptance requires an exact density"))
            }
        }
    }
    let without = small(3, None).with_options(Options { centroid: Centroid::Chi3, ..Options::default() });
    assert!(without.err().unwrap().to_string().contains("no centroid noise"));
}

/// Glycine alone with charged ends, and followed by alanine.
const GLYCINE: [(&str, &str); 1] = [("GLY1", "N H H2 H3 CA HA2 HA3 C O OXT")];
const TWO: [(&str, &str); 2] = [("GLY1", "N H H2 H3 CA HA2 HA3 C O"), ("ALA2", "N H CA HA CB HB1 HB2 HB3 C O OXT")];

fn peptide(residues: &[(&str, &str)]) -> Topology {
    let mut topology = Topology::default();
    for (residue, names) in residues {
        for name in names.split_whitespace() {
            topology.names.push(name.into());
            topology.residues.push(residue.to_string());
            topology.elements.push(name[..1].into());
        }
    }
    topology
}

/// [lookahead, norms of queries and keys, adaptive, transition]: TarFlow, Prose, and combinations.
const VARIANTS: [[bool; 4]; 4] =
    [[false, true, false, false], [true; 4], [false, false, true, false], [true, false, false, false]];

fn transferable_config([lookahead, qk_norms, adaptive, transition]: [bool; 4]) -> transferable::Config {
    let orders = ["n2c_backbone-first_variant_flip", "n2c_residue-by-residue_standard", "c2n_backbone-first_standard"];
    let embedding =
        transferable::EmbeddingConfig { atom_types: 55, residue_types: 21, part: 6, hidden: 5, width: 4, base: 1e3 };
    let network = PeptideConfig {
        channels: 8,
        blocks: 4,
        layers: 2,
        heads: 2,
        expansion: 2,
        orders: orders.map(|order| order.parse().unwrap()).to_vec(),
        most_atoms: Some(20),
        embedding,
        lookahead,
        qk_norms,
        adaptive,
        transition,
    };
    transferable::Config { network, units_per_nm: 3.0, noisy_centroid: true, stereocentres: vec![] }
}

fn transferable_card(config: &transferable::Config, topology: Topology) -> ModelCard {
    let card = ModelCard::of_cartesian(config.clone(), 3 * topology.n_atoms());
    ModelCard { topology: Some(topology), ..card }
}

fn transferable(variant: [bool; 4], residues: &[(&str, &str)]) -> TarFlow<f64> {
    let (config, topology) = (transferable_config(variant), peptide(residues));
    let parameters = parameters(&TarNetwork::of_peptide(&config.network, &topology).unwrap(), 3);
    TarFlow::of_peptide(parameters, &config, transferable_card(&config, topology), "hash".into()).unwrap()
}

#[test]
fn decoding_inverts_transferable_networks_and_both_agree_on_log_q() {
    for variant in VARIANTS {
        let flow = transferable(variant, &GLYCINE);
        let (n, d) = (3, flow.dimension());
        assert_eq!(d, 30);
        let z = normals(d * n, 1);
        let (mut x, mut back) = (vec![0.0; z.len()], vec![0.0; z.len()]);
        let (mut there, mut here) = (vec![0.0; n], vec![0.0; n]);
        let nowhere = Evaluation::outside(Status::NonFinite);
        let (mut p, mut q) = (vec![nowhere; n], vec![nowhere; n]);
        flow.generate(&z, &mut x, &mut there, &mut p).unwrap();
        flow.encode(&x, &mut back, &mut here, &mut q).unwrap();
        for (a, b) in back.iter().zip(&z).chain(here.iter().zip(&there)) {
            assert!((a - b).abs() < 1e-12, "{variant:?}: {a} {b}");
        }
        assert!(p.iter().zip(&q).all(|(p, q)| (p.log_density - q.log_density).abs() < 1e-12));
        assert!(x.iter().zip(&z).any(|(x, z)| (3.0 * x - z).abs() > 0.05), "the network does something");
        // ln|∂x/∂z| of the first sample from differences
        let h = 1e-6;
        let column = |j: usize| {
            let ends = [h, -h].map(|step| {
                let (mut z, mut x) = (z[..d].to_vec(), vec![0.0; d]);
                z[j] += step;
                flow.generate(&z, &mut x, &mut [0.0], &mut [nowhere]).unwrap();
                x
            });
            nalgebra::DVector::from_fn(d, |i, _| (ends[0][i] - ends[1][i]) / (2.0 * h))
        };
        let jacobian = nalgebra::DMatrix::from_columns(&(0..d).map(column).collect::<Vec<_>>());
        assert!((jacobian.determinant().abs().ln() - there[0]).abs() < 1e-6, "{variant:?}");
    }
}

#[test]
fn gradients_of_transferable_networks_match_differences() {
    for variant in VARIANTS {
        let flow = transferable(variant, &GLYCINE);
        let x: Vec<f64> = normals(30, 2).iter().map(|v| 0.3 * v).collect();
        let (mut evaluation, mut gradient) = ([Evaluation::inside(0.0)], vec![0.0; 30]);
        flow.log_density_gradient(&x, &mut evaluation, &mut gradient).unwrap();
        assert!((evaluation[0].log_density - log_q(&flow, &x)).abs() < 1e-12);
        for k in 0..30 {
            let [above, below] = [1e-6, -1e-6].map(|h| {
                let mut x = x.clone();
                x[k] += h;
                log_q(&flow, &x)
            });
            let difference = (above - below) / 2e-6;
            assert!((gradient[k] - difference).abs() < 1e-6 * difference.abs().max(1.0), "{variant:?} {k}");
        }
    }
}

#[test]
fn single_precision_is_near_and_batches_do_not_matter() {
    let flow = transferable(VARIANTS[1], &TWO);
    let config = transferable_config(VARIANTS[1]);
    let narrow: Vec<f32> = flow.parameters().iter().map(|&p| p as f32).collect();
    let single = TarFlow::of_peptide(narrow, &config, flow.card().clone(), String::new()).unwrap();
    let (n, d) = (5, flow.dimension());
    let z = normals(d * n, 4);
    let run = |flow: &dyn Flow, z: &[f64]| {
        let n = z.len() / d;
        let (mut x, mut evaluations) = (vec![0.0; z.len()], vec![Evaluation::inside(0.0); n]);
        flow.generate(z, &mut x, &mut vec![0.0; n], &mut evaluations).unwrap();
        (x, evaluations.iter().map(|e| e.log_density).collect::<Vec<f64>>())
    };
    let (x, log_q) = run(&flow, &z);
    let (x32, log_q32) = run(&single, &z);
    assert!(x.iter().zip(&x32).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(log_q.iter().zip(&log_q32).all(|(a, b)| (a - b).abs() < 1e-3));
    // to the last bit
    let alone = run(&single, &z[2 * d..3 * d]);
    assert_eq!((alone.0.as_slice(), alone.1[0]), (&x32[2 * d..3 * d], log_q32[2]));
}

#[test]
fn a_new_transferable_network_is_the_identity() {
    for variant in VARIANTS {
        let flow = transferable(variant, &GLYCINE);
        let (config, card) = (transferable_config(variant), flow.card().clone());
        let flow = TarFlow::of_peptide(flow.network.initial::<f64>(1), &config, card, String::new()).unwrap();
        let sigma = 1.0 / 10f64.sqrt() / 3.0;
        assert!(matches!(flow.scope(), Scope::Noisy { sigma: s } if (s - sigma).abs() < 1e-15));
        let mut x: Vec<f64> = normals(30, 3).iter().map(|v| v / 3.0).collect();
        crate::coordinates::vector::centre(&mut x);
        // normal density of the 27 centred coordinates
        let expected = -4.5 * x.iter().map(|v| v * v).sum::<f64>() - 13.5 * (LOG_2_PI - 2.0 * 3f64.ln());
        assert!((log_q(&flow, &x) - expected).abs() < 1e-12);
    }
}

#[test]
fn a_bound_model_is_that_of_its_peptide() {
    for variant in VARIANTS {
        let one = transferable(variant, &GLYCINE);
        let two = one.bind(peptide(&TWO)).unwrap();
        let config = transferable_config(variant);
        let fresh = TarFlow::of_peptide(one.parameters().to_vec(), &config, two.card().clone(), String::new()).unwrap();
        assert_eq!((two.dimension(), two.hash()), (60, ""));
        let x: Vec<f64> = normals(60, 6).iter().map(|v| 0.3 * v).collect();
        assert_eq!(log_q(&two, &x), log_q(&fresh, &x));
        let back = two.bind(peptide(&GLYCINE)).unwrap();
        assert_eq!(log_q(&back, &x[..30]), log_q(&one, &x[..30]));
    }
    assert!(small(3, None).bind(peptide(&GLYCINE)).is_err(), "a model of a single system");
}

#[test]
fn peptides_of_different_lengths_train_one_network() {
    use crate::train::likelihood::{negative_log_likelihood, negative_log_likelihood_of_all};
    let one = transferable(VARIANTS[1], &GLYCINE);
    let two = one.bind(peptide(&TWO)).unwrap();
    let (x, y) = (normals(3 * 30, 7), normals(60, 8));
    let run = |parts: &[(&TarNetwork, &[f64])]| {
        let mut gradient = vec![0.0; one.parameters().len()];
        (negative_log_likelihood_of_all(parts, one.parameters(), &mut gradient), gradient)
    };
    let (loss, gradient) = run(&[(one.network(), &x), (two.network(), &y)]);
    // three rows and one
    let (of_x, by_x) = run(&[(one.network(), &x)]);
    let (of_y, by_y) = run(&[(two.network(), &y)]);
    assert!((loss - 0.75 * of_x - 0.25 * of_y).abs() < 1e-12);
    for (g, (a, b)) in gradient.iter().zip(by_x.iter().zip(&by_y)) {
        assert!((g - 0.75 * a - 0.25 * b).abs() < 1e-12);
    }
    // and along a direction from differences
    let direction = normals(gradient.len(), 9);
    let [above, below] = [1e-6, -1e-6].map(|h| {
        let moved: Vec<f64> = one.parameters().iter().zip(&direction).map(|(p, d)| p + h * d).collect();
        let mut unused = vec![0.0; moved.len()];
        0.75 * negative_log_likelihood(one.network(), &moved, &x, &mut unused)
            + 0.25 * negative_log_likelihood(two.network(), &moved, &y, &mut unused)
    });
    let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
    assert!((slope - (above - below) / 2e-6).abs() < 1e-6 * slope.abs().max(1.0));
}

/// The drawn frame of the trainer's peptide, with or without emphasis, does not determine those of another peptide.
#[test]
fn frames_of_another_peptide_are_drawn_for_themselves() {
    use crate::train::likelihood::{OtherPeptide, Peptides};
    use crate::train::network_trainer::{Drawn, Objective};
    let one = transferable(VARIANTS[1], &GLYCINE);
    let two = one.bind(peptide(&TWO)).unwrap();
    let parameters: Vec<f32> = narrow(one.parameters());
    let d = two.network().dimension();
    // frames 0 to 3 are held out
    let loss = |usable: std::ops::Range<usize>, among: std::ops::Range<usize>| {
        let mut frames = vec![f64::NAN; 10 * d];
        frames[usable.start * d..usable.end * d].copy_from_slice(&normals(d * usable.len(), 4));
        let other = OtherPeptide { network: two.network().clone(), topology: peptide(&TWO), frames };
        let objective = Peptides { noisy_centroid: true, others: vec![other] };
        let drawn = Drawn { frames: vec![among.start; 32], among, x: normals(32 * 30, 5) };
        let mut stream = Stream::new(6, StreamId::Test, 0, 0);
        objective.loss(one.network(), &parameters, drawn, &mut stream, &mut vec![0.0; parameters.len()]).total
    };
    assert!(loss(4..10, 4..10).is_finite() && loss(0..4, 0..4).is_finite());
    assert!(loss(4..5, 4..10).is_nan(), "the frame that was drawn of the first peptide");
}

/// The published orders are those in the configurations of the golden data.
#[test]
fn published_orders_are_those_of_the_published_configurations() {
    for (adaptive, name) in [(true, "prose_tiny"), (false, "tarflow_transferable_tiny")] {
        let path = format!("{}/tests/golden/sbg/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        let config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let orders: Vec<AtomOrder> = serde_json::from_value(config["permutation_keys"].clone()).unwrap();
        assert_eq!(format::published_orders(adaptive), orders);
    }
}

#[test]
fn transferable_models_say_what_they_cannot_be() {
    let topology = || peptide(&GLYCINE);
    let build = |config: &transferable::Config, card: ModelCard| {
        let network = TarNetwork::of_peptide(&config.network, card.topology.as_ref().unwrap_or(&topology()))?;
        TarFlow::of_peptide(network.initial::<f32>(1), config, card, String::new()).map(drop)
    };
    for (change, word) in [
        (
            Box::new(|c: &mut transferable::Config| c.network.most_atoms = Some(9))
                as Box<dyn Fn(&mut transferable::Config)>,
            "atoms = 10",
        ),
        (Box::new(|c| c.network.orders.clear()), "`orders` is empty"),
        (Box::new(|c| c.network.adaptive = false), "transition"),
        (Box::new(|c| c.network.embedding.atom_types = 20), "tables of 20"),
        (Box::new(|c| c.network.embedding.base = 1.0), "base of the sinusoidal embedding"),
        (Box::new(|c| c.network.heads = 3), "3 heads"),
        (Box::new(|c| c.units_per_nm = f64::NAN), "positive"),
    ] {
        let mut config = transferable_config([true; 4]);
        change(&mut config);
        let message = build(&config, transferable_card(&config, topology())).unwrap_err().to_string();
        assert!(message.contains(word), "{word}: {message}");
    }
    let config = transferable_config([true; 4]);
    let caps = transferable_card(&config, peptide(&[("ACE1", "CH3 C O"), TWO[1]]));
    assert!(build(&config, caps).unwrap_err().to_string().contains("residue ACE1"));
    let nothing = ModelCard { topology: None, ..transferable_card(&config, topology()) };
    assert!(build(&config, nothing).unwrap_err().to_string().contains("--topology"));
}

#[test]
fn sizes_that_do_not_go_together_are_refused() {
    let config = config_of(&small(3, None));
    for (change, word) in [
        (Box::new(|c: &mut Config| c.network.heads = 3) as Box<dyn Fn(&mut Config)>, "3 heads"),
        (Box::new(|c| c.network.blocks = 0), "blocks"),
        (Box::new(|c| c.network.tokens = 5), "12 coordinates"),
        (Box::new(|c| c.units_per_nm = -1.0), "positive"),
        (Box::new(|c| c.centroid = Some(f64::NAN)), "positive"),
    ] {
        let mut config = config.clone();
        change(&mut config);
        let card = ModelCard::of_cartesian(config.clone(), 12);
        let built = TarNetwork::new(config.network.clone()).and_then(|network| {
            let parameters = network.initial::<f32>(1);
            TarFlow::new(parameters, config, card, String::new()).map(drop)
        });
        let message = built.err().map(|e| e.to_string()).unwrap_or_default();
        let word = if word == "12 coordinates" { "15 coordinates" } else { word };
        assert!(message.contains(word), "{word}: {message}");
    }
}
