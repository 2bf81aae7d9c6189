//! Velocities after a jump.
//!
//! GROMACS stores v(t − h/2), which is correlated with the force at t; kept across a jump it heats the system (by 4 %,
//! measured with a jump every 20 steps). The Maxwell–Boltzmann distribution, independent of x, is that of on-step
//! velocities.
//!
//! - The model's atoms get new velocities ξ in the form that the integrator stores: ξ − h/2 · F(x′ − h/4 · ξ)/m. The
//!   simple form, with F(x′), is too hot by 1 + h²ω²/4 for a vibration of frequency ω, since in such integrators the
//!   variance of on-step velocities is smaller by that factor than half a step before. The momentum of the model's
//!   atoms is kept, so that removal of centre-of-mass motion has nothing to remove; velocities are drawn from the
//!   distribution given that momentum.
//! - All others keep their on-step velocities: v + h/2 · (F(x) − F(x′))/m.

use crate::coordinates::constraints::Constraints;
use crate::rng::Stream;

/// Masses (dalton) and constraints of the model's atoms.
pub(super) struct ModelAtoms {
    pub masses: Vec<f64>,
    pub constraints: Option<Constraints>,
}

impl ModelAtoms {
    /// Draws on-step velocities, nm/ps, from Maxwell–Boltzmann given the constraints at `x` and the momentum (dalton
    /// nm/ps).
    pub fn draw(&mut self, kt: f64, x: &[f64], momentum: [f64; 3], stream: &mut Stream) -> Vec<f64> {
        let mut v: Vec<f64> =
            self.masses.iter().flat_map(|&m| [(kt / m).sqrt(); 3]).map(|width| width * stream.normal()).collect();
        self.project(x, &mut v);
        self.shift_to(momentum, &mut v);
        v
    }

    /// Converts on-step velocities to stored ones, with the forces on the model's atoms (kJ/(mol nm)); `h` in ps. The
    /// resulting momentum is given, since it follows from the forces at `x`, and `forces` may be those of another
    /// point.
    pub fn step_back(
        &mut self,
        h: f64,
        x: &[f64],
        drawn: &[f64],
        forces: &[f64],
        stored_momentum: [f64; 3],
    ) -> Vec<f64> {
        let kicked = drawn.iter().zip(forces).enumerate();
        let mut v: Vec<f64> = kicked.map(|(k, (v, f))| v - 0.5 * h * f / self.masses[k / 3]).collect();
        self.project(x, &mut v);
        self.shift_to(stored_momentum, &mut v);
        v
    }

    fn project(&mut self, x: &[f64], v: &mut [f64]) {
        if let Some(constraints) = &mut self.constraints {
            constraints.project_velocities(x, v);
        }
    }

    pub fn momentum(&self, v: &[f64]) -> [f64; 3] {
        let mut sum = [0.0; 3];
        v.iter().enumerate().for_each(|(k, v)| sum[k % 3] += self.masses[k / 3] * v);
        sum
    }

    /// Adds one common velocity to reach this momentum.
    fn shift_to(&self, momentum: [f64; 3], v: &mut [f64]) {
        let (now, mass) = (self.momentum(v), self.masses.iter().sum::<f64>());
        v.iter_mut().enumerate().for_each(|(k, v)| *v += (momentum[k % 3] - now[k % 3]) / mass);
    }
}

/// Total impulse of half a step: h/2 · Σ F.
pub(super) fn half_impulse(h: f64, forces: &[f64]) -> [f64; 3] {
    let mut sum = [0.0; 3];
    forces.iter().enumerate().for_each(|(k, f)| sum[k % 3] += 0.5 * h * f);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::StreamId;

    #[test]
    fn drawn_velocities_have_the_temperature_and_the_momentum() {
        let mut atoms = ModelAtoms { masses: vec![12.0, 1.0, 16.0], constraints: None };
        let x = [0.0; 9];
        let (kt, momentum, n) = (2.5, [1.0, -2.0, 3.0], 20_000);
        let mut energy = 0.0;
        for step in 0..n {
            let v = atoms.draw(kt, &x, momentum, &mut Stream::new(3, StreamId::Test, step, 0));
            let found = atoms.momentum(&v);
            assert!((0..3).all(|a| (found[a] - momentum[a]).abs() < 1e-12));
            energy += (0..9).map(|k| 0.5 * atoms.masses[k / 3] * v[k] * v[k]).sum::<f64>();
        }
        // six degrees of freedom, and the centre-of-mass motion: P²/2M
        let expected = 3.0 * kt + 14.0 / (2.0 * 29.0);
        let mean = energy / n as f64;
        assert!((mean - expected).abs() < 5.0 * kt * (3.0 / n as f64).sqrt(), "{mean} {expected}");
    }

    /// The first step of the dynamics would correct a stretched bond, at the cost of energy.
    #[test]
    fn velocities_change_no_bond_that_is_constrained() {
        let masses = vec![12.0, 1.0, 16.0];
        let x = [0.0, 0.0, 0.0, 0.1, 0.02, 0.0, -0.05, 0.11, 0.03];
        let pairs = [[0, 1], [2, 0]];
        let lengths = pairs.map(|[a, b]| crate::coordinates::vector::distance(&x, a, b));
        let constraints = Some(Constraints::new(&pairs, &lengths, &masses).unwrap());
        let mut atoms = ModelAtoms { masses, constraints };
        let forces: Vec<f64> = (0..9).map(|k| 900.0 * (1.3 * f64::from(k)).cos()).collect();
        let (before, after) = ([1.0, -2.0, 3.0], [0.5, 0.0, 1.0]);
        let drawn = atoms.draw(2.5, &x, before, &mut Stream::new(3, StreamId::Test, 0, 0));
        let stored = atoms.step_back(0.002, &x, &drawn, &forces, after);
        for (v, momentum) in [(&drawn, before), (&stored, after)] {
            for [a, b] in pairs {
                let rate: f64 = (0..3).map(|k| (x[3 * a + k] - x[3 * b + k]) * (v[3 * a + k] - v[3 * b + k])).sum();
                assert!(rate.abs() < 1e-12, "{a}-{b}: {rate}");
            }
            assert!(atoms.momentum(v).iter().zip(momentum).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }

    /// Rules for velocities after a jump.
    #[derive(Clone, Copy)]
    enum Rule {
        /// The rule of [`ModelAtoms::step_back`], with forces displaced back by this multiple of ξ.
        Drawn { displacement: f64 },
        /// Fault: stored velocities are kept.
        Kept,
        /// Fault: on-step velocities are stored.
        NotKicked,
    }

    /// ⟨v²⟩ m/kT of the stored velocities and ⟨x²⟩ mω²/kT of 400 oscillators as GROMACS' `sd` moves them, with a jump
    /// to a fresh configuration every five steps; h ω = 0.55 as for C–H bonds at 1 fs.
    fn oscillators(rule: Rule) -> [f64; 2] {
        const H: f64 = 0.55;
        let n = 400;
        let mut atoms = ModelAtoms { masses: vec![1.0; n], constraints: None };
        let mut stream = Stream::new(5, StreamId::Test, 0, 0);
        let (friction, mut sums, mut count) = ((-0.05f64 * H).exp(), [0.0; 2], 0.0);
        let noise = (1.0 - friction * friction).sqrt();
        let mut x: Vec<f64> = (0..3 * n).map(|_| stream.normal()).collect();
        let mut v: Vec<f64> = (0..3 * n).map(|_| stream.normal()).collect();
        for step in 1..1500 {
            for (x, v) in x.iter_mut().zip(&mut v) {
                *v -= H * *x;
                *x += 0.5 * H * *v;
                *v = friction * *v + noise * stream.normal();
                *x += 0.5 * H * *v;
            }
            if step % 5 == 0 {
                x.iter_mut().for_each(|x| *x = stream.normal());
                match rule {
                    Rule::Kept => {}
                    Rule::NotKicked => v = atoms.draw(1.0, &x, atoms.momentum(&v), &mut stream),
                    Rule::Drawn { displacement } => {
                        let drawn = atoms.draw(1.0, &x, atoms.momentum(&v), &mut stream);
                        let forces: Vec<f64> = x.iter().zip(&drawn).map(|(x, v)| -(x - displacement * H * v)).collect();
                        // oscillators in a field conserve no momentum: give them what their own forces leave
                        let sum = half_impulse(H, &forces);
                        let momentum = atoms.momentum(&drawn);
                        let stored = std::array::from_fn(|axis| momentum[axis] - sum[axis]);
                        v = atoms.step_back(H, &x, &drawn, &forces, stored);
                    }
                }
            }
            if step > 50 {
                sums[0] += v.iter().map(|v| v * v).sum::<f64>() / (3 * n) as f64;
                sums[1] += x.iter().map(|x| x * x).sum::<f64>() / (3 * n) as f64;
                count += 1.0;
            }
        }
        sums.map(|sum| sum / count)
    }

    #[test]
    fn oscillators_keep_their_temperature_and_faults_heat_them() {
        // a standard error of 0.002; without a jump both are 1
        let right = oscillators(Rule::Drawn { displacement: 0.25 });
        assert!(right.iter().all(|value| (value - 1.0).abs() < 0.01), "{right:?}");
        // the simple rule: too hot by h²ω²/4 right after a jump
        let simple = oscillators(Rule::Drawn { displacement: 0.0 });
        assert!(simple[0] > 1.02, "{simple:?}");
        for fault in [Rule::Kept, Rule::NotKicked] {
            let wrong = oscillators(fault);
            assert!(wrong.iter().any(|value| (value - 1.0).abs() > 0.02), "{wrong:?}");
        }
    }
}
