//! Densities averaged over orientations.
//!
//! A flow in Cartesian coordinates that was trained on turned frames is invariant under rotation only as far as it has
//! learned to be, and what it has not is noise in its weights. A target can be extended by K rotations, uniform and
//! independent: e^{−u(x)} dR₁ … dR_K. A sample is one of the K copies R_k x, whichever, drawn from q, the others being
//! turned at random, and its density is
//!
//! ```text
//! q̄(x; R) = 1/K Σ q(R_k x)
//! ```
//!
//! So the weights e^{−u}/q̄ are exact for any K, if a sample counts itself as one of its copies, since it is the one
//! that was drawn, and a current configuration, whose orientation says nothing, has K fresh ones. They vary the less
//! the larger K is.
//!
//! That holds for any u if x itself is turned at random, as proposals of moves are (`Generator::average_rotations`). A
//! sample that stays as it was drawn is its own copy without a turn, R_k = 1, and has such weights for targets only
//! that do not know of directions.

use crate::coordinates::superpose::random_rotation;
use crate::density::{Density, Evaluation, Scope, Status};
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::weights::log_sum_exp;

/// Most copies: that many likelihoods are computed in one call.
const MOST: usize = 1 << 10;

/// Errors: no rotations or too many; a density that does not describe the orientation of a molecule.
pub fn check(density: &dyn Density, rotations: usize) -> Result<()> {
    if !(1..=MOST).contains(&rotations) {
        return Err(Error::invalid(format!("an average over {rotations} rotations: use 1 to {MOST}")));
    }
    match density.scope() {
        Scope::Centred | Scope::Noisy { .. } => Ok(()),
        Scope::Full | Scope::Shape { .. } => Err(Error::Unsupported(
            "an average over rotations is for models that describe the orientation of a molecule, such as TarFlows"
                .into(),
        )),
    }
}

/// ln q̄ of each row of `x[n][dimension]`, turned about the origin. With `drawn`, log q of the rows, each row is one of
/// its copies itself, and one that is not inside stays what it is; else all are turned. Random numbers are those of the
/// row's stream.
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

/// Copies outside the support count as zeros; if all are, the mean is outside for the reason of the first.
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

    /// Over one rotation a sample is its only copy.
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
