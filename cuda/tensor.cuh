// W x on tensor cores, for f32 networks: each number is the sum of two in TF32 (eleven bits), and the three significant
// of their four products are accumulated in f32 (3xTF32), so that a product keeps 21 bits. For cards from sm_80 on.
//
// Accumulation in the instruction truncates towards zero instead of rounding (Fasi et al., PeerJ CS 7:e330, 2021), so
// pieces of eight inputs start from zero and are added up by the thread (Ootomo and Yokota, IJHPCA 36:475, 2022).
//
// A warp multiplies 16 outputs by up to 32 lanes in pieces of 16 × 8 × 8 (mma.m16n8k8); its 32 threads are eight groups
// of four. The instruction's rows g and g + 8 are outputs 2g and 2g + 1, so that both come from memory at once.
#ifndef MODEJUMP_TENSOR
#define MODEJUMP_TENSOR

#ifdef __CUDACC__
static __device__ float to_tf32(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
// c += a b. Per thread: a[4] at (output parity, k) = (0, t), (1, t), (0, t + 4), (1, t + 4), b[2] at k = t, t + 4 of
// lane g, c[4] at (parity, lane) = (0, 2t), (0, 2t + 1), (1, 2t), (1, 2t + 1).
static __device__ void mma(float* c, const float* a, const float* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#define TO_TF32(x) to_tf32(x)
#define MMA(c, a, b) mma(c, a, b)
#endif

// Eights of lanes that a warp takes at once.
#define MOST_EIGHTS 4

// N numbers, each as a sum of two.
template <int N>
struct Split {
  float large[N], small[N];
  __device__ explicit Split(const float* x) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      large[i] = TO_TF32(x[i]);
      small[i] = TO_TF32(x[i] - large[i]);
    }
  }
};

// Each of the four threads of a group has two lanes of both outputs for two eights of lanes. Thread t receives all
// lanes of output t % 2 for the (t / 2)-th of them.
static __device__ void gather_eight(const float* first, const float* second, int t, float* eight) {
  float pairs[4][2];  // from thread t ^ d
#pragma unroll
  for (int d = 0; d < 4; ++d) {
    // what that thread needs
    const int wanted = t ^ d;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float even = wanted / 2 == 0 ? first[r] : second[r], odd = wanted / 2 == 0 ? first[2 + r] : second[2 + r];
      pairs[d][r] = __shfl_xor_sync(0xffffffffu, wanted % 2 == 0 ? even : odd, d);
    }
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float near = t % 2 == s % 2 ? pairs[0][r] : pairs[1][r], far = t % 2 == s % 2 ? pairs[2][r] : pairs[3][r];
      eight[2 * s + r] = t / 2 == s / 2 ? near : far;
    }
  }
}

// As the product of common.cuh, but the sum over inputs comes first, and the value from `start` is added to it.
template <class Start, class Finish>
static __device__ void product(const real* w, int n_in, int n_out, int lanes, const real* x, const Start& start,
                               const Finish& finish, int stride = 0) {
  w = IN_GLOBAL(w);
  if (stride == 0) stride = lanes;
  const int thread = threadIdx.x % 32, g = thread / 4, t = thread % 4;
  const int tiles = (n_out + 15) / 16, parts = (lanes / 8 + MOST_EIGHTS - 1) / MOST_EIGHTS;
  for (int item = threadIdx.x / 32; item < tiles * parts; item += THREADS / 32) {
    const int o = item / parts * 16 + 2 * g, first = item % parts * 8 * MOST_EIGHTS;
    const int eights = (lanes - first) / 8 < MOST_EIGHTS ? (lanes - first) / 8 : MOST_EIGHTS;
    float sum[MOST_EIGHTS][4];
#pragma unroll
    for (int e = 0; e < MOST_EIGHTS; ++e) sum[e][0] = sum[e][1] = sum[e][2] = sum[e][3] = 0.0f;
    __syncwarp();  // the instruction requires that the threads have converged
#pragma unroll 2
    for (int k = 0; k < n_in; k += 8) {
      const bool here = o < n_out && k + t < n_in, there = o < n_out && k + t + 4 < n_in;
      const Two none = {{0.0f, 0.0f}};
      const Two near = here ? *(const Two*)(w + (size_t)(k + t) * n_out + o) : none;
      const Two far = there ? *(const Two*)(w + (size_t)(k + t + 4) * n_out + o) : none;
      const float weights[4] = {near.v[0], near.v[1], far.v[0], far.v[1]};
      const Split<4> a(weights);
#pragma unroll
      for (int e = 0; e < MOST_EIGHTS; ++e) {
        if (e >= eights) continue;
        const real* const from = x + (k + t) * stride + first + 8 * e + g;
        const float values[2] = {k + t < n_in ? from[0] : 0.0f, k + t + 4 < n_in ? from[4 * stride] : 0.0f};
        const Split<2> b(values);
        float piece[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        MMA(piece, a.small, b.large);
        MMA(piece, a.large, b.small);
        MMA(piece, a.large, b.large);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[e][i] += piece[i];
      }
    }
#pragma unroll
    for (int e = 0; e < MOST_EIGHTS; e += 2) {
      if (e >= eights) continue;
      float eight[8], begin[8];
      gather_eight(sum[e], sum[e + 1], t, eight);
      const int output = o + t % 2, lane = first + 8 * (e + t / 2);
      if (output >= n_out || lane >= lanes) continue;
      start(output, lane, begin);
#pragma unroll
      for (int r = 0; r < 8; ++r) eight[r] += begin[r];
      finish(output, lane, eight);
    }
  }
}

#endif
