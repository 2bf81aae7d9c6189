//! Measures what a learned likelihood gains: three Markov chains over the same proposals of a continuous flow, accepted
//! by its exact density, by an energy-based model (EBM) alone, and by delayed acceptance.
//!
//! `make learned`, or
//! `cargo run --release --features openmm --example learned_likelihood -- FLOW EBM SYSTEM [n] [folder]`, prints the
//! table of `docs/learned-likelihoods.md` and writes `results.json` and `likelihoods.svg` to the folder. Most of the
//! time is spent on n exact densities, half a second of one core each.
//!
//! The chains run no dynamics between attempts, so that they differ only in the acceptance rule. Costs are those of an
//! attempt in a simulation, where the dynamics has moved the state and its densities must be recomputed (law of
//! exactness, 4).

use modejump::coordinates::vector::{atom, torsion};
use modejump::density::{Evaluation, Status};
use modejump::engines::openmm::{OpenMmTarget, System};
use modejump::free_energy::{between_states, between_states_of_blocks, statistical_inefficiency};
use modejump::histogram::on_arc;
use modejump::io::write_atomically;
use modejump::models::{load, Model};
use modejump::moves::{accept, Fate, Proposal};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::weights::{self, Estimate};
use modejump::{Error, Result};
use plotters::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Range of φ (rad) of the state whose free energy is estimated.
const STATE: [f64; 2] = [0.0, 2.2];
const BLOCKS: usize = 20;

/// Seconds of one core per configuration.
#[derive(Clone, Copy, Debug, Serialize)]
struct Seconds {
    points: f64,
    potential: f64,
    exact: f64,
    surrogate: f64,
}

/// Proposals with their energies, densities and costs.
struct Pool {
    u: Vec<f64>,
    in_state: Vec<Option<bool>>,
    exact: Vec<Evaluation>,
    surrogate: Vec<Evaluation>,
    /// The surrogate's density, limited to what delayed acceptance trusts.
    screen: Vec<Evaluation>,
    seconds: Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    Exact,
    Surrogate,
    Delayed,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Rule::Exact => "exact density",
            Rule::Surrogate => "EBM alone (surrogate)",
            Rule::Delayed => "delayed acceptance",
        }
    }

    /// Whether the rule samples the target exactly.
    fn is_exact(self) -> bool {
        self != Rule::Surrogate
    }
}

#[derive(Serialize)]
struct Outcome {
    rule: Rule,
    likelihood: &'static str,
    accepted: f64,
    /// Exact densities per attempt, including that of the current state.
    exact_densities: f64,
    seconds_per_attempt: f64,
    /// Attempts per independent sample of u.
    inefficiency: f64,
    seconds_per_sample: f64,
    delta_f_kt: Option<[f64; 2]>,
    mean_u: f64,
}

fn seconds(rows: usize, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    body()?;
    Ok(start.elapsed().as_secs_f64() * rayon::current_num_threads() as f64 / rows as f64)
}

impl Pool {
    fn draw(flow: &dyn Model, ebm: &dyn Model, system: &Path, n: usize) -> Result<Pool> {
        let (d, temperature) = (flow.dimension(), flow.card().temperature.unwrap_or(300.0));
        let phi_psi = flow.card().topology.as_ref().and_then(|t| t.phi_psi());
        let [phi, _] = phi_psi.ok_or_else(|| Error::invalid("the flow's file has no backbone torsions"))?;
        let streams = |row: usize| Stream::new(1, StreamId::Sample, row as u64, 0);
        let (mut x, mut status) = (vec![0.0; n * d], vec![Status::NonFinite; n]);
        let (mut exact, mut u) = (vec![Evaluation::inside(0.0); n], vec![0.0; n]);
        let mut surrogate = exact.clone();
        let points = seconds(n, || flow.sample_only(&streams, &mut x, &mut status))?;
        let of_exact = seconds(n, || flow.log_density(&x, &mut exact))?;
        let of_surrogate = seconds(n, || ebm.log_density(&x, &mut surrogate))?;
        let mut target = OpenMmTarget::new(&System::from_xml_file(system)?, temperature, 1)?;
        let start = Instant::now();
        target.reduced_potential(&x, &mut u)?;
        let potential = start.elapsed().as_secs_f64() / n as f64;
        for (evaluations, status) in exact.iter_mut().zip(&mut surrogate).zip(&status) {
            if *status != Status::Inside {
                (*evaluations.0, *evaluations.1) = (Evaluation::outside(*status), Evaluation::outside(*status));
            }
        }
        let angle = |x: &[f64]| {
            let [a, b, c, d] = phi.map(|i| atom(x, i));
            torsion(a, b, c, d)
        };
        let in_state = x.chunks_exact(d).map(|x| Some(on_arc(angle(x), STATE[0], STATE[1]))).collect();
        let believed = |(e, &u): (&Evaluation, &f64)| match e.is_inside() && u.is_finite() {
            true => Evaluation::inside(ebm.trust().log_density(u, e.log_density)),
            false => *e,
        };
        let screen = surrogate.iter().zip(&u).map(believed).collect();
        Ok(Pool {
            u,
            in_state,
            exact,
            surrogate,
            screen,
            seconds: Seconds { points, potential, exact: of_exact, surrogate: of_surrogate },
        })
    }

    /// The proposal whose exact weight is nearest to the mean: a typical state of the target.
    fn start(&self) -> Result<usize> {
        let log_weight = weights::log_weights(&self.u, &self.exact)?;
        let mean = weights::log_normaliser(&log_weight)?.value;
        let distance = |k: &usize| (log_weight[*k] - mean).abs();
        Ok((0..log_weight.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0))
    }

    /// Makes one attempt with proposal k; returns whether it was accepted and how many exact densities it needed.
    fn attempt(&self, rule: Rule, current: usize, k: usize, uniforms: [f64; 2]) -> (bool, usize) {
        let test = |q: &[Evaluation], u: [f64; 2], uniform: f64| {
            let proposal = Proposal { x: &[], forward: q[k], reverse: q[current] };
            accept(&proposal, u[0], u[1], uniform).0 == Fate::Accepted
        };
        let u = [self.u[current], self.u[k]];
        match rule {
            Rule::Exact => (test(&self.exact, u, uniforms[0]), 2),
            Rule::Surrogate => (test(&self.surrogate, u, uniforms[0]), 0),
            Rule::Delayed if !test(&self.screen, u, uniforms[0]) => (false, 0),
            // stage 2: an independence move whose target is the screen
            Rule::Delayed => {
                let screened = [current, k].map(|i| -self.screen[i].log_density);
                (test(&self.exact, screened, uniforms[1]), 2)
            }
        }
    }

    fn chain(&self, rule: Rule) -> Result<Outcome> {
        let n = self.u.len();
        let (mut current, mut accepted, mut exact, mut visited) = (self.start()?, 0, 0, Vec::with_capacity(n));
        for k in 0..n {
            let mut stream = Stream::new(2, StreamId::Test, k as u64, 0);
            let (moved, densities) = self.attempt(rule, current, k, [stream.uniform(), stream.uniform()]);
            exact += densities;
            if moved {
                (current, accepted) = (k, accepted + 1);
            }
            visited.push(current);
        }
        let u: Vec<f64> = visited.iter().map(|&k| self.u[k]).collect();
        let states: Vec<Option<bool>> = visited.iter().map(|&k| self.in_state[k]).collect();
        let inefficiency = statistical_inefficiency(&u)?;
        let s = self.seconds;
        let exact_densities = exact as f64 / n as f64;
        // the exact rule draws each proposal together with its density; the others draw points only
        let rest = if rule == Rule::Exact { 0.0 } else { s.points + 2.0 * s.surrogate };
        let seconds_per_attempt = rest + exact_densities * s.exact + s.potential;
        Ok(Outcome {
            rule,
            likelihood: if rule.is_exact() { "exact" } else { "surrogate" },
            accepted: accepted as f64 / n as f64,
            exact_densities,
            seconds_per_attempt,
            inefficiency,
            seconds_per_sample: seconds_per_attempt * inefficiency,
            delta_f_kt: between_states_of_blocks(&states, BLOCKS).ok().map(|e| [e.value, e.standard_error]),
            mean_u: u.iter().sum::<f64>() / n as f64,
        })
    }
}

fn with_error(e: Option<[f64; 2]>) -> String {
    match e {
        Some([value, error]) if error.is_finite() => format!("{value:.2} ± {error:.2}"),
        Some([value, _]) => format!("{value:.2}"),
        None => "–".into(),
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flow, ebm, system, rest @ ..] = &arguments[..] else {
        return Err(Error::invalid("usage: learned_likelihood FLOW EBM SYSTEM [n] [folder]"));
    };
    let n = match rest.first() {
        Some(text) => text.parse().map_err(|_| Error::invalid(format!("invalid number of proposals: {text}")))?,
        None => 1000,
    };
    let folder = PathBuf::from(rest.get(1).map_or("target/learned", String::as_str));
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let (flow, ebm) = (load(flow)?, load(ebm)?);
    let pool = Pool::draw(flow.as_ref(), ebm.as_ref(), Path::new(system), n)?;

    let pairs: Vec<(f64, f64)> = pool
        .exact
        .iter()
        .zip(&pool.surrogate)
        .filter(|(e, s)| e.is_inside() && s.is_inside())
        .map(|(e, s)| (e.log_density, s.log_density))
        .collect();
    let log_c: Vec<f64> = pairs.iter().map(|(e, s)| s - e).collect();
    let mean = log_c.iter().sum::<f64>() / log_c.len() as f64;
    let variance = log_c.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / log_c.len() as f64;
    let s = pool.seconds;
    println!(
        "{n} proposals; milliseconds of one core: points {:.1}, exact density {:.0}, EBM {:.3}, potential {:.3}",
        1e3 * s.points,
        1e3 * s.exact,
        1e3 * s.surrogate,
        1e3 * s.potential
    );
    println!(
        "the EBM's density is {:.0} times cheaper than the exact one; variance of ln(q_EBM/q) {variance:.2}\n",
        s.exact / s.surrogate
    );
    println!("| accepted by | accepted | exact densities per attempt | s per attempt | attempts per sample | s per sample | ΔF / kT | ⟨u⟩ / kT |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut outcomes = Vec::new();
    for rule in [Rule::Exact, Rule::Surrogate, Rule::Delayed] {
        let o = pool.chain(rule)?;
        println!(
            "| {} | {:.1} % | {:.2} | {:.2} | {:.0} | {:.1} | {} | {:.2} |",
            rule.name(),
            100.0 * o.accepted,
            o.exact_densities,
            o.seconds_per_attempt,
            o.inefficiency,
            o.seconds_per_sample,
            with_error(o.delta_f_kt),
            o.mean_u
        );
        outcomes.push(o);
    }
    let mut by_weights = Vec::new();
    for (name, q) in [("exact", &pool.exact), ("surrogate", &pool.surrogate)] {
        let w = weights::log_weights(&pool.u, q)?;
        let ess = 100.0 * weights::effective_sample_size(&w)? / n as f64;
        let delta_f =
            between_states(&w, &pool.in_state).ok().map(|Estimate { value, standard_error }| [value, standard_error]);
        let u = weights::mean(&w, &pool.u.iter().map(|u| if u.is_finite() { *u } else { 0.0 }).collect::<Vec<_>>())?;
        println!("| weights, {name} | ESS {ess:.1} % | | | | | {} | {:.2} |", with_error(delta_f), u.value);
        by_weights.push(
            serde_json::json!({ "likelihood": name, "ess_percent": ess, "delta_f_kt": delta_f, "mean_u": u.value }),
        );
    }
    let results = serde_json::json!({ "n": n, "seconds": s, "variance_log_c": variance, "chains": outcomes, "weights": by_weights });
    write_atomically(&folder.join("results.json"), format!("{results:#}").as_bytes())?;
    let path = folder.join("likelihoods.svg");
    let mut svg = String::new();
    scatter(&mut svg, &pairs, mean).map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, svg.as_bytes())
}

const FONT: (&str, u32) = ("Helvetica, Arial, sans-serif", 15);
const INK: RGBColor = RGBColor(15, 118, 178);

/// Plots ln q_EBM against ln q, with the constant between them removed.
fn scatter(
    svg: &mut String,
    pairs: &[(f64, f64)],
    constant: f64,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (460, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut sorted: Vec<f64> = pairs.iter().map(|p| p.0).collect();
    sorted.sort_by(f64::total_cmp);
    let range = sorted[sorted.len() / 200] - 4.0..sorted[sorted.len() - 1] + 4.0;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(range.clone(), range.clone())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("ln q, exact")
        .y_desc("ln q of the EBM, shifted")
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| format!("{v:.0}"))
        .label_style(FONT)
        .axis_desc_style(FONT)
        .draw()?;
    chart.draw_series([PathElement::new(vec![(range.start, range.start), (range.end, range.end)], BLACK.mix(0.4))])?;
    let inside = |p: &(f64, f64)| range.contains(&p.0) && range.contains(&p.1);
    let points = pairs.iter().map(|&(q, s)| (q, s - constant)).filter(inside);
    chart.draw_series(points.map(|p| Circle::new(p, 2, INK.mix(0.5).filled())))?;
    area.present()?;
    Ok(())
}
