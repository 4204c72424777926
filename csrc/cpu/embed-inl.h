// standardize: raw integers (or float32) to (x - mean) / (std + 1e-9) in float32, with the
// statistics of the token's orbit. Scalar: C is 10 or 2, under 0.1 % of a model's work.

template <class T>
TESSERA_INLINE void standardize_as(const StandardizeArgs& a) {
  const char* bands = static_cast<const char*>(a.bands);  // any alignment
  for (int m = 0; m < a.M; ++m) {
    const float* mean = a.mean + a.orbit[m] * a.C;
    const float* std = a.std + a.orbit[m] * a.C;
    for (int c = 0; c < a.C; ++c) {
      T raw;
      __builtin_memcpy(&raw, bands + (ptrdiff_t(m) * a.C + c) * ptrdiff_t(sizeof(T)), sizeof(T));
      a.y[m * a.ld_y + c] = (float(raw) - mean[c]) / (std[c] + 1e-9f);
    }
  }
}

void standardize(const StandardizeArgs& a) {
  if (a.element == 0)
    standardize_as<uint16_t>(a);
  else if (a.element == 1)
    standardize_as<int16_t>(a);
  else
    standardize_as<float>(a);
}
