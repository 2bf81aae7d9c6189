// Importance weights on the card, in f64 (formulas in src/weights.rs).
//
// Numbers are divided into pieces of PIECE. A block processes one piece after another, and sums each in an order that
// depends on nothing else; the host combines the pieces' results in order. So no result depends on the number of
// blocks.
#include "common.cuh"

#define ITEMS 8
#define PIECE (ITEMS * THREADS)

// Per piece: the largest log-weight, the sums of e^(w - largest) and of its square, the first index of a NaN or
// +infinity (or n), and the last index of a weight above zero (or -1).
struct Piece { double largest, sum, sum_of_squares; int unusable, last; };

enum Resampling { SYSTEMATIC, STRATIFIED, MULTINOMIAL };

struct Arguments {
  double* log_weights;     // [n]
  Piece* pieces;           // [pieces]
  double* weights;         // [n]: normalised, or cumulative within a piece
  double* totals;          // [pieces + 1]: sums of pieces, or their offsets
  const double* target;    // [n], reduced potentials at the two ends of a path
  const double* source;
  int* rows;               // [draws]
  Stream stream;
  double log_sum;          // of the weights
  double dt;
  int n, draws, method, last;
};

static __device__ bool is_zero(double log_weight) { return log_weight < 0.0 && log_weight - log_weight != 0.0; }

// Reduces the numbers of all threads pairwise; all threads get the result. Begins and ends with a barrier.
template <class T, class Combine>
static __device__ T over_threads(T* memory, T value, const Combine& combine) {
  __syncthreads();
  memory[threadIdx.x] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) memory[threadIdx.x] = combine(memory[threadIdx.x], memory[threadIdx.x + half]);
  }
  __syncthreads();
  const T result = memory[0];
  __syncthreads();
  return result;
}

#define FOR_PIECES(piece) for (int piece = blockIdx.x; piece * PIECE < a.n; piece += gridDim.x)

KERNEL(sum_pieces, Arguments) {
  double* const memory = of_block();
  const auto sum = [](double x, double y) { return x + y; };
  FOR_PIECES(piece) {
    const int first = piece * PIECE + threadIdx.x * ITEMS, end = first + ITEMS < a.n ? first + ITEMS : a.n;
    Piece mine = {a.log_weights[piece * PIECE], 0.0, 0.0, a.n, -1};
    for (int i = first; i < end; ++i) {
      const double w = a.log_weights[i];
      if (w > mine.largest) mine.largest = w;
      if (!is_zero(w)) mine.last = i;
      if (!is_zero(w) && w - w != 0.0 && mine.unusable == a.n) mine.unusable = i;
    }
    Piece all;
    all.largest = over_threads(memory, mine.largest, [](double x, double y) { return x > y ? x : y; });
    for (int i = first; i < end; ++i) {
      const double w = is_zero(a.log_weights[i]) ? 0.0 : exp(a.log_weights[i] - all.largest);
      mine.sum += w;
      mine.sum_of_squares += w * w;
    }
    all.sum = over_threads(memory, mine.sum, sum);
    all.sum_of_squares = over_threads(memory, mine.sum_of_squares, sum);
    all.unusable = over_threads((int*)memory, mine.unusable, [](int x, int y) { return x < y ? x : y; });
    all.last = over_threads((int*)memory, mine.last, [](int x, int y) { return x > y ? x : y; });
    if (threadIdx.x == 0) a.pieces[piece] = all;
  }
}

KERNEL(normalise, Arguments) {
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < a.n; i += gridDim.x * THREADS)
    a.weights[i] = exp(a.log_weights[i] - a.log_sum);
}

// Cumulative sums of the normalised weights within each piece, and sums of whole pieces.
KERNEL(cumulate, Arguments) {
  double* const memory = of_block();
  FOR_PIECES(piece) {
    const int first = piece * PIECE + threadIdx.x * ITEMS, end = first + ITEMS < a.n ? first + ITEMS : a.n;
    double sum = 0.0;
    for (int i = first; i < end; ++i) sum += exp(a.log_weights[i] - a.log_sum);
    __syncthreads();
    memory[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      double before = 0.0;
      for (int thread = 0; thread < THREADS; ++thread) {
        const double of_thread = memory[thread];
        memory[thread] = before;
        before += of_thread;
      }
      a.totals[piece] = before;
    }
    __syncthreads();
    sum = 0.0;
    for (int i = first; i < end; ++i) {
      sum += exp(a.log_weights[i] - a.log_sum);
      a.weights[i] = memory[threadIdx.x] + sum;
    }
  }
}

// The row into whose share of the weights each draw falls; `totals` are the offsets of the pieces.
KERNEL(draw, Arguments) {
  for (int draw = blockIdx.x * THREADS + threadIdx.x; draw < a.draws; draw += gridDim.x * THREADS) {
    const double uniform = uniform_at(a.stream, a.method == SYSTEMATIC ? 0 : draw);
    const double point = a.method == MULTINOMIAL ? uniform : (draw + uniform) / a.draws;
    // the first row whose share ends after the point, or the last row with a weight
    int low = 0, high = a.last;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (point < a.totals[middle / PIECE] + a.weights[middle]) high = middle;
      else low = middle + 1;
    }
    a.rows[draw] = low;
  }
}

// log w -= dt (u - source), the work of one step of a path.
KERNEL(add_work, Arguments) {
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < a.n; i += gridDim.x * THREADS)
    a.log_weights[i] -= a.dt * (a.target[i] - a.source[i]);
}
