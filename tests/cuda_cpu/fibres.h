// Runs the kernels of cuda/ on the CPU, unmodified: every CUDA thread is a fibre, a block is run fibre by fibre, and blocks one
// after the other. Included before the kernel's source, which is then compiled as C++17, plain or with a sanitizer.
//
// What it is strict about, so that mistakes show: dynamic shared memory has exactly the size that was asked for, and holds NaN
// at first; warps run one after the other, each as far as it can; all threads of a block must meet at the same barrier, all
// lanes that a shuffle names at the same shuffle. Under TSan, threads are only ordered by barriers and shuffles.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

using std::atan2; using std::erfc; using std::exp; using std::fabs; using std::floor; using std::fma; using std::log;
using std::log1p; using std::sqrt; using std::tanh;

// CUDA's functions of multiples of π: reduced exactly, then by libm.
inline void sincospi(double x, double* sine, double* cosine) {
  const double half = std::remainder(x, 2.0), quarter = std::nearbyint(2.0 * half);
  const double rest = M_PI * (half - 0.5 * quarter), s = std::sin(rest), c = std::cos(rest);
  switch ((static_cast<int>(quarter) + 4) % 4) {
    case 0: *sine = s; *cosine = c; break;
    case 1: *sine = c; *cosine = -s; break;
    case 2: *sine = -s; *cosine = -c; break;
    default: *sine = -c; *cosine = s;
  }
}
inline double sinpi(double x) { double s, c; sincospi(x, &s, &c); return s; }

// The machine's own state is no business of the thread sanitizer.
#if defined(__SANITIZE_THREAD__)
#define UNWATCHED static __attribute__((no_sanitize_thread, noinline))
#else
#define UNWATCHED inline
#endif

namespace fibres {

[[noreturn]] inline void fault(const std::string& what) {
  std::fprintf(stderr, "FAULT %s\n", what.c_str());
  std::_Exit(3);
}

enum class State { Ready, AtBarrier, AtWarp, Done };

struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  State state = State::Ready;
  int line = 0;        // where it waits
  unsigned mask = 0;   // lanes it waits for
  uint64_t given = 0;  // value handed to a shuffle
  unsigned barriers = 0, meetings = 0;
  unsigned x = 0;
  void* tsan = nullptr;
};

struct Dimension { unsigned x, y = 1, z = 1; };

struct Machine {
  Dimension block_index{0}, block_size{0}, grid_size{0};
  std::vector<Fibre> fibres;
  Fibre* current = nullptr;
  ucontext_t scheduler;
  void* tsan_scheduler = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  double* shared = nullptr;
  // Addresses for TSan. Two that take turns: a fibre that is one barrier ahead must not seem to come before one that is behind.
  char barrier[2] = {}, warp[2][64] = {};
  const std::function<void()>* body = nullptr;
};
inline Machine machine;

inline void acquire(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#else
  (void)address;
#endif
}
inline void release(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#else
  (void)address;
#endif
}

// From a fibre back to the scheduler.
UNWATCHED void leave(bool last) {
  Fibre& fibre = *machine.current;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(machine.tsan_scheduler, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, machine.scheduler_stack, machine.scheduler_size);
  swapcontext(&fibre.context, &machine.scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)last;
  swapcontext(&fibre.context, &machine.scheduler);
#endif
}

UNWATCHED void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_size);
#endif
  (*machine.body)();
  machine.current->state = State::Done;
  release(&machine.barrier[machine.current->barriers % 2]);
  leave(true);
}

// From the scheduler into a fibre, until that waits or ends.
UNWATCHED void resume(Fibre& fibre) {
  machine.current = &fibre;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fibre.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fibre.stack.data(), fibre.stack.size());
  swapcontext(&machine.scheduler, &fibre.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  swapcontext(&machine.scheduler, &fibre.context);
#endif
}

UNWATCHED void barrier(int line) {
  Fibre& fibre = *machine.current;
  fibre.state = State::AtBarrier;
  fibre.line = line;
  char* const turn = &machine.barrier[fibre.barriers++ % 2];
  release(turn);
  leave(false);
  acquire(turn);
}

// Waits until all lanes of the mask are here; then `of(lane)` is what that lane gave.
UNWATCHED void meet(unsigned mask, uint64_t given, int line) {
  Fibre& fibre = *machine.current;
  if (!(mask >> (fibre.x % 32) & 1)) fault("line " + std::to_string(line) + ": a lane that is not in its own mask");
  fibre.state = State::AtWarp;
  fibre.line = line;
  fibre.mask = mask;
  fibre.given = given;
  char* const turn = &machine.warp[fibre.meetings++ % 2][fibre.x / 32];
  release(turn);
  leave(false);
  acquire(turn);
}
UNWATCHED uint64_t of(unsigned lane) { return machine.fibres[machine.current->x / 32 * 32 + lane].given; }

UNWATCHED Dimension index() { return {machine.current->x}; }
UNWATCHED Dimension block_index() { return machine.block_index; }

template <class T> T shuffle(unsigned mask, T value, unsigned from, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle takes up to eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  meet(mask, bits, line);
  const unsigned lane = index().x % 32;
  const unsigned source = from < 32 && mask >> from & 1 ? from : lane;
  const uint64_t taken = of(source);
  meet(mask, bits, line);  // nobody may give anew before all have taken
  T result;
  std::memcpy(&result, &taken, sizeof(T));
  return result;
}

// Lets those lanes of a warp go on that all met; says whether any did.
UNWATCHED bool release_warp(size_t warp) {
  const size_t first = 32 * warp, last = std::min(first + 32, machine.fibres.size());
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    Fibre& fibre = machine.fibres[i];
    if (fibre.state != State::AtWarp) continue;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(fibre.mask >> lane & 1)) continue;
      if (first + lane >= last) fault("line " + std::to_string(fibre.line) + ": the mask names lanes that are not there");
      const Fibre& other = machine.fibres[first + lane];
      all &= other.state == State::AtWarp && other.line == fibre.line && other.mask == fibre.mask;
    }
    if (!all) continue;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (fibre.mask >> lane & 1) machine.fibres[first + lane].state = State::Ready;
    any = true;
  }
  return any;
}

UNWATCHED void run_block(unsigned shared_bytes, std::mt19937& order) {
  // exactly what was asked for, so that a sanitizer sees the first byte too many
  const std::unique_ptr<double, decltype(&std::free)> shared(static_cast<double*>(std::malloc(std::max(shared_bytes, 1u))), &std::free);
  std::memset(shared.get(), 0xff, shared_bytes);
  machine.shared = shared.get();
  const size_t n = machine.block_size.x;
  std::vector<size_t> warps((n + 31) / 32), lanes(32);
  for (size_t i = 0; i < n; ++i) {
    Fibre& fibre = machine.fibres[i];
    fibre.state = State::Ready;
    fibre.barriers = fibre.meetings = 0;
    fibre.x = static_cast<unsigned>(i);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, reinterpret_cast<void (*)()>(enter), 0);
#if defined(__SANITIZE_THREAD__)
    fibre.tsan = __tsan_create_fiber(0);
#endif
  }
  for (;;) {
    std::iota(warps.begin(), warps.end(), 0);
    std::shuffle(warps.begin(), warps.end(), order);
    for (size_t warp : warps) {
      do {
        std::iota(lanes.begin(), lanes.end(), 0);
        std::shuffle(lanes.begin(), lanes.end(), order);
        for (size_t lane : lanes)
          if (32 * warp + lane < n && machine.fibres[32 * warp + lane].state == State::Ready) resume(machine.fibres[32 * warp + lane]);
      } while (release_warp(warp));
    }
    const auto in = [&](State state) { return std::count_if(machine.fibres.begin(), machine.fibres.end(), [&](const Fibre& f) { return f.state == state; }); };
    if (in(State::Done) == static_cast<long>(n)) break;
    for (const Fibre& fibre : machine.fibres) {
      const std::string where = "line " + std::to_string(fibre.line) + ": thread " + std::to_string(fibre.x);
      if (fibre.state == State::AtWarp) fault(where + " waits for lanes that do not come (divergence)");
      if (fibre.state == State::Done) fault("thread " + std::to_string(fibre.x) + " ended while others wait at a barrier");
      if (fibre.line != machine.fibres[0].line) fault(where + " waits at another barrier than thread 0");
    }
    for (Fibre& fibre : machine.fibres) fibre.state = State::Ready;
  }
  acquire(&machine.barrier[0]);
  acquire(&machine.barrier[1]);
#if defined(__SANITIZE_THREAD__)
  for (Fibre& fibre : machine.fibres) __tsan_destroy_fiber(fibre.tsan);
#endif
}

UNWATCHED void launch(unsigned grid, unsigned block, unsigned shared_bytes, unsigned seed, const std::function<void()>& body) {
  machine.grid_size = {grid};
  machine.block_size = {block};
  machine.body = &body;
  machine.fibres = std::vector<Fibre>(block);
  for (Fibre& fibre : machine.fibres) fibre.stack.resize(256 << 10);
#if defined(__SANITIZE_THREAD__)
  machine.tsan_scheduler = __tsan_get_current_fiber();
#endif
  std::mt19937 order(seed);
  for (unsigned index = 0; index < grid; ++index) {
    machine.block_index = {index};
    run_block(shared_bytes, order);
  }
}

// Kernels by name: a kernel takes one struct, given as bytes.
using Kernel = std::pair<size_t, void (*)(const void*)>;
inline std::map<std::string, Kernel>& kernels() { static std::map<std::string, Kernel> all; return all; }
struct Register { Register(const char* name, Kernel kernel) { kernels()[name] = kernel; } };

template <class T> T atomic_min(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}

}  // namespace fibres

#define __device__
#define __global__
#define __forceinline__ inline
#define threadIdx (fibres::index())
#define blockIdx (fibres::block_index())
#define blockDim (fibres::machine.block_size)
#define gridDim (fibres::machine.grid_size)
#define __syncthreads() fibres::barrier(__LINE__)
#define __syncwarp() fibres::meet(0xffffffffu, 0, __LINE__)
#define __shfl_sync(mask, value, lane) fibres::shuffle(mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, bits) fibres::shuffle(mask, value, fibres::index().x % 32 ^ (bits), __LINE__)
#define __shfl_up_sync(mask, value, by) fibres::shuffle(mask, value, fibres::index().x % 32 - (by), __LINE__)
#define __shfl_down_sync(mask, value, by) fibres::shuffle(mask, value, fibres::index().x % 32 + (by), __LINE__)
#define atomicMin(address, value) fibres::atomic_min(address, value)
#define DYNAMIC_SHARED(name) double* const name = fibres::machine.shared
#define KERNEL(name, Arguments)                                                                             \
  static void name(const Arguments a);                                                                      \
  static const fibres::Register register_##name(                                                            \
      #name, {sizeof(Arguments), [](const void* bytes) { name(*static_cast<const Arguments*>(bytes)); }}); \
  static void name(const Arguments a)
