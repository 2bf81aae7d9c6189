// The vector field of BoltzNCE (src/models/gvp_flow/mod.rs has the equations), with its exact divergence by forward mode.
//
// Sizes are those of one model: SCALARS, VECTORS, RADIAL, LAYERS.
#include "ode.cuh"

#define HIDDEN (VECTORS + 1)
#define SMALLEST_SQUARE (real)1e-8
#define EPSILON (real)1e-5

// Places in `weights` of one geometric vector perceptron; matrices are [in][out], outputs made even. `inputs`: of radial
// functions and norms; `outputs` = Wh Wu; `direction_*`: of an edge's direction, the first vector of a message.
struct Gvp {
  int n_hidden, n_out;
  int scalars, bias, inputs, hidden, outputs, gates, gate_bias, direction_hidden, direction_outputs, beta;
};

struct Layer { Gvp message, update, position; Norm message_norm, update_norm; };

struct Network {
  const real* weights;
  const Layer* layers;
  const Gvp* output;
  const real* embedding;  // [ATOMS][SCALARS], without the time
  const real* time;       // [SCALARS]
  double rbf_max, message_norm, coordinate_range;
};

// ---------------------------------------------------------------- memory of a block

struct State {
  real *s, *v, *x;                       // [SCALARS][LANES], [VECTORS][3][LANES], [3][LANES]
  real *of_s, *of_v, *out_v;             // linear parts: [SCALARS], [HIDDEN][3], [VECTORS][3]
  real *distance, *u, *inputs, *a, *g;   // [1], [3], [RADIAL + HIDDEN], [SCALARS], [VECTORS]
};

#define MEMORY                                                                                                   \
  (LANES * (EVEN(SCALARS) + 3 * VECTORS + 3 + EVEN(SCALARS) + 3 * EVEN(HIDDEN) + 3 * EVEN(VECTORS) + 4 + RADIAL + \
            EVEN(HIDDEN) + EVEN(SCALARS) + EVEN(VECTORS)))

static __device__ State layout(real* memory) {
  State m;
  m.s = memory;
  m.v = m.s + EVEN(SCALARS) * LANES;
  m.x = m.v + 3 * VECTORS * LANES;
  m.of_s = m.x + 3 * LANES;
  m.of_v = m.of_s + EVEN(SCALARS) * LANES;
  m.out_v = m.of_v + 3 * EVEN(HIDDEN) * LANES;
  m.distance = m.out_v + 3 * EVEN(VECTORS) * LANES;
  m.u = m.distance + LANES;
  m.inputs = m.u + 3 * LANES;
  m.a = m.inputs + (RADIAL + EVEN(HIDDEN)) * LANES;
  m.g = m.a + EVEN(SCALARS) * LANES;
  return m;
}

// ---------------------------------------------------------------- the geometric vector perceptron

// The parts that are linear in s and V of every atom: W s + b, Wh V and Wu Wh V.
static __device__ void linear_parts(const Network& a, const State& m, const Gvp& gvp) {
  const real* w = a.weights;
  product(w + gvp.scalars, SCALARS, EVEN(SCALARS), LANES, m.s, Bias{w + gvp.bias}, Store{m.of_s, LANES});
  product(w + gvp.hidden, VECTORS, EVEN(gvp.n_hidden), 3 * LANES, m.v, Zero{}, Store{m.of_v, 3 * LANES});
  product(w + gvp.outputs, VECTORS, EVEN(gvp.n_out), 3 * LANES, m.v, Zero{}, Store{m.out_v, 3 * LANES});
  __syncthreads();
}

// Component of a hidden vector, and of one that comes out; on an edge its direction adds to them.
static __device__ Jet along(const real* of_v, const real* direction, const State& m, int q, int axis, int atom) {
  const Jet linear = jet_at(of_v + (3 * q + axis) * LANES, atom);
  return direction ? linear + direction[q] * jet_at(m.u + axis * LANES, atom) : linear;
}

// s′ = a σ(βa), left in m.a, and the gates g, after the inputs are written; σ(g) where `open`.
static __device__ void scalars_and_gates(const Network& a, const State& m, const Gvp& gvp, int n_inputs, bool open) {
  const real* w = a.weights;
  const real beta = w[gvp.beta];
  const auto of_s = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = m.of_s[o * LANES + lane + r];
  };
  const auto swished = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; r += COMPONENTS) put(sum, r / COMPONENTS, swish(jet_at(sum, r / COMPONENTS), beta));
    put_eight(m.a + o * LANES + lane, sum);
  };
  product(w + gvp.inputs, n_inputs, EVEN(SCALARS), LANES, m.inputs, of_s, swished);
  __syncthreads();
  const auto gated = [&](int o, int lane, real* sum) {
    if (open) {
#pragma unroll
      for (int r = 0; r < 8; r += COMPONENTS) put(sum, r / COMPONENTS, sigmoid(jet_at(sum, r / COMPONENTS)));
    }
    put_eight(m.g + o * LANES + lane, sum);
  };
  product(w + gvp.gates, SCALARS, EVEN(gvp.n_out), LANES, m.a, Bias{w + gvp.gate_bias}, gated);
  __syncthreads();
}

// Norms of hidden vectors, as inputs from `first` on.
static __device__ void norms(const State& m, const Gvp& gvp, const real* direction, int first) {
  FOR_ITEMS(q, atom, gvp.n_hidden) {
    Jet square = constant((real)0);
    for (int axis = 0; axis < 3; ++axis) {
      const Jet h = along(m.of_v, direction, m, q, axis, atom);
      square = square + h * h;
    }
    put(m.inputs + (first + q) * LANES, atom, root(at_least(square, SMALLEST_SQUARE)));
  }
}

// The perceptron on every atom: s′ in m.a, gates in m.g, vectors before their gates in m.out_v.
static __device__ void on_atoms(const Network& a, const State& m, const Gvp& gvp, bool open) {
  linear_parts(a, m, gvp);
  norms(m, gvp, (const real*)0, 0);
  __syncthreads();
  scalars_and_gates(a, m, gvp, gvp.n_hidden, open);
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

// Adds the messages to atom i.
static __device__ void messages(const Network& a, const State& m, const Gvp& gvp, int i) {
  const real* w = a.weights;
  FOR_ITEMS(zero, j, 1) {
    Jet d[3], square = constant((real)0);
    for (int axis = 0; axis < 3; ++axis) {
      d[axis] = jet_at(m.x + axis * LANES, j) - jet_at(m.x + axis * LANES, i);
      square = square + d[axis] * d[axis];
    }
    const Jet distance = root(at_least(square, SMALLEST_SQUARE)) + constant((real)1e-8);
    const Jet inverse = reciprocal(distance);
    put(m.distance + zero, j, distance);
    for (int axis = 0; axis < 3; ++axis) put(m.u + axis * LANES, j, d[axis] * inverse);
  }
  __syncthreads();
  FOR_ITEMS(k, j, RADIAL) {
    const double centre = a.rbf_max * k / (RADIAL > 1 ? RADIAL - 1 : 1);
    const real inverse_width = (real)(RADIAL / a.rbf_max);
    const Jet z = inverse_width * (jet_at(m.distance, j) - constant((real)centre));
    const real value = exp(-z.v[0] * z.v[0]);
    put(m.inputs + k * LANES, j, chain(z, value, (real)-2 * z.v[0] * value));
  }
  norms(m, gvp, w + gvp.direction_hidden, RADIAL);
  __syncthreads();
  scalars_and_gates(a, m, gvp, RADIAL + gvp.n_hidden, true);
  const real factor = (real)(1.0 / a.message_norm);
  for (int item = threadIdx.x; item < SCALARS + 3 * VECTORS; item += THREADS) {
    Jet sum = constant((real)0);
    if (item < SCALARS) {
      for (int j = 0; j < ATOMS; ++j)
        if (j != i) sum = sum + jet_at(m.a + item * LANES, j);
      real* s = m.s + item * LANES;
      put(s, i, jet_at(s, i) + factor * sum);
    } else {
      const int u = (item - SCALARS) / 3, axis = (item - SCALARS) % 3;
      for (int j = 0; j < ATOMS; ++j)
        if (j != i) sum = sum + jet_at(m.g + u * LANES, j) * along(m.out_v, w + gvp.direction_outputs, m, u, axis, j);
      real* v = m.v + (3 * u + axis) * LANES;
      put(v, i, jet_at(v, i) + factor * sum);
    }
  }
  __syncthreads();
}

// Scalars: layer normalisation; vectors: divided by √(mean max(|V|², 1e-8) + 1e-5) + 1e-5.
static __device__ void normalise(const Network& a, const State& m, const Norm& norm) {
  // the numbers that each atom's are divided by, in m.distance and m.u
  FOR_ITEMS(part, atom, 2) {
    if (part == 0) {
      Jet mean = constant((real)0), variance = constant((real)0);
      for (int f = 0; f < SCALARS; ++f) mean = mean + jet_at(m.s + f * LANES, atom);
      mean = ((real)1 / SCALARS) * mean;
      for (int f = 0; f < SCALARS; ++f) {
        const Jet rest = jet_at(m.s + f * LANES, atom) - mean;
        variance = variance + rest * rest;
      }
      const Jet spread = root(((real)1 / SCALARS) * variance + constant(EPSILON));
      put(m.distance, atom, mean);
      put(m.u, atom, reciprocal(spread));
    } else {
      Jet sum = constant((real)0);
      for (int u = 0; u < VECTORS; ++u) {
        Jet square = constant((real)0);
        for (int axis = 0; axis < 3; ++axis) {
          const Jet part_of_v = jet_at(m.v + (3 * u + axis) * LANES, atom);
          square = square + part_of_v * part_of_v;
        }
        sum = sum + at_least(square, SMALLEST_SQUARE);
      }
      const Jet size = root(((real)1 / VECTORS) * sum + constant(EPSILON)) + constant(EPSILON);
      put(m.u + LANES, atom, reciprocal(size));
    }
  }
  __syncthreads();
  FOR_ITEMS(f, atom, SCALARS) {
    const Jet normal = (jet_at(m.s + f * LANES, atom) - jet_at(m.distance, atom)) * jet_at(m.u, atom);
    put(m.s + f * LANES, atom, a.weights[norm.weight + f] * normal + constant(a.weights[norm.bias + f]));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) put(m.v + v * LANES, atom, jet_at(m.v + v * LANES, atom) * jet_at(m.u + LANES, atom));
  __syncthreads();
}

static __device__ void layer(const Network& a, const State& m, const Layer& layer, bool last) {
  linear_parts(a, m, layer.message);
  for (int i = 0; i < ATOMS; ++i) messages(a, m, layer.message, i);
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

static __device__ void begin(const Network& a, const State& m, const Point& p) {
  read_positions(p, m.x);
  const real t = (real)p.t;
  FOR_ITEMS(f, atom, SCALARS) {
    const real embedded = atom < ATOMS ? a.embedding[atom * SCALARS + f] : (real)0;
    put(m.s + f * LANES, atom, swish(constant(embedded + t * a.time[f]), (real)1));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) put(m.v + v * LANES, atom, constant((real)0));
  __syncthreads();
}

static __device__ void finish(const Network& a, const State& m, const Point& p) {
  on_atoms(a, m, *a.output, false);
  FOR_ITEMS(axis, atom, 3) put(m.x + axis * LANES, atom, single_output(m, jet_at(m.g, atom), axis, atom));
  write_field(p, m.x);
}

// The field at one point; `memory` is the block's.
static __device__ __noinline__ void field(const Network& a, real* memory, const Point& p) {
  const State m = layout(memory);
  begin(a, m, p);
  for (int l = 0; l < LAYERS; ++l) layer(a, m, a.layers[l], l + 1 == LAYERS);
  finish(a, m, p);
}

struct OfBatch { Batch batch; Network network; };

KERNEL(gvp_field, OfBatch) {
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
