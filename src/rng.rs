//! Random numbers as a pure function of (seed, stream, step, replica, index): Philox4x32-10.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). No state survives a call,
//! so a restarted run draws the same numbers, and no order of threads can change them.

use crate::nn::real::vectorised;

/// Every use of randomness in the project has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamId {
    /// Latent points and other random choices of proposals.
    Proposal = 1,
    /// The uniform number of a Metropolis test.
    Accept = 2,
    /// Choice among several proposals (i-SIR).
    Select = 3,
    /// Velocities redrawn after acceptance.
    Velocity = 4,
    /// Samples that a user asked for, and those drawn for training pools.
    Sample = 5,
    /// Resampling of weighted configurations; in training also the samples and shuffles of refinement.
    Resample = 6,
    /// Initial weights of a model.
    Initialise = 7,
    /// Batches and shuffles of training.
    Train = 8,
    /// Bootstrap error estimates, and the evaluations made during training.
    Bootstrap = 9,
    /// Choice among the moves of a mixture.
    Mixture = 10,
    /// Local dynamics: Langevin walkers ([`crate::engines::langevin`]), the moves of annealed and sequential Monte
    /// Carlo ([`crate::annealing`]), random walks.
    Dynamics = 11,
    /// Numbers drawn by tests.
    Test = 12,
    /// Probe vectors of estimated divergences.
    Probe = 13,
    /// The centroid given to a current configuration, for densities in which the centroid is noise.
    Centroid = 14,
    /// The path of an annealed move ([`crate::moves::Annealed`]).
    Anneal = 15,
    /// Steps in a flow's latent space.
    Latent = 16,
    /// The uniform number of an exchange between two replicas.
    Exchange = 17,
    /// Momenta and Metropolis tests of an environment that relaxes along a driven path.
    Relax = 18,
    /// Auxiliary coordinates drawn for a current configuration.
    Auxiliary = 19,
    /// Random rotations over which a density is averaged.
    Orientation = 20,
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits from a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
    }
    counter
}

/// Philox blocks that [`Stream::fill_normal`] computes side by side.
const SIDE_BY_SIDE: usize = 8;

/// [`philox4x32`] for counters that differ in their first word only; returns word k of every block in row k.
#[inline(always)]
fn philox4x32_side_by_side(
    first: [u32; SIDE_BY_SIDE],
    others: [u32; 3],
    mut key: [u32; 2],
) -> [[u32; SIDE_BY_SIDE]; 4] {
    let [b, c, d] = others.map(|word| [word; SIDE_BY_SIDE]);
    let mut counters = [first, b, c, d];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [a, b, c, d] = &mut counters;
        for k in 0..SIDE_BY_SIDE {
            let p0 = u64::from(MULTIPLIER[0]) * u64::from(a[k]);
            let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[k]);
            a[k] = (p1 >> 32) as u32 ^ b[k] ^ key[0];
            c[k] = (p0 >> 32) as u32 ^ d[k] ^ key[1];
            (b[k], d[k]) = (p1 as u32, p0 as u32);
        }
    }
    counters
}

/// Uniform number in the open interval (0, 1) from the top 52 of `bits`: as the mantissa of a float in [1, 2), minus 1,
/// plus half a unit in the last place.
#[inline(always)]
fn uniform(bits: u64) -> f64 {
    f64::from_bits(1f64.to_bits() | bits >> 12) - 1.0 + 0.5 / (1u64 << 52) as f64
}

/// Two standard normal numbers from two uniform ones (Box–Muller): √(−2 ln u) (cos 2πv, sin 2πv).
#[inline(always)]
fn box_muller(u: f64, v: f64) -> [f64; 2] {
    let radius = (-2.0 * ln(u)).sqrt();
    let [cos, sin] = turn(v);
    [radius * cos, radius * sin]
}

/// Magnitude at which the last bit of an f64 is worth 1: adding it rounds to an integer, which then stands in the last
/// bits.
const WHOLE: f64 = 1.5 * (1u64 << 52) as f64;

/// ln x of a normal positive x, to one unit in the last place, without a branch: x = 2^k (1 + f), 1/√2 < 1 + f < √2,
/// and with s = f/(2 + f), ln(1 + f) = 2 artanh s by fdlibm's minimax polynomial.
#[inline(always)]
fn ln(x: f64) -> f64 {
    const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    const ARTANH: [f64; 7] = [
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];
    let above = x.to_bits().wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits() & !0 << 32);
    let exponent = above & 0xFFF << 52;
    let f = f64::from_bits(x.to_bits().wrapping_sub(exponent)) - 1.0;
    let k = f64::from_bits(WHOLE.to_bits().wrapping_add_signed(exponent as i64 >> 52)) - WHOLE;
    let s = f / (2.0 + f);
    let z = s * s;
    let series = z * ARTANH.iter().rev().fold(0.0, |sum, c| sum * z + c);
    let half = 0.5 * f * f;
    k * LN_2[0] - ((half - (s * (half + series) + k * LN_2[1])) - f)
}

/// Cosine and sine of v turns, 0 ≤ v ≤ 1, to one unit in the last place, without a branch: reduced to the nearest
/// quarter turn, then fdlibm's minimax polynomials.
#[inline(always)]
fn turn(v: f64) -> [f64; 2] {
    const SIN: [f64; 6] = [
        -1.666_666_666_666_663_2e-1,
        8.333_333_333_322_49e-3,
        -1.984_126_982_985_795e-4,
        2.755_731_370_707_006_8e-6,
        -2.505_076_025_340_686_3e-8,
        1.589_690_995_211_55e-10,
    ];
    const COS: [f64; 6] = [
        4.166_666_666_666_66e-2,
        -1.388_888_888_887_411e-3,
        2.480_158_728_947_673e-5,
        -2.755_731_435_139_066_3e-7,
        2.087_572_321_298_175e-9,
        -1.135_964_755_778_819_5e-11,
    ];
    let quarter = 4.0 * v + WHOLE;
    let x = 2.0 * std::f64::consts::PI * (v - 0.25 * (quarter - WHOLE));
    let quarter = quarter.to_bits();
    let z = x * x;
    let series = |terms: [f64; 6]| terms.iter().rev().fold(0.0, |sum, c| sum * z + c);
    let (sin, cos) = (x + x * z * series(SIN), 1.0 - (0.5 * z - z * z * series(COS)));
    let (a, b) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let signed = |x: f64, quarter: u64| f64::from_bits(x.to_bits() ^ (quarter & 2) << 62);
    [signed(a, quarter.wrapping_add(1)), signed(b, quarter)]
}

/// A sequence of random numbers, determined by seed, stream, step, replica and index.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    spare: Option<u64>,
    spare_normal: Option<f64>,
}

impl Stream {
    /// Stream from index 0. Only the low 24 bits of `replica` are used.
    pub fn new(seed: u64, id: StreamId, step: u64, replica: u32) -> Stream {
        Stream {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, step as u32, (step >> 32) as u32, (id as u32) << 24 | (replica & 0x00FF_FFFF)],
            spare: None,
            spare_normal: None,
        }
    }

    /// The same stream repositioned at block `index`; each block yields two numbers of [`Stream::u64`].
    pub fn at(mut self, index: u32) -> Stream {
        self.counter[0] = index;
        self.spare = None;
        self.spare_normal = None;
        self
    }

    /// The stream from the next block on, as one from which nothing has been drawn: what is left of the block is not
    /// used.
    pub fn at_next_block(self) -> Stream {
        let next = self.counter[0];
        self.at(next)
    }

    /// Key and counter of a stream from which nothing has been drawn, for GPU kernels that continue it; None otherwise.
    pub fn start(&self) -> Option<[u32; 6]> {
        let fresh = self.spare.is_none() && self.spare_normal.is_none();
        let [a, b, c, d] = self.counter;
        fresh.then_some([self.key[0], self.key[1], a, b, c, d])
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let word = philox4x32(self.counter, self.key);
        self.counter[0] = self.counter[0].wrapping_add(1);
        self.spare = Some(u64::from(word[2]) | u64::from(word[3]) << 32);
        u64::from(word[0]) | u64::from(word[1]) << 32
    }

    /// Uniform number in the open interval (0, 1), with 52 random bits.
    pub fn uniform(&mut self) -> f64 {
        uniform(self.u64())
    }

    /// Standard normal number (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare_normal.take() {
            return value;
        }
        let [first, second] = box_muller(self.uniform(), self.uniform());
        self.spare_normal = Some(second);
        first
    }

    /// Fills `out` with the numbers that as many calls of [`Stream::normal`] would return, several times faster.
    pub fn fill_normal(&mut self, out: &mut [f64]) {
        let size = if self.spare_normal.is_none() { 2 * SIDE_BY_SIDE } else { usize::MAX };
        let mut groups = out.chunks_exact_mut(size);
        for group in &mut groups {
            let [index, others @ ..] = self.counter;
            self.counter[0] = index.wrapping_add(SIDE_BY_SIDE as u32);
            vectorised!({
                let indices = std::array::from_fn(|k| index.wrapping_add(k as u32));
                let [a, b, c, d] = philox4x32_side_by_side(indices, others, self.key);
                let mut bits = [0; 2 * SIDE_BY_SIDE];
                for k in 0..SIDE_BY_SIDE {
                    bits[2 * k] = u64::from(a[k]) | u64::from(b[k]) << 32;
                    bits[2 * k + 1] = u64::from(c[k]) | u64::from(d[k]) << 32;
                }
                if let Some(spare) = &mut self.spare {
                    bits.rotate_right(1);
                    std::mem::swap(spare, &mut bits[0]);
                }
                let [mut u, mut v] = [[0.0; SIDE_BY_SIDE]; 2];
                for k in 0..SIDE_BY_SIDE {
                    [u[k], v[k]] = [uniform(bits[2 * k]), uniform(bits[2 * k + 1])];
                }
                for k in 0..SIDE_BY_SIDE {
                    [u[k], v[k]] = box_muller(u[k], v[k]);
                }
                for k in 0..SIDE_BY_SIDE {
                    [group[2 * k], group[2 * k + 1]] = [u[k], v[k]];
                }
            });
        }
        groups.into_remainder().iter_mut().for_each(|x| *x = self.normal());
    }

    /// Uniform integer in 0..n (n ≥ 1), bias below 2⁻³² for n < 2³².
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.u64()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers_of_random123() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_differ_in_every_coordinate_and_repeat() {
        let base = || Stream::new(1, StreamId::Test, 2, 3);
        let first = base().u64();
        assert_eq!(first, base().u64());
        for other in [
            Stream::new(9, StreamId::Test, 2, 3),
            Stream::new(1, StreamId::Accept, 2, 3),
            Stream::new(1, StreamId::Test, 4, 3),
            Stream::new(1, StreamId::Test, 2, 4),
            base().at(5),
        ] {
            assert_ne!(first, other.clone().u64());
        }
    }

    #[test]
    fn logarithm_and_turn_are_exact_to_the_last_places() {
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let smallest = 0.5 / (1u64 << 52) as f64;
        for u in (0..100_000).map(|_| stream.uniform()).chain([smallest, 1.0 - smallest, 0.125, 0.5, 0.625]) {
            assert!((ln(u) - u.ln()).abs() <= 2.3e-16 * u.ln().abs(), "{u}");
            let (sin, cos) = (2.0 * std::f64::consts::PI * u).sin_cos();
            let [c, s] = turn(u);
            assert!((c - cos).abs() < 8e-16 && (s - sin).abs() < 8e-16, "{u}");
        }
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(turn),
            [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]]
        );
    }

    #[test]
    fn many_normals_are_those_of_single_calls() {
        for n in [1, 15, 16, 66, 101] {
            let mut streams = [4, u32::MAX - 5].map(|index| Stream::new(5, StreamId::Test, 1, 2).at(index));
            for stream in &mut streams {
                let mut single = stream.clone();
                for _ in 0..4 {
                    let mut many = vec![0.0; n];
                    stream.fill_normal(&mut many);
                    assert!(many.iter().all(|x| *x == single.normal()), "{n}");
                    assert_eq!(stream.uniform(), single.uniform());
                }
            }
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut stream = Stream::new(7, StreamId::Test, 0, 0);
        let n = 200_000;
        let (mut u1, mut g1, mut g2) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let u = stream.uniform();
            assert!(u > 0.0 && u < 1.0);
            u1 += u;
            let g = stream.normal();
            g1 += g;
            g2 += g * g;
        }
        let n = n as f64;
        assert!((u1 / n - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!((g1 / n).abs() < 5.0 / n.sqrt());
        assert!((g2 / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    }
}
