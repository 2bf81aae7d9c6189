//! Curves from logs: of a training, by step, and of rounds, by stage.

use super::{chart, quantile, swatch, Figure, Outcome, COLOURS, FAINT, FONT, INK};
use modejump::annealing::Progress as AnnealingStage;
use modejump::train::rounds::{Record, Stage};
use modejump::train::Progress;
use plotters::prelude::*;
use std::ops::Range;

/// Panels for the data in a history: losses above, effective sample size and acceptance below.
pub fn training(history: &[Progress]) -> Vec<Panel> {
    let curve = |name, f: fn(&Progress) -> f64| Curve::of(name, history.iter().map(|p| (p.step as f64, f(p))));
    let density = vec![
        curve("−log q of training frames", |p| p.likelihood),
        curve("−log q of held-out frames", |p| p.held_out),
        curve("−log q of refinement samples", |p| p.refinement),
    ];
    // u has its own additive constant, so these lie elsewhere
    let energies = vec![
        curve("reverse KL of samples", |p| p.reverse_kl),
        curve("reaction-coordinate loss", |p| p.reaction_coordinate),
    ];
    let matching = vec![curve("|F − ∂ ln q/∂x|² of frames", |p| p.force_matching)];
    let regression = vec![curve("training frames", |p| p.loss), curve("held-out frames", |p| p.held_out_loss)];
    let shares = vec![curve("effective sample size", |p| 100.0 * p.ess), curve("acceptance", |p| 100.0 * p.acceptance)];
    let deviation = vec![curve("standard deviation of ln(q_model/q), held-out frames", |p| p.deviation)];
    let gradient = vec![curve("gradient norm", |p| p.gradient_norm)];
    let steps = 0.0..history.iter().map(|p| p.step as f64).fold(1.0, f64::max);
    let is_regression = regression.iter().any(|c| !c.points.is_empty());
    let panel = |unit, range, curves| Panel { along: ("step", steps.clone()), unit, range, curves };
    let panels = match is_regression {
        true => vec![panel("loss", None, regression), panel("nats", None, deviation), panel("", None, gradient)],
        false => {
            vec![
                panel("nats", None, density),
                panel("nats", None, energies),
                panel("nm⁻²", None, matching),
                panel("%", Some(0.0..100.0), shares),
            ]
        }
    };
    with_points(panels)
}

/// The value of a production, NaN at other stages.
fn of_production(record: &Record, value: f64) -> f64 {
    match record.stage {
        Stage::Production => value,
        _ => f64::NAN,
    }
}

/// Results of the stages of `adapt` or `explore`, in order: jumps above, the population of the region and its ΔF below.
pub fn rounds(history: &[Record]) -> Vec<Panel> {
    let curve = |name, f: fn(&Record) -> f64| Curve::of(name, (1..).map(f64::from).zip(history.iter().map(f)));
    let of_training = |record: &Record| record.training.as_ref().map_or(f64::NAN, |last| 100.0 * last.ess);
    let jumps = vec![
        curve("accepted jumps", |r| 100.0 * r.acceptance),
        curve("accepted jumps in production", |r| of_production(r, 100.0 * r.acceptance)),
        curve("effective sample size of proposals", |r| 100.0 * r.ess),
        curve("effective sample size after training", of_training),
    ];
    let population = vec![
        curve("frames in the region", |r| 100.0 * r.population),
        curve("frames in the region in production", |r| of_production(r, 100.0 * r.population)),
    ];
    let errors = history.iter().filter(|r| r.delta_f.is_finite()).map(|r| r.delta_f_stderr).collect();
    let delta_f = vec![Curve { errors, ..curve("ΔF of the region", |r| r.delta_f) }];
    let stages = 0.5..history.len() as f64 + 0.5;
    let along = match history.iter().any(|record| record.stage == Stage::Heat) {
        true => "stage (walk, heat, train in turn; then production)",
        false => "stage (walk, train in turn; then production)",
    };
    let panel = |unit, range, curves| Panel { along: (along, stages.clone()), unit, range, curves };
    with_points(vec![panel("%", Some(0.0..100.0), jumps), panel("%", None, population), panel("kT", None, delta_f)])
}

/// Results of the stages of `smc`, in order.
pub fn annealing(history: &[AnnealingStage]) -> Vec<Panel> {
    let curve = |name, f: fn(&AnnealingStage) -> f64| Curve::of(name, (1..).map(f64::from).zip(history.iter().map(f)));
    let shares = vec![
        curve("effective particles, before resampling", |s| 100.0 * s.ess),
        curve("accepted moves", |s| 100.0 * s.acceptance),
    ];
    let stages = 0.5..history.len() as f64 + 0.5;
    let panel = |unit, range, curves| Panel { along: ("stage", stages.clone()), unit, range, curves };
    with_points(vec![
        panel("%", Some(0.0..100.0), shares),
        panel("t", Some(0.0..1.0), vec![curve("from the generator (t = 0) to the target (t = 1)", |s| s.t)]),
        panel("nats", None, vec![curve("ln Z of the path so far", |s| s.log_z)]),
        panel("", None, vec![curve("log₁₀ (step / nm²)", |s| s.step.log10())]),
        panel("", None, vec![curve("effective number of independent families", |s| s.families)]),
    ])
}

/// Leaves out curves without points, and panels without curves.
fn with_points(mut panels: Vec<Panel>) -> Vec<Panel> {
    panels.iter_mut().for_each(|panel| panel.curves.retain(|curve| !curve.points.is_empty()));
    panels.retain(|panel| !panel.curves.is_empty());
    panels
}

/// Curves on common axes.
pub struct Panel {
    /// Name and range of the horizontal axis.
    along: (&'static str, Range<f64>),
    unit: &'static str,
    range: Option<Range<f64>>,
    curves: Vec<Curve>,
}

struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
    /// Standard error of each point, NaN if it has none; empty if no point has one.
    errors: Vec<f64>,
}

impl Curve {
    /// Curve of the finite points, without errors.
    fn of(name: &'static str, points: impl Iterator<Item = (f64, f64)>) -> Curve {
        Curve { name, points: points.filter(|p| p.1.is_finite()).collect(), errors: Vec::new() }
    }

    /// (x, y − error, y + error) of the points that have one.
    fn bars(&self) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        let points = self.points.iter().zip(&self.errors).filter(|(_, error)| error.is_finite());
        points.map(|((x, y), error)| (*x, y - error, y + error))
    }
}

/// Draws panels below each other.
pub fn curves(area: &Figure, title: &str, panels: &[Panel]) -> Outcome {
    let titles = std::iter::once(title).chain(std::iter::repeat(""));
    area.split_evenly((panels.len(), 1))
        .iter()
        .zip(panels)
        .zip(titles)
        .try_for_each(|((area, p), title)| p.draw(area, title))
}

impl Panel {
    /// Draws the curves on axes that contain them; the legend says how many points of a curve are outside.
    fn draw(&self, area: &Figure, title: &str) -> Outcome {
        let points = self.curves.iter().flat_map(|c| c.points.iter().map(|p| p.1));
        let values: Vec<f64> =
            points.chain(self.curves.iter().flat_map(Curve::bars).flat_map(|b| [b.1, b.2])).collect();
        let axis = self.range.clone().unwrap_or_else(|| loss_axis(&values));
        let place = legend_place(&self.curves, &self.along.1, &axis);
        let is_on = |p: &(f64, f64)| axis.start <= p.1 && p.1 <= axis.end;
        let mut chart = chart(area, title, self.along.clone(), (self.unit, axis.clone()))?;
        for (curve, &colour) in self.curves.iter().zip(&COLOURS) {
            // a point outside the axis would be drawn on its edge
            for run in curve.points.split(|p| !is_on(p)) {
                chart.draw_series(LineSeries::new(run.iter().copied(), colour.stroke_width(2)))?;
            }
            for (x, low, high) in curve.bars() {
                chart.draw_series(LineSeries::new([(x, low), (x, high)], colour))?;
            }
            // a single point makes no line
            let points = curve.points.iter().filter(|p| is_on(p)).map(|&p| Circle::new(p, 3, colour.filled()));
            let name = match curve.points.iter().filter(|p| !is_on(p)).count() {
                0 => curve.name.into(),
                beyond => format!("{}, {beyond} of {} points outside", curve.name, curve.points.len()),
            };
            chart.draw_series(points)?.label(name).legend(swatch(colour));
        }
        legend!(chart, place)?;
        Ok(())
    }
}

/// Range of all values; of twenty or more, the most extreme fiftieth is left out if the others would have less than a
/// third of the axis.
fn loss_axis(values: &[f64]) -> Range<f64> {
    let [low, high, most] = [0.0, 0.98, 1.0].map(|q| quantile(values, q));
    let high = if values.len() < 20 || most - low <= 3.0 * (high - low) { most } else { high };
    let margin = 0.08 * (high - low).max(1e-3 * high.abs()).max(1e-6);
    low - margin..high + margin
}

/// Place at either side with the fewest points and ends of error bars.
fn legend_place(curves: &[Curve], steps: &Range<f64>, axis: &Range<f64>) -> SeriesLabelPosition {
    use SeriesLabelPosition::{LowerLeft, LowerRight, MiddleLeft, MiddleRight, UpperLeft, UpperRight};
    const LEVELS: [Range<f64>; 3] = [0.7..f64::INFINITY, f64::NEG_INFINITY..0.3, 0.3..0.7];
    let along = |v: f64, range: &Range<f64>| (v - range.start) / (range.end - range.start);
    let bars = curves.iter().flat_map(Curve::bars).flat_map(|(x, low, high)| [(x, low), (x, high)]);
    let points = curves.iter().flat_map(|c| c.points.iter().copied()).chain(bars);
    let points: Vec<_> = points.map(|(x, y)| (along(x, steps), along(y, axis))).collect();
    let near = |right: bool, level: &Range<f64>| {
        let beside = |x: f64| if right { x > 0.5 } else { x < 0.5 };
        points.iter().filter(|(x, y)| beside(*x) && level.contains(y)).count()
    };
    let [right, left] = [true, false].map(|right| LEVELS.map(|level| near(right, &level)));
    let places = [UpperRight, LowerRight, MiddleRight, UpperLeft, LowerLeft, MiddleLeft];
    let fullness = right.into_iter().chain(left);
    places.into_iter().zip(fullness).min_by_key(|(_, n)| *n).map_or(UpperRight, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_are_all_on_the_axis() {
        for points in [vec![2.8, 1.3, 1.2, 1.1], vec![1.386], vec![1.0, 50.0]] {
            let axis = loss_axis(&points);
            assert!(points.iter().all(|v| axis.contains(v)), "{axis:?}");
        }
        let wild = [vec![1.0; 98], vec![2.0, 1e6]].concat();
        assert!(!loss_axis(&wild).contains(&1e6));
    }
}
