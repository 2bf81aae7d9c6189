// State of a block of a Graphormer, and its location: near, in shared memory if there is room, and far, where other
// blocks find it. Included by graphormer_ebm.cu.

#define PARTIALS (THREADS / PADDED > 1 ? THREADS / PADDED : 1)
// Rows to be normalised, the attention output, or the sum of Gaussians.
#define A MOST(MOST(D, MIXED), K)
// q, k and v of a block's heads; the hidden numbers of a layer; those of pairs.
#define WORK MOST(MOST(EACH(HEADS) * HEAD_ROWS, MOST(D, F)), 3 * K + H)
// Of a block's heads: biases and, in the backward pass, their cotangents.
#define OWN_PAIRS (ATOMS * EACH(HEADS))
#define IN_TEAM(rows) (TEAM > 1 ? (rows) : 0)
#define IN_SCORE(rows) (SCORE ? (rows) : 0)
#define SUMS                                                                                                               \
  MOST(MOST(CHUNKS(MOST(KERNELS, HEADS)) * MOST(K, H), CHUNKS(WIDTH) * MOST(EACH(HEADS) * HEAD_ROWS, EACH_EVEN(MOST(F, K)))), \
       CHUNKS(MOST(MOST(QKV, FORWARD), KERNELS)) * EACH_EVEN(D))
#define NEAR_ROWS                                                                                           \
  (10 + PARTIALS + A + WORK + IN_TEAM(SUMS + OWN_PAIRS * (SCORE ? 4 : 2)) +                                  \
   (SCORE ? 2 * EACH(HEADS) + D + A + QKV : D))
#define NEAR (NEAR_ROWS * LANES + (TIMES + 3) / 4 * 4)
// If a block's whole state for energies fits near, these are near, too.
#define FAR_ROWS                                                                                       \
  (ATOMS * H * (SCORE ? 2 : 1) + IN_SCORE((2 * LAYERS + 1) * D + 3 * ATOMS) +                            \
   IN_TEAM(MIXED + MOST(D, F) + K + (SCORE ? A + QKV : D)))
#define ALL_NEAR (TEAM == 1 && !SCORE)
// A block's share of its team's global memory.
#define FAR (ALL_NEAR ? 0 : EACH(FAR_ROWS) * LANES)
#define OF_BLOCK (FAR + (SCRATCH ? NEAR + (ALL_NEAR ? FAR_ROWS * LANES : 0) : 0))

// Location of a block's state, and its number in its team. What is near has an address if it is not in shared memory.
struct Place {
  real *near, *far;
  int rank;
};

static __device__ real* near_of(const Place& place) {
#if SCRATCH
  return IN_GLOBAL(place.near);
#else
  (void)place;
  return (real*)of_block();
#endif
}

// Arrays of [numbers][LANES] unless said otherwise. `near` ones belong to the block; of `far` ones there is one per
// team, identical to the near ones if the block is a team of its own.
struct State {
  Place place;
  real *x, *a, *work, *rows, *y, *r, *d, *mean, *inverse, *partial, *time;
  real *g_rows, *g_a, *g_qkv, *lse, *delta;
  real *bias, *g_bias, *p, *g;  // [ATOMS, sources][a block's heads][LANES, destinations]
  real* sums;                   // [chunks][a block's outputs][LANES]
  real *far_rows, *far_mixed, *far_hidden, *far_neighbours, *far_g_a, *far_g_qkv;
  real *far_bias, *far_g_bias;  // [ATOMS, sources][H][LANES, destinations]
  real* far_g_d;                // [ATOMS][3][LANES]
};

// All at fixed offsets from the two addresses, so that functions that are not inlined can derive it from those.
static __device__ State layout(const Place& place) {
  real *near = near_of(place), *far = place.far;
  State m;
  m.place = place;
  m.x = take(near, 3);
  m.y = take(near, 1);
  m.r = take(near, 1);
  m.d = take(near, 3);
  m.mean = take(near, 1);
  m.inverse = take(near, 1);
  m.partial = take(near, PARTIALS);
  m.a = take(near, A);
  m.work = take(near, WORK);
#if SCORE
  m.lse = take(near, EACH(HEADS));
  m.delta = take(near, EACH(HEADS));
  m.g_rows = take(near, D);
  m.g_a = take(near, A);
  m.rows = m.g_qkv = take(near, QKV);  // rows are no longer needed before the first layer of the backward pass
#else
  m.rows = take(near, D);
#endif
#if TEAM > 1
  m.sums = take(near, SUMS);
  m.p = take(near, OWN_PAIRS);
  m.bias = take(near, OWN_PAIRS);
#if SCORE
  m.g = take(near, OWN_PAIRS);
  m.g_bias = take(near, OWN_PAIRS);
#endif
#endif
  m.time = near;
  near += (TIMES + 3) / 4 * 4;  // of a block, too, a multiple of Fours
  if (ALL_NEAR) far = near;
  m.far_bias = take(far, ATOMS * H);
#if SCORE
  m.far_g_bias = take(far, ATOMS * H);
  m.far_rows = take(far, (2 * LAYERS + 1) * D);
  m.far_g_d = take(far, 3 * ATOMS);
#elif TEAM > 1
  m.far_rows = take(far, D);
#else
  m.far_rows = m.rows;
#endif
#if TEAM > 1
  m.far_mixed = take(far, MIXED);
  m.far_hidden = take(far, MOST(D, F));
  m.far_neighbours = take(far, K);
#if SCORE
  m.far_g_a = take(far, A);
  m.far_g_qkv = take(far, QKV);
#endif
#else
  m.far_mixed = m.far_neighbours = m.a;
  m.far_hidden = m.work;
  m.bias = m.far_bias;
#if SCORE
  m.far_g_a = m.g_a;
  m.far_g_qkv = m.g_qkv;
  m.g_bias = m.far_g_bias;
#endif
#endif
  return m;
}

// The rows that enter a half of a layer, shared by the team.
static __device__ real* far_rows(const State& m, int half) { return m.far_rows + (SCORE ? half * D * LANES : 0); }

// Copies what the blocks of the team wrote to `far`, to `near`. Begins and ends with a barrier.
static __device__ void bring(const Team& team, const real* far, real* near, int numbers) {
  meet(team);
  if (far == near) return;
  for (int item = threadIdx.x; item < numbers * LANES / 4; item += THREADS) ((Four*)near)[item] = ((const Four*)far)[item];
  __syncthreads();
}
