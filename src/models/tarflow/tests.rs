use super::*;
use crate::models::ModelConfig;

/// Random parameters, of the last layers small ones: e^a must not run away.
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
    let config = Config { network, units_per_nm: 4.0, centroid };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let parameters = parameters(&network, 3);
    let card = ModelCard::of_cartesian(ModelConfig::Tarflow(config.clone()), 4);
    TarFlow::new(parameters, config, card, String::new()).unwrap()
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
        // ln|∂x/∂z| of the first sample by differences
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

#[test]
fn the_gradient_matches_differences() {
    for centroid in [None, Some(0.5)] {
        let flow = small(3, centroid);
        let x: Vec<f64> = normals(24, 2).iter().map(|v| 0.3 * v).collect();
        let (mut evaluations, mut gradient) = ([Evaluation::inside(0.0); 2], vec![0.0; 24]);
        flow.log_density_gradient(&x, &mut evaluations, &mut gradient).unwrap();
        for row in 0..2 {
            let x = &x[12 * row..12 * (row + 1)];
            assert_eq!(evaluations[row].log_density, log_q(&flow, x));
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
    // two coordinates: one token after the other, over a grid
    let network = TarFlowConfig { tokens: 2, token_size: 1, channels: 4, blocks: 2, layers: 1, heads: 1, expansion: 2 };
    let config = Config { network, units_per_nm: 2.0, centroid: None };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let parameters = parameters(&network, 7);
    let mut card = ModelCard::of_cartesian(ModelConfig::Tarflow(config.clone()), 1);
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
    // the density of the identity: normal of std 1/4 nm in 12 coordinates; its centroid has std 1/8
    let flow = small(3, Some(0.5));
    let identity = flow.network.initial::<f64>(1);
    let flow = TarFlow::new(identity, flow.config.clone(), flow.card.clone(), String::new()).unwrap();
    assert_eq!(flow.scope(), Scope::Noisy { sigma: 0.125 });
    let x: Vec<f64> = normals(12, 3).iter().map(|v| 0.25 * v).collect();
    let mut centred = x.clone();
    crate::coordinates::vector::centre(&mut centred);
    // so what is left is the normal density of the nine centred coordinates, wherever the centroid is
    let expected = -8.0 * centred.iter().map(|v| v * v).sum::<f64>() - 4.5 * (LOG_2_PI - 2.0 * 4.0f64.ln());
    for x in [&x, &centred] {
        assert!((log_q(&flow, x) - expected).abs() < 1e-12);
    }
}

#[test]
fn sizes_that_do_not_go_together_are_refused() {
    let config = small(3, None).config;
    for (change, word) in [
        (Box::new(|c: &mut Config| c.network.heads = 3) as Box<dyn Fn(&mut Config)>, "3 heads"),
        (Box::new(|c| c.network.blocks = 0), "blocks"),
        (Box::new(|c| c.network.tokens = 5), "12 coordinates"),
        (Box::new(|c| c.units_per_nm = -1.0), "positive"),
        (Box::new(|c| c.centroid = Some(f64::NAN)), "positive"),
    ] {
        let mut config = config.clone();
        change(&mut config);
        let card = ModelCard::of_cartesian(ModelConfig::Tarflow(config.clone()), 4);
        let built = TarNetwork::new(config.network.clone()).and_then(|network| {
            let parameters = network.initial::<f32>(1);
            TarFlow::new(parameters, config, card, String::new()).map(drop)
        });
        let message = built.err().map(|e| e.to_string()).unwrap_or_default();
        let word = if word == "12 coordinates" { "15 coordinates" } else { word };
        assert!(message.contains(word), "{word}: {message}");
    }
}
