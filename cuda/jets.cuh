// Vector fields of molecules with exact divergences by forward mode: what their kernels share.
//
// A block takes one configuration through the whole network; everything it needs lies in shared memory, or in memory of its own
// where that is too small. A number is a jet of COMPONENTS: its value, and its derivatives along COMPONENTS − 1 directions,
//
//   1  the value of the field
//   2  the derivative along a given direction, or along one coordinate
//   4  the derivatives along the three coordinates of one atom
//
// so a divergence is shared out over blocks, each with the coordinates of other atoms. A linear layer acts on every component
// alike: it is one product with PADDED · COMPONENTS lanes, and only the value gets the bias. Moving all atoms together changes
// nothing, so derivatives along the last atom are minus the sum of the others.
//
// Messages are computed for DESTINATIONS atoms at once, so that there is work for all threads between two barriers: their pairs
// with all sources are as many times LANES lanes.
//
// ATOMS, PADDED (atoms, a multiple of 8), COMPONENTS, SCRATCH (whether a block's state is too large for shared memory) and, for fields,
// DESTINATIONS are given when a kernel is compiled.
#ifndef MODEJUMP_JETS
#define MODEJUMP_JETS
// Their state in shared memory lets fewer blocks run at once than registers do.
#ifndef RESIDENT
#define RESIDENT 256
#endif
// With three warps a scheduler the work on eight weights of each is longer than the way to the L2 cache.
#ifndef READS
#define READS (sizeof(REAL) > 4 ? 4 : 8)
#endif
#include "common.cuh"

#define LANES (PADDED * COMPONENTS)

// `memory`, the state of a block, of `size` numbers.
#if SCRATCH
#define BLOCK_MEMORY(scratch, size) real* const memory = (scratch) + (size_t)blockIdx.x * (size)
#else
#define BLOCK_MEMORY(scratch, size) \
  DYNAMIC_SHARED(shared);           \
  real* const memory = (real*)shared
#endif
#define EVEN(n) (((n) + 1) / 2 * 2)

#define FOR_EACH(i, lane, count, width)                                                        \
  for (int item = threadIdx.x, i = item / (width), lane = item % (width); item < (count) * (width); \
       item += THREADS, i = item / (width), lane = item % (width))
#define FOR_ITEMS(i, atom, count) FOR_EACH(i, atom, count, PADDED)

// ---------------------------------------------------------------- jets

struct alignas(COMPONENTS * sizeof(real)) Jet { real v[COMPONENTS]; };

// Read and written at once.
static __device__ Jet jet_at(const real* array, int lane) { return *(const Jet*)(array + lane * COMPONENTS); }
static __device__ void put(real* array, int lane, Jet a) { *(Jet*)(array + lane * COMPONENTS) = a; }
// The same in registers.
static __device__ Jet jet_of(const real* lanes, int lane) {
  Jet a;
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) a.v[c] = lanes[lane * COMPONENTS + c];
  return a;
}
static __device__ void put_in(real* lanes, int lane, Jet a) {
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) lanes[lane * COMPONENTS + c] = a.v[c];
}
static __device__ Jet constant(real value) {
  Jet a;
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) a.v[c] = c == 0 ? value : (real)0;
  return a;
}
static __device__ Jet operator+(Jet a, Jet b) {
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) a.v[c] += b.v[c];
  return a;
}
static __device__ Jet operator-(Jet a, Jet b) {
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) a.v[c] -= b.v[c];
  return a;
}
static __device__ Jet operator*(real s, Jet a) {
#pragma unroll
  for (int c = 0; c < COMPONENTS; ++c) a.v[c] *= s;
  return a;
}
static __device__ Jet operator*(Jet a, Jet b) {
  Jet r;
  r.v[0] = a.v[0] * b.v[0];
#pragma unroll
  for (int c = 1; c < COMPONENTS; ++c) r.v[c] = a.v[c] * b.v[0] + a.v[0] * b.v[c];
  return r;
}
// f(a), from f and f′ there.
static __device__ Jet chain(Jet a, real value, real slope) {
  a.v[0] = value;
#pragma unroll
  for (int c = 1; c < COMPONENTS; ++c) a.v[c] *= slope;
  return a;
}
static __device__ Jet root(Jet a) {
  const real value = sqrt(a.v[0]);
  return chain(a, value, (real)0.5 / value);
}
static __device__ Jet reciprocal(Jet a) {
  const real value = (real)1 / a.v[0];
  return chain(a, value, -value * value);
}
static __device__ Jet sigmoid(Jet a) {
  const real value = (real)1 / ((real)1 + exp(-a.v[0]));
  return chain(a, value, value * ((real)1 - value));
}
// a σ(βa)
static __device__ Jet swish(Jet a, real beta) {
  const real scaled = beta * a.v[0], s = (real)1 / ((real)1 + exp(-scaled));
  return chain(a, a.v[0] * s, s * ((real)1 + scaled * ((real)1 - s)));
}
static __device__ Jet hyperbolic_tangent(Jet a) {
  const real value = tanh(a.v[0]);
  return chain(a, value, (real)1 - value * value);
}
static __device__ Jet at_least(Jet a, real smallest) { return a.v[0] < smallest ? constant(smallest) : a; }

// ---------------------------------------------------------------- lanes of products

// Eight lanes of a product that starts at a bias, and of one that starts at zero.
struct Bias {
  const real* bias;
  __device__ void operator()(int o, int, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = r % COMPONENTS == 0 ? bias[o] : (real)0;
  }
};
struct Zero {
  __device__ void operator()(int, int, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = (real)0;
  }
};
struct Store {
  real* to;
  int lanes;
  __device__ void operator()(int o, int lane, real* sum) const { put_eight(to + o * lanes + lane, sum); }
};

// Places in the weights of a layer normalisation's parameters, and of a linear layer's: [in][out], the transpose [out][in], bias.
struct Norm { int weight, bias; };
struct Linear { int forward, back, bias; };

// The next `numbers` rows of a block's state.
static __device__ real* take(real*& memory, int numbers) {
  real* const start = memory;
  memory += numbers * LANES;
  return start;
}

// ---------------------------------------------------------------- atoms that messages go to

#ifdef DESTINATIONS
#define PAIRS (DESTINATIONS * PADDED)
#define PAIR_LANES (DESTINATIONS * LANES)
#endif

// All atoms, or `only` and the last: a share of a divergence needs no more of the last layer.
struct Targets {
  int only;
  __device__ int number() const { return only < 0 ? ATOMS : 2; }
  __device__ int atom(int index) const {
    const int last = index < number() ? index : number() - 1;
    return only < 0 ? last : last == 0 ? only : ATOMS - 1;
  }
};

// Component c of a sum over the sources j of messages to atom i: term(word) of component c of atom j. `number` says which source comes
// first, so that neighbouring threads, which sum up rows of other numbers, read from other banks.
template <class Term>
static __device__ real sum_over_sources(int i, int number, int c, const Term& term) {
  real sum = (real)0;
  int j = number % ATOMS;
#pragma unroll 2
  for (int k = 0; k < ATOMS; ++k) {
    if (j != i) sum += term(j * COMPONENTS + c);
    j = j + 1 < ATOMS ? j + 1 : 0;
  }
  return sum;
}

// Component word % COMPONENTS of a product of jets, of which a(word) and b(word) are the numbers.
template <class A, class B>
static __device__ real product_at(int word, const A& a, const B& b) {
  const int value = word / COMPONENTS * COMPONENTS;
  return word == value ? a(value) * b(value) : a(word) * b(value) + a(value) * b(word);
}

// ---------------------------------------------------------------- where a field is evaluated

#ifndef DIRECTIONS
#define DIRECTIONS (COMPONENTS - 1)
#endif
#define PARTS (DIRECTIONS == 0 ? 1 : (3 * (ATOMS - 1) + DIRECTIONS - 1) / (DIRECTIONS == 0 ? 1 : DIRECTIONS))

// One evaluation by one block: the field at (t, x), with derivatives along `dx` or, without it, along the coordinates of the
// part-th share of the divergence; and where it goes, unless null. `divergence`: the share, or the derivative's product with dx.
// `again`: the block was at this point when it was called last, for another part.
struct Point {
  double t;
  const double *x, *dx;  // [ATOMS][3], as f and df
  int part;
  bool again;
  double *f, *df, *divergence;
};

// What the last layer must find for a point.
static __device__ Targets targets_of(const Point& p) {
  const Targets targets = {COMPONENTS > 1 && !p.dx && !p.f && !p.df ? p.part * DIRECTIONS / 3 : -1};
  return targets;
}

// x with its centroid at the origin, and its derivatives, to [3][LANES].
static __device__ void read_positions(const Point& p, real* to) {
  FOR_ITEMS(axis, atom, 3) {
    double centre = 0.0;
    for (int i = 0; i < ATOMS; ++i) centre += p.x[3 * i + axis];
    centre *= 1.0 / ATOMS;
    // padding far away from everything, so that it divides by nothing small
    Jet value = constant((real)(atom < ATOMS ? p.x[3 * atom + axis] - centre : 1e3 * (atom + 1)));
#pragma unroll
    for (int c = 1; c < COMPONENTS; ++c) {
      const int direction = p.part * DIRECTIONS + c - 1;
      if (p.dx) value.v[c] = (real)(atom < ATOMS ? p.dx[3 * atom + axis] : 0.0);
      else value.v[c] = (real)(3 * atom + axis == direction ? 1.0 : 0.0);
    }
    put(to + axis * LANES, atom, value);
  }
}

// The field's derivatives to where they go: change(d, i) of coordinate i along the d-th direction.
template <class Change>
static __device__ void write_derivatives(const Point& p, const Change& change) {
  if (p.df)
    for (int i = threadIdx.x; i < 3 * ATOMS; i += THREADS) p.df[i] = (double)change(0, i);
  if (!p.divergence || threadIdx.x > 0) return;
  double sum = 0.0;
  if (p.dx) {
    for (int i = 0; i < 3 * ATOMS; ++i) sum += p.dx[i] * (double)change(0, i);
  } else {
    for (int d = 0; d < DIRECTIONS; ++d) {
      const int i = p.part * DIRECTIONS + d;
      if (i < 3 * (ATOMS - 1)) sum += (double)change(d, i) - (double)change(d, 3 * (ATOMS - 1) + i % 3);
    }
  }
  *p.divergence = sum;
}

// The field in [3][LANES] to where it goes. Begins and ends with a barrier.
static __device__ void write_field(const Point& p, const real* field) {
  __syncthreads();
  FOR_ITEMS(axis, atom, 3)
    if (p.f && atom < ATOMS) p.f[3 * atom + axis] = (double)jet_at(field + axis * LANES, atom).v[0];
  if (DIRECTIONS) write_derivatives(p, [&](int d, int i) { return field[i % 3 * LANES + i / 3 * COMPONENTS + 1 + d]; });
  __syncthreads();
}

// ---------------------------------------------------------------- a batch

// x[n][ATOMS][3] and t[n]; dx as x for derivatives along a direction; f and df as x; parts[n][PARTS] of the divergence.
struct Batch {
  const double* t;
  const double* x;
  const double* dx;
  double* f;
  double* df;
  double* parts;
  real* scratch;  // with SCRATCH a block's state after the other
  u32* arrivals;  // of teams, zero
  int n, padding;
};

static __device__ Point point_of(const Batch& a, int row, int part, bool again) {
  const size_t first = (size_t)row * 3 * ATOMS;
  const Point p = {a.t[row], a.x + first, a.dx ? a.dx + first : a.dx, part, again, part == 0 ? a.f + first : (double*)0,
                   a.df ? a.df + first : a.df, a.parts ? a.parts + (size_t)row * PARTS + part : a.parts};
  return p;
}

// work(row, part, again) for a block's parts of all rows, which are neighbours; `again` if its last one was of this row.
template <class Work>
static __device__ void share_out(int rows, int parts, const Work& work) {
  const u64 all = (u64)rows * parts;
  const int first = (int)(all * blockIdx.x / gridDim.x), last = (int)(all * (blockIdx.x + 1) / gridDim.x);
  for (int at = first; at < last; ++at) work(at / parts, at % parts, at > first && at % parts > 0);
}

// A field, `of_point`, of all rows of a batch, and of all parts of their divergences.
template <class Field>
static __device__ void evaluate_rows(const Batch& a, const Field& of_point) {
  share_out(a.n, a.parts ? PARTS : 1, [&](int row, int part, bool again) { of_point(point_of(a, row, part, again)); });
}

#endif
