// attention of one pixel: y = softmax(q k^T + log m) v per head, on the T distinct dates.
// Adding log(multiplicity) to a key's logit counts it that often, which is exactly the padded
// sequence (docs/data_flow.md). q k^T and p v are `linear` with k and v as weights: per head, k is
// packed transposed and v as it is into panels of `scratch`, and the log multiplicities are the
// bias. Rows go through in slices so that the scores [slice, T] stay in L1.

constexpr int kScoreRows = 48;  // a multiple of every kTileRows; 48 x 64 x 4 B = 12 KB

TESSERA_INLINE int whole_panels(int n) {
  return (n + kPanel - 1) / kPanel * kPanel;
}

size_t attention_scratch(int T, int head_dim) {
  const size_t keys = size_t(whole_panels(T)) * head_dim;
  const size_t values = size_t(whole_panels(head_dim)) * T;
  return keys + values + size_t(kScoreRows + 1) * whole_panels(T);
}

// scores [M, T] -> probabilities, in place; ld a multiple of kLanes, the lanes past T are scratch.
TESSERA_INLINE void softmax_rows(float* scores, int M, int T, int ld) {
  for (int m = 0; m < M; ++m) {
    float* row = scores + ptrdiff_t(m) * ld;
    const int end = (T + kLanes - 1) / kLanes * kLanes;
    for (int t = T; t < end; ++t) row[t] = -__builtin_inff();
    F top = load(row);
    for (int t = kLanes; t < end; t += kLanes) top = max(top, load(row + t));
    const F shift = set(reduce_max(top));
    F sum = {};
    for (int t = 0; t < end; t += kLanes) {
      const F p = exp(load(row + t) - shift);
      store(row + t, p);
      sum += p;
    }
    const F scale = set(1.0f / reduce_add(sum));
    for (int t = 0; t < end; t += kLanes) store(row + t, load(row + t) * scale);
  }
}

void attention(const AttentionArgs& a) {
  const int D = a.H * a.head_dim, ld_scores = whole_panels(a.T);
  float* bias = a.scratch;                                   // [ld_scores]
  float* scores = bias + ld_scores;                          // [kScoreRows, ld_scores]
  float* keys = scores + ptrdiff_t(kScoreRows) * ld_scores;  // [T / kPanel][head_dim][kPanel]
  float* values = keys + ptrdiff_t(ld_scores) * a.head_dim;  // [head_dim / kPanel][T][kPanel]
  for (int t = 0; t < ld_scores; ++t) bias[t] = t < a.T ? a.log_multiplicity[t] : 0.0f;

  for (int h = 0; h < a.H; ++h) {
    const float* q = a.qkv + h * a.head_dim;
    const float* k = q + D;
    const float* v = k + D;
    for (int t = 0; t < ld_scores; ++t) {
      float* out = keys + ptrdiff_t(t / kPanel) * kPanel * a.head_dim + t % kPanel;
      for (int d = 0; d < a.head_dim; ++d) out[d * kPanel] = t < a.T ? k[t * a.ld_qkv + d] : 0.0f;
    }
    for (int d0 = 0; d0 < a.head_dim; d0 += kPanel) {
      const int width = a.head_dim - d0 < kPanel ? a.head_dim - d0 : kPanel;
      float* out = values + ptrdiff_t(d0) * a.T;
      for (int t = 0; t < a.T; ++t, out += kPanel) {
        for (int d = 0; d < width; ++d) out[d] = v[t * a.ld_qkv + d0 + d];
        for (int d = width; d < kPanel; ++d) out[d] = 0.0f;
      }
    }
    for (int m = 0; m < a.T; m += kScoreRows) {
      const int rows = a.T - m < kScoreRows ? a.T - m : kScoreRows;
      linear({rows,
              q + m * a.ld_qkv,
              a.ld_qkv,
              {a.head_dim, a.T, keys, bias},
              nullptr,
              0,
              false,
              scores,
              ld_scores});
      softmax_rows(scores, rows, a.T, ld_scores);
      linear({rows,
              scores,
              ld_scores,
              {a.T, a.head_dim, values, nullptr},
              nullptr,
              0,
              false,
              a.y + m * a.ld_y + h * a.head_dim,
              a.ld_y});
    }
  }
}
