// The score of a Graphormer: backward pass through its layers. Included by graphormer_ebm.cu.

// From the cotangent m.g_a of a norm's output to that of `rows`, added to m.g_rows. m.mean and m.inverse are those of
// `rows`.
static __device__ __noinline__ void normalise_back(const real* w, const Place place, const Norm norm, const real* rows) {
  const State m = layout(place);
  const auto normal = [&](int d, int atom) { return (rows[d * LANES + atom] - m.mean[atom]) * m.inverse[atom]; };
  const auto g = [&](int d, int atom) { return w[norm.weight + d] * m.g_a[d * LANES + atom]; };
  mean_of(m, m.y, g);
  mean_of(m, m.r, [&](int d, int atom) { return g(d, atom) * normal(d, atom); });
  FOR_ITEMS(d, atom, WIDTH) {
    m.g_rows[d * LANES + atom] += m.inverse[atom] * (g(d, atom) - m.y[atom] - normal(d, atom) * m.r[atom]);
  }
  __syncthreads();
}

static __device__ const real* g_mixed(const State& m, int c, int head) { return m.g_a + (head * HEAD_MIXED + c) * LANES; }

// softmax_j of atom i, and the cotangent of its score.
static __device__ real softmax_of(const State& m, int head, int i, int j) {
  return exp(score_of(m, head, i, j) - m.lse[head * LANES + i]);
}
static __device__ real g_score(const State& m, int head, int i, int j, real p) {
  real along = (real)0;
  for (int c = 0; c < HEAD_WIDTH; ++c) along += g_mixed(m, c, head)[i] * part_of(m, 2, c, head)[j];
  return p * (along - m.delta[head * LANES + i]);
}

// N channels, from `first` on, of the cotangents of q_i, from g(j).
template <int N, class G>
static __device__ void back_to_query(const State& m, int head, int i, int first, real* to, const G& g) {
  const real scale = (real)1 / sqrt((real)HEAD_WIDTH);
  real g_q[N];
  for (int c = 0; c < N; ++c) g_q[c] = (real)0;
  for (int j = 0; i < ATOMS && j < ATOMS; ++j) {
    const real here = scale * g(j);
    for (int c = 0; c < N; ++c) g_q[c] += here * part_of(m, 1, first + c, head)[j];
  }
  for (int c = 0; c < N; ++c) to[(head * HEAD_ROWS + first + c) * LANES + i] = g_q[c];
}

// The same for k_j and v_j, from p(i) and g(i, p).
template <int N, class P, class G>
static __device__ void back_to_source(const State& m, int head, int j, int first, real* to, const P& p, const G& g) {
  const real scale = (real)1 / sqrt((real)HEAD_WIDTH);
  real g_k[N], g_v[N];
  for (int c = 0; c < N; ++c) g_k[c] = g_v[c] = (real)0;
  for (int i = 0; j < ATOMS && i < ATOMS; ++i) {
    const real weight = p(i), here = scale * g(i, weight);
    for (int c = 0; c < N; ++c) {
      g_k[c] += here * part_of(m, 0, first + c, head)[i];
      g_v[c] += weight * g_mixed(m, first + c, head)[i];
    }
  }
  for (int c = 0; c < N; ++c) {
    to[(head * HEAD_ROWS + HEAD_WIDTH + first + c) * LANES + j] = g_k[c];
    to[(head * HEAD_ROWS + 2 * HEAD_WIDTH + first + c) * LANES + j] = g_v[c];
  }
}

// From the cotangent m.g_a of the output of the block's heads, which is in m.a, to those of q, k and v, in an array
// that begins with its first head, and of the biases, which are added to. Ends with a barrier.
static __device__ void attention_back(const State& m, real* to) {
  const int heads = heads_here(m);
  FOR_ITEMS(head, i, heads) {
    real sum = (real)0;
    for (int c = 0; c < HEAD_WIDTH; ++c) sum += g_mixed(m, c, head)[i] * m.a[(head * HEAD_MIXED + c) * LANES + i];
    m.delta[head * LANES + i] = sum;
    if (HEAD_ROWS > 3 * HEAD_WIDTH) to[(head * HEAD_ROWS + 3 * HEAD_WIDTH) * LANES + i] = (real)0;
  }
  __syncthreads();
#if TEAM > 1
  FOR_ITEMS(pair, i, ATOMS * heads) {
    const int head = pair / ATOMS, j = pair % ATOMS, place = pair_at(j, head, i, EACH(HEADS));
    if (i >= ATOMS) continue;
    m.p[place] = softmax_of(m, head, i, j);
    m.g[place] = g_score(m, head, i, j, m.p[place]);
    m.g_bias[place] += m.g[place];
  }
  __syncthreads();
  FOR_ITEMS(place, atom, heads * HEAD_WIDTH) {
    const int head = place / HEAD_WIDTH, c = place % HEAD_WIDTH;
    back_to_query<1>(m, head, atom, c, to, [&](int j) { return m.g[pair_at(j, head, atom, EACH(HEADS))]; });
    back_to_source<1>(m, head, atom, c, to, [&](int i) { return m.p[pair_at(atom, head, i, EACH(HEADS))]; },
                      [&](int i, real) { return m.g[pair_at(atom, head, i, EACH(HEADS))]; });
  }
#else
  FOR_ITEMS(head, atom, heads) {
    back_to_query<HEAD_WIDTH>(m, head, atom, 0, to, [&](int j) {
      const real g = g_score(m, head, atom, j, softmax_of(m, head, atom, j));
      m.g_bias[pair_at(j, head, atom, H)] += g;
      return g;
    });
    back_to_source<HEAD_WIDTH>(m, head, atom, 0, to, [&](int i) { return softmax_of(m, head, i, atom); },
                               [&](int i, real p) { return g_score(m, head, i, atom, p); });
  }
#endif
  __syncthreads();
}

// From the cotangents m.a of the sums of Gaussians, and of the biases, to those of x through the pairs of atom i.
static __device__ void pairs_back(const Arguments& a, const State& m, int i) {
  const real* w = a.weights;
  real *const kernels = kernels_of(m), *const hidden = pair_hidden(m), *const g_kernels = hidden + K * LANES, *const of_heads = g_kernels + K * LANES;
  pairs(a, m, i);
  outputs(m, Range{0, K}, w + a.bias_first.forward, KERNELS, K, kernels, Bias{w + a.bias_first.bias}, Store{hidden, LANES});
  FOR_ITEMS(head, j, HEADS) of_heads[head * LANES + j] = j < ATOMS ? m.far_g_bias[pair_at(j, head, i, H)] : (real)0;
  __syncthreads();
  outputs(m, Range{0, K}, w + a.bias_second.back, HEADS, K, of_heads, Zero{}, ThroughSilu{hidden, hidden});
  __syncthreads();
  const auto of_neighbours = [&](int o, int lane, real* sum) {
#pragma unroll
    for (int r = 0; r < 8; ++r) sum[r] = BOLTZNCE || lane + r != i ? m.a[o * LANES + i] : (real)0;
  };
  outputs(m, Range{0, K}, w + a.bias_first.back, KERNELS, K, hidden, of_neighbours, Store{g_kernels, LANES});
  __syncthreads();
  FOR_ITEMS(axis, j, 3) {
    real by_y = (real)0;
    for (int k = 0; k < KERNELS; ++k) {
      const real inverse = w[a.inverse_widths + k], z = (m.y[j] - w[a.means + k]) * inverse;
      by_y -= g_kernels[k * LANES + j] * z * inverse * kernels[k * LANES + j];
    }
    const bool counts = j < ATOMS && j != i;
    const real by_r = counts ? by_y * w[a.factor + i * ATOMS + j] : (real)0;
    m.far_g_d[(i * 3 + axis) * LANES + j] = counts ? by_r * m.d[axis * LANES + j] / m.r[j] : (real)0;
  }
  __syncthreads();
}

// Cotangents of x from those of the differences in all atoms' pairs. Begins after a barrier.
static __device__ void write_score(const Arguments& a, const State& m, int row) {
  FOR_ITEMS(axis, atom, 3) {
    real total = (real)0;
    for (int i = 0; atom < ATOMS && i < ATOMS; ++i) {
      const real* const of_pairs = m.far_g_d + (i * 3 + axis) * LANES;
      total += of_pairs[atom];
      if (i != atom) continue;
      real sum = (real)0;
      for (int j = 0; j < ATOMS; ++j) sum += of_pairs[j];
      total -= sum;
    }
    if (m.place.rank == 0 && atom < ATOMS) a.batch.df[((size_t)row * ATOMS + atom) * 3 + axis] = (double)total;
  }
}

static __device__ __noinline__ void backward(const Arguments& a, const Team& team, const Place place, int row) {
  const State m = layout(place);
  const real* w = a.weights;
  const Range of_rows = own_outputs(m, D), of_hidden = own_outputs(m, F), of_mixed = own_heads(m, HEAD_MIXED);
  // e₂ silu(m.work)
  FOR_ITEMS(d, atom, WIDTH) {
    m.work[d * LANES + atom] = w[a.energy_second.forward + 2 * d] * silu_slope(m.work[d * LANES + atom]);
    m.g_rows[d * LANES + atom] = (real)0;
  }
  FOR_ITEMS(place, i, ATOMS * HEADS_APART) m.g_bias[place * LANES + i] = (real)0;
  __syncthreads();
  outputs(m, of_rows, w + a.energy_first.back, WIDTH, D, m.work, Zero{}, Store{m.far_g_a, LANES});
  bring(team, m.far_g_a, m.g_a, D);
  normalise_back(w, m.place, a.final_norm, far_rows(m, 2 * LAYERS));
  for (int l = LAYERS - 1; l >= 0; --l) {
    const Layer& layer = a.layers[l];
    const real* before = far_rows(m, 2 * l + 1);
    normalise(w, m.place, layer.forward_norm, before);
    outputs(m, of_hidden, w + layer.first.forward, WIDTH, F, m.a, Bias{w + layer.first.bias}, Store{m.work, LANES});
    __syncthreads();
    outputs(m, of_hidden, w + layer.second.back, WIDTH, F, m.g_rows, Zero{}, ThroughSilu{m.work, m.far_hidden});
    bring(team, m.far_hidden, m.work, F);
    outputs(m, of_rows, w + layer.first.back, FORWARD, D, m.work, Zero{}, Store{m.far_g_a, LANES});
    bring(team, m.far_g_a, m.g_a, D);
    normalise_back(w, m.place, layer.forward_norm, before);
    before = far_rows(m, 2 * l);
    normalise(w, m.place, layer.attention_norm, before);
    attend(w, m.place, layer.qkv, m.a);
    outputs(m, of_mixed, w + layer.out.back, WIDTH, MIXED, m.g_rows, Zero{}, StoreFrom{m.g_a, of_mixed.first});
    __syncthreads();
    attention_back(m, m.far_g_qkv + own_heads(m, HEAD_ROWS).first * LANES);
    bring(team, m.far_g_qkv, m.g_qkv, QKV);
    outputs(m, of_rows, w + layer.qkv.back, QKV, D, m.g_qkv, Zero{}, Store{m.far_g_a, LANES});
    bring(team, m.far_g_a, m.g_a, D);
    normalise_back(w, m.place, layer.attention_norm, before);
  }
  outputs(m, own_outputs(m, K), w + a.edge.back, WIDTH, K, m.g_rows, Zero{}, Store{m.far_neighbours, LANES});
#if TEAM > 1
  const int first = own(m, HEADS, EACH(HEADS)).first;
  FOR_ITEMS(pair, i, ATOMS * heads_here(m)) {
    const int head = pair / ATOMS, j = pair % ATOMS;
    m.far_g_bias[pair_at(j, first + head, i, H)] = m.g_bias[pair_at(j, head, i, EACH(HEADS))];
  }
#endif
  bring(team, m.far_neighbours, m.a, K);
  for (int i = m.place.rank; i < ATOMS; i += TEAM) pairs_back(a, m, i);
  meet(team);
  write_score(a, m, row);
  __syncthreads();
}
