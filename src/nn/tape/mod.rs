//! Reverse- and forward-mode differentiation of networks that are written once, as in the paper.
//!
//! A network calls the operations of [`Tape`] in order. Each runs at once and is recorded; then [`Tape::backward`]
//! propagates cotangents to inputs and parameters, and [`Tape::jvp`] propagates a tangent from inputs to outputs. Every
//! operation has its forward pass, jvp and vjp in one file. Buffers grow once: a second pass of the same shape
//! allocates nothing.
//!
//! Values are matrices `[rows][columns]`. Vectors in 3-space with C channels are rows of 3 C columns, component by
//! component, so that channels are mixed by a matrix product after [`Var::reshape`] to 3 × rows and C columns.

mod attention;
mod causal;
mod gaussian;
mod invariants;
mod matrix;
mod norm;
mod packs;
mod pairs;
mod pointwise;
mod rows;

pub use attention::Attention;
pub use causal::Causal;
pub use gaussian::{Gaussians, RadialBasis, TypedAffine};
pub use invariants::{Invariants, Swap};
pub use matrix::{Embed, Weight};
pub use norm::{normalise, normalise_by, normalise_columns, LayerNorm};
pub use packs::Packs;
pub use pointwise::{gelu, Function};
pub use rows::NO_ROW;

use super::memory::resize;
use super::Scalar;
use attention::AttentionOp;
use causal::CausalOp;
use gaussian::{GaussiansOp, RadialBasisOp, TypedAffineOp};
use invariants::InvariantsOp;
use matrix::{EmbedOp, LinearOp};
use norm::{LayerNormOp, MeanColumnsOp, SquaredLengthOp};
use pairs::{PairsOp, RepeatOp, SumPairsOp, SumRowsOp};
use pointwise::{CombineOp, FunctionOp, ProductOp, ScaleOp, SwishOp};
use rows::{RowsOp, SideBySideOp};
use std::sync::Arc;

/// A value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var {
    at: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Var {
    fn range(self) -> std::ops::Range<usize> {
        self.at..self.at + self.len()
    }

    fn len(self) -> usize {
        self.rows * self.columns
    }

    /// The same numbers as a matrix of another shape. Panics if the number of elements differs.
    pub fn reshape(self, rows: usize, columns: usize) -> Var {
        assert_eq!(rows * columns, self.len(), "a reshape must keep the number of elements");
        Var { rows, columns, ..self }
    }
}

/// A recorded operation, which reads values that precede its output and writes its output.
trait Operation<R: Scalar> {
    fn output(&self) -> Var;
    fn forward(&self, point: &Point<R>, output: &mut [R]);
    /// Output tangent from the tangents of the inputs. The default is for operations that are linear in their inputs
    /// and have no parameters.
    fn jvp(&self, _: &Point<R>, tangents: &[R], output: &mut [R]) {
        self.forward(&Point { parameters: &[], packs: None, values: tangents }, output);
    }
    /// Adds the cotangents of inputs and parameters.
    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], gradient: Option<&mut [R]>);
    /// Multiply-adds in the forward pass, for operations whose cost they dominate.
    fn products(&self) -> usize {
        0
    }
}

/// Point of evaluation or differentiation: parameters, and the earlier values on the tape.
struct Point<'a, R> {
    parameters: &'a [R],
    packs: Option<&'a Packs<R>>,
    values: &'a [R],
}

impl<R> Point<'_, R> {
    fn value(&self, var: Var) -> &[R] {
        &self.values[var.range()]
    }
}

macro_rules! operations {
    ($($name:ident($kind:ty)),* $(,)?) => {
        #[derive(Clone, Debug)]
        enum Record { $($name($kind)),* }

        impl Record {
            fn as_operation<R: Scalar>(&self) -> &dyn Operation<R> {
                match self { $(Record::$name(op) => op),* }
            }
        }

        $(impl From<$kind> for Record {
            fn from(op: $kind) -> Record {
                Record::$name(op)
            }
        })*
    };
}

operations!(
    Linear(LinearOp),
    Embed(EmbedOp),
    Combine(CombineOp),
    Product(ProductOp),
    Scale(ScaleOp),
    Function(FunctionOp),
    Swish(SwishOp),
    LayerNorm(LayerNormOp),
    MeanColumns(MeanColumnsOp),
    SquaredLength(SquaredLengthOp),
    Pairs(PairsOp),
    SumPairs(SumPairsOp),
    Repeat(RepeatOp),
    SumRows(SumRowsOp),
    RadialBasis(RadialBasisOp),
    Gaussians(GaussiansOp),
    TypedAffine(TypedAffineOp),
    Attention(AttentionOp),
    Causal(CausalOp),
    Rows(RowsOp),
    SideBySide(SideBySideOp),
    Invariants(InvariantsOp),
);

/// Values, recorded operations, and buffers for derivatives.
#[derive(Debug, Default)]
pub struct Tape<R> {
    values: Vec<R>,
    end: usize,
    records: Vec<Record>,
    tangents: Vec<R>,
    cotangents: Vec<R>,
    packs: Option<Arc<Packs<R>>>,
}

impl<R: Scalar> Tape<R> {
    /// A tape that uses packed weights; its passes must get the parameters that were packed.
    pub fn with(packs: Arc<Packs<R>>) -> Tape<R> {
        Tape { packs: Some(packs), ..Tape::default() }
    }

    /// Clears everything but keeps the buffers.
    pub fn clear(&mut self) {
        self.end = 0;
        self.records.clear();
    }

    /// A new input; the caller fills it with [`Tape::value_mut`] before any operation reads it.
    pub fn input(&mut self, rows: usize, columns: usize) -> Var {
        self.allocate(rows, columns)
    }

    /// Values, row by row.
    pub fn value(&self, var: Var) -> &[R] {
        &self.values[var.range()]
    }

    /// Mutable values, to fill inputs.
    pub fn value_mut(&mut self, var: Var) -> &mut [R] {
        &mut self.values[var.range()]
    }

    fn allocate(&mut self, rows: usize, columns: usize) -> Var {
        let at = self.end;
        self.end += rows * columns;
        if self.values.len() < self.end {
            resize(&mut self.values, self.end);
        }
        Var { at, rows, columns }
    }

    fn run<O: Operation<R> + Into<Record>>(&mut self, parameters: &[R], op: O) -> Var {
        let output = op.output();
        let (before, after) = self.values.split_at_mut(output.at);
        let point = Point { parameters, packs: self.packs.as_deref(), values: before };
        op.forward(&point, &mut after[..output.len()]);
        self.records.push(op.into());
        output
    }

    /// Floating-point operations of the recorded matrix products and attention, forward pass.
    pub fn flops(&self) -> f64 {
        2.0 * self.records.iter().map(|record| record.as_operation::<R>().products() as f64).sum::<f64>()
    }

    /// Propagates a tangent forward: `seeds` are inputs with their tangents; all other inputs and the parameters have
    /// zero tangents.
    pub fn jvp(&mut self, parameters: &[R], seeds: &[(Var, &[R])]) {
        resize(&mut self.tangents, self.values.len());
        self.tangents[..self.end].fill(R::default());
        for (var, tangent) in seeds {
            self.tangents[var.range()].copy_from_slice(tangent);
        }
        let point = Point { parameters, packs: self.packs.as_deref(), values: &self.values };
        for record in &self.records {
            let op = record.as_operation();
            let output = op.output();
            let (before, after) = self.tangents.split_at_mut(output.at);
            op.jvp(&point, before, &mut after[..output.len()]);
        }
    }

    /// Tangent after [`Tape::jvp`].
    pub fn tangent(&self, var: Var) -> &[R] {
        &self.tangents[var.range()]
    }

    /// Propagates cotangents back from `seeds`; adds those of the parameters to `gradient`, if given.
    pub fn backward(&mut self, parameters: &[R], seeds: &[(Var, &[R])], mut gradient: Option<&mut [R]>) {
        resize(&mut self.cotangents, self.values.len());
        self.cotangents[..self.end].fill(R::default());
        for (var, cotangent) in seeds {
            let slot = &mut self.cotangents[var.range()];
            slot.iter_mut().zip(*cotangent).for_each(|(s, &c)| *s += c);
        }
        let point = Point { parameters, packs: self.packs.as_deref(), values: &self.values };
        for record in self.records.iter().rev() {
            let op = record.as_operation();
            let output = op.output();
            let (before, after) = self.cotangents.split_at_mut(output.at);
            op.vjp(&point, &after[..output.len()], before, gradient.as_deref_mut());
        }
    }

    /// Cotangent after [`Tape::backward`].
    pub fn cotangent(&self, var: Var) -> &[R] {
        &self.cotangents[var.range()]
    }
}

#[cfg(test)]
mod tests;
