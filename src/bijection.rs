//! **Bijection**: an invertible map between configurations, made of two flows with one latent space.
//!
//! f = T_b ∘ T_a⁻¹, ln|∂f/∂x| = ln|∂T_b/∂z| − ln|∂T_a/∂z| at z = T_a⁻¹(x). All uses of such maps in moves have this
//! form: between two metastable states, T_a and T_b are the generators of the states (neural mode jumps: Sbailò, Dibak
//! and Noé, J. Chem. Phys. 154, 074101 (2021)); between two temperatures, the generators at each, or T_a is the fixed
//! layers from which T_b's training began, so that f began as the identity (learned replica exchange: Invernizzi,
//! Krämer, Clementi and Noé, J. Phys. Chem. Lett. 13, 11643 (2022)); with T_a = T_b and a step in between, it is a walk
//! in latent space (Noé, Olsson, Köhler and Wu, Science 365, eaaw1147 (2019)).
//!
//! The latent density of a steerable model is N(0, τ I), so between two of its temperatures z is also scaled by
//! √(τ_b/τ_a).

use crate::coordinates::frame::Frame;
use crate::density::{Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::models::{flow_of, Flow, Model};
use std::sync::Arc;

/// f = T_b ∘ T_a⁻¹ of two models.
#[derive(Clone)]
pub struct Bijection {
    from: Arc<dyn Model>,
    to: Arc<dyn Model>,
    frame: Option<[usize; 3]>,
    /// Indices of the latent coordinates that live on [0, 1].
    uniform: Vec<usize>,
    /// √(τ_b/τ_a), by which the others are scaled.
    scale: f64,
}

/// Log-densities of one mapping x → y: the two sides of a proposal, relative to volume in latent space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mapped {
    /// −ln|∂y/∂z|.
    pub forward: Evaluation,
    /// −ln|∂x/∂z|.
    pub reverse: Evaluation,
}

impl Mapped {
    /// ln|∂y/∂x|; −∞ if there is no y.
    pub fn log_det(&self) -> f64 {
        match self.status() {
            Status::Inside => self.reverse.log_density - self.forward.log_density,
            _ => f64::NEG_INFINITY,
        }
    }

    /// Why there is no y, or `Inside`.
    pub fn status(&self) -> Status {
        match self.reverse.status {
            Status::Inside => self.forward.status,
            status => status,
        }
    }
}

impl Bijection {
    /// The bijection from configurations of one model to those of another.
    ///
    /// Errors: log-determinants that are not exact; models that are not flows; different atoms, latent spaces or
    /// frames; models that describe neither all coordinates nor the shape; models with auxiliary coordinates.
    pub fn new(from: Arc<dyn Model>, to: Arc<dyn Model>) -> Result<Bijection> {
        if [&from, &to].iter().any(|model| model.steering().is_some_and(|s| s.auxiliary > 0)) {
            return Err(Error::Unsupported(
                "a map between models is not supported for models with auxiliary coordinates".into(),
            ));
        }
        let (a, b) = (flow_of(from.as_ref())?, flow_of(to.as_ref())?);
        if let Some(model) = [&from, &to].into_iter().find(|model| model.exactness() != Exactness::Exact) {
            return Err(Error::Unsupported(format!(
                "{}: a map between models requires two exact log-determinants, but that of this model is {}",
                model.card().model.kind(),
                model.exactness().name()
            )));
        }
        let (uniform, other) = (uniform_of(a), uniform_of(b));
        if from.dimension() != to.dimension() || a.latent_dimension() != b.latent_dimension() || uniform != other {
            return Err(Error::invalid(format!(
                "a map between models requires the same latent space: {} coordinates from {} latent ones ({} uniform) \
                 do not match {} from {} ({} uniform)",
                from.dimension(),
                a.latent_dimension(),
                uniform.len(),
                to.dimension(),
                b.latent_dimension(),
                other.len()
            )));
        }
        let frame = match (from.scope(), to.scope()) {
            (Scope::Full, Scope::Full) => None,
            (Scope::Shape { frame }, Scope::Shape { frame: same }) if frame == same => Some(frame),
            (Scope::Shape { frame }, Scope::Shape { frame: other }) => {
                return Err(Error::invalid(format!(
                    "a map between models requires the same frame atoms: {frame:?} do not match {other:?}"
                )))
            }
            _ => {
                return Err(Error::Unsupported(
                    "a map between models requires two models that describe all coordinates, or two in internal \
                     coordinates"
                        .into(),
                ))
            }
        };
        if let (Some(a), Some(b)) = (&from.card().topology, &to.card().topology) {
            if !a.has_atoms_of(b) {
                return Err(Error::invalid("a map between models requires the same atoms in the same order"));
            }
        }
        let variance = |model: &Arc<dyn Model>| model.steering().map_or(1.0, |s| s.variance);
        let scale = (variance(&to) / variance(&from)).sqrt();
        Ok(Bijection { from, to, frame, uniform, scale })
    }

    /// f⁻¹.
    pub fn inverse(&self) -> Bijection {
        Bijection { from: self.to.clone(), to: self.from.clone(), scale: 1.0 / self.scale, ..self.clone() }
    }

    /// T_a.
    pub fn from(&self) -> &Arc<dyn Model> {
        &self.from
    }

    /// T_b.
    pub fn to(&self) -> &Arc<dyn Model> {
        &self.to
    }

    /// Number of coordinates per configuration.
    pub fn dimension(&self) -> usize {
        self.from.dimension()
    }

    /// Whether position and orientation are left unchanged.
    pub fn changes_shape_only(&self) -> bool {
        self.frame.is_some()
    }

    /// y = f(x) for rows of `x[n][dimension]`, whole molecules. If f changes the shape only, y has the frame of x. For
    /// a row without an image, y = x.
    pub fn map(&self, x: &[f64], y: &mut [f64], mapped: &mut [Mapped]) -> Result<()> {
        self.map_with(x, y, mapped, &mut |_, _| {})
    }

    /// [`Bijection::map`] with a step in between: y = T_b(z′), where `step(row, z)` turns z = T_a⁻¹(x) into z′ in
    /// place.
    ///
    /// A step with symmetric density leaves the two sides of the proposal unchanged. Latent coordinates that are
    /// uniform on [0, 1] are periodic: a step beyond one end re-enters at the other.
    pub fn map_with(
        &self,
        x: &[f64],
        y: &mut [f64],
        mapped: &mut [Mapped],
        step: &mut dyn FnMut(usize, &mut [f64]),
    ) -> Result<()> {
        let n = mapped.len();
        let (a, b) = (flow_of(self.from.as_ref())?, flow_of(self.to.as_ref())?);
        let latent = a.latent_dimension();
        let mut z = vec![0.0; n * latent];
        let mut log_det = vec![0.0; n];
        let mut evaluations = vec![Evaluation::outside(Status::NonFinite); n];
        a.encode(x, &mut z, &mut log_det, &mut evaluations)?;
        for ((mapped, log_det), evaluation) in mapped.iter_mut().zip(&log_det).zip(&evaluations) {
            mapped.reverse = volume(evaluation.status, *log_det);
        }
        for (row, z) in z.chunks_exact_mut(latent).enumerate() {
            match mapped[row].reverse.is_inside() {
                true => {
                    if self.scale != 1.0 {
                        (0..latent).filter(|i| !self.uniform.contains(i)).for_each(|i| z[i] *= self.scale);
                    }
                    step(row, z)
                }
                false => z.fill(0.5), // arbitrary: the row has no image
            }
            for &i in &self.uniform {
                if !(0.0..=1.0).contains(&z[i]) {
                    z[i] -= z[i].floor();
                }
            }
        }
        b.generate(&z, y, &mut log_det, &mut evaluations)?;
        let of_scale = (latent - self.uniform.len()) as f64 * self.scale.ln();
        let rows = x.chunks_exact(self.dimension()).zip(y.chunks_exact_mut(self.dimension()));
        for (((x, y), mapped), (log_det, evaluation)) in rows.zip(mapped).zip(log_det.iter().zip(&evaluations)) {
            mapped.forward = volume(evaluation.status, log_det + of_scale);
            if mapped.status() == Status::Inside && !self.place(x, y) {
                mapped.forward = Evaluation::outside(Status::Singular);
            }
            if mapped.status() != Status::Inside {
                y.copy_from_slice(x);
            }
        }
        Ok(())
    }

    /// Places y on the frame of x if f changes the shape only; false if either has no frame.
    pub(crate) fn place(&self, x: &[f64], y: &mut [f64]) -> bool {
        let Some(atoms) = self.frame else { return true };
        match (Frame::of(y, atoms), Frame::of(x, atoms)) {
            (Some(from), Some(to)) => {
                from.carry(y, &to);
                true
            }
            _ => false,
        }
    }
}

fn volume(status: Status, log_det: f64) -> Evaluation {
    match status {
        Status::Inside => Evaluation::inside(-log_det),
        status => Evaluation::outside(status),
    }
}

fn uniform_of(flow: &dyn Flow) -> Vec<usize> {
    (0..flow.latent_dimension()).filter(|&i| flow.is_uniform(i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::model_file;
    use crate::models::coupling::CouplingFlow;
    use crate::models::{self, Precision};
    use crate::rng::{Stream, StreamId};
    use crate::testing::log_abs_determinant;

    const FILE: &str = "models/ala2/model.safetensors";

    fn flow() -> CouplingFlow<f64> {
        let bytes = std::fs::read(FILE).unwrap();
        CouplingFlow::from_file(&model_file::read(FILE, &bytes).unwrap()).unwrap()
    }

    /// Map from a flow to a copy with perturbed parameters, and n configurations of the first, rotated and translated.
    fn example(n: usize) -> (Bijection, Vec<f64>) {
        let (from, mut to) = (flow(), flow());
        let mut stream = Stream::new(3, StreamId::Test, 0, 0);
        to.parameters_mut().iter_mut().for_each(|p| *p += 0.01 * stream.normal());
        let from: Arc<dyn Model> = Arc::new(from);
        let mut x = vec![0.0; n * from.dimension()];
        let streams = |row: usize| Stream::new(4, StreamId::Test, row as u64, 0);
        from.sample(&streams, &mut x, &mut vec![Evaluation::inside(0.0); n]).unwrap();
        for x in x.chunks_exact_mut(from.dimension()) {
            let turn = Frame::of(x, [0, 5, 9]).unwrap();
            let there = Frame { origin: [1.0, -2.0, 0.5], axes: [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]] };
            turn.carry(x, &there);
        }
        (Bijection::new(from, Arc::new(to)).unwrap(), x)
    }

    fn nothing(n: usize) -> Vec<Mapped> {
        let nowhere = Evaluation::outside(Status::NonFinite);
        vec![Mapped { forward: nowhere, reverse: nowhere }; n]
    }

    #[test]
    fn the_inverse_comes_back_to_every_atom() {
        let n = 8;
        let (map, x) = example(n);
        let (mut y, mut back) = (x.clone(), x.clone());
        let (mut there, mut again) = (nothing(n), nothing(n));
        map.map(&x, &mut y, &mut there).unwrap();
        map.inverse().map(&y, &mut back, &mut again).unwrap();
        let moved = y.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let lost = back.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(moved > 1e-3 && lost < 1e-10, "moved {moved:.1e} nm, lost {lost:.1e} nm");
        for (there, again) in there.iter().zip(&again) {
            assert_eq!(there.status(), Status::Inside);
            assert!((there.log_det() + again.log_det()).abs() < 1e-8, "{there:?} {again:?}");
        }
    }

    #[test]
    fn between_two_temperatures_of_a_steerable_model_one_density_becomes_the_other() {
        let model = models::load_with("models/ala2/steerable.safetensors", Precision::F64).unwrap();
        let [cold, hot] = [300.0, 600.0].map(|kelvin| model.at_temperature(kelvin).unwrap());
        let (n, streams) = (5, |row: usize| Stream::new(4, StreamId::Test, row as u64, 0));
        let mut x = vec![0.0; n * model.dimension()];
        let [mut of_x, mut of_y] = [vec![Evaluation::inside(0.0); n], vec![Evaluation::inside(0.0); n]];
        cold.sample(&streams, &mut x, &mut of_x).unwrap();
        let map = Bijection::new(cold, hot.clone()).unwrap();
        let (mut y, mut back) = (x.clone(), x.clone());
        let (mut there, mut again) = (nothing(n), nothing(n));
        map.map(&x, &mut y, &mut there).unwrap();
        map.inverse().map(&y, &mut back, &mut again).unwrap();
        hot.log_density(&y, &mut of_y).unwrap();
        for row in 0..n {
            let expected = of_x[row].log_density - there[row].log_det();
            assert!((of_y[row].log_density - expected).abs() < 1e-7, "{} {expected}", of_y[row].log_density);
            assert!((there[row].log_det() + again[row].log_det()).abs() < 1e-7);
        }
        assert!(x.iter().zip(&back).all(|(x, back)| (x - back).abs() < 1e-9));
    }

    /// Frame atoms stay on their axes, which leaves them three directions; the other atoms are free.
    #[test]
    fn the_log_determinant_is_that_of_finite_differences() {
        let (map, x) = example(1);
        let atoms = map.frame.unwrap();
        let frame = Frame::of(&x, atoms).unwrap();
        let d = x.len();
        // displacements that keep the frame: the second atom along z, the third in its plane, all others freely
        let mut directions: Vec<(usize, [f64; 3])> = vec![(atoms[1], frame.axes[2])];
        directions.extend([(atoms[2], frame.axes[0]), (atoms[2], frame.axes[2])]);
        for i in (0..d / 3).filter(|i| !atoms.contains(i)) {
            directions.extend(frame.axes.map(|axis| (i, axis)));
        }
        let n = directions.len();
        let h = 1e-6;
        let mut rows = Vec::with_capacity(2 * n * d);
        for &(i, axis) in &directions {
            for sign in [1.0, -1.0] {
                let mut moved = x.clone();
                (0..3).for_each(|k| moved[3 * i + k] += sign * h * axis[k]);
                rows.extend(moved);
            }
        }
        let mut y = rows.clone();
        map.map(&rows, &mut y, &mut nothing(2 * n)).unwrap();
        let mut jacobian = vec![vec![0.0; n]; n];
        for column in 0..n {
            let (up, down) = (&y[2 * column * d..][..d], &y[(2 * column + 1) * d..][..d]);
            for (row, &(i, axis)) in directions.iter().enumerate() {
                jacobian[row][column] =
                    (0..3).map(|k| axis[k] * (up[3 * i + k] - down[3 * i + k])).sum::<f64>() / (2.0 * h);
            }
        }
        let mut image = vec![0.0; d];
        let mut mapped = nothing(1);
        map.map(&x, &mut image, &mut mapped).unwrap();
        // per volume of the shape: dx = dx₀ dR · |x₁ − x₀|² · a · d(z₁) d(a, z₂) d(others), a the third atom's distance
        // from the axis
        let measure = |x: &[f64]| {
            let frame = Frame::of(x, atoms).unwrap();
            let component = |i: usize, axis: usize| {
                (0..3).map(|k| (x[3 * i + k] - frame.origin[k]) * frame.axes[axis][k]).sum::<f64>()
            };
            2.0 * component(atoms[1], 2).ln() + component(atoms[2], 0).ln()
        };
        let expected = log_abs_determinant(jacobian) + measure(&image) - measure(&x);
        assert!((mapped[0].log_det() - expected).abs() < 1e-5, "{} against {expected}", mapped[0].log_det());
    }

    #[test]
    fn of_one_model_it_is_the_identity() {
        let (map, x) = example(3);
        let identity = Bijection::new(map.from.clone(), map.from.clone()).unwrap();
        let (mut y, mut mapped) = (vec![0.0; x.len()], nothing(3));
        identity.map(&x, &mut y, &mut mapped).unwrap();
        let error = y.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-12, "{error:.1e} nm");
        mapped.iter().for_each(|m| assert!(m.log_det().abs() < 1e-9, "{m:?}"));
    }

    #[test]
    fn what_has_no_image_is_left_alone_and_says_why() {
        let (map, mut x) = example(2);
        x[0] = f64::NAN;
        let (mut y, mut mapped) = (vec![0.0; x.len()], nothing(2));
        map.map(&x, &mut y, &mut mapped).unwrap();
        assert!(mapped[0].status() != Status::Inside && mapped[0].log_det() == f64::NEG_INFINITY);
        assert_eq!(mapped[1].status(), Status::Inside);
        let d = map.dimension();
        assert!(y[0].is_nan() && y[1..d] == x[1..d]);
    }

    #[test]
    fn models_of_other_spaces_are_refused() {
        let ala2: Arc<dyn Model> = Arc::new(flow());
        let load = |path: &str| crate::models::load(path).unwrap();
        let error = Bijection::new(ala2.clone(), load("models/double-well/generator.safetensors")).err().unwrap();
        assert!(error.to_string().contains("same latent space"), "{error}");
        let error = Bijection::new(ala2.clone(), load("models/ala2/model-vacuum.safetensors")).err().unwrap();
        assert!(error.to_string().contains("same latent space"), "{error}");
        let error = Bijection::new(ala2, load("models/ala2/invariant-ebm.safetensors")).err().unwrap();
        assert!(error.to_string().contains("no latent space"), "{error}");
    }
}
