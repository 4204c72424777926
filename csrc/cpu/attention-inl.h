// attention of one pixel: y = softmax(q k^T + log m) v per head, on the T distinct dates.
// Adding log(multiplicity) to a key's logit counts it that often, which is exactly the padded
// sequence (docs/data_flow.md). q k^T and p v are linears with k and v as weights: per head, k is
// packed transposed and v as it is into panels of `scratch`, the log multiplicities are the bias,
// and 1 / sum of a row of p is the row's scale. Rows go through in slices so that the scores
// [slice, T] stay in L1.

constexpr int kScoreRows = 48;  // a multiple of every kTileRows; 48 x 64 x 4 B = 12 KB

TESSERA_INLINE int whole_panels(int n) {
  return (n + kPanel - 1) / kPanel * kPanel;
}

size_t attention_scratch(int T, int head_dim) {
  const size_t keys = size_t(whole_panels(T)) * head_dim;
  const size_t values = size_t(whole_panels(head_dim)) * T;
  return keys + values + size_t(kScoreRows + 1) * whole_panels(T) + kScoreRows;
}

// k [T, head_dim] -> [T / kPanel][words][kPanel] words, zero past T and past head_dim.
template <class Dot>
TESSERA_INLINE void pack_keys(const char* k, ptrdiff_t ld, int T, int head_dim, char* keys) {
  const int depth = words<Dot>(head_dim);
  for (int t = 0; t < whole_panels(T); t += kLanes) {
    char* out = keys + (ptrdiff_t(t / kPanel) * kPanel * depth + t % kPanel) * 4;
    for (int p = 0; p < depth; p += kLanes) {
      const int count = depth - p < kLanes ? depth - p : kLanes;
      I rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const char* row = k + (t + i) * ld * 4 + p * 4;
        rows[i] = t + i >= T        ? I{}
                  : count == kLanes ? load_as<I>(row)
                                    : load_first_words(row, count);
      }
      transpose(rows);
      if (p + count == depth && head_dim % Dot::kGroup) rows[count - 1] &= 0xffff;
      for (int i = 0; i < count; ++i) store_as(out + ptrdiff_t(p + i) * kPanel * 4, rows[i]);
    }
  }
}

// v [T, head_dim] -> [head_dim / kPanel][T / group][kPanel][group], zero past T and past head_dim.
TESSERA_INLINE void pack_values(const float* v, ptrdiff_t ld, int T, int head_dim, float* out) {
  for (int d0 = 0; d0 < head_dim; d0 += kPanel)
    for (int t = 0; t < T; ++t)
      for (int d = d0; d < d0 + kPanel; d += kLanes, out += kLanes) {
        const int count = head_dim - d < kLanes ? head_dim - d : kLanes;
        store(out, count > 0 ? load_some(v + t * ld + d, count) : F{});
      }
}

TESSERA_INLINE void pack_values(const uint16_t* v, ptrdiff_t ld, int T, int head_dim, float* out) {
  for (int d0 = 0; d0 < head_dim; d0 += kPanel)
    for (int t = 0; t < T; t += 2)
      for (int d = d0; d < d0 + kPanel; d += kLanes, out += kLanes) {
        const int count = head_dim - d < kLanes ? head_dim - d : kLanes;
        I low = {}, high = {};
        if (count > 0) low = (I)load_some(v + t * ld * 2 + d, count);
        if (count > 0 && t + 1 < T) high = (I)load_some(v + (t + 1) * ld * 2 + d, count);
        store_as(out, (I)((U)low >> 16) | high);
      }
}

// scores [M, T] -> e^(score - largest) in place, as float32 or as bfloat16 from the row's start,
// and 1 / sum of a row; ld a multiple of kPanel, the lanes past T become 0 or 1e-38. kLanes rows at
// a time: their reductions are one transpose.
template <class Dot>
TESSERA_INLINE void softmax_rows(float* scores, int M, int T, int ld, float* scales) {
  constexpr bool kExact = Dot::kGroup == 1;
  const int end = (T + kLanes - 1) / kLanes * kLanes;
  for (int m = 0; m < M; m += kLanes) {
    const int rows = M - m < kLanes ? M - m : kLanes;
    F state[kLanes] = {};
    for (int i = 0; i < rows; ++i) {
      float* row = scores + ptrdiff_t(m + i) * ld;
      for (int t = T; t < end; ++t) row[t] = -__builtin_inff();
      F top = load(row);
      for (int t = kLanes; t < end; t += kLanes) top = max(top, load(row + t));
      state[i] = top;
    }
    float shifts[kLanes];
    store(shifts, reduce_max(state));
    for (int i = 0; i < rows; ++i) {
      float* row = scores + ptrdiff_t(m + i) * ld;
      const F shift = set(shifts[i]);
      F sum = {};
      for (int t = 0; t < end; t += kLanes) {
        const F p = kExact ? exp(load(row + t) - shift) : exp_coarse(load(row + t) - shift);
        if constexpr (kExact)
          store(row + t, p);
        else
          store_as(reinterpret_cast<uint16_t*>(row) + t, to_bf16(p));
        sum += p;
      }
      state[i] = sum;
    }
    store_some(scales + m, set(1.0f) / reduce_add(state), rows);
  }
}

template <class Dot>
TESSERA_INLINE void attention_as(const AttentionArgs& a) {
  constexpr int kSize = 4 / Dot::kGroup;  // bytes of an element
  const int D = a.H * a.head_dim, ld = whole_panels(a.T);
  float* bias = a.scratch;              // [ld]
  float* scales = bias + ld;            // [kScoreRows]
  float* scores = scales + kScoreRows;  // [kScoreRows, ld]
  float* keys = scores + ptrdiff_t(kScoreRows) * ld;
  float* values = keys + ptrdiff_t(ld) * words<Dot>(a.head_dim);
  for (int t = 0; t < ld; ++t) bias[t] = t < a.T ? a.log_multiplicity[t] : 0.0f;

  for (int h = 0; h < a.H; ++h) {
    char* q = static_cast<char*>(a.qkv.data) + h * a.head_dim * kSize;
    const char* v = q + 2 * D * kSize;
    pack_keys<Dot>(q + D * kSize, a.qkv.ld, a.T, a.head_dim, reinterpret_cast<char*>(keys));
    if constexpr (Dot::kGroup == 1)
      pack_values(reinterpret_cast<const float*>(v), a.qkv.ld, a.T, a.head_dim, values);
    else
      pack_values(reinterpret_cast<const uint16_t*>(v), a.qkv.ld, a.T, a.head_dim, values);
    for (int m = 0; m < a.T; m += kScoreRows) {
      const int rows = a.T - m < kScoreRows ? a.T - m : kScoreRows;
      linear_as<Dot>({rows,
                      {Dot::kElement, q + m * a.qkv.ld * 4, a.qkv.ld, nullptr},
                      {Dot::kElement, a.head_dim, a.T, keys, bias, nullptr, nullptr},
                      nullptr,
                      0,
                      false,
                      {Element::kFloat32, scores, ld, nullptr}});
      softmax_rows<Dot>(scores, rows, a.T, ld, scales);
      char* y = row(a.y, m);
      y += h * a.head_dim * (a.y.element == Element::kBfloat16 ? 2 : 4);
      linear_as<Dot>({rows,
                      {Dot::kElement, scores, ld, scales},
                      {Dot::kElement, a.T, a.head_dim, values, nullptr, nullptr, nullptr},
                      nullptr,
                      0,
                      false,
                      {a.y.element, y, a.y.ld, nullptr}});
    }
  }
}

void attention(const AttentionArgs& a) {
  if (a.qkv.element == Element::kBfloat16)
    attention_as<Bfloat16>(a);
  else
    attention_as<Float32>(a);
}
