//! Ordinary differential equations dx/dt = v(t, x) of many independent samples at once.
//!
//! Every sample has its own time, step size and error test; samples meet only in calls of the right-hand side, into
//! which those that need it are packed. So results do not depend on which other samples are in the batch, and a stiff
//! sample does not slow down the others. The right-hand side is never evaluated outside the span, and the last step
//! ends exactly at its end.
//!
//! Dormand and Prince, J. Comput. Appl. Math. 6, 19 (1980); step-size control and the first step as in Hairer, Nørsett
//! and Wanner, Solving Ordinary Differential Equations I, II.4.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Integration method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Order 5(4) with adaptive steps.
    DormandPrince {
        /// Tolerances of x: a step is accepted if the root mean square of eᵢ/(absolute + relative · |xᵢ|) is at most 1
        /// …
        #[serde(default = "x_tolerance")]
        absolute: f64,
        #[serde(default = "x_tolerance")]
        relative: f64,
        /// … and, without a quadrature, the error of the accumulated integral is at most this.
        #[serde(default = "log_density_tolerance")]
        log_density: f64,
        /// Gauss–Legendre points per step, up to 3, at which the integrand is evaluated, on the continuous extension of
        /// the step; 0: the integral is one more component of the solution, evaluated at all six stages. A divergence
        /// costs tens of times the derivative, so three points make a density four times cheaper. Its error is then
        /// controlled by the tolerances of x alone: good for fields whose steps also resolve the divergence along the
        /// path, as measured by [`crate::models::continuous::ContinuousFlow::round_trip`]; not for end-point models,
        /// which are stiff at the end.
        #[serde(default)]
        quadrature: usize,
        /// Maximum number of steps per sample, accepted and rejected, before it is given up.
        #[serde(default = "step_budget")]
        max_steps: usize,
    },
    /// The classical fourth-order method with equal steps: reproducible bit for bit, independent of the rounding of an
    /// error estimate.
    Rk4 { steps: usize },
    /// First order with equal steps.
    Euler { steps: usize },
}

fn x_tolerance() -> f64 {
    1e-5
}

fn log_density_tolerance() -> f64 {
    1e-4
}

fn step_budget() -> usize {
    1000
}

/// Upper limit on steps: more would take days, and point to a damaged file.
const MOST_STEPS: usize = 1_000_000;

impl Default for Method {
    fn default() -> Method {
        Method::DormandPrince {
            absolute: x_tolerance(),
            relative: x_tolerance(),
            log_density: log_density_tolerance(),
            quadrature: 0,
            max_steps: step_budget(),
        }
    }
}

impl Method {
    /// Errors: tolerances that are not positive, too many quadrature points, a number of steps that is zero or too
    /// large.
    pub fn check(&self) -> Result<()> {
        match *self {
            Method::DormandPrince { absolute, relative, log_density, quadrature, max_steps } => {
                let positive = |v: f64| v > 0.0 && v.is_finite();
                if !(positive(absolute) && relative >= 0.0 && relative.is_finite() && positive(log_density)) {
                    return Err(Error::invalid(format!(
                        "solver tolerances {absolute} (absolute), {relative} (relative) and {log_density} \
                         (log-density) must be positive"
                    )));
                }
                if quadrature >= GAUSS_LEGENDRE.len() {
                    let most = GAUSS_LEGENDRE.len() - 1;
                    return Err(Error::invalid(format!(
                        "solver quadrature is {quadrature}: use 0 to {most} points per step"
                    )));
                }
                check_steps("max_steps", max_steps)
            }
            Method::Rk4 { steps } | Method::Euler { steps } => check_steps("steps", steps),
        }
    }
}

fn check_steps(name: &str, steps: usize) -> Result<()> {
    match (1..=MOST_STEPS).contains(&steps) {
        true => Ok(()),
        false => Err(Error::invalid(format!("solver {name} is {steps}: use 1 to {MOST_STEPS}"))),
    }
}

/// One call of the right-hand side, for the m samples that need it.
pub struct Stage<'a> {
    /// Index of each sample in the batch, `[m]`.
    pub rows: &'a [usize],
    /// Times `[m]`.
    pub t: &'a [f64],
    /// Positions `[m][dimension]`.
    pub x: &'a [f64],
    /// Output: dx/dt, `[m][dimension]`; ignored where only the integrand is wanted.
    pub dx: &'a mut [f64],
    /// Output: integrand of the accumulated integral, `[m]`; empty if none is wanted.
    pub rate: &'a mut [f64],
}

/// How the integration of a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// `max_steps` did not suffice.
    StepBudget,
    /// The tolerance demands steps too short to change t.
    StepUnderflow,
    /// The right-hand side or the solution is NaN or infinite, however short the step.
    NonFinite,
}

/// Cost and outcome of integrating one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number of right-hand-side evaluations.
    pub evaluations: usize,
    pub accepted: usize,
    pub rejected: usize,
    pub end: End,
}

/// Description of the samples that were given up, by index and reason; None if all arrived.
pub fn failures(reports: &[Report]) -> Option<String> {
    let failed = || reports.iter().enumerate().filter(|(_, r)| r.end != End::Done);
    let name = |(row, report): (usize, &Report)| {
        let reason = match report.end {
            End::Done => "arrived",
            End::StepBudget => "reached max_steps: increase max_steps or the tolerance",
            End::StepUnderflow => "the steps became too small: increase the tolerance",
            End::NonFinite => "NaN or infinity",
        };
        format!("sample {row}: {reason} ({} steps)", report.accepted + report.rejected)
    };
    let listed: Vec<String> = failed().take(10).map(name).collect();
    let more = failed().count() - listed.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    (!listed.is_empty()).then(|| listed.join("; ") + &more)
}

/// Integrates `x[n][dimension]` from `span[0]` to `span[1]`, in either direction of time, and adds ∫ rate dt to
/// `integral[n]` unless that is empty. A sample that does not end as `Done` keeps the last point it reached.
pub fn integrate(
    method: &Method,
    span: [f64; 2],
    dimension: usize,
    x: &mut [f64],
    integral: &mut [f64],
    derivative: &mut dyn FnMut(Stage),
) -> Vec<Report> {
    let n = x.len() / dimension.max(1);
    assert!(integral.is_empty() || integral.len() == n, "one integral for each of {n} samples");
    let stages = match method {
        Method::DormandPrince { .. } => 7,
        Method::Rk4 { .. } => 4,
        Method::Euler { .. } => 1,
    };
    let nodes = match *method {
        Method::DormandPrince { quadrature, .. } if !integral.is_empty() => GAUSS_LEGENDRE[quadrature],
        _ => &[],
    };
    let mut batch = Batch::new(dimension, x, integral, stages, nodes, derivative);
    match *method {
        Method::DormandPrince { absolute, relative, log_density, max_steps, .. } => {
            let tolerances = Tolerances { absolute, relative, integral: log_density };
            batch.adaptive(span, &tolerances, max_steps);
        }
        Method::Rk4 { steps } => batch.fixed(span, &RK4, steps),
        Method::Euler { steps } => batch.fixed(span, &EULER, steps),
    }
    batch.write(x, integral);
    batch.reports
}

/// An explicit Runge–Kutta method: kᵢ = f(t + cᵢh, y + h Σⱼ aᵢⱼ kⱼ), y ← y + h Σᵢ bᵢ kᵢ.
struct Tableau {
    c: &'static [f64],
    a: &'static [&'static [f64]],
    b: &'static [f64],
}

const EULER: Tableau = Tableau { c: &[0.0], a: &[&[]], b: &[1.0] };

const RK4: Tableau = Tableau {
    c: &[0.0, 0.5, 0.5, 1.0],
    a: &[&[], &[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]],
    b: &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0],
};

/// The last stage is at the new point, so it is also the first of the next step, and b is its row.
const DORMAND_PRINCE: Tableau = Tableau {
    c: &[0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0],
    a: &[
        &[],
        &[0.2],
        &[3.0 / 40.0, 9.0 / 40.0],
        &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
        &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
        &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
        &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
    ],
    b: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0],
};

/// b − b̂ of the embedded method of order 4.
const ERROR: [f64; 7] =
    [71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0];

/// Coefficients dᵢ of the fourth-order continuous extension (Hairer et al., II.6), whose last term is θ²(1 − θ)² h Σᵢ
/// dᵢ kᵢ.
const EXTENSION: [f64; 7] = [
    -12715105075.0 / 11282082432.0,
    0.0,
    87487479700.0 / 32700410799.0,
    -10690763975.0 / 1880347072.0,
    701980252875.0 / 199316789632.0,
    -1453857185.0 / 822651844.0,
    69997945.0 / 29380423.0,
];

/// Quadrature point on [0, 1] and its weight.
type Node = [f64; 2];

/// Gauss–Legendre rules, by number of points.
const GAUSS_LEGENDRE: [&[Node]; 4] = [
    &[],
    &[[0.5, 1.0]],
    &[[0.211_324_865_405_187_1, 0.5], [0.788_675_134_594_812_9, 0.5]],
    &[[0.112_701_665_379_258_31, 5.0 / 18.0], [0.5, 4.0 / 9.0], [0.887_298_334_620_741_7, 5.0 / 18.0]],
];

struct Tolerances {
    absolute: f64,
    relative: f64,
    integral: f64,
}

/// Time of a sample and the step it tries.
#[derive(Clone, Copy)]
struct Clock {
    t: f64,
    h: f64,
    /// Size of the following step, if this one is accepted.
    then: f64,
    /// End of the step: t + h, or exactly the end of the span.
    next: f64,
    /// Whether the last step was rejected, after which the next may not grow.
    rejected: bool,
    /// Whether the last error estimate was NaN or infinite.
    non_finite: bool,
}

impl Clock {
    fn at(&self, c: f64) -> f64 {
        if c == 1.0 {
            self.next
        } else {
            self.t + c * self.h
        }
    }
}

/// Samples of one integration. A row has `width` numbers: x and, unless a quadrature computes it, the integral if one
/// is wanted.
struct Batch<'a> {
    dimension: usize,
    width: usize,
    /// Quadrature points of each step; empty if the integral is a component.
    nodes: &'static [Node],
    /// Integrals computed by the quadrature.
    sums: Vec<f64>,
    y: Vec<f64>,
    /// Next evaluation point of each row; after all stages of Dormand–Prince, the new point.
    trial: Vec<f64>,
    k: Vec<Vec<f64>>,
    clocks: Vec<Clock>,
    reports: Vec<Report>,
    derivative: &'a mut dyn FnMut(Stage),
    packed_t: Vec<f64>,
    packed_x: Vec<f64>,
    packed_dx: Vec<f64>,
    packed_rate: Vec<f64>,
}

impl<'a> Batch<'a> {
    fn new(
        dimension: usize,
        x: &[f64],
        integral: &[f64],
        stages: usize,
        nodes: &'static [Node],
        derivative: &'a mut dyn FnMut(Stage),
    ) -> Batch<'a> {
        let n = x.len() / dimension.max(1);
        let (components, sums) = if nodes.is_empty() { (integral, &[][..]) } else { (&[][..], integral) };
        let width = dimension + usize::from(!components.is_empty());
        let mut y = Vec::with_capacity(n * width);
        for (row, x) in x.chunks_exact(dimension).enumerate() {
            y.extend_from_slice(x);
            y.extend(components.get(row));
        }
        Batch {
            dimension,
            width,
            nodes,
            sums: sums.to_vec(),
            trial: y.clone(),
            k: vec![vec![0.0; y.len()]; stages],
            y,
            clocks: vec![Clock { t: 0.0, h: 0.0, then: 0.0, next: 0.0, rejected: false, non_finite: false }; n],
            reports: vec![Report { evaluations: 0, accepted: 0, rejected: 0, end: End::Done }; n],
            derivative,
            packed_t: Vec::with_capacity(n),
            packed_x: Vec::with_capacity(n * dimension),
            packed_dx: vec![0.0; n * dimension],
            packed_rate: vec![0.0; integral.len()],
        }
    }

    fn write(&self, x: &mut [f64], integral: &mut [f64]) {
        let d = self.dimension;
        for (row, y) in self.y.chunks_exact(self.width).enumerate() {
            x[row * d..][..d].copy_from_slice(&y[..d]);
            let found = y.get(d).or_else(|| self.sums.get(row));
            integral.iter_mut().skip(row).take(1).zip(found).for_each(|(integral, found)| *integral = *found);
        }
    }

    /// Evaluates k_stage of these rows at their trial points.
    fn evaluate(&mut self, rows: &[usize], stage: usize, c: f64) {
        if rows.is_empty() {
            return;
        }
        let (d, w) = (self.dimension, self.width);
        self.packed_t.clear();
        self.packed_x.clear();
        for &row in rows {
            self.packed_t.push(self.clocks[row].at(c));
            self.packed_x.extend_from_slice(&self.trial[row * w..][..d]);
        }
        (self.derivative)(Stage {
            rows,
            t: &self.packed_t,
            x: &self.packed_x,
            dx: &mut self.packed_dx[..rows.len() * d],
            rate: &mut self.packed_rate[..rows.len() * (w - d)],
        });
        for (i, &row) in rows.iter().enumerate() {
            let k = &mut self.k[stage][row * w..][..w];
            k[..d].copy_from_slice(&self.packed_dx[i * d..][..d]);
            k[d..].copy_from_slice(&self.packed_rate[i * (w - d)..][..w - d]);
            self.reports[row].evaluations += 1;
        }
    }

    /// Element i of y + h Σⱼ aⱼ kⱼ.
    fn combined(&self, i: usize, h: f64, coefficients: &[f64]) -> f64 {
        let sum: f64 = coefficients.iter().zip(&self.k).map(|(a, k)| if *a == 0.0 { 0.0 } else { a * k[i] }).sum();
        self.y[i] + h * sum
    }

    /// Evaluates the stages of one step from `first` on.
    fn stages(&mut self, rows: &[usize], tableau: &Tableau, first: usize) {
        for stage in first..tableau.c.len() {
            for &row in rows {
                for i in row * self.width..(row + 1) * self.width {
                    self.trial[i] = self.combined(i, self.clocks[row].h, tableau.a[stage]);
                }
            }
            self.evaluate(rows, stage, tableau.c[stage]);
        }
    }

    fn fixed(&mut self, [start, end]: [f64; 2], tableau: &Tableau, steps: usize) {
        let rows: Vec<usize> = (0..self.clocks.len()).collect();
        let time = |step: usize| if step == steps { end } else { start + (end - start) * (step as f64 / steps as f64) };
        for step in 0..steps {
            let (t, next) = (time(step), time(step + 1));
            self.clocks.fill(Clock { t, h: next - t, then: 0.0, next, rejected: false, non_finite: false });
            self.stages(&rows, tableau, 0);
            for i in 0..self.y.len() {
                self.y[i] = self.combined(i, next - t, tableau.b);
            }
        }
        for (report, y) in self.reports.iter_mut().zip(self.y.chunks_exact(self.width)) {
            report.accepted = steps;
            if y.iter().any(|v| !v.is_finite()) {
                report.end = End::NonFinite;
            }
        }
    }

    fn adaptive(&mut self, [start, end]: [f64; 2], tolerances: &Tolerances, max_steps: usize) {
        let mut rows: Vec<usize> = (0..self.clocks.len()).collect();
        if start == end || rows.is_empty() {
            return;
        }
        self.first_steps(&rows, [start, end], tolerances);
        while !rows.is_empty() {
            rows.retain(|&row| self.plan(row, end, max_steps));
            self.stages(&rows, &DORMAND_PRINCE, 1);
            let accepted: Vec<usize> = rows.iter().copied().filter(|&row| self.judge(row, tolerances)).collect();
            self.accumulate(&accepted);
            accepted.iter().for_each(|&row| self.advance(row));
            rows.retain(|&row| self.clocks[row].t != end);
        }
        for (report, _) in self.reports.iter_mut().zip(&self.sums).filter(|(_, sum)| !sum.is_finite()) {
            report.end = End::NonFinite;
        }
    }

    /// Adds the quadrature h Σ w rate(t + θh, x(t + θh)) over the steps of these rows.
    fn accumulate(&mut self, rows: &[usize]) {
        if rows.is_empty() {
            return;
        }
        let d = self.dimension;
        for &[theta, weight] in self.nodes {
            self.packed_t.clear();
            self.packed_x.clear();
            for &row in rows {
                self.packed_t.push(self.clocks[row].at(theta));
                for i in row * self.width..row * self.width + d {
                    let x = self.extension(i, self.clocks[row].h, theta);
                    self.packed_x.push(x);
                }
            }
            (self.derivative)(Stage {
                rows,
                t: &self.packed_t,
                x: &self.packed_x,
                dx: &mut self.packed_dx[..rows.len() * d],
                rate: &mut self.packed_rate[..rows.len()],
            });
            for (&row, rate) in rows.iter().zip(&self.packed_rate) {
                self.sums[row] += self.clocks[row].h * weight * rate;
                self.reports[row].evaluations += 1;
            }
        }
    }

    /// Element i at t + θh of a step with all stages computed: the fourth-order polynomial that matches the step's ends
    /// and slopes.
    fn extension(&self, i: usize, h: f64, theta: f64) -> f64 {
        let shift = self.trial[i] - self.y[i];
        let (first, last) = (h * self.k[0][i] - shift, shift - h * self.k[6][i]);
        let rest = h * EXTENSION.iter().zip(&self.k).map(|(d, k)| if *d == 0.0 { 0.0 } else { d * k[i] }).sum::<f64>();
        let other = 1.0 - theta;
        self.y[i] + theta * (shift + other * (first + theta * (last - first + other * rest)))
    }

    /// Plans the step a sample tries next; false if the sample is given up.
    fn plan(&mut self, row: usize, end: f64, max_steps: usize) -> bool {
        let (clock, report) = (&mut self.clocks[row], &mut self.reports[row]);
        report.end = if report.accepted + report.rejected >= max_steps {
            End::StepBudget
        } else if clock.t + 0.1 * clock.h == clock.t || clock.h.is_nan() {
            if clock.non_finite {
                End::NonFinite
            } else {
                End::StepUnderflow
            }
        } else {
            End::Done
        };
        // a step that would leave a sliver is extended to the end
        if (1.01 * clock.h).abs() >= (end - clock.t).abs() {
            clock.h = end - clock.t;
            clock.next = end;
        } else {
            clock.next = clock.t + clock.h;
        }
        report.end == End::Done
    }

    /// Whether a sample's step is accepted; sets the size of the next.
    fn judge(&mut self, row: usize, tolerances: &Tolerances) -> bool {
        let h = self.clocks[row].h;
        let error =
            |i: usize| h * ERROR.iter().zip(&self.k).map(|(e, k)| if *e == 0.0 { 0.0 } else { e * k[i] }).sum::<f64>();
        let error = self.norm(row, error, tolerances);
        let clock = &mut self.clocks[row];
        clock.non_finite = !error.is_finite();
        let factor = if clock.non_finite { 0.2 } else { (0.9 * error.powf(-0.2)).clamp(0.2, 10.0) };
        if error > 1.0 || clock.non_finite {
            self.reports[row].rejected += 1;
            clock.rejected = true;
            clock.h *= factor.min(1.0);
            return false;
        }
        self.reports[row].accepted += 1;
        clock.then = clock.h * if clock.rejected { factor.min(1.0) } else { factor };
        clock.rejected = false;
        true
    }

    /// Advances a row to the end of its accepted step.
    fn advance(&mut self, row: usize) {
        let range = row * self.width..(row + 1) * self.width;
        let clock = &mut self.clocks[row];
        (clock.t, clock.h) = (clock.next, clock.then);
        self.y[range.clone()].copy_from_slice(&self.trial[range.clone()]);
        let (first, rest) = self.k.split_at_mut(1);
        first[0][range.clone()].copy_from_slice(&rest[5][range]);
    }

    /// Norm of a vector in units of the tolerance at this row: root mean square over x or magnitude of the integral,
    /// whichever is larger; infinite if any element is not finite.
    fn norm(&self, row: usize, vector: impl Fn(usize) -> f64, tolerances: &Tolerances) -> f64 {
        let first = row * self.width;
        let mut sum = 0.0;
        for i in first..first + self.dimension {
            let scale = tolerances.absolute + tolerances.relative * self.y[i].abs().max(self.trial[i].abs());
            sum += (vector(i) / scale).powi(2);
        }
        let x = (sum / self.dimension as f64).sqrt();
        let integral = (first + self.dimension..first + self.width).map(|i| (vector(i) / tolerances.integral).abs());
        // f64::max would ignore a NaN
        let all: f64 = integral.fold(x, |a, b| if a >= b { a } else { b });
        if all.is_finite() && x.is_finite() {
            all
        } else {
            f64::INFINITY
        }
    }

    /// Evaluates the first derivative of every row and sets the first step by the estimates of Hairer et al., II.4.
    fn first_steps(&mut self, rows: &[usize], [start, end]: [f64; 2], tolerances: &Tolerances) {
        let span = end - start;
        self.clocks.iter_mut().for_each(|clock| clock.t = start);
        self.evaluate(rows, 0, 0.0);
        let mut sizes = Vec::with_capacity(rows.len());
        for &row in rows {
            let y = self.norm(row, |i| self.y[i], tolerances);
            let slope = self.norm(row, |i| self.k[0][i], tolerances);
            let h = if y < 1e-5 || slope < 1e-5 { 1e-6 } else { 0.01 * y / slope };
            self.clocks[row].h = h.min(span.abs()).copysign(span);
            sizes.push(slope);
        }
        for &row in rows {
            let h = self.clocks[row].h;
            self.clocks[row].next = start + h;
            for i in row * self.width..(row + 1) * self.width {
                self.trial[i] = self.combined(i, h, &[1.0]);
            }
        }
        self.evaluate(rows, 1, 1.0);
        for (&row, slope) in rows.iter().zip(sizes) {
            let h = self.clocks[row].h.abs();
            let curvature = self.norm(row, |i| self.k[1][i] - self.k[0][i], tolerances) / h;
            let steepest = slope.max(curvature);
            let next = if steepest <= 1e-15 { (1e-3 * h).max(1e-6) } else { (0.01 / steepest).powf(0.2) };
            let next = next.min(100.0 * h).min(span.abs());
            // a first guess lost to infinities is replaced by a short step
            let next = if next > 0.0 { next } else { 1e-6 * span.abs() };
            self.clocks[row].h = next.copysign(span);
        }
    }
}

#[cfg(test)]
#[path = "ode_tests.rs"]
mod tests;
