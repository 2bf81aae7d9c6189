// Coupling flows, whole: latent points → layers → internal coordinates → x and log q, and back, in one launch.
//
// A block takes TILE configurations through all layers, 8 or 16 so that a weight serves all of them, or a single one that has the block to
// itself. Their coordinates (f64) and the activations of the networks (REAL) stay in shared memory; only weights are read from memory, by
// every block the same ones, so they come from the second-level cache. Threads work on items (coordinate, row), neighbouring threads on
// neighbouring rows. What is summed over coordinates (log-determinants) is first written down and then added in order, so a row's result
// does not depend on TILE or its batch.
//
// The layers are data: src/models/coupling/cuda.rs packs them into the tables that are read here.
#if TILE == 1
#define RESIDENT THREADS  // nobody else needs the registers
#endif
#include "common.cuh"

// `weight` is W as [n_in][n_out], `back` its transpose as [n_out][n_in], what comes last being even; `slopes`: where the derivatives of the
// activation are kept for the way back.
struct Dense { int n_in, n_out, weight, back, bias, activation, slopes; };

// cos and sin of multiples of periodic coordinates, and plain coordinates; then n_dense layers. Offsets into `tables`; `out`: where the
// outputs are among those of the layer.
struct Network { int periodic, n_periodic, harmonics, plain, n_plain, dense, n_dense, out; };

enum Kind { SPLINE, AFFINE, SHIFT, WRAP, TRUNCATED_NORMAL, UNIFORM, WHITEN };
enum Ends { FREE, CIRCULAR, LINEAR_ENDS };

// `transformed`: offset of n coordinates in `tables`; `numbers`: offset of the layer's constants; `kept`: where the coordinates as they
// were given are kept for the way back.
struct Layer { int kind, n, transformed, numbers, kept, ends, bins, preserve_volume, n_networks; Network networks[2]; };

// Internal coordinates (src/coordinates/internal.rs): u = [free bonds | angles | torsions]. Offsets into `tables`.
struct Internal {
  int n_atoms, n_rows, n_free, normalize_angles;
  int frame, rows, cartesian, slot, order, levels, n_levels, stereocentres, n_stereocentres;
  int lengths;  // offset into `numbers`
  int parts;    // by atom: [n_atoms + 1] places in what follows, 4 · row + which of the row's atoms it is; the frame is the last row
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
  // the batch: streams[n] or, without them, z[n][dimension] for `coupling_generate`; x[n][dimension_x]; for `coupling_back` of z, x and log_det
  // are cotangents
  const Stream* streams;
  double* z;
  double* x;
  double* log_det;
  Evaluation* evaluations;
  double* gradient;  // [n][dimension_x], or of z
  double* kept;      // [blocks][n_kept][TILE]
  Internal internal;  // n_atoms = 0: x is u
  double width, variance, log_volume;  // of the normal prior: its deviation, its square, ln 2 pi its square
  int n, dimension, dimension_x, n_layers, draws, hidden, outputs;
  int n_kept, n_values;  // numbers that are kept of a row; those of them that are coordinates
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

// Marks a row; of several reasons in one pass the one of the lowest place `c` counts.
static __device__ void fail(const Shared& s, int row, int c, int status) { atomicMin(&s.failed[row], 16 * c + status); }

// After a pass over `count` items with terms: adds them to the log-determinant in their order. An earlier status stays.
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

// ---------------------------------------------------------------- networks

// Rows that a thread has of an output at once.
#define AT_ONCE (TILE == 1 ? 1 : 8)

static __device__ void get_rows(const real* from, real* to) {
#if TILE == 1
  *to = *from;
#else
  get_eight(from, to);
#endif
}
static __device__ void put_rows(real* to, const real* from) {
#if TILE == 1
  *to = *from;
#else
  put_eight(to, from);
#endif
}

#if TILE == 1
// start + W x of one output. It asks for AHEAD weights before it adds the first: what takes time here is to wait for them.
#define AHEAD 64
static __device__ __noinline__ real weighted(const real* w, int n_in, int n_out, int o, real start, const real* x) {
  real sum = start;
  for (int first = 0; first < n_in; first += AHEAD) {
    real weight[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (first + k < n_in) weight[k] = w[(size_t)(first + k) * n_out + o];
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (first + k < n_in) sum += weight[k] * x[first + k];
    }
  }
  return sum;
}
#endif

// W x for x[n_in][TILE], as `product` has it. The result of a row does not depend on TILE.
template <class Start, class Finish>
static __device__ void tile_product(const real* w, int n_in, int n_out, const real* x, const Start& start, const Finish& finish) {
#if TILE == 1
  for (int o = threadIdx.x; o < n_out; o += THREADS) {
    real sum;
    start(o, 0, &sum);
    sum = weighted(w, n_in, n_out, o, sum, x);
    finish(o, 0, &sum);
  }
#else
  product(w, n_in, n_out, TILE, x, start, finish);
#endif
}

// y = activation(W x + b), and, where there is room for them, the derivatives of the activation.
static __device__ void dense(const Arguments& a, const Dense& layer, const real* x, real* y, real* slopes) {
  const real* b = a.weights + layer.bias;
  const auto bias = [&](int o, int, real* sum) {
#pragma unroll
    for (int r = 0; r < AT_ONCE; ++r) sum[r] = b[o];
  };
  const auto activated = [&](int o, int lane, real* sum) {
    if (slopes && layer.activation != LINEAR) {
      real slope[AT_ONCE];
#pragma unroll
      for (int r = 0; r < AT_ONCE; ++r) slope[r] = activation_slope(layer.activation, sum[r]);
      put_rows(slopes + (layer.slopes + o) * TILE + lane, slope);
    }
#pragma unroll
    for (int r = 0; r < AT_ONCE; ++r) sum[r] = activate(layer.activation, sum[r]);
    put_rows(y + o * TILE + lane, sum);
  };
  tile_product(a.weights + layer.weight, layer.n_in, layer.n_out, x, bias, activated);
}

// Writes the outputs of a network, and for its way back `slopes`; ends with a barrier.
static __device__ void conditioner(const Arguments& a, const Shared& s, const Network& network, real* slopes) {
  const int p = network.n_periodic;
  FOR_ITEMS(c, row, p) {
    const double u = s.u[a.tables[network.periodic + c] * TILE + row];
    double sin_1, cos_1;
    sincospi(2.0 * u, &sin_1, &cos_1);
    double sin_k = sin_1, cos_k = cos_1;  // of the multiples, by rotation
    for (int k = 0; k < network.harmonics; ++k) {
      s.a[(2 * k * p + c) * TILE + row] = (real)cos_k;
      s.a[(2 * k * p + p + c) * TILE + row] = (real)sin_k;
      const double next = sin_k * cos_1 + cos_k * sin_1;
      cos_k = cos_k * cos_1 - sin_k * sin_1;
      sin_k = next;
    }
  }
  FOR_ITEMS(c, row, network.n_plain) {
    s.a[(2 * network.harmonics * p + c) * TILE + row] = (real)s.u[a.tables[network.plain + c] * TILE + row];
  }
  __syncthreads();
  const Dense* layers = (const Dense*)(a.tables + network.dense);
  const real* from = s.a;
  for (int i = 0; i < network.n_dense; ++i) {
    real* to = i + 1 == network.n_dense ? s.out + network.out * TILE : from == s.a ? s.b : s.a;
    dense(a, layers[i], from, to, slopes);
    __syncthreads();
    from = to;
  }
}

static __device__ void conditioners(const Arguments& a, const Shared& s, const Layer& layer, real* slopes) {
  for (int i = 0; i < layer.n_networks; ++i) conditioner(a, s, layer.networks[i], slopes);
}

// ---------------------------------------------------------------- rational-quadratic splines (src/models/coupling/spline.rs)

struct Bin { double x, width, y, height, left, right; };

static __device__ double log_slope(const Bin& bin, double theta, double s, double t1, double denominator) {
  const double u = 1.0 - theta;
  const double top = s * s * (bin.right * theta * theta + 2.0 * s * t1 + bin.left * u * u);
  return log(top / (denominator * denominator));
}

// y = f(x); `slope` = ln f′(x).
static __device__ double analytic(const Bin& bin, double x, double* slope) {
  const double theta = (x - bin.x) / bin.width, s = bin.height / bin.width, t1 = theta * (1.0 - theta);
  const double denominator = s + (bin.left + bin.right - 2.0 * s) * t1;
  *slope = log_slope(bin, theta, s, t1, denominator);
  return bin.y + bin.height * (s * theta * theta + bin.left * t1) / denominator;
}

// x = f⁻¹(y); `slope` = ln f′(x).
static __device__ double root(const Bin& bin, double y, double* slope) {
  const double s = bin.height / bin.width, rise = y - bin.y, bend = bin.left + bin.right - 2.0 * s;
  const double a = rise * bend + bin.height * (s - bin.left), b = bin.height * bin.left - rise * bend, c = -s * rise;
  const double square = b * b - 4.0 * a * c;
  double theta = 2.0 * c / (-b - sqrt(square > 0.0 ? square : 0.0));
  theta = theta < 0.0 ? 0.0 : theta > 1.0 ? 1.0 : theta;
  const double t1 = theta * (1.0 - theta);
  *slope = log_slope(bin, theta, s, t1, s + bend * t1);
  return theta * bin.width + bin.x;
}

#define MIN_BIN 1e-3
#define MIN_SLOPE 1e-3

// Softmax of `k` outputs of one coordinate and row, in place.
static __device__ void softmax(real* p, int k) {
  real largest = p[0], sum = (real)0;
  for (int j = 1; j < k; ++j) largest = p[j * TILE] > largest ? p[j * TILE] : largest;
  for (int j = 0; j < k; ++j) sum += p[j * TILE] = exp(p[j * TILE] - largest);
  const real inverse = (real)1 / sum;
  for (int j = 0; j < k; ++j) p[j * TILE] *= inverse;
}

// Place of the slope of coordinate c at knot j among the network's outputs; negative where it is one by definition.
static __device__ int slope_place(const Layer& layer, int c, int j) {
  const int d = layer.n, k = layer.bins;
  if (layer.ends == CIRCULAR) return c * k + j % k;
  if (layer.ends == FREE) return j == k ? d * k + c : c * k + j;
  return j == 0 || j == k ? -1 : c * (k - 1) + j - 1;
}

// Slope of coordinate c at knot j; `slopes` are the network's outputs.
static __device__ double slope_at(const Layer& layer, const real* slopes, int c, int j, double beta) {
  const int place = slope_place(layer, c, j);
  if (place < 0) return 1.0;
  return MIN_SLOPE + (double)softplus((real)beta * slopes[place * TILE]) / beta;
}

// The bin of coordinate c that holds `value`, on the axis of `searched`.
static __device__ int find(const real* searched, const real* other, int k, double left, double span, double value,
                           double* knot, double* size, double* other_knot, double* other_size) {
  const double scale = 1.0 - MIN_BIN * k;
  int n = 0;
  *knot = left;
  *other_knot = 0.0;
  for (;;) {
    *size = span * (MIN_BIN + scale * (double)searched[n * TILE]);
    *other_size = span * (MIN_BIN + scale * (double)other[n * TILE]);
    if (n == k - 1 || *knot + *size > value) break;
    *knot += *size;
    *other_knot += *other_size;
    ++n;
  }
  *other_knot += left;
  return n;
}

static __device__ void spline(const Arguments& a, const Shared& s, const Layer& layer, bool generate) {
  const double left = a.numbers[layer.numbers], span = a.numbers[layer.numbers + 1], beta = a.numbers[layer.numbers + 2];
  const int d = layer.n, k = layer.bins;
  FOR_ITEMS(c, row, d) {
    real* widths = s.out + c * k * TILE + row;
    real* heights = widths + d * k * TILE;
    softmax(widths, k);
    softmax(heights, k);
    double* u = &s.u[a.tables[layer.transformed + c] * TILE + row];
    const double value = *u;
    double slope = 0.0;
    if (value >= left && value <= left + span) {
      Bin bin;
      const int n = generate ? find(heights, widths, k, left, span, value, &bin.y, &bin.height, &bin.x, &bin.width)
                             : find(widths, heights, k, left, span, value, &bin.x, &bin.width, &bin.y, &bin.height);
      const real* slopes = s.out + 2 * d * k * TILE + row;
      bin.left = slope_at(layer, slopes, c, n, beta);
      bin.right = slope_at(layer, slopes, c, n + 1, beta);
      *u = generate ? root(bin, value, &slope) : analytic(bin, value, &slope);
    } else if (layer.ends != LINEAR_ENDS) {
      fail(s, row, c, OUT_OF_SUPPORT);
    }
    s.terms[c * TILE + row] = slope;
  }
  settle(s, d, -1.0);
}

static __device__ void subtract_mean(double* terms, int count) {
  if (threadIdx.x < TILE) {
    double mean = 0.0;
    for (int c = 0; c < count; ++c) mean += terms[c * TILE + threadIdx.x];
    mean /= count;
    for (int c = 0; c < count; ++c) terms[c * TILE + threadIdx.x] -= mean;
  }
  __syncthreads();
}

// Writes s to `terms`, and leaves tanh(network), whose place is returned.
static __device__ real* scales(const Arguments& a, const Shared& s, const Layer& layer) {
  const int d = layer.n;
  real* tanhs = s.out + (layer.n_networks == 2 ? layer.networks[1].out : d) * TILE;
  const double alpha = a.numbers[layer.numbers];
  FOR_ITEMS(c, row, d) {
    real* value = &tanhs[c * TILE + row];
    *value = tanh(*value);
    s.terms[c * TILE + row] = (double)*value * alpha;
  }
  __syncthreads();
  if (layer.preserve_volume) subtract_mean(s.terms, d);
  return tanhs;
}

// u′ = eˢ u + t, s = tanh(network) · e^{log α} (src/models/coupling/affine.rs).
static __device__ void affine(const Arguments& a, const Shared& s, const Layer& layer, bool generate) {
  const int d = layer.n;
  scales(a, s, layer);
  FOR_ITEMS(c, row, d) {
    double* u = &s.u[a.tables[layer.transformed + c] * TILE + row];
    const double scale = s.terms[c * TILE + row], t = (double)s.out[c * TILE + row];
    *u = generate ? exp(scale) * *u + t : exp(-scale) * (*u - t);
  }
  settle(s, d, 1.0);
}

// ---------------------------------------------------------------- layers without a network (src/models/coupling/elementwise.rs)

static __device__ double normal_cdf(double t) { return 0.5 * erfc(-t / SQRT_2); }

static __device__ double normal_quantile(double p) {
  const double tail = p < 1.0 - p ? p : 1.0 - p;
  const double r = sqrt(-2.0 * log(tail));
  double t = (2.515517 + 0.802853 * r + 0.010328 * r * r) /
                 (1.0 + 1.432788 * r + 0.189269 * r * r + 0.001308 * r * r * r) - r;
  for (int step = 0; step < 2; ++step) {
    const double density = exp(-0.5 * t * t) / sqrt(2.0 * PI);
    const double newton = (normal_cdf(t) - tail) / density;
    t -= newton / (1.0 + 0.5 * t * newton);
  }
  return p < 0.5 ? t : -t;
}

// The new value of u, its part of the log-determinant, and whether u is in the support.
static __device__ bool elementwise_step(int kind, const double* numbers, bool generate, double* u, double* log_det) {
  const double value = *u;
  *log_det = 0.0;
  if (kind == SHIFT || kind == WRAP) {
    if (!(value >= 0.0 && value <= 1.0)) return false;
    const double moved = generate ? value + numbers[0] : value - numbers[0];
    *u = moved - floor(moved);
    return true;
  }
  if (kind == UNIFORM) {
    const double low = numbers[0], high = numbers[1];
    const bool inside = generate ? value >= 0.0 && value <= 1.0 : value >= low && value <= high;
    if (!inside) return false;
    *u = generate ? low + (high - low) * value : (value - low) / (high - low);
    *log_det = numbers[2];
    return true;
  }
  const double mean = numbers[0], sd = numbers[1], lower = numbers[2], upper = numbers[3], below = numbers[4];
  const double mass = numbers[5], log_scale = numbers[6];
  double t;
  if (generate) {
    if (!(value > 0.0 && value < 1.0)) return false;
    t = normal_quantile(below + value * mass);
    *u = mean + sd * t;
  } else {
    if (!(value > lower && value < upper)) return false;
    t = (value - mean) / sd;
    *u = (normal_cdf(t) - below) / mass;
  }
  *log_det = log_scale + 0.5 * t * t;
  return true;
}

static __device__ void elementwise(const Arguments& a, const Shared& s, const Layer& layer, bool generate) {
  const int stride = layer.kind == TRUNCATED_NORMAL ? 7 : layer.kind == UNIFORM ? 3 : 1;
  FOR_ITEMS(c, row, layer.n) {
    double* u = &s.u[a.tables[layer.transformed + c] * TILE + row];
    double log_det;
    if (!elementwise_step(layer.kind, a.numbers + layer.numbers + c * stride, generate, u, &log_det)) {
      fail(s, row, c, is_finite(*u) ? OUT_OF_SUPPORT : NON_FINITE);
    }
    s.terms[c * TILE + row] = log_det;
  }
  settle(s, layer.n, 1.0);
}

// u′ = mean + L u. Numbers: ln|L|, mean[n], L[n][n].
static __device__ void whiten(const Arguments& a, const Shared& s, const Layer& layer, bool generate) {
  const int n = layer.n;
  const double log_det = a.numbers[layer.numbers];
  const double* mean = a.numbers + layer.numbers + 1;
  const double* matrix = mean + n;
  const int* place = a.tables + layer.transformed;
  if (generate) {
    FOR_ITEMS(i, row, n) {
      double sum = 0.0;
      for (int j = 0; j <= i; ++j) sum += matrix[i * n + j] * s.u[place[j] * TILE + row];
      s.terms[i * TILE + row] = mean[i] + sum;
    }
  } else {
    FOR_ITEMS(i, row, n) s.terms[i * TILE + row] = s.u[place[i] * TILE + row] - mean[i];
    // forward substitution by columns: what is known is taken out of all that follow
    for (int j = 0; j + 1 < n; ++j) {
      __syncthreads();
      FOR_ITEMS(step, row, n - 1 - j) {
        const int i = j + 1 + step;
        s.terms[i * TILE + row] -= matrix[i * n + j] * (s.terms[j * TILE + row] / matrix[j * n + j]);
      }
    }
    __syncthreads();
    FOR_ITEMS(i, row, n) s.terms[i * TILE + row] /= matrix[i * n + i];
  }
  __syncthreads();
  FOR_ITEMS(i, row, n) s.u[place[i] * TILE + row] = s.terms[i * TILE + row];
  if (threadIdx.x < TILE) s.log_det[threadIdx.x] += log_det;
  __syncthreads();
}

static __device__ void apply(const Arguments& a, const Shared& s, const Layer& layer, bool generate) {
  conditioners(a, s, layer, nullptr);
  switch (layer.kind) {
    case SPLINE: spline(a, s, layer, generate); break;
    case AFFINE: affine(a, s, layer, generate); break;
    case WHITEN: whiten(a, s, layer, generate); break;
    default: elementwise(a, s, layer, generate);
  }
}

// The coordinates that a layer is about to change; they are changed by the threads that read them here.
static __device__ void keep(const Arguments& a, const Shared& s, const Layer& layer, double* values) {
  FOR_ITEMS(c, row, layer.n) values[(layer.kept + c) * TILE + row] = s.u[a.tables[layer.transformed + c] * TILE + row];
}

// ---------------------------------------------------------------- internal coordinates (src/coordinates/internal.rs)

#define SMALLEST_SINE 1e-6
#define CONSTRAINT_TOLERANCE 1e-4

static __device__ Vec3 atom(const double* x, int i, int row) {
  const Vec3 r = {x[3 * i * TILE + row], x[(3 * i + 1) * TILE + row], x[(3 * i + 2) * TILE + row]};
  return r;
}

static __device__ void set_atom(double* x, int i, int row, Vec3 r) {
  x[3 * i * TILE + row] = r.x;
  x[(3 * i + 1) * TILE + row] = r.y;
  x[(3 * i + 2) * TILE + row] = r.z;
}

static __device__ double angle_between(Vec3 i, Vec3 j, Vec3 k) {
  const Vec3 a = i - j, b = k - j;
  return atan2(norm(cross(a, b)), dot(a, b));
}

static __device__ double torsion_of(Vec3 i, Vec3 j, Vec3 k, Vec3 l) {
  const Vec3 b0 = i - j, jk = k - j, b2 = l - k;
  const Vec3 b1 = (1.0 / norm(jk)) * jk;
  const Vec3 v = b0 - dot(b0, b1) * b1, w = b2 - dot(b2, b1) * b1;
  return atan2(dot(cross(b1, v), w), dot(v, w));
}

// Axes at atom j: a = unit(j − k), n = unit((j − k) × (j − l)), m = a × n.
struct Axes { Vec3 a, n, m; bool singular; };

static __device__ Axes axes_at(Vec3 j, Vec3 k, Vec3 l) {
  const Vec3 v1 = j - k, v2 = j - l, w = cross(v1, v2);
  const double length = norm(w), first = norm(v1);
  Axes axes;
  axes.a = (1.0 / first) * v1;
  axes.n = (1.0 / length) * w;
  axes.m = cross(axes.a, axes.n);
  axes.singular = !(length >= SMALLEST_SINE * first * norm(v2));  // also NaN
  return axes;
}

// Angles and torsions in u from radians, and from u in units of π: `sincospi` needs no reduction of large arguments.
static __device__ double angle_in(const Internal& c, double theta) { return c.normalize_angles ? theta / PI : theta; }
static __device__ double torsion_in(const Internal& c, double phi) {
  return c.normalize_angles ? (phi + PI) / (2.0 * PI) : phi;
}
static __device__ double angle_out(const Internal& c, double u) { return c.normalize_angles ? u : u / PI; }
static __device__ double torsion_out(const Internal& c, double u) { return c.normalize_angles ? 2.0 * u - 1.0 : u / PI; }

// Stereocentres of the other hand; `place` numbers the failure.
static __device__ void check_hands(const Arguments& a, const Shared& s, int place) {
  FOR_ITEMS(i, row, a.internal.n_stereocentres) {
    const int* centre = a.tables + a.internal.stereocentres + 5 * i;  // centre, three neighbours, sign
    const Vec3 origin = atom(s.x, centre[0], row);
    const Vec3 p = atom(s.x, centre[1], row) - origin, q = atom(s.x, centre[2], row) - origin;
    const Vec3 r = atom(s.x, centre[3], row) - origin;
    if ((dot(p, cross(q, r)) > 0.0) != (centre[4] != 0)) fail(s, row, place, WRONG_CHIRALITY);
  }
}

// Bond number b of [0–1, 1–2, rows…] of length d: writes it to u, or checks it; its part of the log-determinant.
static __device__ double put_bond(const Arguments& a, const Shared& s, int b, int row, double d, int place) {
  const int slot = a.tables[a.internal.slot + b];
  if (slot >= 0) {
    s.u[slot * TILE + row] = d;
  } else {
    const double length = a.numbers[a.internal.lengths + b];
    if (fabs(d - length) > CONSTRAINT_TOLERANCE * length) fail(s, row, place, BROKEN_CONSTRAINT);
  }
  return 2.0 * log(d);
}

static __device__ double put_angle(const Arguments& a, const Shared& s, int i, int row, double theta, int place) {
  const double sine = sinpi(theta / PI);
  if (sine < SMALLEST_SINE) fail(s, row, place, SINGULAR_COORDINATES);
  s.u[(a.internal.n_free + i) * TILE + row] = angle_in(a.internal, theta);
  return log(sine);
}

// x → u, and ln|∂x/∂u|. A row that is not inside keeps whatever numbers; they are finite for the layers' sake.
static __device__ void to_internal(const Arguments& a, const Shared& s) {
  const Internal& c = a.internal;
  const int* frame = a.tables + c.frame;
  FOR_ITEMS(i, row, 3 * c.n_atoms) {
    if (!is_finite(s.x[i * TILE + row])) fail(s, row, 0, NON_FINITE);
  }
  FOR_ITEMS(r, row, c.n_rows + 1) {
    double bond = 0.0, angle = 0.0;
    if (r == c.n_rows) {
      const Vec3 a0 = atom(s.x, frame[0], row), a1 = atom(s.x, frame[1], row), a2 = atom(s.x, frame[2], row);
      bond = put_bond(a, s, 0, row, norm(a1 - a0), 1) + put_bond(a, s, 1, row, norm(a2 - a1), 2);
      angle = put_angle(a, s, 0, row, angle_between(a0, a1, a2), 3);
    } else {
      const int* entry = a.tables + c.rows + 4 * r;
      const Vec3 i = atom(s.x, entry[0], row), j = atom(s.x, entry[1], row), k = atom(s.x, entry[2], row);
      const Vec3 l = atom(s.x, entry[3], row);
      const int place = 4 + 4 * r, torsion = c.n_free + c.n_rows + 1 + r;
      if (a.tables[c.cartesian + r]) {
        const Axes axes = axes_at(j, k, l);
        if (axes.singular) fail(s, row, place, SINGULAR_COORDINATES);
        const Vec3 offset = i - j;
        s.u[a.tables[c.slot + r + 2] * TILE + row] = dot(offset, axes.a);
        s.u[(c.n_free + r + 1) * TILE + row] = dot(offset, axes.n);
        s.u[torsion * TILE + row] = dot(offset, axes.m);
      } else {
        bond = put_bond(a, s, r + 2, row, norm(i - j), place);
        angle = put_angle(a, s, r + 1, row, angle_between(i, j, k), place + 1);
        const Vec3 jk = k - j, kl = l - k;
        if (norm(cross(jk, kl)) < SMALLEST_SINE * norm(jk) * norm(kl)) fail(s, row, place + 2, SINGULAR_COORDINATES);
        s.u[torsion * TILE + row] = torsion_in(c, torsion_of(i, j, k, l));
      }
    }
    s.terms[r * TILE + row] = bond + angle;
    if (!is_finite(bond + angle)) fail(s, row, 4 + 4 * c.n_rows, SINGULAR_COORDINATES);
  }
  __syncthreads();
  FOR_ITEMS(i, row, a.dimension) {
    if (!is_finite(s.u[i * TILE + row])) fail(s, row, 5 + 4 * c.n_rows, SINGULAR_COORDINATES);
  }
  check_hands(a, s, 6 + 4 * c.n_rows);
  settle(s, c.n_rows + 1, 1.0);
  FOR_ITEMS(i, row, a.dimension) {
    if (s.status[row] != INSIDE) s.u[i * TILE + row] = 0.5;
  }
  if (threadIdx.x < TILE) {
    const int row = threadIdx.x;
    s.log_det[row] = s.status[row] == INSIDE ? s.log_det[row] + c.log_volume : 0.0;
  }
  __syncthreads();
}

// u → x with the frame's first atom at the origin, and ln|∂x/∂u|.
static __device__ void to_cartesian(const Arguments& a, const Shared& s) {
  const Internal& c = a.internal;
  const int n_bonds = c.n_rows + 2;
  const int* frame = a.tables + c.frame;
  FOR_ITEMS(i, row, a.dimension) {
    if (!is_finite(s.u[i * TILE + row])) fail(s, row, 0, NON_FINITE);
  }
  FOR_ITEMS(b, row, n_bonds + c.n_rows + 1) {
    const bool is_bond = b < n_bonds;
    const int number = is_bond ? b - 2 : b - n_bonds - 1;  // row of the z-matrix, negative for the frame
    double term = 0.0;
    if (number < 0 || !a.tables[c.cartesian + number]) {
      if (is_bond) {
        const int slot = a.tables[c.slot + b];
        const double d = slot >= 0 ? s.u[slot * TILE + row] : a.numbers[c.lengths + b];
        if (!(d > 0.0)) fail(s, row, 1, OUT_OF_SUPPORT);
        term = 2.0 * log(d);
      } else {
        const double theta = angle_out(c, s.u[(c.n_free + b - n_bonds) * TILE + row]), sine = sinpi(theta);
        if (!(theta > 0.0 && theta < 1.0)) fail(s, row, 2, OUT_OF_SUPPORT);
        else if (sine < SMALLEST_SINE) fail(s, row, 3, SINGULAR_COORDINATES);
        term = log(sine);
        // a torsion beyond its turn would come back as another one
        if (number >= 0 && !(fabs(torsion_out(c, s.u[(c.n_free + c.n_rows + 1 + number) * TILE + row])) <= 1.0))
          fail(s, row, 2, OUT_OF_SUPPORT);
      }
    }
    s.terms[b * TILE + row] = term;
  }
  if (threadIdx.x < TILE) {
    const int row = threadIdx.x;
    const Vec3 axis = {0.0, -0.8660254037844386, 0.5}, side = {1.0, 0.0, 0.0}, origin = {0.0, 0.0, 0.0};
    const int slot0 = a.tables[c.slot], slot1 = a.tables[c.slot + 1];
    const double d0 = slot0 >= 0 ? s.u[slot0 * TILE + row] : a.numbers[c.lengths];
    const double d1 = slot1 >= 0 ? s.u[slot1 * TILE + row] : a.numbers[c.lengths + 1];
    double sine, cosine;
    sincospi(angle_out(c, s.u[c.n_free * TILE + row]), &sine, &cosine);
    set_atom(s.x, frame[0], row, origin);
    set_atom(s.x, frame[1], row, d0 * axis);
    set_atom(s.x, frame[2], row, d0 * axis + d1 * (sine * side - cosine * axis));
  }
  // atoms whose three references are placed, all at once
  for (int level = 0; level < c.n_levels; ++level) {
    __syncthreads();
    const int first = a.tables[c.levels + level], count = a.tables[c.levels + level + 1] - first;
    FOR_ITEMS(i, row, count) {
      const int r = a.tables[c.order + first + i];
      const int* entry = a.tables + c.rows + 4 * r;
      const Vec3 j = atom(s.x, entry[1], row);
      const Axes axes = axes_at(j, atom(s.x, entry[2], row), atom(s.x, entry[3], row));
      if (axes.singular) fail(s, row, 4, SINGULAR_COORDINATES);
      const int slot = a.tables[c.slot + r + 2];
      const double bond = slot >= 0 ? s.u[slot * TILE + row] : a.numbers[c.lengths + r + 2];
      const double angle = s.u[(c.n_free + r + 1) * TILE + row];
      const double torsion = s.u[(c.n_free + c.n_rows + 1 + r) * TILE + row];
      Vec3 offset;
      if (a.tables[c.cartesian + r]) {
        offset = bond * axes.a + (angle * axes.n + torsion * axes.m);
      } else {
        double sin_t, cos_t, sin_p, cos_p;
        sincospi(angle_out(c, angle), &sin_t, &cos_t);
        sincospi(torsion_out(c, torsion), &sin_p, &cos_p);
        offset = bond * (sin_t * (cos_p * axes.m - sin_p * axes.n) - cos_t * axes.a);
      }
      set_atom(s.x, entry[0], row, j + offset);
    }
  }
  __syncthreads();
  check_hands(a, s, 5);
  settle(s, n_bonds + c.n_rows + 1, 1.0);
  if (threadIdx.x < TILE) s.log_det[threadIdx.x] += c.log_volume;
  __syncthreads();
}

// ---------------------------------------------------------------- the two directions

// Numbers of draw i: the position of its random number, and 0 uniform, 1 and 2 the first and second normal of a pair.
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

// All layers in one direction; where there is room for it, with what the way back needs.
static __device__ void all_layers(const Arguments& a, const Shared& s, double* values, bool generate) {
  for (int i = 0; i < a.n_layers; ++i) {
    const Layer& layer = a.layers[generate ? i : a.n_layers - 1 - i];
    if (values) keep(a, s, layer, values);
    apply(a, s, layer, generate);
  }
}

// Rows of latent points to u, and x where that is another.
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

// Rows of x to latent points in u.
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
// Latent points, drawn from `streams` or given in z, to x.
KERNEL(coupling_generate, Arguments) {
  DYNAMIC_SHARED(memory);
  const Shared s = layout(a, memory);
  const int first = blockIdx.x * TILE;
  generate(a, s, first, nullptr);
  write_rows(a.x, a.dimension_x, first, a.n, a.internal.n_atoms ? s.x : s.u);
  finish(a, s, first);
}

// x to latent points, written to z where that is wanted.
KERNEL(coupling_encode, Arguments) {
  DYNAMIC_SHARED(memory);
  const Shared s = layout(a, memory);
  const int first = blockIdx.x * TILE;
  encode(a, s, first, nullptr);
  if (a.z) write_rows(a.z, a.dimension, first, a.n, s.u);
  finish(a, s, first);
}
#endif
