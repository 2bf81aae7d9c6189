// The vector field of ECNF (src/models/egnn_flow/mod.rs has the equations), with its exact divergence by forward mode.
//
// An atom's messages are computed for all sources at once: a perceptron's layer is one product over the sources' lanes. What
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

// Arrays of [numbers][LANES]; `sum` lies behind h, so that one product takes both.
struct State {
  real *h, *sum, *x, *start, *next;
  real *of_source, *of_destination, *d, *pair, *first, *message, *gate, *c;
};

#define MEMORY (LANES * (2 * HIDDEN + 9 + 4 * EVEN(HIDDEN) + 3 + 2 + 2 + 2))

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
  m.pair = m.d + 3 * LANES;
  m.first = m.pair + 2 * LANES;
  m.message = m.first + EVEN(HIDDEN) * LANES;
  m.gate = m.message + EVEN(HIDDEN) * LANES;
  m.c = m.gate + 2 * LANES;
  return m;
}

// Eight lanes of silu, σ or tanh of what a product comes to.
enum Function { SWISH, SIGMOID, TANGENT };
struct Through {
  Function function;
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; r += COMPONENTS) {
      const Jet a = jet_at(sum, r / COMPONENTS);
      put(sum, r / COMPONENTS, function == SWISH ? swish(a, (real)1) : function == SIGMOID ? sigmoid(a) : hyperbolic_tangent(a));
    }
    put_eight(to + o * LANES + lane, sum);
  }
};

static __device__ Jet squared_distance(const real* x, int i, int j) {
  Jet square = constant((real)0);
  for (int axis = 0; axis < 3; ++axis) {
    const Jet d = jet_at(x + axis * LANES, i) - jet_at(x + axis * LANES, j);
    square = square + d * d;
  }
  return square;
}

// The messages to atom i: their sum, and the atom's step.
static __device__ void messages(const Network& a, const State& m, const Layer& layer, int i) {
  const real* w = a.weights;
  FOR_ITEMS(zero, j, 1) {
    const Jet r = squared_distance(m.x, i, j);
    const Jet inverse = reciprocal(root(r + constant((real)1e-8)) + constant((real)1));
    for (int axis = 0; axis < 3; ++axis) {
      const Jet d = jet_at(m.x + axis * LANES, i) - jet_at(m.x + axis * LANES, j);
      put(m.d + axis * LANES, j, inverse * d);
    }
    put(m.pair + zero, j, r);
    put(m.pair + LANES, j, squared_distance(m.start, i, j));
  }
  __syncthreads();
  const auto of_atoms = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
      sum[r] = m.of_source[o * LANES + lane + r] + m.of_destination[o * LANES + i * COMPONENTS + r % COMPONENTS];
  };
  product(w + layer.pair, 2, EVEN(HIDDEN), LANES, m.pair, of_atoms, Through{SWISH, m.first});
  __syncthreads();
  product(w + layer.edge, HIDDEN, EVEN(HIDDEN), LANES, m.first, Bias{w + layer.edge_out_bias}, Through{SWISH, m.message});
  __syncthreads();
  product(w + layer.attention, HIDDEN, 2, LANES, m.message, Bias{w + layer.attention_bias}, Through{SIGMOID, m.gate});
  __syncthreads();
  FOR_ITEMS(f, j, HIDDEN) put(m.message + f * LANES, j, jet_at(m.message + f * LANES, j) * jet_at(m.gate, j));
  __syncthreads();
  product(w + layer.coordinate, HIDDEN, EVEN(HIDDEN), LANES, m.message, Bias{w + layer.coordinate_bias},
          Through{SWISH, m.first});
  __syncthreads();
  product(w + layer.coordinate_out, HIDDEN, 2, LANES, m.first, Zero{}, Through{TANGENT, m.c});
  __syncthreads();
  for (int item = threadIdx.x; item < HIDDEN + 3; item += THREADS) {
    Jet sum = constant((real)0);
    if (item < HIDDEN) {
      for (int j = 0; j < ATOMS; ++j)
        if (j != i) sum = sum + jet_at(m.message + item * LANES, j);
      put(m.sum + item * LANES, i, sum);
    } else {
      const int axis = (item - HIDDEN) * LANES;
      for (int j = 0; j < ATOMS; ++j)
        if (j != i) sum = sum + jet_at(m.d + axis, j) * jet_at(m.c, j);
      put(m.next + axis, i, jet_at(m.x + axis, i) + (real)a.step * sum);
    }
  }
  __syncthreads();
}

static __device__ void layer(const Network& a, const State& m, const Layer& layer) {
  const real* w = a.weights;
  product(w + layer.source, HIDDEN, EVEN(HIDDEN), LANES, m.h, Zero{}, Store{m.of_source, LANES});
  product(w + layer.destination, HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.edge_bias}, Store{m.of_destination, LANES});
  __syncthreads();
  for (int i = 0; i < ATOMS; ++i) messages(a, m, layer, i);
  FOR_ITEMS(axis, atom, 3) {
    if (atom < ATOMS) put(m.x + axis * LANES, atom, jet_at(m.next + axis * LANES, atom));
  }
  product(w + layer.node, 2 * HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.node_bias}, Through{SWISH, m.first});
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

// x^L − x^0 without its mean.
static __device__ void finish(const State& m, const Point& p) {
  FOR_ITEMS(axis, atom, 3) put(m.next + axis * LANES, atom, jet_at(m.x + axis * LANES, atom) - jet_at(m.start + axis * LANES, atom));
  __syncthreads();
  FOR_ITEMS(axis, atom, 3) {
    Jet mean = constant((real)0);
    for (int i = 0; i < ATOMS; ++i) mean = mean + jet_at(m.next + axis * LANES, i);
    put(m.x + axis * LANES, atom, jet_at(m.next + axis * LANES, atom) - ((real)1 / ATOMS) * mean);
  }
  write_field(p, m.x);
}

// The field at one point; `memory` is the block's.
static __device__ __noinline__ void field(const Network& a, real* memory, const Point& p) {
  const State m = layout(memory);
  begin(a, m, p);
  for (int l = 0; l < LAYERS; ++l) layer(a, m, a.layers[l]);
  finish(m, p);
}

struct OfBatch { Batch batch; Network network; };

KERNEL(egnn_field, OfBatch) {
  DYNAMIC_SHARED(shared);
  real* memory = a.batch.scratch ? a.batch.scratch + (size_t)blockIdx.x * MEMORY : (real*)shared;
  evaluate_rows(a.batch, [&](const Point& p) { field(a.network, memory, p); });
}

struct OfPaths { Ode ode; Network network; };

KERNEL(paths, OfPaths) {
  DYNAMIC_SHARED(shared);
  real* memory = a.ode.scratch ? a.ode.scratch + (size_t)blockIdx.x * MEMORY : (real*)shared;
  carry(a.ode, [&](const Point& p) { field(a.network, memory, p); });
}
