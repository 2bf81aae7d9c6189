//! Attention of one token to the cached keys and values of the tokens up to it.

use crate::nn::lanes::{prefetch, Kernel, Lanes, WIDTH};
use crate::nn::Real;

/// Stores key and value `[2][C]` of token i in a sample's key/value cache, `[head][key, value][token][width]`, so that
/// the keys compared with a head's query are contiguous.
pub(super) fn keep<R: Real>(key_and_value: &[R], kept: &mut [R], i: usize, heads: usize) {
    let (c, part) = (key_and_value.len() / 2, kept.len() / (2 * heads));
    let width = c / heads;
    for (h, kept) in kept.chunks_exact_mut(part).enumerate() {
        let from = h % 2 * c + h / 2 * width;
        kept[i * width..][..width].copy_from_slice(&key_and_value[from..from + width]);
    }
}

/// Attention output of one query over the first `seen` of the `tokens` cached keys and values of its sample, head by
/// head. `kept` continues with those of the next sample, if there is one.
pub(super) fn mix<R: Real>(
    q: &[R],
    (kept, tokens): (&[R], usize),
    seen: usize,
    mixed: &mut [R],
    heads: usize,
    scores: &mut [R],
) {
    R::vectorised(Attention { q, kept, part: tokens * q.len() / heads, heads, scores: &mut scores[..seen], mixed });
}

struct Attention<'a, R> {
    q: &'a [R],
    kept: &'a [R],
    /// Numbers in the keys of a head.
    part: usize,
    heads: usize,
    scores: &'a mut [R],
    mixed: &'a mut [R],
}

impl<R: Real> Kernel<R> for Attention<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        let Attention { q, kept, part, heads, scores, mixed } = self;
        let width = q.len() / heads;
        let scale = R::from_f64(1.0 / (width as f64).sqrt());
        for (h, (q, mixed)) in q.chunks_exact(width).zip(mixed.chunks_exact_mut(width)).enumerate() {
            let (keys, values) = kept[2 * h * part..][..2 * part].split_at(part);
            // with many samples the cache is far from the processor: values are prefetched with the keys, and the next
            // keys with the values
            for (j, (score, key)) in scores.iter_mut().zip(keys.chunks_exact(width)).enumerate() {
                prefetch(&values[j * width..][..width]);
                *score = scale * dot::<R, L>(q, key);
            }
            let factor = R::from_f64(1.0) / exponentials::<R, L>(scores);
            let next = kept.get(2 * (h + 1) * part..).unwrap_or_default();
            mean::<R, L>(scores, factor, values, mixed, next);
        }
    }
}

/// Replaces scores by their exponentials relative to the largest; returns the sum.
#[inline(always)]
fn exponentials<R: Real, L: Lanes<R>>(scores: &mut [R]) -> R {
    let top = scores.iter().fold(scores[0], |top, &w| if w > top { w } else { top });
    let (lanes, rest) = scores.as_chunks_mut::<WIDTH>();
    let mut sum = L::zero();
    for scores in lanes {
        let e = L::load(scores).sub(L::splat(top)).exp();
        e.store(scores);
        sum = sum.add(e);
    }
    let mut last = [top; WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    L::load(&last).sub(L::splat(top)).exp().store(&mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    rest.iter().fold(sum.sum(), |sum, &e| sum + e)
}

/// Weighted mean of values, with weights whose sum is 1/factor. Meanwhile prefetches as many rows of `next`.
#[inline(always)]
fn mean<R: Real, L: Lanes<R>>(weights: &[R], factor: R, values: &[R], mixed: &mut [R], mut next: &[R]) {
    let (width, mut place) = (mixed.len(), 0);
    while place + 4 * WIDTH <= width {
        columns::<R, L, 4>(weights, factor, &values[place..], &mut mixed[place..], width, std::mem::take(&mut next));
        place += 4 * WIDTH;
    }
    while place + WIDTH <= width {
        columns::<R, L, 1>(weights, factor, &values[place..], &mut mixed[place..], width, std::mem::take(&mut next));
        place += WIDTH;
    }
    for (k, mixed) in mixed.iter_mut().enumerate().skip(place) {
        let column = values.iter().skip(k).step_by(width);
        *mixed = factor * weights.iter().zip(column).fold(R::default(), |sum, (&w, &v)| sum + w * v);
    }
}

/// N lanes of the mean.
#[inline(always)]
fn columns<R: Real, L: Lanes<R>, const N: usize>(
    w: &[R],
    factor: R,
    values: &[R],
    mixed: &mut [R],
    width: usize,
    next: &[R],
) {
    let mut sum = [L::zero(); N];
    let mut next = next.chunks_exact(width);
    for (&w, value) in w.iter().zip(values.chunks(width)) {
        prefetch(next.next().unwrap_or_default());
        let w = L::splat(w);
        for (sum, value) in sum.iter_mut().zip(value.chunks_exact(WIDTH)) {
            *sum = w.mul_add(L::load(value), *sum);
        }
    }
    let factor = L::splat(factor);
    sum.into_iter().zip(mixed.chunks_exact_mut(WIDTH)).for_each(|(sum, mixed)| sum.mul(factor).store(mixed));
}

#[inline(always)]
fn dot<R: Real, L: Lanes<R>>(a: &[R], b: &[R]) -> R {
    let mut lanes = L::zero();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    for (a, b) in a.iter().zip(b) {
        lanes = L::load(a).mul_add(L::load(b), lanes);
    }
    a_rest.iter().zip(b_rest).fold(lanes.sum(), |sum, (&a, &b)| sum + a * b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Σ_j softmax_j(q·k_j/√width) v_j in every head, whether or not its columns fill whole lanes.
    #[test]
    fn one_query_is_mixed_as_defined() {
        let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 20.0;
        for (heads, width, tokens) in [(1, 3, 4), (3, 16, 40), (2, 70, 17), (2, 83, 33)] {
            let c = heads * width;
            let rows: Vec<Vec<f64>> = (0..tokens).map(|i| (0..2 * c).map(|k| value(2 * i * c + k)).collect()).collect();
            let mut kept = vec![f64::NAN; 2 * c * tokens];
            rows.iter().enumerate().for_each(|(i, row)| keep(row, &mut kept, i, heads));
            let q: Vec<f64> = (0..c).map(|k| value(5 * k + 1)).collect();
            for seen in [1, tokens / 2, tokens] {
                let (mut mixed, mut scores) = (vec![f64::NAN; c], vec![f64::NAN; tokens]);
                mix(&q, (&kept, tokens), seen, &mut mixed, heads, &mut scores);
                for (k, mixed) in mixed.iter().enumerate() {
                    let head = k / width * width..(k / width + 1) * width;
                    let score =
                        |row: &Vec<f64>| head.clone().map(|k| q[k] * row[k]).sum::<f64>() / (width as f64).sqrt();
                    let weights: Vec<f64> = rows[..seen].iter().map(|row| score(row).exp()).collect();
                    let sum: f64 = weights.iter().zip(&rows).map(|(w, row)| w * row[c + k]).sum();
                    let truth = sum / weights.iter().sum::<f64>();
                    assert!((mixed - truth).abs() < 1e-11, "{seen} of {tokens} tokens: {mixed} {truth}");
                }
            }
        }
    }
}
