// BoltzNCE's energy-based model, a transformer over atoms (src/models/graphormer_ebm/mod.rs has the equations): energies, and
// with SCORE their gradients by the chain rule backwards.
//
// A block takes one configuration through the network, an atom a lane. The energy alone keeps everything in shared memory where
// that is large enough. The score keeps what enters each half of a layer, computes the rest again on the way back, and has too
// much of it for shared memory: its state lies in memory of the block's own.
//
// Sizes are those of one model: WIDTH (D), FORWARD, HEADS, KERNELS, LAYERS (times blocks), TIMES (hidden numbers of the time
// network), BOLTZNCE (the reference's distances and self-neighbours).
#define COMPONENTS 1
// All weights come from the L2 cache.
#define RESIDENT 384
#define READS (SCORE || sizeof(REAL) > 4 ? 4 : 16)
#include "jets.cuh"

#define HEAD_WIDTH (WIDTH / HEADS)
#define K EVEN(KERNELS)
#define H EVEN(HEADS)
#define D EVEN(WIDTH)
#define F EVEN(FORWARD)
#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define NORMALISER (real)2.5066272160016134
#define EPSILON (real)1e-5

struct Layer { Norm attention_norm, forward_norm; Linear qkv, out, first, second; };

struct Arguments {
  Batch batch;  // f: energies[n]; df: scores[n][ATOMS][3]
  const real* weights;
  const Layer* layers;
  Linear time_first, time_second, bias_first, bias_second, edge, energy_first, energy_second;
  Norm final_norm;
  int atoms;                  // [ATOMS][WIDTH], the types' rows
  int means, inverse_widths;  // [KERNELS]
  int factor, shift;          // [ATOMS][ATOMS]
};

// Arrays of [numbers][LANES] unless said otherwise. Those in the second line are for the way back.
struct State {
  real *x, *rows, *a, *qkv, *hidden, *bias, *kernels, *pair_hidden, *neighbours, *y, *r, *d, *mean, *inverse, *partial, *time;
  real *kept, *g_rows, *g_a, *g_qkv, *g_hidden, *g_bias, *lse, *delta, *g_x, *g_kernels, *g_d;
};

#define PARTIALS (THREADS / PADDED > 1 ? THREADS / PADDED : 1)
#define ENERGY_MEMORY                                                                                               \
  (LANES * (3 + D + D + 3 * D + MOST(F, D) + ATOMS * H + K + K + K + 1 + 1 + 3 + 1 + 1 + PARTIALS) + (TIMES + 3) / 4 * 4)
#define SCORE_MEMORY                                                                                                \
  (ENERGY_MEMORY + LANES * (2 * LAYERS * D + D + D + 3 * D + MOST(F, D) + ATOMS * H + H + H + 3 + K + 3))

static __device__ State layout(real* memory) {
  State m;
  m.x = take(memory, 3);
  m.rows = take(memory, D);
  m.a = take(memory, D);
  m.qkv = take(memory, 3 * D);
  m.hidden = take(memory, MOST(F, D));
  m.bias = take(memory, ATOMS * H);
  m.kernels = take(memory, K);
  m.pair_hidden = take(memory, K);
  m.neighbours = take(memory, K);
  m.y = take(memory, 1);
  m.r = take(memory, 1);
  m.d = take(memory, 3);
  m.mean = take(memory, 1);
  m.inverse = take(memory, 1);
  m.partial = take(memory, PARTIALS);
  m.time = memory;
  memory += (TIMES + 3) / 4 * 4;  // of a block, too, a number of Fours
#if SCORE
  m.kept = take(memory, 2 * LAYERS * D);
  m.g_rows = take(memory, D);
  m.g_a = take(memory, D);
  m.g_qkv = take(memory, 3 * D);
  m.g_hidden = take(memory, MOST(F, D));
  m.g_bias = take(memory, ATOMS * H);
  m.lse = take(memory, H);
  m.delta = take(memory, H);
  m.g_x = take(memory, 3);
  m.g_kernels = take(memory, K);
  m.g_d = take(memory, 3);
#endif
  return m;
}

static __device__ real silu(real x) { return x / ((real)1 + exp(-x)); }
static __device__ real silu_slope(real x) {
  const real s = (real)1 / ((real)1 + exp(-x));
  return s * ((real)1 + x * ((real)1 - s));
}

// What products do with eight lanes besides Store: silu; add to what is there.
struct StoreSilu {
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = silu(sum[r]);
    put_eight(to + o * LANES + lane, sum);
  }
};
// Starts from the rows and a bias: a residual connection in place.
struct Residual {
  const real* rows;
  const real* bias;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = rows[o * LANES + lane + r] + bias[o];
  }
};
// Times silu′ of what was stored before.
struct ThroughSilu {
  const real* before;
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] *= silu_slope(before[o * LANES + lane + r]);
    put_eight(to + o * LANES + lane, sum);
  }
};

// Mean over d < WIDTH of term(d, atom), by all threads; begins and ends with a barrier.
template <class Term>
static __device__ void mean_of(const State& m, real* to, const Term& term) {
  __syncthreads();
  FOR_ITEMS(part, atom, PARTIALS) {
    real sum = (real)0;
    for (int d = part; d < WIDTH; d += PARTIALS) sum += term(d, atom);
    m.partial[part * LANES + atom] = sum;
  }
  __syncthreads();
  FOR_ITEMS(zero, atom, 1) {
    real sum = (real)0;
    for (int part = 0; part < PARTIALS; ++part) sum += m.partial[part * LANES + atom];
    to[zero + atom] = sum / WIDTH;
  }
  __syncthreads();
}

// Layer normalisation of `rows` to m.a; m.mean and m.inverse stay for the way back.
static __device__ void normalise(const Arguments& a, const State& m, const Norm& norm, const real* rows) {
  mean_of(m, m.mean, [&](int d, int atom) { return rows[d * LANES + atom]; });
  mean_of(m, m.inverse, [&](int d, int atom) {
    const real rest = rows[d * LANES + atom] - m.mean[atom];
    return rest * rest;
  });
  FOR_ITEMS(zero, atom, 1) m.inverse[zero + atom] = (real)1 / sqrt(m.inverse[atom] + EPSILON);
  __syncthreads();
  FOR_ITEMS(d, atom, WIDTH) {
    const real normal = (rows[d * LANES + atom] - m.mean[atom]) * m.inverse[atom];
    m.a[d * LANES + atom] = a.weights[norm.weight + d] * normal + a.weights[norm.bias + d];
  }
  __syncthreads();
}

// ---------------------------------------------------------------- pairs

// Distances from atom i, and their Gaussians.
static __device__ void pairs(const Arguments& a, const State& m, int i) {
  FOR_ITEMS(zero, j, 1) {
    real square = BOLTZNCE ? (real)0 : (real)1e-10;
    for (int axis = 0; axis < 3; ++axis) {
      const real d = m.x[axis * LANES + j] - m.x[axis * LANES + i] + (BOLTZNCE ? (real)1e-5 : (real)0);
      m.d[axis * LANES + j] = d;
      square += d * d;
    }
    const real r = sqrt(square);
    m.r[zero + j] = r;
    m.y[j] = j < ATOMS ? a.weights[a.factor + i * ATOMS + j] * r + a.weights[a.shift + i * ATOMS + j] : (real)0;
  }
  __syncthreads();
  FOR_ITEMS(k, j, KERNELS) {
    const real inverse = a.weights[a.inverse_widths + k], z = (m.y[j] - a.weights[a.means + k]) * inverse;
    m.kernels[k * LANES + j] = exp((real)-0.5 * z * z) * inverse / NORMALISER;
  }
  __syncthreads();
}

// Biases of the attention to atom i, [heads][LANES], and the sum of its Gaussians.
static __device__ void edges(const Arguments& a, const State& m, int i) {
  const real* w = a.weights;
  pairs(a, m, i);
  product(w + a.bias_first.forward, KERNELS, K, LANES, m.kernels, Bias{w + a.bias_first.bias}, StoreSilu{m.pair_hidden});
  for (int k = threadIdx.x; k < KERNELS; k += THREADS) {
    real sum = (real)0;
    for (int j = 0; j < ATOMS; ++j)
      if (BOLTZNCE || j != i) sum += m.kernels[k * LANES + j];
    m.neighbours[k * LANES + i] = sum;
  }
  __syncthreads();
  product(w + a.bias_second.forward, KERNELS, H, LANES, m.pair_hidden, Bias{w + a.bias_second.bias},
          Store{m.bias + i * H * LANES, LANES});
  __syncthreads();
}

// ---------------------------------------------------------------- attention

static __device__ const real* part_of(const real* qkv, int which, int c, int head) {
  return qkv + (which * WIDTH + c * HEADS + head) * LANES;
}

// s q_i·k_j + B_ij
static __device__ real score_of(const State& m, int head, int i, int j) {
  real sum = (real)0;
  for (int c = 0; c < HEAD_WIDTH; ++c) sum += part_of(m.qkv, 0, c, head)[i] * part_of(m.qkv, 1, c, head)[j];
  return sum / sqrt((real)HEAD_WIDTH) + m.bias[(i * H + head) * LANES + j];
}

// Σ_j softmax_j v_j to m.a; the softmax is rescaled whenever a larger score comes.
static __device__ void attention(const State& m) {
  FOR_ITEMS(head, i, HEADS) {
    if (i >= ATOMS) {
      for (int c = 0; c < HEAD_WIDTH; ++c) m.a[(c * HEADS + head) * LANES + i] = (real)0;
      continue;
    }
    real largest = score_of(m, head, i, 0), total = (real)0, out[HEAD_WIDTH];
    for (int c = 0; c < HEAD_WIDTH; ++c) out[c] = (real)0;
    for (int j = 0; j < ATOMS; ++j) {
      const real score = score_of(m, head, i, j), top = score > largest ? score : largest;
      const real before = exp(largest - top), weight = exp(score - top);
      total = total * before + weight;
      for (int c = 0; c < HEAD_WIDTH; ++c) out[c] = out[c] * before + weight * part_of(m.qkv, 2, c, head)[j];
      largest = top;
    }
    for (int c = 0; c < HEAD_WIDTH; ++c) m.a[(c * HEADS + head) * LANES + i] = out[c] / total;
#if SCORE
    m.lse[head * LANES + i] = largest + log(total);
#endif
  }
  __syncthreads();
}

// ---------------------------------------------------------------- the network

static __device__ void keep(const State& m, const real* from, int place) {
#if SCORE
  FOR_ITEMS(d, atom, WIDTH) m.kept[(place * D + d) * LANES + atom] = from[d * LANES + atom];
  __syncthreads();
#else
  (void)m; (void)from; (void)place;
#endif
}

static __device__ void attend(const Arguments& a, const State& m, const Layer& layer, const real* rows) {
  const real* w = a.weights;
  normalise(a, m, layer.attention_norm, rows);
  product(w + layer.qkv.forward, WIDTH, EVEN(3 * WIDTH), LANES, m.a, Bias{w + layer.qkv.bias}, Store{m.qkv, LANES});
  __syncthreads();
  attention(m);
}

// Rows at the start of the layers: types, Gaussians of the neighbours, time.
static __device__ void embed(const Arguments& a, const State& m, int row) {
  const real* w = a.weights;
  read_positions(point_of(a.batch, row, 0, false), m.x);
  const real t = (real)a.batch.t[row];
  for (int k = threadIdx.x; k < TIMES; k += THREADS) {
    m.time[k] = silu(w[a.time_first.forward + k] * t + w[a.time_first.bias + k]);
  }
  FOR_ITEMS(k, atom, K) m.neighbours[k * LANES + atom] = (real)0;
  __syncthreads();
  for (int i = 0; i < ATOMS; ++i) edges(a, m, i);
  const auto start = [&](int o, int lane, real* sum) {
    real time = (real)0;
    if (o < WIDTH) {
      for (int k = 0; k < TIMES; ++k) time += w[a.time_second.forward + k * D + o] * m.time[k];
      time += w[a.time_second.bias + o] + w[a.edge.bias + o];
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int atom = lane + r;
      sum[r] = atom < ATOMS && o < WIDTH ? w[a.atoms + atom * WIDTH + o] + time : (real)0;
    }
  };
  product(w + a.edge.forward, KERNELS, D, LANES, m.neighbours, start, Store{m.rows, LANES});
  __syncthreads();
}

static __device__ void forward(const Arguments& a, const State& m, int row) {
  const real* w = a.weights;
  embed(a, m, row);
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    keep(m, m.rows, 2 * l);
    attend(a, m, layer, m.rows);
    product(w + layer.out.forward, WIDTH, D, LANES, m.a, Residual{m.rows, w + layer.out.bias}, Store{m.rows, LANES});
    __syncthreads();
    keep(m, m.rows, 2 * l + 1);
    normalise(a, m, layer.forward_norm, m.rows);
    product(w + layer.first.forward, WIDTH, F, LANES, m.a, Bias{w + layer.first.bias}, StoreSilu{m.hidden});
    __syncthreads();
    product(w + layer.second.forward, FORWARD, D, LANES, m.hidden, Residual{m.rows, w + layer.second.bias},
            Store{m.rows, LANES});
    __syncthreads();
  }
  normalise(a, m, a.final_norm, m.rows);
  product(w + a.energy_first.forward, WIDTH, D, LANES, m.a, Bias{w + a.energy_first.bias}, Store{m.hidden, LANES});
  __syncthreads();
  // Σ_i e₂ silu(·), as WIDTH times a mean
  mean_of(m, m.y, [&](int d, int atom) { return w[a.energy_second.forward + 2 * d] * silu(m.hidden[d * LANES + atom]); });
  if (threadIdx.x == 0) {
    double energy = 0.0;
    for (int atom = 0; atom < ATOMS; ++atom) energy += (double)(WIDTH * m.y[atom] + w[a.energy_second.bias]);
    a.batch.f[row] = energy;
  }
  __syncthreads();
}

#if SCORE
// From the cotangent m.g_a of a norm's output to that of `rows`, added to m.g_rows. m.mean and m.inverse are of `rows`.
static __device__ void normalise_back(const Arguments& a, const State& m, const Norm& norm, const real* rows) {
  const auto normal = [&](int d, int atom) { return (rows[d * LANES + atom] - m.mean[atom]) * m.inverse[atom]; };
  const auto g = [&](int d, int atom) { return a.weights[norm.weight + d] * m.g_a[d * LANES + atom]; };
  mean_of(m, m.y, g);
  mean_of(m, m.r, [&](int d, int atom) { return g(d, atom) * normal(d, atom); });
  FOR_ITEMS(d, atom, WIDTH) {
    m.g_rows[d * LANES + atom] += m.inverse[atom] * (g(d, atom) - m.y[atom] - normal(d, atom) * m.r[atom]);
  }
  __syncthreads();
}

// From the cotangent m.g_a of the attention's output to those of q, k, v, and of the biases, which are added to.
static __device__ void attention_back(const State& m) {
  const real scale = (real)1 / sqrt((real)HEAD_WIDTH);
  const auto along = [&](int head, int i, int j) {
    real sum = (real)0;
    for (int c = 0; c < HEAD_WIDTH; ++c) sum += m.g_a[(c * HEADS + head) * LANES + i] * part_of(m.qkv, 2, c, head)[j];
    return sum;
  };
  FOR_ITEMS(head, i, HEADS) {
    real sum = (real)0;
    for (int c = 0; c < HEAD_WIDTH; ++c) {
      const int place = (c * HEADS + head) * LANES + i;
      sum += m.g_a[place] * m.a[place];
    }
    m.delta[head * LANES + i] = sum;
  }
  __syncthreads();
  // by destination: q and the biases
  FOR_ITEMS(head, i, HEADS) {
    real g_q[HEAD_WIDTH];
    for (int c = 0; c < HEAD_WIDTH; ++c) g_q[c] = (real)0;
    for (int j = 0; i < ATOMS && j < ATOMS; ++j) {
      const real p = exp(score_of(m, head, i, j) - m.lse[head * LANES + i]);
      const real g = p * (along(head, i, j) - m.delta[head * LANES + i]);
      m.g_bias[(i * H + head) * LANES + j] += g;
      for (int c = 0; c < HEAD_WIDTH; ++c) g_q[c] += scale * g * part_of(m.qkv, 1, c, head)[j];
    }
    for (int c = 0; c < HEAD_WIDTH; ++c) m.g_qkv[(c * HEADS + head) * LANES + i] = g_q[c];
  }
  // by source: k and v
  FOR_ITEMS(head, j, HEADS) {
    real g_k[HEAD_WIDTH], g_v[HEAD_WIDTH];
    for (int c = 0; c < HEAD_WIDTH; ++c) g_k[c] = g_v[c] = (real)0;
    for (int i = 0; j < ATOMS && i < ATOMS; ++i) {
      const real p = exp(score_of(m, head, i, j) - m.lse[head * LANES + i]);
      const real g = p * (along(head, i, j) - m.delta[head * LANES + i]);
      for (int c = 0; c < HEAD_WIDTH; ++c) {
        g_k[c] += scale * g * part_of(m.qkv, 0, c, head)[i];
        g_v[c] += p * m.g_a[(c * HEADS + head) * LANES + i];
      }
    }
    for (int c = 0; c < HEAD_WIDTH; ++c) {
      m.g_qkv[(WIDTH + c * HEADS + head) * LANES + j] = g_k[c];
      m.g_qkv[(2 * WIDTH + c * HEADS + head) * LANES + j] = g_v[c];
    }
  }
  __syncthreads();
}

// From the cotangents of rows and biases to that of x, through the pairs of atom i.
static __device__ void pairs_back(const Arguments& a, const State& m, int i) {
  const real* w = a.weights;
  pairs(a, m, i);
  product(w + a.bias_first.forward, KERNELS, K, LANES, m.kernels, Bias{w + a.bias_first.bias}, Store{m.pair_hidden, LANES});
  __syncthreads();
  product(w + a.bias_second.back, HEADS, K, LANES, m.g_bias + i * H * LANES, Zero{}, ThroughSilu{m.pair_hidden, m.pair_hidden});
  __syncthreads();
  const auto of_neighbours = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = BOLTZNCE || lane + r != i ? m.neighbours[o * LANES + i] : (real)0;
  };
  product(w + a.bias_first.back, KERNELS, K, LANES, m.pair_hidden, of_neighbours, Store{m.g_kernels, LANES});
  __syncthreads();
  FOR_ITEMS(axis, j, 3) {
    real by_y = (real)0;
    for (int k = 0; k < KERNELS; ++k) {
      const real inverse = w[a.inverse_widths + k], z = (m.y[j] - w[a.means + k]) * inverse;
      by_y -= m.g_kernels[k * LANES + j] * z * inverse * m.kernels[k * LANES + j];
    }
    const bool counts = j < ATOMS && j != i;
    const real by_r = counts ? by_y * w[a.factor + i * ATOMS + j] : (real)0;
    const real g = counts ? by_r * m.d[axis * LANES + j] / m.r[j] : (real)0;
    m.g_d[axis * LANES + j] = g;
    m.g_x[axis * LANES + j] += g;
  }
  __syncthreads();
  if (threadIdx.x < 3) {
    real sum = (real)0;
    for (int j = 0; j < ATOMS; ++j) sum += m.g_d[threadIdx.x * LANES + j];
    m.g_x[threadIdx.x * LANES + i] -= sum;
  }
  __syncthreads();
}

static __device__ void backward(const Arguments& a, const State& m, int row) {
  const real* w = a.weights;
  // e₂ silu(m.hidden)
  FOR_ITEMS(d, atom, WIDTH) {
    m.g_hidden[d * LANES + atom] = w[a.energy_second.forward + 2 * d] * silu_slope(m.hidden[d * LANES + atom]);
    m.g_rows[d * LANES + atom] = (real)0;
  }
  FOR_ITEMS(place, atom, ATOMS * H) m.g_bias[place * LANES + atom] = (real)0;
  FOR_ITEMS(axis, atom, 3) m.g_x[axis * LANES + atom] = (real)0;
  __syncthreads();
  product(w + a.energy_first.back, WIDTH, D, LANES, m.g_hidden, Zero{}, Store{m.g_a, LANES});
  __syncthreads();
  normalise_back(a, m, a.final_norm, m.rows);
  for (int l = LAYERS - 1; l >= 0; --l) {
    const Layer& layer = a.layers[l];
    const real* before = m.kept + (2 * l + 1) * D * LANES;
    normalise(a, m, layer.forward_norm, before);
    product(w + layer.first.forward, WIDTH, F, LANES, m.a, Bias{w + layer.first.bias}, Store{m.hidden, LANES});
    __syncthreads();
    product(w + layer.second.back, WIDTH, F, LANES, m.g_rows, Zero{}, ThroughSilu{m.hidden, m.g_hidden});
    __syncthreads();
    product(w + layer.first.back, FORWARD, D, LANES, m.g_hidden, Zero{}, Store{m.g_a, LANES});
    __syncthreads();
    normalise_back(a, m, layer.forward_norm, before);
    before = m.kept + 2 * l * D * LANES;
    attend(a, m, layer, before);
    product(w + layer.out.back, WIDTH, D, LANES, m.g_rows, Zero{}, Store{m.g_a, LANES});
    __syncthreads();
    attention_back(m);
    product(w + layer.qkv.back, 3 * WIDTH, D, LANES, m.g_qkv, Zero{}, Store{m.g_a, LANES});
    __syncthreads();
    normalise_back(a, m, layer.attention_norm, before);
  }
  product(w + a.edge.back, WIDTH, K, LANES, m.g_rows, Zero{}, Store{m.neighbours, LANES});
  __syncthreads();
  for (int i = 0; i < ATOMS; ++i) pairs_back(a, m, i);
  FOR_ITEMS(axis, atom, 3) {
    if (atom < ATOMS) a.batch.df[((size_t)row * ATOMS + atom) * 3 + axis] = (double)m.g_x[axis * LANES + atom];
  }
  __syncthreads();
}
#endif

KERNEL(graphormer, Arguments) {
  BLOCK_MEMORY(a.batch.scratch, SCORE ? SCORE_MEMORY : ENERGY_MEMORY);
  const State m = layout(memory);
  for (int row = blockIdx.x; row < a.batch.n; row += gridDim.x) {
    forward(a, m, row);
#if SCORE
    backward(a, m, row);
#endif
  }
}
