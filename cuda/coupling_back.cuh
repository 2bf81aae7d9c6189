// Backward pass of a coupling flow, in one launch with the forward pass: ∇ₓ log q, through x → z, or the cotangents of
// z from those of x and of ln|∂x/∂z|, through z → x.
//
// In the forward pass a block stores in global memory the inputs of each layer among the coordinates that it changes.
// With these restored in u a layer's network sees the same inputs, so it is run again, and leaves the derivatives of
// its activations for its backward pass: activations of only one layer are kept at a time. The cotangents of u replace
// x, which is read again for the internal coordinates. Those of an atom are stored by each row of the z-matrix that
// contains it, and added in the order of a table.
//
// Results of rows outside the support are not written. Included by coupling.cu.

// A block's part of `kept`. Where `parts` are used, no network's `slopes` are needed.
struct Kept { double* values; real* slopes; double* parts; };

static __device__ Kept kept_of(const Arguments& a) {
  double* memory = a.kept + (size_t)blockIdx.x * a.n_kept * TILE;
  double* rest = memory + a.n_values * TILE;
  const Kept kept = {memory, (real*)rest, rest};
  return kept;
}

static __device__ double* cotangents(const Shared& s) { return s.x; }
// Cotangents of ln|∂x/∂z|, by row.
static __device__ double* log_det_cotangents(const Shared& s) { return s.log_prior; }

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

// Adds the contributions of a network's features to the cotangents of u. A coordinate may be read more than once, so
// the same thread handles it each time.
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

// From the cotangents of a network's outputs, in their place, to those of the coordinates that it reads; ends with a
// barrier.
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

// Restores a transformed coordinate to the layer's input, and returns it.
static __device__ double restore(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, int c, int row) {
  return s.u[a.tables[layer.transformed + c] * TILE + row] = kept.values[(layer.kept + c) * TILE + row];
}

// Cotangents of a bin's parameters and of the argument x, from those of y = f(x) and of ln f′(x) (spline.rs).
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

// As bin_back at y, from the cotangents of x = f⁻¹(y) and of ln f′(x): dx = (dy − ∂f/∂bin · dbin)/f′.
static __device__ BinBack root_back(const Bin& bin, double y, double g_x, double g_slope) {
  double slope;
  const double x = root(bin, y, &slope);
  const double g_y = (g_x + bin_back(bin, x, 0.0, g_slope).argument) * exp(-slope);
  BinBack back = bin_back(bin, x, -g_y, g_slope);
  back.argument = g_y;
  return back;
}

// Replaces a softmax by the cotangents of its arguments, from those of knot n, which is the sum of the sizes before it,
// and of size n.
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

// Replaces the slopes of coordinate c by their cotangents; only those at knots n and n + 1 are non-zero.
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

static __device__ void spline_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, bool generate) {
  const double left = a.numbers[layer.numbers], span = a.numbers[layer.numbers + 1], beta = a.numbers[layer.numbers + 2];
  const int d = layer.n, k = layer.bins;
  FOR_ITEMS(c, row, d) {
    real* widths = s.out + c * k * TILE + row;
    real* heights = widths + d * k * TILE;
    real* slopes = s.out + 2 * d * k * TILE + row;
    softmax(widths, k);
    softmax(heights, k);
    double* g = &cotangents(s)[a.tables[layer.transformed + c] * TILE + row];
    const double value = restore(a, s, layer, kept, c, row), g_slope = -log_det_cotangents(s)[row];
    BinBack back = {*g, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};  // beyond linear ends
    int n = 0;
    if (value >= left && value <= left + span) {
      Bin bin;
      n = generate ? find(heights, widths, k, left, span, value, &bin.y, &bin.height, &bin.x, &bin.width)
                   : find(widths, heights, k, left, span, value, &bin.x, &bin.width, &bin.y, &bin.height);
      bin.left = slope_at(layer, slopes, c, n, beta);
      bin.right = slope_at(layer, slopes, c, n + 1, beta);
      back = generate ? root_back(bin, value, *g, g_slope) : bin_back(bin, value, *g, g_slope);
    }
    *g = back.argument;
    softmax_back(widths, k, n, span, back.x, back.width);
    softmax_back(heights, k, n, span, back.y, back.height);
    slopes_back(layer, slopes, c, n, beta, back.left, back.right);
  }
  __syncthreads();
}

// u′ = eˢ u + t, or u = e⁻ˢ(u′ − t).
static __device__ void affine_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, bool generate) {
  const int d = layer.n;
  const double alpha = a.numbers[layer.numbers];
  real* tanhs = scales(a, s, layer);
  FOR_ITEMS(c, row, d) {
    const int place = a.tables[layer.transformed + c] * TILE + row;
    double *g = &cotangents(s)[place], *scale = &s.terms[c * TILE + row];
    real* shift = &s.out[c * TILE + row];
    const double factor = exp(generate ? *scale : -*scale);
    const double log_det = log_det_cotangents(s)[row];
    // explicit fma, since the compiler would use it for some values of TILE and not for others
    *scale = generate ? fma(*g, s.u[place] - (double)*shift, log_det) : fma(-*g, s.u[place], log_det);
    *shift = (real)(generate ? *g : -*g * factor);
    *g *= factor;
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

static __device__ void elementwise_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, bool generate) {
  FOR_ITEMS(c, row, layer.n) {
    const int place = a.tables[layer.transformed + c] * TILE + row;
    double* g = &cotangents(s)[place];
    const double made = s.u[place], given = restore(a, s, layer, kept, c, row);
    if (layer.kind == UNIFORM) {
      const double* numbers = a.numbers + layer.numbers + 3 * c;
      const double span = numbers[1] - numbers[0];
      *g = generate ? *g * span : *g / span;
    } else if (layer.kind == TRUNCATED_NORMAL) {
      const double* numbers = a.numbers + layer.numbers + 7 * c;
      const double mean = numbers[0], sd = numbers[1], log_scale = numbers[6];
      const double t = ((generate ? made : given) - mean) / sd, by_t = log_det_cotangents(s)[row] * t / sd;
      const double slope = exp(log_scale + 0.5 * t * t);
      *g = generate ? (*g + by_t) * slope : *g / slope + by_t;
    }
  }
  __syncthreads();
}

// g ← Lᵀ g, or L⁻ᵀ g by columns from the last.
static __device__ void whiten_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, bool generate) {
  const int n = layer.n;
  const double* matrix = a.numbers + layer.numbers + 1 + n;
  const int* place = a.tables + layer.transformed;
  double* gu = cotangents(s);
  if (generate) {
    FOR_ITEMS(i, row, n) {
      double sum = 0.0;
      for (int j = i; j < n; ++j) sum += matrix[j * n + i] * gu[place[j] * TILE + row];
      s.terms[i * TILE + row] = sum;
    }
  } else {
    FOR_ITEMS(i, row, n) s.terms[i * TILE + row] = gu[place[i] * TILE + row];
    for (int j = n - 1; j > 0; --j) {
      __syncthreads();
      FOR_ITEMS(i, row, j) {
        s.terms[i * TILE + row] -= matrix[j * n + i] * (s.terms[j * TILE + row] / matrix[j * n + j]);
      }
    }
  }
  __syncthreads();
  FOR_ITEMS(i, row, n) {
    gu[place[i] * TILE + row] = generate ? s.terms[i * TILE + row] : s.terms[i * TILE + row] / matrix[i * n + i];
    restore(a, s, layer, kept, i, row);
  }
  __syncthreads();
}

// From the cotangents of a layer's output to those of its input.
static __device__ void layer_back(const Arguments& a, const Shared& s, const Layer& layer, const Kept& kept, bool generate) {
  conditioners(a, s, layer, kept.slopes);
  switch (layer.kind) {
    case SPLINE: spline_back(a, s, layer, kept, generate); break;
    case AFFINE: affine_back(a, s, layer, kept, generate); break;
    case WHITEN: whiten_back(a, s, layer, kept, generate); break;
    default: elementwise_back(a, s, layer, kept, generate);
  }
  for (int i = 0; i < layer.n_networks; ++i) conditioner_back(a, s, layer.networks[i], kept.slopes);
}

// ---------------------------------------------------------------- internal coordinates, of log q by x

// Positions or cotangents of the atoms i, j, k, l of a z-matrix entry.
struct Entry { Vec3 i, j, k, l; };

// Adds the cotangents of atoms i and j from those of bond number b from j to i.
static __device__ void bond_back(const Arguments& a, const Shared& s, int b, int row, Vec3 bond, Vec3* gi, Vec3* gj) {
  const int slot = a.tables[a.internal.slot + b];
  const double d = norm(bond), g = (slot >= 0 ? s.u[slot * TILE + row] : 0.0) - 2.0 / d;
  const Vec3 by_bond = (g / d) * bond;
  *gi = *gi + by_bond;
  *gj = *gj - by_bond;
}

// The angle at j, from its cotangent in u and that of ln sin.
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

// The axes of j, k and l, from the cotangents of a, n and m (src/coordinates/placement.rs).
static __device__ void axes_back(const Axes& axes, Vec3 by_a, Vec3 by_n, Vec3 by_m, const Entry& at, Entry* g) {
  const Vec3 v1 = at.j - at.k, v2 = at.j - at.l;
  // m = a × n
  const Vec3 ga = by_a + cross(axes.n, by_m), gn = by_n + cross(by_m, axes.a);
  // n = w / |w| with w = v1 × v2
  const Vec3 gw = (1.0 / norm(cross(v1, v2))) * (gn - dot(axes.n, gn) * axes.n);
  const Vec3 g2 = cross(gw, v1), g1 = cross(v2, gw) + (1.0 / norm(v1)) * (ga - dot(axes.a, ga) * axes.a);
  g->j = g->j + (g1 + g2);
  g->k = g->k - g1;
  g->l = g->l - g2;
}

// Components of the vector from j to i along these axes.
static __device__ void components_back(double by_a, double by_n, double by_m, const Entry& at, Entry* g) {
  const Axes axes = axes_at(at.j, at.k, at.l);
  const Vec3 offset = at.i - at.j, by_offset = by_a * axes.a + (by_n * axes.n + by_m * axes.m);
  g->i = by_offset;
  g->j = -1.0 * by_offset;
  axes_back(axes, by_a * offset, by_n * offset, by_m * offset, at, g);
}

// Cotangents of the atoms in a row of the z-matrix, or in the frame.
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

// From the cotangents of u to those of x, in place.
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

// ---------------------------------------------------------------- internal coordinates, of x by u

// The cotangent of an atom's position: as given, plus contributions from the atoms placed relative to it.
static __device__ Vec3 placed_back(const Arguments& a, const Kept& kept, int i, int first, int row) {
  const int* places = a.tables + a.internal.parts;
  const double* given = a.x + (size_t)(first + row < a.n ? first + row : a.n - 1) * a.dimension_x + 3 * i;
  Vec3 sum = {given[0], given[1], given[2]};
  for (int p = places[i]; p < places[i + 1]; ++p) {
    const int part = a.tables[p];
    if (part % 4 > 0 && part / 4 < a.internal.n_rows) sum = sum + atom(kept.parts, part, row);
  }
  return sum;
}

static __device__ void put_bond_back(const Arguments& a, const Shared& s, int b, int row, double by_length, double* gu) {
  const int slot = a.tables[a.internal.slot + b];
  if (slot >= 0) gu[slot * TILE + row] = by_length + 2.0 * log_det_cotangents(s)[row] / s.u[slot * TILE + row];
}

// From the cotangents of the atom of row r, and of its bond, angle and torsion, to those of the atoms it was placed by.
static __device__ void placement_back(const Arguments& a, const Shared& s, int r, int row, Vec3 by_i, double* gu, Entry* g) {
  const Internal& c = a.internal;
  const double angle_scale = c.normalize_angles ? PI : 1.0, torsion_scale = c.normalize_angles ? 2.0 * PI : 1.0;
  const int* atoms = a.tables + c.rows + 4 * r;
  const int slot = a.tables[c.slot + r + 2], at_angle = (c.n_free + r + 1) * TILE + row;
  const int at_torsion = (c.n_free + c.n_rows + 1 + r) * TILE + row;
  Entry at;
  at.j = atom(s.x, atoms[1], row), at.k = atom(s.x, atoms[2], row), at.l = atom(s.x, atoms[3], row);
  const Axes axes = axes_at(at.j, at.k, at.l);
  const double d = slot >= 0 ? s.u[slot * TILE + row] : a.numbers[c.lengths + r + 2];
  g->j = by_i;
  if (a.tables[c.cartesian + r]) {
    gu[slot * TILE + row] = dot(by_i, axes.a);
    gu[at_angle] = dot(by_i, axes.n);
    gu[at_torsion] = dot(by_i, axes.m);
    axes_back(axes, d * by_i, s.u[at_angle] * by_i, s.u[at_torsion] * by_i, at, g);
    return;
  }
  double sin_t, cos_t, sin_p, cos_p;
  sincospi(angle_out(c, s.u[at_angle]), &sin_t, &cos_t);
  sincospi(torsion_out(c, s.u[at_torsion]), &sin_p, &cos_p);
  const double along_a = dot(by_i, axes.a), along_n = dot(by_i, axes.n), along_m = dot(by_i, axes.m);
  const double across = cos_p * along_m - sin_p * along_n;
  put_bond_back(a, s, r + 2, row, sin_t * across - cos_t * along_a, gu);
  gu[at_angle] = (d * (cos_t * across + sin_t * along_a) + log_det_cotangents(s)[row] * cos_t / sin_t) * angle_scale;
  gu[at_torsion] = -d * sin_t * (sin_p * along_m + cos_p * along_n) * torsion_scale;
  axes_back(axes, (-d * cos_t) * by_i, (-d * sin_t * sin_p) * by_i, (d * sin_t * cos_p) * by_i, at, g);
}

static __device__ void frame_back(const Arguments& a, const Shared& s, const Kept& kept, int first, int row, double* gu) {
  const Internal& c = a.internal;
  const int *frame = a.tables + c.frame, slot = a.tables[c.slot + 1];
  const Vec3 axis = {0.0, -0.8660254037844386, 0.5}, side = {1.0, 0.0, 0.0};
  const Vec3 g1 = placed_back(a, kept, frame[1], first, row), g2 = placed_back(a, kept, frame[2], first, row);
  const double d = slot >= 0 ? s.u[slot * TILE + row] : a.numbers[c.lengths + 1];
  double sine, cosine;
  sincospi(angle_out(c, s.u[c.n_free * TILE + row]), &sine, &cosine);
  put_bond_back(a, s, 0, row, dot(g1 + g2, axis), gu);
  put_bond_back(a, s, 1, row, dot(g2, sine * side - cosine * axis), gu);
  const double by_angle = d * dot(g2, cosine * side + sine * axis) + log_det_cotangents(s)[row] * cosine / sine;
  gu[c.n_free * TILE + row] = by_angle * (c.normalize_angles ? PI : 1.0);
}

// From the cotangents of x to those of u, which replace those of x: in reverse order of placement.
static __device__ void cartesian_back(const Arguments& a, const Shared& s, const Kept& kept, int first) {
  const Internal& c = a.internal;
  double* gu = s.terms;
  for (int level = c.n_levels - 1; level >= 0; --level) {
    const int start = a.tables[c.levels + level], count = a.tables[c.levels + level + 1] - start;
    FOR_ITEMS(i, row, count) {
      const int r = a.tables[c.order + start + i];
      Entry g = {};
      placement_back(a, s, r, row, placed_back(a, kept, a.tables[c.rows + 4 * r], first, row), gu, &g);
      set_atom(kept.parts, 4 * r + 1, row, g.j);
      set_atom(kept.parts, 4 * r + 2, row, g.k);
      set_atom(kept.parts, 4 * r + 3, row, g.l);
    }
    __syncthreads();
  }
  if (threadIdx.x < TILE) frame_back(a, s, kept, first, threadIdx.x, gu);
  __syncthreads();
  FOR_ITEMS(i, row, a.dimension) cotangents(s)[i * TILE + row] = gu[i * TILE + row];
  __syncthreads();
}

// ---------------------------------------------------------------- all of it

// From x to z, or from log q to x; a block of a single row, whose prefetching leaves no registers for both, has only
// the latter.
#if TILE == 1
#define OF_LATENT false
#else
#define OF_LATENT (a.of_latent != 0)
#endif

// log q of x, with cotangent one: cotangents of latent points and of ln|∂x/∂z|.
static __device__ void log_density_back(const Arguments& a, const Shared& s) {
  FOR_ITEMS(i, row, a.dimension) {
    const bool uniform = a.tables[a.draws + 2 * i + 1] == 0;
    cotangents(s)[i * TILE + row] = uniform ? 0.0 : -s.u[i * TILE + row] / a.variance;
  }
  if (threadIdx.x < TILE) log_det_cotangents(s)[threadIdx.x] = -1.0;
  __syncthreads();
}

// From the given cotangents in x and log_det to those of u.
static __device__ void given_back(const Arguments& a, const Shared& s, const Kept& kept, int first) {
  if (threadIdx.x < TILE) {
    const int row = threadIdx.x;
    log_det_cotangents(s)[row] = a.log_det[first + row < a.n ? first + row : a.n - 1];
  }
  __syncthreads();
  if (a.internal.n_atoms) {
    cartesian_back(a, s, kept, first);
  } else {
    read_rows(a.x, a.dimension, first, a.n, cotangents(s));
    __syncthreads();
  }
}

// log q of x and its gradient, or the cotangents of z; zeros for rows outside the support. A block loops over its rows.
// Derivatives of splines and of geometry need more registers than their values.
KERNEL_OF(384, coupling_back, Arguments) {
  const Shared s = layout(a, of_block());
  const Kept kept = kept_of(a);
  const int width = OF_LATENT ? a.dimension : a.dimension_x;
  for (int first = blockIdx.x * TILE; first < a.n; first += gridDim.x * TILE) {
    if (OF_LATENT) {
      generate(a, s, first, kept.values);
      given_back(a, s, kept, first);
    } else {
      encode(a, s, first, kept.values);
      finish(a, s, first);
      log_density_back(a, s);
    }
    for (int i = 0; i < a.n_layers; ++i) {
      layer_back(a, s, a.layers[OF_LATENT ? a.n_layers - 1 - i : i], kept, OF_LATENT);
    }
    if (a.internal.n_atoms && !OF_LATENT) internal_back(a, s, kept, first);
    FOR_ITEMS(i, row, width) {
      if (s.status[row] != INSIDE) s.x[i * TILE + row] = 0.0;
    }
    __syncthreads();
    write_rows(a.gradient, width, first, a.n, s.x);
    __syncthreads();
  }
}
