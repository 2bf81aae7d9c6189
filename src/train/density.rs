//! Measures the purpose of an energy-based model: its deviation from known log-densities, those that a flow's samples
//! come with. Neither of its losses shows that.

use crate::models::network::{narrow, Network};
use crate::nn::{Real, Tape};
use rayon::prelude::*;

/// Standard deviation of E(t, x) − log q(x) over the rows of `x[n][dimension]`; NaN marks rows whose log q is unknown,
/// which are left out.
pub fn deviation<N: Network, R: Real>(network: &N, parameters: &[R], t: f64, x: &[f64], log_density: &[f64]) -> f64 {
    let (d, chunk) = (network.dimension(), network.chunk());
    let mut errors = log_density.to_vec();
    let parts = errors.par_chunks_mut(chunk).zip(x.par_chunks(chunk * d));
    parts.for_each_init(Tape::default, |tape, (errors, x)| {
        tape.clear();
        let (_, e) = network.record(parameters, tape, &vec![t; errors.len()], &narrow(x));
        errors.iter_mut().zip(tape.value(e)).for_each(|(error, e)| *error = e.to_f64() - *error);
    });
    errors.retain(|c| !c.is_nan());
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    (errors.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / errors.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::mlp_ebm::{MlpConfig, MlpNetwork};
    use crate::rng::{Stream, StreamId};

    #[test]
    fn a_constant_is_immaterial_and_unknown_rows_do_not_count() {
        let network = MlpNetwork::new(MlpConfig { dimension: 3, width: 8, layers: 2 }).unwrap();
        let mut stream = Stream::new(3, StreamId::Test, 0, 0);
        let parameters: Vec<f64> = network.initialise(&mut stream);
        let x: Vec<f64> = (0..600).map(|_| stream.normal()).collect();
        let mut tape = Tape::default();
        let (_, e) = network.record(&parameters, &mut tape, &[0.3; 200], &x);
        // exact but for a constant, then off by ±2
        let mut log_density: Vec<f64> = tape.value(e).iter().map(|e| e + 7.0).collect();
        let of = |log_density: &[f64]| deviation(&network, &parameters, 0.3, &x, log_density);
        assert!(of(&log_density) < 1e-12);
        log_density.iter_mut().enumerate().for_each(|(i, l)| *l += if i % 2 == 0 { 2.0 } else { -2.0 });
        assert!((of(&log_density) - 2.0).abs() < 1e-12);
        log_density.iter_mut().step_by(2).for_each(|l| *l = f64::NAN);
        assert!(of(&log_density) < 1e-12);
        assert!(of(&[f64::NAN; 200]).is_nan());
    }
}
