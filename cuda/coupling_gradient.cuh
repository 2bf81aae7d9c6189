// ∇ₓ log q of a coupling flow: x to latent points, then back through the layers, the last one first, and through the internal
// coordinates, in one launch.
//
// On the way to z a block keeps, in memory of the card, what each layer was given of the coordinates that it changed. With them back in u a
// layer's network sees what it saw, so it is run again, and leaves the derivatives of its activations for its own way back: activations of one
// layer are kept at a time. The cotangents of u lie in the place of x, which is read again for the internal coordinates. Those of an atom are
// written down by each row of the z-matrix that it is in, and added in the order of a table.
//
// Every row has its log q with the weight one; what becomes of a row that is outside is not written. Included by coupling.cu.

// A block's part of `kept`. `parts` are there when the rest is not needed any more.
struct Kept { double* values; real* slopes; double* parts; };

static __device__ Kept kept_of(const Arguments& a) {
  double* memory = a.kept + (size_t)blockIdx.x * a.n_kept * TILE;
  const Kept kept = {memory, (real*)(memory + a.n_values * TILE), memory};
  return kept;
}

static __device__ double* cotangents(const Shared& s) { return s.x; }

// ---------------------------------------------------------------- networks

// y = Wᵀ x, times the derivatives of the activation below, if there is one.
static __device__ void dense_back(const Arguments& a, const Dense& layer, const real* x, real* y, const real* slopes) {
  const auto zero = [&](int, int, real* sum) {
#pragma unroll
    for (int r = 0; r < AT_ONCE; ++r) sum[r] = (real)0;
  };
  const auto scaled = [&](int o, int lane, real* sum) {
    if (slopes) {
      real slope[AT_ONCE];
      get_rows(slopes + o * TILE + lane, slope);
#pragma unroll
      for (int r = 0; r < AT_ONCE; ++r) sum[r] *= slope[r];
    }
    put_rows(y + o * TILE + lane, sum);
  };
  tile_product(a.weights + layer.back, layer.n_out, layer.n_in + layer.n_in % 2, x, zero, scaled);
}

// Adds to the cotangents of u what those of a network's features come to. A coordinate may be read more than once, so it is the same thread's
// each time.
static __device__ void features_back(const Arguments& a, const Shared& s, const Network& network, const real* g) {
  const int p = network.n_periodic, row = threadIdx.x % TILE, own = threadIdx.x / TILE;
  double* gu = cotangents(s);
  for (int c = 0; c < p; ++c) {
    const int i = a.tables[network.periodic + c];
    if (i % (THREADS / TILE) != own) continue;
    double sin_1, cos_1, sum = 0.0;
    sincospi(2.0 * s.u[i * TILE + row], &sin_1, &cos_1);
    double sin_k = sin_1, cos_k = cos_1;
    for (int k = 0; k < network.harmonics; ++k) {
      const double by_cos = (double)g[(2 * k * p + c) * TILE + row], by_sin = (double)g[(2 * k * p + p + c) * TILE + row];
      sum += 2.0 * PI * (k + 1) * (by_sin * cos_k - by_cos * sin_k);
      const double next = sin_k * cos_1 + cos_k * sin_1;
      cos_k = cos_k * cos_1 - sin_k * sin_1;
      sin_k = next;
    }
    gu[i * TILE + row] += sum;
  }
  for (int c = 0; c < network.n_plain; ++c) {
    const int i = a.tables[network.plain + c];
    if (i % (THREADS / TILE) == own) gu[i * TILE + row] += (double)g[(2 * network.harmonics * p + c) * TILE + row];
  }
}

// From the cotangents of a network's outputs, in their place, to those of the coordinates that it sees; ends with a barrier.
static __device__ void conditioner_back(const Arguments& a, const Shared& s, const Network& network, const real* slopes) {
  const Dense* layers = (const Dense*)(a.tables + network.dense);
  const real* from = s.out + network.out * TILE;
  for (int i = network.n_dense - 1; i >= 0; --i) {
    real* to = from == s.a ? s.b : s.a;
    dense_back(a, layers[i], from, to, i > 0 ? slopes + layers[i - 1].slopes * TILE : nullptr);
    __syncthreads();
    from = to;
  }
  features_back(a, s, network, from);
  __syncthreads();
}

// ---------------------------------------------------------------- layers

// A transformed coordinate becomes what its layer was given, and is returned.
static __device__ double restore(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, int c, int row) {
  return s.u[a.tables[layer.transformed + c] * TILE + row] = kept.values[(layer.kept + c) * TILE + row];
}

// Cotangents of a bin's numbers and of the argument x, from those of y = f(x) and of ln f′(x) (spline.rs).
struct BinBack { double argument, x, width, y, height, left, right; };

static __device__ BinBack bin_back(const Bin& bin, double x, double g_y, double g_slope) {
  const double theta = (x - bin.x) / bin.width, s = bin.height / bin.width, u = 1.0 - theta, t1 = theta * u;
  const double bend = bin.left + bin.right - 2.0 * s, denominator = s + bend * t1;
  const double fraction = (s * theta * theta + bin.left * t1) / denominator;
  const double g_fraction = g_y * bin.height, g_numerator = g_fraction / denominator;
  const double g_denominator = -g_fraction * fraction / denominator - 2.0 * g_slope / denominator;
  const double g_b = g_slope / (bin.right * theta * theta + 2.0 * s * t1 + bin.left * u * u);
  const double g_t1 = g_numerator * bin.left + g_denominator * bend + 2.0 * s * g_b;
  const double g_s =
      2.0 * g_slope / s + g_numerator * theta * theta + g_denominator * (1.0 - 2.0 * t1) + g_b * 2.0 * t1;
  const double g_theta = g_numerator * 2.0 * s * theta + g_b * 2.0 * (bin.right * theta - bin.left * u) +
                         g_t1 * (1.0 - 2.0 * theta);
  const BinBack back = {g_theta / bin.width,
                        -g_theta / bin.width,
                        -(g_s * s + g_theta * theta) / bin.width,
                        g_y,
                        g_y * fraction + g_s / bin.width,
                        (g_numerator + g_denominator) * t1 + g_b * u * u,
                        g_denominator * t1 + g_b * theta * theta};
  return back;
}

// In the place of a softmax the cotangents of its arguments, from those of knot n, which is the sum of the sizes before it, and of size n.
static __device__ void softmax_back(real* p, int k, int n, double span, double g_knot, double g_size) {
  const real factor = (real)(span * (1.0 - MIN_BIN * k)), by_knot = (real)g_knot, by_size = (real)g_size;
  real mean = (real)0;
  for (int j = 0; j < n; ++j) mean += p[j * TILE];
  mean = mean * by_knot + p[n * TILE] * by_size;
  for (int j = 0; j < k; ++j) p[j * TILE] *= factor * ((j < n ? by_knot : j == n ? by_size : (real)0) - mean);
}

// The cotangent of the network's output for the slope at knot j: d softplus(t)/dt = 1 − e^{−softplus(t)}.
static __device__ real slope_back(const Layer& layer, const real* slopes, int c, int j, double beta, double g) {
  const int place = slope_place(layer, c, j);
  return place < 0 ? (real)0 : (real)(g * -expm1(-(double)softplus((real)beta * slopes[place * TILE])));
}

// In the place of the slopes of coordinate c their cotangents; only the knots n and n + 1 have any.
static __device__ void slopes_back(const Layer& layer, real* slopes, int c, int n, double beta, double left, double right) {
  const real values[2] = {slope_back(layer, slopes, c, n, beta, left), slope_back(layer, slopes, c, n + 1, beta, right)};
  for (int j = 0; j <= layer.bins; ++j) {
    const int place = slope_place(layer, c, j);
    if (place >= 0) slopes[place * TILE] = (real)0;
  }
  for (int end = 0; end < 2; ++end) {
    const int place = slope_place(layer, c, n + end);
    if (place >= 0) slopes[place * TILE] = values[end];
  }
}

static __device__ void spline_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept) {
  const double left = a.numbers[layer.numbers], span = a.numbers[layer.numbers + 1], beta = a.numbers[layer.numbers + 2];
  const int d = layer.n, k = layer.bins;
  FOR_ITEMS(c, row, d) {
    real* widths = s.out + c * k * TILE + row;
    real* heights = widths + d * k * TILE;
    real* slopes = s.out + 2 * d * k * TILE + row;
    softmax(widths, k);
    softmax(heights, k);
    double* g = &cotangents(s)[a.tables[layer.transformed + c] * TILE + row];
    const double value = restore(a, s, layer, kept, c, row);
    BinBack back = {*g, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};  // beyond linear ends
    int n = 0;
    if (value >= left && value <= left + span) {
      Bin bin;
      n = find(widths, heights, k, left, span, value, &bin.x, &bin.width, &bin.y, &bin.height);
      bin.left = slope_at(layer, slopes, c, n, beta);
      bin.right = slope_at(layer, slopes, c, n + 1, beta);
      back = bin_back(bin, value, *g, 1.0);
    }
    *g = back.argument;
    softmax_back(widths, k, n, span, back.x, back.width);
    softmax_back(heights, k, n, span, back.y, back.height);
    slopes_back(layer, slopes, c, n, beta, back.left, back.right);
  }
  __syncthreads();
}

// u = e⁻ˢ(u′ − t)
static __device__ void affine_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept) {
  const int d = layer.n;
  const double alpha = a.numbers[layer.numbers];
  real* tanhs = scales(a, s, layer);
  FOR_ITEMS(c, row, d) {
    const int place = a.tables[layer.transformed + c] * TILE + row;
    double *g = &cotangents(s)[place], *scale = &s.terms[c * TILE + row];
    const double by_scale = -*g * s.u[place] - 1.0;
    *g *= exp(-*scale);
    *scale = by_scale;
    s.out[c * TILE + row] = (real)-*g;
    restore(a, s, layer, kept, c, row);
  }
  __syncthreads();
  if (layer.preserve_volume) subtract_mean(s.terms, d);
  FOR_ITEMS(c, row, d) {
    real* value = &tanhs[c * TILE + row];
    const double y = (double)*value;
    *value = (real)(s.terms[c * TILE + row] * alpha * (1.0 - y * y));
  }
  __syncthreads();
}

static __device__ void elementwise_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept) {
  FOR_ITEMS(c, row, layer.n) {
    double* g = &cotangents(s)[a.tables[layer.transformed + c] * TILE + row];
    const double value = restore(a, s, layer, kept, c, row);
    if (layer.kind == UNIFORM) {
      const double* numbers = a.numbers + layer.numbers + 3 * c;
      *g /= numbers[1] - numbers[0];
    } else if (layer.kind == TRUNCATED_NORMAL) {
      const double* numbers = a.numbers + layer.numbers + 7 * c;
      const double mean = numbers[0], sd = numbers[1], log_scale = numbers[6], t = (value - mean) / sd;
      *g = *g * exp(-(log_scale + 0.5 * t * t)) - t / sd;
    }
  }
  __syncthreads();
}

// g ← L⁻ᵀ g, by columns from the last.
static __device__ void whiten_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept) {
  const int n = layer.n;
  const double* matrix = a.numbers + layer.numbers + 1 + n;
  const int* place = a.tables + layer.transformed;
  double* gu = cotangents(s);
  FOR_ITEMS(i, row, n) s.terms[i * TILE + row] = gu[place[i] * TILE + row];
  for (int j = n - 1; j > 0; --j) {
    __syncthreads();
    FOR_ITEMS(i, row, j) {
      s.terms[i * TILE + row] -= matrix[j * n + i] * (s.terms[j * TILE + row] / matrix[j * n + j]);
    }
  }
  __syncthreads();
  FOR_ITEMS(i, row, n) {
    gu[place[i] * TILE + row] = s.terms[i * TILE + row] / matrix[i * n + i];
    restore(a, s, layer, kept, i, row);
  }
  __syncthreads();
}

// From the cotangents of what a layer made to those of what it was given.
static __device__ void layer_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept) {
  conditioners(a, s, layer, kept.slopes);
  switch (layer.kind) {
    case SPLINE: spline_back(a, s, layer, kept); break;
    case AFFINE: affine_back(a, s, layer, kept); break;
    case WHITEN: whiten_back(a, s, layer, kept); break;
    default: elementwise_back(a, s, layer, kept);
  }
  for (int i = 0; i < layer.n_networks; ++i) conditioner_back(a, s, layer.networks[i], kept.slopes);
}

// ---------------------------------------------------------------- internal coordinates

// What an entry of the z-matrix says of its atoms i, j, k, l.
struct Entry { Vec3 i, j, k, l; };

// Bond number b from j to i, of these atoms' cotangents.
static __device__ void bond_back(const Arguments& a, const Shared& s, int b, int row, Vec3 bond, Vec3* gi, Vec3* gj) {
  const int slot = a.tables[a.internal.slot + b];
  const double d = norm(bond), g = (slot >= 0 ? s.u[slot * TILE + row] : 0.0) - 2.0 / d;
  const Vec3 by_bond = (g / d) * bond;
  *gi = *gi + by_bond;
  *gj = *gj - by_bond;
}

// The angle at j, from the cotangent of it in u and that of ln sin.
static __device__ void angle_back(double by_u, Vec3 i, Vec3 j, Vec3 k, Vec3* gi, Vec3* gj, Vec3* gk) {
  const Vec3 r = i - j, q = k - j;
  const double length_r = norm(r), length_q = norm(q);
  const Vec3 a = (1.0 / length_r) * r, b = (1.0 / length_q) * q;
  const double cosine = dot(a, b), sine = norm(cross(a, b)), g = by_u - cosine / sine;
  const Vec3 by_i = (g / (length_r * sine)) * (cosine * a - b), by_k = (g / (length_q * sine)) * (cosine * b - a);
  *gi = *gi + by_i;
  *gj = *gj - (by_i + by_k);
  *gk = *gk + by_k;
}

// Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 27.
static __device__ void torsion_back(double by_u, const Entry& at, Entry* g) {
  const Vec3 f = at.i - at.j, axis = at.j - at.k, h = at.l - at.k, a = cross(f, axis), b = cross(h, axis);
  const double a2 = dot(a, a), b2 = dot(b, b), length = norm(axis);
  const Vec3 by_i = (-by_u * length / a2) * a, by_l = (by_u * length / b2) * b;
  const Vec3 between = (by_u * dot(f, axis) / (a2 * length)) * a - (by_u * dot(h, axis) / (b2 * length)) * b;
  g->i = g->i + by_i;
  g->j = g->j + (between - by_i);
  g->k = g->k - (between + by_l);
  g->l = g->l + by_l;
}

// Components along the axes of j, k and l (src/coordinates/placement.rs).
static __device__ void components_back(double by_a, double by_n, double by_m, const Entry& at, Entry* g) {
  const Axes axes = axes_at(at.j, at.k, at.l);
  const Vec3 v1 = at.j - at.k, v2 = at.j - at.l, offset = at.i - at.j;
  const Vec3 by_offset = by_a * axes.a + (by_n * axes.n + by_m * axes.m);
  // m = a × n
  const Vec3 ga = by_a * offset + cross(axes.n, by_m * offset), gn = by_n * offset + cross(by_m * offset, axes.a);
  // n = w / |w| with w = v1 × v2
  const Vec3 gw = (1.0 / norm(cross(v1, v2))) * (gn - dot(axes.n, gn) * axes.n);
  const Vec3 g2 = cross(gw, v1), g1 = cross(v2, gw) + (1.0 / norm(v1)) * (ga - dot(axes.a, ga) * axes.a);
  g->i = by_offset;
  g->j = g1 + g2 - by_offset;
  g->k = -1.0 * g1;
  g->l = -1.0 * g2;
}

// Cotangents of the atoms of a row of the z-matrix, or of the frame.
static __device__ Entry entry_back(const Arguments& a, const Shared& s, int r, int row) {
  const Internal& c = a.internal;
  const double angle_scale = c.normalize_angles ? PI : 1.0, torsion_scale = c.normalize_angles ? 2.0 * PI : 1.0;
  const bool is_frame = r == c.n_rows;
  const int* atoms = a.tables + (is_frame ? c.frame : c.rows + 4 * r);
  const double* angles = s.u + c.n_free * TILE + row;
  Entry at, g = {};
  at.i = atom(s.x, atoms[0], row), at.j = atom(s.x, atoms[1], row), at.k = atom(s.x, atoms[2], row);
  if (is_frame) {
    bond_back(a, s, 0, row, at.j - at.i, &g.j, &g.i);
    bond_back(a, s, 1, row, at.k - at.j, &g.k, &g.j);
    angle_back(angles[0] / angle_scale, at.i, at.j, at.k, &g.i, &g.j, &g.k);
    return g;
  }
  at.l = atom(s.x, atoms[3], row);
  const double by_angle = angles[(r + 1) * TILE], by_torsion = angles[(c.n_rows + 1 + r) * TILE];
  if (a.tables[c.cartesian + r]) {
    components_back(s.u[a.tables[c.slot + r + 2] * TILE + row], by_angle, by_torsion, at, &g);
    return g;
  }
  bond_back(a, s, r + 2, row, at.i - at.j, &g.i, &g.j);
  angle_back(by_angle / angle_scale, at.i, at.j, at.k, &g.i, &g.j, &g.k);
  torsion_back(by_torsion / torsion_scale, at, &g);
  return g;
}

// From the cotangents of u to those of x, in their place.
static __device__ void internal_back(const Arguments& a, const Shared& s, const Kept& kept, int first) {
  const Internal& c = a.internal;
  FOR_ITEMS(i, row, a.dimension) s.u[i * TILE + row] = cotangents(s)[i * TILE + row];
  __syncthreads();
  read_rows(a.x, a.dimension_x, first, a.n, s.x);
  __syncthreads();
  FOR_ITEMS(r, row, c.n_rows + 1) {
    const Entry g = entry_back(a, s, r, row);
    set_atom(kept.parts, 4 * r, row, g.i);
    set_atom(kept.parts, 4 * r + 1, row, g.j);
    set_atom(kept.parts, 4 * r + 2, row, g.k);
    set_atom(kept.parts, 4 * r + 3, row, g.l);
  }
  __syncthreads();
  const int* places = a.tables + c.parts;
  FOR_ITEMS(i, row, c.n_atoms) {
    Vec3 sum = {0.0, 0.0, 0.0};
    for (int p = places[i]; p < places[i + 1]; ++p) sum = sum + atom(kept.parts, a.tables[p], row);
    set_atom(s.x, i, row, sum);
  }
  __syncthreads();
}

// ---------------------------------------------------------------- all of it

static __device__ void prior_back(const Arguments& a, const Shared& s) {
  FOR_ITEMS(i, row, a.dimension) {
    const bool uniform = a.tables[a.draws + 2 * i + 1] == 0;
    cotangents(s)[i * TILE + row] = uniform ? 0.0 : -s.u[i * TILE + row] / a.variance;
  }
  __syncthreads();
}

// log q of x, and its gradient; a row that is outside has zeros. A block goes on to the next rows of its own.
// Derivatives of splines and of geometry need more registers than their values.
KERNEL_OF(384, coupling_gradient, Arguments) {
  DYNAMIC_SHARED(memory);
  const Shared s = layout(a, memory);
  const Kept kept = kept_of(a);
  for (int first = blockIdx.x * TILE; first < a.n; first += gridDim.x * TILE) {
    encode(a, s, first, kept.values);
    finish(a, s, first);
    prior_back(a, s);
    for (int i = 0; i < a.n_layers; ++i) layer_back(a, s, a.layers[i], kept);
    if (a.internal.n_atoms) internal_back(a, s, kept, first);
    FOR_ITEMS(i, row, a.dimension_x) {
      if (s.status[row] != INSIDE) s.x[i * TILE + row] = 0.0;
    }
    __syncthreads();
    write_rows(a.gradient, a.dimension_x, first, a.n, s.x);
    __syncthreads();
  }
}
