//! The figures of `modejump plot` and `modejump compare`.

use super::{Figure, Outcome, Series};
use modejump::histogram::{
    circular_profile, circular_profile_of_families, circular_profile_of_series, CircularProfile,
};
use modejump::{weights, Result};
use plotters::prelude::*;
use std::f64::consts::PI;
use std::ops::Range;

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(225, 228, 232);
/// Colours of the series in order; the first series is the reference for the others.
const COLOURS: [RGBColor; 9] = [
    RGBColor(107, 114, 128),
    RGBColor(15, 118, 178),
    RGBColor(217, 95, 2),
    RGBColor(27, 158, 119),
    RGBColor(117, 112, 179),
    RGBColor(231, 41, 138),
    RGBColor(102, 166, 30),
    RGBColor(230, 171, 2),
    RGBColor(140, 86, 75),
];
const FONT: &str = "Helvetica, Arial, sans-serif";

/// Axes in the style of this project.
fn chart<'a, 'b>(
    area: &'b Figure<'a>,
    title: &str,
    x: (&str, std::ops::Range<f64>),
    y: (&str, std::ops::Range<f64>),
) -> std::result::Result<
    ChartContext<
        'b,
        SVGBackend<'a>,
        Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
    >,
    Box<dyn std::error::Error>,
>
where
    'a: 'b,
{
    let (x_tick, y_tick) = (tick(&x.1), tick(&y.1));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 17, &INK))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(x.1, y.1)?;
    chart
        .configure_mesh()
        .x_desc(x.0)
        .y_desc(y.0)
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.6))
        .label_style((FONT, 13, &INK))
        .axis_desc_style((FONT, 14, &INK))
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&x_tick)
        .y_label_formatter(&y_tick)
        .draw()?;
    Ok(chart)
}

/// Labels of an axis with this range: as many decimals as distinguish its ticks, at least two, without trailing zeros;
/// powers of ten for very large or very small numbers.
fn tick(range: &std::ops::Range<f64>) -> impl Fn(&f64) -> String {
    let spacing = (range.end - range.start).abs() / 7.0;
    let decimals = (1.0 - spacing.max(1e-9).log10()).ceil().clamp(2.0, 10.0) as usize;
    let far = range.start.abs().max(range.end.abs());
    let is_written_out = (1e-3..1e6).contains(&far);
    move |v| {
        if !is_written_out && *v != 0.0 {
            return format!("{v:.1e}");
        }
        let text = format!("{v:.decimals$}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" {
            "0".into()
        } else {
            text.into()
        }
    }
}

macro_rules! legend {
    ($chart:expr) => {
        legend!($chart, SeriesLabelPosition::UpperRight)
    };
    ($chart:expr, $position:expr) => {
        $chart
            .configure_series_labels()
            .position($position)
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT)
            .label_font((FONT, 13, &INK))
            .draw()
    };
}

// after the macro that it uses
mod curves;
pub use curves::{annealing, curves, rounds, training, Panel};

/// Factor by which an axis is higher than its curves, so that a legend of this many rows fits above them.
fn above_legend(rows: usize) -> f64 {
    1.0 / (0.92 - 0.065 * rows.min(9) as f64)
}

fn swatch(colour: RGBColor) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> {
    move |(x, y)| Rectangle::new([(x, y - 4), (x + 16, y + 4)], colour.filled())
}

/// One map per series, over the torsions.
pub fn ramachandran(area: &Figure, series: &[&Series]) -> Outcome {
    // angles may be on any branch
    let degrees = |v: &f64| (v + PI).rem_euclid(2.0 * PI).to_degrees() - 180.0;
    for (panel, s) in area.split_evenly((1, series.len())).iter().zip(series) {
        let [x, y] = s.torsions().map(|name| format!("{name} / °"));
        let points = s.phi.iter().map(degrees).zip(s.psi.iter().map(degrees)).collect();
        map(panel, s, (&x, -180.0..180.0), (&y, -180.0..180.0), points)?;
    }
    Ok(())
}

/// One map per series, over the plane of two time-lagged components.
pub fn components(area: &Figure, series: &[&Series]) -> Outcome {
    let range = |of: fn(&Series) -> &Vec<f64>| {
        let all: Vec<f64> = series.iter().flat_map(|s| of(s).iter().copied()).collect();
        let (low, high) = (quantile(&all, 0.0005), quantile(&all, 0.9995));
        let margin = 0.05 * (high - low).max(1e-6);
        low - margin..high + margin
    };
    let (first, second) = (range(|s| &s.tic1), range(|s| &s.tic2));
    for (panel, s) in area.split_evenly((1, series.len())).iter().zip(series) {
        let points = s.tic1.iter().copied().zip(s.tic2.iter().copied()).collect();
        map(panel, s, ("TIC 1", first.clone()), ("TIC 2", second.clone()), points)?;
    }
    Ok(())
}

type Axis<'a> = (&'a str, std::ops::Range<f64>);

/// Density of weighted points in a plane, coloured by −ln p relative to its highest bin; points beyond the axes are
/// left out.
fn map(panel: &Figure, series: &Series, x: Axis, y: Axis, points: Vec<(f64, f64)>) -> Outcome {
    const BINS: usize = 60;
    const DEEPEST: f64 = 9.0;
    let weights = match series.log_weight.is_empty() {
        true => vec![1.0; points.len()],
        false => weights::normalised(&series.log_weight)?,
    };
    let step = |axis: &Axis| (axis.1.end - axis.1.start) / BINS as f64;
    let (dx, dy) = (step(&x), step(&y));
    let mut mass = vec![0.0; BINS * BINS];
    for ((px, py), w) in points.into_iter().zip(weights) {
        if x.1.contains(&px) && y.1.contains(&py) {
            let bin = |v: f64, axis: &Axis, step: f64| (((v - axis.1.start) / step) as usize).min(BINS - 1);
            mass[bin(py, &y, dy) * BINS + bin(px, &x, dx)] += w;
        }
    }
    let highest = mass.iter().copied().fold(0.0, f64::max);
    let (left, bottom) = (x.1.start, y.1.start);
    let (panel, beside) = panel.split_horizontally(panel.dim_in_pixel().0 as i32 - SCALE);
    scale(&beside, DEEPEST)?;
    let name = match series.log_weight.is_empty() {
        true => series.name.clone(),
        false => weighted_name(series, ", reweighted"),
    };
    let mut chart = chart(&panel, &shortened(&name, 42), x, y)?;
    chart.draw_series(mass.iter().enumerate().filter(|(_, &m)| m > 0.0).map(|(i, m)| {
        let depth = ((highest / m).ln() / DEEPEST).min(1.0);
        let (x, y) = (left + dx * (i % BINS) as f64, bottom + dy * (i / BINS) as f64);
        Rectangle::new([(x, y), (x + dx, y + dy)], viridis(1.0 - depth).filled())
    }))?;
    Ok(())
}

/// A name shortened to at most this many characters by leaving out its middle: file names differ at their ends.
fn shortened(name: &str, most: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= most {
        return name.into();
    }
    let (first, last) = (most / 2, most - most / 2 - 1);
    letters[..first].iter().chain(&['…']).chain(&letters[letters.len() - last..]).collect()
}

/// Width beside a map for its scale, in pixels.
const SCALE: i32 = 76;

/// Colours of a map.
fn scale(area: &Figure, deepest: f64) -> Outcome {
    const STEPS: usize = 90;
    let mut chart = ChartBuilder::on(area)
        .caption(" ", (FONT, 17, &INK))
        .margin(14)
        .margin_left(0)
        .x_label_area_size(44)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..1.0, 0.0..deepest)?;
    let step = deepest / STEPS as f64;
    chart.draw_series((0..STEPS).map(|i| {
        let depth = step * i as f64;
        Rectangle::new([(0.0, depth), (1.0, depth + step)], viridis(1.0 - depth / deepest).filled())
    }))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .y_desc("F / kT")
        .axis_style(INK.mix(0.6))
        .label_style((FONT, 13, &INK))
        .axis_desc_style((FONT, 14, &INK))
        .x_labels(0)
        .y_labels(10)
        .y_label_formatter(&tick(&(0.0..deepest)))
        .draw()?;
    Ok(())
}

/// Viridis (van der Walt and Smith), interpolated between seven colours.
fn viridis(t: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 7] = [
        (68.0, 1.0, 84.0),
        (68.0, 57.0, 131.0),
        (49.0, 104.0, 142.0),
        (33.0, 145.0, 140.0),
        (53.0, 183.0, 121.0),
        (144.0, 215.0, 67.0),
        (253.0, 231.0, 37.0),
    ];
    let s = t.clamp(0.0, 1.0) * 6.0;
    let (a, b) = (STOPS[s as usize], STOPS[(s as usize + 1).min(6)]);
    let mix = |a: f64, b: f64| (a + (b - a) * s.fract()) as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Legend text for weighted samples.
fn weighted_name(series: &Series, suffix: &str) -> String {
    match series.rule() {
        Some(rule) => format!("{}{suffix} ({rule} weights)", series.name),
        None => format!("{}{suffix}", series.name),
    }
}

/// Profile of the first torsion, with the errors that this kind of series has; NaN for frames of walkers by turns.
fn profile(series: &Series, bins: usize) -> Result<CircularProfile> {
    if !series.ancestor.is_empty() {
        let equal = vec![0.0; series.phi.len()];
        let log_weights = if series.log_weight.is_empty() { &equal } else { &series.log_weight };
        return circular_profile_of_families(&series.phi, log_weights, &series.ancestor, bins);
    }
    if !series.log_weight.is_empty() {
        return circular_profile(&series.phi, &series.log_weight, bins);
    }
    let mut profile = circular_profile_of_series(&series.phi, bins)?;
    if series.by_turns {
        profile.free_energy.iter_mut().for_each(|f| f.standard_error = f64::NAN);
    }
    Ok(profile)
}

/// Free energy F along the first torsion, φ, with a band of two standard errors, and an error bar for an isolated bin;
/// lines end where F leaves the axis. The legend says which curve has no errors.
pub fn free_energy(area: &Figure, series: &[&Series]) -> Outcome {
    const BINS: usize = 60;
    const HIGHEST: f64 = 14.0;
    let along = series[0].torsions()[0];
    let profiles = series.iter().map(|s| profile(s, BINS)).collect::<Result<Vec<_>>>()?;
    let shown = profiles.iter().flat_map(|p| &p.free_energy).filter(|f| f.value <= HIGHEST);
    // value only, without an error
    let ends = shown.map(|f| f.value.max(f.value + 2.0 * f.standard_error).min(HIGHEST));
    let top = ends.fold(1.0, f64::max) * above_legend(series.len());
    let mut chart = chart(
        area,
        &format!("Free energy along {along}"),
        (&format!("{along} / °"), -180.0..180.0),
        ("F / kT", 0.0..top),
    )?;
    for ((s, profile), &colour) in series.iter().zip(profiles).zip(COLOURS.iter().cycle()) {
        let bins = profile.centres.iter().zip(&profile.free_energy).filter(|(_, f)| f.value <= HIGHEST);
        let points: Vec<(f64, f64, f64)> =
            bins.map(|(c, f)| (c.to_degrees(), f.value, 2.0 * f.standard_error)).collect();
        let step = 360.0 / BINS as f64;
        for run in points.chunk_by(|a, b| b.0 - a.0 < 1.5 * step) {
            chart.draw_series(LineSeries::new(run.iter().map(|p| (p.0, p.1)), colour.stroke_width(2)))?;
            // a single bin makes no line
            let alone = run.iter().filter(|_| run.len() == 1);
            chart.draw_series(alone.map(|p| Circle::new((p.0, p.1), 3, colour.filled())))?;
            if run.iter().any(|p| p.2.is_nan()) {
                continue;
            }
            let upper = run.iter().map(|p| (p.0, (p.1 + p.2).min(top)));
            let lower = run.iter().rev().map(|p| (p.0, (p.1 - p.2).max(0.0)));
            let band: Vec<(f64, f64)> = upper.chain(lower).collect();
            match run.len() {
                1 => chart.draw_series([PathElement::new(band, colour.mix(0.5).stroke_width(3))])?,
                _ => chart.draw_series([Polygon::new(band, colour.mix(0.18).filled())])?,
            };
        }
        let few = weights::FEWEST_FOR_ERRORS;
        let errors = match points.iter().any(|p| p.2.is_nan()) {
            true if s.by_turns => ", no errors: walkers by turns".into(),
            true => format!(", no errors: < {few} effective samples"),
            false => String::new(),
        };
        chart
            .draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?
            .label(format!("{}{errors}", weighted_name(s, "")))
            .legend(swatch(colour));
    }
    legend!(chart)?;
    Ok(())
}

/// Histogram of weighted values on [from, to): density per unit.
fn histogram(values: impl Iterator<Item = (f64, f64)>, from: f64, to: f64, bins: usize) -> Vec<(f64, f64)> {
    let width = (to - from) / bins as f64;
    let (mut mass, mut total) = (vec![0.0; bins], 0.0);
    for (v, w) in values.filter(|(v, _)| v.is_finite()) {
        total += w;
        if v >= from && v < to {
            mass[((v - from) / width) as usize % bins] += w;
        }
    }
    let scale = if total > 0.0 { 1.0 / (total * width) } else { 0.0 };
    mass.iter().enumerate().map(|(i, m)| (from + (i as f64 + 0.5) * width, m * scale)).collect()
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 - 1.0) * q).max(0.0) as usize).copied().unwrap_or(0.0)
}

/// Legend text: the share of weighted values, which sum to one, that lies outside the axis.
fn beyond(values: &[(f64, f64)], axis: &Range<f64>) -> String {
    let share: f64 = values.iter().filter(|(v, _)| !axis.contains(v)).map(|(_, w)| w).sum();
    match 100.0 * share {
        percent if percent < 1e-9 => String::new(),
        percent if percent < 0.1 => ", <0.1 % outside".into(),
        percent => format!(", {percent:.1} % outside"),
    }
}

/// Energies of one curve, in order, with weights that sum to one.
struct Energies {
    name: String,
    values: Vec<(f64, f64)>,
    /// Whether all but the most extreme of them must be visible.
    leads: bool,
}

impl Energies {
    fn new(name: String, u: &[f64], weights: Vec<f64>, leads: bool) -> Energies {
        let mut values: Vec<(f64, f64)> = u.iter().copied().zip(weights).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        Energies { name, values, leads }
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sum = 0.0;
        let reached = |(_, w): &&(f64, f64)| {
            sum += w;
            sum >= q
        };
        self.values.iter().find(reached).or(self.values.last()).map_or(0.0, |value| value.0)
    }
}

/// Reduced energies of runs, of the generator as it is, and reweighted.
pub fn energy(area: &Figure, series: &[&Series]) -> Outcome {
    const BINS: usize = 70;
    let mut curves = Vec::new();
    for (i, s) in series.iter().enumerate() {
        let (u, weighted) = (&s.reduced_potential, !s.log_weight.is_empty());
        let same = vec![1.0 / u.len() as f64; u.len()];
        curves.push(Energies::new(s.name.clone(), u, same, i == 0 && !weighted));
        if weighted {
            let w = weights::normalised(&s.log_weight)?;
            let leads = weights::effective_sample_size(&s.log_weight)? >= weights::FEWEST_FOR_ERRORS as f64;
            curves.push(Energies::new(weighted_name(s, ", reweighted"), u, w, leads));
        }
    }
    let axis = energy_axis(&curves);
    if !(axis.end - axis.start).is_finite() {
        return Err(format!(
            "could not draw reduced potentials from {} to {}: the range is too large",
            axis.start, axis.end
        )
        .into());
    }
    let curves: Vec<_> = curves
        .into_iter()
        .map(|c| {
            (
                format!("{}{}", c.name, beyond(&c.values, &axis)),
                histogram(c.values.into_iter(), axis.start, axis.end, BINS),
            )
        })
        .collect();
    let top = curves.iter().flat_map(|c| c.1.iter().map(|p| p.1)).fold(0.0, f64::max) * above_legend(curves.len());
    let mut chart = chart(area, "Reduced potential energy", ("u = U / kT", axis), ("density", 0.0..top))?;
    for ((name, curve), &colour) in curves.into_iter().zip(COLOURS.iter().cycle()) {
        chart.draw_series(LineSeries::new(curve, colour.stroke_width(2)))?.label(name).legend(swatch(colour));
    }
    legend!(chart)?;
    Ok(())
}

/// Range of the axis: nearly all of the reference and of the weighted energies, unless the weights have collapsed. A
/// few clashes of an unweighted generator lie anywhere: nine tenths of its energies are shown, as long as the reference
/// and the weighted ones keep a fifth of the axis. If there are only unweighted ones, the lowest quarter of each is
/// shown, and what is not far above it.
fn energy_axis(curves: &[Energies]) -> Range<f64> {
    let none = curves.iter().all(|c| !c.leads);
    let leading = || curves.iter().filter(|c| c.leads || none);
    let low = leading().map(|c| c.quantile(0.0005)).fold(f64::INFINITY, f64::min);
    let upper = |c: &Energies| match none {
        true => c.quantile(0.995).min(low + 10.0 * (c.quantile(0.25) - low).max(10.0)),
        false => c.quantile(0.995),
    };
    let high = leading().map(upper).fold(f64::NEG_INFINITY, f64::max);
    let reach = 2.0 * (high - low).max(10.0);
    let (mut from, mut to) = (low, high);
    for c in curves.iter().filter(|c| !c.leads) {
        from = from.min(c.quantile(0.0005).max(low - reach));
        to = to.max(c.quantile(0.9).min(high + reach));
    }
    from - 1.0..to + 2.0
}

/// Histogram of raw log w − ln mean w, with ESS and k̂ of the generator in the legend.
pub fn log_weights(area: &Figure, series: &[&Series]) -> Outcome {
    const BINS: usize = 84;
    let mut all = Vec::new();
    for s in series {
        let raw = s.raw();
        let n = raw.len() as f64;
        let mean = weights::log_sum_exp(&raw) - n.ln();
        let centred: Vec<f64> = raw.iter().filter(|w| w.is_finite()).map(|w| w - mean).collect();
        all.push((about_weights(s, &raw)?, centred));
    }
    let axis = log_weight_axis(all.iter().map(|(_, centred)| centred.as_slice()));
    let curves: Vec<_> = all
        .into_iter()
        .map(|(name, centred)| {
            let values: Vec<(f64, f64)> = centred.iter().map(|&w| (w, 1.0 / centred.len() as f64)).collect();
            (format!("{name}{}", beyond(&values, &axis)), histogram(values.into_iter(), axis.start, axis.end, BINS))
        })
        .collect();
    let top = curves.iter().flat_map(|c| c.1.iter().map(|p| p.1)).fold(0.0, f64::max) * above_legend(curves.len());
    let mut chart = chart(area, "Importance weights", ("ln w − ln ⟨w⟩", axis), ("density", 0.0..top))?;
    for ((name, curve), &colour) in curves.into_iter().zip(COLOURS[1..].iter().cycle()) {
        chart.draw_series(AreaSeries::new(curve.clone(), 0.0, colour.mix(0.25)))?;
        chart.draw_series(LineSeries::new(curve, colour.stroke_width(2)))?.label(name).legend(swatch(colour));
    }
    legend!(chart)?;
    Ok(())
}

/// Text on the raw weights, the number of samples without one, and the rule by which they were changed.
fn about_weights(series: &Series, raw: &[f64]) -> Result<String> {
    let ess = weights::effective_sample_size(raw)? / raw.len() as f64;
    let k = match weights::pareto_k(raw)? {
        f64::INFINITY => "∞".into(),
        f64::NEG_INFINITY => "−∞".into(),
        k => format!("{k:.2}"),
    };
    let rejected = match raw.iter().filter(|w| !w.is_finite()).count() {
        0 => String::new(),
        rejected => format!(", {rejected} rejected"),
    };
    let rule = series.rule().map_or(String::new(), |rule| format!(", weights used: {rule}"));
    Ok(format!("{}: ESS {:.1} %, k = {k}{rejected}{rule}", series.name, 100.0 * ess))
}

/// Weights this far below the largest, in ln w, are negligible, however many there are: they belong to samples that
/// clash.
const NOTHING: f64 = 1e4;

/// Range of the axis: up to the largest weight, and down to where hardly any are, but for a long tail no further than
/// eight interquartile ranges below the median, nor than [`NOTHING`].
fn log_weight_axis<'a>(all: impl Iterator<Item = &'a [f64]>) -> Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for w in all {
        let [least, lower, median, upper, most] = [0.002, 0.25, 0.5, 0.75, 1.0].map(|q| quantile(w, q));
        low = low.min(least.max(median - 8.0 * (upper - lower)).max(most - NOTHING));
        high = high.max(most);
    }
    let margin = 0.05 * (high - low).max(2.0);
    low - margin..high + margin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shortened("φ of short", 10), "φ of short");
        assert_eq!(shortened("run-of-the-first-replica.npy", 11), "run-o…a.npy");
    }
}
