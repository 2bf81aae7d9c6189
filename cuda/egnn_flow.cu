// The vector field of ECNF (equations in src/models/egnn_flow/mod.rs), with its exact divergence by forward mode.
//
// The messages to a few atoms are computed for all sources at once: a perceptron's layer is one product over the lanes
// of pairs. The contribution of an atom's features alone to its first layer is computed once per atom.
//
// Along each direction a pair costs one product, in layers between the first and the last. With p and q the outputs of
// the layers of edge_mlp, m = silu(q), its gate g and the step c,
//
//     d(g m) = e + (1 − g) m (w_a·e),   e = g silu′(q) ∘ W₂ (silu′(p) ∘ dp)
//     dc     = y·e,                     y = (1 − c²) (u + (1 − g) (u·m) w_a),   u = W_cᵀ (w_c ∘ silu′(W_c g m + b_c))
//
// Sizes are those of one model: HIDDEN, LAYERS.

#define NUMBERS (HIDDEN + 3)  // that messages add to an atom

// Rows of the tape. Of an edge: x_i − x_j, the factors of a step's derivative that multiply its own derivative and dr,
// silu′(p), g silu′(q), (1 − g) m, and y times the factor from c to a step, in units of x_i − x_j. Of an atom: silu′ of
// the output of N₁.
enum { DIFFERENCE = 0, ACROSS = 3, STRETCH = 4, SLOPE = 5, GAIN = SLOPE + HIDDEN, GATED = GAIN + HIDDEN, TOWARDS = GATED + HIDDEN };
enum { OF_EDGE = TOWARDS + HIDDEN, OF_ATOM = HIDDEN };

// Size of a block's memory: rows of atoms, and of pairs.
#define OF_STATE (HIDDEN + 2 * EVEN(HIDDEN) + 9)
#define OF_PAIR (7 + 2 * EVEN(HIDDEN) + (DIRECTIONS ? HIDDEN : 0))
#define VALUES_MEMORY (LANES * OF_STATE + PAIR_LANES * OF_PAIR)
#define TANGENTS_MEMORY (ROWS * OF_STATE + PAIR_ROWS * (3 + EVEN(HIDDEN)) + SUM_ROWS * (3 + EVEN(HIDDEN)))

#include "ode.cuh"

// Offsets in `weights`; matrices are [in][out], outputs padded to even. `source`, `destination`, `pair`: the first
// layer of edge_mlp for h_j, h_i and (r, a); its bias is the destination's. `coordinate_back`: transposed.
struct Layer {
  int source, destination, edge_bias, pair, edge, edge_out_bias, attention, attention_bias;
  int coordinate, coordinate_back, coordinate_bias, coordinate_out, node, node_bias, node_out, node_out_bias;
};

struct Network {
  const real* weights;
  const Layer* layers;
  const real* embedding;  // [ATOMS][HIDDEN], without the time
  const real* time;       // [HIDDEN]
  double step;            // range / layers
};

// ---------------------------------------------------------------- values

// Arrays of [numbers][LANES], those in the last line of [numbers][PAIR_LANES]. `sum` is the contribution of a
// destination's features to its messages, then replaced by their sum; it follows h, so that one product takes both.
struct Values {
  real *h, *sum, *x, *start, *next, *of_source;       // numbers: HIDDEN, HIDDEN, 3, 3, 3, HIDDEN
  real *d, *pair, *first, *message, *slope, *gate, *c;  // 3, 2, HIDDEN, HIDDEN, HIDDEN, 1, 1
};

static __device__ Values values_layout(real* memory) {
  Values m;
  m.h = take(memory, HIDDEN);
  m.sum = take(memory, EVEN(HIDDEN));
  m.x = take(memory, 3);
  m.start = take(memory, 3);
  m.next = take(memory, 3);
  m.of_source = take(memory, EVEN(HIDDEN));
  m.d = take(memory, DESTINATIONS * 3);
  m.pair = take(memory, DESTINATIONS * 2);
  m.first = take(memory, DESTINATIONS * EVEN(HIDDEN));
  m.message = take(memory, DESTINATIONS * EVEN(HIDDEN));
  m.gate = take(memory, DESTINATIONS);
  m.c = take(memory, DESTINATIONS);
  m.slope = take(memory, DIRECTIONS ? DESTINATIONS * HIDDEN : 0);
  return m;
}

// silu of eight numbers, and its derivatives.
static __device__ void silu(real* x, real* slope) {
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const real part = sigmoid(x[r]);
    slope[r] = part * ((real)1 + x[r] * ((real)1 - part));
    x[r] *= part;
  }
}

// Adds to h.
struct ToFeatures {
  real* h;
  int lanes;
  __device__ void operator()(int o, int lane, real* sum) const {
    if (o >= HIDDEN) return;
    real before[8];
    get_eight(h + o * lanes + lane, before);
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] += before[r];
    put_eight(h + o * lanes + lane, sum);
  }
};

// Σ_f a(f) rows[f] of a pair.
template <class Factor>
static __device__ real weighted(const Factor& a, const real* rows, int pair) {
  real sum = (real)0;
#pragma unroll 8
  for (int f = 0; f < HIDDEN; ++f) sum += a(f) * rows[f * PAIR_LANES + pair];
  return sum;
}

// Contributions of features alone to the messages from their atom and to it.
static __device__ __noinline__ void of_features(const Network& a, real* scratch, const Layer& layer) {
  OWN_VALUES(scratch);
  const real* const w = a.weights;
  product(w + layer.source, HIDDEN, EVEN(HIDDEN), LANES, m.h, Zero{}, Store{m.of_source, LANES});
  product(w + layer.destination, HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.edge_bias}, Store{m.sum, LANES});
  __syncthreads();
}

// The messages to DESTINATIONS atoms, from `first` on: their sums, and the atoms' steps.
static __device__ __noinline__ void messages(const Network& a, real* scratch, int l, int first, real* tape) {
  OWN_VALUES(scratch);
  const Layer& layer = a.layers[l];
  const real* const w = a.weights;
  const Record edges = of_edges(KEPT(tape) ? edges_to(tape, l, first) : (real*)0, first);
  const auto target = [&](int pair) { return LEAST(first + pair / PADDED, ATOMS - 1); };
  FOR_EACH(zero, pair, 1, PAIR_LANES) {
    const int i = target(pair), j = pair % PADDED;
    real* const kept = edges.at(pair);
    real square = (real)0, at_start = (real)0;
    for (int axis = 0; axis < 3; ++axis) {
      const real d = m.x[axis * LANES + i] - m.x[axis * LANES + j], start = m.start[axis * LANES + i] - m.start[axis * LANES + j];
      square += d * d;
      at_start += start * start;
      m.d[axis * PAIR_LANES + pair] = d;
      if (kept) kept[(DIFFERENCE + axis) * PADDED] = d;
    }
    m.pair[zero + pair] = square;
    m.pair[PAIR_LANES + pair] = at_start;
  }
  __syncthreads();
  const auto of_atoms = [&](int o, int lane, real* sum) {
    const real own = m.sum[o * LANES + target(lane)];
    get_eight(m.of_source + o * LANES + lane % LANES, sum);
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] += own;
  };
  product(w + layer.pair, 2, EVEN(HIDDEN), PAIR_LANES, m.pair, of_atoms, [&](int o, int lane, real* sum) {
    real slope[8];
    silu(sum, slope);
    put_eight(m.first + o * PAIR_LANES + lane, sum);
    real* const kept = o < HIDDEN ? edges.at(lane) : (real*)0;
    if (kept) put_eight(kept + (SLOPE + o) * PADDED, slope);
  });
  __syncthreads();
  product(w + layer.edge, HIDDEN, EVEN(HIDDEN), PAIR_LANES, m.first, Bias{w + layer.edge_out_bias}, [&](int o, int lane, real* sum) {
    real slope[8];
    silu(sum, slope);
    put_eight(m.message + o * PAIR_LANES + lane, sum);
    if (KEPT(tape) && o < HIDDEN) put_eight(m.slope + o * PAIR_LANES + lane, slope);
  });
  __syncthreads();
  const auto of_attention = [&](int f) { return w[layer.attention + 2 * f]; };
  FOR_EACH(zero, pair, 1, PAIR_LANES)
    m.gate[zero + pair] = sigmoid(weighted(of_attention, m.message, pair) + w[layer.attention_bias]);
  __syncthreads();
  if (KEPT(tape)) {
    FOR_EACH(part, pair, TOGETHER(PAIR_LANES), PAIR_LANES) {
      real* const kept = edges.at(pair);
      if (!kept) continue;
      const real gate = m.gate[pair], counted = edges.counts(pair) ? gate : (real)0;
#pragma unroll 4
      for (int f = part; f < HIDDEN; f += TOGETHER(PAIR_LANES)) {
        kept[(GAIN + f) * PADDED] = counted * m.slope[f * PAIR_LANES + pair];
        kept[(GATED + f) * PADDED] = ((real)1 - gate) * m.message[f * PAIR_LANES + pair];
      }
    }
    __syncthreads();
  }
  product(w + layer.coordinate, HIDDEN, EVEN(HIDDEN), PAIR_LANES, m.message, Zero{}, [&](int o, int lane, real* sum) {
    real slope[8];
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = m.gate[lane + r] * sum[r] + w[layer.coordinate_bias + o];
    silu(sum, slope);
    put_eight(m.first + o * PAIR_LANES + lane, sum);
    const real by_out = KEPT(tape) && o < HIDDEN ? w[layer.coordinate_out + 2 * o] : (real)0;
#pragma unroll
    for (int r = 0; r < 8; ++r) slope[r] *= by_out;
    if (KEPT(tape) && o < HIDDEN) put_eight(m.slope + o * PAIR_LANES + lane, slope);
  });
  __syncthreads();
  const auto of_step = [&](int f) { return w[layer.coordinate_out + 2 * f]; };
  FOR_EACH(zero, pair, 1, PAIR_LANES) {
    const real root = sqrt(m.pair[pair] + (real)1e-8), inverse = (real)1 / (root + (real)1);
    const real c = tanh(weighted(of_step, m.first, pair));
    m.c[zero + pair] = inverse * c;
    real* const kept = edges.at(pair);
    if (!kept) continue;
    const real step = edges.counts(pair) ? (real)a.step : (real)0;
    kept[ACROSS * PADDED] = step * inverse * c;
    kept[STRETCH * PADDED] = (real)-0.5 * step * c * inverse * inverse / root;
    m.pair[pair] = step * inverse * ((real)1 - c * c);
  }
  __syncthreads();
  if (KEPT(tape)) {
    // backwards from the step
    product(w + layer.coordinate_back, HIDDEN, EVEN(HIDDEN), PAIR_LANES, m.slope, Zero{}, Store{m.first, PAIR_LANES});
    __syncthreads();
    FOR_EACH(zero, pair, 1, PAIR_LANES) {
      const auto of_message = [&](int f) { return m.message[f * PAIR_LANES + pair]; };
      m.pair[zero + PAIR_LANES + pair] = ((real)1 - m.gate[pair]) * weighted(of_message, m.first, pair);
    }
    __syncthreads();
    FOR_EACH(part, pair, TOGETHER(PAIR_LANES), PAIR_LANES) {
      real* const kept = edges.at(pair);
      if (!kept) continue;
      const real step = m.pair[pair], through_gate = m.pair[PAIR_LANES + pair];
#pragma unroll 4
      for (int f = part; f < HIDDEN; f += TOGETHER(PAIR_LANES))
        kept[(TOWARDS + f) * PADDED] = step * (m.first[f * PAIR_LANES + pair] + through_gate * of_attention(f));
    }
  }
  for (int item = threadIdx.x; item < LEAST(DESTINATIONS, ATOMS - first) * NUMBERS; item += THREADS) {
    const int number = item % NUMBERS, place = item / NUMBERS, i = first + place, axis = number - HIDDEN;
    const auto add_up = [&](const real* rows, const real* by) {
      const real *const a = rows + place * LANES, *const b = by + place * LANES;
      return sum_over_sources(i, number, [&](int j) { return a[j] * b[j]; });
    };
    if (axis < 0) m.sum[number * LANES + i] = add_up(m.message + number * PAIR_LANES, m.gate);
    else m.next[axis * LANES + i] = m.x[axis * LANES + i] + (real)a.step * add_up(m.d + axis * PAIR_LANES, m.c);
  }
  __syncthreads();
}

// h ← h + N₂ silu(N₁ [h, sum] + c₁) + c₂. `slopes`: a row of the tape for each hidden number, or null.
static __device__ __noinline__ void update(const Network& a, real* scratch, const Layer& layer, real* slopes) {
  OWN_VALUES(scratch);
  const real* const w = a.weights;
  product(w + layer.node, 2 * HIDDEN, EVEN(HIDDEN), LANES, m.h, Bias{w + layer.node_bias}, [&](int o, int lane, real* sum) {
    real slope[8];
    silu(sum, slope);
    put_eight(m.first + o * LANES + lane, sum);
    if (KEPT(slopes) && o < HIDDEN) put_eight(slopes + o * PADDED + lane, slope);
  });
  __syncthreads();
  product(w + layer.node_out, HIDDEN, EVEN(HIDDEN), LANES, m.first, Bias{w + layer.node_out_bias}, ToFeatures{m.h, LANES});
  __syncthreads();
}

// Values of the field.
static __device__ __noinline__ void values(const Network& a, real* scratch, const Point& p, real* tape) {
  OWN_VALUES(scratch);
  const real t = (real)p.t;
  read_positions(p.x, m.x);
  read_positions(p.x, m.start);
  FOR_ITEMS(f, atom, HIDDEN) m.h[f * LANES + atom] = (atom < ATOMS ? a.embedding[atom * HIDDEN + f] : (real)0) + t * a.time[f];
  __syncthreads();
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    of_features(a, scratch, layer);
    for (int first = 0; first < ATOMS; first += DESTINATIONS) messages(a, scratch, l, first, tape);
    FOR_ITEMS(axis, atom, 3)
      if (atom < ATOMS) m.x[axis * LANES + atom] = m.next[axis * LANES + atom];
    __syncthreads();
    // features are needed only by further layers
    if (l + 1 < LAYERS) update(a, scratch, layer, KEPT(tape) ? atoms_of(tape, l) : (real*)0);
  }
  const auto moved = [&](int axis, int atom) { return m.x[axis * LANES + atom] - m.start[axis * LANES + atom]; };
  FOR_ITEMS(axis, atom, 3) {
    if (!p.f || atom >= ATOMS) continue;
    real mean = (real)0;
    for (int i = 0; i < ATOMS; ++i) mean += moved(axis, i);
    p.f[3 * atom + axis] = (double)(moved(axis, atom) - ((real)1 / ATOMS) * mean);
  }
  __syncthreads();
}

// ---------------------------------------------------------------- tangents

#if DIRECTIONS
// Threads that share a sum over a message's numbers.
#define PARTS_OF_SUM LEAST(TOGETHER(LINES), EVEN(HIDDEN) / 2)

// Arrays of [numbers][ROWS], those of the next line [numbers][PAIR_ROWS], of the last one [numbers][SUM_ROWS]; like
// Values.
struct Tangents {
  real *h, *sum, *x, *start, *next, *of_source;
  real *pair, *first, *gate;  // numbers: 2, HIDDEN, 1
  real *message, *step;       // HIDDEN, 3
};

static __device__ Tangents tangents_layout(real* memory) {
  Tangents m;
  m.h = take(memory, HIDDEN, ROWS);
  m.sum = take(memory, EVEN(HIDDEN), ROWS);
  m.x = take(memory, 3, ROWS);
  m.start = take(memory, 3, ROWS);
  m.next = take(memory, 3, ROWS);
  m.of_source = take(memory, EVEN(HIDDEN), ROWS);
  m.pair = take(memory, 2, PAIR_ROWS);
  m.first = take(memory, EVEN(HIDDEN), PAIR_ROWS);
  m.gate = take(memory, 1, PAIR_ROWS);
  m.message = take(memory, EVEN(HIDDEN), SUM_ROWS);
  m.step = take(memory, 3, SUM_ROWS);
  return m;
}

static __device__ __noinline__ void tangents_of_features(const Network& a, real* scratch, const Layer& layer) {
  OWN_TANGENTS(scratch);
  product(a.weights + layer.source, HIDDEN, EVEN(HIDDEN), ROWS, m.h, Zero{}, Store{m.of_source, ROWS});
  product(a.weights + layer.destination, HIDDEN, EVEN(HIDDEN), ROWS, m.h, Zero{}, Store{m.sum, ROWS});
  __syncthreads();
}

// Adds the tangents of messages to BESIDE atoms, from all sources; or FROM them, to all that the share does not move.
// For the last layer only steps.
template <bool FROM>
static __device__ __noinline__ void message_tangents(const Network& a, real* scratch, const Share share, const Lanes<FROM> lanes, int l,
                                                     const real* tape) {
  OWN_TANGENTS(scratch);
  const Layer& layer = a.layers[l];
  const real* const w = IN_GLOBAL(a.weights);
  const real *const of_r = w + layer.pair, *const of_start = of_r + EVEN(HIDDEN);
  const auto kept = [&](int lane) { return lanes.edge(tape, l, lane); };
  const auto apart = [&](const real* x, int lane) { return along(x, lanes.target(lane)) - along(x, lanes.source(lane)); };
  FOR_EACH(which, lane, 2, LINES) {
    const real* const x = which == 0 ? m.x : m.start;
    const real* const of_edge = lanes.edge(tape, which == 0 ? l : 0, lane);
    Along half = nothing();
    for (int axis = 0; axis < 3; ++axis) half = plus(half, of_edge[(DIFFERENCE + axis) * PADDED], apart(x + axis * ROWS, lane));
    put(m.pair + which * PAIR_ROWS, lane, half + half);
  }
  __syncthreads();
  FOR_EACH(part, lane, TOGETHER(LINES), LINES) {
    const int source = lanes.source(lane), target = lanes.target(lane);
    const real* const slopes = kept(lane) + SLOPE * PADDED;
    const Along by_r = along(m.pair, lane), by_start = along(m.pair + PAIR_ROWS, lane);
#pragma unroll READS_AT_ONCE
    for (int f = part; f < HIDDEN; f += TOGETHER(LINES)) {
      Along sum = plus(of_r[f] * by_r, of_start[f], by_start);
      // no feature depends on x before the first layer
      if (l > 0) sum = sum + along(m.of_source + f * ROWS, source) + along(m.sum + f * ROWS, target);
      put(m.first + f * PAIR_ROWS, lane, slopes[f * PADDED] * sum);
    }
  }
  __syncthreads();
  product(w + layer.edge, HIDDEN, EVEN(HIDDEN), PAIR_ROWS, m.first, Zero{}, scaled(kept, GAIN, HIDDEN, m.message, SUM_ROWS));
  __syncthreads();
  // w_a·e and y·e, first in parts
  FOR_EACH(part, lane, PARTS_OF_SUM, LINES) {
    Along gate = nothing(), towards = nothing();
#pragma unroll READS_AT_ONCE
    for (int f = part; f < HIDDEN; f += PARTS_OF_SUM) {
      const Along e = along(m.message + f * SUM_ROWS, lane);
      gate = plus(gate, w[layer.attention + 2 * f], e);
      towards = plus(towards, kept(lane)[(TOWARDS + f) * PADDED], e);
    }
    put(m.first + 2 * part * PAIR_ROWS, lane, gate);
    put(m.first + (2 * part + 1) * PAIR_ROWS, lane, towards);
  }
  __syncthreads();
  FOR_EACH(which, lane, 4, LINES) {
    const int axis = which - 1;
    const real* const parts = m.first + (axis < 0 ? 0 : PAIR_ROWS);
    Along sum = nothing();
    for (int part = 0; part < PARTS_OF_SUM; ++part) sum = sum + along(parts + 2 * part * PAIR_ROWS, lane);
    if (axis < 0) {
      put(m.gate, lane, sum);
      continue;
    }
    const real* const of_edge = kept(lane);
    sum = plus(sum, of_edge[STRETCH * PADDED], along(m.pair, lane));
    const Along across = of_edge[ACROSS * PADDED] * apart(m.x + axis * ROWS, lane);
    put(m.step + axis * SUM_ROWS, lane, plus(across, of_edge[(DIFFERENCE + axis) * PADDED], sum));
  }
  __syncthreads();
  const int places = lanes.places(), first_number = l + 1 == LAYERS ? HIDDEN : 0, numbers = NUMBERS - first_number;
  // pairs that do not count have zeros on the tape
  if (FROM) {
    FOR_ITEMS(row, atom, numbers) {
      if (atom >= ATOMS || share.moves(atom)) continue;
      const int number = first_number + row, axis = number - HIDDEN;
      real* const to = axis < 0 ? m.sum + number * ROWS : m.next + axis * ROWS;
      Along sum = along(to, atom);
      for (int lane = atom; lane < places * PADDED; lane += PADDED) {
        if (axis < 0) sum = plus(sum + along(m.message + number * SUM_ROWS, lane), kept(lane)[(GATED + number) * PADDED], along(m.gate, lane));
        else sum = sum + along(m.step + axis * SUM_ROWS, lane);
      }
      put(to, atom, sum);
    }
  } else {
    for (int item = threadIdx.x; item < places * numbers; item += THREADS) {
      const int number = first_number + item % numbers, axis = number - HIDDEN, pairs = item / numbers * PADDED, atom = lanes.own(pairs);
      const real *const of_pairs = axis < 0 ? m.message + number * SUM_ROWS : m.step + axis * SUM_ROWS;
      const real* const gated = kept(pairs) + (GATED + number) * PADDED;
      Along sum = nothing();
#pragma unroll READS_AT_ONCE
      for (int j = 0; j < PADDED; j += 4) {
        Four by_gate = {};
        if (axis < 0) by_gate = *(const Four*)(gated + j);
#pragma unroll
        for (int r = 0; r < 4; ++r)
          sum = plus(sum + along(of_pairs, pairs + j + r), by_gate.v[r], along(m.gate, pairs + j + r));
      }
      if (axis < 0) put(m.sum + number * ROWS, atom, sum);
      else put(m.next + axis * ROWS, atom, along(m.next + axis * ROWS, atom) + sum);
    }
  }
  __syncthreads();
}

// `slopes`: as for `update`.
static __device__ __noinline__ void update_tangents(const Network& a, real* scratch, const Layer& layer, const real* slopes) {
  OWN_TANGENTS(scratch);
  const auto kept = [&](int atom) { return slopes + atom; };
  product(a.weights + layer.node, 2 * HIDDEN, EVEN(HIDDEN), ROWS, m.h, Zero{}, scaled(kept, 0, HIDDEN, m.first, ROWS));
  __syncthreads();
  product(a.weights + layer.node_out, HIDDEN, EVEN(HIDDEN), ROWS, m.first, Zero{}, ToFeatures{m.h, ROWS});
  __syncthreads();
}

// A share of the divergence, or the derivative along dx.
static __device__ __noinline__ void derivatives(const Network& a, real* scratch, const Point& p, const real* tape) {
  OWN_TANGENTS(scratch);
  const Share share = {p.part};
  read_directions(p, m.x);
  read_directions(p, m.start);
  read_directions(p, m.next);
  FOR_ITEMS(f, atom, HIDDEN + EVEN(HIDDEN)) put(m.h + f * ROWS, atom, nothing());  // and the sums
  __syncthreads();
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    const Atoms atoms = destinations_of(p, l, !p.df);
    if (l > 0) tangents_of_features(a, scratch, layer);
    for (int first = 0; first < atoms.number; first += BESIDE) message_tangents(a, scratch, share, Lanes<false>{atoms, first}, l, tape);
    for (int first = 0; is_sparse(p, l) && first < atoms.number; first += BESIDE)
      message_tangents(a, scratch, share, Lanes<true>{atoms, first}, l, tape);
    FOR_EACH(axis, row, 3, ROWS) m.x[axis * ROWS + row] = m.next[axis * ROWS + row];
    __syncthreads();
    if (l + 1 < LAYERS) update_tangents(a, scratch, layer, atoms_of(tape, l));
  }
  const auto moved = [&](int axis, int row) { return m.x[axis * ROWS + row] - m.start[axis * ROWS + row]; };
  FOR_EACH(axis, row, 3, ROWS) {
    real mean = (real)0;
    for (int i = 0; i < ATOMS; ++i) mean += moved(axis, i * DIRECTIONS + row % DIRECTIONS);
    m.next[axis * ROWS + row] = moved(axis, row) - ((real)1 / ATOMS) * mean;
  }
  __syncthreads();
  write_derivatives(p, m.next);
  __syncthreads();
}
#endif

FIELD_KERNELS(egnn_field)
