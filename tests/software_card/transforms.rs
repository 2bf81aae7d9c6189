//! cuFFT's transforms between real numbers and their spectrum, in three dimensions, by the definition.

use super::card::{card, Context, Handle, Result, Work, DEFAULT, INVALID_HANDLE, INVALID_VALUE};
use super::driver::{put, status, with_card};
use std::f64::consts::TAU;

/// Real numbers `[n₀][n₁][n₂]`, of which only `[n₀][n₁][n₂/2 + 1]` complex numbers of the spectrum are kept: the others
/// are their conjugates.
#[derive(Clone, Copy)]
pub struct Plan {
    n: [usize; 3],
    /// From the spectrum to real numbers.
    back: bool,
    double: bool,
    pub stream: Handle,
}

type Complex = [f64; 2];

impl Plan {
    /// A plan of one of cuFFT's kinds, if it is one between real numbers and a spectrum.
    pub fn new(n: [usize; 3], kind: i32) -> Option<Plan> {
        let (back, double) = match kind {
            0x2a => (false, false),
            0x2c => (true, false),
            0x6a => (false, true),
            0x6c => (true, true),
            _ => return None,
        };
        Some(Plan { n, back, double, stream: DEFAULT })
    }

    fn points(&self) -> usize {
        self.n.iter().product()
    }

    fn kept(&self) -> usize {
        self.n[0] * self.n[1] * (self.n[2] / 2 + 1)
    }

    fn width(&self) -> usize {
        if self.double {
            8
        } else {
            4
        }
    }

    fn numbers(&self, bytes: &[u8]) -> Vec<f64> {
        match self.double {
            true => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            false => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        }
    }

    fn bytes(&self, numbers: impl Iterator<Item = f64>) -> Vec<u8> {
        match self.double {
            true => numbers.flat_map(f64::to_le_bytes).collect(),
            false => numbers.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        }
    }

    /// All of a spectrum, of which half is given.
    fn whole(&self, half: &[f64]) -> Vec<Complex> {
        let [n0, n1, n2] = self.n;
        let kept = n2 / 2 + 1;
        let at = |i: usize, j: usize, k: usize, sign: f64| {
            let place = 2 * ((i * n1 + j) * kept + k);
            [half[place], sign * half[place + 1]]
        };
        let mut all = Vec::with_capacity(self.points());
        for i in 0..n0 {
            for j in 0..n1 {
                all.extend((0..kept).map(|k| at(i, j, k, 1.0)));
                all.extend((kept..n2).map(|k| at((n0 - i) % n0, (n1 - j) % n1, n2 - k, -1.0)));
            }
        }
        all
    }

    /// The bytes that the transform makes of others. Sums are not divided by the number of points.
    fn transform(&self, from: &[u8]) -> Vec<u8> {
        let given = self.numbers(from);
        let mut x = if self.back { self.whole(&given) } else { given.iter().map(|&re| [re, 0.0]).collect() };
        let [n0, n1, n2] = self.n;
        for (n, after) in [(n0, n1 * n2), (n1, n2), (n2, 1)] {
            along(&mut x, n, after, if self.back { 1.0 } else { -1.0 });
        }
        if self.back {
            return self.bytes(x.iter().map(|x| x[0]));
        }
        self.bytes(x.chunks_exact(n2).flat_map(|line| &line[..n2 / 2 + 1]).flatten().copied())
    }
}

/// y_k = Σ_j x_j exp(sign 2πi jk/n) along an axis of n points, neighbours of which lie `after` numbers apart.
fn along(x: &mut [Complex], n: usize, after: usize, sign: f64) {
    let roots: Vec<Complex> =
        (0..n).map(|k| (sign * TAU * k as f64 / n as f64).sin_cos()).map(|(s, c)| [c, s]).collect();
    let mut line = vec![[0.0; 2]; n];
    for start in (0..x.len()).filter(|place| (place / after).is_multiple_of(n)) {
        (0..n).for_each(|j| line[j] = x[start + j * after]);
        for k in 0..n {
            let mut sum = [0.0; 2];
            let mut root = 0;
            for [re, im] in &line {
                let [c, s] = roots[root];
                sum[0] += re * c - im * s;
                sum[1] += re * s + im * c;
                root = (root + k) % n;
            }
            x[start + k * after] = sum;
        }
    }
}

impl Context {
    pub fn transform(&mut self, plan: &Plan, to: u64, from: u64) -> Result<()> {
        let (real, spectrum) = (plan.points() * plan.width(), 2 * plan.kept() * plan.width());
        let (given, made) = if plan.back { (spectrum, real) } else { (real, spectrum) };
        let result = plan.transform(self.memory(from, given)?);
        self.memory(to, made)?.copy_from_slice(&result);
        Ok(())
    }
}

#[no_mangle]
pub extern "C" fn cufftPlan3d(plan: *mut i32, n0: i32, n1: i32, n2: i32, kind: i32) -> i32 {
    let Some(made) = Plan::new([n0, n1, n2].map(|n| n as usize), kind) else { return INVALID_VALUE };
    let mut card = card();
    let handle = card.new_handle() as i32;
    card.plans.insert(handle, made);
    put(plan, handle);
    0
}

#[no_mangle]
pub extern "C" fn cufftSetStream(plan: i32, stream: Handle) -> i32 {
    let found = card().plans.get_mut(&plan).map(|plan| plan.stream = stream);
    status(found.ok_or(INVALID_HANDLE))
}

#[no_mangle]
pub extern "C" fn cufftDestroy(plan: i32) -> i32 {
    status(card().plans.remove(&plan).map(|_| ()).ok_or(INVALID_HANDLE))
}

macro_rules! transforms {
    ($($name:ident)*) => {$(
        #[no_mangle]
        pub extern "C" fn $name(plan: i32, from: u64, to: u64) -> i32 {
            with_card(|card, context| {
                let plan = *card.plans.get(&plan).ok_or(INVALID_HANDLE)?;
                card.counts.launches += 1;
                card.context(context)?.give(plan.stream, Work::Transform { plan, to, from })
            })
        }
    )*};
}
transforms! { cufftExecR2C cufftExecC2R cufftExecD2Z cufftExecZ2D }
