// Common definitions of all kernels. Nothing is included from elsewhere, so that a machine needs only the driver and
// libnvrtc.
//
// A kernel takes one struct by value, KERNEL(name, Arguments); THREADS, and REAL for the type of the networks, are
// defined at compilation. Arrays in shared memory are [number][lane], lanes being the rows of a batch or the atoms of a
// molecule, so that neighbouring threads, which work on neighbouring lanes, read neighbouring words.
//
// The same text is compiled as C++ for tests on the CPU, where KERNEL, DYNAMIC_SHARED and the names of CUDA are those
// of tests/cuda_cpu/fibres.h.
#ifndef MODEJUMP_COMMON
#define MODEJUMP_COMMON

#ifdef __CUDACC__
// Target of RESIDENT threads per multiprocessor, half as many with f64 networks: of 65,536 registers 512 threads have
// 128 each.
#ifndef RESIDENT
#define RESIDENT 512
#endif
#define BLOCKS(resident) ((resident) / (sizeof(REAL) / 4) / THREADS)
// The struct is read in place, also by functions that take its address, instead of being copied by every thread.
#define KERNEL_OF(resident, name, Arguments)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS(resident) > 0 ? BLOCKS(resident) : 1) name( \
      const __grid_constant__ Arguments a)
#define KERNEL(name, Arguments) KERNEL_OF(RESIDENT, name, Arguments)
#define DYNAMIC_SHARED(name) extern __shared__ double name[]
// Counters that blocks increment and wait for. Whatever a block wrote before it is counted is visible to those that
// then look (release and acquire, which are cheaper fences than __threadfence).
static __device__ void count_in(unsigned int* address) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(address) : "memory");
}
static __device__ unsigned int look(const unsigned int* address) {
  unsigned int value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
#define COUNT_IN(address) count_in(address)
#define LOOK(address) look(address)

// Asynchronous copies of 4, 8 or 16 bytes to shared memory. The thread itself can read them after ARRIVED(), others
// after a subsequent barrier. Cards without this feature copy at once.
template <class T>
static __device__ void copy_later(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned int)__cvta_generic_to_shared(to)),
               "l"(__cvta_generic_to_global(from)), "n"(sizeof(T))
               : "memory");
#else
  *to = *from;
#endif
}
static __device__ void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
// The same address, marked as one in global memory, which a function that is not inlined cannot see. An instruction
// says so; an assumption (__builtin_assume of __isShared) made compilers from 12.4 to 13.2 leave out what follows.
template <class T>
static __device__ T* in_global(T* pointer) {
  size_t address;
  asm("cvta.to.global.u64 %0, %1;" : "=l"(address) : "l"(pointer));
  return (T*)__cvta_global_to_generic(address);
}
#define IN_GLOBAL(pointer) in_global(pointer)
#define COPY_LATER(to, from) copy_later(to, from)
#define ARRIVED() arrived()
// Keeps the compiler from moving loads past it, wherever it finds that registers are better used otherwise.
#define ALL_ASKED() __syncwarp(__activemask())
#endif

typedef REAL real;
typedef unsigned int u32;
typedef unsigned long long u64;

// The block's shared memory, accessed by its name, from which compilers know the address space.
static __device__ double* of_block() {
  DYNAMIC_SHARED(memory);
  return memory;
}

#define PI 3.14159265358979323846
#define SQRT_2 1.41421356237309504880

// As `Status` in src/density.rs.
enum Status { INSIDE, OUT_OF_SUPPORT, SINGULAR_COORDINATES, NON_FINITE, WRONG_CHIRALITY, BROKEN_CONSTRAINT };

// ---------------------------------------------------------------- random numbers (src/rng.rs)

struct Block { u32 word[4]; };

// Philox4x32-10: Salmon et al., SC 2011.
static __device__ Block philox(Block c, u32 key0, u32 key1) {
  for (int round = 0; round < 10; ++round) {
    if (round > 0) { key0 += 0x9E3779B9u; key1 += 0xBB67AE85u; }
    const u64 p0 = (u64)0xD2511F53u * c.word[0], p1 = (u64)0xCD9E8D57u * c.word[2];
    const Block next = {{(u32)(p1 >> 32) ^ c.word[1] ^ key0, (u32)p1, (u32)(p0 >> 32) ^ c.word[3] ^ key1, (u32)p0}};
    c = next;
  }
  return c;
}

// Start of a `Stream`: key and counter.
struct Stream { u32 key[2], counter[4]; };

// Number `position` of `Stream::uniform`, in (0, 1).
static __device__ double uniform_at(const Stream& stream, u32 position) {
  Block c = {{stream.counter[0] + position / 2, stream.counter[1], stream.counter[2], stream.counter[3]}};
  c = philox(c, stream.key[0], stream.key[1]);
  const u64 first = (u64)c.word[0] | (u64)c.word[1] << 32, second = (u64)c.word[2] | (u64)c.word[3] << 32;
  const u64 bits = position % 2 ? second : first;
  return ((double)(bits >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}

// Box-Muller normal from the uniform numbers at `position` and after it: the first of the pair, or the second.
static __device__ double normal_at(const Stream& stream, u32 position, bool second) {
  const double radius = sqrt(-2.0 * log(uniform_at(stream, position)));
  double s, c;
  sincospi(2.0 * uniform_at(stream, position + 1), &s, &c);
  return radius * (second ? s : c);
}

// ---------------------------------------------------------------- teams

// Blocks that run at once (a cooperative launch) and share a task. `arrivals` counts the blocks that have reached a
// barrier, over all barriers, and `due` is the count at which the last one is passed, so that the counter is never
// reset.
struct Team { int index, rank, blocks; u32* arrivals; mutable u32 due; };

// `arrivals`: one number per team, initially zero.
static __device__ Team team_of(int blocks, u32* arrivals) {
  const int index = blockIdx.x / blocks;
  const Team team = {index, (int)(blockIdx.x % blocks), blocks, arrivals + index, 0};
  return team;
}

// Team barrier: whatever any block of the team wrote before is visible to all of them after.
static __device__ void meet(const Team& team) {
  __syncthreads();
  if (team.blocks == 1) return;
  team.due += team.blocks;
  if (threadIdx.x == 0) {
    COUNT_IN(team.arrivals);
    while ((int)(LOOK(team.arrivals) - team.due) < 0) {}  // also after the counter has wrapped around
  }
  __syncthreads();
}

// ---------------------------------------------------------------- networks

enum Activation { RELU, SILU, TANH, LINEAR };

static __device__ real activate(int activation, real x) {
  switch (activation) {
    case RELU: return x < (real)0 ? (real)0 : x;
    case SILU: return x / ((real)1 + exp(-x));
    case TANH: return tanh(x);
    default: return x;
  }
}

// The derivative of `activate`.
static __device__ real activation_slope(int activation, real x) {
  const real one = (real)1;
  switch (activation) {
    case RELU: return x > (real)0 ? one : (real)0;
    case SILU: {
      const real s = one / (one + exp(-x));
      return s * (one + x * (one - s));
    }
    case TANH: {
      const real y = tanh(x);
      return one - y * y;
    }
    default: return one;
  }
}

static __device__ real softplus(real x) {
  const real magnitude = x < (real)0 ? -x : x;
  return (x < (real)0 ? (real)0 : x) + log1p(exp(-magnitude));
}

// Four neighbours, read and written at once.
struct alignas(4 * sizeof(real)) Four { real v[4]; };
struct alignas(2 * sizeof(real)) Two { real v[2]; };

// Number of weights that a thread loads at once.
#ifndef READS
#define READS 4
#endif
constexpr int READS_AT_ONCE = READS;

#ifndef TENSOR
#define TENSOR 0
#endif
#if TENSOR
#include "tensor.cuh"
#else
// Distribution over threads of the pairs of outputs and eights of lanes of a product. Neighbouring threads have up to
// four groups of lanes and eight pairs of outputs, so that what they write, whole rows apart, does not all fall into
// the same banks.
struct Tiles {
  int groups, wide, high;
  __device__ Tiles(int columns, int groups)
      : groups(groups), wide(groups % 4 == 0 ? 4 : groups % 3 == 0 ? 3 : 1), high(columns % 8 == 0 ? 8 : 1) {}
  // First output, and first lane.
  __device__ int output(int item) const { return 2 * (item / (wide * high) / (groups / wide) * high + item / wide % high); }
  __device__ int lane(int item) const { return 8 * (item / (wide * high) % (groups / wide) * wide + item % wide); }
};

// Adds the contribution of one input, in eight of its lanes, to two outputs.
static __device__ void add_input(const real* w, const real* x, real* left, real* right) {
  const Two weight = *(const Two*)w;
  const Four* lane = (const Four*)x;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Four four = lane[half];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      left[4 * half + r] += weight.v[0] * four.v[r];
      right[4 * half + r] += weight.v[1] * four.v[r];
    }
  }
}

// W x for x[n_in][lanes] in shared memory, with rows `stride` apart if not contiguous, by all threads of the block;
// lanes are a multiple of eight. W is stored [n_in][n_out], n_out even. A thread has two outputs of eight lanes in
// registers: two reads of shared memory and one of W for sixteen multiply-adds. `start(o, lane, sum)` writes the
// initial values of eight lanes of output o, and `finish(o, lane, sum)` receives their sums. The sum over inputs is in
// their order.
template <class Start, class Finish>
static __device__ void product(const real* w, int n_in, int n_out, int lanes, const real* x, const Start& start,
                               const Finish& finish, int stride = 0) {
  if (stride == 0) stride = lanes;
  const int columns = n_out / 2, groups = lanes / 8;
  const Tiles tiles(columns, groups);
  for (int item = threadIdx.x; item < columns * groups; item += THREADS) {
    const int o = tiles.output(item), first = tiles.lane(item);
    real left[8], right[8];
    start(o, first, left);
    start(o + 1, first, right);
#pragma unroll READS_AT_ONCE
    for (int k = 0; k < n_in; ++k) add_input(w + (size_t)k * n_out + o, x + k * stride + first, left, right);
    finish(o, first, left);
    finish(o + 1, first, right);
  }
}
#endif

// Loads eight lanes, and stores them.
static __device__ void get_eight(const real* from, real* to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Four four = *(const Four*)(from + 4 * half);
#pragma unroll
    for (int r = 0; r < 4; ++r) to[4 * half + r] = four.v[r];
  }
}
static __device__ void put_eight(real* to, const real* from) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Four four;
#pragma unroll
    for (int r = 0; r < 4; ++r) four.v[r] = from[4 * half + r];
    *(Four*)(to + 4 * half) = four;
  }
}

// ---------------------------------------------------------------- three-vectors

template <class T>
struct Three { T x, y, z; };
typedef Three<double> Vec3;

template <class T>
static __device__ Three<T> operator+(Three<T> a, Three<T> b) {
  const Three<T> r = {a.x + b.x, a.y + b.y, a.z + b.z};
  return r;
}
template <class T>
static __device__ Three<T> operator-(Three<T> a, Three<T> b) {
  const Three<T> r = {a.x - b.x, a.y - b.y, a.z - b.z};
  return r;
}
template <class T>
static __device__ Three<T> operator*(T s, Three<T> a) {
  const Three<T> r = {s * a.x, s * a.y, s * a.z};
  return r;
}
template <class T>
static __device__ T dot(Three<T> a, Three<T> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class T>
static __device__ Three<T> cross(Three<T> a, Three<T> b) {
  const Three<T> r = {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
  return r;
}
static __device__ double norm(Vec3 a) { return sqrt(dot(a, a)); }

#endif
