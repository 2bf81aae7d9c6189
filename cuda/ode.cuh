// The ODE of a continuous flow from start to end in one launch: the solver of src/ode.rs, with the velocity that
// src/models/continuous/mod.rs derives from a field.
//
// A team of blocks processes one sample after another. Its blocks share the parts of the divergence; each of them does
// everything else redundantly, from the same numbers and in the same order, so that they agree on every step. They meet
// once per evaluation. A sample's result depends neither on its team nor on the other samples.
#ifndef MODEJUMP_ODE
#define MODEJUMP_ODE
#include "tangents.cuh"

#define DIMENSION (3 * ATOMS)
#define FOR_NUMBERS(i, count) for (int i = threadIdx.x; i < (count); i += THREADS)

enum Method { EULER, RK4, DORMAND_PRINCE };
enum Parametrisation { VELOCITY, LINEAR_ENDPOINT, TRIGONOMETRIC_ENDPOINT };
// As in src/ode.rs.
enum End { DONE, STEP_BUDGET, STEP_UNDERFLOW, NEVER_FINITE };
struct Report { int evaluations, accepted, rejected, end; };

struct Ode {
  double* x;             // [n][DIMENSION], carried from `start` to `end`
  double* integral;      // [n], to which the integral of the divergence is added; null: not wanted
  Report* reports;       // [n]
  const double* probes;  // [n][n_probes][DIMENSION] for an estimate of the divergence; null: exact
  double* blocks;        // [blocks][PATH]
  double* teams;         // [teams][2][DIMENSION + parts of a divergence]
  u32* arrivals;         // [teams], zero
  real* scratch;         // with SCRATCH the blocks' states of the field, one after another
  double start, end;
  double absolute, relative, tolerance;  // `tolerance` is that of the integral
  int n, team, n_probes;                 // team: number of its blocks
  int method, steps, nodes;              // steps: largest number, or number of equal steps; nodes: of the quadrature, 0 for none
  int mean_free, parametrisation, from_data;  // from_data: network time counts from the data
  int padding;
};

// An explicit Runge-Kutta method, as in src/ode.rs.
struct Tableau { int stages; double c[7], a[7][6], b[7]; };

static __device__ const Tableau TABLEAUS[3] = {
    {1, {0.0}, {{0.0}}, {1.0}},
    {4, {0.0, 0.5, 0.5, 1.0}, {{0.0}, {0.5}, {0.0, 0.5}, {0.0, 0.0, 1.0}}, {1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0}},
    {7,
     {0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0},
     {{0.0},
      {0.2},
      {3.0 / 40.0, 9.0 / 40.0},
      {44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0},
      {19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0},
      {9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0},
      {35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0}},
     {35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0}}};

static __device__ const double ERROR[7] = {
    71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0};

static __device__ const double EXTENSION[7] = {
    -12715105075.0 / 11282082432.0, 0.0, 87487479700.0 / 32700410799.0, -10690763975.0 / 1880347072.0,
    701980252875.0 / 199316789632.0, -1453857185.0 / 822651844.0, 69997945.0 / 29380423.0};

// Nodes of Gauss-Legendre quadrature on [0, 1] and their weights, by number of nodes.
static __device__ const double GAUSS_LEGENDRE[4][3][2] = {
    {{0.0, 0.0}},
    {{0.5, 1.0}},
    {{0.2113248654051871, 0.5}, {0.7886751345948129, 0.5}},
    {{0.11270166537925831, 5.0 / 18.0}, {0.5, 4.0 / 9.0}, {0.8872983346207417, 5.0 / 18.0}}};

static __device__ bool is_finite(double v) { return v - v == 0.0; }

// (a, b) of v = a x + b x_data at network time t (`Schedule::by_endpoint`).
struct ByEndpoint { double a, b; };

static __device__ ByEndpoint by_endpoint(const Ode& o, double t) {
  const double s = o.from_data ? t : 1.0 - t, rate = o.from_data ? 1.0 : -1.0;
  double alpha = 1.0 - s, sigma = s, d_alpha = -1.0, d_sigma = 1.0;
  if (o.parametrisation == TRIGONOMETRIC_ENDPOINT) {
    sincospi(0.5 * s, &sigma, &alpha);
    d_alpha = -0.5 * PI * sigma;
    d_sigma = 0.5 * PI * alpha;
  }
  const double a = rate * d_sigma / sigma;
  const ByEndpoint r = {a, rate * d_alpha - alpha * a};
  return r;
}

// Numbers that a block keeps for its sample, a row being x and the integral: the point, the trial point, seven slopes,
// and the terms of a sum.
#define ROW (DIMENSION + 1)
#define PATH (10 * ROW)

// A team's sample. All threads of the team take the same decisions.
template <class Field>
struct Path {
  const Ode& o;
  const Field& field;
  const Team team;
  double* const y;
  int turn;  // which of the team's two places the next evaluation writes: nobody reads there any more
  int row;
  // the time, the trial step, the step after it if it is accepted, and its end: t + h, or exactly the end of the span
  double t, h, then, next;
  double sum;  // of the quadrature
  bool was_rejected, was_infinite;
  Report report;

  __device__ Path(const Ode& ode, const Field& of_point, const Team& of_blocks)
      : o(ode), field(of_point), team(of_blocks), y(ode.blocks + (size_t)blockIdx.x * PATH), turn(0) {}

  // Rows at fixed offsets from y, which take no registers.
  __device__ double* trial() const { return y + ROW; }
  __device__ double* k(int stage) const { return y + (2 + stage) * ROW; }
  __device__ double* terms() const { return y + 9 * ROW; }

  // Numbers of a row that are integrated.
  __device__ int width() const { return DIMENSION + (o.integral && o.nodes == 0 ? 1 : 0); }

  __device__ void begin(int index) {
    row = index;
    t = next = o.start;
    h = then = 0.0;
    sum = o.integral ? o.integral[row] : 0.0;
    was_rejected = was_infinite = false;
    report = Report{0, 0, 0, DONE};
    FOR_NUMBERS(i, width()) y[i] = trial()[i] = i < DIMENSION ? o.x[(size_t)row * DIMENSION + i] : sum;
  }

  // Number of parts of a divergence.
  __device__ int shares() const { return o.probes ? o.n_probes : PARTS; }

  __device__ double at(double c) const { return c == 1.0 ? next : t + c * h; }

  // dx/dt at the trial point, followed by the integrand if wanted. Begins and ends with a barrier. Not inlined, so that
  // the path is in memory and not in registers meanwhile.
  __device__ __noinline__ void evaluate(double time, double* slope, bool with_rate) {
    __syncthreads();
    double* f = o.teams + (size_t)(2 * team.index + turn) * (DIMENSION + shares());
    turn = 1 - turn;
    for (int part = team.rank; part < (with_rate ? shares() : 1); part += team.blocks) {
      const double* probe = o.probes ? o.probes + ((size_t)row * o.n_probes + part) * DIMENSION : (const double*)0;
      double* share = with_rate ? f + DIMENSION + part : (double*)0;
      field(Point{time, trial(), probe, part, part != team.rank, part == 0 ? f : (double*)0, (double*)0, share});
    }
    meet(team);
    report.evaluations += 1;
    ByEndpoint endpoint = {0.0, 1.0};
    if (o.parametrisation != VELOCITY) endpoint = by_endpoint(o, time);
    FOR_NUMBERS(i, DIMENSION + (with_rate ? 1 : 0)) {
      double v = i < DIMENSION ? f[i] : 0.0, towards = i < DIMENSION ? trial()[i] : DIMENSION - (o.mean_free ? 3 : 0);
      if (i < DIMENSION && o.mean_free) {
        double mean = 0.0;
        for (int atom = 0; atom < ATOMS; ++atom) mean += f[3 * atom + i % 3];
        v -= mean / ATOMS;
      }
      if (i == DIMENSION) {
        for (int part = 0; part < shares(); ++part) v += f[DIMENSION + part];
        if (o.probes) v /= o.n_probes;
      }
      slope[i] = o.parametrisation == VELOCITY ? v : endpoint.a * towards + endpoint.b * v;
    }
    __syncthreads();
  }

  // Element i of the sum of c_j k_j.
  __device__ double combined(const double* c, int count, int i) const {
    double total = 0.0;
    for (int j = 0; j < count; ++j)
      if (c[j] != 0.0) total += c[j] * k(j)[i];
    return total;
  }

  // Stages of one step, from `first` on.
  __device__ void stages(const Tableau& tableau, int first) {
#pragma unroll 1
    for (int stage = first; stage < tableau.stages; ++stage) {
      FOR_NUMBERS(i, width()) trial()[i] = y[i] + h * combined(tableau.a[stage], stage, i);
      evaluate(at(tableau.c[stage]), k(stage), width() > DIMENSION);
    }
  }

  __device__ void fixed(const Tableau& tableau) {
    const double span = o.end - o.start;
#pragma unroll 1
    for (int step = 0; step < o.steps; ++step) {
      t = o.start + span * ((double)step / o.steps);
      next = step + 1 == o.steps ? o.end : o.start + span * ((double)(step + 1) / o.steps);
      h = next - t;
      stages(tableau, 0);
      FOR_NUMBERS(i, width()) y[i] += h * combined(tableau.b, tableau.stages, i);
    }
    __syncthreads();
    report.accepted = o.steps;
    for (int i = 0; i < width(); ++i)
      if (!is_finite(y[i])) report.end = NEVER_FINITE;
  }

  // Norm of a vector in units of the tolerance: root mean square of x or magnitude of the integral, whichever is
  // larger; not finite if any element is not.
  template <class Vector>
  __device__ double norm(const Vector& vector) {
    FOR_NUMBERS(i, width()) {
      const double scale = o.absolute + o.relative * fmax(fabs(y[i]), fabs(trial()[i])), v = vector(i);
      terms()[i] = i < DIMENSION ? v / scale * (v / scale) : fabs(v / o.tolerance);
    }
    __syncthreads();
    double total = 0.0;
    for (int i = 0; i < DIMENSION; ++i) total += terms()[i];
    double size = sqrt(total / DIMENSION);
    if (width() > DIMENSION && is_finite(size) && !(size >= terms()[DIMENSION])) size = terms()[DIMENSION];
    __syncthreads();
    return size;
  }

  // First slope, and initial step size by the estimates of Hairer et al., II.4.
  __device__ void first_step() {
    const double span = o.end - o.start;
    evaluate(o.start, k(0), width() > DIMENSION);
    const double size = norm([&](int i) { return y[i]; }), slope = norm([&](int i) { return k(0)[i]; });
    h = size < 1e-5 || slope < 1e-5 ? 1e-6 : is_finite(slope) ? 0.01 * size / slope : 0.0;
    h = copysign(fmin(h, fabs(span)), span);
    next = o.start + h;
    FOR_NUMBERS(i, width()) trial()[i] = y[i] + h * k(0)[i];
    evaluate(next, k(1), width() > DIMENSION);
    const double curvature = norm([&](int i) { return k(1)[i] - k(0)[i]; }) / fabs(h);
    const double steepest = fmax(slope, curvature);
    double guess = steepest <= 1e-15 ? fmax(1e-3 * fabs(h), 1e-6) : pow(0.01 / steepest, 0.2);
    guess = fmin(fmin(guess, 100.0 * fabs(h)), fabs(span));
    // if the estimate is not finite, start with a short step
    h = copysign(is_finite(slope) && is_finite(curvature) && guess > 0.0 ? guess : 1e-6 * fabs(span), span);
  }

  // Sets the next trial step; false if the sample is given up.
  __device__ bool plan() {
    if (report.accepted + report.rejected >= o.steps) report.end = STEP_BUDGET;
    else if (t + 0.1 * h == t || h != h) report.end = was_infinite ? NEVER_FINITE : STEP_UNDERFLOW;
    // a step that would leave a tiny remainder is extended to the end
    if (fabs(1.01 * h) >= fabs(o.end - t)) {
      h = o.end - t;
      next = o.end;
    } else {
      next = t + h;
    }
    return report.end == DONE;
  }

  // Whether the step is accepted; sets the length of the next.
  __device__ bool judge() {
    const double error = norm([&](int i) { return h * combined(ERROR, 7, i); });
    was_infinite = !is_finite(error);
    const double factor = was_infinite ? 0.2 : fmin(fmax(0.9 * pow(error, -0.2), 0.2), 10.0);
    const bool rejected = error > 1.0 || was_infinite;
    if (rejected) {
      report.rejected += 1;
      h *= fmin(factor, 1.0);
    } else {
      report.accepted += 1;
      then = h * (was_rejected ? fmin(factor, 1.0) : factor);
    }
    was_rejected = rejected;
    return !rejected;
  }

  // Dense output: element i at t + theta h of a step whose stages are all computed, and whose end is kept in `terms`.
  __device__ double extension(int i, double theta) const {
    const double shift = terms()[i] - y[i], other = 1.0 - theta;
    const double first = h * k(0)[i] - shift, last = shift - h * k(6)[i], rest = h * combined(EXTENSION, 7, i);
    return y[i] + theta * (shift + other * (first + theta * (last - first + other * rest)));
  }

  // Adds the integral over the step.
  __device__ void accumulate() {
    if (!o.integral || o.nodes == 0) return;
    FOR_NUMBERS(i, width()) terms()[i] = trial()[i];
#pragma unroll 1
    for (int node = 0; node < o.nodes; ++node) {
      const double theta = GAUSS_LEGENDRE[o.nodes][node][0], weight = GAUSS_LEGENDRE[o.nodes][node][1];
      FOR_NUMBERS(i, width()) trial()[i] = extension(i, theta);
      // nobody needs the slope of the second stage
      evaluate(at(theta), k(1), true);
      sum += h * weight * k(1)[DIMENSION];
    }
    FOR_NUMBERS(i, width()) trial()[i] = terms()[i];
  }

  // To the end of an accepted step.
  __device__ void advance() {
    t = next;
    h = then;
    FOR_NUMBERS(i, width()) {
      y[i] = trial()[i];
      k(0)[i] = k(6)[i];
    }
    __syncthreads();
  }

  __device__ void adaptive() {
    first_step();
#pragma unroll 1
    while (t != o.end && plan()) {
      stages(TABLEAUS[DORMAND_PRINCE], 1);
      if (!judge()) continue;
      accumulate();
      advance();
    }
    if (!is_finite(sum)) report.end = NEVER_FINITE;
  }

  __device__ void run(int index) {
    begin(index);
    if (o.method == DORMAND_PRINCE) adaptive();
    else fixed(TABLEAUS[o.method]);
    if (team.rank == 0) {
      FOR_NUMBERS(i, DIMENSION) o.x[(size_t)row * DIMENSION + i] = y[i];
      if (threadIdx.x == 0) {
        if (o.integral) o.integral[row] = width() > DIMENSION ? y[DIMENSION] : sum;
        o.reports[row] = report;
      }
    }
    __syncthreads();
  }
};

template <class Field>
static __device__ void carry(const Ode& o, const Field& field) {
  const Team team = team_of(o.team, o.arrivals);
  Path<Field> path(o, field, team);
  for (int row = team.index; row < o.n; row += gridDim.x / o.team) path.run(row);
}

// The kernels of a model, of its Network, values and derivatives (as field(..) needs them): `values` of a batch, and paths.
#define FIELD_KERNELS(values)                                                          \
  struct OfBatch { Batch batch; Network network; };                                    \
  KERNEL(values, OfBatch) {                                                            \
    evaluate_rows(a.batch, [&](const Point& p) { field(a.network, a.batch.scratch, p); }); \
  }                                                                                    \
  struct OfPaths { Ode ode; Network network; };                                        \
  KERNEL(paths, OfPaths) {                                                             \
    carry(a.ode, [&](const Point& p) { field(a.network, a.ode.scratch, p); });         \
  }

#endif
