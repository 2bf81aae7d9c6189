// The vector field of BoltzNCE (src/models/gvp_flow/mod.rs has the equations), with its exact divergence by forward mode.
#include "ode.cuh"
#include "gvp.cuh"

struct Network { Trunk trunk; const Gvp* output; };

static __device__ void finish(const Network& a, const State& m, const Point& p) {
  on_atoms(a.trunk, m, *a.output, false);
  FOR_ITEMS(axis, atom, 3) put(m.x + axis * LANES, atom, single_output(m, jet_at(m.g, atom), axis, atom));
  write_field(p, m.x);
}

// The field at one point.
static __device__ __noinline__ void field(const Network& a, real* scratch, const Point& p) {
  BLOCK_MEMORY(scratch, MEMORY);
  (void)scratch;
  const State m = layout(memory);
  begin(a.trunk, m, p);
  for (int l = 0; l < LAYERS; ++l) {
    const bool last = l + 1 == LAYERS;
    layer(a.trunk, m, a.trunk.layers[l], last, last ? targets_of(p) : Targets{-1});
  }
  finish(a, m, p);
}

FIELD_KERNELS(gvp_field)
