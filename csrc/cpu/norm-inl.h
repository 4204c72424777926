// layer_norm and rms_norm: row passes over a block that is in L2. Two passes for the variance, all
// in float32; partial vectors at the end of a row contribute zeros.

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
    convert_row(y, a.D, a.relu, a.converted, m);
  }
}

template <class T>
TESSERA_INLINE void rms_norm_as(const RmsNormArgs& a) {
  for (int m = 0; m < a.M; ++m)
    for (int h = 0; h < a.H; ++h) {
      T* x = reinterpret_cast<T*>(row(a.x, m)) + a.first + h * a.head_dim;
      F squares = {};
      for_row(x, a.head_dim, [&](int, F v, int) { squares = fma(v, v, squares); });
      const float mean = reduce_add(squares) / float(a.head_dim);
      const F scale = set(1.0f / __builtin_sqrtf(mean + a.eps));
      for_row(x, a.head_dim, [&](int d, F v, int n) {
        store_some(x + d, v * scale * load_some(a.weight + d, n), n);
      });
    }
}

void rms_norm(const RmsNormArgs& a) {
  if (a.x.element == Element::kBfloat16)
    rms_norm_as<uint16_t>(a);
  else
    rms_norm_as<float>(a);
}
