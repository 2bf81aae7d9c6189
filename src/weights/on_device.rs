//! Log-weights in a device's memory (`cuda/weights.cu`): sums, normalised weights, resampling and the work of a path,
//! equal to those of [`crate::weights`] up to rounding. Results do not depend on the device's number of blocks.

use super::Resampling;
use crate::device::{argument, Buffer, Driver, KernelId, Program};
use crate::error::{Error, Result};
use crate::rng::Stream;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: &str = include_str!("../../cuda/weights.cu");
const THREADS: usize = 256;
/// Numbers per piece, `PIECE` in the kernels.
const PIECE: usize = 8 * THREADS;
/// Blocks per multiprocessor, each with one piece or more.
const BLOCKS: usize = 4;

/// Maximum number of weights, and of rows to draw, so that an index plus the stride of all threads fits an `int` of the
/// kernels.
const MOST: usize = (1 << 31) - (1 << 24);

/// `Piece` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Piece {
    largest: f64,
    sum: f64,
    sum_of_squares: f64,
    unusable: i32,
    last: i32,
}

/// `Arguments` of the kernels; addresses are on the device.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    log_weights: u64,
    pieces: u64,
    weights: u64,
    totals: u64,
    target: u64,
    source: u64,
    rows: u64,
    stream: [u32; 6],
    log_sum: f64,
    dt: f64,
    n: i32,
    draws: i32,
    method: i32,
    last: i32,
}

/// The kernels; the network's number type plays no part here.
pub fn programs() -> Vec<Program> {
    vec![Program::new("weights", SOURCE, &[("REAL", &"float"), ("THREADS", &THREADS)])]
}

/// Sums over all weights.
struct Sums {
    log_sum: f64,
    log_sum_of_squares: f64,
    /// Index of the last row with a weight above zero.
    last: usize,
}

/// Log-weights `[n]` in a device's memory.
pub struct WeightsOnDevice {
    driver: Arc<dyn Driver>,
    kernels: [KernelId; 5],
    n: usize,
    log_weights: Buffer<f64>,
}

/// Indices into `kernels`.
enum Kernel {
    SumPieces,
    Normalise,
    Cumulate,
    Draw,
    AddWork,
}

impl WeightsOnDevice {
    /// Copies log-weights to the device. Errors: no weights, more than about 2³¹, a device without a compiler or
    /// memory.
    pub fn new(driver: &Arc<dyn Driver>, log_weights: &[f64]) -> Result<WeightsOnDevice> {
        let n = log_weights.len();
        if n == 0 || n > MOST {
            return Err(Error::invalid(format!("the number of log-weights must be 1 to {MOST}, not {n}")));
        }
        let [program] = &programs()[..] else { unreachable!("one program") };
        let mut kernels = [KernelId(0); 5];
        let names = ["sum_pieces", "normalise", "cumulate", "draw", "add_work"];
        for (kernel, name) in kernels.iter_mut().zip(names) {
            *kernel = driver.kernel(program, name)?;
        }
        Ok(WeightsOnDevice { driver: driver.clone(), kernels, n, log_weights: Buffer::of(driver, log_weights)? })
    }

    /// Adds the work of one step of a path, log w −= dt (u − source), given the reduced potentials `[n]` at its two
    /// ends. Errors: another length.
    pub fn add_work(&mut self, dt: f64, target: &[f64], source: &[f64]) -> Result<()> {
        for (what, energies) in [("target", target), ("source", source)] {
            if energies.len() != self.n {
                return Err(Error::invalid(format!(
                    "{} energies of the {what} do not match {} weights",
                    energies.len(),
                    self.n
                )));
            }
        }
        let [target, source] = [Buffer::of(&self.driver, target)?, Buffer::of(&self.driver, source)?];
        let arguments = Arguments { dt, target: target.address(), source: source.address(), ..self.arguments() };
        self.launch(Kernel::AddWork, self.n, &arguments)?;
        // the energies must stay allocated until the kernel is done
        self.log_weights.read(&mut [0.0])
    }

    /// Copies the log-weights `[n]` back.
    pub fn read(&self) -> Result<Vec<f64>> {
        let mut log_weights = vec![0.0; self.n];
        self.log_weights.read(&mut log_weights)?;
        Ok(log_weights)
    }

    /// ln Σ w. Errors: a NaN or +∞, no weight above zero.
    pub fn log_sum_exp(&self) -> Result<f64> {
        Ok(self.sums()?.log_sum)
    }

    /// As [`super::effective_sample_size`].
    pub fn effective_sample_size(&self) -> Result<f64> {
        let sums = self.sums()?;
        Ok((2.0 * sums.log_sum - sums.log_sum_of_squares).exp())
    }

    /// Normalised weights `[n]`, left on the device.
    pub fn normalised(&self) -> Result<Buffer<f64>> {
        let weights = Buffer::new(&self.driver, self.n)?;
        let arguments = Arguments { weights: weights.address(), log_sum: self.sums()?.log_sum, ..self.arguments() };
        self.launch(Kernel::Normalise, self.n, &arguments)?;
        Ok(weights)
    }

    /// As [`super::resample`], with a stream from which nothing has been drawn.
    pub fn resample(&self, n: usize, method: Resampling, stream: &Stream) -> Result<Vec<usize>> {
        let start =
            stream.start().ok_or_else(|| Error::invalid("the random stream for resampling has already been used"))?;
        if n > MOST {
            return Err(Error::invalid(format!("{n} rows to draw are too many: use at most {MOST}")));
        }
        let Sums { log_sum, last, .. } = self.sums()?;
        let shares = Buffer::<f64>::new(&self.driver, self.n)?;
        let mut totals = vec![0.0; self.pieces()];
        let mut totals_on_device = Buffer::new(&self.driver, totals.len())?;
        let rows = Buffer::<i32>::new(&self.driver, n)?;
        let arguments = Arguments {
            weights: shares.address(),
            totals: totals_on_device.address(),
            rows: rows.address(),
            stream: start,
            log_sum,
            draws: n as i32,
            method: method as i32,
            last: last as i32,
            ..self.arguments()
        };
        self.launch(Kernel::Cumulate, self.n, &arguments)?;
        totals_on_device.read(&mut totals)?;
        let mut before = 0.0;
        totals.iter_mut().for_each(|total| (*total, before) = (before, before + *total));
        totals_on_device.write(&totals)?;
        // should the launch fail
        self.driver.finish()?;
        self.launch(Kernel::Draw, n, &arguments)?;
        let mut drawn = vec![0; n];
        rows.read(&mut drawn)?;
        drawn.sort_unstable();
        Ok(drawn.into_iter().map(|row| row as usize).collect())
    }

    fn pieces(&self) -> usize {
        self.n.div_ceil(PIECE)
    }

    fn arguments(&self) -> Arguments {
        Arguments { log_weights: self.log_weights.address(), n: self.n as i32, ..Arguments::default() }
    }

    fn launch(&self, kernel: Kernel, n: usize, arguments: &Arguments) -> Result<()> {
        let grid = n.div_ceil(PIECE).clamp(1, BLOCKS * self.driver.multiprocessors());
        let (kernel, shared) = (self.kernels[kernel as usize], THREADS * size_of::<f64>());
        // SAFETY: the kernels take `Arguments`; the caller's buffers hold what the kernel reads and writes, until the
        // next read.
        unsafe { self.driver.launch(kernel, grid as u32, THREADS as u32, shared, argument(arguments)) }
    }

    fn sums(&self) -> Result<Sums> {
        let mut pieces = vec![Piece::default(); self.pieces()];
        let on_device = Buffer::<Piece>::new(&self.driver, pieces.len())?;
        let arguments = Arguments { pieces: on_device.address(), ..self.arguments() };
        self.launch(Kernel::SumPieces, self.n, &arguments)?;
        on_device.read(&mut pieces)?;
        let bad = pieces.iter().map(|piece| piece.unusable as usize).min().filter(|&place| place < self.n);
        let last = pieces.iter().map(|piece| piece.last).max().filter(|&place| place >= 0);
        let (Some(last), None) = (last, bad) else {
            // in the words of the CPU
            super::check(&self.read()?)?;
            return Err(Error::Engine(format!(
                "{}: the device returned invalid sums of weights",
                self.driver.describe()
            )));
        };
        let largest = pieces.iter().map(|piece| piece.largest).fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut sum_of_squares) = (0.0, 0.0);
        for piece in &pieces {
            let scale = (piece.largest - largest).exp();
            sum += scale * piece.sum;
            sum_of_squares += scale * scale * piece.sum_of_squares;
        }
        let (log_sum, log_sum_of_squares) = (largest + sum.ln(), 2.0 * largest + sum_of_squares.ln());
        Ok(Sums { log_sum, log_sum_of_squares, last: last as usize })
    }
}
