//! Plain structs and constants of models and moves.

use super::Versioned;
use crate::models::tarflow::Jacobi;
use crate::moves::Options;
use std::mem::{offset_of, size_of};

/// `modejump_model_options.precision`: single precision.
pub const MODEJUMP_F32: u32 = 0;
/// `modejump_model_options.precision`: double precision.
pub const MODEJUMP_F64: u32 = 1;
/// `modejump_model_options.precision`, for a TarFlow on the CPU: single precision with weights rounded to bfloat16,
/// which halves the time to read them for single samples. The density differs from that of the file, and is exact in
/// itself.
pub const MODEJUMP_BF16: u32 = 2;

/// `modejump_model_options.decoding`: token after token.
pub const MODEJUMP_SEQUENTIAL: u32 = 0;
/// `modejump_model_options.decoding`, for a TarFlow: all tokens together, by Jacobi iteration.
pub const MODEJUMP_JACOBI: u32 = 1;
/// `modejump_model_options.decoding`, for a TarFlow: one segment of tokens after the other, each by iteration.
pub const MODEJUMP_GAUSS_SEIDEL: u32 = 2;

/// `modejump_model_options.flags`: run on the CPU, wherever other models run.
pub const MODEJUMP_ON_CPU: u32 = 1;
/// `modejump_model_options.flags`, for a program whose own CUDA context (`CUcontext`) is current on the calling thread:
/// a model that would run on a GPU runs in this context instead of the primary one, on a stream of its own, so that its
/// kernels and those of the program run side by side, and the card holds one context. The context must outlive the
/// model and all moves made from it. A model on the CPU, or on another GPU requested by number, is loaded as without
/// this flag.
pub const MODEJUMP_CURRENT_CONTEXT: u32 = 2;

/// How a model is loaded; initialise with `modejump_model_options_init`, then change as needed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_model_options {
    /// sizeof(modejump_model_options)
    pub struct_size: u32,
    /// Precision of the networks: `MODEJUMP_F32`, `MODEJUMP_F64` or `MODEJUMP_BF16`; coordinates and densities are
    /// double in any case.
    pub precision: u32,
    /// How samples are computed from their latent points: `MODEJUMP_SEQUENTIAL`, `MODEJUMP_JACOBI` or
    /// `MODEJUMP_GAUSS_SEIDEL`; their log-densities are exact in any case.
    pub decoding: u32,
    /// `MODEJUMP_ON_CPU`, `MODEJUMP_CURRENT_CONTEXT` or 0.
    pub flags: u32,
    /// Tokens per segment for `MODEJUMP_GAUSS_SEIDEL`, at least 1.
    pub segment: u64,
    /// Iterative decoding: maximum number of passes over all tokens, or over a segment, at least 1; a sample that needs
    /// more is decoded token after token.
    pub decoding_passes: u64,
    /// Iterative decoding: largest error of the latent point, at most 1e-3, beyond rounding (some 1e-5 in single
    /// precision).
    pub decoding_tolerance: f64,
}

// SAFETY: repr(C), begins with struct_size, numbers only.
unsafe impl Versioned for modejump_model_options {
    const NAME: &'static str = "modejump_model_options";
    const FIRST: usize = size_of::<modejump_model_options>();
    fn empty() -> modejump_model_options {
        let Jacobi { tolerance, passes, .. } = Jacobi::default();
        modejump_model_options {
            struct_size: size_of::<modejump_model_options>() as u32,
            precision: MODEJUMP_F32,
            decoding: MODEJUMP_SEQUENTIAL,
            flags: 0,
            segment: 16,
            decoding_passes: passes as u64,
            decoding_tolerance: tolerance,
        }
    }
}

/// `modejump_move_options.kind`: independence Metropolis-Hastings; for a model of kind `modes`, jumps between its
/// modes.
pub const MODEJUMP_INDEPENDENCE: u32 = 0;
/// `modejump_move_options.kind`: iterated sampling importance resampling (i-SIR).
pub const MODEJUMP_ISIR: u32 = 1;
/// `modejump_move_options.kind`, for `modejump_move_delayed_acceptance_new` only: the screen's log-density alone
/// decides, and the exact one is never computed. Biased: the move leaves e^{-u} q/q_screen invariant.
pub const MODEJUMP_SURROGATE: u32 = 2;

/// `modejump_statistics.flags`: acceptances are decided by a surrogate, so the sampling is biased; reports must say so.
pub const MODEJUMP_BY_SURROGATE: u32 = 1;

/// `modejump_outcome.outcome`: the state is now the proposal.
pub const MODEJUMP_ACCEPTED: u32 = 0;
/// The Metropolis test rejected the proposal.
pub const MODEJUMP_REJECTED: u32 = 1;
/// The generator cannot produce this configuration.
pub const MODEJUMP_OUT_OF_SUPPORT: u32 = 2;
/// Internal coordinates are undefined at this configuration.
pub const MODEJUMP_SINGULAR: u32 = 3;
/// NaN or infinity in the proposal, its density or its potential.
pub const MODEJUMP_NON_FINITE: u32 = 4;
/// A constrained bond has the wrong length.
pub const MODEJUMP_CONSTRAINT: u32 = 5;
/// A stereocentre has the wrong handedness.
pub const MODEJUMP_CHIRALITY: u32 = 6;
/// The configuration is in no mode that can be left by a jump, or the proposal is not in the mode it was meant for.
pub const MODEJUMP_WRONG_MODE: u32 = 7;

/// Options of a move; initialise with `modejump_move_options_init`, then change as needed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_move_options {
    /// sizeof(modejump_move_options)
    pub struct_size: u32,
    /// `MODEJUMP_INDEPENDENCE` or `MODEJUMP_ISIR`; with a screen, `MODEJUMP_SURROGATE` for a biased move
    pub kind: u32,
    /// Proposals per attempt, 1 to 4096 (annealed moves: to 4095; driven moves and mode jumps: 1). Independence,
    /// delayed acceptance and annealed moves test them one after the other; i-SIR chooses among them.
    pub proposals: u64,
    /// The random numbers of an attempt are a function of seed, step and replica: moves that act at the same step need
    /// different seeds.
    pub seed: u64,
    /// Engine steps between attempts, with which the proposals of coming attempts can be drawn in one batch; 0 if
    /// unknown.
    pub stride: u64,
    /// Number of attempts whose proposals are drawn in one batch, 1 to 2^20. proposals * batch * coordinates must be at
    /// most 2^28 (without a stride the batch counts as 1).
    pub batch: u64,
    /// 1: other threads draw the next batch while the engine uses up the present one, and evaluate the density of the
    /// current configuration while the target computes its potentials. The results are the same to the last bit. 0:
    /// every batch is drawn in the first attempt that needs it.
    pub draw_ahead: u64,
    /// Number of orientations over which the density is averaged, 1 to 1024, in independence and i-SIR moves of a model
    /// that describes the orientation of a molecule, such as a TarFlow: the weights vary less where the potential
    /// depends little on orientation, at the cost of as many likelihoods. Exact whatever the potential. A jump turns
    /// the molecule at random. 0: no average.
    pub rotations: u64,
    /// 1: the coordinates are a part of a system, the rest of which has other configurations in later attempts. Weights
    /// of proposals cannot be compared then, so none are recorded, and no effective sample size. 0: they are all of it.
    pub partial: u64,
}

// SAFETY: repr(C), begins with struct_size, integers only.
unsafe impl Versioned for modejump_move_options {
    const NAME: &'static str = "modejump_move_options";
    const FIRST: usize = offset_of!(modejump_move_options, draw_ahead);
    const LATER: &'static [usize] =
        &[offset_of!(modejump_move_options, rotations), offset_of!(modejump_move_options, partial)];
    fn empty() -> modejump_move_options {
        let Options { n_proposals, seed, stride, batch, draw_ahead, partial } = Options::default();
        modejump_move_options {
            struct_size: size_of::<modejump_move_options>() as u32,
            kind: MODEJUMP_INDEPENDENCE,
            proposals: n_proposals as u64,
            seed,
            stride,
            batch: batch as u64,
            draw_ahead: u64::from(draw_ahead),
            rotations: 0,
            partial: u64::from(partial),
        }
    }
}

/// `modejump_annealing_options.kernel`: Langevin steps with a Metropolis test (MALA).
pub const MODEJUMP_ADJUSTED: u32 = 0;
/// `modejump_annealing_options.kernel`: leapfrog trajectories with a Metropolis test (HMC).
pub const MODEJUMP_HAMILTONIAN: u32 = 1;

/// Path of an annealed move; initialise with `modejump_annealing_options_init`, then change as needed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_annealing_options {
    /// sizeof(modejump_annealing_options)
    pub struct_size: u32,
    /// `MODEJUMP_ADJUSTED` or `MODEJUMP_HAMILTONIAN`
    pub kernel: u32,
    /// Number of evenly spaced steps from the generator to the target.
    pub stages: u64,
    /// Moves of the kernel per stage.
    pub moves: u64,
    /// Leapfrog steps per trajectory.
    pub leapfrog: u64,
    /// Step of the kernel, in the square of the coordinates' unit: a Langevin step is x - step dE/dx + sqrt(2 step)
    /// noise.
    pub step: f64,
}

// SAFETY: repr(C), begins with struct_size, numbers only.
unsafe impl Versioned for modejump_annealing_options {
    const NAME: &'static str = "modejump_annealing_options";
    const FIRST: usize = size_of::<modejump_annealing_options>();
    fn empty() -> modejump_annealing_options {
        modejump_annealing_options {
            struct_size: size_of::<modejump_annealing_options>() as u32,
            kernel: MODEJUMP_ADJUSTED,
            stages: 10,
            moves: 1,
            leapfrog: 5,
            step: 2e-6,
        }
    }
}

/// Options of a walk in latent space; initialise with `modejump_latent_walk_options_init`, then change as needed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_latent_walk_options {
    /// sizeof(modejump_latent_walk_options)
    pub struct_size: u32,
    /// 0
    pub flags: u32,
    /// Step widths, one of which is chosen at random in every attempt; NULL for the library's. The prior of a latent
    /// coordinate has width 1, or is uniform on [0, 1).
    pub widths: *const f64,
    /// Number of elements in `widths`.
    pub n_widths: u64,
    /// Leapfrog steps of a Hamiltonian trajectory, each as long as the width; 0 for a random walk.
    pub leapfrog: u64,
    pub seed: u64,
}

// SAFETY: repr(C), begins with struct_size, numbers and a pointer only.
unsafe impl Versioned for modejump_latent_walk_options {
    const NAME: &'static str = "modejump_latent_walk_options";
    const FIRST: usize = size_of::<modejump_latent_walk_options>();
    fn empty() -> modejump_latent_walk_options {
        modejump_latent_walk_options {
            struct_size: size_of::<modejump_latent_walk_options>() as u32,
            flags: 0,
            widths: std::ptr::null(),
            n_widths: 0,
            leapfrog: 0,
            seed: 0,
        }
    }
    fn reserved_flags(&self) -> u32 {
        self.flags
    }
}

/// The configuration an attempt starts from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_state {
    /// sizeof(modejump_state)
    pub struct_size: u32,
    /// 0
    pub flags: u32,
    /// Engine step. The random numbers of an attempt are a function of seed, step and replica.
    pub step: u64,
    /// Below 2^24.
    pub replica: u64,
    /// u(x), computed for this x, not remembered from earlier.
    pub reduced_potential: f64,
    /// `[dimension]`, nm for molecules; the new configuration after an acceptance, otherwise untouched.
    pub x: *mut f64,
    /// NULL, or nine numbers: the box vectors as rows, nm. Molecules are made whole with them.
    pub r#box: *const f64,
}

// SAFETY: repr(C), begins with struct_size, numbers and pointers only.
unsafe impl Versioned for modejump_state {
    const NAME: &'static str = "modejump_state";
    const FIRST: usize = size_of::<modejump_state>();
    fn empty() -> modejump_state {
        modejump_state {
            struct_size: 0,
            flags: 0,
            step: 0,
            replica: 0,
            reduced_potential: f64::NAN,
            x: std::ptr::null_mut(),
            r#box: std::ptr::null(),
        }
    }
    fn reserved_flags(&self) -> u32 {
        self.flags
    }
}

/// Result of an attempt. With several proposals the numbers are those of the one that decided.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_outcome {
    /// sizeof(modejump_outcome)
    pub struct_size: u32,
    /// `MODEJUMP_ACCEPTED` or the reason of the rejection
    pub outcome: u32,
    /// Natural logarithm of the acceptance ratio, not clipped; for i-SIR, of the odds of leaving the current state.
    pub log_acceptance: f64,
    /// -u(x) - log q(x)
    pub log_weight_current: f64,
    pub log_weight_proposed: f64,
    pub log_density_current: f64,
    pub log_density_proposed: f64,
    /// u of the state after the attempt.
    pub reduced_potential: f64,
}

// SAFETY: repr(C), begins with struct_size, numbers only.
unsafe impl Versioned for modejump_outcome {
    const NAME: &'static str = "modejump_outcome";
    const FIRST: usize = size_of::<modejump_outcome>();
    fn empty() -> modejump_outcome {
        let nan = f64::NAN;
        modejump_outcome {
            struct_size: 0,
            outcome: MODEJUMP_REJECTED,
            log_acceptance: nan,
            log_weight_current: nan,
            log_weight_proposed: nan,
            log_density_current: nan,
            log_density_proposed: nan,
            reduced_potential: nan,
        }
    }
}

/// Result of an exchange between replicas a and b.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_exchange_outcome {
    /// sizeof(modejump_exchange_outcome)
    pub struct_size: u32,
    /// `MODEJUMP_ACCEPTED` or the reason of the rejection
    pub outcome: u32,
    /// Natural logarithm of the acceptance ratio, not clipped: log_weight_a + log_weight_b.
    pub log_acceptance: f64,
    /// u_a(x_a) - u_b(f(x_a)) + ln |df/dx|: weighs f(x_a) as a sample of b.
    pub log_weight_a: f64,
    /// u_b(x_b) - u_a(f^-1(x_b)) + ln |df^-1/dx|
    pub log_weight_b: f64,
    /// u of the states after the attempt.
    pub reduced_potential_a: f64,
    pub reduced_potential_b: f64,
}

// SAFETY: repr(C), begins with struct_size, numbers only.
unsafe impl Versioned for modejump_exchange_outcome {
    const NAME: &'static str = "modejump_exchange_outcome";
    const FIRST: usize = size_of::<modejump_exchange_outcome>();
    fn empty() -> modejump_exchange_outcome {
        let nan = f64::NAN;
        modejump_exchange_outcome {
            struct_size: 0,
            outcome: MODEJUMP_REJECTED,
            log_acceptance: nan,
            log_weight_a: nan,
            log_weight_b: nan,
            reduced_potential_a: nan,
            reduced_potential_b: nan,
        }
    }
}

/// Counters since the move was made or its statistics were last reset.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct modejump_statistics {
    /// sizeof(modejump_statistics)
    pub struct_size: u32,
    /// `MODEJUMP_BY_SURROGATE`, or 0 for an exact move
    pub flags: u32,
    /// Sum of the seven counters that follow, and of `wrong_mode`.
    pub attempts: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub out_of_support: u64,
    pub singular: u64,
    pub non_finite: u64,
    pub constraint: u64,
    pub chirality: u64,
    /// Mean log-weight of the usable proposals; NaN before the first. With a screen the weights are those of the
    /// screen.
    pub mean_log_weight: f64,
    /// Effective sample size of all proposals as a fraction of their number; unusable ones have weight zero.
    pub ess: f64,
    pub proposals: u64,
    /// Delayed acceptance: attempts that passed the screen and reached the exact stage.
    pub screened: u64,
    /// Delayed acceptance: exact log-densities computed in the second stage.
    pub exact_evaluations: u64,
    /// Delayed acceptance: variance of ln c(x')/c(x), c = q_screen/q, over the screened attempts; NaN before the
    /// second.
    pub correction_variance: f64,
    /// Jumps between modes that started or ended in a wrong mode.
    pub wrong_mode: u64,
    /// Mean acceptance probability over the attempts, which estimates the long-run acceptance, and its standard error.
    /// NaN before the first attempt and before the second, respectively.
    pub expected_acceptance: f64,
    pub expected_acceptance_error: f64,
}

// SAFETY: repr(C), begins with struct_size, numbers only.
unsafe impl Versioned for modejump_statistics {
    const NAME: &'static str = "modejump_statistics";
    const FIRST: usize = offset_of!(modejump_statistics, screened);
    const LATER: &'static [usize] = &[
        offset_of!(modejump_statistics, exact_evaluations),
        offset_of!(modejump_statistics, correction_variance),
        offset_of!(modejump_statistics, wrong_mode),
        offset_of!(modejump_statistics, expected_acceptance),
        offset_of!(modejump_statistics, expected_acceptance_error),
    ];
    fn empty() -> modejump_statistics {
        modejump_statistics {
            struct_size: 0,
            flags: 0,
            attempts: 0,
            accepted: 0,
            rejected: 0,
            out_of_support: 0,
            singular: 0,
            non_finite: 0,
            constraint: 0,
            chirality: 0,
            mean_log_weight: f64::NAN,
            ess: f64::NAN,
            proposals: 0,
            screened: 0,
            exact_evaluations: 0,
            correction_variance: f64::NAN,
            wrong_mode: 0,
            expected_acceptance: f64::NAN,
            expected_acceptance_error: f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moves::Fate;

    /// A caller that was compiled before fields were appended still passes the old size.
    #[test]
    fn statistics_of_the_first_version_are_still_taken() {
        assert_eq!(<modejump_statistics as Versioned>::FIRST, 96);
    }

    /// A field that does not fit as a whole is not read.
    #[test]
    fn sizes_that_end_within_a_field_are_rounded_down() {
        let mut statistics = modejump_statistics::empty();
        let whole = size_of::<modejump_statistics>() as u32;
        for size in 96..=whole + 8 {
            statistics.struct_size = size;
            // SAFETY: a live struct, whose first four bytes are read.
            let known = unsafe { super::super::struct_size(&raw const statistics) }.unwrap();
            assert_eq!(known as u32, (size - size % 8).min(whole));
        }
        let mut options = modejump_move_options { rotations: u64::MAX, ..modejump_move_options::empty() };
        let rotations = offset_of!(modejump_move_options, rotations) as u32;
        for (size, expected) in [(rotations + 4, 0), (rotations + 8, u64::MAX)] {
            options.struct_size = size;
            // SAFETY: a live struct of at least the size that it says.
            assert_eq!(unsafe { super::super::read(&raw const options) }.unwrap().rotations, expected);
        }
    }

    #[test]
    fn outcomes_have_the_numbers_of_the_fates() {
        for (number, fate) in [
            (MODEJUMP_ACCEPTED, Fate::Accepted),
            (MODEJUMP_REJECTED, Fate::Rejected),
            (MODEJUMP_OUT_OF_SUPPORT, Fate::OutOfSupport),
            (MODEJUMP_SINGULAR, Fate::Singular),
            (MODEJUMP_NON_FINITE, Fate::NonFinite),
            (MODEJUMP_CONSTRAINT, Fate::Constraint),
            (MODEJUMP_CHIRALITY, Fate::Chirality),
            (MODEJUMP_WRONG_MODE, Fate::WrongMode),
        ] {
            assert_eq!(number, fate as u32);
        }
    }
}
