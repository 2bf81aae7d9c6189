//! Weights by a surrogate beside those by the generator's own density, and the bias of the surrogate.
//!
//! With c = q_surrogate/q, the surrogate's weights e^{−u}/q_surrogate = w/c of samples of q represent the distribution
//! π/c instead of π. Constant factors of c cancel in everything but the mean of ln c.

use super::{extend, steering, stem, Reweight, Samples, Weighted};
use crate::common::{self, load_partner, number, tail_in_words, without_error};
use modejump::density::{Evaluation, Exactness, Status};
use modejump::io::{model_file, write_atomically};
use modejump::models::steering::{dimension_without_auxiliary, follow};
use modejump::models::Model;
use modejump::parallel::{streams, Ranks};
use modejump::trust::{self, Trust};
use modejump::weights::{self, Estimate};
use modejump::{free_energy, Error, Result};
use serde::Serialize;
use serde_json::{json, Value};
use std::path::Path;
use std::time::Instant;

impl Reweight {
    pub(super) fn beside_surrogate(
        &self,
        path: &Path,
        model: &dyn Model,
        temperature: f64,
        ranks: &dyn Ranks,
        summary: &mut Value,
    ) -> Result<Vec<Value>> {
        let surrogate = load_partner(path, &self.precision, model)?;
        // a steerable surrogate is taken to the temperature, as a screen is
        let surrogate = if surrogate.steering().is_some() { follow(&surrogate, temperature)? } else { surrogate };
        let (m, n) = (self.exact_subset.unwrap_or(self.n), self.n);
        if n < 2 {
            return Err(Error::invalid(format!("-n {n}: must be at least 2 with a surrogate")));
        }
        if !(2..=n).contains(&m) {
            return Err(Error::invalid(format!("--exact-subset {m} of {n} samples: must be from 2 to {n}")));
        }
        if self.calibrate.is_some() && m < trust::FEWEST {
            let fewest = trust::FEWEST;
            return Err(Error::invalid(format!(
                "--calibrate fits to {m} exact log-densities: must be at least {fewest}"
            )));
        }
        let d = model.dimension();
        let mut own = Vec::new();
        let (drawn, of_samples) = seconds(|| {
            ranks.evaluations(self.n, |rows, drawn| {
                own = vec![0.0; rows.len() * d];
                let mut status = vec![Status::NonFinite; rows.len()];
                model.sample_only(&streams(self.seed, rows), &mut own, &mut status)?;
                let samples = drawn.iter_mut().zip(&status);
                samples.for_each(|(drawn, &status)| *drawn = Evaluation { log_density: f64::NEG_INFINITY, status });
                Ok(())
            })
        })?;
        let x = ranks.gather(own)?;
        let log_density = |density: &dyn Model, n: usize| {
            seconds(|| ranks.evaluations(n, |rows, log_q| density.log_density(&x[rows.start * d..rows.end * d], log_q)))
        };
        let (mut log_q, of_generator) = log_density(model, m)?;
        let (mut log_surrogate, of_surrogate) = log_density(surrogate.as_ref(), self.n)?;
        // a failed sample has no weight by either density
        for evaluations in [&mut log_q, &mut log_surrogate] {
            let no_samples = evaluations.iter_mut().zip(&drawn).filter(|(_, drawn)| !drawn.is_inside());
            no_samples.for_each(|(e, drawn)| *e = *drawn);
        }

        // for the first m rows, and for all
        let (steering, dimension) = (steering(model), dimension_without_auxiliary(model));
        steering.take_apart(&x, dimension, &mut log_q);
        let [x, _] = steering.take_apart(&x, dimension, &mut log_surrogate);
        let samples = self.look_at_shared(&x, model, temperature, ranks)?;
        if !ranks.is_first() {
            return Ok(Vec::new());
        }
        let screening = Screening::fit(&samples.total()[..m], &log_q, &log_surrogate[..m]);
        let screening = match &self.calibrate {
            Some(to) => {
                let screening = screening?;
                write_calibrated(path, to, screening.trust)?;
                Some(screening)
            }
            None => screening.ok(),
        };
        let generator = Weighted::new(model.exactness(), &samples, &log_q, self.rule.rule())?;
        let other = Weighted::new(Exactness::Surrogate, &samples, &log_surrogate, self.rule.rule())?;
        let side = |weighted: &Weighted, seconds: f64| -> Result<Value> {
            let mut side = weighted.summary(&samples)?;
            extend(&mut side, json!({ "n": weighted.log_weight.len(), "seconds_of_log_density": seconds }));
            Ok(side)
        };
        extend(
            summary,
            json!({
                "surrogate_model": path.display().to_string(),
                "seconds_of_samples": of_samples,
                "generator": side(&generator, of_generator)?,
                "surrogate": side(&other, of_surrogate)?,
                "bias": bias((&generator, &log_q), (&other, &log_surrogate), &samples)?,
                "screening": screening,
            }),
        );
        let names = [stem(&self.model), format!("{} (surrogate)", stem(path))];
        Ok(vec![generator.series(&names[0], &samples), other.series(&names[1], &samples)])
    }
}

/// Quality of the surrogate as a screen of delayed acceptance.
#[derive(Serialize)]
struct Screening {
    /// Factors by which it should be trusted.
    trust: Trust,
    /// Standard deviation of log w − log w_s over the samples of the fit, which leave out outliers: what is left for the
    /// second stage, with these factors and with both equal to one.
    left: f64,
    left_without: f64,
}

impl Screening {
    /// Fits the trust; `u` includes the metric term, as in the first stage.
    fn fit(u: &[f64], log_q: &[Evaluation], log_surrogate: &[Evaluation]) -> Result<Screening> {
        let values = |evaluations: &[Evaluation]| evaluations.iter().map(|e| e.log_density).collect::<Vec<_>>();
        let (log_q, log_q_s) = (values(log_q), values(log_surrogate));
        let trust = Trust::fit(u, &log_q, &log_q_s)?;
        let left = |trust: Trust| trust.left(u, &log_q, &log_q_s);
        Ok(Screening { trust, left: left(trust)?, left_without: left(Trust::FULL)? })
    }
}

/// Copies a model file, with this trust.
fn write_calibrated(from: &Path, to: &Path, trust: Trust) -> Result<()> {
    let bytes = modejump::io::read(from)?;
    let name = from.display().to_string();
    let mut card = model_file::read(&name, &bytes)?.card;
    let energy = card.model.energy_mut();
    energy.ok_or_else(|| Error::file(from, "--calibrate requires an energy-based model; this is not one"))?.trust =
        trust;
    write_atomically(to, &model_file::with_card(&name, &bytes, &card)?)
}

fn seconds<T>(body: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    Ok((body()?, start.elapsed().as_secs_f64()))
}

/// Changes due to the surrogate, from the samples whose q is known.
fn bias(
    (generator, log_q): (&Weighted, &[Evaluation]),
    (surrogate, log_surrogate): (&Weighted, &[Evaluation]),
    samples: &Samples,
) -> Result<Value> {
    let m = log_q.len();
    let pairs = log_surrogate.iter().zip(log_q).filter(|(a, b)| a.is_inside() && b.is_inside());
    let log_c: Vec<f64> = pairs.map(|(a, b)| a.log_density - b.log_density).collect();
    let Estimate { value: mean, standard_error } = weights::mean(&vec![0.0; log_c.len()], &log_c)?;
    let kl = weights::divergence(&generator.log_weight, &surrogate.log_weight[..m])?;
    let mut bias = json!({
        "likelihood": generator.likelihood,
        "n": m,
        "mean_log_c": mean,
        "mean_log_c_stderr": standard_error,
        "variance_log_c": log_c.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / (log_c.len() as f64 - 1.0),
        "kl": kl.value,
        "kl_stderr": kl.standard_error,
    });
    if !samples.in_state.is_empty() {
        let (w, v) = (&generator.log_weight, &surrogate.log_weight[..m]);
        // if one of the states is missing there is no free energy; the reason was given for the generator
        if let Ok(shift) = free_energy::shift_between_states(w, v, &samples.in_state[..m]) {
            let shift = json!({ "delta_f_shift_kT": shift.value, "delta_f_shift_stderr": shift.standard_error });
            extend(&mut bias, shift);
        }
    }
    Ok(bias)
}

/// Prints two columns, each headed by its likelihood, and the bias.
pub(super) fn report(s: &Value) {
    let (generator, surrogate, bias) = (&s["generator"], &s["surrogate"], &s["bias"]);
    let name = |side: &Value| side["likelihood"].as_str().unwrap_or_default().to_string();
    let plain = |key: &'static str, digits: usize, factor: f64| {
        move |side: &Value| match side.get(key) {
            Some(_) => format!("{:.digits$}", factor * number(side, key)),
            None => "–".into(),
        }
    };
    let with_error = |key: &'static str, error: &'static str| {
        move |side: &Value| match side.get(key) {
            Some(_) => common::with_error(number(side, key), number(side, error), 3),
            None => "–".into(),
        }
    };
    let line = |label: &str, of: &dyn Fn(&Value) -> String| {
        println!("{label:26} {:>20} {:>20}", of(generator), of(surrogate));
    };
    line("likelihood", &name);
    line("samples", &|side| side["n"].to_string());
    line("ESS, %", &plain("ess", 1, 100.0));
    line("Pareto k", &|side| match number(side, "pareto_k") {
        k if k.is_infinite() => if k > 0.0 { "infinite" } else { "none" }.into(),
        k => format!("{k:.2}"),
    });
    if [generator, surrogate].iter().any(|side| number(side, "rejected") > 0.0) {
        line("rejected", &|side| side["rejected"].to_string());
    }
    line("acceptance, %", &plain("acceptance", 1, 100.0));
    line("weights", &|side| side["weights"].as_str().unwrap_or_default().into());
    line("<u>, kT", &with_error("u_mean", "u_stderr"));
    line("log Z", &with_error("log_z", "log_z_stderr"));
    line("ΔF(state − rest), kT", &with_error("delta_f_kT", "delta_f_stderr"));
    line("seconds of log q", &plain("seconds_of_log_density", 2, 1.0));
    for side in [generator, surrogate].into_iter().filter(|side| number(side, "pareto_k") > 0.7) {
        println!("Pareto k of the {} weights: {}", name(side), tail_in_words(number(side, "pareto_k")));
    }
    println!("seconds of the samples     {:20.2}", number(s, "seconds_of_samples"));
    println!("bias of the surrogate from {} samples with {} log q, c = q_surrogate/q:", bias["n"], name(bias));
    let f = |key: &str| number(bias, key);
    let estimate = |key: &str, error: &str, digits: usize| common::with_error(f(key), f(error), digits);
    let mean = estimate("mean_log_c", "mean_log_c_stderr", 3);
    println!("  mean of ln c             {mean}  (includes the surrogate's constant)");
    let variance = match f("variance_log_c") {
        v if v.is_nan() => "?".into(), // all samples but one are outside
        v => format!("{v:.4}"),
    };
    println!("  variance of ln c         {variance}");
    println!("  KL(π | π/c)              {}", estimate("kl", "kl_stderr", 4));
    if bias.get("delta_f_shift_kT").is_some() {
        println!("  shift of ΔF, kT          {}", estimate("delta_f_shift_kT", "delta_f_shift_stderr", 3));
    }
    let errors = [
        (generator, &["u_stderr", "log_z_stderr", "delta_f_stderr"][..]),
        (surrogate, &["u_stderr", "delta_f_stderr"]),
        (bias, &["mean_log_c_stderr", "kl_stderr", "delta_f_shift_stderr"]),
    ];
    let is_unknown = |(of, keys): (&Value, &[&str])| keys.iter().any(|key| of.get(key).is_some_and(Value::is_null));
    if errors.into_iter().any(is_unknown) {
        println!("{}", without_error());
    }
    let (screening, trust) = (&s["screening"], &s["screening"]["trust"]);
    if !trust.is_null() {
        println!(
            "as a screen, with trust {:.2} in the energy and {:.2} in the density (written by --calibrate):",
            number(trust, "energy"),
            number(trust, "density")
        );
        println!(
            "  standard deviation of ln c, without outliers: {:.2} instead of {:.2}",
            number(screening, "left"),
            number(screening, "left_without")
        );
    }
}
