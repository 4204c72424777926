// quantize: float32 rows to int8 codes and one scale, equal bit for bit to quantization.py.

void quantize(const QuantizeArgs& a) {
  for (int64_t m = 0; m < a.M; ++m) {
    const float* x = a.x + m * a.ld_x;
    int8_t* codes = a.codes + m * a.D;
    F top = {};
    bool data = true;
    for_row(x, a.D, [&](int, F v, int n) {
      top = max(abs(v), top);
      for (int i = 0; i < n; ++i) data &= v[i] == v[i];
    });
    if (!data) {
      for (int d = 0; d < a.D; ++d) codes[d] = 0;
      a.scales[m] = __builtin_inff();
      continue;
    }
    const float absmax = max2(reduce_max(top), a.absmax_floor);
    const float scale = max2(absmax / 127.0f, a.scale_floor);
    a.scales[m] = scale;
    const F magic = set(12582912.0f);  // 1.5 * 2^23: rounds half to even
    for_row(x, a.D, [&](int d, F v, int n) {
      const F code = min(max((v / set(scale) + magic) - magic, set(-127.0f)), set(127.0f));
      const I8 narrow = __builtin_convertvector(__builtin_convertvector(code, I), I8);
      for (int i = 0; i < n; ++i) codes[d + i] = narrow[i];
    });
  }
}
