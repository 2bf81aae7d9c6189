// Runs the kernels of cuda/ on the CPU, unmodified: every CUDA thread is a fibre, a block is run fibre by fibre, and blocks one
// after the other, or by turns where they are launched together. Included before the kernel's source, which is then compiled as C++17, plain or with a sanitizer.
//
// What it is strict about, so that mistakes show: dynamic shared memory has exactly the size that was asked for, and holds NaN
// at first; warps run one after the other, each as far as it can; all threads of a block must meet at the same barrier, all
// lanes that a shuffle names at the same shuffle; blocks must not wait for each other in vain; what is copied later is there when it was
// waited for, and not before. Under TSan, threads are only
// ordered by barriers, shuffles and atomics.
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

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

using std::atan2; using std::copysign; using std::erfc; using std::exp; using std::expm1; using std::fabs; using std::floor; using std::fma;
using std::fmax; using std::fmin; using std::log; using std::log1p; using std::pow; using std::sqrt; using std::tanh;

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

enum class State { Ready, AtBarrier, AtWarp, Looking, Done };

constexpr size_t STACK = 256 << 10;

#if defined(__x86_64__)
// swapcontext without the calls of the system in it, which keep signal masks and take most of its time.
struct Context { void* stack = nullptr; };

extern "C" void fibres_swap(void** from, void* to);
asm(R"(
.text
.globl fibres_swap
fibres_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#define SWAP(from, to) fibres_swap(&(from).stack, (to).stack)

// A fibre that begins with a function: six registers, where to return to, and the place of the caller's address.
inline void prepare(Context& context, char* stack, void (*begin)()) {
  void** const top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + STACK) / 16 * 16);
  std::fill(top - 8, top, nullptr);
  top[-2] = reinterpret_cast<void*>(begin);
  context.stack = top - 8;
}
#else
using Context = ucontext_t;
#define SWAP(from, to) swapcontext(&(from), &(to))

inline void prepare(Context& context, char* stack, void (*begin)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, begin, 0);
}
#endif

struct Copy { void* to; const void* from; size_t bytes; };

struct Fibre {
  Context context;
  std::unique_ptr<char[]> stack;
  State state = State::Ready;
  int line = 0;        // where it waits
  unsigned mask = 0;   // lanes it waits for
  uint64_t given = 0;  // value handed to a shuffle
  uint32_t seen = 0;   // number that another block changes
  unsigned barriers = 0, meetings = 0;
  std::vector<Copy> copies;  // on their way
  unsigned x = 0;
  void* tsan = nullptr;
};

struct Dimension { unsigned x, y = 1, z = 1; };

struct Block {
  Dimension index{0};
  std::vector<Fibre> fibres;
  std::unique_ptr<double, decltype(&std::free)> shared{nullptr, &std::free};
  // Addresses for TSan. Two that take turns: a fibre that is one barrier ahead must not seem to come before one that is behind.
  char barrier[2] = {}, warp[2][64] = {};
};

struct Machine {
  Dimension block_size{0}, grid_size{0};
  Block* block = nullptr;
  Fibre* current = nullptr;
  bool moved = false;  // whether any fibre did more than look in vain
  Context scheduler;
  void* tsan_scheduler = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
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
  SWAP(fibre.context, machine.scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)last;
  SWAP(fibre.context, machine.scheduler);
#endif
}

UNWATCHED void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_size);
#endif
  (*machine.body)();
  machine.current->state = State::Done;
  release(&machine.block->barrier[machine.current->barriers % 2]);
  leave(true);
}

// From the scheduler into a fibre, until that waits or ends.
UNWATCHED void resume(Block& block, Fibre& fibre) {
  machine.block = &block;
  machine.current = &fibre;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fibre.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fibre.stack.get(), STACK);
  SWAP(machine.scheduler, fibre.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  SWAP(machine.scheduler, fibre.context);
#endif
}

UNWATCHED void barrier(int line) {
  Fibre& fibre = *machine.current;
  fibre.state = State::AtBarrier;
  fibre.line = line;
  char* const turn = &machine.block->barrier[fibre.barriers++ % 2];
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
  char* const turn = &machine.block->warp[fibre.meetings++ % 2][fibre.x / 32];
  release(turn);
  leave(false);
  acquire(turn);
}
UNWATCHED uint64_t of(unsigned lane) { return machine.block->fibres[machine.current->x / 32 * 32 + lane].given; }

UNWATCHED Dimension index() { return {machine.current->x}; }
UNWATCHED Dimension block_index() { return machine.block->index; }

// Lets all others have a turn before a number is looked at that another block changes.
UNWATCHED void look(const uint32_t* address, int line) {
  Fibre& fibre = *machine.current;
  fibre.state = State::Looking;
  fibre.line = line;
  leave(false);
  machine.moved |= *address != fibre.seen;
  fibre.seen = *address;
}

// Copies that go on by themselves come as late as they may.
template <class T> void copy_later(T* to, const T* from) { machine.current->copies.push_back({to, from, sizeof(T)}); }
inline void arrived() {
  for (const Copy& copy : machine.current->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  machine.current->copies.clear();
}

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

// TF32: of the mantissa ten bits, to the nearest, ties away from zero; an instruction that is given more does not see the rest.
inline float to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isfinite(x)) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float seen_as_tf32(uint32_t bits) {
  bits &= ~0x1fffu;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// What is left of a number in f32 where nothing is rounded up.
inline float cut_off(double x) {
  const float nearest = static_cast<float>(x);
  return std::abs(static_cast<double>(nearest)) > std::abs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

// c += a b of a whole warp: mma.m16n8k8 with TF32 (PTX ISA, fragments of m16n8k8). Cards add up four products or eight at once, and cut off; four are
// the worse.
inline void mma(float* c, const float* a, const float* b, int line) {
  const unsigned lane = index().x % 32, g = lane / 4, t = lane % 4;
  float rows[2][8], columns[8][2];
  const auto exchange = [&](const float* two, auto take) {
    uint64_t bits;
    std::memcpy(&bits, two, 8);
    meet(0xffffffffu, bits, line);
    take([](unsigned of_lane, int which) { return seen_as_tf32(static_cast<uint32_t>(of(of_lane) >> 32 * which)); });
    meet(0xffffffffu, bits, line);
  };
  for (int half = 0; half < 2; ++half)
    exchange(a + 2 * half, [&](auto from) {
      for (unsigned k = 0; k < 4; ++k)
        for (int row = 0; row < 2; ++row) rows[row][4 * half + k] = from(4 * g + k, row);
    });
  exchange(b, [&](auto from) {
    for (unsigned k = 0; k < 8; ++k)
      for (unsigned column = 0; column < 2; ++column) columns[k][column] = from(4 * (2 * t + column) + k % 4, k / 4);
  });
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 2; ++column)
      for (int four = 0; four < 8; four += 4) {
        double sum = c[2 * row + column];
        for (int k = four; k < four + 4; ++k) sum += static_cast<double>(rows[row][k]) * columns[k][column];
        c[2 * row + column] = cut_off(sum);
      }
}

// Lets those lanes of a warp go on that all met; says whether any did.
UNWATCHED bool release_warp(Block& block, size_t warp) {
  const size_t first = 32 * warp, last = std::min(first + 32, block.fibres.size());
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    Fibre& fibre = block.fibres[i];
    if (fibre.state != State::AtWarp) continue;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(fibre.mask >> lane & 1)) continue;
      if (first + lane >= last) fault("line " + std::to_string(fibre.line) + ": the mask names lanes that are not there");
      const Fibre& other = block.fibres[first + lane];
      all &= other.state == State::AtWarp && other.line == fibre.line && other.mask == fibre.mask;
    }
    if (!all) continue;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (fibre.mask >> lane & 1) block.fibres[first + lane].state = State::Ready;
    any = true;
  }
  return any;
}

UNWATCHED void begin(Block& block, unsigned index, unsigned shared_bytes) {
  block.index = {index};
  // exactly what was asked for, so that a sanitizer sees the first byte too many
  block.shared.reset(static_cast<double*>(std::malloc(std::max(shared_bytes, 1u))));
  std::memset(block.shared.get(), 0xff, shared_bytes);
  for (size_t i = 0; i < block.fibres.size(); ++i) {
    Fibre& fibre = block.fibres[i];
    fibre.state = State::Ready;
    fibre.barriers = fibre.meetings = fibre.seen = 0;
    fibre.copies.clear();
    fibre.x = static_cast<unsigned>(i);
    prepare(fibre.context, fibre.stack.get(), enter);
#if defined(__SANITIZE_THREAD__)
    fibre.tsan = __tsan_create_fiber(0);
#endif
  }
}

// Each warp of a block as far as it can, and over a barrier where all have come to one; whether the block is done.
UNWATCHED bool take_turn(Block& block, std::mt19937& order) {
  const size_t n = block.fibres.size();
  std::vector<size_t> warps((n + 31) / 32), lanes(32);
  for (Fibre& fibre : block.fibres)
    if (fibre.state == State::Looking) fibre.state = State::Ready;
    else machine.moved |= fibre.state == State::Ready;
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), order);
  for (size_t warp : warps) {
    do {
      std::iota(lanes.begin(), lanes.end(), 0);
      std::shuffle(lanes.begin(), lanes.end(), order);
      for (size_t lane : lanes)
        if (32 * warp + lane < n && block.fibres[32 * warp + lane].state == State::Ready) resume(block, block.fibres[32 * warp + lane]);
    } while (release_warp(block, warp));
  }
  const auto in = [&](State state) { return std::count_if(block.fibres.begin(), block.fibres.end(), [&](const Fibre& f) { return f.state == state; }); };
  if (in(State::Done) == static_cast<long>(n)) return true;
  if (in(State::Looking) > 0) return false;
  for (const Fibre& fibre : block.fibres) {
    const auto where = [&] { return "line " + std::to_string(fibre.line) + ": thread " + std::to_string(fibre.x); };
    if (fibre.state == State::AtWarp) fault(where() + " waits for lanes that do not come (divergence)");
    if (fibre.state == State::Done) fault("thread " + std::to_string(fibre.x) + " ended while others wait at a barrier");
    if (fibre.line != block.fibres[0].line) fault(where() + " waits at another barrier than thread 0");
  }
  for (Fibre& fibre : block.fibres) fibre.state = State::Ready;
  return false;
}

// Blocks that are there at once, by turns until all are done.
UNWATCHED void run(std::vector<Block>& blocks, std::mt19937& order) {
  std::vector<Block*> left;
  for (Block& block : blocks) left.push_back(&block);
  while (!left.empty()) {
    machine.moved = false;
    std::shuffle(left.begin(), left.end(), order);
    left.erase(std::remove_if(left.begin(), left.end(), [&](Block* block) { return take_turn(*block, order); }), left.end());
    if (!left.empty() && !machine.moved)
      fault("line " + std::to_string(left[0]->fibres[0].line) + ": blocks wait for each other in vain");
  }
  for (Block& block : blocks) {
    acquire(&block.barrier[0]);
    acquire(&block.barrier[1]);
#if defined(__SANITIZE_THREAD__)
    for (Fibre& fibre : block.fibres) __tsan_destroy_fiber(fibre.tsan);
#endif
  }
}

// `together`: all blocks are there at once.
UNWATCHED void launch(unsigned grid, unsigned size, unsigned shared_bytes, unsigned seed, bool together, const std::function<void()>& body) {
  machine.grid_size = {grid};
  machine.block_size = {size};
  machine.body = &body;
  std::vector<Block> blocks(together ? grid : 1);
  for (Block& block : blocks) {
    block.fibres = std::vector<Fibre>(size);
    for (Fibre& fibre : block.fibres) fibre.stack.reset(new char[STACK]);
  }
#if defined(__SANITIZE_THREAD__)
  machine.tsan_scheduler = __tsan_get_current_fiber();
#endif
  std::mt19937 order(seed);
  for (unsigned first = 0; first < grid; first += blocks.size()) {
    for (unsigned i = 0; i < blocks.size(); ++i) begin(blocks[i], first + i, shared_bytes);
    run(blocks, order);
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
#define __noinline__
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
#define COUNT_IN(address) __atomic_fetch_add(address, 1u, __ATOMIC_SEQ_CST)
#define LOOK(address) (fibres::look(address, __LINE__), __atomic_load_n(address, __ATOMIC_SEQ_CST))
#define TO_TF32(x) fibres::to_tf32(x)
#define MMA(c, a, b) fibres::mma(c, a, b, __LINE__)
#define COPY_LATER(to, from) fibres::copy_later(to, from)
#define ARRIVED() fibres::arrived()
#define ALL_ASKED() ((void)0)
#define IN_GLOBAL(pointer) (pointer)
#define atomicMin(address, value) fibres::atomic_min(address, value)
#define DYNAMIC_SHARED(name) double* const name = fibres::machine.block->shared.get()
#define KERNEL_OF(resident, name, Arguments) KERNEL(name, Arguments)
#define KERNEL(name, Arguments)                                                                             \
  static void name(const Arguments a);                                                                      \
  static const fibres::Register register_##name(                                                            \
      #name, {sizeof(Arguments), [](const void* bytes) { name(*static_cast<const Arguments*>(bytes)); }}); \
  static void name(const Arguments a)
