//! Operations between atoms and ordered pairs of atoms. Pair rows are `[sample][i][j]`: j is the source, i the
//! destination.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};

/// y[i][j] = α source[j] + β destination[i].
#[derive(Clone, Debug)]
pub(super) struct PairsOp {
    source: Option<(f64, Var)>,
    destination: Option<(f64, Var)>,
    atoms: usize,
    output: Var,
}

impl<R: Scalar> Operation<R> for PairsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, y: &mut [R]) {
        let (n, c) = (self.atoms, self.output.columns);
        let part = |part: Option<(f64, Var)>| part.map(|(f, x)| (R::from_f64(f), point.value(x)));
        let (source, destination) = (part(self.source), part(self.destination));
        vectorised!({
            for (i, block) in y.chunks_exact_mut(n * c).enumerate() {
                let first = i / n * n * c;
                match source {
                    Some((f, x)) => {
                        let x = &x[first..first + n * c];
                        block.iter_mut().zip(x).for_each(|(y, &x)| *y = f * x)
                    }
                    None => block.fill(R::default()),
                }
                if let Some((f, x)) = destination {
                    let x = &x[i * c..(i + 1) * c];
                    block.chunks_exact_mut(c).for_each(|y| y.iter_mut().zip(x).for_each(|(y, &x)| *y += f * x));
                }
            }
        });
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (n, c) = (self.atoms, self.output.columns);
        if let Some((f, x)) = self.source {
            let (f, slots) = (R::from_f64(f), &mut inputs[x.range()]);
            vectorised!({
                for (i, block) in cotangent.chunks_exact(n * c).enumerate() {
                    let first = i / n * n * c;
                    slots[first..first + n * c].iter_mut().zip(block).for_each(|(s, &g)| *s += f * g);
                }
            });
        }
        if let Some((f, x)) = self.destination {
            let (f, slots) = (R::from_f64(f), &mut inputs[x.range()]);
            vectorised!({
                for (slot, block) in slots.chunks_exact_mut(c).zip(cotangent.chunks_exact(n * c)) {
                    for g in block.chunks_exact(c) {
                        slot.iter_mut().zip(g).for_each(|(s, &g)| *s += f * g);
                    }
                }
            });
        }
    }
}

/// y[i] = Σ_j m[i][j], with or without j = i.
#[derive(Clone, Debug)]
pub(super) struct SumPairsOp {
    m: Var,
    atoms: usize,
    diagonal: bool,
    output: Var,
}

impl<R: Scalar> Operation<R> for SumPairsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, y: &mut [R]) {
        let (n, c) = (self.atoms, self.m.columns);
        vectorised!({
            for (i, (y, block)) in y.chunks_exact_mut(c).zip(point.value(self.m).chunks_exact(n * c)).enumerate() {
                y.fill(R::default());
                for (j, m) in block.chunks_exact(c).enumerate() {
                    if self.diagonal || j != i % n {
                        y.iter_mut().zip(m).for_each(|(y, &m)| *y += m);
                    }
                }
            }
        });
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (n, c) = (self.atoms, self.m.columns);
        let blocks = inputs[self.m.range()].chunks_exact_mut(n * c).zip(cotangent.chunks_exact(c));
        vectorised!({
            for (i, (block, g)) in blocks.enumerate() {
                for (j, slot) in block.chunks_exact_mut(c).enumerate() {
                    if self.diagonal || j != i % n {
                        slot.iter_mut().zip(g).for_each(|(s, &g)| *s += g);
                    }
                }
            }
        });
    }
}

/// Repeats every row `times` times.
#[derive(Clone, Debug)]
pub(super) struct RepeatOp {
    x: Var,
    times: usize,
    output: Var,
}

/// y[r] = Σ of `group` successive rows.
#[derive(Clone, Debug)]
pub(super) struct SumRowsOp {
    x: Var,
    group: usize,
    output: Var,
}

/// Calls `each(r · times + k, row r)` for every row of `few` and k < `times`.
fn repeat<R: Scalar>(few: &[R], c: usize, times: usize, mut each: impl FnMut(usize, &[R])) {
    few.chunks_exact(c).enumerate().for_each(|(r, row)| (0..times).for_each(|k| each(r * times + k, row)));
}

impl<R: Scalar> Operation<R> for RepeatOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let c = self.x.columns;
        repeat(point.value(self.x), c, self.times, |r, row| output[r * c..(r + 1) * c].copy_from_slice(row));
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let c = self.x.columns;
        for (slot, block) in inputs[self.x.range()].chunks_exact_mut(c).zip(cotangent.chunks_exact(c * self.times)) {
            block.chunks_exact(c).for_each(|g| slot.iter_mut().zip(g).for_each(|(s, &g)| *s += g));
        }
    }
}

impl<R: Scalar> Operation<R> for SumRowsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let c = self.x.columns;
        for (y, block) in output.chunks_exact_mut(c).zip(point.value(self.x).chunks_exact(c * self.group)) {
            y.fill(R::default());
            block.chunks_exact(c).for_each(|x| y.iter_mut().zip(x).for_each(|(y, &x)| *y += x));
        }
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let c = self.x.columns;
        let slots = &mut inputs[self.x.range()];
        repeat(cotangent, c, self.group, |r, g| {
            slots[r * c..(r + 1) * c].iter_mut().zip(g).for_each(|(s, &g)| *s += g)
        });
    }
}

impl<R: Scalar> Tape<R> {
    /// `α source[j] + β destination[i]` for all ordered pairs (i, j) of the atoms of each sample; either may be
    /// omitted.
    pub fn pairs(&mut self, source: Option<(f64, Var)>, destination: Option<(f64, Var)>, atoms: usize) -> Var {
        let x = source.or(destination).expect("a source or a destination").1;
        assert!(x.rows.is_multiple_of(atoms) && source.zip(destination).is_none_or(|(s, d)| s.1.len() == d.1.len()));
        let output = self.allocate(x.rows * atoms, x.columns);
        self.run(&[], PairsOp { source, destination, atoms, output })
    }

    /// Sum Σ_j over the sources of each destination, with or without the diagonal j = i.
    pub fn sum_pairs(&mut self, m: Var, atoms: usize, diagonal: bool) -> Var {
        let output = self.allocate(m.rows / atoms, m.columns);
        self.run(&[], SumPairsOp { m, atoms, diagonal, output })
    }

    /// Repeats every row `times` times.
    pub fn repeat(&mut self, x: Var, times: usize) -> Var {
        let output = self.allocate(x.rows * times, x.columns);
        self.run(&[], RepeatOp { x, times, output })
    }

    /// Sum of every `group` successive rows.
    pub fn sum_rows(&mut self, x: Var, group: usize) -> Var {
        assert!(x.rows.is_multiple_of(group));
        let output = self.allocate(x.rows / group, x.columns);
        self.run(&[], SumRowsOp { x, group, output })
    }

    /// x minus its mean over the atoms of each sample.
    pub fn centred(&mut self, x: Var, atoms: usize) -> Var {
        let sum = self.sum_rows(x, atoms);
        let sum = self.repeat(sum, atoms);
        self.combine((1.0, x), (-1.0 / atoms as f64, sum), 0.0)
    }
}
