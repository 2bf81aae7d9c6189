// The vector field of ECNF (src/models/egnn_flow/mod.rs has the equations), with its exact divergence by forward mode.
//
// The messages to a few atoms are computed for all sources at once: a perceptron's layer is one product over the lanes of pairs. What
// its first layer makes of an atom's features alone is computed once an atom.
//
// Sizes are those of one model: HIDDEN, LAYERS.
#include "ode.cuh"

// Places in `weights`; matrices are [in][out], outputs made even. `source`, `destination`, `pair`: the first layer of edge_mlp
// for h_j, h_i and (r, a); its bias is the destination's.
struct Layer {
  int source, destination, edge_bias, pair, edge, edge_out_bias, attention, attention_bias;
  int coordinate, coordinate_bias, coordinate_out, node, node_bias, node_out, node_out_bias, padding;
};

struct Network {
  const real* weights;
  const Layer* layers;
  const real* embedding;  // [ATOMS][HIDDEN], without the time
  const real* time;       // [HIDDEN]
  double step;            // range / layers
};

// Arrays of [numbers][LANES], those in the last line of [numbers][PAIR_LANES]; `sum` lies behind h, so that one product takes both.
struct State {
  real *h, *sum, *x, *start, *next, *of_source, *of_destination;
  real *d, *pair, *first, *message, *gate, *c;  // numbers: 3, 2, HIDDEN, HIDDEN, 1, 1
};

#define MEMORY (LANES * (2 * HIDDEN + 9 + 2 * EVEN(HIDDEN)) + PAIR_LANES * (3 + 2 + 2 * EVEN(HIDDEN) + 1 + 1))

static __device__ State layout(real* memory) {
  State m;
  m.h = memory;
  m.sum = m.h + HIDDEN * LANES;
  m.x = m.sum + HIDDEN * LANES;
  m.start = m.x + 3 * LANES;
  m.next = m.start + 3 * LANES;
  m.of_source = m.next + 3 * LANES;
  m.of_destination = m.of_source + EVEN(HIDDEN) * LANES;
  m.d = m.of_destination + EVEN(HIDDEN) * LANES;
  m.pair = m.d + 3 * PAIR_LANES;
  m.first = m.pair + 2 * PAIR_LANES;
  m.message = m.first + EVEN(HIDDEN) * PAIR_LANES;
  m.gate = m.message + EVEN(HIDDEN) * PAIR_LANES;
  m.c = m.gate + PAIR_LANES;
  return m;
}

// silu of what a product comes to, in WIDTH lanes.
template <int WIDTH>
struct Swish {
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8 / COMPONENTS; ++r) put_in(sum, r, swish(jet_of(sum, r), (real)1));
    put_eight(to + o * WIDTH + lane, sum);
  }
};

// Σ_f weights[f] rows[f], every pair by one thread; weights are [HIDDEN][2], the second idle.
static __device__ Jet weighted(const real* weights, const real* rows, int pair) {
  Jet sum = constant((real)0);
#pragma unroll 8
  for (int f = 0; f < HIDDEN; ++f) sum = sum + weights[2 * f] * jet_at(rows + f * PAIR_LANES, pair);
  return sum;
}

static __device__ Jet squared_distance(const real* x, int i, int j) {
  Jet square = constant((real)0);
  for (int axis = 0; axis < 3; ++axis) {
    const Jet d = jet_at(x + axis * LANES, i) - jet_at(x + axis * LANES, j);
    square = square + d * d;
  }
  return square;
}

// The messages to a few atoms, from the `first` target on: their sums, and the atoms' steps.
static __device__ void messages(const Network& a, const State& m, const Layer& layer, const Targets& targets, int first) {
  const real* w = a.weights;
  FOR_EACH(zero, pair, 1, PAIRS) {
    const int i = targets.atom(first + pair / PADDED), j = pair % PADDED;
    const Jet r = squared_distance(m.x, i, j);
    const Jet inverse = reciprocal(root(r + constant((real)1e-8)) + constant((real)1));
    for (int axis = 0; axis < 3; ++axis) {
      const Jet d = jet_at(m.x + axis * LANES, i) - jet_at(m.x + axis * LANES, j);
      put(m.d + axis * PAIR_LANES, pair, inverse * d);
    }
    put(m.pair + zero, pair, r);
    put(m.pair + PAIR_LANES, pair, squared_distance(m.start, i, j));
  }
  __syncthreads();
  const auto of_atoms = [&](int o, int lane, real* sum) {
    const int i = targets.atom(first + lane / LANES);
    get_eight(m.of_source + o * LANES + lane % LANES, sum);
    const Jet own = jet_at(m.of_destination + o * LANES, i);
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] += own.v[r % COMPONENTS];
  };
  product(w + layer.pair, 2, EVEN(HIDDEN), PAIR_LANES, m.pair, of_atoms, Swish<PAIR_LANES>{m.first});
  __syncthreads();
  product(w + layer.edge, HIDDEN, EVEN(HIDDEN), PAIR_LANES, m.first, Bias{w + layer.edge_out_bias}, Swish<PAIR_LANES>{m.message});
  __syncthreads();
  FOR_EACH(zero, pair, 1, PAIRS)
    put(m.gate + zero, pair, sigmoid(weighted(w + layer.attention, m.message, pair) + constant(w[layer.attention_bias])));
  __syncthreads();
  FOR_EACH(f, pair, HIDDEN, PAIRS) {
    real* const message = m.message + f * PAIR_LANES;
    put(message, pair, jet_at(message, pair) * jet_at(m.gate, pair));
  }
  __syncthreads();
  product(w + layer.coordinate, HIDDEN, EVEN(HIDDEN), PAIR_LANES, m.message, Bias{w + layer.coordinate_bias},
          Swish<PAIR_LANES>{m.first});
  __syncthreads();
  FOR_EACH(zero, pair, 1, PAIRS) put(m.c + zero, pair, hyperbolic_tangent(weighted(w + layer.coordinate_out, m.first, pair)));
  __syncthreads();
  // a thread for each component of a number of an atom
  const int numbers = HIDDEN + 3;
  for (int item = threadIdx.x; item < DESTINATIONS * numbers * COMPONENTS; item += THREADS) {
    const int c = item % COMPONENTS, number = item / COMPONENTS % numbers, place = item / (COMPONENTS * numbers);
    if (first + place >= targets.number()) break;
    const int i = targets.atom(first + place), at = i * COMPONENTS + c;
    if (number < HIDDEN) {
      const real* of_pairs = m.message + number * PAIR_LANES + place * LANES;
      m.sum[number * LANES + at] = sum_over_sources(i, number, c, [&](int word) { return of_pairs[word]; });
    } else {
      const int axis = number - HIDDEN;
      const real *d = m.d + axis * PAIR_LANES + place * LANES, *steps = m.c + place * LANES;
      const auto towards = [&](int word) { return d[word]; };
      const auto far = [&](int word) { return steps[word]; };
      const real sum = sum_over_sources(i, number, c, [&](int word) { return product_at(word, towards, far); });
      m.next[axis * LANES + at] = m.x[axis * LANES + at] + (real)a.step * sum;
    }
  }
  __syncthreads();
}

static __device__ void layer(const Network& a, const State& m, const Layer& layer, bool last, const Targets& targets) {
  const real* w = a.weights;
  product(w + layer.source, HIDDEN, EVEN(HIDDEN), LANES, m.h, Zero{}, Store{m.of_source, LANES});
  product(w + layer.destination, HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.edge_bias}, Store{m.of_destination, LANES});
  FOR_ITEMS(axis, atom, 3) put(m.next + axis * LANES, atom, jet_at(m.x + axis * LANES, atom));
  __syncthreads();
  for (int first = 0; first < targets.number(); first += DESTINATIONS) messages(a, m, layer, targets, first);
  FOR_ITEMS(axis, atom, 3) put(m.x + axis * LANES, atom, jet_at(m.next + axis * LANES, atom));
  if (last) return;  // features are for further layers
  product(w + layer.node, 2 * HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.node_bias}, Swish<LANES>{m.first});
  __syncthreads();
  product(w + layer.node_out, HIDDEN, EVEN(HIDDEN), LANES, m.first, Bias{w + layer.node_out_bias}, Store{m.message, LANES});
  __syncthreads();
  FOR_ITEMS(f, atom, HIDDEN) put(m.h + f * LANES, atom, jet_at(m.h + f * LANES, atom) + jet_at(m.message + f * LANES, atom));
  __syncthreads();
}

static __device__ void begin(const Network& a, const State& m, const Point& p) {
  read_positions(p, m.x);
  read_positions(p, m.start);
  const real t = (real)p.t;
  FOR_ITEMS(f, atom, HIDDEN) {
    const real embedded = atom < ATOMS ? a.embedding[atom * HIDDEN + f] : (real)0;
    put(m.h + f * LANES, atom, constant(embedded + t * a.time[f]));
    put(m.sum + f * LANES, atom, constant((real)0));
  }
  __syncthreads();
}

// x^L − x^0 without its mean, which drops out of a share of a divergence.
static __device__ void finish(const State& m, const Point& p) {
  __syncthreads();
  FOR_ITEMS(axis, atom, 3) put(m.next + axis * LANES, atom, jet_at(m.x + axis * LANES, atom) - jet_at(m.start + axis * LANES, atom));
  __syncthreads();
  FOR_ITEMS(axis, atom, 3) {
    Jet mean = constant((real)0);
    for (int i = 0; i < ATOMS; ++i) mean = mean + jet_at(m.next + axis * LANES, i);
    put(m.x + axis * LANES, atom, jet_at(m.next + axis * LANES, atom) - ((real)1 / ATOMS) * mean);
  }
  write_field(p, m.x);
}

// The field at one point.
static __device__ __noinline__ void field(const Network& a, real* scratch, const Point& p) {
  BLOCK_MEMORY(scratch, MEMORY);
  (void)scratch;
  const State m = layout(memory);
  begin(a, m, p);
  for (int l = 0; l < LAYERS; ++l) {
    const bool last = l + 1 == LAYERS;
    layer(a, m, a.layers[l], last, last ? targets_of(p) : Targets{-1});
  }
  finish(m, p);
}

FIELD_KERNELS(egnn_field)
