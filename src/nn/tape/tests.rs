use super::*;
use crate::rng::{Stream, StreamId};

const ATOMS: usize = 3;
const SAMPLES: usize = 2;

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(11, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

/// Compares jvp and vjp of one operation with finite differences, in inputs and parameters.
fn check(name: &str, shapes: &[(usize, usize)], n_parameters: usize, op: fn(&mut Tape<f64>, &[f64], &[Var]) -> Var) {
    let run = |tape: &mut Tape<f64>, parameters: &[f64], values: &[Vec<f64>]| {
        tape.clear();
        let inputs: Vec<Var> = shapes.iter().map(|&(r, c)| tape.input(r, c)).collect();
        inputs.iter().zip(values).for_each(|(&v, x)| tape.value_mut(v).copy_from_slice(x));
        let output = op(tape, parameters, &inputs);
        (inputs, output)
    };
    let draw = |index: u64| -> Vec<Vec<f64>> {
        shapes.iter().enumerate().map(|(k, &(r, c))| normals(r * c, 10 * index + k as u64)).collect()
    };
    let (values, tangents) = (draw(1), draw(2));
    let (parameters, dp) = (normals(n_parameters, 3), normals(n_parameters, 4));
    let mut tape = Tape::default();
    let (inputs, output) = run(&mut tape, &parameters, &values);
    let cotangent = normals(output.len(), 5);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();

    let seeds: Vec<(Var, &[f64])> = inputs.iter().zip(&tangents).map(|(&v, t)| (v, t.as_slice())).collect();
    tape.jvp(&parameters, &seeds);
    let forward = dot(&cotangent, tape.tangent(output));
    let mut gradient = vec![0.0; n_parameters];
    tape.backward(&parameters, &[(output, &cotangent)], Some(&mut gradient));
    let reverse: f64 = inputs.iter().zip(&tangents).map(|(&v, t)| dot(tape.cotangent(v), t)).sum();
    let by_parameters = dot(&gradient, &dp);

    let h = 1e-5;
    let shifted = |v: &[f64], d: &[f64], s: f64| v.iter().zip(d).map(|(v, d)| v + s * h * d).collect::<Vec<f64>>();
    let mut value = |s: f64, t: f64| {
        let values: Vec<Vec<f64>> = values.iter().zip(&tangents).map(|(v, d)| shifted(v, d, s)).collect();
        let (_, output) = run(&mut tape, &shifted(&parameters, &dp, t), &values);
        dot(&cotangent, tape.value(output))
    };
    let by_x = (value(1.0, 0.0) - value(-1.0, 0.0)) / (2.0 * h);
    let by_p = (value(0.0, 1.0) - value(0.0, -1.0)) / (2.0 * h);
    let close = |a: f64, b: f64| (a - b).abs() < 1e-7 * b.abs().max(1.0);
    assert!(close(forward, by_x), "{name}: jvp {forward}, difference {by_x}");
    assert!(close(reverse, by_x), "{name}: vjp {reverse}, difference {by_x}");
    assert!(close(by_parameters, by_p), "{name}: parameter gradient {by_parameters}, difference {by_p}");
}

fn types(list: &[u32]) -> std::sync::Arc<[u32]> {
    list.into()
}

#[test]
fn derivatives_match_differences() {
    let rows = SAMPLES * ATOMS;
    let pairs = rows * ATOMS;
    check("linear", &[(4, 6)], 36, |t, p, x| t.linear(p, Weight::new(1, 6, 5).with_bias(31), x[0]));
    check("linear of parts", &[(4, 3), (4, 1), (4, 2)], 31, |t, p, x| t.linear_of(p, Weight::new(1, 6, 5), x));
    check("transposed linear of parts", &[(4, 4), (4, 2)], 31, |t, p, x| {
        t.linear_of(p, Weight::transposed(1, 6, 5), x)
    });
    check("linear with a residual", &[(4, 6), (4, 5)], 36, |t, p, x| {
        t.residual_linear(p, Weight::new(1, 6, 5).with_bias(31), x[1], x[0])
    });
    check("linear with a residual alone", &[(4, 5)], 25, |t, p, x| {
        t.residual_linear(p, Weight::new(0, 5, 5), x[0], x[0])
    });
    check("part of a linear", &[(4, 3)], 36, |t, p, x| {
        t.linear(p, Weight::new(1, 6, 5).with_bias(31).of_inputs(2, 3), x[0])
    });
    check("part of a transposed linear", &[(4, 3)], 31, |t, p, x| {
        t.linear(p, Weight::transposed(1, 6, 5).of_inputs(2, 3), x[0])
    });
    check("outputs of a linear", &[(4, 6)], 36, |t, p, x| {
        t.linear(p, Weight::new(1, 6, 5).with_bias(31).of_outputs(1, 3), x[0])
    });
    check("outputs of a transposed linear", &[(4, 6)], 36, |t, p, x| {
        t.linear(p, Weight::transposed(1, 6, 5).with_bias(31).of_outputs(1, 3), x[0])
    });
    check("side by side", &[(4, 2), (4, 3), (4, 1)], 0, |t, _, x| t.side_by_side(&[x[0], x[1], x[2]]));
    check("standardised", &[(4, 6)], 0, |t, _, x| t.standardised(x[0]));
    check("embed", &[(1, 1)], 12, |t, p, _| {
        t.embed(p, &Embed { at: 0, columns: 4, types: types(&[2, 0, 2]) }, SAMPLES)
    });
    check("combine", &[(3, 4), (3, 4)], 0, |t, _, x| t.combine((0.3, x[0]), (-1.7, x[1]), 0.2));
    check("combine with itself", &[(3, 4)], 0, |t, _, x| t.add(x[0], x[0]));
    check("affine", &[(3, 4)], 0, |t, _, x| t.affine(0.3, x[0], -2.0));
    check("product", &[(3, 4), (3, 4)], 0, |t, _, x| t.product(x[0], x[1]));
    check("square", &[(3, 4)], 0, |t, _, x| t.product(x[0], x[0]));
    check("scale blocks", &[(3, 12), (3, 4)], 0, |t, _, x| t.scale(x[0], x[1]));
    check("scale rows", &[(3, 12), (3, 1)], 0, |t, _, x| t.scale(x[0], x[1]));
    check("silu", &[(3, 400)], 0, |t, _, x| t.silu(x[0]));
    check("gelu", &[(3, 400)], 0, |t, _, x| t.gelu(x[0]));
    check("exp", &[(3, 4)], 0, |t, _, x| t.function(Function::Exp, x[0]));
    check("sigmoid", &[(3, 4)], 0, |t, _, x| t.function(Function::Sigmoid, x[0]));
    check("tanh", &[(3, 4)], 0, |t, _, x| t.function(Function::Tanh, x[0]));
    check("at least", &[(3, 4)], 0, |t, _, x| t.function(Function::AtLeast(0.1), x[0]));
    check("root and reciprocal", &[(3, 4)], 0, |t, _, x| {
        let square = t.product(x[0], x[0]);
        let square = t.affine(1.0, square, 0.5);
        let root = t.function(Function::Root, square);
        t.function(Function::Reciprocal, root)
    });
    check("swish", &[(3, 300)], 2, |t, p, x| t.swish(p, 1, x[0]));
    check("layer norm", &[(3, 9)], 18, |t, p, x| t.layer_norm(p, LayerNorm { weight: 9, bias: 0 }, x[0]));
    check("mean of columns", &[(3, 11)], 0, |t, _, x| t.mean_columns(x[0]));
    check("squared length", &[(3, 12)], 0, |t, _, x| t.squared_length(x[0]));
    check("pairs", &[(rows, 2), (rows, 2)], 0, |t, _, x| t.pairs(Some((1.5, x[0])), Some((-0.5, x[1])), ATOMS));
    check("differences", &[(rows, 3)], 0, |t, _, x| t.pairs(Some((1.0, x[0])), Some((-1.0, x[0])), ATOMS));
    check("destinations", &[(rows, 2)], 0, |t, _, x| t.pairs(None, Some((2.0, x[0])), ATOMS));
    check("sum over pairs", &[(pairs, 2)], 0, |t, _, x| t.sum_pairs(x[0], ATOMS, true));
    check("sum over other atoms", &[(pairs, 2)], 0, |t, _, x| t.sum_pairs(x[0], ATOMS, false));
    check("repeat", &[(rows, 2)], 0, |t, _, x| t.repeat(x[0], 4));
    check("sum of rows", &[(rows, 2)], 0, |t, _, x| t.sum_rows(x[0], ATOMS));
    check("centred", &[(rows, 3)], 0, |t, _, x| t.centred(x[0], ATOMS));
    check("radial basis", &[(5, 1)], 0, |t, _, x| t.radial_basis(RadialBasis { max: 4.0, count: 5 }, x[0]));
    check("gaussians", &[(5, 1)], 8, |t, p, x| t.gaussians(p, Gaussians { means: 4, widths: 0, count: 4 }, x[0]));
    check("typed affine", &[(6, 1)], 6, |t, p, x| {
        t.typed_affine(p, &TypedAffine { factor: 0, shift: 3, types: types(&[0, 2, 2]) }, x[0])
    });
    check("attention", &[(rows, 12), (pairs, 2)], 0, |t, _, x| {
        t.attention(Attention { atoms: ATOMS, heads: 2 }, x[0], x[1])
    });
    check("causal attention", &[(rows, 12)], 0, |t, _, x| t.causal_attention(Causal { tokens: ATOMS, heads: 2 }, x[0]));
    check("rows", &[(rows, 2)], 0, |t, _, x| t.rows(x[0], &types(&[2, NO_ROW, 0])));
    check("attention of more heads than a block", &[(rows, 102), (pairs, 17)], 0, |t, _, x| {
        t.attention(Attention { atoms: ATOMS, heads: 17 }, x[0], x[1])
    });
}

#[test]
fn derivatives_of_invariants_match_differences() {
    fn op(positive: bool, t: &mut Tape<f64>, x: Var) -> Var {
        let swap = Swap { alike: [1, 2], volume: [[0, 1], [0, 2], [0, 3]], positive };
        let invariants = Invariants {
            atoms: 5,
            distances: [[0, 1], [1, 3], [4, 0]].into(),
            volumes: [[[0, 1], [0, 2], [0, 3]], [[1, 0], [1, 2], [2, 4]]].into(),
            swaps: [swap].into(),
        };
        t.invariants(&invariants, x)
    }
    // one of the two swaps atoms in each sample
    check("invariants", &[(SAMPLES, 15)], 0, |t, _, x| op(true, t, x[0]));
    check("invariants, other hand", &[(SAMPLES, 15)], 0, |t, _, x| op(false, t, x[0]));
}

#[test]
fn a_second_pass_allocates_no_space() {
    let mut tape = Tape::<f32>::default();
    let pass = |tape: &mut Tape<f32>| {
        tape.clear();
        let x = tape.input(4, 6);
        let y = tape.silu(x);
        tape.add(x, y)
    };
    pass(&mut tape);
    let (values, records) = (tape.values.capacity(), tape.records.capacity());
    pass(&mut tape);
    assert_eq!((tape.values.capacity(), tape.records.capacity()), (values, records));
}

#[test]
fn packed_weights_give_what_the_parameters_give() {
    // inputs and outputs that do and do not fill whole lanes, parts, a residual, and a matrix used twice
    let network = |tape: &mut Tape<f64>, p: &[f64]| {
        let inputs = [tape.input(7, 16), tape.input(7, 5)];
        inputs.iter().for_each(|&x| tape.value_mut(x).copy_from_slice(&normals(x.len(), x.columns as u64)));
        let first = tape.linear_of(p, Weight::new(3, 21, 32).with_bias(700), &inputs);
        let square = Weight::transposed(800, 32, 32);
        let twice = tape.linear(p, square.with_bias(2000), first);
        let twice = tape.residual_linear(p, square, first, twice);
        let twice = tape.residual_linear(p, square.with_bias(2100), first, twice);
        (inputs, tape.linear(p, Weight::new(2200, 32, 3), twice))
    };
    let parameters = normals(2296, 1);
    let mut plain = Tape::default();
    let (inputs, output) = network(&mut plain, &parameters);
    let packs = Packs::of(&plain, &parameters);
    assert_eq!(packs.has(&Weight::new(3, 21, 32).of_inputs(0, 16)), [true, true]);
    assert_eq!(packs.has(&Weight::new(3, 21, 32).of_inputs(16, 5)), [true, false]);
    assert_eq!(packs.has(&Weight::new(2200, 32, 3)), [false, true]);
    let mut packed = Tape::with(Arc::new(packs));
    network(&mut packed, &parameters);

    let (tangent, cotangent) = (normals(7 * 16, 2), normals(output.len(), 3));
    let mut found = [&mut plain, &mut packed].map(|tape| {
        tape.jvp(&parameters, &[(inputs[0], &tangent)]);
        tape.backward(&parameters, &[(output, &cotangent)], None);
        [tape.value(output), tape.tangent(output), tape.cotangent(inputs[0]), tape.cotangent(inputs[1])].concat()
    });
    let (plain, packed) = found.split_at_mut(1);
    let largest = plain[0].iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (a, b) in plain[0].iter().zip(&packed[0]) {
        assert!((a - b).abs() < 1e-12 * largest, "{a} against {b}");
    }
}
