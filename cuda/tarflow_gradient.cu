// ∇ₓ log q of TarFlow and its transferable relatives (equations in src/models/tarflow/mod.rs and transferable.rs): from
// the data to the prior, and back by reverse mode.
//
// A team of blocks takes one sample through the network, all its tokens at once. If there are enough samples to fill
// the card, a team is one block. Otherwise its blocks share the tiles of products, the lanes of normalisations and the
// sums of attention, and wait for each other.
//
// The rows of a layer that the backward pass needs are kept in global memory, [numbers][lanes], one token per lane, so
// only normalisations are computed twice. Tokens are seen only by later ones, so the lanes that fill up a group of
// four, after the last token that others need, are treated as tokens: nothing depends on them, and in the backward pass
// they have zeros.
//
// A product is computed in tiles of outputs and lanes; weights and rows are copied to shared memory DEPTH inputs at a
// time, the next ones while the previous ones are in use. The backward pass reads the same weights. A sum over inputs
// is in their order, in teams of any size and for any HIGH (outputs per thread: few, so that a team has enough tiles,
// or many, for a full card), so a row's bits depend on neither.
#include "tarflow.cuh"

// Lanes per thread, and lanes read at once.
#define GROUP 4
// Distance between numbers of neighbouring threads in a warp's lane.
#define APART (32 / GROUP)
#define MOST(a, b) ((a) > (b) ? (a) : (b))
// Inputs of a product that are in shared memory at once, and the threads that copy one of them.
#define DEPTH (64 / (int)sizeof(real))
#define BRINGING (THREADS / DEPTH)
// Largest tile: columns of threads, and groups of lanes.
#define MOST_COLUMNS 64
#define MOST_ACROSS 8
// Row lengths in shared memory. Four words more than there are outputs, so that transposed writes do not all fall into
// the same banks.
#define NEAR_OUTPUTS (HIGH * MOST_COLUMNS + 4)
#define NEAR_LANES (GROUP * MOST_ACROSS)
#define NEAR (DEPTH * (NEAR_OUTPUTS + NEAR_LANES))

struct Arguments {
  const real* weights;
  const Stage* stages;
  const Layer* layers;  // [stages][LAYERS]
  const int* orders;    // [stages][tokens]
  double* x;            // [n][tokens][SIZE], replaced by z
  double* gradient;     // of log q with respect to x
  double* log_det;      // [n]
  double* path;         // a team's x before each stage, [stages][tokens][SIZE], one team after another
  real* scratch;        // the teams' states, one after another
  u32* arrivals;        // [teams], initially zero
  int n, tokens, n_stages;
  int blocks;  // per team
  int lanes;   // tokens that others need, rounded up to whole groups
  int across;  // groups of lanes in a tile
};

// ---------------------------------------------------------------- state

#define KEPT_ROWS ((5 + ADAPTIVE + 2 * QK_NORMS + TRANSITION) * CHANNELS + (1 + 2 * TRANSITION) * HIDDEN)
#define WIDEST MOST(3 * CHANNELS, (1 + TRANSITION) * HIDDEN)

// Rows of a layer: its input y, A(y), queries, keys and values, the first two normalised, the input of the perceptron,
// its hidden numbers before gelu, the input of the transition, its values and gates in turn; and p_ij of attention,
// [HEADS][tokens j][lanes i].
struct Kept { real *y, *inner, *qkv, *normed, *after, *hidden, *middle, *into, *p; };

// Arrays of [numbers][lanes] at fixed offsets from the address of the team's memory.
struct State {
  real* of_team;
  int lanes;
  __device__ real* row(size_t rows) const { return of_team + rows * lanes; }
  __device__ real* flow() const { return row(0); }                       // y after the last layer; cotangents of y
  __device__ real* branch() const { return row(CHANNELS); }              // cotangents of w
  __device__ real* normal() const { return row(2 * CHANNELS); }          // input of a product, or its result in the backward pass
  __device__ real* mixed() const { return row(3 * CHANNELS); }           // output of attention
  __device__ real* wide() const { return row(4 * CHANNELS); }            // hidden numbers, and all cotangents of the same size
  __device__ real* g_output() const { return row(4 * CHANNELS + WIDEST); }
  __device__ real* g_p() const { return row(4 * CHANNELS + WIDEST + 2 * SIZE); }
  __device__ size_t shared_rows() const { return 4 * CHANNELS + WIDEST + 2 * SIZE + (size_t)HEADS * lanes; }
  __device__ size_t layer_rows() const { return KEPT_ROWS + (size_t)HEADS * lanes; }
  __device__ size_t stage_rows() const { return LAYERS * layer_rows() + 2 * SIZE; }
  __device__ real* output(int stage) const { return row(shared_rows() + stage * stage_rows()); }  // [a, b]
  __device__ Kept kept(int stage, int l) const {
    Kept k;
    k.y = row(shared_rows() + stage * stage_rows() + 2 * SIZE + l * layer_rows());
    k.inner = k.y + CHANNELS * lanes;
    k.qkv = k.inner + ADAPTIVE * CHANNELS * lanes;
    k.normed = k.qkv + 3 * CHANNELS * lanes;
    k.after = k.normed + 2 * QK_NORMS * CHANNELS * lanes;
    k.hidden = k.after + CHANNELS * lanes;
    k.middle = k.hidden + HIDDEN * lanes;
    k.into = k.middle + TRANSITION * CHANNELS * lanes;
    k.p = k.into + 2 * TRANSITION * HIDDEN * lanes;
    return k;
  }
};

// Arguments of all functions: the tables, the team's memory, and the team.
struct Work {
  const Arguments& a;
  const State& m;
  const Team& team;
};

// Loops over items divided among the team's threads.
#define FOR_TEAM(item, count) \
  for (int item = w.team.rank * THREADS + threadIdx.x; item < (count); item += w.team.blocks * THREADS)

static __device__ Four four_of(const real* rows) { return *(const Four*)rows; }
static __device__ void put(real* rows, Four value) { *(Four*)rows = value; }

// Conditioning of a token in a block of the flow: a number of [tokens][CHANNELS].
static __device__ real given(const Arguments& a, int place, int lane, int d) {
  return a.weights[place + LEAST(lane, a.tokens - 1) * CHANNELS + d];
}

// ---------------------------------------------------------------- products

static __device__ int columns_of(const Arguments& a) { return LEAST(THREADS / a.across / 2 * 2, MOST_COLUMNS); }

struct alignas(HIGH * sizeof(real)) High { real v[HIGH]; };

// A product with given numbers of inputs and outputs: W x, or Wᵀ x in the backward pass.
struct Product {
  Linear layer;
  int inputs, outputs;
};

// Prefetches inputs from k on: their weights for outputs from `first` on, their rows in lanes from `start` on.
template <bool BACK>
static __device__ void ask(const Work& w, const Product& of, const real* x, real* near, int k, int first, int start) {
  const int outputs = LEAST(HIGH * columns_of(w.a), of.outputs - first), lanes = LEAST(GROUP * w.a.across, w.m.lanes - start);
  const int row = threadIdx.x / BRINGING, place = threadIdx.x % BRINGING;
  const real* const weights = w.a.weights + of.layer.weight;
  if (k + row < of.inputs) {
    const real* const rows = x + (k + row) * w.m.lanes + start;
    real* const to = near + DEPTH * NEAR_OUTPUTS + row * NEAR_LANES;
    for (int lane = 2 * place; lane < lanes; lane += 2 * BRINGING) COPY_LATER((Two*)(to + lane), (const Two*)(rows + lane));
    const real* const from = weights + (size_t)(k + row) * EVEN(of.outputs) + first;
    for (int o = 2 * place; !BACK && o < outputs; o += 2 * BRINGING) COPY_LATER((Two*)(near + row * NEAR_OUTPUTS + o), (const Two*)(from + o));
  }
  // here neighbours in the matrix are inputs
  const int input = threadIdx.x % DEPTH;
  for (int o = threadIdx.x / DEPTH; BACK && k + input < of.inputs && o < outputs; o += BRINGING)
    COPY_LATER(near + input * NEAR_OUTPUTS + o, weights + (size_t)(first + o) * EVEN(of.inputs) + k + input);
}

// The shared memory in use in this turn.
static __device__ real* near(int turn) { return (real*)of_block() + turn * NEAR; }

static __device__ void add(Four* sum, const real* near, int inputs, int o, int lane) {
#pragma unroll 4
  for (int i = 0; i < inputs; ++i) {
    const High weight = *(const High*)(near + i * NEAR_OUTPUTS + o);
    const Four x = four_of(near + DEPTH * NEAR_OUTPUTS + i * NEAR_LANES + lane);
#pragma unroll
    for (int h = 0; h < HIGH; ++h)
#pragma unroll
      for (int r = 0; r < GROUP; ++r) sum[h].v[r] += weight.v[h] * x.v[r];
  }
}

// finish(o, lane, sum) takes the sums of an output in four lanes, without a bias.
template <bool BACK, class Finish>
static __device__ void product(const Work& w, const Product& of, const real* x, const Finish& finish) {
  const int columns = columns_of(w.a), outputs = HIGH * columns, wide = GROUP * w.a.across;
  const int stripes = (w.m.lanes + wide - 1) / wide, tiles = stripes * ((of.outputs + outputs - 1) / outputs);
  const int column = threadIdx.x / w.a.across, o = HIGH * column, lane = GROUP * (threadIdx.x % w.a.across);
  for (int tile = w.team.rank; tile < tiles; tile += w.team.blocks) {
    const int first = tile / stripes * outputs, start = tile % stripes * wide;
    const bool works = column < columns && first + o < of.outputs && start + lane < w.m.lanes;
    Four sum[HIGH] = {};
    __syncthreads();
    ask<BACK>(w, of, x, near(0), 0, first, start);
    for (int k = 0; k < of.inputs; k += DEPTH) {
      ARRIVED();
      __syncthreads();
      const int turn = k / DEPTH % 2;
      if (k + DEPTH < of.inputs) ask<BACK>(w, of, x, near(1 - turn), k + DEPTH, first, start);
      if (works) add(sum, near(turn), LEAST(DEPTH, of.inputs - k), o, lane);
    }
#pragma unroll
    for (int h = 0; h < HIGH; ++h)
      if (works && first + o + h < of.outputs) finish(first + o + h, start + lane, sum[h]);
  }
}

// W x + b; finish(o, lane, r, value) takes one lane, `lane` being that of the group and r the index within it.
template <class Finish>
static __device__ void forward(const Work& w, const Product& of, const real* x, real* to, const Finish& finish) {
  product<false>(w, of, x, [&](int o, int lane, Four sum) {
    const real bias = w.a.weights[of.layer.bias + o];
    real* const place = to + o * w.m.lanes + lane;
#pragma unroll
    for (int r = 0; r < GROUP; ++r) sum.v[r] = finish(o, lane + r, sum.v[r] + bias);
    put(place, sum);
  });
  meet(w.team);
}

// Wᵀ x.
template <class Finish>
static __device__ void backward(const Work& w, const Product& of, const real* x, real* to, const Finish& finish) {
  product<true>(w, of, x, [&](int o, int lane, Four sum) {
#pragma unroll
    for (int r = 0; r < GROUP; ++r) sum.v[r] = finish(o, lane + r, sum.v[r]);
    put(to + o * w.m.lanes + lane, sum);
  });
  meet(w.team);
}

struct AsItIs { __device__ real operator()(int, int, real sum) const { return sum; } };

// ---------------------------------------------------------------- normalisation, one warp per four lanes

// Calls work(lane) by the threads of each lane, which share its channels.
template <class Each>
static __device__ void for_lanes(const Work& w, const Each& each) {
  const int worker = w.team.rank * WARPS + threadIdx.x / 32, workers = w.team.blocks * WARPS;
  for (int group = worker; group < w.m.lanes / GROUP; group += workers) each(GROUP * group + (int)threadIdx.x % GROUP);
  meet(w.team);
}
#define FOR_CHANNELS(d) for (int d = threadIdx.x % 32 / GROUP; d < CHANNELS; d += APART)

template <class Term>
static __device__ real mean_of(const Term& term) {
  real sum = (real)0;
#pragma unroll 4
  FOR_CHANNELS(d) sum += term(d);
  for (int bits = GROUP; bits < 32; bits *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  return sum / CHANNELS;
}

// (x − mean) / √(variance + ε) of a lane of rows.
struct Standard {
  const real* rows;
  int lanes;
  real mean, inverse;
  __device__ Standard(const Work& w, const real* of, int lane) : rows(of + lane), lanes(w.m.lanes) {
    mean = mean_of([&](int d) { return rows[d * lanes]; });
    const real variance = mean_of([&](int d) { return (rows[d * lanes] - mean) * (rows[d * lanes] - mean); });
    inverse = (real)1 / sqrt(variance + EPSILON);
  }
  __device__ real operator()(int d) const { return (rows[d * lanes] - mean) * inverse; }
};

// A layer norm of a lane, and an adaptive one.
static __device__ void normalise(const Work& w, const Norm& norm, const real* rows, real* to, int lane) {
  const Standard x(w, rows, lane);
  FOR_CHANNELS(d) to[d * w.m.lanes + lane] = x(d) * w.a.weights[norm.weight + d] + w.a.weights[norm.bias + d];
}
static __device__ void normalise(const Work& w, const Modulation& by, const real* rows, real* to, int lane) {
  const Standard x(w, rows, lane);
  FOR_CHANNELS(d) to[d * w.m.lanes + lane] = x(d) * given(w.a, by.gamma, lane, d) + given(w.a, by.beta, lane, d);
}

// Backward pass: g(d) are the cotangents of the normalised values times their factor, put(d, value) takes those of
// rows.
template <class Cotangent, class Put>
static __device__ void through(const Work& w, const real* rows, int lane, const Cotangent& g, const Put& put) {
  const Standard x(w, rows, lane);
  const real mean = mean_of(g), along = mean_of([&](int d) { return g(d) * x(d); });
  FOR_CHANNELS(d) put(d, x.inverse * (g(d) - mean - x(d) * along));
}
static __device__ void add_through(const Work& w, const Norm& norm, const real* rows, const real* g, real* to, int lane) {
  through(w, rows, lane, [&](int d) { return g[d * w.m.lanes + lane] * w.a.weights[norm.weight + d]; },
          [&](int d, real value) { to[d * w.m.lanes + lane] += value; });
}
static __device__ void add_through(const Work& w, const Modulation& by, const real* rows, const real* g, real* to, int lane) {
  through(w, rows, lane, [&](int d) { return g[d * w.m.lanes + lane] * given(w.a, by.gamma, lane, d); },
          [&](int d, real value) { to[d * w.m.lanes + lane] += value; });
}

// The cotangents of w in y += w times the gate.
static __device__ void gate(const Work& w, const Modulation& by, real* to) {
  const real* const g = w.m.flow();
  for_lanes(w, [&](int lane) { FOR_CHANNELS(d) to[d * w.m.lanes + lane] = g[d * w.m.lanes + lane] * given(w.a, by.gate, lane, d); });
}

// ---------------------------------------------------------------- attention

// Index of four lanes i in [HEADS][tokens j][lanes i].
static __device__ size_t pair_at(const Work& w, int head, int j, int lane) { return ((size_t)head * w.m.lanes + j) * w.m.lanes + lane; }

// factor Σ_c x_ci y_cj of each head, for tokens j up to the last of each four i.
static __device__ void compare(const Work& w, const real* x, const real* y, real factor, real* to) {
  x = IN_GLOBAL(x);
  y = IN_GLOBAL(y);
  const int lanes = w.m.lanes, groups = lanes / GROUP;
  FOR_TEAM(item, HEADS * lanes * groups) {
    const int lane = item % groups * GROUP, j = item / groups % lanes, head = item / (groups * lanes);
    if (j >= lane + GROUP) continue;
    Four sum = {};
#pragma unroll 4
    for (int c = head * WIDTH; c < (head + 1) * WIDTH; ++c) {
      const Four of_i = four_of(x + c * lanes + lane);
      const real of_j = y[c * lanes + j];
#pragma unroll
      for (int r = 0; r < GROUP; ++r) sum.v[r] += of_i.v[r] * of_j;
    }
#pragma unroll
    for (int r = 0; r < GROUP; ++r) sum.v[r] *= factor;
    put(to + pair_at(w, head, j, lane), sum);
  }
  meet(w.team);
}

// to_ci = Σ_j s_ij y_cj; s is zero where j is after i, within the group of four of i.
static __device__ void mix(const Work& w, const real* s, const real* y, real* to) {
  s = IN_GLOBAL(s);
  y = IN_GLOBAL(y);
  const int lanes = w.m.lanes, groups = lanes / GROUP;
  FOR_TEAM(item, CHANNELS * groups) {
    const int lane = item % groups * GROUP, c = item / groups;
    Four sum = {};
#pragma unroll 4
    for (int j = 0; j < lane + GROUP; ++j) {
      const Four of_i = four_of(s + pair_at(w, c / WIDTH, j, lane));
      const real of_j = y[c * lanes + j];
#pragma unroll
      for (int r = 0; r < GROUP; ++r) sum.v[r] += of_i.v[r] * of_j;
    }
    put(to + c * lanes + lane, sum);
  }
}

// to_cj = Σ_i s_ij x_ci.
static __device__ void mix_back(const Work& w, const real* s, const real* x, real* to) {
  s = IN_GLOBAL(s);
  x = IN_GLOBAL(x);
  const int lanes = w.m.lanes, groups = lanes / GROUP;
  FOR_TEAM(item, CHANNELS * groups) {
    const int lane = item % groups * GROUP, c = item / groups;
    Four sum = {};
#pragma unroll 2
    for (int i = lane; i < lanes; i += GROUP) {
      const Four of_i = four_of(x + c * lanes + i);
#pragma unroll
      for (int r = 0; r < GROUP; ++r) {
        const Four weight = four_of(s + pair_at(w, c / WIDTH, lane + r, i));
#pragma unroll
        for (int k = 0; k < GROUP; ++k) sum.v[r] += weight.v[k] * of_i.v[k];
      }
    }
    put(to + c * lanes + lane, sum);
  }
}

// Softmax of the scores of a token i in a head; zero for tokens j after it.
static __device__ void soften(const Work& w, real* p) {
  const int lanes = w.m.lanes;
  FOR_TEAM(item, HEADS * lanes) {
    const int i = item % lanes;
    real* const of_i = p + pair_at(w, item / lanes, 0, i);
    real top = of_i[0], total = (real)0;
#pragma unroll 8
    for (int j = 1; j <= i; ++j) top = of_i[j * lanes] > top ? of_i[j * lanes] : top;
#pragma unroll 4
    for (int j = 0; j <= i; ++j) {
      const real e = exp(of_i[j * lanes] - top);
      of_i[j * lanes] = e;
      total += e;
    }
#pragma unroll 8
    for (int j = 0; j <= i / GROUP * GROUP + GROUP - 1; ++j) of_i[j * lanes] = j <= i ? of_i[j * lanes] / total : (real)0;
  }
  meet(w.team);
}

// Replaces cotangents g_ij of p_ij by those of the scores, times the factor: p_ij (g_ij − Σ_k p_ik g_ik).
static __device__ void soften_back(const Work& w, const real* p, real factor, real* g) {
  const int lanes = w.m.lanes;
  FOR_TEAM(item, HEADS * lanes) {
    const int i = item % lanes, seen = i / GROUP * GROUP + GROUP;
    const size_t at = pair_at(w, item / lanes, 0, i);
    real sum = (real)0;
#pragma unroll 8
    for (int j = 0; j < seen; ++j) sum += p[at + j * lanes] * g[at + j * lanes];
#pragma unroll 8
    for (int j = 0; j < seen; ++j) g[at + j * lanes] = factor * p[at + j * lanes] * (g[at + j * lanes] - sum);
  }
  meet(w.team);
}

static __device__ real factor_of_scores() { return (real)1 / sqrt((real)WIDTH); }

static __device__ __noinline__ void attention(const Work& w, const Kept& k, const Layer& layer) {
  if (QK_NORMS) {
    for_lanes(w, [&](int lane) {
      normalise(w, layer.query_norm, k.qkv, k.normed, lane);
      normalise(w, layer.key_norm, k.qkv + CHANNELS * w.m.lanes, k.normed + CHANNELS * w.m.lanes, lane);
    });
  }
  const real* const q = QK_NORMS ? k.normed : k.qkv;
  compare(w, q, q + CHANNELS * w.m.lanes, factor_of_scores(), k.p);
  soften(w, k.p);
  mix(w, k.p, k.qkv + 2 * CHANNELS * w.m.lanes, w.m.mixed());
  meet(w.team);
}

// From cotangents in `mixed` to those of queries, keys and values in `wide`.
static __device__ __noinline__ void attention_back(const Work& w, const Kept& k, const Layer& layer) {
  const int part = CHANNELS * w.m.lanes;
  const real* const q = QK_NORMS ? k.normed : k.qkv;
  real* const g = w.m.wide();
  compare(w, w.m.mixed(), k.qkv + 2 * part, (real)1, w.m.g_p());
  soften_back(w, k.p, factor_of_scores(), w.m.g_p());
  mix(w, w.m.g_p(), q + part, g);
  mix_back(w, w.m.g_p(), q, g + part);
  mix_back(w, k.p, w.m.mixed(), g + 2 * part);
  meet(w.team);
  if (!QK_NORMS) return;
  for_lanes(w, [&](int lane) {
    for (int which = 0; which < 2; ++which) {
      const Norm& norm = which == 0 ? layer.query_norm : layer.key_norm;
      real* const of = g + which * part + lane;
      through(w, k.qkv + which * part, lane, [&](int d) { return of[d * w.m.lanes] * w.a.weights[norm.weight + d]; },
              [&](int d, real value) { of[d * w.m.lanes] = value; });
    }
  });
}

// ---------------------------------------------------------------- layers

static __device__ real gelu_slope(real x) {
  return (real)0.5 * erfc(-x / (real)SQRT_2) + x * exp((real)-0.5 * x * x) * (real)0.39894228040143267794;
}
static __device__ real silu_slope(real x) {
  const real s = (real)1 / ((real)1 + exp(-x));
  return s * ((real)1 + x * ((real)1 - s));
}

// y += O attention(LN(y)), y += F₂ gelu(F₁ LN(y)) to `next`, or with w = A(y) in place of y, and y + w times the gate.
static __device__ __noinline__ void attend(const Work& w, const Kept& k, const Stage& flow, const Layer& layer, int l, real* next) {
  const int lanes = w.m.lanes;
  real* const rows = ADAPTIVE ? k.inner : k.y;
  for_lanes(w, [&](int lane) {
    if (ADAPTIVE) normalise(w, layer.attention, k.y, k.inner, lane);
    normalise(w, layer.attention_norm, rows, w.m.normal(), lane);
  });
  forward(w, Product{layer.qkv, CHANNELS, 3 * CHANNELS}, w.m.normal(), k.qkv, AsItIs{});
  attention(w, k, layer);
  forward(w, Product{layer.out, CHANNELS, CHANNELS}, w.m.mixed(), k.after,
          [&](int o, int lane, real value) { return rows[o * lanes + lane] + value; });
  for_lanes(w, [&](int lane) { normalise(w, layer.forward_norm, k.after, w.m.normal(), lane); });
  forward(w, Product{layer.first, CHANNELS, HIDDEN}, w.m.normal(), w.m.wide(), [&](int o, int lane, real value) {
    k.hidden[o * lanes + lane] = value;
    return gelu(value);
  });
  forward(w, Product{layer.second, HIDDEN, CHANNELS}, w.m.wide(), next, [&](int o, int lane, real value) {
    const real sum = k.after[o * lanes + lane] + value;
    if (ADAPTIVE) return k.y[o * lanes + lane] + given(w.a, layer.attention.gate, lane, o) * sum;
    return CONDITIONS && l + 1 < LAYERS ? sum + given(w.a, flow.condition, lane, o) : sum;  // the next layer begins with it
  });
}

// Replaces the cotangents of a layer's output, in `flow`, by those of its input y.
static __device__ __noinline__ void attend_back(const Work& w, const Kept& k, const Layer& layer) {
  const int lanes = w.m.lanes;
  real* const g = ADAPTIVE ? w.m.branch() : w.m.flow();
  if (ADAPTIVE) gate(w, layer.attention, g);
  backward(w, Product{layer.second, CHANNELS, HIDDEN}, g, w.m.wide(),
           [&](int o, int lane, real sum) { return sum * gelu_slope(k.hidden[o * lanes + lane]); });
  backward(w, Product{layer.first, HIDDEN, CHANNELS}, w.m.wide(), w.m.normal(), AsItIs{});
  for_lanes(w, [&](int lane) { add_through(w, layer.forward_norm, k.after, w.m.normal(), g, lane); });
  backward(w, Product{layer.out, CHANNELS, CHANNELS}, g, w.m.mixed(), AsItIs{});
  attention_back(w, k, layer);
  backward(w, Product{layer.qkv, 3 * CHANNELS, CHANNELS}, w.m.wide(), w.m.normal(), AsItIs{});
  for_lanes(w, [&](int lane) {
    add_through(w, layer.attention_norm, ADAPTIVE ? k.inner : k.y, w.m.normal(), g, lane);
    if (ADAPTIVE) add_through(w, layer.attention, k.y, g, w.m.flow(), lane);
  });
}

// y + σ(G′ c) T (silu(w V) (w U)) to `next`, w = A′(y).
static __device__ __noinline__ void transition(const Work& w, const Kept& k, const Layer& layer, real* next) {
  const int lanes = w.m.lanes;
  for_lanes(w, [&](int lane) { normalise(w, layer.transition, k.middle, w.m.normal(), lane); });
  forward(w, Product{layer.into, CHANNELS, 2 * HIDDEN}, w.m.normal(), k.into, AsItIs{});
  FOR_TEAM(item, HIDDEN * lanes) {
    const real* const value = k.into + item / lanes * 2 * lanes + item % lanes;
    w.m.wide()[item] = silu(value[lanes]) * value[0];
  }
  meet(w.team);
  forward(w, Product{layer.back, HIDDEN, CHANNELS}, w.m.wide(), next, [&](int o, int lane, real value) {
    return k.middle[o * lanes + lane] + given(w.a, layer.transition.gate, lane, o) * value;
  });
}

static __device__ __noinline__ void transition_back(const Work& w, const Kept& k, const Layer& layer) {
  const int lanes = w.m.lanes;
  gate(w, layer.transition, w.m.branch());
  product<true>(w, Product{layer.back, CHANNELS, HIDDEN}, w.m.branch(), [&](int o, int lane, Four sum) {
    const int at = 2 * o * lanes + lane;
    const Four value = four_of(k.into + at), gate = four_of(k.into + at + lanes);
    Four g_value, g_gate;
#pragma unroll
    for (int r = 0; r < GROUP; ++r) {
      g_value.v[r] = sum.v[r] * silu(gate.v[r]);
      g_gate.v[r] = sum.v[r] * value.v[r] * silu_slope(gate.v[r]);
    }
    put(w.m.wide() + at, g_value);
    put(w.m.wide() + at + lanes, g_gate);
  });
  meet(w.team);
  backward(w, Product{layer.into, 2 * HIDDEN, CHANNELS}, w.m.wide(), w.m.normal(), AsItIs{});
  for_lanes(w, [&](int lane) { add_through(w, layer.transition, k.middle, w.m.normal(), w.m.flow(), lane); });
}

// ---------------------------------------------------------------- the flow

// Data of a sample: x on its way to z, and the gradient of log q on its way back, by position; x before each stage.
struct Sample { double *x, *gradient, *log_det, *path; };

// Number k of the i-th token that a stage sees.
static __device__ int place_of(const Arguments& a, const Stage& flow, int i, int k) { return a.orders[flow.order + i] * SIZE + k; }

// W u plus the tokens' conditioning.
static __device__ void enter(const Work& w, const Stage& flow, const double* x, real* y) {
  const int lanes = w.m.lanes;
  FOR_TEAM(item, CHANNELS * lanes) {
    const int d = item / lanes, lane = item % lanes;
    real sum = w.a.weights[flow.into.bias + d] + given(w.a, flow.positions, lane, d);
    if (CONDITIONS && !ADAPTIVE) sum += given(w.a, flow.condition, lane, d);
    for (int k = 0; lane < w.a.tokens - 1 && k < SIZE; ++k)
      sum += w.a.weights[flow.into.weight + k * EVEN(CHANNELS) + d] * (real)x[place_of(w.a, flow, lane, k)];
    y[item] = sum;
  }
  meet(w.team);
}

// v = (u − b) e^{−a} of all tokens, by the team's first block; u is left in `path`.
static __device__ void follow(const Work& w, const Stage& flow, const real* output, const Sample& s, double* path) {
  const int n = w.a.tokens * SIZE;
  for (int item = threadIdx.x; w.team.rank == 0 && item < n; item += THREADS) {
    const int k = item % SIZE, i = item / SIZE, place = place_of(w.a, flow, i, k);
    const double u = s.x[place];
    path[place] = u;
    if (i == 0) continue;
    const double scale = (double)output[k * w.m.lanes + i - 1], shift = (double)output[(SIZE + k) * w.m.lanes + i - 1];
    s.x[place] = (u - shift) * exp(-scale);
  }
  if (w.team.rank == 0 && threadIdx.x < 32) {
    double sum = 0.0;
    for (int item = threadIdx.x; item < n - SIZE; item += 32) sum -= (double)output[item % SIZE * w.m.lanes + item / SIZE];
    sum = sum_of_warp(sum);
    if (threadIdx.x == 0) *s.log_det += sum;
  }
  meet(w.team);
}

// From cotangents of v to those of u, where it appears explicitly, and of [a, b]: ln|∂v/∂u| = −Σ a.
static __device__ void follow_back(const Work& w, const Stage& flow, const real* output, const Sample& s, const double* path) {
  const int lanes = w.m.lanes;
  real* const g = w.m.g_output();
  for (int item = threadIdx.x; w.team.rank == 0 && item < lanes * SIZE; item += THREADS) {
    const int k = item % SIZE, lane = item / SIZE, i = lane + 1;
    real of_scale = (real)0, of_shift = (real)0;
    if (i < w.a.tokens) {
      const int place = place_of(w.a, flow, i, k);
      const double factor = exp(-(double)output[k * lanes + lane]), shift = (double)output[(SIZE + k) * lanes + lane];
      const double of_u = s.gradient[place] * factor;
      of_scale = (real)(-of_u * (path[place] - shift) - 1.0);
      of_shift = (real)-of_u;
      s.gradient[place] = of_u;
    }
    g[k * lanes + lane] = of_scale;
    g[(SIZE + k) * lanes + lane] = of_shift;
  }
  meet(w.team);
}

static __device__ __noinline__ void to_prior(const Work& w, int stage, const Sample& s) {
  const Stage& flow = w.a.stages[stage];
  enter(w, flow, s.x, w.m.kept(stage, 0).y);
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = w.a.layers[stage * LAYERS + l];
    const Kept k = w.m.kept(stage, l);
    real* const next = l + 1 < LAYERS ? w.m.kept(stage, l + 1).y : w.m.flow();
    attend(w, k, flow, layer, l, TRANSITION ? k.middle : next);
    if (TRANSITION) transition(w, k, layer, next);
  }
  forward(w, Product{flow.out, CHANNELS, 2 * SIZE}, w.m.flow(), w.m.output(stage), AsItIs{});
  follow(w, flow, w.m.output(stage), s, s.path + (size_t)stage * w.a.tokens * SIZE);
}

static __device__ __noinline__ void to_data(const Work& w, int stage, const Sample& s) {
  const Stage& flow = w.a.stages[stage];
  follow_back(w, flow, w.m.output(stage), s, s.path + (size_t)stage * w.a.tokens * SIZE);
  backward(w, Product{flow.out, 2 * SIZE, CHANNELS}, w.m.g_output(), w.m.flow(), AsItIs{});
  for (int l = LAYERS - 1; l >= 0; --l) {
    const Layer& layer = w.a.layers[stage * LAYERS + l];
    const Kept k = w.m.kept(stage, l);
    if (TRANSITION) transition_back(w, k, layer);
    attend_back(w, k, layer);
  }
  product<true>(w, Product{flow.into, CHANNELS, SIZE}, w.m.flow(), [&](int k, int lane, Four sum) {
    for (int r = 0; r < GROUP; ++r)
      if (lane + r < w.a.tokens - 1) s.gradient[place_of(w.a, flow, lane + r, k)] += (double)sum.v[r];
  });
  meet(w.team);
}

KERNEL(tarflow_gradient, Arguments) {
  const Team team = team_of(a.blocks, a.arrivals);
  State m = {a.scratch, a.lanes};
  m.of_team += team.index * (m.shared_rows() + a.n_stages * m.stage_rows()) * a.lanes;
  const Work w = {a, m, team};
  const size_t size = (size_t)a.tokens * SIZE;
  for (int row = team.index; row < a.n; row += gridDim.x / a.blocks) {
    const Sample s = {a.x + row * size, a.gradient + row * size, a.log_det + row, a.path + team.index * a.n_stages * size};
    if (team.rank == 0 && threadIdx.x == 0) *s.log_det = 0.0;
    for (int stage = 0; stage < a.n_stages; ++stage) to_prior(w, stage, s);
    // from the prior
    for (int item = threadIdx.x; team.rank == 0 && item < (int)size; item += THREADS) s.gradient[item] = -s.x[item];
    __syncthreads();
    for (int stage = a.n_stages - 1; stage >= 0; --stage) to_data(w, stage, s);
  }
}
