//! Optimal transport between samples: exact in one dimension, exact between equally many points by assignment, and
//! sliced.
//!
//! W_p = (min E |x − y|^p)^{1/p} over all joint distributions of x and y with the two given marginals (Villani,
//! "Optimal transport", 2009). Between finite samples it is positive even if both come from one distribution.

use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::weights::select;

/// Weighted points: rows `[n][dimension]` and n weights that sum to one.
#[derive(Clone, Copy, Debug)]
pub struct Cloud<'a> {
    rows: &'a [f64],
    dimension: usize,
    weights: &'a [f64],
}

impl<'a> Cloud<'a> {
    /// Errors: no point, another number of weights than of points, coordinates that are not finite, weights that are
    /// negative or do not sum to one.
    pub fn new(rows: &'a [f64], dimension: usize, weights: &'a [f64]) -> Result<Cloud<'a>> {
        if weights.is_empty() || rows.len() != weights.len() * dimension {
            let message =
                format!("{} numbers do not match {} points of dimension {dimension}", rows.len(), weights.len());
            return Err(Error::invalid(message));
        }
        if let Some(i) = rows.iter().position(|v| !v.is_finite()) {
            return Err(Error::invalid(format!("point {} has a coordinate of {}", i / dimension + 1, rows[i])));
        }
        let total: f64 = weights.iter().sum();
        if weights.iter().any(|w| w.is_nan() || *w < 0.0) || (total - 1.0).abs() > 1e-6 {
            return Err(Error::invalid(format!("weights sum to {total}: must be non-negative and sum to 1")));
        }
        Ok(Cloud { rows, dimension, weights })
    }

    /// Number of points.
    pub fn n(&self) -> usize {
        self.weights.len()
    }

    /// Points `[n][dimension]`.
    pub fn rows(&self) -> &'a [f64] {
        self.rows
    }

    /// Number of coordinates per point.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Weights of the points, which sum to one.
    pub fn weights(&self) -> &'a [f64] {
        self.weights
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * self.dimension..(i + 1) * self.dimension]
    }

    /// Systematic resampling: indices of `m` rows in proportion to their weights, with one random shift; the copies of
    /// every row differ from its share by less than one.
    fn comb(&self, m: usize, stream: &mut Stream) -> Vec<usize> {
        let shift = stream.uniform();
        let points: Vec<f64> = (0..m).map(|i| (i as f64 + shift) / m as f64).collect();
        select(self.weights, &points)
    }
}

/// W_p in one dimension, exact for weighted samples, by coupling the quantile functions: (∫₀¹ |F⁻¹ − G⁻¹|^p)^{1/p}.
/// Errors: clouds of another dimension than one.
pub fn on_the_line(p: i32, a: Cloud, b: Cloud) -> Result<f64> {
    if a.dimension != 1 || b.dimension != 1 {
        return Err(Error::invalid("points must have exactly one coordinate"));
    }
    Ok(line(p, (a.rows, a.weights), (b.rows, b.weights)).powf(1.0 / f64::from(p)))
}

/// ∫₀¹ |F⁻¹ − G⁻¹|^p of weighted values.
fn line(p: i32, a: (&[f64], &[f64]), b: (&[f64], &[f64])) -> f64 {
    let sorted = |(values, weights): (&[f64], &[f64])| {
        let mut order: Vec<(f64, f64)> = values.iter().copied().zip(weights.iter().copied()).collect();
        order.sort_by(|x, y| x.0.total_cmp(&y.0));
        order
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut left_a, mut left_b, mut sum) = (0, 0, a[0].1, b[0].1, 0.0);
    loop {
        let mass = f64::min(left_a, left_b);
        sum += mass * (a[i].0 - b[j].0).abs().powi(p);
        (left_a, left_b) = (left_a - mass, left_b - mass);
        // advance whichever is used up; rounding left over at the end is dropped
        if left_a <= left_b {
            i += 1;
            let Some(next) = a.get(i) else { return sum };
            left_a = next.1;
        } else {
            j += 1;
            let Some(next) = b.get(j) else { return sum };
            left_b = next.1;
        }
    }
}

/// W₂ for a given squared distance, by exact assignment between at most `points` rows of each cloud: all rows if both
/// clouds have equally many, no more than `points`, and equal weights; else as many as the larger has, or `points` if
/// it has more, resampled in proportion to their weights with random numbers from `stream`.
pub fn by_assignment(
    a: Cloud,
    b: Cloud,
    points: usize,
    stream: &mut Stream,
    squared: impl Fn(&[f64], &[f64]) -> f64,
) -> f64 {
    let m = a.n().max(b.n()).min(points.max(1));
    let (of_a, of_b) = (a.comb(m, stream), b.comb(m, stream));
    let cost = |i: usize, j: usize| squared(a.row(of_a[i]), b.row(of_b[j]));
    let total: f64 = assignment(m, cost).iter().enumerate().map(|(i, &j)| cost(i, j)).sum();
    (total / m as f64).sqrt()
}

/// √D times the sliced W₂ (Rabin et al. 2012; Bonneel et al. 2015) of points with D coordinates: the root of D times
/// the mean squared W₂ of the projections, using all rows and weights. The directions are `bases` random orthonormal
/// bases; over a basis Σ(θ·v)² = |v|², so the result never exceeds W₂ and equals it for a translation.
///
/// Errors: clouds of different dimensions.
pub fn sliced(a: Cloud, b: Cloud, bases: usize, stream: &mut Stream) -> Result<f64> {
    if a.dimension != b.dimension {
        return Err(Error::invalid(format!(
            "all points must have the same number of coordinates, found {} and {}",
            a.dimension, b.dimension
        )));
    }
    let along = |cloud: &Cloud, direction: &[f64]| -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(direction).map(|(x, d)| x * d).sum();
        cloud.rows.chunks_exact(cloud.dimension).map(dot).collect()
    };
    let mut sum = 0.0;
    for _ in 0..bases {
        for direction in random_basis(a.dimension, stream) {
            sum += line(2, (&along(&a, &direction), a.weights), (&along(&b, &direction), b.weights));
        }
    }
    Ok((sum / bases as f64).sqrt())
}

/// A uniformly distributed random orthonormal basis.
fn random_basis(dimension: usize, stream: &mut Stream) -> Vec<Vec<f64>> {
    let normals = nalgebra::DMatrix::from_fn(dimension, dimension, |_, _| stream.normal());
    normals.qr().q().column_iter().map(|column| column.iter().copied().collect()).collect()
}

/// Optimal assignment: the column of every row in the cheapest one-to-one assignment, by shortest augmenting paths with
/// potentials, O(n³) (Kuhn 1955; Jonker and Volgenant 1987).
pub fn assignment(n: usize, cost: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let costs: Vec<f64> = (0..n * n).map(|k| cost(k / n, k % n)).collect();
    const FREE: usize = usize::MAX;
    let (mut of_row, mut of_column) = (vec![0.0; n], vec![0.0; n]);
    let (mut row_of, mut previous) = (vec![FREE; n], vec![FREE; n]);
    for start in 0..n {
        let mut least = vec![f64::INFINITY; n];
        let mut done = vec![false; n];
        let mut row = start;
        let mut last = FREE;
        let end = loop {
            // the cheapest unfinished column, after the row's edges are relaxed
            let (mut step, mut next) = (f64::INFINITY, FREE);
            for column in (0..n).filter(|&c| !done[c]) {
                let reduced = costs[row * n + column] - of_row[row] - of_column[column];
                if reduced < least[column] {
                    least[column] = reduced;
                    previous[column] = last;
                }
                if next == FREE || least[column] < step {
                    (step, next) = (least[column], column);
                }
            }
            for column in 0..n {
                if done[column] {
                    of_row[row_of[column]] += step;
                    of_column[column] -= step;
                } else {
                    least[column] -= step;
                }
            }
            of_row[start] += step;
            done[next] = true;
            last = next;
            match row_of[next] {
                FREE => break next,
                taken => row = taken,
            }
        };
        // flip the augmenting path
        let mut column = end;
        while column != FREE {
            let before = previous[column];
            row_of[column] = if before == FREE { start } else { row_of[before] };
            column = before;
        }
    }
    let mut columns = vec![0; n];
    row_of.iter().enumerate().for_each(|(column, &row)| columns[row] = column);
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::StreamId;

    fn normals(n: usize, index: u64) -> Vec<f64> {
        let mut stream = Stream::new(7, StreamId::Test, index, 0);
        (0..n).map(|_| stream.normal()).collect()
    }

    fn squared(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    #[test]
    fn assignment_is_the_best_of_all_permutations() {
        for case in 0..50 {
            let n = 1 + case as usize % 6;
            let costs = normals(n * n, case);
            let total = |p: &[usize]| p.iter().enumerate().map(|(i, &j)| costs[i * n + j]).sum::<f64>();
            let found = assignment(n, |i, j| costs[i * n + j]);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let mut best = f64::INFINITY;
            permutations(&mut (0..n).collect::<Vec<_>>(), 0, &mut |p| best = best.min(total(p)));
            assert!((total(&found) - best).abs() < 1e-12, "case {case}");
        }
    }

    fn permutations(p: &mut Vec<usize>, k: usize, each: &mut dyn FnMut(&[usize])) {
        if k == p.len() {
            return each(p);
        }
        for i in k..p.len() {
            p.swap(k, i);
            permutations(p, k + 1, each);
            p.swap(k, i);
        }
    }

    #[test]
    fn transport_on_the_line_is_that_of_the_best_assignment() {
        for case in 0..30 {
            let (n, m) = (2 + case as usize % 4, 1 + case as usize % 5);
            let (a, b) = (normals(n, 100 + case), normals(m, 200 + case));
            // weights in units of 1/12 and 1/60: copies of the points, of equal weight, are the same distribution
            let copies = |k: usize, of: usize| (0..k).map(|i| of / k + usize::from(i < of % k)).collect::<Vec<_>>();
            let spread = |x: &[f64], copies: &[usize]| -> Vec<f64> {
                x.iter().zip(copies).flat_map(|(x, &c)| vec![*x; c]).collect()
            };
            let (ca, cb) = (copies(n, 60), copies(m, 60));
            let weights = |c: &[usize]| c.iter().map(|&c| c as f64 / 60.0).collect::<Vec<_>>();
            let (wa, wb) = (weights(&ca), weights(&cb));
            let (all_a, all_b) = (spread(&a, &ca), spread(&b, &cb));
            for p in [1, 2] {
                let cost = |i: usize, j: usize| (all_a[i] - all_b[j]).abs().powi(p);
                let best: f64 = assignment(60, cost).iter().enumerate().map(|(i, &j)| cost(i, j)).sum::<f64>() / 60.0;
                let found = on_the_line(p, Cloud::new(&a, 1, &wa).unwrap(), Cloud::new(&b, 1, &wb).unwrap()).unwrap();
                assert!((found - best.powf(1.0 / f64::from(p))).abs() < 1e-12, "case {case}: {found} {best}");
            }
        }
    }

    #[test]
    fn transport_between_normal_distributions_is_known() {
        // W₂² = (m − m′)² + (s − s′)², and W₁ = |m − m′| where s = s′
        let (n, x) = (100_000, normals(100_000, 1));
        let w = vec![1.0 / n as f64; n];
        let wide: Vec<f64> = normals(n, 2).iter().map(|v| 0.5 + 1.7 * v).collect();
        let moved: Vec<f64> = x.iter().map(|v| v - 0.4).collect();
        let cloud = |x| Cloud::new(x, 1, &w).unwrap();
        let found = on_the_line(2, cloud(&x), cloud(&wide)).unwrap();
        assert!((found - (0.25f64 + 0.49).sqrt()).abs() < 0.02, "{found}");
        assert!((on_the_line(1, cloud(&x), cloud(&moved)).unwrap() - 0.4).abs() < 1e-9);
        // the same through weights: N(0, 1) reweighted to N(0.3, 1)
        let log_w: Vec<f64> = x.iter().map(|x| 0.3 * x).collect();
        let weighted = crate::weights::normalised(&log_w).unwrap();
        let found = on_the_line(2, Cloud::new(&x, 1, &weighted).unwrap(), cloud(&x)).unwrap();
        assert!((found - 0.3).abs() < 0.02, "{found}");
    }

    #[test]
    fn a_translation_costs_its_length_and_sliced_transport_never_more_than_the_exact() {
        let (n, d) = (60, 4);
        let a = normals(n * d, 3);
        let w = vec![1.0 / n as f64; n];
        let shifted: Vec<f64> = a.chunks_exact(d).flat_map(|r| [r[0] + 3.0, r[1] - 4.0, r[2], r[3]]).collect();
        let other: Vec<f64> = normals(n * d, 4).iter().map(|v| 1.3 * v).collect();
        let cloud = |x| Cloud::new(x, d, &w).unwrap();
        let stream = || Stream::new(1, StreamId::Test, 0, 0);
        let exact = |b| by_assignment(cloud(&a), cloud(b), n, &mut stream(), squared);
        let by_slices = |b| sliced(cloud(&a), cloud(b), 20, &mut stream()).unwrap();
        assert!((exact(&shifted) - 5.0).abs() < 1e-9 && (by_slices(&shifted) - 5.0).abs() < 1e-9);
        assert!(by_slices(&other) < exact(&other) && by_slices(&other) > 0.2 * exact(&other));
    }

    #[test]
    fn a_weighted_cloud_is_that_of_its_copies() {
        // three points of weights 1/2, 1/3, 1/6 against six
        let (a, b) = (normals(6, 5), normals(12, 6));
        let copies: Vec<f64> = [0, 0, 0, 1, 1, 2].iter().flat_map(|&i| a[2 * i..2 * i + 2].to_vec()).collect();
        let (third, sixth) = ([0.5, 1.0 / 3.0, 1.0 / 6.0], [1.0 / 6.0; 6]);
        let mut stream = Stream::new(2, StreamId::Test, 0, 0);
        let b = Cloud::new(&b, 2, &sixth).unwrap();
        let weighted = by_assignment(Cloud::new(&a, 2, &third).unwrap(), b, 100, &mut stream, squared);
        let copied = by_assignment(Cloud::new(&copies, 2, &sixth).unwrap(), b, 100, &mut stream, squared);
        assert!((weighted - copied).abs() < 1e-12, "{weighted} {copied}");
        let stream = || Stream::new(2, StreamId::Test, 0, 0);
        let [few, many] = [(&a, &third[..]), (&copies, &sixth)].map(|(x, w)| Cloud::new(x, 2, w).unwrap());
        let by_slices = [(few, b), (many, b), (b, few)].map(|(a, b)| sliced(a, b, 5, &mut stream()).unwrap());
        assert!((by_slices[0] - by_slices[1]).abs() < 1e-12 && (by_slices[0] - by_slices[2]).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_cloud_is_refused() {
        for (rows, weights) in
            [(vec![], vec![]), (vec![1.0], vec![0.5, 0.5]), (vec![f64::NAN], vec![1.0]), (vec![1.0], vec![0.7])]
        {
            assert!(Cloud::new(&rows, 1, &weights).is_err(), "{rows:?} {weights:?}");
        }
    }
}
