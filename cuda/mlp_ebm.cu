// Energies ending in a residual network, of plain coordinates (src/models/mlp_ebm) or, with INVARIANT, of whitened
// distances and volumes of a molecule (equations in src/models/invariant_ebm/mod.rs); with SCORE their gradients by
// reverse mode.
//
// A block takes eight configurations through the network, one per lane, so that each weight read serves all of them.
// The result of a lane does not depend on the others. The score keeps the inputs of each layer's activation.
//
// Sizes are those of one model: INPUTS (of the network, without those of the time), TIMES, WIDTH, LAYERS; with
// INVARIANT also ATOMS, VOLUMES, SWAPS and TRIGONOMETRIC (the noise is sin πt/2, else t).
#define PADDED 8
// All weights come from the L2 cache.
#define RESIDENT 512
#define READS (SCRATCH || sizeof(REAL) > 4 ? 4 : 8)
#if !INVARIANT
#define ATOMS 1
#endif
#include "networks.cuh"

#define W EVEN(WIDTH)
#define FLOOR (real)1e-10
#define KEPT (SCORE ? LAYERS : 1)
#if INVARIANT
#define DIMENSION (3 * ATOMS)
#define DISTANCES (ATOMS * (ATOMS - 1) / 2)
#define NUMBERS (DISTANCES + VOLUMES)
#define BY_VECTORS (SCORE ? 9 * VOLUMES : 0)
#define INVARIANT_MEMORY (7 * ATOMS + SWAPS + EVEN(NUMBERS) + INPUTS)
#else
#define DIMENSION INPUTS
#define BY_VECTORS 0
#define INVARIANT_MEMORY 0
#endif
#define PARTIALS (THREADS / LANES)
#define MEMORY (LANES * (INVARIANT_MEMORY + INPUTS + TIMES + W + MOST(KEPT * W, BY_VECTORS) + PARTIALS))

struct Layer { Linear linear; int beta; };
// A volume: three vectors, each from one atom to another.
struct Volume { int ends[3][2]; };
struct Swap { int alike[2]; Volume volume; int positive; };
// An end of a vector: 3 · volume + vector; 1 where it ends, −1 where it begins.
struct End { int vector, sign; };

struct Arguments {
  Batch batch;  // f: energies[n]; df: scores[n][DIMENSION]
  const real* weights;
  const Layer* layers;
  const Volume* volumes;
  const Swap* swaps;
  const End* ends;     // of the volumes' vectors, by atom
  const int* by_atom;  // [ATOMS + 1] offsets in `ends`
  Linear whitening, gate, input, output;
  int variance;  // [2][INPUTS]: λ, κ
  int padding;
};

// Arrays of [numbers][LANES].
struct State {
  real *x, *order, *r, *wrong;  // as given; the atom at each position; in that order; [SWAPS]
  real *f;                      // invariants, then a_k(τ), finally the cotangents of the invariants
  real *scale;
  real *y, *h;  // y and τ; the trunk's rows, and their cotangents
  real *a;      // inputs of the activations, and their cotangents; finally those of the volumes' vectors
  real *partial;
};

static __device__ State layout(real* memory) {
  State m;
#if INVARIANT
  m.x = take(memory, 3 * ATOMS);
  m.order = take(memory, ATOMS);
  m.r = take(memory, 3 * ATOMS);
  m.wrong = take(memory, SWAPS);
  m.f = take(memory, EVEN(NUMBERS));
  m.scale = take(memory, INPUTS);
#endif
  m.y = take(memory, INPUTS + TIMES);
  m.h = take(memory, W);
  m.a = take(memory, MOST(KEPT * W, BY_VECTORS));
  m.partial = take(memory, PARTIALS);
  return m;
}

// A lane's row of the batch; lanes beyond the last row repeat it.
static __device__ int row_of(const Arguments& a, int first, int lane) {
  return first + lane < a.batch.n ? first + lane : a.batch.n - 1;
}

#if INVARIANT
// ---------------------------------------------------------------- distances and volumes (src/nn/tape/invariants.rs)

typedef Three<real> Vector;

static __device__ Vector three_at(const real* x, int i, int lane) {
  const Vector r = {x[3 * i * LANES + lane], x[(3 * i + 1) * LANES + lane], x[(3 * i + 2) * LANES + lane]};
  return r;
}
static __device__ void put_three(real* x, int i, int lane, Vector r) {
  x[3 * i * LANES + lane] = r.x;
  x[(3 * i + 1) * LANES + lane] = r.y;
  x[(3 * i + 2) * LANES + lane] = r.z;
}
static __device__ Vector between(const real* x, const int* ends, int lane) {
  return three_at(x, ends[1], lane) - three_at(x, ends[0], lane);
}

struct Polar { real length; Vector direction; };
static __device__ Polar polar(Vector v) {
  Polar p;
  p.length = sqrt(dot(v, v) + FLOOR);
  p.direction = (real)1 / p.length * v;
  return p;
}

static __device__ int distance_of(int i, int j) {
  const int low = i < j ? i : j, high = i < j ? j : i;
  return low * (2 * ATOMS - low - 1) / 2 + high - low - 1;
}

// Swaps like atoms whose centre has the wrong hand in x, in the order of the swaps; r is x in that order. Ends with a
// barrier.
static __device__ void reorder(const Arguments& a, const State& m) {
  FOR_ITEMS(s, lane, SWAPS) {
    const Swap& swap = a.swaps[s];
    const Vector u = between(m.x, swap.volume.ends[0], lane), v = between(m.x, swap.volume.ends[1], lane),
                w = between(m.x, swap.volume.ends[2], lane);
    m.wrong[s * LANES + lane] = (dot(u, cross(v, w)) > (real)0) != (swap.positive != 0) ? (real)1 : (real)0;
  }
  FOR_ITEMS(atom, lane, ATOMS) m.order[atom * LANES + lane] = (real)atom;
  __syncthreads();
  if (threadIdx.x < LANES) {
    const int lane = threadIdx.x;
    for (int s = 0; s < SWAPS; ++s) {
      if (m.wrong[s * LANES + lane] == (real)0) continue;
      real *p = m.order + a.swaps[s].alike[0] * LANES + lane, *q = m.order + a.swaps[s].alike[1] * LANES + lane;
      const real kept = *p;
      *p = *q;
      *q = kept;
    }
  }
  __syncthreads();
  FOR_ITEMS(atom, lane, ATOMS) put_three(m.r, atom, lane, three_at(m.x, (int)m.order[atom * LANES + lane], lane));
  __syncthreads();
}

static __device__ void invariants(const Arguments& a, const State& m) {
  reorder(a, m);
  FOR_ITEMS(pair, lane, ATOMS * ATOMS) {
    const int ends[2] = {pair / ATOMS, pair % ATOMS};
    if (ends[0] < ends[1]) m.f[distance_of(ends[0], ends[1]) * LANES + lane] = polar(between(m.r, ends, lane)).length;
  }
  FOR_ITEMS(k, lane, VOLUMES) {
    const Volume& volume = a.volumes[k];
    const Vector u = polar(between(m.r, volume.ends[0], lane)).direction, v = polar(between(m.r, volume.ends[1], lane)).direction,
                w = polar(between(m.r, volume.ends[2], lane)).direction;
    m.f[(DISTANCES + k) * LANES + lane] = dot(u, cross(v, w));
  }
  __syncthreads();
}

#if SCORE
// From the cotangents of the invariants, in f, to the scores.
static __device__ void invariants_back(const Arguments& a, const State& m, int first) {
  FOR_ITEMS(k, lane, VOLUMES) {
    const Volume& volume = a.volumes[k];
    const Polar u = polar(between(m.r, volume.ends[0], lane)), v = polar(between(m.r, volume.ends[1], lane)),
                w = polar(between(m.r, volume.ends[2], lane));
    const Vector by_u = cross(v.direction, w.direction), by_v = cross(w.direction, u.direction), by_w = cross(u.direction, v.direction);
    const real value = dot(u.direction, by_u), g = m.f[(DISTANCES + k) * LANES + lane];
    put_three(m.a, 3 * k, lane, g * ((real)1 / u.length) * (by_u - value * u.direction));
    put_three(m.a, 3 * k + 1, lane, g * ((real)1 / v.length) * (by_v - value * v.direction));
    put_three(m.a, 3 * k + 2, lane, g * ((real)1 / w.length) * (by_w - value * w.direction));
  }
  __syncthreads();
  FOR_ITEMS(atom, lane, ATOMS) {
    Vector sum = {(real)0, (real)0, (real)0};
    for (int other = 0; other < ATOMS; ++other) {
      const int ends[2] = {other, atom};
      if (other != atom) sum = sum + m.f[distance_of(atom, other) * LANES + lane] * polar(between(m.r, ends, lane)).direction;
    }
    for (int e = a.by_atom[atom]; e < a.by_atom[atom + 1]; ++e) {
      sum = sum + (real)a.ends[e].sign * three_at(m.a, a.ends[e].vector, lane);
    }
    if (first + lane < a.batch.n) {
      double* score = a.batch.df + ((size_t)(first + lane) * ATOMS + (int)m.order[atom * LANES + lane]) * 3;
      score[0] = (double)sum.x;
      score[1] = (double)sum.y;
      score[2] = (double)sum.z;
    }
  }
}
#endif

// ---------------------------------------------------------------- whitening

// Lengths of the time features.
static __device__ double length_of(int s) {
  const double lengths[8] = {0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0};
  return lengths[s];
}

// y, τ, and a_k(τ) in f. Ends with a barrier.
static __device__ void read_inputs(const Arguments& a, const State& m, int first) {
  const real* w = a.weights;
  // a thread has the same lane throughout
  const double t = a.batch.t[row_of(a, first, threadIdx.x % LANES)], sigma = TRIGONOMETRIC ? sin(0.5 * PI * t) : t;
  const double noise = sigma * sigma;
  FOR_ITEMS(k, lane, DIMENSION) m.x[k * LANES + lane] = (real)a.batch.x[(size_t)row_of(a, first, lane) * DIMENSION + k];
  FOR_ITEMS(s, lane, TIMES) {
    const double square = length_of(s) * length_of(s);
    m.y[(INPUTS + s) * LANES + lane] = (real)(square / (square + noise));
  }
  const real variance = (real)noise;
  FOR_ITEMS(k, lane, INPUTS) {
    const real at_rest = w[a.variance + k], strong = w[a.variance + INPUTS + k];
    m.scale[k * LANES + lane] = (real)1 / sqrt(at_rest + variance + strong * variance * variance);
  }
  __syncthreads();
  invariants(a, m);
  const auto scaled = [&](int o, int lane, real* sum) {
    if (o >= INPUTS) return;
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] *= m.scale[o * LANES + lane + r];
    put_eight(m.y + o * LANES + lane, sum);
  };
  product(w + a.whitening.forward, NUMBERS, EVEN(INPUTS), LANES, m.f, Bias{w + a.whitening.bias}, scaled);
  __syncthreads();
  product(w + a.gate.forward, TIMES, EVEN(INPUTS), LANES, m.y + INPUTS * LANES, Bias{w + a.gate.bias}, Store{m.f, LANES});
  __syncthreads();
}
#else
// The coordinates and the time. Ends with a barrier.
static __device__ void read_inputs(const Arguments& a, const State& m, int first) {
  FOR_ITEMS(k, lane, INPUTS + TIMES) {
    const int row = row_of(a, first, lane);
    m.y[k * LANES + lane] = (real)(k < INPUTS ? a.batch.x[(size_t)row * INPUTS + k] : a.batch.t[row]);
  }
  __syncthreads();
}
#endif

// ---------------------------------------------------------------- the trunk (src/models/mlp_ebm/trunk.rs)

static __device__ real* kept_of(const State& m, int l) { return m.a + (SCORE ? l : 0) * W * LANES; }

// E = e·h + c + Σ_k a_k y_k²; partial sums of every PARTIALS-th term are added in order.
static __device__ void write_energies(const Arguments& a, const State& m, int first) {
  const real* w = a.weights;
  FOR_ITEMS(part, lane, PARTIALS) {
    real sum = (real)0;
    for (int o = part; o < WIDTH; o += PARTIALS) sum += w[a.output.forward + 2 * o] * m.h[o * LANES + lane];
#if INVARIANT
    for (int k = part; k < INPUTS; k += PARTIALS) {
      const real y = m.y[k * LANES + lane];
      sum += m.f[k * LANES + lane] * y * y;
    }
#endif
    m.partial[part * LANES + lane] = sum;
  }
  __syncthreads();
  const int lane = threadIdx.x;
  if (lane < LANES && first + lane < a.batch.n) {
    real sum = w[a.output.bias];
    for (int part = 0; part < PARTIALS; ++part) sum += m.partial[part * LANES + lane];
    a.batch.f[first + lane] = (double)sum;
  }
}

static __device__ void forward(const Arguments& a, const State& m, int first) {
  const real* w = a.weights;
  read_inputs(a, m, first);
  product(w + a.input.forward, INPUTS + TIMES, W, LANES, m.y, Bias{w + a.input.bias}, Store{m.h, LANES});
  __syncthreads();
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    real* const inner = kept_of(m, l);
    product(w + layer.linear.forward, WIDTH, W, LANES, m.h, Bias{w + layer.linear.bias}, Store{inner, LANES});
    __syncthreads();
    const real beta = w[layer.beta];
    FOR_ITEMS(o, lane, WIDTH) {
      const real x = inner[o * LANES + lane];
      m.h[o * LANES + lane] += x / ((real)1 + exp(-beta * x));
    }
    __syncthreads();
  }
  write_energies(a, m, first);
  __syncthreads();
}

#if SCORE
static __device__ void backward(const Arguments& a, const State& m, int first) {
  const real* w = a.weights;
  FOR_ITEMS(o, lane, WIDTH) m.h[o * LANES + lane] = w[a.output.forward + 2 * o];
  __syncthreads();
  const auto rows = [&](int o, int lane, real* sum) { get_eight(m.h + o * LANES + lane, sum); };
  for (int l = LAYERS - 1; l >= 0; --l) {
    const Layer& layer = a.layers[l];
    real* const inner = kept_of(m, l);
    const real beta = w[layer.beta];
    FOR_ITEMS(o, lane, WIDTH) {
      const real x = inner[o * LANES + lane], s = (real)1 / ((real)1 + exp(-beta * x));
      inner[o * LANES + lane] = m.h[o * LANES + lane] * s * ((real)1 + beta * x * ((real)1 - s));
    }
    __syncthreads();
    product(w + layer.linear.back, WIDTH, W, LANES, inner, rows, Store{m.h, LANES});
    __syncthreads();
  }
#if INVARIANT
  // through the whitening, including a_k y_k²
  const auto whitened = [&](int o, int lane, real* sum) {
    if (o >= INPUTS) return;
    real *y = m.y + o * LANES + lane, *gate = m.f + o * LANES + lane, *scale = m.scale + o * LANES + lane;
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = (sum[r] + (real)2 * gate[r] * y[r]) * scale[r];
    put_eight(y, sum);
  };
  product(w + a.input.back, WIDTH, EVEN(INPUTS + TIMES), LANES, m.h, Zero{}, whitened);
  __syncthreads();
  product(w + a.whitening.back, INPUTS, EVEN(NUMBERS), LANES, m.y, Zero{}, Store{m.f, LANES});
  __syncthreads();
  invariants_back(a, m, first);
#else
  const auto write = [&](int o, int lane, real* sum) {
    if (o >= INPUTS) return;
    for (int r = 0; r < 8; ++r) {
      if (first + lane + r < a.batch.n) a.batch.df[(size_t)(first + lane + r) * INPUTS + o] = (double)sum[r];
    }
  };
  product(w + a.input.back, WIDTH, EVEN(INPUTS + TIMES), LANES, m.h, Zero{}, write);
#endif
  __syncthreads();
}
#endif

KERNEL(mlp, Arguments) {
  BLOCK_MEMORY(a.batch.scratch + (size_t)blockIdx.x * MEMORY);
  const State m = layout(memory);
  for (int first = LANES * blockIdx.x; first < a.batch.n; first += LANES * gridDim.x) {
    forward(a, m, first);
#if SCORE
    backward(a, m, first);
#endif
  }
}
