// TarFlow and its transferable relatives (equations in src/models/tarflow/mod.rs and transferable.rs): from the data to
// the prior, and back token by token with a key/value cache.
//
// A team of blocks takes LANES rows through the network: from the prior to the data one token of LANES samples, from
// the data to the prior LANES tokens of one sample. Both are the same work, since a row needs of others only the keys
// and values of the tokens up to its own. If there are enough rows to fill the card, a team is one block. Otherwise its
// blocks share the outputs of each product and wait for each other, so that the whole card reads the weights for a
// single sample.
//
// A product reads each weight once for all lanes, from the L2 cache, which is large enough for the weights of one block
// of the flow. Its input is staged in shared memory; outputs, keys and values are in the team's own global memory,
// which is cached there, too.
//
// Three variants: 16 lanes and PAIRS 16, for a full card; 8 lanes and PAIRS 8, for teams; one lane, for a team with a
// single sample, whose time is that of waiting: for the other blocks, and for memory. In that variant everything
// independent of the other blocks is read into shared memory before waiting for them: the weights of the next product,
// and cached keys and values.
//
// A sum over inputs consists of SLICES parts, four of which make a group, in an order that is the same in all variants,
// so a row's bits depend on neither variant nor team.
#define ALONE (LANES == 1)
#if ALONE
#define RESIDENT 256
#else
#define RESIDENT 512
#endif
#include "tarflow.cuh"

#define SLICES 32
#define GROUP 4
// Lanes per thread in a product, and lanes read at once.
#define WIDE LEAST(LANES, 8)
#define PIECE LEAST(LANES, 4)
#define WIDES (LANES / WIDE)
// Weights loaded by a thread at once, as registers permit: a team has little else to do meanwhile.
constexpr int DEPTH = LANES > 8 || CHANNELS > 256 ? 4 : 8;
// Pairs of weights prefetched by a thread, as memory permits.
constexpr int ASKED = ALONE ? 128 / sizeof(real) : 0;
// Parts of sums in attention: a block that has a row and head to itself divides them among its threads, a warp computes
// one after another.
#define QUARTERS 4
#define QUARTER ((WIDTH + QUARTERS - 1) / QUARTERS)
#define BY_BLOCK (LANES <= 8)
// A function that would otherwise take registers from its caller.
#if BY_BLOCK
#define APART __noinline__
#else
#define APART
#endif
// Slices of a thread: those of a group, or one.
#define OWN (SLICES * PAIRS * WIDES / THREADS)
// Number of partial sums over the channels of a lane.
#define PARTS 16
// Number of inputs of a slice.
#define OF_SLICE(inputs) (((inputs) + SLICES - 1) / SLICES)

constexpr int MOST_ASKED = LEAST(ASKED, OF_SLICE(CHANNELS > HIDDEN ? CHANNELS : HIDDEN));

struct alignas(PIECE * sizeof(real)) Piece { real v[PIECE]; };

struct Arguments {
  const real* weights;
  const Stage* stages;
  const Layer* layers;  // [stages][LAYERS]
  const int* orders;    // [stages][tokens]
  double* x;            // [n][tokens][SIZE], replaced by the result
  double* log_det;      // [n], of the direction computed
  real* scratch;        // the teams' states, one after another
  u32* arrivals;        // [teams], initially zero
  int n, tokens, n_stages;
  int encode;  // else decode
  int blocks;  // per team
  int padding;
};

// ---------------------------------------------------------------- state

// Numbers of a thread in a product, two outputs of its lanes; odd, so that neighbours' are in different banks.
#define VALUES (2 * WIDE + 1)

// An address and an offset in shared memory, with arrays at fixed offsets from them, which take no registers. Arrays
// are [numbers][LANES] unless said otherwise.
struct State {
  real* of_team;
  int shift;
  __device__ real* y() const { return of_team; }
  __device__ real* inner() const { return y() + CHANNELS * LANES; }
  __device__ real* qkv() const { return inner() + CHANNELS * LANES; }
  __device__ real* mixed() const { return qkv() + 3 * CHANNELS * LANES; }
  __device__ real* hidden() const { return mixed() + CHANNELS * LANES; }
  // Keys [LAYERS][samples][HEADS][WIDTH][tokens], those of each head followed by its values [tokens][WIDTH].
  __device__ real* kept() const { return hidden() + EVEN(HIDDEN) * LANES; }

  // [2][PARTS][LANES]
  __device__ real* sums() const { return (real*)of_block() + shift; }
  __device__ real* output() const { return sums() + 2 * PARTS * LANES; }
  __device__ real* partial() const { return output() + 2 * SIZE * LANES; }  // [THREADS][VALUES]
  // Staged input or, in the same place, scratch for attention, [WARPS][WIDTH + tokens].
  __device__ real* x() const { return partial() + THREADS * VALUES; }
  // With a single lane, before all others: cached keys and values of the head that this block processes, and before
  // them prefetched pairs of weights, [OF_SLICE][THREADS].
  __device__ real* near(const Arguments& a) const { return sums() - 2 * WIDTH * a.tokens; }
  __device__ Two* asked(const Arguments& a) const { return (Two*)near(a) - MOST_ASKED * THREADS + threadIdx.x; }
};

static __device__ int samples_of(const Arguments& a) { return a.encode ? 1 : LANES; }

// Numbers in a team's state.
static __device__ size_t size_of(const Arguments& a) {
  const size_t kept = (size_t)LAYERS * samples_of(a) * 2 * CHANNELS * a.tokens;
  return (size_t)(6 * CHANNELS + EVEN(HIDDEN)) * LANES + (kept + 7) / 8 * 8;
}

// The current rows: tile and step, and the meaning of a lane in them. A lane that is not live has zeros and belongs to
// no row.
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

// Copies the team's [numbers][LANES] to shared memory.
static __device__ void stage(const State& m, const real* from, int numbers) {
  for (int item = threadIdx.x; item < numbers * LANES / PIECE; item += THREADS) ((Piece*)m.x())[item] = ((const Piece*)from)[item];
}

static __device__ const Two* weights_at(const Arguments& a, const Linear& layer, int n_out, int k, int o) {
  return (const Two*)(a.weights + layer.weight + (size_t)k * EVEN(n_out) + o);
}

// Prefetches the first weights of a thread in the pass of a product that begins at output `first`, while waiting for
// the team.
template <int INPUTS>
static __device__ void ask(const Arguments& a, const State& m, const Linear& layer, int n_out, int first) {
  const int o = first + 2 * (threadIdx.x % PAIRS), slice = threadIdx.x / (PAIRS * WIDES);
#pragma unroll 8
  for (int i = 0; i < LEAST(ASKED, OF_SLICE(INPUTS)); ++i) {
    const int k = slice + i * SLICES;
    if (o < n_out && k < INPUTS) COPY_LATER(m.asked(a) + i * THREADS, weights_at(a, layer, n_out, k, o));
  }
}

static __device__ int first_of(const Team& team) { return 2 * PAIRS * team.rank; }

// What a thread reads for an output before it waits for the sum: nothing, or the value that the output is added to.
struct Nothing { __device__ real operator()(int, int) const { return (real)0; } };
struct Old {
  const real* rows;
  __device__ real operator()(int o, int lane) const { return rows[o * LANES + lane]; }
};

struct Result { real value, old; };

// W x + b of the staged input, with the passes of 2 PAIRS outputs divided among the team's blocks; finish(o, lane,
// left, right) takes outputs o and o + 1, o even, each a Result. A thread has two outputs of WIDE lanes, and its share
// of the slices. The weights of its first pass must have been prefetched. Begins and ends with a barrier of the block.
template <int INPUTS, class Before, class Finish>
static __device__ void product(const Arguments& a, const State& m, const Team& team, const Linear& layer, int n_out,
                               const Before& before, const Finish& finish) {
  const int pair = threadIdx.x % PAIRS, wide = threadIdx.x / PAIRS % WIDES, part = threadIdx.x / (PAIRS * WIDES);
  constexpr int N_ASKED = LEAST(ASKED, OF_SLICE(INPUTS));
  real* const group = m.partial() + threadIdx.x * VALUES;
  __syncthreads();
  for (int first = first_of(team); first < n_out; first += 2 * PAIRS * team.blocks) {
    const int lane = threadIdx.x % LANES, column = threadIdx.x / LANES, mine = first + 2 * column;
    const bool finishes = column < PAIRS && mine < n_out;
    // early, as registers permit, so that nobody waits for it
    Two bias, old = {{(real)0, (real)0}};
    const auto read = [&]() {
      bias = *(const Two*)(a.weights + layer.bias + (finishes ? mine : 0));
      if (finishes) old.v[0] = before(mine, lane);
      if (finishes && mine + 1 < n_out) old.v[1] = before(mine + 1, lane);
    };
    if (ALONE) read();
    const int o = first + 2 * pair;
    if (ALONE) ARRIVED();
#pragma unroll
    for (int r = 0; r < 2 * WIDE; ++r) group[r] = (real)0;
    for (int slice = part * OWN; o < n_out && slice < (part + 1) * OWN; ++slice) {
      real sum[2 * WIDE];
#pragma unroll
      for (int r = 0; r < 2 * WIDE; ++r) sum[r] = (real)0;
      const auto add = [&](int k, Two weight) {
        const Piece* lanes = (const Piece*)(m.x() + k * LANES + WIDE * wide);
#pragma unroll
        for (int piece = 0; piece < WIDE / PIECE; ++piece) {
          const Piece x = lanes[piece];
#pragma unroll
          for (int r = 0; r < PIECE; ++r) {
            sum[PIECE * piece + r] += weight.v[0] * x.v[r];
            sum[WIDE + PIECE * piece + r] += weight.v[1] * x.v[r];
          }
        }
      };
#pragma unroll DEPTH
      for (int i = 0; i < N_ASKED; ++i)
        if (slice + i * SLICES < INPUTS) add(slice + i * SLICES, m.asked(a)[i * THREADS]);
#pragma unroll DEPTH
      for (int k = slice + N_ASKED * SLICES; k < INPUTS; k += SLICES) add(k, *weights_at(a, layer, n_out, k, o));
#pragma unroll
      for (int r = 0; r < 2 * WIDE; ++r) group[r] += sum[r];
    }
    ask<INPUTS>(a, m, layer, n_out, first + 2 * PAIRS * team.blocks);
    if (!ALONE) read();
    __syncthreads();
    if (finishes) {
      const real* values = m.partial() + (lane / WIDE * PAIRS + column) * VALUES + lane % WIDE;
      real left = (real)0, right = (real)0;
#pragma unroll
      for (int slice = 0; slice < SLICES; slice += GROUP) {
        // a thread has the sum of a group, or of one slice of it
        real of_left = (real)0, of_right = (real)0;
#pragma unroll
        for (int s = slice; s < slice + GROUP; s += OWN) {
          of_left += values[s / OWN * WIDES * PAIRS * VALUES];
          of_right += values[s / OWN * WIDES * PAIRS * VALUES + WIDE];
        }
        left += of_left;
        right += of_right;
      }
      finish(mine, lane, Result{left + bias.v[0], old.v[0]}, Result{right + bias.v[1], old.v[1]});
    }
    __syncthreads();
  }
}

// As `product`, with finish(o, lane, result) for each output.
template <int INPUTS, class Before, class Finish>
static __device__ void linear(const Arguments& a, const State& m, const Team& team, const Linear& layer, int n_out,
                              const Before& before, const Finish& finish) {
  product<INPUTS>(a, m, team, layer, n_out, before, [&](int o, int lane, Result left, Result right) {
    finish(o, lane, left);
    if (o + 1 < n_out) finish(o + 1, lane, right);
  });
}

// ---------------------------------------------------------------- normalisation

// (x − mean) / √(variance + ε) over the channels of each lane of the staged input; change(d, lane, value) gives the new
// value. Begins with a barrier of the block.
template <class Change>
static __device__ void normalise(const State& m, const Change& change) {
  // THREADS is a multiple of LANES, so all items of a thread are in one lane
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
  // unrolled, so that a thread waits only once for the reads of four changes
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

// Conditioning of a row in a block of the flow: a number of [tokens][CHANNELS].
static __device__ real given(const Arguments& a, int place, const Row& row, int d) {
  return a.weights[place + row.token * CHANNELS + d];
}

static __device__ void adaptive_norm(const Arguments& a, const State& m, const At& at, const Modulation& modulation) {
  normalise(m, [&](int d, int lane, real x) {
    const Row row = row_of(a, at, lane);
    return x * given(a, modulation.gamma, row, d) + given(a, modulation.beta, row, d);
  });
}

// ---------------------------------------------------------------- attention, one warp per lane and head

// Number d of the queries or keys of a lane, [CHANNELS] at a stride of LANES, normalised over all heads if the model
// does so.
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

// Start of the keys of a head of a sample; values follow them.
static __device__ real* kept_of(const Arguments& a, const State& m, int l, int lane, int head) {
  const int samples = samples_of(a), sample = a.encode ? 0 : lane;
  return m.kept() + (((size_t)l * samples + sample) * HEADS + head) * 2 * WIDTH * a.tokens;
}

// Writes key and value of a token to the sample's cache, and to the near copy, if there is one.
static __device__ void keep(const Arguments& a, const State& m, const Layer& layer, real* kept, real* near, int lane, int head, int token) {
  const int values = WIDTH * a.tokens;
  const Normed key = normed(a, m.qkv() + CHANNELS * LANES + lane, layer.key_norm);
  for (int c = threadIdx.x % 32; c < WIDTH; c += 32) {
    const real k = key(head * WIDTH + c), v = m.qkv()[(2 * CHANNELS + head * WIDTH + c) * LANES + lane];
    kept[c * a.tokens + token] = k;
    kept[values + token * WIDTH + c] = v;
    if (ALONE && near) {
      near[c * a.tokens + token] = k;
      near[values + token * WIDTH + c] = v;
    }
  }
}

// Replaces the scores of `seen` tokens, by a warp, with their exponentials relative to the largest; returns the sum.
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

// Σ_j softmax_j(q·k_j / √WIDTH) v_j over the tokens up to this one, by a warp, each thread of which has every 32nd
// token and then every 32nd number of the values.
static __device__ void mix(const Arguments& a, const State& m, const Layer& layer, const real* keys, int lane, int head, int token) {
  const int thread = threadIdx.x % 32, seen = token + 1;
  const real* const values = keys + WIDTH * a.tokens;
  real* const q = m.x() + threadIdx.x / 32 * (WIDTH + a.tokens);
  real* const scores = q + WIDTH;
  const Normed query = normed(a, m.qkv() + lane, layer.query_norm);
  const real factor = (real)1 / sqrt((real)WIDTH);
  for (int c = thread; c < WIDTH; c += 32) q[c] = query(head * WIDTH + c);
  __syncwarp();
  // four scores per thread at once
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

// As `mix`, with the same sums in the same order, by a block, for a card that has more blocks than rows and heads: its
// reads have the latency of the L2 cache, so it issues them all at once. Begins and ends with a barrier of the block.
static __device__ void mix_by_block(const Arguments& a, const State& m, const Layer& layer, const real* keys, int lane, int head,
                                    int token) {
  const int seen = token + 1, most = a.tokens > WIDTH ? a.tokens : WIDTH;
  const real* const values = keys + WIDTH * a.tokens;
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

// Workers that share rows and heads: blocks, or warps. The last blocks come first, as products keep the first ones
// busy.
static __device__ int workers_of(const Team& team) { return BY_BLOCK ? team.blocks : team.blocks * WARPS; }
static __device__ int worker_of(const Team& team) {
  return BY_BLOCK ? team.blocks - 1 - team.rank : team.rank * WARPS + threadIdx.x / 32;
}

// Copies the cached keys and values, with room for those of this token, to shared memory: those of a block's first
// head.
static __device__ void fetch(const Arguments& a, const State& m, const Team& team, int l) {
  if (!ALONE || worker_of(team) >= HEADS) return;
  const Two* const kept = (const Two*)kept_of(a, m, l, 0, worker_of(team));
  for (int i = threadIdx.x; i < WIDTH * a.tokens; i += THREADS) COPY_LATER((Two*)m.near(a) + i, kept + i);
}

// In decoding the keys and values of a row are stored by the worker that uses them; in encoding rows of other tokens
// wait for them.
static __device__ __noinline__ void attention(const Arguments& a, const State& m, const Team& team, const At& at, const Layer& layer, int l) {
  const int workers = workers_of(team), worker = worker_of(team);
  const auto near = [&](int item) { return ALONE && item == worker ? m.near(a) : (real*)0; };
  if (ALONE) {
    ARRIVED();
    __syncthreads();
  }
  for (int item = worker; item < HEADS * LANES; item += workers) {
    const int lane = item % LANES, head = item / LANES;
    const Row row = row_of(a, at, lane);
    if (!row.live || (BY_BLOCK && threadIdx.x >= 32)) continue;
    keep(a, m, layer, kept_of(a, m, l, lane, head), near(item), lane, head, row.token);
  }
  if (a.encode) meet(team);
  else __syncwarp();
  for (int item = worker; item < HEADS * LANES; item += workers) {
    const int lane = item % LANES, head = item / LANES;
    const Row row = row_of(a, at, lane);
    if (!row.live && (!BY_BLOCK || threadIdx.x < 32)) no_mix(m, lane, head);
    if (!row.live) continue;
    const real* const keys = near(item) ? near(item) : kept_of(a, m, l, lane, head);
    if (BY_BLOCK) mix_by_block(a, m, layer, keys, lane, head, row.token);
    else mix(a, m, layer, keys, lane, head, row.token);
  }
}

// ---------------------------------------------------------------- the network

// y += O attention(LN(y)), y += F₂ gelu(F₁ LN(y)), or with w = A(y) in place of y, and y += w times the gate. `next` is
// the linear layer that follows, with `n_next` outputs.
static __device__ void attend(const Arguments& a, const State& m, const Team& team, const At& at, const Stage& flow,
                              const Layer& layer, int l, const Linear& next, int n_next) {
  real* const rows = ADAPTIVE ? m.inner() : m.y();
  fetch(a, m, team, l);
  stage(m, m.y(), CHANNELS);
  if (ADAPTIVE) {
    adaptive_norm(a, m, at, layer.attention);
    __syncthreads();
    for (int item = team.rank * THREADS + threadIdx.x; item < CHANNELS * LANES; item += team.blocks * THREADS)
      m.inner()[item] = m.x()[item];
  }
  layer_norm(a, m, layer.attention_norm);
  linear<CHANNELS>(a, m, team, layer.qkv, 3 * CHANNELS, Nothing{}, [&](int o, int lane, Result r) { m.qkv()[o * LANES + lane] = r.value; });
  meet(team);
  attention(a, m, team, at, layer, l);
  ask<CHANNELS>(a, m, layer.out, CHANNELS, first_of(team));
  meet(team);
  stage(m, m.mixed(), CHANNELS);
  linear<CHANNELS>(a, m, team, layer.out, CHANNELS, Old{rows}, [&](int o, int lane, Result r) { rows[o * LANES + lane] = r.old + r.value; });
  ask<CHANNELS>(a, m, layer.first, HIDDEN, first_of(team));
  meet(team);
  stage(m, rows, CHANNELS);
  layer_norm(a, m, layer.forward_norm);
  linear<CHANNELS>(a, m, team, layer.first, HIDDEN, Nothing{}, [&](int o, int lane, Result r) { m.hidden()[o * LANES + lane] = gelu(r.value); });
  ask<HIDDEN>(a, m, layer.second, CHANNELS, first_of(team));
  meet(team);
  stage(m, m.hidden(), HIDDEN);
  linear<HIDDEN>(a, m, team, layer.second, CHANNELS, Old{rows}, [&](int o, int lane, Result r) {
    const Row row = row_of(a, at, lane);
    const real w = r.old + r.value;
    real* const y = m.y() + o * LANES + lane;
    if (ADAPTIVE) *y += given(a, layer.attention.gate, row, o) * w;
    else if (CONDITIONS && l + 1 < LAYERS) *y = w + given(a, flow.condition, row, o);  // the next layer begins with it
    else *y = w;
  });
  ask<CHANNELS>(a, m, next, n_next, first_of(team));
  meet(team);
}

// y += σ(G′ c) T (silu(w V) (w U)), w = A′(y).
static __device__ APART void transition(const Arguments& a, const State& m, const Team& team, const At& at, const Layer& layer,
                                        const Linear& next, int n_next) {
  stage(m, m.y(), CHANNELS);
  adaptive_norm(a, m, at, layer.transition);
  product<CHANNELS>(a, m, team, layer.into, 2 * HIDDEN, Nothing{}, [&](int o, int lane, Result r, Result gate) {
    m.hidden()[o / 2 * LANES + lane] = silu(gate.value) * r.value;
  });
  ask<HIDDEN>(a, m, layer.back, CHANNELS, first_of(team));
  meet(team);
  stage(m, m.hidden(), HIDDEN);
  linear<HIDDEN>(a, m, team, layer.back, CHANNELS, Old{m.y()}, [&](int o, int lane, Result r) {
    m.y()[o * LANES + lane] = r.old + given(a, layer.transition.gate, row_of(a, at, lane), o) * r.value;
  });
  ask<CHANNELS>(a, m, next, n_next, first_of(team));
  meet(team);
}

// Rows at the start of the layers, by one block: W u plus the tokens' conditioning.
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

// The tokens after those of the rows, from the network's [a, b]: v = (u − b) e^{−a}, or u = v e^a + b.
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
  // per sample by one thread, in the order of its tokens
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
  const Layer* const layers = a.layers + index * LAYERS;
  // no other token needs the last one
  const int steps = a.encode ? (a.tokens - 1 + LANES - 1) / LANES : a.tokens - 1;
  At at = {tile, 0};
  if (team.rank == 0) enter(a, m, at, flow);
  ask<CHANNELS>(a, m, layers[0].qkv, 3 * CHANNELS, first_of(team));
  meet(team);
  for (; at.step < steps; ++at.step) {
    for (int l = 0; l < LAYERS; ++l) {
      const Layer& layer = layers[l];
      const bool ends = l + 1 == LAYERS && team.rank == 0;
      const Linear& behind = ends ? flow.out : layers[(l + 1) % LAYERS].qkv;
      const int n_behind = ends ? 2 * SIZE : 3 * CHANNELS;
      attend(a, m, team, at, flow, layer, l, TRANSITION ? layer.into : behind, TRANSITION ? 2 * HIDDEN : n_behind);
      if (TRANSITION) transition(a, m, team, at, layer, behind, n_behind);
    }
    if (team.rank == 0) {
      const Team alone = {team.index, 0, 1, team.arrivals, 0};
      stage(m, m.y(), CHANNELS);
      linear<CHANNELS>(a, m, alone, flow.out, 2 * SIZE, Nothing{}, [&](int o, int lane, Result r) { m.output()[o * LANES + lane] = r.value; });
      ask<CHANNELS>(a, m, layers[0].qkv, 3 * CHANNELS, 0);
      // the next rows are u, so they are read before some are replaced in encoding, and after they are found in
      // decoding
      const At next = {tile, at.step + 1};
      if (a.encode) enter(a, m, next, flow);
      __syncthreads();
      follow(a, m, at, flow);
      __syncthreads();
      if (!a.encode) enter(a, m, next, flow);
    }
    meet(team);
  }
  if (ALONE) ARRIVED();  // what the last step prefetched, before the next stage, or nobody, uses its places
}

KERNEL(tarflow, Arguments) {
  const Team team = team_of(a.blocks, a.arrivals);
  const State m = {a.scratch + team.index * size_of(a), ALONE ? 2 * (WIDTH * a.tokens + MOST_ASKED * THREADS) : 0};
  const int rows = a.encode ? 1 : LANES, tiles = (a.n + rows - 1) / rows;
  for (int tile = team.index; tile < tiles; tile += gridDim.x / a.blocks) {
    if (team.rank == 0 && threadIdx.x < (unsigned)rows && tile * rows + threadIdx.x < (unsigned)a.n)
      a.log_det[tile * rows + threadIdx.x] = 0.0;
    for (int i = 0; i < a.n_stages; ++i) run_stage(a, m, team, tile, a.encode ? i : a.n_stages - 1 - i);
  }
}
