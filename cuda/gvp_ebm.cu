// The energy on geometric vector perceptrons (src/models/gvp_ebm/mod.rs has the equations), with its score by forward mode: blocks share
// out the directions, as they do those of a divergence.
#include "gvp.cuh"

struct Arguments {
  Batch batch;           // f[n] is the energy, df[n][ATOMS][3] the score
  Trunk trunk;
  Linear first, second;  // of the mean over atoms
};

// Blocks that a configuration is shared out over.
#define SHARES (COMPONENTS == 1 ? 1 : 3 * ATOMS / (COMPONENTS == 1 ? 1 : DIRECTIONS))

// A single jet, with zeros behind it: the lanes of a product.
#define SINGLE 8

// E = e₂ silu(e₁ mean_i s_i + ..) + .., in m.of_v. Begins and ends with a barrier.
static __device__ void read_out(const Arguments& a, const State& m) {
  const real* const w = a.trunk.weights;
  __syncthreads();
  FOR_EACH(f, lane, SCALARS, SINGLE / COMPONENTS) {
    Jet sum = constant((real)0);
    for (int atom = 0; lane == 0 && atom < ATOMS; ++atom) sum = sum + jet_at(m.s + f * LANES, atom);
    put(m.a + f * SINGLE, lane, ((real)1 / ATOMS) * sum);
  }
  __syncthreads();
  product(w + a.first.forward, SCALARS, EVEN(SCALARS), SINGLE, m.a, Bias{w + a.first.bias}, [&](int o, int, real* sum) {
#pragma unroll
    for (int r = 0; r < SINGLE / COMPONENTS; ++r) put_in(sum, r, swish(jet_of(sum, r), (real)1));
    put_eight(m.of_s + o * SINGLE, sum);
  });
  __syncthreads();
  product(w + a.second.forward, SCALARS, 2, SINGLE, m.of_s, Bias{w + a.second.bias}, Store{m.of_v, SINGLE});
  __syncthreads();
}

KERNEL(gvp_energy, Arguments) {
  BLOCK_MEMORY(a.batch.scratch, MEMORY);
  const State m = layout(memory);
  for (int work = blockIdx.x; work < a.batch.n * SHARES; work += gridDim.x) {
    const int row = work / SHARES, share = work % SHARES;
    const double* const x = a.batch.x + (size_t)row * 3 * ATOMS;
    const Point p = {a.batch.t[row], x, (const double*)0, share, (double*)0, (double*)0, (double*)0};
    begin(a.trunk, m, p);
    for (int l = 0; l < LAYERS; ++l) layer(a.trunk, m, a.trunk.layers[l], l + 1 == LAYERS, Targets{-1});
    read_out(a, m);
    if (share == 0 && threadIdx.x == 0) a.batch.f[row] = (double)m.of_v[0];
    if ((int)threadIdx.x < DIRECTIONS)
      a.batch.df[(size_t)row * 3 * ATOMS + share * DIRECTIONS + threadIdx.x] = (double)m.of_v[1 + threadIdx.x];
    __syncthreads();
  }
}
