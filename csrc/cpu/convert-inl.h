// convert: float32 rows into what a linear of another element reads.

TESSERA_INLINE void convert_row_bf16(const float* x, int K, char* y) {
  uint16_t* out = reinterpret_cast<uint16_t*>(y);
  // whole words: load_first made the element past K 0
  for_row(x, K, [&](int k, F v, int n) { store_narrow(out + k, to_bf16(v), (n + 1) & ~1); });
}

// Codes round(x / scale), half to even, as bytes with 128 added or as int16 (kernel_table.h). A row
// with a NaN or an infinity gets a scale of NaN.
TESSERA_INLINE void convert_row_int8(const float* x, int K, bool nonnegative, char* y,
                                     float* scale) {
  F top = {}, invalid = {};
  for_row(x, K, [&](int, F v, int) {
    top = max(abs(v), top);
    invalid += v - v;
  });
  const float largest = max2(reduce_max(top), 1e-30f), range = nonnegative ? 255.0f : 127.0f;
  *scale = largest / range + reduce_add(invalid);
  const F inverse = set(range / largest);
  const F magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const I zero = (I)magic - (Int8::kGroup == 4 && !nonnegative ? 128 : 0);
  for_row(x, K, [&](int k, F v, int n) {
    const I code = (I)fma(v, inverse, magic) - zero;
    if constexpr (Int8::kGroup == 4)
      store_narrow(reinterpret_cast<int8_t*>(y) + k, __builtin_convertvector(code, I8), n);
    else
      store_narrow(reinterpret_cast<int16_t*>(y) + k, __builtin_convertvector(code, I16), n);
  });
}

TESSERA_INLINE void convert_row(const float* x, int K, bool nonnegative, Matrix y, int m) {
  if (y.element == Element::kBfloat16)
    convert_row_bf16(x, K, row(y, m));
  else if (y.element == Element::kInt8)
    convert_row_int8(x, K, nonnegative, row(y, m), y.scale + m);
}

void convert(const ConvertArgs& a) {
  for (int m = 0; m < a.M; ++m) convert_row(a.x + m * a.ld_x, a.K, a.nonnegative, a.y, m);
}
