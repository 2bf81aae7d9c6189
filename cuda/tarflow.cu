// TarFlow and its transferable kin (src/models/tarflow/mod.rs and transferable.rs have the equations): from the data to the prior, and
// back token after token with the keys and values of the tokens before kept.
//
// A team of blocks takes LANES rows through the network: on the way to the data one token of so many samples, on the way to
// the prior so many tokens of one sample. Both are the same work, since a row needs of others only the keys and values of the
// tokens up to its own. Where there are rows enough to fill the card a team is one block. Otherwise its blocks share out the
// outputs of each product and wait for each other, so that the whole card reads the weights for a single sample.
//
// A product reads each weight once for all lanes, from the L2 cache, which the weights of one block of the flow fit into. Its input is
// staged in shared memory; outputs, keys and values lie in memory of the team's own, which is as near.
//
// Two variants: 16 lanes and PAIRS 16, for a card that is full; 8 lanes and PAIRS 8, for teams. A sum over inputs is of SLICES
// parts, four of which make a group, in an order that is the same in both, so a row's bits depend on neither variant nor team.
//
// Sizes are those of one model: SIZE (numbers of a token), CHANNELS, HEADS, HIDDEN, LAYERS (of a block of the flow, a `Stage` here);
// QK_NORMS, CONDITIONS, ADAPTIVE and TRANSITION say what a transferable one has beside.
#define RESIDENT 512
#include "common.cuh"

#define WIDTH (CHANNELS / HEADS)
#define WARPS (THREADS / 32)
#define SLICES 32
#define GROUP 4
#define EIGHTS (LANES / 8)
// Reads of weights that a thread waits for at once, as there are registers: a team has little else to do meanwhile.
constexpr int DEPTH = LANES > 8 || CHANNELS > 256 ? 4 : 8;
// Parts of sums in attention: a block that has a row and head to itself shares them out among its threads, a warp that has one takes
// one after the other.
#define QUARTERS 4
#define QUARTER ((WIDTH + QUARTERS - 1) / QUARTERS)
#define BY_BLOCK (LANES == 8)
// A function that would want registers of what calls it.
#if LANES == 8
#define APART __noinline__
#else
#define APART
#endif
// Slices of a thread: those of a group, or one.
#define OWN (SLICES * PAIRS * EIGHTS / THREADS)
// Parts of a sum over the channels of a lane.
#define PARTS 16
#define EPSILON (real)1e-5
#define LEAST(a, b) ((a) < (b) ? (a) : (b))

// Places in `weights`: a linear layer, [in][out] with out even, and its bias; a layer normalisation; an adaptive one and its gate,
// [tokens][CHANNELS] each.
struct Linear { int weight, bias; };
struct Norm { int weight, bias; };
struct Modulation { int gamma, beta, gate; };
struct Layer {
  Norm attention_norm, forward_norm, query_norm, key_norm;
  Linear qkv, out, first, second, into, back;  // the last two of the transition; outputs of `into` are a value and its gate in turn
  Modulation attention, transition;
};
struct Stage {
  Linear into, out;
  int positions, condition;  // [tokens][CHANNELS]
  int order;                 // in `orders`
  int padding;
};

struct Arguments {
  const real* weights;
  const Stage* stages;
  const Layer* layers;  // [stages][LAYERS]
  const int* orders;    // [stages][tokens]
  double* x;            // [n][tokens][SIZE], replaced by what comes out
  double* log_det;      // [n], of the direction that is gone
  real* scratch;        // a team's state after the other
  u32* arrivals;        // [teams], zero
  int n, tokens, n_stages;
  int encode;  // else decode
  int blocks;  // of a team
  int padding;
};

// ---------------------------------------------------------------- state

// Numbers of a thread in a product, two outputs of eight lanes; odd, so that neighbours' are in different banks.
#define VALUES 17

// Two addresses, and arrays at fixed distances from them, which take no registers. Arrays are [numbers][LANES] unless said otherwise.
struct State {
  real *of_team, *shared;
  __device__ real* y() const { return of_team; }
  __device__ real* inner() const { return y() + CHANNELS * LANES; }
  __device__ real* qkv() const { return inner() + CHANNELS * LANES; }
  __device__ real* mixed() const { return qkv() + 3 * CHANNELS * LANES; }
  __device__ real* hidden() const { return mixed() + CHANNELS * LANES; }
  // Keys [LAYERS][samples][HEADS][WIDTH][tokens], and after those of each head its values [tokens][WIDTH].
  __device__ real* kept() const { return hidden() + HIDDEN * LANES; }

  __device__ real* sums() const { return shared; }                       // [2][PARTS][LANES]
  __device__ real* output() const { return sums() + 2 * PARTS * LANES; }
  __device__ real* partial() const { return output() + 2 * SIZE * LANES; }  // [THREADS][VALUES]
  // What is staged, and in its place what attention needs, [WARPS][WIDTH + tokens].
  __device__ real* x() const { return partial() + THREADS * VALUES; }
};

static __device__ int samples_of(const Arguments& a) { return a.encode ? 1 : LANES; }

// Numbers of a team's state.
static __device__ size_t size_of(const Arguments& a) {
  const size_t kept = (size_t)LAYERS * samples_of(a) * 2 * CHANNELS * a.tokens;
  return (size_t)(6 * CHANNELS + HIDDEN) * LANES + (kept + 7) / 8 * 8;
}

// The rows at hand: tile and step, and what a lane is in them. A lane that is not live has zeros, and is nobody's.
struct At { int tile, step; };
struct Row { int sample, token; bool live; };

static __device__ Row row_of(const Arguments& a, const At& at, int lane) {
  const int sample = a.encode ? at.tile : at.tile * LANES + lane;
  const int token = a.encode ? at.step * LANES + lane : at.step;
  const bool live = sample < a.n && token < a.tokens - 1;
  const Row row = {live ? sample : 0, live ? token : 0, live};
  return row;
}

// ---------------------------------------------------------------- products

// [numbers][LANES] of the team to shared memory.
static __device__ void stage(const State& m, const real* from, int numbers) {
  for (int item = threadIdx.x; item < numbers * LANES / 4; item += THREADS) ((Four*)m.x())[item] = ((const Four*)from)[item];
}

// W x + b of what is staged, the team's blocks sharing out the passes of 2 PAIRS outputs; finish(o, lane, left, right) takes outputs o
// and o + 1, o even. A thread has two outputs of eight lanes, and its part of the slices. Begins and ends with a barrier of the block.
template <class Finish>
static __device__ void product(const Arguments& a, const State& m, const Team& team, const Linear& layer, int n_in, int n_out,
                               const Finish& finish) {
  const real* const w = a.weights + layer.weight;
  const int pair = threadIdx.x % PAIRS, eight = threadIdx.x / PAIRS % EIGHTS, part = threadIdx.x / (PAIRS * EIGHTS);
  const int columns = (n_out + 1) / 2 * 2;
  real* const group = m.partial() + threadIdx.x * VALUES;
  __syncthreads();
  for (int first = 2 * PAIRS * team.rank; first < n_out; first += 2 * PAIRS * team.blocks) {
    const int o = first + 2 * pair;
#pragma unroll
    for (int r = 0; r < 16; ++r) group[r] = (real)0;
    for (int slice = part * OWN; o < n_out && slice < (part + 1) * OWN; ++slice) {
      real sum[16];
#pragma unroll
      for (int r = 0; r < 16; ++r) sum[r] = (real)0;
#pragma unroll DEPTH
      for (int k = slice; k < n_in; k += SLICES) {
        const Two weight = *(const Two*)(w + (size_t)k * columns + o);
        const Four* lanes = (const Four*)(m.x() + k * LANES + 8 * eight);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Four x = lanes[half];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            sum[4 * half + r] += weight.v[0] * x.v[r];
            sum[8 + 4 * half + r] += weight.v[1] * x.v[r];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 16; ++r) group[r] += sum[r];
    }
    const int lane = threadIdx.x % LANES, column = threadIdx.x / LANES, mine = first + 2 * column;
    const bool finishes = column < PAIRS && mine < n_out;
    const Two bias = *(const Two*)(a.weights + layer.bias + (finishes ? mine : 0));  // before the barrier, so that nobody waits for it behind
    __syncthreads();
    if (finishes) {
      const real* values = m.partial() + (lane / 8 * PAIRS + column) * VALUES + lane % 8;
      real left = (real)0, right = (real)0;
#pragma unroll
      for (int slice = 0; slice < SLICES; slice += GROUP) {
        // what a thread has is a group, or one slice of it
        real of_left = (real)0, of_right = (real)0;
#pragma unroll
        for (int s = slice; s < slice + GROUP; s += OWN) {
          of_left += values[s / OWN * EIGHTS * PAIRS * VALUES];
          of_right += values[s / OWN * EIGHTS * PAIRS * VALUES + 8];
        }
        left += of_left;
        right += of_right;
      }
      finish(mine, lane, left + bias.v[0], right + bias.v[1]);
    }
    __syncthreads();
  }
}

// The same with finish(o, lane, value) for each output.
template <class Finish>
static __device__ void linear(const Arguments& a, const State& m, const Team& team, const Linear& layer, int n_in, int n_out,
                              const Finish& finish) {
  product(a, m, team, layer, n_in, n_out, [&](int o, int lane, real left, real right) {
    finish(o, lane, left);
    if (o + 1 < n_out) finish(o + 1, lane, right);
  });
}

// ---------------------------------------------------------------- normalisation

// (x − mean) / √(variance + ε) over the channels of each lane of what is staged; change(d, lane, value) says what it becomes. Begins
// with a barrier of the block.
template <class Change>
static __device__ void normalise(const State& m, const Change& change) {
  // THREADS is a multiple of LANES, so all that a thread touches is of one lane
  const int lane = threadIdx.x % LANES, part = threadIdx.x / LANES;
  real moments[2];
  for (int moment = 0; moment < 2; ++moment) {
    real* const sums = m.sums() + moment * PARTS * LANES;
    __syncthreads();
    real sum = (real)0;
    for (int d = part; part < PARTS && d < CHANNELS; d += PARTS) {
      const real x = m.x()[d * LANES + lane];
      sum += moment == 0 ? x : (x - moments[0]) * (x - moments[0]);
    }
    if (part < PARTS) sums[part * LANES + lane] = sum;
    __syncthreads();
    real total = (real)0;
    for (int p = 0; p < PARTS; ++p) total += sums[p * LANES + lane];
    moments[moment] = total / CHANNELS;
  }
  const real scale = (real)1 / sqrt(moments[1] + EPSILON);
  // unrolled, so that a thread waits once for what four changes read
#pragma unroll 4
  for (int first = 0; first < CHANNELS * LANES; first += THREADS) {
    const int item = first + threadIdx.x;
    if (item < CHANNELS * LANES) m.x()[item] = change(item / LANES, lane, (m.x()[item] - moments[0]) * scale);
  }
}

static __device__ void layer_norm(const Arguments& a, const State& m, const Norm& norm) {
  const real *weight = a.weights + norm.weight, *bias = a.weights + norm.bias;
  normalise(m, [&](int d, int, real x) { return x * weight[d] + bias[d]; });
}

// What a block of the flow is given for a row: a number of [tokens][CHANNELS].
static __device__ real given(const Arguments& a, int place, const Row& row, int d) {
  return a.weights[place + row.token * CHANNELS + d];
}

static __device__ void adaptive_norm(const Arguments& a, const State& m, const At& at, const Modulation& modulation) {
  normalise(m, [&](int d, int lane, real x) {
    const Row row = row_of(a, at, lane);
    return x * given(a, modulation.gamma, row, d) + given(a, modulation.beta, row, d);
  });
}

// ---------------------------------------------------------------- attention, a warp for each lane and head

static __device__ real sum_of_warp(real value) {
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}

// Queries or keys of a lane, [CHANNELS] at a stride of LANES, normalised over all heads where the model does so: number d.
struct Normed {
  const real* of;
  const real *weight, *bias;
  real mean, scale;
  __device__ real operator()(int d) const {
    const real x = of[d * LANES];
    return QK_NORMS ? (x - mean) * scale * weight[d] + bias[d] : x;
  }
};

static __device__ Normed normed(const Arguments& a, const real* of, const Norm& norm) {
  Normed all = {of, a.weights + norm.weight, a.weights + norm.bias, (real)0, (real)1};
  if (!QK_NORMS) return all;
  real sum = (real)0, squares = (real)0;
  for (int d = threadIdx.x % 32; d < CHANNELS; d += 32) sum += of[d * LANES];
  all.mean = sum_of_warp(sum) / CHANNELS;
  for (int d = threadIdx.x % 32; d < CHANNELS; d += 32) squares += (of[d * LANES] - all.mean) * (of[d * LANES] - all.mean);
  all.scale = (real)1 / sqrt(sum_of_warp(squares) / CHANNELS + EPSILON);
  return all;
}

// Where keys of a head of a sample begin; values follow them.
static __device__ real* kept_of(const Arguments& a, const State& m, int l, int lane, int head) {
  const int samples = samples_of(a), sample = a.encode ? 0 : lane;
  return m.kept() + (((size_t)l * samples + sample) * HEADS + head) * 2 * WIDTH * a.tokens;
}

static __device__ void keep(const Arguments& a, const State& m, const Layer& layer, int l, int lane, int head, int token) {
  real *keys = kept_of(a, m, l, lane, head), *values = keys + WIDTH * a.tokens;
  const Normed key = normed(a, m.qkv() + CHANNELS * LANES + lane, layer.key_norm);
  for (int c = threadIdx.x % 32; c < WIDTH; c += 32) {
    keys[c * a.tokens + token] = key(head * WIDTH + c);
    values[token * WIDTH + c] = m.qkv()[(2 * CHANNELS + head * WIDTH + c) * LANES + lane];
  }
}

// Of the scores of `seen` tokens, by a warp: their exponentials, the largest being one, in their place, and the sum of these.
static __device__ real soften(real* scores, int seen) {
  real top = (real)-3e38, total = (real)0;
  for (int j = threadIdx.x % 32; j < seen; j += 32) top = scores[j] > top ? scores[j] : top;
  for (int bits = 16; bits > 0; bits /= 2) {
    const real other = __shfl_xor_sync(0xffffffffu, top, bits);
    top = other > top ? other : top;
  }
  for (int j = threadIdx.x % 32; j < seen; j += 32) {
    scores[j] = exp(scores[j] - top);
    total += scores[j];
  }
  return sum_of_warp(total);
}

// A quarter of q·k_j, and of Σ_j p_j v_jc.
static __device__ real of_channels(const Arguments& a, const real* q, const real* keys, int quarter, int j) {
  const int first = quarter * QUARTER, last = LEAST(WIDTH, first + QUARTER);
  real sum = (real)0;
#pragma unroll 8
  for (int c = first; c < last; ++c) sum += q[c] * keys[c * a.tokens + j];
  return sum;
}
static __device__ real of_tokens(const real* scores, const real* values, int quarter, int c, int seen) {
  real sum = (real)0;
#pragma unroll 8
  for (int j = quarter; j < seen; j += QUARTERS) sum += scores[j] * values[j * WIDTH + c];
  return sum;
}

// Σ_j softmax_j(q·k_j / √WIDTH) v_j over the tokens up to this one, by a warp, a thread of which has every 32nd token and then every 32nd
// number of the values.
static __device__ void mix(const Arguments& a, const State& m, const Layer& layer, int l, int lane, int head, int token) {
  const int thread = threadIdx.x % 32, seen = token + 1;
  const real *keys = kept_of(a, m, l, lane, head), *values = keys + WIDTH * a.tokens;
  real* const q = m.x() + threadIdx.x / 32 * (WIDTH + a.tokens);
  real* const scores = q + WIDTH;
  const Normed query = normed(a, m.qkv() + lane, layer.query_norm);
  const real factor = (real)1 / sqrt((real)WIDTH);
  for (int c = thread; c < WIDTH; c += 32) q[c] = query(head * WIDTH + c);
  __syncwarp();
  // four scores a thread at once
  for (int first = thread; first < seen; first += 128) {
    real dots[4] = {(real)0, (real)0, (real)0, (real)0};
    for (int quarter = 0; quarter < QUARTERS; ++quarter) {
      real parts[4] = {(real)0, (real)0, (real)0, (real)0};
#pragma unroll 4
      for (int c = quarter * QUARTER; c < LEAST(WIDTH, (quarter + 1) * QUARTER); ++c) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int j = first + 32 * r;
          if (j - thread < seen) parts[r] += q[c] * keys[c * a.tokens + (j < seen ? j : seen - 1)];
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) dots[r] += parts[r];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (first + 32 * r < seen) scores[first + 32 * r] = factor * dots[r];
  }
  const real total = soften(scores, seen);
  __syncwarp();
  for (int c = thread; c < WIDTH; c += 32) {
    real sum = (real)0;
    for (int quarter = 0; quarter < QUARTERS; ++quarter) sum += of_tokens(scores, values, quarter, c, seen);
    m.mixed()[(head * WIDTH + c) * LANES + lane] = sum / total;
  }
  __syncwarp();
}

// The same sums in the same order by a block, for a card that has more blocks than rows and heads: what it reads is as far away as the L2
// cache, so it reads all at once. Begins and ends with a barrier of the block.
static __device__ void mix_by_block(const Arguments& a, const State& m, const Layer& layer, int l, int lane, int head, int token) {
  const int seen = token + 1, most = a.tokens > WIDTH ? a.tokens : WIDTH;
  const real *keys = kept_of(a, m, l, lane, head), *values = keys + WIDTH * a.tokens;
  real *const q = m.x(), *const scores = q + WIDTH, *const parts = scores + a.tokens;  // [QUARTERS][most]
  real* const total = m.sums();
  const real factor = (real)1 / sqrt((real)WIDTH);
  const auto together = [&](int place) {
    real sum = (real)0;
    for (int quarter = 0; quarter < QUARTERS; ++quarter) sum += parts[quarter * most + place];
    return sum;
  };
  __syncthreads();
  if (threadIdx.x < 32) {
    const Normed query = normed(a, m.qkv() + lane, layer.query_norm);
    for (int c = threadIdx.x; c < WIDTH; c += 32) q[c] = query(head * WIDTH + c);
  }
  __syncthreads();
  for (int item = threadIdx.x; item < QUARTERS * seen; item += THREADS)
    parts[item / seen * most + item % seen] = of_channels(a, q, keys, item / seen, item % seen);
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int j = threadIdx.x; j < seen; j += 32) scores[j] = factor * together(j);
    const real sum = soften(scores, seen);
    if (threadIdx.x == 0) *total = sum;
  }
  __syncthreads();
  for (int item = threadIdx.x; item < QUARTERS * WIDTH; item += THREADS)
    parts[item / WIDTH * most + item % WIDTH] = of_tokens(scores, values, item / WIDTH, item % WIDTH, seen);
  __syncthreads();
  for (int c = threadIdx.x; c < WIDTH; c += THREADS) m.mixed()[(head * WIDTH + c) * LANES + lane] = together(c) / *total;
  __syncthreads();
}

static __device__ void no_mix(const State& m, int lane, int head) {
  for (int c = threadIdx.x % 32; c < WIDTH; c += 32) m.mixed()[(head * WIDTH + c) * LANES + lane] = (real)0;
}

// The keys and values of a row are kept by the one who mixes them in decoding; in encoding rows of other tokens wait for them.
static __device__ __noinline__ void attention(const Arguments& a, const State& m, const Team& team, const At& at, const Layer& layer, int l) {
  const int workers = BY_BLOCK ? team.blocks : team.blocks * WARPS;
  const int worker = BY_BLOCK ? team.rank : team.rank * WARPS + threadIdx.x / 32;
  for (int item = worker; item < HEADS * LANES; item += workers) {
    const Row row = row_of(a, at, item % LANES);
    if (row.live && (!BY_BLOCK || threadIdx.x < 32)) keep(a, m, layer, l, item % LANES, item / LANES, row.token);
  }
  if (a.encode) meet(team);
  else __syncwarp();
  for (int item = worker; item < HEADS * LANES; item += workers) {
    const int lane = item % LANES, head = item / LANES;
    const Row row = row_of(a, at, lane);
    if (!row.live && (!BY_BLOCK || threadIdx.x < 32)) no_mix(m, lane, head);
    if (!row.live) continue;
    if (BY_BLOCK) mix_by_block(a, m, layer, l, lane, head, row.token);
    else mix(a, m, layer, l, lane, head, row.token);
  }
}

// ---------------------------------------------------------------- the network

static __device__ real gelu(real x) { return (real)0.5 * x * erfc(-x / (real)SQRT_2); }
static __device__ real silu(real x) { return x / ((real)1 + exp(-x)); }

// y += O attention(LN(y)), y += F₂ gelu(F₁ LN(y)), or with w = A(y) in the place of y, and y += w times the gate.
static __device__ void attend(const Arguments& a, const State& m, const Team& team, const At& at, const Stage& flow,
                              const Layer& layer, int l) {
  real* const rows = ADAPTIVE ? m.inner() : m.y();
  stage(m, m.y(), CHANNELS);
  if (ADAPTIVE) {
    adaptive_norm(a, m, at, layer.attention);
    __syncthreads();
    for (int item = team.rank * THREADS + threadIdx.x; item < CHANNELS * LANES; item += team.blocks * THREADS)
      m.inner()[item] = m.x()[item];
  }
  layer_norm(a, m, layer.attention_norm);
  linear(a, m, team, layer.qkv, CHANNELS, 3 * CHANNELS, [&](int o, int lane, real v) { m.qkv()[o * LANES + lane] = v; });
  meet(team);
  attention(a, m, team, at, layer, l);
  meet(team);
  stage(m, m.mixed(), CHANNELS);
  linear(a, m, team, layer.out, CHANNELS, CHANNELS, [&](int o, int lane, real v) { rows[o * LANES + lane] += v; });
  meet(team);
  stage(m, rows, CHANNELS);
  layer_norm(a, m, layer.forward_norm);
  linear(a, m, team, layer.first, CHANNELS, HIDDEN, [&](int o, int lane, real v) { m.hidden()[o * LANES + lane] = gelu(v); });
  meet(team);
  stage(m, m.hidden(), HIDDEN);
  linear(a, m, team, layer.second, HIDDEN, CHANNELS, [&](int o, int lane, real v) {
    const Row row = row_of(a, at, lane);
    const real w = rows[o * LANES + lane] + v;
    real* const y = m.y() + o * LANES + lane;
    if (ADAPTIVE) *y += given(a, layer.attention.gate, row, o) * w;
    else if (CONDITIONS && l + 1 < LAYERS) *y = w + given(a, flow.condition, row, o);  // the layer behind begins with it
    else *y = w;
  });
  meet(team);
}

// y += σ(G′ c) T (silu(w V) (w U)), w = A′(y).
static __device__ APART void transition(const Arguments& a, const State& m, const Team& team, const At& at, const Layer& layer) {
  stage(m, m.y(), CHANNELS);
  adaptive_norm(a, m, at, layer.transition);
  product(a, m, team, layer.into, CHANNELS, 2 * HIDDEN, [&](int o, int lane, real value, real gate) {
    m.hidden()[o / 2 * LANES + lane] = silu(gate) * value;
  });
  meet(team);
  stage(m, m.hidden(), HIDDEN);
  linear(a, m, team, layer.back, HIDDEN, CHANNELS, [&](int o, int lane, real v) {
    m.y()[o * LANES + lane] += given(a, layer.transition.gate, row_of(a, at, lane), o) * v;
  });
  meet(team);
}

// Rows at the start of the layers, by one block: W u and what the tokens are given.
static __device__ void enter(const Arguments& a, const State& m, const At& at, const Stage& flow) {
  for (int item = threadIdx.x; item < CHANNELS * LANES; item += THREADS) {
    const int d = item % CHANNELS, lane = item / CHANNELS, columns = (CHANNELS + 1) / 2 * 2;
    const Row row = row_of(a, at, lane);
    real sum = (real)0;
    if (row.live) {
      const double* u = a.x + ((size_t)row.sample * a.tokens + a.orders[flow.order + row.token]) * SIZE;
      for (int k = 0; k < SIZE; ++k) sum += a.weights[flow.into.weight + k * columns + d] * (real)u[k];
      sum += a.weights[flow.into.bias + d] + given(a, flow.positions, row, d);
      if (CONDITIONS && !ADAPTIVE) sum += given(a, flow.condition, row, d);
    }
    m.y()[d * LANES + lane] = sum;
  }
}

// The tokens after those of the rows, by what the network says of them, [a, b]: v = (u − b) e^{−a}, or u = v e^a + b.
static __device__ void follow(const Arguments& a, const State& m, const At& at, const Stage& flow) {
  for (int item = threadIdx.x; item < SIZE * LANES; item += THREADS) {
    const int k = item / LANES, lane = item % LANES;
    const Row row = row_of(a, at, lane);
    if (!row.live) continue;
    const int place = a.orders[flow.order + row.token + 1];
    double* const x = a.x + ((size_t)row.sample * a.tokens + place) * SIZE + k;
    const double scale = (double)m.output()[k * LANES + lane], shift = (double)m.output()[(SIZE + k) * LANES + lane];
    *x = a.encode ? (*x - shift) * exp(-scale) : *x * exp(scale) + shift;
  }
  // of a sample by one thread, in the order of its tokens
  if (threadIdx.x < (unsigned)samples_of(a)) {
    const int first = threadIdx.x, last = a.encode ? LANES : first + 1;
    for (int lane = first; lane < last; ++lane) {
      const Row row = row_of(a, at, lane);
      for (int k = 0; row.live && k < SIZE; ++k) {
        const double scale = (double)m.output()[k * LANES + lane];
        a.log_det[row.sample] += a.encode ? -scale : scale;
      }
    }
  }
}

static __device__ void run_stage(const Arguments& a, const State& m, const Team& team, int tile, int index) {
  const Stage& flow = a.stages[index];
  // the last token is not needed for any other
  const int steps = a.encode ? (a.tokens - 1 + LANES - 1) / LANES : a.tokens - 1;
  At at = {tile, 0};
  if (team.rank == 0) enter(a, m, at, flow);
  meet(team);
  for (; at.step < steps; ++at.step) {
    for (int l = 0; l < LAYERS; ++l) {
      const Layer& layer = a.layers[index * LAYERS + l];
      attend(a, m, team, at, flow, layer, l);
      if (TRANSITION) transition(a, m, team, at, layer);
    }
    if (team.rank == 0) {
      const Team alone = {team.index, 0, 1, team.arrivals};
      stage(m, m.y(), CHANNELS);
      linear(a, m, alone, flow.out, CHANNELS, 2 * SIZE, [&](int o, int lane, real v) { m.output()[o * LANES + lane] = v; });
      // the next rows are u, so before some are replaced in encoding, and after they are found in decoding
      const At next = {tile, at.step + 1};
      if (a.encode) enter(a, m, next, flow);
      __syncthreads();
      follow(a, m, at, flow);
      __syncthreads();
      if (!a.encode) enter(a, m, next, flow);
    }
    meet(team);
  }
}

KERNEL(tarflow, Arguments) {
  DYNAMIC_SHARED(memory);
  const Team team = team_of(a.blocks, a.arrivals);
  const State m = {a.scratch + team.index * size_of(a), (real*)memory};
  const int rows = a.encode ? 1 : LANES, tiles = (a.n + rows - 1) / rows;
  for (int tile = team.index; tile < tiles; tile += gridDim.x / a.blocks) {
    if (team.rank == 0 && threadIdx.x < (unsigned)rows && tile * rows + threadIdx.x < (unsigned)a.n)
      a.log_det[tile * rows + threadIdx.x] = 0.0;
    for (int i = 0; i < a.n_stages; ++i) run_stage(a, m, team, tile, a.encode ? i : a.n_stages - 1 - i);
  }
}
