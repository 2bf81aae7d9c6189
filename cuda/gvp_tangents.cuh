// Derivatives of geometric vector perceptrons along DIRECTIONS at once (tangents.cuh), from the tape of their values
// (gvp.cuh).
#ifndef MODEJUMP_GVP_TANGENTS
#define MODEJUMP_GVP_TANGENTS
#include "gvp.cuh"

#if DIRECTIONS
// Threads that share a sum over an atom's numbers.
#define PARTS_OF_SUM LEAST(TOGETHER(PADDED), LEAST(BESIDE * EVEN(VECTORS), EVEN(SCALARS)))

struct Tangents {
  real *s, *v, *x;                      // [SCALARS][ROWS], [VECTORS][3][ROWS], [3][ROWS]
  real *of_s, *of_v, *out_v;            // linear parts: [SCALARS][ROWS], [HIDDEN][3][ROWS], [VECTORS][3][OUT_ROWS]
  real *distance, *norm, *u, *a, *g;    // [PAIR_ROWS], [HIDDEN][PAIR_ROWS], [3][SUM_ROWS], [SCALARS][SUM_ROWS], [VECTORS][SUM_ROWS]
};

static __device__ Tangents tangents_layout(real* memory) {
  Tangents m;
  m.s = take(memory, EVEN(SCALARS), ROWS);
  m.v = take(memory, 3 * VECTORS, ROWS);
  m.x = take(memory, 3, ROWS);
  m.of_s = take(memory, EVEN(SCALARS), ROWS);
  m.of_v = take(memory, 3 * EVEN(HIDDEN), ROWS);
  m.out_v = take(memory, 3 * EVEN(VECTORS), OUT_ROWS);
  m.distance = take(memory, 1, PAIR_ROWS);
  m.norm = take(memory, EVEN(HIDDEN), PAIR_ROWS);
  m.u = take(memory, 3, SUM_ROWS);
  m.a = take(memory, EVEN(SCALARS), SUM_ROWS);
  m.g = take(memory, EVEN(VECTORS), SUM_ROWS);
  return m;
}

// The parts of a perceptron that are linear in s and V.
static __device__ __noinline__ void linear_tangents(const real* w, real* scratch, const Gvp& gvp) {
  OWN_TANGENTS(scratch);
  const auto store_out = [&](int o, int row, real* sum) { put_eight(m.out_v + (3 * o + row / ROWS) * OUT_ROWS + row % ROWS, sum); };
  product(w + gvp.scalars, SCALARS, EVEN(SCALARS), ROWS, m.s, Zero{}, Store{m.of_s, ROWS});
  product(w + gvp.hidden, VECTORS, EVEN(gvp.n_hidden), 3 * ROWS, m.v, Zero{}, Store{m.of_v, 3 * ROWS});
  product(w + gvp.outputs, VECTORS, EVEN(gvp.n_out), 3 * ROWS, m.v, Zero{}, store_out);
  __syncthreads();
}

// A perceptron's derivatives from those of its linear parts, in WIDTH lanes. `kept(lane)`: its rows of the tape;
// of_s(o, row, eight): initial value of ds′; hidden(q, axis, lane): dVh. ds′ is left in m.a, dg in m.g; with_scalars()
// is called once ds′ is available, and uses the threads that dg leaves idle. Begins after a barrier and ends with one.
template <int WIDTH, class Kept, class OfS, class Hidden, class WithScalars>
static __device__ void perceptron(const real* w, const Tangents& m, const Gvp& gvp, int n_radial, const Kept& kept, const OfS& of_s,
                                  const Hidden& hidden, const WithScalars& with_scalars) {
  FOR_EACH(q, lane, gvp.n_hidden, WIDTH) {
    const real* const by = kept(lane) + (OF_HIDDEN + 3 * q) * PADDED;
    Along sum = nothing();
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) sum = plus(sum, by[axis * PADDED], hidden(q, axis, lane));
    put(m.norm + q * WIDTH * DIRECTIONS, lane, sum);
  }
  __syncthreads();
  const real* const inputs = w + gvp.inputs + n_radial * EVEN(SCALARS);
  product(inputs, gvp.n_hidden, EVEN(SCALARS), WIDTH * DIRECTIONS, m.norm, of_s, scaled(kept, SLOPE, SCALARS, m.a, SUM_ROWS));
  __syncthreads();
  product(w + gvp.gates, SCALARS, EVEN(gvp.n_out), WIDTH * DIRECTIONS, m.a, Zero{}, Store{m.g, SUM_ROWS}, SUM_ROWS);
  with_scalars();
  __syncthreads();
}

// Adds the messages' tangents of BESIDE of the atoms, from `first` on: to them, from all sources; or FROM them, to all
// that the share does not move. A lane is a pair of one of them and any atom.
template <bool FROM>
static __device__ __noinline__ void message_tangents(const Trunk& a, real* scratch, const Gvp& gvp, const Share share,
                                                     const Lanes<FROM> lanes, const real* tape, int layer) {
  OWN_TANGENTS(scratch);
  const real* const w = a.weights;
  const real *const direction_hidden = w + gvp.direction_hidden, *const direction_outputs = w + gvp.direction_outputs;
  const auto source = [&](int lane) { return lanes.source(lane); };
  const auto target = [&](int lane) { return lanes.target(lane); };
  const auto edge = [&](int lane) { return lanes.edge(tape, layer, lane); };
  const auto kept = [&](int lane) { return edge(lane) + MESSAGE * PADDED; };
  FOR_EACH(zero, lane, 1, LINES) {
    const real* const of_edge = edge(lane);
    Along moved[3], distance = nothing();
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      moved[axis] = along(m.x + axis * ROWS, source(lane)) - along(m.x + axis * ROWS, target(lane));
      distance = plus(distance, of_edge[(DIRECTION + axis) * PADDED], moved[axis]);
    }
    distance = of_edge[STRETCH * PADDED] * distance;
    put(m.distance + zero, lane, distance);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const Along across = plus(moved[axis], -of_edge[(DIRECTION + axis) * PADDED], distance);
      put(m.u + axis * SUM_ROWS, lane, of_edge[INVERSE * PADDED] * across);
    }
  }
  __syncthreads();
  const auto of_s = [&](int o, int row, real* sum) {
    const int number = OF_RADIAL + LEAST(o, SCALARS - 1);
#pragma unroll
    for (int r = 0; r < 8; r += DIRECTIONS) {
      const int lane = row / DIRECTIONS + r / DIRECTIONS;
      const Along start = plus(along(m.of_s + o * ROWS, source(lane)), edge(lane)[number * PADDED], along(m.distance, lane));
#pragma unroll
      for (int d = 0; d < DIRECTIONS; ++d) sum[r + d] = start.v[d];
    }
  };
  const auto hidden = [&](int q, int axis, int lane) {
    return plus(along(m.of_v + (3 * q + axis) * ROWS, source(lane)), direction_hidden[q], along(m.u + axis * SUM_ROWS, lane));
  };
  const real factor = (real)a.inverse_message_norm;
  const int places = lanes.places();
  const auto add = [&](real* to, int atom, Along sum) { put(to, atom, plus(along(to, atom), factor, sum)); };
  if (FROM) {
    perceptron<LINES>(w, m, gvp, RADIAL, kept, of_s, hidden, [] {});
    FOR_ITEMS(number, atom, NUMBERS) {
      if (atom >= ATOMS || share.moves(atom)) continue;
      const int vector = number - SCALARS, unit = vector / 3;
      Along sum = nothing();
      for (int lane = atom; lane < places * PADDED; lane += PADDED) {
        if (vector < 0) {
          sum = sum + along(m.a + number * SUM_ROWS, lane);
        } else {
          const Along out = plus(along(m.out_v + vector * OUT_ROWS, source(lane)), direction_outputs[unit],
                                 along(m.u + vector % 3 * SUM_ROWS, lane));
          sum = plus(sum, kept(lane)[(GATE + unit) * PADDED], out);
          sum = plus(sum, kept(lane)[(GATED + vector) * PADDED], along(m.g + unit * SUM_ROWS, lane));
        }
      }
      add(vector < 0 ? m.s + number * ROWS : m.v + vector * ROWS, atom, sum);
    }
  } else {
    // pairs that do not count have zeros on the tape
    const auto sum_scalars = [&] {
      for (int item = THREADS - 1 - threadIdx.x; item < places * SCALARS; item += THREADS) {
        const int number = item % SCALARS, place = item / SCALARS;
        const real* const of_pairs = m.a + number * SUM_ROWS;
        Along sum = nothing();
#pragma unroll 8
        for (int j = 0; j < PADDED; ++j) sum = sum + along(of_pairs, place * PADDED + j);
        add(m.s + number * ROWS, lanes.own(place * PADDED), sum);
      }
    };
    perceptron<LINES>(w, m, gvp, RADIAL, kept, of_s, hidden, sum_scalars);
    for (int item = threadIdx.x; item < places * 3 * VECTORS; item += THREADS) {
      const int vector = item % (3 * VECTORS), unit = vector / 3, place = item / (3 * VECTORS), pairs = place * PADDED;
      const real *const gates = kept(pairs) + (GATE + unit) * PADDED, *const gated = kept(pairs) + (GATED + vector) * PADDED;
      const real *const out = m.out_v + vector * OUT_ROWS, *const u = m.u + vector % 3 * SUM_ROWS, *const g = m.g + unit * SUM_ROWS;
      const real along_u = direction_outputs[unit];
      Along sum = nothing();
#pragma unroll 2
      for (int four = 0; four < PADDED; four += 4) {
        const Four by_out = *(const Four*)(gates + four), by_gate = *(const Four*)(gated + four);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int j = four + r;
          sum = plus(sum, by_out.v[r], plus(along(out, j), along_u, along(u, pairs + j)));
          sum = plus(sum, by_gate.v[r], along(g, pairs + j));
        }
      }
      add(m.v + vector * ROWS, lanes.own(place * PADDED), sum);
    }
  }
  __syncthreads();
}

// ds ← weight/sd (ds − mean(ds) − normal · mean(normal · ds)), dV ← factor dV − V′ (gradient · dV). `tape`: rows of the normalisation.
static __device__ __noinline__ void normalise_tangents(real* scratch, const real* tape) {
  OWN_TANGENTS(scratch);
  const auto at = [&](int number, int atom) { return tape[number * PADDED + atom]; };
  FOR_ITEMS(part, atom, PARTS_OF_SUM) {
    Along mean = nothing(), normal = nothing(), gradient = nothing();
#pragma unroll 4
    for (int f = part; f < SCALARS; f += PARTS_OF_SUM) {
      const Along s = along(m.s + f * ROWS, atom);
      mean = mean + s;
      normal = plus(normal, at(NORMAL + f, atom), s);
    }
#pragma unroll 4
    for (int v = part; v < 3 * VECTORS; v += PARTS_OF_SUM) gradient = plus(gradient, at(GRADIENT + v, atom), along(m.v + v * ROWS, atom));
    put(m.a + part * ROWS, atom, mean);
    put(m.of_s + part * ROWS, atom, normal);
    put(m.g + part * ROWS, atom, gradient);
  }
  __syncthreads();
  real *const mean = m.distance, *const normal = m.u, *const gradient = m.u + SUM_ROWS;
  for (int item = threadIdx.x; item < 3 * PADDED; item += THREADS) {
    const int which = item / PADDED, atom = item % PADDED;
    const real* const parts = which == 0 ? m.a : which == 1 ? m.of_s : m.g;
    Along sum = nothing();
    for (int part = 0; part < PARTS_OF_SUM; ++part) sum = sum + along(parts + part * ROWS, atom);
    if (which == 2) put(gradient, atom, sum);
    else put(which == 0 ? mean : normal, atom, ((real)1 / SCALARS) * sum);
  }
  __syncthreads();
  FOR_ITEMS(f, atom, SCALARS) {
    const Along rest = plus(along(m.s + f * ROWS, atom), (real)-1, along(mean, atom));
    put(m.s + f * ROWS, atom, at(SCALE + f, atom) * plus(rest, -at(NORMAL + f, atom), along(normal, atom)));
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) {
    const Along scaled = at(FACTOR, atom) * along(m.v + v * ROWS, atom);
    put(m.v + v * ROWS, atom, plus(scaled, -at(DIVIDED + v, atom), along(gradient, atom)));
  }
  __syncthreads();
}

// dx += J (ds, dV).
static __device__ __noinline__ void output_tangents(real* scratch, const real* jacobian) {
  OWN_TANGENTS(scratch);
  FOR_EACH(axis, row, 3, ROWS) {
    const real* const line = jacobian + axis * NUMBERS * PADDED + row / DIRECTIONS;
    real sum = (real)0;
#pragma unroll 8
    for (int f = 0; f < SCALARS; ++f) sum += line[f * PADDED] * m.s[f * ROWS + row];
#pragma unroll 8
    for (int v = 0; v < 3 * VECTORS; ++v) sum += line[(SCALARS + v) * PADDED] * m.v[v * ROWS + row];
    m.x[axis * ROWS + row] += sum;
  }
  __syncthreads();
}

// The update of every atom. `tape`: rows of its perceptron.
static __device__ __noinline__ void update_tangents(const real* w, real* scratch, const Gvp& gvp, const real* tape) {
  OWN_TANGENTS(scratch);
  linear_tangents(w, scratch, gvp);
  const auto kept = [&](int atom) { return tape + atom; };
  const auto of_s = [&](int o, int row, real* sum) { get_eight(m.of_s + o * ROWS + row, sum); };
  const auto hidden = [&](int q, int axis, int atom) { return along(m.of_v + (3 * q + axis) * ROWS, atom); };
  perceptron<PADDED>(w, m, gvp, 0, kept, of_s, hidden, [&] {
    FOR_ITEMS(f, atom, SCALARS) put(m.s + f * ROWS, atom, along(m.s + f * ROWS, atom) + along(m.a + f * SUM_ROWS, atom));
  });
  FOR_ITEMS(v, atom, 3 * VECTORS) {
    const real gate = tape[(GATE + v / 3) * PADDED + atom], gated = tape[(GATED + v) * PADDED + atom];
    const Along opened = plus(along(m.v + v * ROWS, atom), gate, along(m.out_v + v * OUT_ROWS, atom));
    put(m.v + v * ROWS, atom, plus(opened, gated, along(m.g + v / 3 * SUM_ROWS, atom)));
  }
  __syncthreads();
}

// Tangents of all layers along the directions of a point's share: leaves ds and dV of the last one. With `trace` only
// those atoms of the last layer are right that a share of a divergence needs: its own and the last.
static __device__ void tangents(const Trunk& a, real* scratch, const Point& p, bool trace, const real* tape) {
  OWN_TANGENTS(scratch);
  const Share share = {p.part};
  read_directions(p, m.x);
  // nothing before the first layer's messages depends on x
  FOR_ITEMS(f, atom, EVEN(SCALARS)) {
    put(m.s + f * ROWS, atom, nothing());
    put(m.of_s + f * ROWS, atom, nothing());
  }
  FOR_ITEMS(v, atom, 3 * VECTORS) put(m.v + v * ROWS, atom, nothing());
  FOR_ITEMS(q, atom, 3 * EVEN(HIDDEN)) put(m.of_v + q * ROWS, atom, nothing());
  FOR_ITEMS(u, atom, 3 * EVEN(VECTORS)) put(m.out_v + u * OUT_ROWS, atom, nothing());
  __syncthreads();
  for (int l = 0; l < LAYERS; ++l) {
    const Layer& layer = a.layers[l];
    const real* const of_atoms = atoms_of(tape, l);
    const Atoms atoms = destinations_of(p, l, trace);
    if (l > 0) linear_tangents(a.weights, scratch, layer.message);
    for (int first = 0; first < atoms.number; first += BESIDE)
      message_tangents(a, scratch, layer.message, share, Lanes<false>{atoms, first}, tape, l);
    for (int first = 0; is_sparse(p, l) && first < atoms.number; first += BESIDE)
      message_tangents(a, scratch, layer.message, share, Lanes<true>{atoms, first}, tape, l);
    normalise_tangents(scratch, of_atoms + MESSAGE_NORM * PADDED);
    update_tangents(a.weights, scratch, layer.update, of_atoms + UPDATE * PADDED);
    if (l + 1 < LAYERS) output_tangents(scratch, of_atoms + JACOBIAN * PADDED);
    normalise_tangents(scratch, of_atoms + UPDATE_NORM * PADDED);
  }
}

#endif

#endif
