// Message-passing networks between all atoms of a molecule, with derivatives by forward mode: common to vector fields
// with their exact divergences and energies with their scores.
//
// A block first computes the values of a configuration, and records on a tape the factors that their derivatives need.
// After that, everything is linear and done along DIRECTIONS at once: products with the network's weights, and with
// numbers of the tape, which serve every direction. Shares of a divergence or of a score, the coordinates of a few
// atoms each, go to different blocks, or use one tape in turn. By translation invariance a field's derivatives along
// the last atom are minus the sum of the others.
//
// Messages are computed for several atoms at once, so that there is work for all threads between two barriers: values
// of those to DESTINATIONS atoms, tangents of those of BESIDE atoms. Lanes are their pairs with all atoms.
//
// ATOMS, DIRECTIONS (0 in programs for values alone), DESTINATIONS and BESIDE are defined at compilation. Before
// including this file a model defines the number of tape rows for an edge and for an atom in each of LAYERS, OF_EDGE
// and OF_ATOM, and the sizes of a block's memory, VALUES_MEMORY and TANGENTS_MEMORY.
#ifndef MODEJUMP_TANGENTS
#define MODEJUMP_TANGENTS
#include "networks.cuh"

#define PAIR_LANES (DESTINATIONS * PADDED)
// Threads that share a lane's numbers, given the number of lanes.
#define TOGETHER(lanes) MOST(THREADS / (lanes), 1)

static __device__ real sigmoid(real x) { return (real)1 / ((real)1 + exp(-x)); }

// ---------------------------------------------------------------- the tape

// Rows of PADDED lanes, one tape per block; the lanes of an edge's rows are its sources.
#define OF_LAYER ((size_t)(ATOMS * OF_EDGE + OF_ATOM) * PADDED)
#define TAPE (DIRECTIONS ? LAYERS * OF_LAYER : 0)
// Whether to record on a tape.
#define KEPT(tape) (DIRECTIONS && (tape))

// Rows of the edges to an atom, and of all atoms, in a layer.
template <class Number>
static __device__ Number* edges_to(Number* tape, int layer, int atom) {
  return IN_GLOBAL(tape) + layer * OF_LAYER + (size_t)atom * OF_EDGE * PADDED;
}
template <class Number>
static __device__ Number* atoms_of(Number* tape, int layer) {
  return edges_to(tape, layer, ATOMS);
}

// Where lanes record: for atoms, or for edges to `places` atoms from `target` on, `stride` apart; nowhere without
// `base`.
struct Record {
  real* base;
  int places, target, stride;
  // First row at a lane.
  __device__ real* at(int lane) const {
    const int place = lane / PADDED;
    return base && place < places ? base + (size_t)place * stride + lane % PADDED : (real*)0;
  }
  // Whether a lane is a real message: not from an atom to itself nor from padding.
  __device__ bool counts(int lane) const {
    return target < 0 || (lane % PADDED != target + lane / PADDED && lane % PADDED < ATOMS);
  }
};
static __device__ Record of_atoms(real* base) {
  const Record record = {base, 1, -1, 0};
  return record;
}
static __device__ Record of_edges(real* base, int first) {
  const Record record = {base, LEAST(DESTINATIONS, ATOMS - first), first, OF_EDGE * PADDED};
  return record;
}

// ---------------------------------------------------------------- memory of a block

// Lanes of pairs, and rows of tangents: of atoms, of pairs, and of what is summed over sources; the latter start in
// different banks, as neighbouring threads sum neighbouring numbers.
#define LINES (BESIDE * PADDED)
#define ROWS (PADDED * DIRECTIONS)
#define PAIR_ROWS (BESIDE * ROWS)
#define SUM_ROWS (PAIR_ROWS + 4)

#define MEMORY (DIRECTIONS ? MOST(VALUES_MEMORY, TANGENTS_MEMORY) : VALUES_MEMORY)

static __device__ real* block_tape(real* scratch) { return scratch + (size_t)blockIdx.x * (TAPE + (SCRATCH ? MEMORY : 0)); }

// A block's memory; every function that is not inlined derives it anew, so that the compiler knows its address space.
#define OWN_MEMORY(scratch) BLOCK_MEMORY(block_tape(scratch) + TAPE)
#define OWN_VALUES(scratch) OWN_MEMORY(scratch); const Values m = values_layout(memory)
#define OWN_TANGENTS(scratch) OWN_MEMORY(scratch); const Tangents m = tangents_layout(memory)

// ---------------------------------------------------------------- values

// Σ term(j) over the sources j of messages to atom i. `number` determines which source comes first, so that
// neighbouring threads, which sum rows of other numbers, read from other banks.
template <class Term>
static __device__ real sum_over_sources(int i, int number, const Term& term) {
  real sum = (real)0;
  int j = number % ATOMS;
#pragma unroll 2
  for (int k = 0; k < ATOMS; ++k) {
    if (j != i) sum += term(j);
    j = j + 1 < ATOMS ? j + 1 : 0;
  }
  return sum;
}

// ---------------------------------------------------------------- where a field is evaluated

#define PARTS (DIRECTIONS == 0 ? 1 : (3 * (ATOMS - 1) + DIRECTIONS - 1) / (DIRECTIONS == 0 ? 1 : DIRECTIONS))

// One evaluation by one block: the field at (t, x), with derivatives along `dx` or, without it, along the coordinates
// of share number `part` of the divergence; and where the results go, unless null. `divergence`: the share, or the
// product of the derivative with dx. `again`: the block's previous call was at the same point, for another part.
struct Point {
  double t;
  const double *x, *dx;  // [ATOMS][3], as are f and df
  int part;
  bool again;
  double *f, *df, *divergence;
};

static __device__ Point point_of(const Batch& a, int row, int part, bool again) {
  const size_t first = (size_t)row * 3 * ATOMS;
  const Point p = {a.t[row], a.x + first, a.dx ? a.dx + first : a.dx, part, again, part == 0 ? a.f + first : (double*)0,
                   a.df ? a.df + first : a.df, a.parts ? a.parts + (size_t)row * PARTS + part : a.parts};
  return p;
}

// Evaluates a field, `of_point`, for all rows of a batch, and all parts of their divergences.
template <class Field>
static __device__ void evaluate_rows(const Batch& a, const Field& of_point) {
  share_out(a.n, a.parts ? PARTS : 1, [&](int row, int part, bool again) { of_point(point_of(a, row, part, again)); });
}

// The field at one point, from its values(network, scratch, point, tape) and, from their tape, its derivatives(..).
template <class Network>
static __device__ void field(const Network& a, real* scratch, const Point& p) {
  const bool with_derivatives = p.df || p.divergence;
  if (!p.again) values(a, scratch, p, with_derivatives ? block_tape(scratch) : (real*)0);
#if DIRECTIONS
  if (with_derivatives) derivatives(a, scratch, p, block_tape(scratch));
#endif
}

// ---------------------------------------------------------------- tangents

#if DIRECTIONS

// Derivatives of a number, held by one thread; arrays are [numbers][lanes][DIRECTIONS], the lanes being atoms or pairs.
struct alignas(DIRECTIONS * sizeof(real)) Along { real v[DIRECTIONS]; };

static __device__ Along along(const real* rows, int lane) { return *(const Along*)(rows + lane * DIRECTIONS); }
static __device__ void put(real* rows, int lane, Along a) { *(Along*)(rows + lane * DIRECTIONS) = a; }
static __device__ Along nothing() {
  Along a;
#pragma unroll
  for (int d = 0; d < DIRECTIONS; ++d) a.v[d] = (real)0;
  return a;
}
// a + s b
static __device__ Along plus(Along a, real s, Along b) {
#pragma unroll
  for (int d = 0; d < DIRECTIONS; ++d) a.v[d] += s * b.v[d];
  return a;
}
static __device__ Along operator+(Along a, Along b) { return plus(a, (real)1, b); }
static __device__ Along operator-(Along a, Along b) { return plus(a, (real)-1, b); }
static __device__ Along operator*(real s, Along a) {
#pragma unroll
  for (int d = 0; d < DIRECTIONS; ++d) a.v[d] *= s;
  return a;
}

// The next `numbers` rows of `row` numbers.
static __device__ real* take(real*& memory, int numbers, int row) {
  real* const start = memory;
  memory += numbers * row;
  return start;
}

// Stores a product's rows, each multiplied by a number of the tape: for output o the o-th of the `count` that
// kept(lane) has from `first` on.
template <class Kept>
static __device__ auto scaled(const Kept& kept, int first, int count, real* to, int stride) {
  return [=](int o, int row, real* sum) {
    const int number = first + LEAST(o, count - 1);
#pragma unroll
    for (int r = 0; r < 8; r += DIRECTIONS) {
      const real scale = kept(row / DIRECTIONS + r / DIRECTIONS)[number * PADDED];
#pragma unroll
      for (int d = 0; d < DIRECTIONS; ++d) sum[r + d] *= scale;
    }
    put_eight(to + o * stride + row, sum);
  };
}

// Coordinates of the directions of a share, first to last, and their atoms.
struct Share {
  int part;
  __device__ int first_atom() const { return part * DIRECTIONS / 3; }
  __device__ int last_atom() const { return LEAST((part * DIRECTIONS + DIRECTIONS - 1) / 3, ATOMS - 1); }
  __device__ int atoms() const { return last_atom() - first_atom() + 1; }
  __device__ bool moves(int atom) const { return first_atom() <= atom && atom <= last_atom(); }
};

// Atoms with all their pairs: `count` from `first` on, plus the last of all if `number` is one more.
struct Atoms {
  int first, count, number;
  __device__ int at(int index) const { return index < count ? first + index : ATOMS - 1; }
};

// Whether only the pairs of a share's own atoms change: in the first layer, where only x depends on x.
static __device__ bool is_sparse(const Point& p, int layer) { return layer == 0 && !p.dx; }

// Atoms whose messages are needed in a layer: with `trace`, for a divergence, in the last layer only the share's atoms
// and the last atom.
static __device__ Atoms destinations_of(const Point& p, int layer, bool trace) {
  const Share share = {p.part};
  const bool sparse = is_sparse(p, layer), few = sparse || (layer + 1 == LAYERS && trace && !p.dx);
  const int number = few ? share.atoms() : ATOMS, with_last = few && !sparse && share.last_atom() < ATOMS - 1 ? 1 : 0;
  const Atoms atoms = {few ? share.first_atom() : 0, number, number + with_last};
  return atoms;
}

// Lanes of the messages to BESIDE of the atoms, from `first` on, from all sources; or FROM them, to all.
template <bool FROM>
struct Lanes {
  Atoms atoms;
  int first;
  __device__ int places() const { return LEAST(BESIDE, atoms.number - first); }
  __device__ int own(int lane) const { return atoms.at(LEAST(first + lane / PADDED, atoms.number - 1)); }
  __device__ int source(int lane) const { return FROM ? own(lane) : lane % PADDED; }
  // the tape has edges from padding, but none to it
  __device__ int target(int lane) const { return FROM ? LEAST(lane % PADDED, ATOMS - 1) : own(lane); }
  // Rows of the tape.
  __device__ const real* edge(const real* tape, int layer, int lane) const {
    return edges_to(tape, layer, target(lane)) + source(lane);
  }
};

// Reads derivatives of x to [3][ROWS].
static __device__ void read_directions(const Point& p, real* to) {
  FOR_EACH(axis, row, 3, ROWS) {
    const int atom = row / DIRECTIONS, direction = p.part * DIRECTIONS + row % DIRECTIONS;
    const double moved = atom >= ATOMS ? 0.0 : p.dx ? p.dx[3 * atom + axis] : 3 * atom + axis == direction ? 1.0 : 0.0;
    to[axis * ROWS + row] = (real)moved;
  }
}

// Writes the field's derivatives [3][ROWS] to their destination.
static __device__ void write_derivatives(const Point& p, const real* field) {
  const auto change = [&](int d, int i) { return (double)field[i % 3 * ROWS + i / 3 * DIRECTIONS + d]; };
  if (p.df)
    for (int i = threadIdx.x; i < 3 * ATOMS; i += THREADS) p.df[i] = change(0, i);
  if (!p.divergence || threadIdx.x > 0) return;
  double sum = 0.0;
  if (p.dx) {
    for (int i = 0; i < 3 * ATOMS; ++i) sum += p.dx[i] * change(0, i);
  } else {
    for (int d = 0; d < DIRECTIONS; ++d) {
      const int i = p.part * DIRECTIONS + d;
      if (i < 3 * (ATOMS - 1)) sum += change(d, i) - change(d, 3 * (ATOMS - 1) + i % 3);
    }
  }
  *p.divergence = sum;
}

#endif

#endif
