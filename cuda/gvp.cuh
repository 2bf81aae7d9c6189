// Geometric vector perceptrons on the complete graph of a molecule's atoms (src/models/gvp_flow/mod.rs has the equations), in jets: what
// the field of `gvp_flow` and the energy of `gvp_ebm` share.
//
// Sizes are those of one model: SCALARS, VECTORS, RADIAL, LAYERS.
#ifndef MODEJUMP_GVP
#define MODEJUMP_GVP
#include "jets.cuh"

#define HIDDEN (VECTORS + 1)
#define NUMBERS (SCALARS + 3 * VECTORS)  // of an atom
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define PARTIALS LEAST(THREADS / PADDED > 1 ? THREADS / PADDED : 1, RADIAL + HIDDEN)
#define SMALLEST_SQUARE (real)1e-8
#define EPSILON (real)1e-5

// Places in `weights` of one geometric vector perceptron; matrices are [in][out], outputs made even. `inputs`: of radial
// functions and norms; `outputs` = Wh Wu; `direction_*`: of an edge's direction, the first vector of a message.
struct Gvp {
  int n_hidden, n_out;
  int scalars, bias, inputs, hidden, outputs, gates, gate_bias, direction_hidden, direction_outputs, beta;
};

struct Layer { Gvp message, update, position; Norm message_norm, update_norm; };

struct Trunk {
  const real* weights;
  const Layer* layers;
  const real* embedding;  // [ATOMS][SCALARS], without the time
  const real* time;       // [SCALARS]
  const real* centres;    // [RADIAL], of the radial functions
  double inverse_width, inverse_message_norm, coordinate_range;
};

// ---------------------------------------------------------------- memory of a block

// The last line has PAIR_LANES lanes where they are of pairs, LANES where they are of atoms.
struct State {
  real *s, *v, *x;                       // [SCALARS][LANES], [VECTORS][3][LANES], [3][LANES]
  real *of_s, *of_v, *out_v;             // linear parts: [SCALARS], [HIDDEN][3], [VECTORS][3]
  real *distance, *u, *inputs, *a, *g;   // [1], [3], [RADIAL + HIDDEN], [SCALARS], [VECTORS]
};

#define MEMORY                                                                                      \
  (LANES * (2 * EVEN(SCALARS) + 3 * VECTORS + 3 + 3 * EVEN(HIDDEN) + 3 * EVEN(VECTORS)) +           \
   PAIR_LANES * (4 + RADIAL + EVEN(HIDDEN) + EVEN(SCALARS) + EVEN(VECTORS)))

static __device__ State layout(real* memory) {
  State m;
  m.s = memory;
  m.v = m.s + EVEN(SCALARS) * LANES;
  m.x = m.v + 3 * VECTORS * LANES;
  m.of_s = m.x + 3 * LANES;
  m.of_v = m.of_s + EVEN(SCALARS) * LANES;
  m.out_v = m.of_v + 3 * EVEN(HIDDEN) * LANES;
  m.distance = m.out_v + 3 * EVEN(VECTORS) * LANES;
  m.u = m.distance + PAIR_LANES;
  m.inputs = m.u + 3 * PAIR_LANES;
  m.a = m.inputs + (RADIAL + EVEN(HIDDEN)) * PAIR_LANES;
  m.g = m.a + EVEN(SCALARS) * PAIR_LANES;
  return m;
}

// ---------------------------------------------------------------- the geometric vector perceptron

// The parts that are linear in s and V of every atom: W s + b, Wh V and Wu Wh V.
static __device__ void linear_parts(const Trunk& a, const State& m, const Gvp& gvp) {
  const real* w = a.weights;
  product(w + gvp.scalars, SCALARS, EVEN(SCALARS), LANES, m.s, Bias{w + gvp.bias}, Store{m.of_s, LANES});
  product(w + gvp.hidden, VECTORS, EVEN(gvp.n_hidden), 3 * LANES, m.v, Zero{}, Store{m.of_v, 3 * LANES});
  product(w + gvp.outputs, VECTORS, EVEN(gvp.n_out), 3 * LANES, m.v, Zero{}, Store{m.out_v, 3 * LANES});
  __syncthreads();
}

// Component of a hidden vector, and of one that comes out; on an edge its direction adds to them. A pair is one of atoms where there
// is none.
static __device__ Jet along(const real* of_v, const real* direction, const State& m, int q, int axis, int pair) {
  const Jet linear = jet_at(of_v + (3 * q + axis) * LANES, pair % PADDED);
  return direction ? linear + direction[q] * jet_at(m.u + axis * PAIR_LANES, pair) : linear;
}

// s′ = a σ(βa), left in m.a, and the gates g, after the inputs are written; σ(g) where `open`. WIDTH lanes, of atoms or of pairs.
template <int WIDTH>
static __device__ void scalars_and_gates(const Trunk& a, const State& m, const Gvp& gvp, int n_inputs, bool open) {
  const real* w = a.weights;
  const real beta = w[gvp.beta];
  const auto of_s = [&](int o, int lane, real* sum) { get_eight(m.of_s + o * LANES + lane % LANES, sum); };
  const auto swished = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8 / COMPONENTS; ++r) put_in(sum, r, swish(jet_of(sum, r), beta));
    put_eight(m.a + o * WIDTH + lane, sum);
  };
  product(w + gvp.inputs, n_inputs, EVEN(SCALARS), WIDTH, m.inputs, of_s, swished);
  __syncthreads();
  const auto gated = [&](int o, int lane, real* sum) {
    if (open) {
#pragma unroll
      for (int r = 0; r < 8 / COMPONENTS; ++r) put_in(sum, r, sigmoid(jet_of(sum, r)));
    }
    put_eight(m.g + o * WIDTH + lane, sum);
  };
  product(w + gvp.gates, SCALARS, EVEN(gvp.n_out), WIDTH, m.a, Bias{w + gvp.gate_bias}, gated);
  __syncthreads();
}

// Norms of hidden vectors, as inputs from `first` on.
template <int WIDTH>
static __device__ void norms(const State& m, const Gvp& gvp, const real* direction, int first) {
  FOR_EACH(q, pair, gvp.n_hidden, WIDTH / COMPONENTS) {
    Jet square = constant((real)0);
    for (int axis = 0; axis < 3; ++axis) {
      const Jet h = along(m.of_v, direction, m, q, axis, pair);
      square = square + h * h;
    }
    put(m.inputs + (first + q) * WIDTH, pair, root(at_least(square, SMALLEST_SQUARE)));
  }
}

// The perceptron on every atom: s′ in m.a, gates in m.g, vectors before their gates in m.out_v.
static __device__ void on_atoms(const Trunk& a, const State& m, const Gvp& gvp, bool open) {
  linear_parts(a, m, gvp);
  norms<LANES>(m, gvp, (const real*)0, 0);
  __syncthreads();
  scalars_and_gates<LANES>(a, m, gvp, gvp.n_hidden, open);
}

// act(g) Vu/n(Vu) of the perceptron with one vector that comes out.
static __device__ Jet single_output(const State& m, Jet act, int axis, int atom) {
  Jet square = constant((real)0);
  for (int b = 0; b < 3; ++b) {
    const Jet part = jet_at(m.out_v + b * LANES, atom);
    square = square + part * part;
  }
  return act * jet_at(m.out_v + axis * LANES, atom) * reciprocal(root(at_least(square, SMALLEST_SQUARE)));
}

// ---------------------------------------------------------------- layers

// Adds the messages to a few atoms, from the `first` target on.
static __device__ void messages(const Trunk& a, const State& m, const Gvp& gvp, const Targets& targets, int first) {
  const real* w = a.weights;
  FOR_EACH(zero, pair, 1, PAIRS) {
    const int i = targets.atom(first + pair / PADDED), j = pair % PADDED;
    Jet d[3], square = constant((real)0);
    for (int axis = 0; axis < 3; ++axis) {
      d[axis] = jet_at(m.x + axis * LANES, j) - jet_at(m.x + axis * LANES, i);
      square = square + d[axis] * d[axis];
    }
    const Jet distance = root(at_least(square, SMALLEST_SQUARE)) + constant((real)1e-8);
    const Jet inverse = reciprocal(distance);
    put(m.distance + zero, pair, distance);
    for (int axis = 0; axis < 3; ++axis) put(m.u + axis * PAIR_LANES, pair, d[axis] * inverse);
  }
  __syncthreads();
  const real inverse_width = (real)a.inverse_width;
  FOR_EACH(k, pair, RADIAL, PAIRS) {
    const Jet z = inverse_width * (jet_at(m.distance, pair) - constant(a.centres[k]));
    const real value = exp(-z.v[0] * z.v[0]);
    put(m.inputs + k * PAIR_LANES, pair, chain(z, value, (real)-2 * z.v[0] * value));
  }
  norms<PAIR_LANES>(m, gvp, w + gvp.direction_hidden, RADIAL);
  __syncthreads();
  scalars_and_gates<PAIR_LANES>(a, m, gvp, RADIAL + gvp.n_hidden, true);
  // a thread for each component of a number of an atom
  const real factor = (real)a.inverse_message_norm;
  for (int item = threadIdx.x; item < DESTINATIONS * NUMBERS * COMPONENTS; item += THREADS) {
    const int c = item % COMPONENTS, number = item / COMPONENTS % NUMBERS, place = item / (COMPONENTS * NUMBERS);
    if (first + place >= targets.number()) break;
    const int i = targets.atom(first + place), at = i * COMPONENTS + c;
    if (number < SCALARS) {
      const real* of_pairs = m.a + number * PAIR_LANES + place * LANES;
      m.s[number * LANES + at] += factor * sum_over_sources(i, number, c, [&](int word) { return of_pairs[word]; });
    } else {
      const int vector = number - SCALARS, unit = vector / 3;
      const real *gates = m.g + unit * PAIR_LANES + place * LANES, *linear = m.out_v + vector * LANES;
      const real* const u = m.u + vector % 3 * PAIR_LANES + place * LANES;
      const real along_u = w[gvp.direction_outputs + unit];
      const auto gate = [&](int word) { return gates[word]; };
      const auto moved = [&](int word) { return linear[word] + along_u * u[word]; };
      m.v[vector * LANES + at] += factor * sum_over_sources(i, number, c, [&](int word) { return product_at(word, gate, moved); });
    }
  }
  __syncthreads();
}

// Σ term(f, atom) over f < count, for every atom, by all threads. Begins and ends with a barrier.
template <class Term>
static __device__ void total(const State& m, real* to, int count, const Term& term) {
  __syncthreads();
  FOR_ITEMS(part, atom, PARTIALS) {
    Jet sum = constant((real)0);
    for (int f = part; f < count; f += PARTIALS) sum = sum + term(f, atom);
    put(m.inputs + part * LANES, atom, sum);
  }
  __syncthreads();
  FOR_ITEMS(zero, atom, 1) {
    Jet sum = constant((real)0);
    for (int part = 0; part < PARTIALS; ++part) sum = sum + jet_at(m.inputs + part * LANES, atom);
    put(to + zero, atom, sum);
  }
  __syncthreads();
}

// Scalars: layer normalisation; vectors: divided by √(mean max(|V|², 1e-8) + 1e-5) + 1e-5.
static __device__ void normalise(const Trunk& a, const State& m, const Norm& norm) {
  real *const mean = m.distance, *const spread = m.u, *const size = m.u + LANES;
  const auto rest = [&](int f, int atom) { return jet_at(m.s + f * LANES, atom) - ((real)1 / SCALARS) * jet_at(mean, atom); };
  total(m, mean, SCALARS, [&](int f, int atom) { return jet_at(m.s + f * LANES, atom); });
  total(m, spread, SCALARS, [&](int f, int atom) { return rest(f, atom) * rest(f, atom); });
  total(m, size, VECTORS, [&](int u, int atom) {
    Jet square = constant((real)0);
    for (int axis = 0; axis < 3; ++axis) {
      const Jet part = jet_at(m.v + (3 * u + axis) * LANES, atom);
      square = square + part * part;
    }
    return at_least(square, SMALLEST_SQUARE);
  });
  FOR_ITEMS(zero, atom, 1) {
    put(spread + zero, atom, reciprocal(root(((real)1 / SCALARS) * jet_at(spread, atom) + constant(EPSILON))));
    put(size, atom, reciprocal(root(((real)1 / VECTORS) * jet_at(size, atom) + constant(EPSILON)) + constant(EPSILON)));
  }
  __syncthreads();
  FOR_ITEMS(f, atom, SCALARS) {
    const Jet normal = rest(f, atom) * jet_at(spread, atom);
    put(m.s + f * LANES, atom, a.weights[norm.weight + f] * normal + constant(a.weights[norm.bias + f]));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) put(m.v + v * LANES, atom, jet_at(m.v + v * LANES, atom) * jet_at(size, atom));
  __syncthreads();
}

static __device__ void layer(const Trunk& a, const State& m, const Layer& layer, bool last, const Targets& targets) {
  linear_parts(a, m, layer.message);
  for (int first = 0; first < targets.number(); first += DESTINATIONS) messages(a, m, layer.message, targets, first);
  normalise(a, m, layer.message_norm);
  on_atoms(a, m, layer.update, true);
  FOR_ITEMS(f, atom, SCALARS) {
    put(m.s + f * LANES, atom, jet_at(m.s + f * LANES, atom) + jet_at(m.a + f * LANES, atom));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) {
    const Jet step = jet_at(m.g + v / 3 * LANES, atom) * jet_at(m.out_v + v * LANES, atom);
    put(m.v + v * LANES, atom, jet_at(m.v + v * LANES, atom) + step);
  }
  __syncthreads();
  if (!last) {
    on_atoms(a, m, layer.position, false);
    FOR_ITEMS(axis, atom, 3) {
      const Jet act = (real)a.coordinate_range * hyperbolic_tangent(jet_at(m.g, atom));
      put(m.x + axis * LANES, atom, jet_at(m.x + axis * LANES, atom) + single_output(m, act, axis, atom));
    }
    __syncthreads();
  }
  normalise(a, m, layer.update_norm);
}

// ---------------------------------------------------------------- one configuration

// x, and scalars and vectors as the first layer finds them.
static __device__ void begin(const Trunk& a, const State& m, const Point& p) {
  read_positions(p, m.x);
  const real t = (real)p.t;
  FOR_ITEMS(f, atom, SCALARS) {
    const real embedded = atom < ATOMS ? a.embedding[atom * SCALARS + f] : (real)0;
    put(m.s + f * LANES, atom, swish(constant(embedded + t * a.time[f]), (real)1));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) put(m.v + v * LANES, atom, constant((real)0));
  __syncthreads();
}

#endif
