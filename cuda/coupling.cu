// Complete coupling flows: latent points → layers → internal coordinates → x and log q, and back, in one launch.
//
// A block takes TILE configurations through all layers: 8 or 16, so that a weight serves all of them, or a single one
// that has the block to itself. Their coordinates (f64) and the activations of the networks (REAL) stay in shared
// memory; only weights are read from global memory, the same ones by every block, so they come from the L2 cache.
// Threads work on items (coordinate, row), neighbouring threads on neighbouring rows. Sums over coordinates
// (log-determinants) are first stored and then added in order, so a row's result does not depend on TILE or its batch.
//
// The layers are data: src/models/coupling/cuda.rs packs them into the tables that are read here.
#if TILE == 1
#define RESIDENT THREADS  // nobody else needs the registers
#endif
#include "common.cuh"

// `weight` is W as [n_in][n_out], `back` its transpose as [n_out][n_in], the last dimension padded to even; `slopes`:
// where the derivatives of the activation are kept for the backward pass.
struct Dense { int n_in, n_out, weight, back, bias, activation, slopes; };

// cos and sin of multiples of periodic coordinates, and plain coordinates; then n_dense layers. Offsets into `tables`;
// `out`: position of the outputs among those of the layer.
struct Network { int periodic, n_periodic, harmonics, plain, n_plain, dense, n_dense, out; };

enum Kind { SPLINE, AFFINE, SHIFT, WRAP, TRUNCATED_NORMAL, UNIFORM, WHITEN };
enum Ends { FREE, CIRCULAR, LINEAR_ENDS };

// `transformed`: offset of n coordinates in `tables`; `numbers`: offset of the layer's constants; `kept`: where the
// input coordinates are kept for the backward pass.
struct Layer { int kind, n, transformed, numbers, kept, ends, bins, preserve_volume, n_networks; Network networks[2]; };

// Internal coordinates (src/coordinates/internal.rs): u = [free bonds | angles | torsions]. Offsets into `tables`.
struct Internal {
  int n_atoms, n_rows, n_free, normalize_angles;
  int frame, rows, cartesian, slot, order, levels, n_levels, stereocentres, n_stereocentres;
  int lengths;  // offset into `numbers`
  int parts;    // by atom: [n_atoms + 1] positions in what follows, 4 · row + index among the row's atoms; the frame is the last row
  int padding;
  double log_volume;
};

// log q of a row, and whether it has one.
struct Evaluation { double log_density; int status, padding; };

struct Arguments {
  // the model
  const int* tables;
  const double* numbers;
  const real* weights;
  const Layer* layers;
  // the batch: streams[n] or, without them, z[n][dimension] for `coupling_generate`; x[n][dimension_x]; for
  // `coupling_back` of z, x and log_det are cotangents
  const Stream* streams;
  double* z;
  double* x;
  double* log_det;
  Evaluation* evaluations;
  double* gradient;  // [n][dimension_x], or with respect to z
  double* kept;      // [blocks][n_kept][TILE]
  Internal internal;  // n_atoms = 0: x is u
  double width, variance, log_volume;  // of the normal prior: standard deviation, variance, ln 2 pi variance
  int n, dimension, dimension_x, n_layers, draws, hidden, outputs;
  int n_kept, n_values;  // numbers kept per row; those of them that are coordinates
  int of_latent;         // `coupling_back`: from x to z, not from log q to x
};

// Shared memory of a block, in this order.
struct Shared {
  double *u, *x, *terms, *log_det, *log_prior;
  real *a, *b, *out;
  int *status, *failed;
};

static __device__ Shared layout(const Arguments& a, double* memory) {
  Shared s;
  s.u = memory;
  s.x = s.u + a.dimension * TILE;
  s.terms = s.x + a.dimension_x * TILE;
  const int n_terms = a.dimension > 2 * a.internal.n_rows + 3 ? a.dimension : 2 * a.internal.n_rows + 3;
  s.log_det = s.terms + n_terms * TILE;
  s.log_prior = s.log_det + TILE;
  s.a = (real*)(s.log_prior + TILE);
  s.b = s.a + a.hidden * TILE;
  s.out = s.b + a.hidden * TILE;
  s.status = (int*)(s.out + a.outputs * TILE);
  s.failed = s.status + TILE;
  return s;
}

#define FOR_ITEMS(c, row, count)                                                      \
  for (int item = threadIdx.x, c = item / TILE, row = item % TILE; item < (count) * TILE; \
       item += THREADS, c = item / TILE, row = item % TILE)

#define FAILED_NONE 0x7fffffff

static __device__ bool is_finite(double v) { return v - v == 0.0; }

// Rejects a row; if there are several reasons in one pass, the one with the lowest index `c` counts.
static __device__ void fail(const Shared& s, int row, int c, int status) { atomicMin(&s.failed[row], 16 * c + status); }

// After a pass over `count` items with terms: adds them to the log-determinant in order. An earlier status is kept.
static __device__ void settle(const Shared& s, int count, double sign) {
  __syncthreads();
  if (threadIdx.x < TILE) {
    const int row = threadIdx.x;
    double sum = 0.0;
    for (int c = 0; c < count; ++c) sum += s.terms[c * TILE + row];
    s.log_det[row] += sign * sum;
    if (s.status[row] == INSIDE && s.failed[row] != FAILED_NONE) s.status[row] = s.failed[row] % 16;
    s.failed[row] = FAILED_NONE;
  }
  __syncthreads();
}

#include "coupling_layers.cuh"
#include "internal_coordinates.cuh"

// Table entries of draw i: the position of its random number, and 0 for uniform, 1 and 2 for the first and second
// normal of a pair.
static __device__ double latent(const Arguments& a, const Stream& stream, int i) {
  const int position = a.tables[a.draws + 2 * i], kind = a.tables[a.draws + 2 * i + 1];
  return kind == 0 ? uniform_at(stream, position) : a.width * normal_at(stream, position, kind == 2);
}

static __device__ void prior(const Arguments& a, const Shared& s) {
  FOR_ITEMS(i, row, a.dimension) {
    const double z = s.u[i * TILE + row];
    const bool uniform = a.tables[a.draws + 2 * i + 1] == 0;
    if (uniform && !(z >= 0.0 && z <= 1.0)) fail(s, row, i, OUT_OF_SUPPORT);
    s.terms[i * TILE + row] = uniform ? 0.0 : -0.5 * (z * z / a.variance + a.log_volume);
  }
  __syncthreads();
  if (threadIdx.x < TILE) {
    const int row = threadIdx.x;
    double sum = 0.0;
    for (int i = 0; i < a.dimension; ++i) sum += s.terms[i * TILE + row];
    s.log_prior[row] = sum;
  }
  settle(s, 0, 0.0);
}

static __device__ void begin(const Shared& s) {
  if (threadIdx.x < TILE) {
    s.log_det[threadIdx.x] = 0.0;
    s.status[threadIdx.x] = INSIDE;
    s.failed[threadIdx.x] = FAILED_NONE;
  }
  __syncthreads();
}

static __device__ void finish(const Arguments& a, const Shared& s, int first) {
  if (threadIdx.x < TILE && first + (int)threadIdx.x < a.n) {
    const int row = threadIdx.x;
    const Evaluation evaluation = {s.log_prior[row] - s.log_det[row], s.status[row], 0};
    a.log_det[first + row] = s.log_det[row];
    a.evaluations[first + row] = evaluation;
  }
}

// Rows of `array[n][width]` to and from shared memory; rows beyond the batch repeat its last one.
static __device__ void read_rows(const double* array, int width, int first, int n, double* to) {
  for (int item = threadIdx.x; item < width * TILE; item += THREADS) {
    const int row = item / width, i = item % width;
    const int source = first + row < n ? first + row : n - 1;
    to[i * TILE + row] = array[(size_t)source * width + i];
  }
}

static __device__ void write_rows(double* array, int width, int first, int n, const double* from) {
  for (int item = threadIdx.x; item < width * TILE; item += THREADS) {
    const int row = item / width, i = item % width;
    if (first + row < n) array[(size_t)(first + row) * width + i] = from[i * TILE + row];
  }
}

// All layers in one direction; stores what the backward pass needs, if there is room for it.
static __device__ void all_layers(const Arguments& a, const Shared& s, double* values, bool generate) {
  for (int i = 0; i < a.n_layers; ++i) {
    const Layer& layer = a.layers[generate ? i : a.n_layers - 1 - i];
    if (values) keep(a, s, layer, values);
    apply(a, s, layer, generate);
  }
}

// Maps rows of latent points to u, and to x if that differs.
static __device__ void generate(const Arguments& a, const Shared& s, int first, double* values) {
  begin(s);
  if (a.streams) {
    FOR_ITEMS(i, row, a.dimension) {
      s.u[i * TILE + row] = latent(a, a.streams[first + row < a.n ? first + row : a.n - 1], i);
    }
  } else {
    read_rows(a.z, a.dimension, first, a.n, s.u);
  }
  __syncthreads();
  prior(a, s);
  all_layers(a, s, values, true);
  if (a.internal.n_atoms) to_cartesian(a, s);
}

// Maps rows of x to latent points in u.
static __device__ void encode(const Arguments& a, const Shared& s, int first, double* values) {
  begin(s);
  read_rows(a.x, a.dimension_x, first, a.n, a.internal.n_atoms ? s.x : s.u);
  __syncthreads();
  if (a.internal.n_atoms) {
    to_internal(a, s);
  } else {
    FOR_ITEMS(i, row, a.dimension) {
      if (!is_finite(s.u[i * TILE + row])) fail(s, row, i, NON_FINITE);
    }
    settle(s, 0, 0.0);
  }
  all_layers(a, s, values, false);
  prior(a, s);
}

#if BACK
#include "coupling_back.cuh"
#else
// Maps latent points, drawn from `streams` or given in z, to x.
KERNEL(coupling_generate, Arguments) {
  const Shared s = layout(a, of_block());
  const int first = blockIdx.x * TILE;
  generate(a, s, first, nullptr);
  write_rows(a.x, a.dimension_x, first, a.n, a.internal.n_atoms ? s.x : s.u);
  finish(a, s, first);
}

// Maps x to latent points, which are written to z if wanted.
KERNEL(coupling_encode, Arguments) {
  const Shared s = layout(a, of_block());
  const int first = blockIdx.x * TILE;
  encode(a, s, first, nullptr);
  if (a.z) write_rows(a.z, a.dimension, first, a.n, s.u);
  finish(a, s, first);
}
#endif
