// The vector field of BoltzNCE (equations in src/models/gvp_flow/mod.rs), with its exact divergence by forward mode.
#include "gvp_tangents.cuh"
#include "ode.cuh"

struct Network { Trunk trunk; const Gvp* output; };

// Values of the field, and the Jacobian of the output if there is a tape.
static __device__ __noinline__ void values(const Network& a, real* scratch, const Point& p, real* tape) {
  OWN_VALUES(scratch);
  layers(a.trunk, scratch, p, tape);
  FOR_ITEMS(axis, atom, 3) m.x[axis * LANES + atom] = (real)0;
  __syncthreads();
  single_output(a.trunk.weights, scratch, *a.output, (real)0, KEPT(tape) ? last_jacobian(tape) : (real*)0);
  FOR_ITEMS(axis, atom, 3)
    if (p.f && atom < ATOMS) p.f[3 * atom + axis] = (double)m.x[axis * LANES + atom];
  __syncthreads();
}

#if DIRECTIONS
// A share of the divergence, or the derivative along dx.
static __device__ __noinline__ void derivatives(const Network& a, real* scratch, const Point& p, const real* tape) {
  OWN_TANGENTS(scratch);
  tangents(a.trunk, scratch, p, !p.df, tape);
  FOR_EACH(axis, row, 3, ROWS) m.x[axis * ROWS + row] = (real)0;
  __syncthreads();
  output_tangents(scratch, last_jacobian(tape));
  write_derivatives(p, m.x);
  __syncthreads();
}
#endif

FIELD_KERNELS(gvp_field)
