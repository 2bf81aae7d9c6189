// Networks on configurations: the part common to kernels of fields and energies.
//
// Arrays are [numbers][LANES], a lane being an atom of a configuration that has the block to itself, or one of several
// configurations. PADDED (lanes, a multiple of 8) and SCRATCH (whether a block's state is too large for shared memory)
// are defined at compilation.
#ifndef MODEJUMP_NETWORKS
#define MODEJUMP_NETWORKS
// Their state in shared memory limits the resident blocks more than registers do.
#ifndef RESIDENT
#define RESIDENT 256
#endif
// With three warps per scheduler the work on eight weights each takes longer than the latency of the L2 cache.
#ifndef READS
#define READS (sizeof(REAL) > 4 ? 4 : 8)
#endif
#include "common.cuh"

#define LANES PADDED

// `memory`, the state of a block: in shared memory, or the block's own part of `scratch`.
#if SCRATCH
#define BLOCK_MEMORY(scratch) real* const memory = (scratch)
#else
#define BLOCK_MEMORY(scratch)             \
  real* const memory = (real*)of_block(); \
  (void)(scratch)
#endif
#define EVEN(n) (((n) + 1) / 2 * 2)
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define MOST(a, b) ((a) > (b) ? (a) : (b))

#define FOR_EACH(i, lane, count, width)                                                        \
  for (int item = threadIdx.x, i = item / (width), lane = item % (width); item < (count) * (width); \
       item += THREADS, i = item / (width), lane = item % (width))
#define FOR_ITEMS(i, atom, count) FOR_EACH(i, atom, count, PADDED)

// ---------------------------------------------------------------- lanes of products

// Eight lanes of a product, with the sums initialised to a bias, or to zero.
struct Bias {
  const real* bias;
  __device__ void operator()(int o, int, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = bias[o];
  }
};
struct Zero {
  __device__ void operator()(int, int, real* sum) const {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = (real)0;
  }
};
struct Store {
  real* to;
  int lanes;
  __device__ void operator()(int o, int lane, real* sum) const { put_eight(to + o * lanes + lane, sum); }
};

// Offsets in the weights of a layer normalisation's parameters, and of a linear layer's: [in][out], the transpose
// [out][in], bias.
struct Norm { int weight, bias; };
struct Linear { int forward, back, bias; };

// The next `numbers` rows of a block's state.
static __device__ real* take(real*& memory, int numbers) {
  real* const start = memory;
  memory += numbers * LANES;
  return start;
}

// ---------------------------------------------------------------- a batch

// Reads x, with its centroid moved to the origin, to [3][LANES].
static __device__ void read_positions(const double* x, real* to) {
  FOR_ITEMS(axis, atom, 3) {
    double centre = 0.0;
    for (int i = 0; i < ATOMS; ++i) centre += x[3 * i + axis];
    centre *= 1.0 / ATOMS;
    // padding is far away from everything, so that no distance is small
    to[axis * LANES + atom] = (real)(atom < ATOMS ? x[3 * atom + axis] - centre : 1e3 * (atom + 1));
  }
}

// x[n][ATOMS][3] and t[n]; dx like x, for derivatives along a direction; f and df like x; parts[n] of the divergence.
struct Batch {
  const double* t;
  const double* x;
  const double* dx;
  double* f;
  double* df;
  double* parts;
  real* scratch;  // with SCRATCH the blocks' states, one after another
  u32* arrivals;  // per team, initially zero
  int n, padding;
};

// Calls work(row, part, again) for a block's contiguous share of the parts of all rows; `again` if its previous part
// was of the same row.
template <class Work>
static __device__ void share_out(int rows, int parts, const Work& work) {
  const u64 all = (u64)rows * parts;
  const int first = (int)(all * blockIdx.x / gridDim.x), last = (int)(all * (blockIdx.x + 1) / gridDim.x);
  for (int at = first; at < last; ++at) work(at / parts, at % parts, at > first && at % parts > 0);
}

#endif
