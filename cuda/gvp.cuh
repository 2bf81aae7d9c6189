// Geometric vector perceptrons on the complete graph of a molecule's atoms (equations in src/models/gvp_flow/mod.rs):
// the part common to the field of `gvp_flow` and the energy of `gvp_ebm`. This file has the values, and the tape for
// their derivatives (gvp_tangents.cuh).
//
// Sizes are those of one model: SCALARS, VECTORS, RADIAL, LAYERS. Programs for derivatives, along DIRECTIONS at once,
// have tapes.
#ifndef MODEJUMP_GVP
#define MODEJUMP_GVP

#define HIDDEN (VECTORS + 1)
#define NUMBERS (SCALARS + 3 * VECTORS)  // per atom

// Rows of the tape. Of a perceptron: ds′/da, ∂n/∂Vh, σ(g), σ′(g) Vu. Of an edge: u, ∂d/∂x_j over u, 1/d, W of the
// radial functions' derivatives, its perceptron; the lanes are its sources. Of a normalisation: (s − mean)/sd,
// weight/sd, V′, the gradient of V's factor over the factor, the factor. Of an atom in a layer: both normalisations,
// the perceptron between them, the Jacobian of what follows: a coordinate step or, in the last layer, the output.
enum { SLOPE = 0, OF_HIDDEN = SLOPE + SCALARS, GATE = OF_HIDDEN + 3 * HIDDEN, GATED = GATE + VECTORS, OF_PERCEPTRON = GATED + 3 * VECTORS };
enum { DIRECTION = 0, STRETCH = 3, INVERSE = 4, OF_RADIAL = 5, MESSAGE = OF_RADIAL + SCALARS, OF_EDGE = MESSAGE + OF_PERCEPTRON };
enum { NORMAL = 0, SCALE = SCALARS, DIVIDED = 2 * SCALARS, GRADIENT = DIVIDED + 3 * VECTORS, FACTOR = GRADIENT + 3 * VECTORS, OF_NORM };
enum { MESSAGE_NORM = 0, UPDATE = OF_NORM, UPDATE_NORM = UPDATE + OF_PERCEPTRON, JACOBIAN = UPDATE_NORM + OF_NORM };
enum { OF_ATOM = JACOBIAN + 3 * NUMBERS };

// Size of a block's memory for values: rows of LANES, and of PAIR_LANES for pairs.
#define OF_STATE (2 * EVEN(SCALARS) + 3 * VECTORS + 3 + 3 * EVEN(HIDDEN) + 3 * EVEN(VECTORS))
#define OF_JACOBIAN (DIRECTIONS ? OF_PERCEPTRON + EVEN(SCALARS) + EVEN(HIDDEN) + 3 * EVEN(VECTORS) : 0)
#define OF_PAIR (4 + RADIAL + EVEN(HIDDEN) + (DIRECTIONS ? RADIAL : 0) + EVEN(SCALARS) + EVEN(VECTORS))
#define VALUES_MEMORY (LANES * (OF_STATE + OF_JACOBIAN + DESTINATIONS * OF_PAIR))
// The same for tangents; output vectors are summed over sources as well.
#define OUT_ROWS (ROWS + 4)
#define TANGENTS_MEMORY                                                                               \
  (ROWS * (2 * EVEN(SCALARS) + 3 * VECTORS + 3 + 3 * EVEN(HIDDEN)) + OUT_ROWS * 3 * EVEN(VECTORS) +   \
   PAIR_ROWS * (1 + EVEN(HIDDEN)) + SUM_ROWS * (3 + EVEN(SCALARS) + EVEN(VECTORS)))

#include "tangents.cuh"

#define PARTIALS LEAST(TOGETHER(LANES), RADIAL + HIDDEN)
#define SMALLEST_SQUARE (real)1e-8
#define EPSILON (real)1e-5
#define ADDED_DISTANCE (real)1e-8

// Offsets in `weights` of one geometric vector perceptron; matrices are [in][out], outputs padded to even. `inputs`: of
// radial functions and norms; `outputs` = Wh Wu; `direction_*`: of an edge's direction, the first vector of a message;
// `*_back`: transposed, for perceptrons with a single output vector.
struct Gvp {
  int n_hidden, n_out;
  int scalars, bias, inputs, hidden, outputs, gates, gate_bias, direction_hidden, direction_outputs, beta;
  int scalars_back, norms_back, hidden_back, padding;
};

struct Layer { Gvp message, update, position; Norm message_norm, update_norm; };

struct Trunk {
  const real* weights;
  const Layer* layers;
  const real* embedding;  // [ATOMS][SCALARS], without the time
  const real* time;       // [SCALARS]
  const real* centres;    // [RADIAL], of the radial functions
  double inverse_width, inverse_message_norm, coordinate_range;
};

// ---------------------------------------------------------------- memory of a block

// The Jacobian of a coordinate step that is never used.
template <class Number>
static __device__ Number* last_jacobian(Number* tape) {
  return atoms_of(tape, LAYERS - 1) + JACOBIAN * PADDED;
}

// Arrays of [numbers][LANES], those of the last line [numbers][PAIR_LANES].
struct Values {
  real *s, *v, *x;                                  // [SCALARS], [VECTORS][3], [3]
  real *of_s, *of_v, *out_v;                        // linear parts: [SCALARS], [HIDDEN][3], [VECTORS][3]
  real *perceptron, *by_s, *by_norm, *by_v;         // of a Jacobian: [OF_PERCEPTRON], [SCALARS], [HIDDEN], [VECTORS][3]
  real *distance, *u, *inputs, *slopes, *a, *g;     // [1], [3], [RADIAL + HIDDEN], [RADIAL], [SCALARS], [VECTORS]
};

static __device__ Values values_layout(real* memory) {
  Values m;
  m.s = take(memory, EVEN(SCALARS));
  m.v = take(memory, 3 * VECTORS);
  m.x = take(memory, 3);
  m.of_s = take(memory, EVEN(SCALARS));
  m.of_v = take(memory, 3 * EVEN(HIDDEN));
  m.out_v = take(memory, 3 * EVEN(VECTORS));
  if (DIRECTIONS) {
    m.perceptron = take(memory, OF_PERCEPTRON);
    m.by_s = take(memory, EVEN(SCALARS));
    m.by_norm = take(memory, EVEN(HIDDEN));
    m.by_v = take(memory, 3 * EVEN(VECTORS));
    m.slopes = take(memory, DESTINATIONS * RADIAL);
  }
  m.distance = take(memory, DESTINATIONS);
  m.u = take(memory, DESTINATIONS * 3);
  m.inputs = take(memory, DESTINATIONS * (RADIAL + EVEN(HIDDEN)));
  m.a = take(memory, DESTINATIONS * EVEN(SCALARS));
  m.g = take(memory, DESTINATIONS * EVEN(VECTORS));
  return m;
}

// ---------------------------------------------------------------- the geometric vector perceptron

// The parts that are linear in s and V of every atom: W s + b, Wh V and Wu Wh V.
static __device__ __noinline__ void linear_parts(const real* w, real* scratch, const Gvp& gvp) {
  OWN_VALUES(scratch);
  product(w + gvp.scalars, SCALARS, EVEN(SCALARS), LANES, m.s, Bias{w + gvp.bias}, Store{m.of_s, LANES});
  product(w + gvp.hidden, VECTORS, EVEN(gvp.n_hidden), 3 * LANES, m.v, Zero{}, Store{m.of_v, 3 * LANES});
  product(w + gvp.outputs, VECTORS, EVEN(gvp.n_out), 3 * LANES, m.v, Zero{}, Store{m.out_v, 3 * LANES});
  __syncthreads();
}

// Norms of hidden vectors, as inputs from `first` on; on an edge its direction adds to the vectors. WIDTH lanes, of
// atoms or of pairs.
template <int WIDTH>
static __device__ void norms(const Values& m, const Gvp& gvp, const real* direction, int first, const Record& record) {
  FOR_EACH(q, lane, gvp.n_hidden, WIDTH) {
    real h[3], square = (real)0;
    for (int axis = 0; axis < 3; ++axis) {
      h[axis] = m.of_v[(3 * q + axis) * LANES + lane % LANES];
      if (direction) h[axis] += direction[q] * m.u[axis * PAIR_LANES + lane];
      square += h[axis] * h[axis];
    }
    const bool moves = square > SMALLEST_SQUARE;
    const real norm = sqrt(moves ? square : SMALLEST_SQUARE), inverse = moves ? (real)1 / norm : (real)0;
    m.inputs[(first + q) * WIDTH + lane] = norm;
    real* const kept = record.at(lane);
    if (!kept) continue;
    for (int axis = 0; axis < 3; ++axis) kept[(OF_HIDDEN + 3 * q + axis) * PADDED] = inverse * h[axis];
  }
}

// s′ = a σ(βa), left in m.a, and the gates g, from the inputs; σ(g) if `open`.
template <int WIDTH>
static __device__ void scalars_and_gates(const real* w, const Values& m, const Gvp& gvp, int n_inputs, bool open, const Record& record) {
  const real beta = w[gvp.beta];
  const auto of_s = [&](int o, int lane, real* sum) { get_eight(m.of_s + o * LANES + lane % LANES, sum); };
  const auto swished = [&](int o, int lane, real* sum) {
    real slope[8];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const real scaled = beta * sum[r], part = sigmoid(scaled);
      sum[r] *= part;
      slope[r] = part * ((real)1 + scaled * ((real)1 - part));
    }
    put_eight(m.a + o * WIDTH + lane, sum);
    real* const kept = o < SCALARS ? record.at(lane) : (real*)0;
    if (!kept) return;
#pragma unroll
    for (int r = 0; r < 8; ++r)
      if (!record.counts(lane + r)) slope[r] = (real)0;
    put_eight(kept + (SLOPE + o) * PADDED, slope);
  };
  product(w + gvp.inputs, n_inputs, EVEN(SCALARS), WIDTH, m.inputs, of_s, swished);
  __syncthreads();
  const auto gated = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
      if (open) sum[r] = sigmoid(sum[r]);
    put_eight(m.g + o * WIDTH + lane, sum);
  };
  product(w + gvp.gates, SCALARS, EVEN(gvp.n_out), WIDTH, m.a, Bias{w + gvp.gate_bias}, gated);
  __syncthreads();
}

// Records σ(g) and σ′(g) Vu. `direction` of an edge, as for its norms.
template <int WIDTH>
static __device__ void keep_gates(const Values& m, const real* direction, const Record& record) {
  FOR_EACH(u, lane, VECTORS, WIDTH) {
    real* const kept = record.at(lane);
    if (!kept) continue;
    const real gate = record.counts(lane) ? m.g[u * WIDTH + lane] : (real)0;
    kept[(GATE + u) * PADDED] = gate;
    for (int axis = 0; axis < 3; ++axis) {
      real out = m.out_v[(3 * u + axis) * LANES + lane % LANES];
      if (direction) out += direction[u] * m.u[axis * PAIR_LANES + lane];
      kept[(GATED + 3 * u + axis) * PADDED] = gate * ((real)1 - gate) * out;
    }
  }
}

// The perceptron on every atom: s′ in m.a, gates in m.g, vectors before their gates in m.out_v. `tape`: its rows, or
// null.
static __device__ __noinline__ void on_atoms(const real* w, real* scratch, const Gvp& gvp, bool open, real* tape) {
  OWN_VALUES(scratch);
  const Record record = of_atoms(tape);
  linear_parts(w, scratch, gvp);
  norms<LANES>(m, gvp, (const real*)0, 0, record);
  __syncthreads();
  scalars_and_gates<LANES>(w, m, gvp, gvp.n_hidden, open, record);
  if (KEPT(tape) && open) keep_gates<LANES>(m, (const real*)0, record);
}

// ---------------------------------------------------------------- a single output vector

// Adds act(g) Vu/n(Vu) of every atom to x, and writes its Jacobian [3][NUMBERS][PADDED], unless null; act is range ·
// tanh, or the identity if the range is zero. Begins after and ends with a barrier.
static __device__ __noinline__ void single_output(const real* w, real* scratch, const Gvp& gvp, real range, real* jacobian) {
  OWN_VALUES(scratch);
  on_atoms(w, scratch, gvp, false, KEPT(jacobian) ? m.perceptron : (real*)0);
  real *const unit = m.u, *const slope = m.distance, *const over_norm = m.inputs, *const turned = m.inputs + LANES;
  FOR_ITEMS(zero, atom, 1) {
    real out[3], square = (real)0;
    for (int axis = 0; axis < 3; ++axis) {
      out[axis] = m.out_v[axis * LANES + atom];
      square += out[axis] * out[axis];
    }
    const bool turns = square > SMALLEST_SQUARE;
    const real inverse = (real)1 / sqrt(turns ? square : SMALLEST_SQUARE), g = m.g[atom];
    const real bent = range > (real)0 ? tanh(g) : g, act = range > (real)0 ? range * bent : g;
    slope[zero * LANES + atom] = range > (real)0 ? range * ((real)1 - bent * bent) : (real)1;
    over_norm[atom] = act * inverse;
    turned[atom] = turns ? (real)1 : (real)0;
    for (int axis = 0; axis < 3; ++axis) {
      unit[axis * LANES + atom] = inverse * out[axis];
      m.x[axis * LANES + atom] += act * inverse * out[axis];
    }
  }
  if (!KEPT(jacobian)) {
    __syncthreads();
    return;
  }
  // the gradient of g with respect to s and V, back through the perceptron
  real *const by_a = m.perceptron + SLOPE * LANES, *const by_hidden = m.perceptron + OF_HIDDEN * LANES;
  FOR_ITEMS(f, atom, SCALARS) by_a[f * LANES + atom] *= w[gvp.gates + f * 2];
  __syncthreads();
  product(w + gvp.scalars_back, SCALARS, EVEN(SCALARS), LANES, by_a, Zero{}, Store{m.by_s, LANES});
  product(w + gvp.norms_back, SCALARS, EVEN(gvp.n_hidden), LANES, by_a, Zero{}, Store{m.by_norm, LANES});
  __syncthreads();
  FOR_ITEMS(q, atom, 3 * gvp.n_hidden) by_hidden[q * LANES + atom] *= m.by_norm[q / 3 * LANES + atom];
  __syncthreads();
  product(w + gvp.hidden_back, gvp.n_hidden, EVEN(VECTORS), 3 * LANES, by_hidden, Zero{}, Store{m.by_v, 3 * LANES});
  __syncthreads();
  FOR_ITEMS(number, atom, NUMBERS) {
    const int vector = number - SCALARS;
    const real by = slope[atom] * (vector < 0 ? m.by_s[number * LANES + atom] : m.by_v[vector * LANES + atom]);
    const real across = vector < 0 ? (real)0 : over_norm[atom] * w[gvp.outputs + vector / 3 * 2];
    const real along = vector < 0 ? (real)0 : turned[atom] * unit[vector % 3 * LANES + atom];
    for (int axis = 0; axis < 3; ++axis) {
      const real here = unit[axis * LANES + atom], same = vector >= 0 && vector % 3 == axis ? (real)1 : (real)0;
      jacobian[(axis * NUMBERS + number) * PADDED + atom] = by * here + across * (same - along * here);
    }
  }
  __syncthreads();
}

// ---------------------------------------------------------------- layers

// Adds the messages to DESTINATIONS atoms, from `first` on.
static __device__ __noinline__ void messages(const Trunk& a, real* scratch, const Gvp& gvp, int layer, int first, real* tape) {
  OWN_VALUES(scratch);
  const real* const w = a.weights;
  const int places = LEAST(DESTINATIONS, ATOMS - first);
  const Record edges = of_edges(KEPT(tape) ? edges_to(tape, layer, first) : (real*)0, first);
  const Record perceptrons = of_edges(KEPT(tape) ? edges.base + MESSAGE * PADDED : (real*)0, first);
  FOR_EACH(zero, pair, 1, PAIR_LANES) {
    const int i = LEAST(first + pair / PADDED, ATOMS - 1), j = pair % PADDED;
    real d[3], square = (real)0;
    for (int axis = 0; axis < 3; ++axis) {
      d[axis] = m.x[axis * LANES + j] - m.x[axis * LANES + i];
      square += d[axis] * d[axis];
    }
    const bool moves = square > SMALLEST_SQUARE;
    const real norm = sqrt(moves ? square : SMALLEST_SQUARE), distance = norm + ADDED_DISTANCE, inverse = (real)1 / distance;
    m.distance[zero + pair] = distance;
    for (int axis = 0; axis < 3; ++axis) m.u[axis * PAIR_LANES + pair] = inverse * d[axis];
    real* const kept = edges.at(pair);
    if (!kept) continue;
    for (int axis = 0; axis < 3; ++axis) kept[(DIRECTION + axis) * PADDED] = inverse * d[axis];
    kept[STRETCH * PADDED] = moves ? distance / norm : (real)0;
    kept[INVERSE * PADDED] = inverse;
  }
  __syncthreads();
  const real inverse_width = (real)a.inverse_width;
  FOR_EACH(k, pair, RADIAL, PAIR_LANES) {
    const real z = inverse_width * (m.distance[pair] - a.centres[k]), value = exp(-z * z);
    m.inputs[k * PAIR_LANES + pair] = value;
    if (KEPT(tape)) m.slopes[k * PAIR_LANES + pair] = (real)-2 * inverse_width * z * value;
  }
  norms<PAIR_LANES>(m, gvp, w + gvp.direction_hidden, RADIAL, perceptrons);
  __syncthreads();
  if (KEPT(tape)) {
    product(w + gvp.inputs, RADIAL, EVEN(SCALARS), PAIR_LANES, m.slopes, Zero{}, [&](int o, int lane, real* sum) {
      real* const kept = o < SCALARS ? edges.at(lane) : (real*)0;
      if (kept) put_eight(kept + (OF_RADIAL + o) * PADDED, sum);
    });
  }
  scalars_and_gates<PAIR_LANES>(w, m, gvp, RADIAL + gvp.n_hidden, true, perceptrons);
  if (KEPT(tape)) keep_gates<PAIR_LANES>(m, w + gvp.direction_outputs, perceptrons);
  const real factor = (real)a.inverse_message_norm;
  for (int item = threadIdx.x; item < places * NUMBERS; item += THREADS) {
    const int number = item % NUMBERS, place = item / NUMBERS, i = first + place;
    if (number < SCALARS) {
      const real* const of_pairs = m.a + number * PAIR_LANES + place * LANES;
      m.s[number * LANES + i] += factor * sum_over_sources(i, number, [&](int j) { return of_pairs[j]; });
    } else {
      const int vector = number - SCALARS, unit = vector / 3;
      const real *const gates = m.g + unit * PAIR_LANES + place * LANES, *const linear = m.out_v + vector * LANES;
      const real* const u = m.u + vector % 3 * PAIR_LANES + place * LANES;
      const real along_u = w[gvp.direction_outputs + unit];
      m.v[vector * LANES + i] +=
          factor * sum_over_sources(i, number, [&](int j) { return gates[j] * (linear[j] + along_u * u[j]); });
    }
  }
  __syncthreads();
}

// Σ term(f, atom) over f < count, for every atom, by all threads. Begins and ends with a barrier.
template <class Term>
static __device__ void total(const Values& m, real* to, int count, const Term& term) {
  __syncthreads();
  FOR_ITEMS(part, atom, PARTIALS) {
    real sum = (real)0;
    for (int f = part; f < count; f += PARTIALS) sum += term(f, atom);
    m.inputs[part * LANES + atom] = sum;
  }
  __syncthreads();
  FOR_ITEMS(zero, atom, 1) {
    real sum = (real)0;
    for (int part = 0; part < PARTIALS; ++part) sum += m.inputs[part * LANES + atom];
    to[zero * LANES + atom] = sum;
  }
  __syncthreads();
}

// Scalars: layer normalisation; vectors: divided by √(mean max(|V|², 1e-8) + 1e-5) + 1e-5. `tape`: rows of the normalisation.
static __device__ __noinline__ void normalise(const real* w, real* scratch, const Norm& norm, real* tape) {
  OWN_VALUES(scratch);
  real *const mean = m.distance, *const spread = m.u, *const size = m.u + LANES;
  const auto rest = [&](int f, int atom) { return m.s[f * LANES + atom] - ((real)1 / SCALARS) * mean[atom]; };
  const auto square = [&](int u, int atom) {
    real sum = (real)0;
    for (int axis = 0; axis < 3; ++axis) sum += m.v[(3 * u + axis) * LANES + atom] * m.v[(3 * u + axis) * LANES + atom];
    return sum;
  };
  const auto bounded = [&](int u, int atom) {
    const real sum = square(u, atom);
    return sum > SMALLEST_SQUARE ? sum : SMALLEST_SQUARE;
  };
  total(m, mean, SCALARS, [&](int f, int atom) { return m.s[f * LANES + atom]; });
  total(m, spread, SCALARS, [&](int f, int atom) { return rest(f, atom) * rest(f, atom); });
  total(m, size, VECTORS, bounded);
  FOR_ITEMS(f, atom, SCALARS) {
    const real inverse = (real)1 / sqrt(((real)1 / SCALARS) * spread[atom] + EPSILON), weight = w[norm.weight + f];
    const real normal = rest(f, atom) * inverse;
    m.s[f * LANES + atom] = weight * normal + w[norm.bias + f];
    if (!KEPT(tape)) continue;
    tape[(NORMAL + f) * PADDED + atom] = normal;
    tape[(SCALE + f) * PADDED + atom] = weight * inverse;
  }
  FOR_ITEMS(u, atom, VECTORS) {
    const real root = sqrt(((real)1 / VECTORS) * size[atom] + EPSILON), factor = (real)1 / (root + EPSILON);
    const real by = square(u, atom) > SMALLEST_SQUARE ? factor / (VECTORS * root) : (real)0;
    for (int v = 3 * u; v < 3 * u + 3; ++v) {
      const real part = m.v[v * LANES + atom];
      m.v[v * LANES + atom] = factor * part;
      if (!KEPT(tape)) continue;
      tape[(DIVIDED + v) * PADDED + atom] = factor * part;
      tape[(GRADIENT + v) * PADDED + atom] = by * part;
    }
    if (KEPT(tape) && u == 0) tape[FACTOR * PADDED + atom] = factor;
  }
  __syncthreads();
}

static __device__ void layer(const Trunk& a, real* scratch, int l, real* tape) {
  OWN_VALUES(scratch);
  const real* const w = a.weights;
  const Layer& layer = a.layers[l];
  const auto row = [&](int number) { return KEPT(tape) ? atoms_of(tape, l) + number * PADDED : (real*)0; };
  linear_parts(w, scratch, layer.message);
  for (int first = 0; first < ATOMS; first += DESTINATIONS) messages(a, scratch, layer.message, l, first, tape);
  normalise(w, scratch, layer.message_norm, row(MESSAGE_NORM));
  on_atoms(w, scratch, layer.update, true, row(UPDATE));
  FOR_ITEMS(f, atom, SCALARS) m.s[f * LANES + atom] += m.a[f * LANES + atom];
  FOR_ITEMS(v, atom, 3 * VECTORS) m.v[v * LANES + atom] += m.g[v / 3 * LANES + atom] * m.out_v[v * LANES + atom];
  __syncthreads();
  if (l + 1 < LAYERS) single_output(w, scratch, layer.position, (real)a.coordinate_range, row(JACOBIAN));
  normalise(w, scratch, layer.update_norm, row(UPDATE_NORM));
}

// All layers at a point: leaves s and V of the last one. `tape`: null for none.
static __device__ void layers(const Trunk& a, real* scratch, const Point& p, real* tape) {
  OWN_VALUES(scratch);
  read_positions(p.x, m.x);
  const real t = (real)p.t;
  FOR_ITEMS(f, atom, SCALARS) {
    const real embedded = (atom < ATOMS ? a.embedding[atom * SCALARS + f] : (real)0) + t * a.time[f];
    m.s[f * LANES + atom] = embedded * sigmoid(embedded);
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) m.v[v * LANES + atom] = (real)0;
  __syncthreads();
  for (int l = 0; l < LAYERS; ++l) layer(a, scratch, l, tape);
}

#endif
