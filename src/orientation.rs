//! Densities averaged over orientations.
//!
//! A flow in Cartesian coordinates trained on rotated frames is invariant under rotation only as far as it has learned
//! to be; the remainder is noise in its weights. A target can be extended by K rotations, uniform and independent:
//! e^{−u(x)} dR₁ … dR_K. A sample is one of the K copies R_k x, whichever, drawn from q, with the others rotated at
//! random, and its density is
//!
//! ```text
//! q̄(x; R) = 1/K Σ q(R_k x)
//! ```
//!
//! So the weights e^{−u}/q̄ are exact for any K, if a sample counts itself as one of its copies (it is the one that was
//! drawn) and a current configuration, whose orientation is arbitrary, gets K fresh ones. They vary less as K grows.
//!
//! That holds for any u if x itself is rotated at random, as proposals of moves are (`Generator::average_rotations`). A
//! sample that stays as drawn is its own copy with R_k = 1; its weights are exact only for rotationally invariant
//! targets.

use crate::coordinates::superpose::random_rotation;
use crate::density::{Density, Evaluation, Scope, Status};
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::weights::log_sum_exp;

/// Maximum number of copies, whose likelihoods are computed in one call.
const MOST: usize = 1 << 10;

/// Errors: a number of rotations that is zero or too large; a density that does not describe a molecule's orientation.
pub fn check(density: &dyn Density, rotations: usize) -> Result<()> {
    if !(1..=MOST).contains(&rotations) {
        return Err(Error::invalid(format!("an average over {rotations} rotations is out of range: use 1 to {MOST}")));
    }
    match density.scope() {
        Scope::Centred | Scope::Noisy { .. } => Ok(()),
        Scope::Full | Scope::Shape { .. } => Err(Error::Unsupported(
            "an average over rotations requires a model that describes the orientation of a molecule, such as a TarFlow"
                .into(),
        )),
    }
}

/// ln q̄ of each row of `x[n][dimension]` under rotations about the origin. With `drawn` = log q of the rows, each row
/// counts as one of its own copies, and a row that is not inside stays so; otherwise all copies are rotated. Random
/// numbers come from the row's stream.
///
/// Errors: a failing density.
pub fn averaged(
    density: &dyn Density,
    x: &[f64],
    drawn: Option<&[Evaluation]>,
    rotations: usize,
    streams: impl Fn(usize) -> Stream,
) -> Result<Vec<Evaluation>> {
    let (d, fresh) = (density.dimension(), rotations - usize::from(drawn.is_some()));
    let mut turned = Vec::with_capacity(x.len() * fresh);
    for (row, x) in x.chunks_exact(d).enumerate() {
        let mut stream = streams(row);
        for _ in 0..fresh {
            let start = turned.len();
            turned.extend_from_slice(x);
            random_rotation(&mut turned[start..], &mut stream);
        }
    }
    let mut of_turned = vec![Evaluation::outside(Status::NonFinite); turned.len() / d];
    density.log_density(&turned, &mut of_turned)?;
    let of_row = |row: usize| {
        let own = drawn.map(|drawn| drawn[row]);
        match own.filter(|own| !own.is_inside()) {
            Some(outside) => outside,
            None => mean(own.iter().chain(&of_turned[row * fresh..(row + 1) * fresh])),
        }
    };
    Ok((0..x.len() / d).map(of_row).collect())
}

/// ln of the mean density of the copies, of which those outside the support count as zero; if all are outside, the
/// status of the first.
fn mean<'a>(copies: impl Iterator<Item = &'a Evaluation>) -> Evaluation {
    let copies: Vec<Evaluation> = copies.copied().collect();
    let inside: Vec<f64> = copies.iter().filter(|e| e.is_inside()).map(|e| e.log_density).collect();
    match inside.is_empty() {
        true => copies[0],
        false => Evaluation::inside(log_sum_exp(&inside) - (copies.len() as f64).ln()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one rotation a sample is its own only copy.
    #[test]
    fn a_sample_counts_itself_and_no_other_as_its_copy() {
        struct Never;
        impl Density for Never {
            fn dimension(&self) -> usize {
                3
            }
            fn exactness(&self) -> crate::density::Exactness {
                crate::density::Exactness::Exact
            }
            fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
                unreachable!("no samples are drawn here")
            }
            fn log_density(&self, x: &[f64], _: &mut [Evaluation]) -> Result<()> {
                assert!(x.is_empty(), "no copy is turned");
                Ok(())
            }
            fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
                unreachable!("no gradient is asked for here")
            }
        }
        let drawn = [Evaluation::inside(-1.0), Evaluation::outside(Status::Singular), Evaluation::inside(2.0)];
        let streams = |row: usize| Stream::new(1, crate::rng::StreamId::Test, row as u64, 0);
        assert_eq!(averaged(&Never, &[0.0; 9], Some(&drawn), 1, streams).unwrap(), drawn);
    }

    #[test]
    fn a_mean_counts_copies_outside_as_zeros() {
        let (two, four) = (Evaluation::inside(2f64.ln()), Evaluation::inside(4f64.ln()));
        let (nowhere, singular) = (Evaluation::outside(Status::OutOfSupport), Evaluation::outside(Status::Singular));
        let of = |copies: &[Evaluation]| mean(copies.iter());
        assert!((of(&[two, four]).log_density - 3f64.ln()).abs() < 1e-15);
        assert!((of(&[two, nowhere, four, singular]).log_density - 1.5f64.ln()).abs() < 1e-15);
        assert_eq!(of(&[singular, nowhere]), singular);
    }
}
