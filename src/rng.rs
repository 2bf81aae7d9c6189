//! Random numbers as a pure function of (seed, stream, step, replica, index): Philox4x32-10.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). No state survives a call,
//! so a restarted run draws the same numbers, and no order of threads can change them.

/// Every use of randomness in the project has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamId {
    /// Latent points of proposals.
    Proposal = 1,
    /// The uniform number of the Metropolis test.
    Accept = 2,
    /// Choice among several proposals (i-SIR).
    Select = 3,
    /// Velocities redrawn after acceptance.
    Velocity = 4,
    /// Samples that a user asked for.
    Sample = 5,
    /// Resampling of weighted configurations.
    Resample = 6,
    /// Initial weights of a model.
    Initialise = 7,
    /// Batches and shuffles of training.
    Train = 8,
    /// Bootstrap of error estimates.
    Bootstrap = 9,
    /// Choice among the moves of a mixture.
    Mixture = 10,
    /// Langevin or other local dynamics of test systems.
    Dynamics = 11,
    /// Numbers drawn by tests.
    Test = 12,
    /// Probes of estimated divergences.
    Probe = 13,
    /// The centroid of a current configuration, for densities in which it is noise.
    Centroid = 14,
    /// Moves on a path between a density and a target.
    Anneal = 15,
    /// Steps in the latent space of a flow.
    Latent = 16,
    /// The uniform number of an exchange between two replicas.
    Exchange = 17,
    /// Momenta and tests of an environment that relaxes on the path of a driven move.
    Relax = 18,
    /// Auxiliary coordinates beside a current configuration.
    Auxiliary = 19,
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits for a counter and a key.
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

/// A sequence of random numbers, fixed by its five coordinates.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    spare: Option<u64>,
    spare_normal: Option<f64>,
}

impl Stream {
    /// `replica` uses 24 bits.
    pub fn new(seed: u64, id: StreamId, step: u64, replica: u32) -> Stream {
        Stream {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, step as u32, (step >> 32) as u32, (id as u32) << 24 | (replica & 0x00FF_FFFF)],
            spare: None,
            spare_normal: None,
        }
    }

    /// The same stream from position `index` on; positions are 2⁻¹ of the numbers drawn by [`Stream::u64`].
    pub fn at(mut self, index: u32) -> Stream {
        self.counter[0] = index;
        self.spare = None;
        self.spare_normal = None;
        self
    }

    /// Key and counter of a stream that nothing was drawn from, for kernels that draw from it.
    pub fn start(&self) -> Option<[u32; 6]> {
        let fresh = self.spare.is_none() && self.spare_normal.is_none();
        let [a, b, c, d] = self.counter;
        fresh.then_some([self.key[0], self.key[1], a, b, c, d])
    }

    pub fn u64(&mut self) -> u64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let word = philox4x32(self.counter, self.key);
        self.counter[0] = self.counter[0].wrapping_add(1);
        self.spare = Some(u64::from(word[2]) | u64::from(word[3]) << 32);
        u64::from(word[0]) | u64::from(word[1]) << 32
    }

    /// Uniform in the open interval (0, 1), 52 bits.
    pub fn uniform(&mut self) -> f64 {
        ((self.u64() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare_normal.take() {
            return value;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (2.0 * std::f64::consts::PI * self.uniform()).sin_cos();
        self.spare_normal = Some(radius * sin);
        radius * cos
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
