// BoltzNCE's energy-based model, a transformer over atoms (equations in src/models/graphormer_ebm/mod.rs): energies,
// and with SCORE their gradients by reverse mode.
//
// A team of TEAM blocks takes one configuration through the network, one atom per lane. In a batch a team is one block.
// For few configurations its blocks share heads, outputs of products and atoms of pairs; what others need goes through
// global memory, and they meet. Cheap work is done redundantly by each block. Sums are in the same order in either
// case, so the bits of a configuration do not depend on its batch.
//
// What a block works on is near: in shared memory, if that is large enough. With the score the rows that enter each
// half of a layer are kept far, in global memory, and the rest is recomputed in the backward pass.
//
// Sizes are those of one model: WIDTH (D), FORWARD, HEADS, KERNELS, LAYERS (times blocks), TIMES (hidden numbers of the
// time network), BOLTZNCE (the reference's distances and self-neighbours). All weights come from the L2 cache.
#define RESIDENT 384
#define READS (sizeof(REAL) > 4 ? 4 : 16)
#include "networks.cuh"

#define HEAD_WIDTH (WIDTH / HEADS)
// Outputs of a head: of q, k and v, and of the attention.
#define HEAD_ROWS EVEN(3 * HEAD_WIDTH)
#define HEAD_MIXED EVEN(HEAD_WIDTH)
#define K EVEN(KERNELS)
#define H EVEN(HEADS)
#define D EVEN(WIDTH)
#define F EVEN(FORWARD)
#define QKV (HEADS * HEAD_ROWS)
#define MIXED (HEADS * HEAD_MIXED)
#define NORMALISER (real)2.5066272160016134
#define EPSILON (real)1e-5

// A block's share of n things divided among the team.
#define EACH(n) (((n) + TEAM - 1) / TEAM)
#define EACH_EVEN(n) EVEN(EACH(n))
// Inputs whose products are summed before they are added to others.
#define CHUNK 32
#define CHUNKS(inputs) (((inputs) + CHUNK - 1) / CHUNK)

struct Layer { Norm attention_norm, forward_norm; Linear qkv, out, first, second; };

struct Arguments {
  Batch batch;  // f: energies[n]; df: scores[n][ATOMS][3]
  const real* weights;
  const Layer* layers;  // outputs of `qkv` and inputs of `out` are ordered head by head
  Linear time_first, time_second, bias_first, bias_second, edge, energy_first, energy_second;
  Norm final_norm;
  int atoms;                  // [ATOMS][WIDTH], the rows of their types
  int means, inverse_widths;  // [KERNELS]
  int factor, shift;          // [ATOMS][ATOMS]
};

#include "graphormer_state.cuh"

// ---------------------------------------------------------------- products

// From `first` to before `last`.
struct Range { int first, last; };

// The block's share of n things, `each` per block.
static __device__ Range own(const State& m, int n, int each) {
  const Range range = {LEAST(m.place.rank * each, n), LEAST((m.place.rank + 1) * each, n)};
  return range;
}
static __device__ Range own_outputs(const State& m, int n) { return own(m, n, EACH_EVEN(n)); }
static __device__ Range own_heads(const State& m, int rows) {
  const Range heads = own(m, HEADS, EACH(HEADS)), outputs = {heads.first * rows, heads.last * rows};
  return outputs;
}

#if !TENSOR
// Adds the contributions of inputs from k to before `end`, in eight lanes of x, to outputs o and o + 1.
static __device__ void add_inputs(const real* w, int n_out, int o, const real* x, int k, int end, real* left, real* right) {
  w = IN_GLOBAL(w);
#pragma unroll READS_AT_ONCE
  for (; k < end; ++k) add_input(w + (size_t)k * n_out + o, x + k * LANES, left, right);
}
#endif

#if TEAM > 1
// Sums over the inputs of each chunk, to m.sums; one function for all products, so that its code stays in the
// instruction cache.
static __device__ __noinline__ void sums_of_chunks(const Place place, Range range, const real* w, int n_in, int n_out, int at) {
  real* const sums = layout(place).sums;
  const real* const x = near_of(place) + at;
  const int n = range.last - range.first, groups = LANES / 8, items = n / 2 * groups;
  for (int item = threadIdx.x; item < CHUNKS(n_in) * items; item += THREADS) {
    const int chunk = item / items, o = 2 * (item % items / groups), lane = 8 * (item % groups), k = chunk * CHUNK;
    real left[8] = {}, right[8] = {};
    add_inputs(w, n_out, range.first + o, x + lane, k, LEAST(k + CHUNK, n_in), left, right);
    real* const to = sums + (chunk * n + o) * LANES + lane;
    put_eight(to, left);
    put_eight(to + LANES, right);
  }
  __syncthreads();
}
#endif

// W x for a range of outputs that begins and ends with an even one, like `product` of common.cuh. The sum over inputs
// is one of sums over chunks of CHUNK inputs, so that threads of a team, which have few outputs each, can share the
// inputs with the same bits.
template <class Start, class Finish>
static __device__ void outputs(const State& m, Range range, const real* w, int n_in, int n_out, const real* x,
                               const Start& start, const Finish& finish) {
#if TENSOR
  (void)m; (void)range;
  product(w, n_in, n_out, LANES, x, start, finish);
#elif TEAM > 1
  const int n = range.last - range.first, groups = LANES / 8;
  sums_of_chunks(m.place, range, w, n_in, n_out, (int)(x - near_of(m.place)));
  for (int item = threadIdx.x; item < n * groups; item += THREADS) {
    const int o = item / groups, lane = 8 * (item % groups);
    real sum[8], more[8];
    start(range.first + o, lane, sum);
#pragma unroll 2
    for (int chunk = 0; chunk < CHUNKS(n_in); ++chunk) {
      get_eight(m.sums + (chunk * n + o) * LANES + lane, more);
#pragma unroll
      for (int r = 0; r < 8; ++r) sum[r] += more[r];
    }
    finish(range.first + o, lane, sum);
  }
#else
  (void)m;
  const int columns = (range.last - range.first) / 2, groups = LANES / 8;
  const Tiles tiles(columns, groups);
  for (int item = threadIdx.x; item < columns * groups; item += THREADS) {
    const int o = range.first + tiles.output(item), lane = tiles.lane(item);
    real left[8], right[8];
    start(o, lane, left);
    start(o + 1, lane, right);
#pragma unroll 1
    for (int k = 0; k < n_in; k += CHUNK) {
      real more_left[8] = {}, more_right[8] = {};
      add_inputs(w, n_out, o, x + lane, k, LEAST(k + CHUNK, n_in), more_left, more_right);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        left[r] += more_left[r];
        right[r] += more_right[r];
      }
    }
    finish(o, lane, left);
    finish(o + 1, lane, right);
  }
#endif
}

static __device__ real silu(real x) { return x / ((real)1 + exp(-x)); }
static __device__ real silu_slope(real x) {
  const real s = (real)1 / ((real)1 + exp(-x));
  return s * ((real)1 + x * ((real)1 - s));
}

// What products do with eight lanes besides Store: store to an array that begins with output `first`; apply silu; add
// to the old value.
struct StoreFrom {
  real* to;
  int first;
  __device__ void operator()(int o, int lane, real* sum) const { put_eight(to + (o - first) * LANES + lane, sum); }
};
struct StoreSilu {
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = silu(sum[r]);
    put_eight(to + o * LANES + lane, sum);
  }
};
// Starts from the rows and a bias: a residual connection.
struct Residual {
  const real* rows;
  const real* bias;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = rows[o * LANES + lane + r] + bias[o];
  }
};
// Multiplies by silu′ of what was stored before.
struct ThroughSilu {
  const real* before;
  real* to;
  __device__ void operator()(int o, int lane, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] *= silu_slope(before[o * LANES + lane + r]);
    put_eight(to + o * LANES + lane, sum);
  }
};

// ---------------------------------------------------------------- layer normalisation

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

// Layer normalisation of `rows` to m.a; leaves m.mean and m.inverse for the backward pass.
static __device__ __noinline__ void normalise(const real* w, const Place place, const Norm norm, const real* rows) {
  const State m = layout(place);
  mean_of(m, m.mean, [&](int d, int atom) { return rows[d * LANES + atom]; });
  mean_of(m, m.inverse, [&](int d, int atom) {
    const real rest = rows[d * LANES + atom] - m.mean[atom];
    return rest * rest;
  });
  FOR_ITEMS(zero, atom, 1) m.inverse[zero + atom] = (real)1 / sqrt(m.inverse[atom] + EPSILON);
  __syncthreads();
  FOR_ITEMS(d, atom, WIDTH) {
    const real normal = (rows[d * LANES + atom] - m.mean[atom]) * m.inverse[atom];
    m.a[d * LANES + atom] = w[norm.weight + d] * normal + w[norm.bias + d];
  }
  __syncthreads();
}

// ---------------------------------------------------------------- pairs

static __device__ real* kernels_of(const State& m) { return m.work; }
static __device__ real* pair_hidden(const State& m) { return m.work + K * LANES; }

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
    kernels_of(m)[k * LANES + j] = exp((real)-0.5 * z * z) * inverse / NORMALISER;
  }
  __syncthreads();
}

// Biases of the attention to atom i, and the sum of its Gaussians.
static __device__ void edges(const Arguments& a, const State& m, int i) {
  const real *const w = a.weights, *const kernels = kernels_of(m);
  pairs(a, m, i);
  outputs(m, Range{0, K}, w + a.bias_first.forward, KERNELS, K, kernels, Bias{w + a.bias_first.bias}, StoreSilu{pair_hidden(m)});
  for (int k = threadIdx.x; k < KERNELS; k += THREADS) {
    real sum = (real)0;
    for (int j = 0; j < ATOMS; ++j)
      if (BOLTZNCE || j != i) sum += kernels[k * LANES + j];
    m.far_neighbours[k * LANES + i] = sum;
  }
  __syncthreads();
  const auto transposed = [&](int head, int j, real* sum) {
    for (int r = 0; r < 8; ++r)
      if (j + r < ATOMS) m.far_bias[((j + r) * H + head) * LANES + i] = sum[r];
  };
  outputs(m, Range{0, H}, w + a.bias_second.forward, KERNELS, H, pair_hidden(m), Bias{w + a.bias_second.bias}, transposed);
  __syncthreads();
}

// ---------------------------------------------------------------- attention

// Heads are indexed among those of the block, whose numbers are side by side in m.work.
static __device__ int heads_here(const State& m) {
  const Range heads = own(m, HEADS, EACH(HEADS));
  return heads.last - heads.first;
}
// Heads from one source to the next in `bias` and `g_bias`.
#define HEADS_APART (TEAM > 1 ? EACH(HEADS) : H)
static __device__ int pair_at(int j, int head, int i, int apart) { return (j * apart + head) * LANES + i; }

static __device__ const real* part_of(const State& m, int which, int c, int head) {
  return m.work + (head * HEAD_ROWS + which * HEAD_WIDTH + c) * LANES;
}

// s q_i·k_j + B_ij
static __device__ real score_of(const State& m, int head, int i, int j) {
  real sum = (real)0;
  for (int c = 0; c < HEAD_WIDTH; ++c) sum += part_of(m, 0, c, head)[i] * part_of(m, 1, c, head)[j];
  return sum / sqrt((real)HEAD_WIDTH) + m.bias[pair_at(j, head, i, HEADS_APART)];
}

// N channels, from `first` on, of Σ_j softmax_j(score(j)) v_j to `to`; the softmax is rescaled whenever a larger score
// comes.
template <int N, class Score>
static __device__ void mix(const State& m, int head, int i, int first, real* to, const Score& score) {
  real largest = score(0), total = (real)0, out[N];
  for (int c = 0; c < N; ++c) out[c] = (real)0;
  for (int j = 0; j < ATOMS; ++j) {
    const real here = score(j), top = here > largest ? here : largest;
    const real before = exp(largest - top), weight = exp(here - top);
    total = total * before + weight;
    for (int c = 0; c < N; ++c) out[c] = out[c] * before + weight * part_of(m, 2, first + c, head)[j];
    largest = top;
  }
  for (int c = 0; c < N; ++c) to[(head * HEAD_MIXED + first + c) * LANES + i] = out[c] / total;
#if SCORE
  if (first == 0) m.lse[head * LANES + i] = largest + log(total);
#endif
}

// Attention output of the block's heads from their q, k and v, to an array that begins with the first of them. Ends
// with a barrier. If a team has few heads per block, threads have a score each, and then a channel.
static __device__ void attention(const State& m, real* to) {
#if TEAM > 1
  FOR_ITEMS(pair, i, ATOMS * heads_here(m)) {
    const int head = pair / ATOMS, j = pair % ATOMS;
    if (i < ATOMS) m.p[pair_at(j, head, i, EACH(HEADS))] = score_of(m, head, i, j);
  }
  __syncthreads();
#endif
  const int here = TEAM > 1 ? HEAD_WIDTH : 1;
  FOR_ITEMS(place, i, heads_here(m) * here) {
    const int head = place / here, first = place % here;
    if (i >= ATOMS) {
      for (int c = first; c < HEAD_WIDTH; c += here) to[(head * HEAD_MIXED + c) * LANES + i] = (real)0;
    } else {
#if TEAM > 1
      mix<1>(m, head, i, first, to, [&](int j) { return m.p[pair_at(j, head, i, EACH(HEADS))]; });
#else
      mix<HEAD_WIDTH>(m, head, i, first, to, [&](int j) { return score_of(m, head, i, j); });
#endif
    }
    if (first == 0 && HEAD_MIXED > HEAD_WIDTH) to[(head * HEAD_MIXED + HEAD_WIDTH) * LANES + i] = (real)0;
  }
  __syncthreads();
}

// The block's heads of the attention on m.a, to `to`.
static __device__ __noinline__ void attend(const real* w, const Place place, const Linear qkv, real* to) {
  const State m = layout(place);
  const Range heads = own_heads(m, HEAD_ROWS);
  outputs(m, heads, w + qkv.forward, WIDTH, QKV, m.a, Bias{w + qkv.bias}, StoreFrom{m.work, heads.first});
  __syncthreads();
  attention(m, to);
}

// ---------------------------------------------------------------- the network

// Rows at the start of the layers: types, Gaussians of the neighbours, time.
static __device__ void embed(const Arguments& a, const Team& team, const State& m, int row) {
  const real* w = a.weights;
  read_positions(a.batch.x + (size_t)row * 3 * ATOMS, m.x);
  const real t = (real)a.batch.t[row];
  for (int k = threadIdx.x; k < TIMES; k += THREADS) {
    m.time[k] = silu(w[a.time_first.forward + k] * t + w[a.time_first.bias + k]);
  }
  FOR_ITEMS(k, atom, K)
    if (m.place.rank == 0 && atom >= ATOMS) m.far_neighbours[k * LANES + atom] = (real)0;
  __syncthreads();
  for (int i = m.place.rank; i < ATOMS; i += TEAM) edges(a, m, i);
  bring(team, m.far_neighbours, m.a, K);
#if TEAM > 1
  const int first = own(m, HEADS, EACH(HEADS)).first;
  FOR_ITEMS(pair, i, ATOMS * heads_here(m)) {
    const int head = pair / ATOMS, j = pair % ATOMS;
    m.bias[pair_at(j, head, i, EACH(HEADS))] = m.far_bias[pair_at(j, first + head, i, H)];
  }
#endif
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
  outputs(m, own_outputs(m, D), w + a.edge.forward, KERNELS, D, m.a, start, Store{far_rows(m, 0), LANES});
  bring(team, far_rows(m, 0), m.rows, D);
}

static __device__ __noinline__ void forward(const Arguments& a, const Team& team, const Place place, int row) {
  const State m = layout(place);
  const real* w = a.weights;
  const Range of_rows = own_outputs(m, D), of_hidden = own_outputs(m, F);
  embed(a, team, m, row);
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    normalise(w, m.place, layer.attention_norm, m.rows);
    attend(w, m.place, layer.qkv, m.far_mixed + own_heads(m, HEAD_MIXED).first * LANES);
    bring(team, m.far_mixed, m.a, MIXED);
    real* to = far_rows(m, 2 * l + 1);
    outputs(m, of_rows, w + layer.out.forward, MIXED, D, m.a, Residual{m.rows, w + layer.out.bias}, Store{to, LANES});
    bring(team, to, m.rows, D);
    normalise(w, m.place, layer.forward_norm, m.rows);
    outputs(m, of_hidden, w + layer.first.forward, WIDTH, F, m.a, Bias{w + layer.first.bias}, StoreSilu{m.far_hidden});
    bring(team, m.far_hidden, m.work, F);
    to = far_rows(m, 2 * l + 2);
    outputs(m, of_rows, w + layer.second.forward, FORWARD, D, m.work, Residual{m.rows, w + layer.second.bias}, Store{to, LANES});
    bring(team, to, m.rows, D);
  }
  normalise(w, m.place, a.final_norm, m.rows);
  outputs(m, of_rows, w + a.energy_first.forward, WIDTH, D, m.a, Bias{w + a.energy_first.bias}, Store{m.far_hidden, LANES});
  bring(team, m.far_hidden, m.work, D);
  if (m.place.rank > 0) return;
  // Σ_i e₂ silu(·), as WIDTH times a mean
  mean_of(m, m.y, [&](int d, int atom) { return w[a.energy_second.forward + 2 * d] * silu(m.work[d * LANES + atom]); });
  if (threadIdx.x == 0) {
    double energy = 0.0;
    for (int atom = 0; atom < ATOMS; ++atom) energy += (double)(WIDTH * m.y[atom] + w[a.energy_second.bias]);
    a.batch.f[row] = energy;
  }
  __syncthreads();
}

#if SCORE
#include "graphormer_back.cuh"
#endif

KERNEL(graphormer, Arguments) {
  const int block = blockIdx.x;
  const Team single = {block, 0, 1, (u32*)0, 0}, team = TEAM > 1 ? team_of(TEAM, a.batch.arrivals) : single;
  real* const far = a.batch.scratch + (size_t)team.index * TEAM * OF_BLOCK;
  real* const near = SCRATCH ? far + (size_t)TEAM * FAR + (size_t)team.rank * (OF_BLOCK - FAR) : (real*)0;
  const Place place = {near, far, team.rank};
  for (int row = team.index; row < a.batch.n; row += gridDim.x / TEAM) {
    forward(a, team, place, row);
#if SCORE
    backward(a, team, place, row);
#endif
  }
}
