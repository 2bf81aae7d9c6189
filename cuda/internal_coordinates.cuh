// Internal coordinates of a block's rows (src/coordinates/internal.rs), from x to u and back. Included by coupling.cu.

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
  axes.singular = !(length >= SMALLEST_SINE * first * norm(v2));  // also for NaN
  return axes;
}

// Angles and torsions in u from radians, and from u in units of π: `sincospi` needs no reduction of large arguments.
static __device__ double angle_in(const Internal& c, double theta) { return c.normalize_angles ? theta / PI : theta; }
static __device__ double torsion_in(const Internal& c, double phi) {
  return c.normalize_angles ? (phi + PI) / (2.0 * PI) : phi;
}
static __device__ double angle_out(const Internal& c, double u) { return c.normalize_angles ? u : u / PI; }
static __device__ double torsion_out(const Internal& c, double u) { return c.normalize_angles ? 2.0 * u - 1.0 : u / PI; }

// Rejects stereocentres of the other hand; `place` is the index of the failure.
static __device__ void check_hands(const Arguments& a, const Shared& s, int place) {
  FOR_ITEMS(i, row, a.internal.n_stereocentres) {
    const int* centre = a.tables + a.internal.stereocentres + 5 * i;  // centre, three neighbours, sign
    const Vec3 origin = atom(s.x, centre[0], row);
    const Vec3 p = atom(s.x, centre[1], row) - origin, q = atom(s.x, centre[2], row) - origin;
    const Vec3 r = atom(s.x, centre[3], row) - origin;
    if ((dot(p, cross(q, r)) > 0.0) != (centre[4] != 0)) fail(s, row, place, WRONG_CHIRALITY);
  }
}

// Bond number b of [0–1, 1–2, rows…], of length d: writes it to u or checks it; returns its contribution to the
// log-determinant.
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

// x → u, and ln|∂x/∂u|. A rejected row keeps arbitrary but finite numbers, for the sake of the layers.
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
        // a torsion beyond a full turn would come back as another one
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
  // all atoms whose three references are placed, at once
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
