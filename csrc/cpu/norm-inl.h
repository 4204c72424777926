// layer_norm and rms_norm: row passes over a block that is in L2. Two passes for the variance, all
// in float32; partial vectors at the end of a row contribute zeros.

template <class Body>  // body(offset, vector of x, lanes that count)
TESSERA_INLINE void for_row(const float* x, int D, const Body& body) {
  int d = 0;
  for (; d + kLanes <= D; d += kLanes) body(d, load(x + d), kLanes);
  if (d < D) body(d, load_first(x + d, D - d), D - d);
}

TESSERA_INLINE F first_lanes(F v, int n) {
  for (int i = n; i < kLanes; ++i) v[i] = 0;
  return v;
}

TESSERA_INLINE F load_some(const float* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}

TESSERA_INLINE void store_some(float* p, F v, int n) {
  if (n == kLanes)
    store(p, v);
  else
    store_first(p, v, n);
}

void layer_norm(const NormArgs& a) {
  for (int m = 0; m < a.M; ++m) {
    const float* x = a.x + m * a.ld_x;
    float* y = a.y + m * a.ld_y;
    F sum = {};
    for_row(x, a.D, [&](int, F v, int) { sum += v; });
    const F mean = set(reduce_add(sum) / float(a.D));
    F squares = {};
    for_row(x, a.D, [&](int, F v, int n) {
      const F c = n == kLanes ? v - mean : first_lanes(v - mean, n);
      squares = fma(c, c, squares);
    });
    const float variance = reduce_add(squares) / float(a.D);
    const F rstd = set(1.0f / __builtin_sqrtf(variance + a.eps));
    for_row(x, a.D, [&](int d, F v, int n) {
      F r = (v - mean) * rstd;
      if (a.weight) r = fma(r, load_some(a.weight + d, n), load_some(a.bias + d, n));
      store_some(y + d, a.relu ? max(r, F{}) : r, n);
    });
  }
}

void rms_norm(const RmsNormArgs& a) {
  for (int m = 0; m < a.M; ++m)
    for (int h = 0; h < a.H; ++h) {
      float* x = a.x + m * a.ld_x + h * a.head_dim;
      F squares = {};
      for_row(x, a.head_dim, [&](int, F v, int) { squares = fma(v, v, squares); });
      const float mean = reduce_add(squares) / float(a.head_dim);
      const F scale = set(1.0f / __builtin_sqrtf(mean + a.eps));
      for_row(x, a.head_dim, [&](int d, F v, int n) {
        store_some(x + d, v * scale * load_some(a.weight + d, n), n);
      });
    }
}
