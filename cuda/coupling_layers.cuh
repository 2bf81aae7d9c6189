// The layers of a coupling flow on a block's rows, and the networks of some of them. Included by coupling.cu.

// ---------------------------------------------------------------- networks

// Rows of an output that a thread has at once.
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
// start + W x of one output. It loads AHEAD weights before it adds the first: the time is that of waiting for them.
#define AHEAD 48
static __device__ __noinline__ real weighted(const real* w, int n_in, int n_out, int o, real start, const real* x) {
  real sum = start;
  for (int first = 0; first < n_in; first += AHEAD) {
    real weight[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (first + k < n_in) weight[k] = w[(size_t)(first + k) * n_out + o];
    }
    ALL_ASKED();
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (first + k < n_in) sum += weight[k] * x[first + k];
    }
  }
  return sum;
}
#endif

// W x for x[n_in][TILE], like `product`. The result of a row does not depend on TILE.
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

// y = activation(W x + b), and the derivatives of the activation if there is room for them.
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

// Writes the outputs of a network, and `slopes` for its backward pass; ends with a barrier.
static __device__ void conditioner(const Arguments& a, const Shared& s, const Network& network, real* slopes) {
  const int p = network.n_periodic;
  FOR_ITEMS(c, row, p) {
    const double u = s.u[a.tables[network.periodic + c] * TILE + row];
    double sin_1, cos_1;
    sincospi(2.0 * u, &sin_1, &cos_1);
    double sin_k = sin_1, cos_k = cos_1;  // of the multiples, by successive rotation
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

// Index of the slope of coordinate c at knot j among the network's outputs; negative if it is one by definition.
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

// The bin of coordinate c that contains `value`, on the axis of `searched`.
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

// Writes s to `terms`, and leaves tanh(network) in place, to which it returns a pointer.
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

// The new value of u, its contribution to the log-determinant, and whether u is in the support.
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
    // forward substitution by columns: subtracts each known value from all that follow
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

// Stores the coordinates that a layer is about to change; they are changed by the threads that read them here.
static __device__ void keep(const Arguments& a, const Shared& s, const Layer& layer, double* values) {
  FOR_ITEMS(c, row, layer.n) values[(layer.kept + c) * TILE + row] = s.u[a.tables[layer.transformed + c] * TILE + row];
}
