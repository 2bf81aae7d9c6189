// The energy on geometric vector perceptrons (equations in src/models/gvp_ebm/mod.rs), with its score by forward mode:
// blocks share the directions, as for a divergence.
#include "gvp_tangents.cuh"

struct Arguments {
  Batch batch;           // f[n] is the energy, df[n][ATOMS][3] the score
  Trunk trunk;
  Linear first, second;  // on the mean over atoms
};

// Number of blocks among which a configuration is divided.
#define SHARES (DIRECTIONS == 0 ? 1 : (3 * ATOMS + DIRECTIONS - 1) / (DIRECTIONS == 0 ? 1 : DIRECTIONS))

// A single number followed by zeros: the lanes of a product.
#define SINGLE 8

// E = e₂ silu(e₁ mean_i s_i + ..) + .. to its destination, unless null, and its gradient with respect to the mean to
// `by_mean`, unless null. Begins after and ends with a barrier.
static __device__ void read_out(const Arguments& a, real* scratch, double* energy, real* by_mean) {
  OWN_VALUES(scratch);
  const real* const w = a.trunk.weights;
  real *const mean = m.a, *const hidden = m.of_s, *const by_hidden = m.by_s, *const out = m.g;
  FOR_EACH(f, lane, SCALARS, SINGLE) {
    real sum = (real)0;
    for (int atom = 0; lane == 0 && atom < ATOMS; ++atom) sum += m.s[f * LANES + atom];
    mean[f * SINGLE + lane] = ((real)1 / ATOMS) * sum;
  }
  __syncthreads();
  product(w + a.first.forward, SCALARS, EVEN(SCALARS), SINGLE, mean, Bias{w + a.first.bias}, [&](int o, int lane, real* sum) {
    real slope[8];
#pragma unroll
    for (int r = 0; r < SINGLE; ++r) {
      const real part = sigmoid(sum[r]);
      slope[r] = o < SCALARS ? w[a.second.forward + 2 * o] * part * ((real)1 + sum[r] * ((real)1 - part)) : (real)0;
      sum[r] *= part;
    }
    put_eight(hidden + o * SINGLE + lane, sum);
    if (KEPT(by_mean)) put_eight(by_hidden + o * SINGLE + lane, slope);
  });
  __syncthreads();
  product(w + a.second.forward, SCALARS, 2, SINGLE, hidden, Bias{w + a.second.bias}, Store{out, SINGLE});
  if (KEPT(by_mean)) {
    product(w + a.first.back, SCALARS, EVEN(SCALARS), SINGLE, by_hidden, Zero{}, [&](int o, int, real* sum) {
      if (o < SCALARS) by_mean[o] = sum[0];
    });
  }
  __syncthreads();
  if (energy && threadIdx.x == 0) *energy = (double)out[0];
  __syncthreads();
}

#if DIRECTIONS
// The score along a share's directions.
static __device__ void derivatives(const Arguments& a, real* scratch, const Point& p, const real* tape, const real* by_mean) {
  OWN_TANGENTS(scratch);
  tangents(a.trunk, scratch, p, false, tape);
  FOR_EACH(f, d, SCALARS, DIRECTIONS) {
    real sum = (real)0;
    for (int atom = 0; atom < ATOMS; ++atom) sum += m.s[f * ROWS + atom * DIRECTIONS + d];
    m.a[f * DIRECTIONS + d] = ((real)1 / ATOMS) * by_mean[f] * sum;
  }
  __syncthreads();
  const int direction = p.part * DIRECTIONS + threadIdx.x;
  if (threadIdx.x < DIRECTIONS && direction < 3 * ATOMS) {
    real sum = (real)0;
    for (int f = 0; f < SCALARS; ++f) sum += m.a[f * DIRECTIONS + threadIdx.x];
    p.df[direction] = (double)sum;
  }
  __syncthreads();
}
#endif

KERNEL(gvp_energy, Arguments) {
  real *const scratch = a.batch.scratch, *const tape = block_tape(scratch);
  share_out(a.batch.n, SHARES, [&](int row, int share, bool again) {
    const size_t first = (size_t)row * 3 * ATOMS;
    double *const energy = share == 0 ? a.batch.f + row : (double*)0, *const score = DIRECTIONS ? a.batch.df + first : (double*)0;
    const Point p = {a.batch.t[row], a.batch.x + first, (const double*)0, share, again, energy, score, (double*)0};
    // the last layer takes no step, so the tape's place for its Jacobian is free for the gradient
    real* const by_mean = DIRECTIONS ? last_jacobian(tape) : (real*)0;
    if (!again) {
      layers(a.trunk, scratch, p, DIRECTIONS ? tape : (real*)0);
      read_out(a, scratch, energy, by_mean);
    }
#if DIRECTIONS
    derivatives(a, scratch, p, tape, by_mean);
#endif
  });
}
