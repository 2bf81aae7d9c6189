// Common to kernels of TarFlows: the layout of a network's tables, and functions of one number.
//
// Sizes are those of one model: SIZE (numbers per token), CHANNELS, HEADS, HIDDEN, LAYERS (of a block of the flow, here
// a `Stage`); QK_NORMS, CONDITIONS, ADAPTIVE and TRANSITION are the additional features of a transferable one.
#ifndef MODEJUMP_TARFLOW
#define MODEJUMP_TARFLOW
#include "common.cuh"

#define WIDTH (CHANNELS / HEADS)
#define WARPS (THREADS / 32)
#define EPSILON (real)1e-5
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define EVEN(n) (((n) + 1) / 2 * 2)

// Offsets in `weights`: a linear layer, [in][out] with out even, and its bias; a layer normalisation; an adaptive one
// and its gate, [tokens][CHANNELS] each.
struct Linear { int weight, bias; };
struct Norm { int weight, bias; };
struct Modulation { int gamma, beta, gate; };
struct Layer {
  Norm attention_norm, forward_norm, query_norm, key_norm;
  Linear qkv, out, first, second, into, back;  // the last two of the transition; outputs of `into` are a value and its gate in turn
  Modulation attention, transition;
};
struct Stage {
  Linear into, out;
  int positions, condition;  // [tokens][CHANNELS]
  int order;                 // in `orders`
  int padding;
};

static __device__ real gelu(real x) { return (real)0.5 * x * erfc(-x / (real)SQRT_2); }
static __device__ real silu(real x) { return x / ((real)1 + exp(-x)); }

template <class T>
static __device__ T sum_of_warp(T value) {
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}

#endif
