// The gates of one recurrent step; encoder.cc runs the products around them.
//   custom: r = s(x_r + Whr h), z = s(x_z + Whz h), c = tanh(x_c + Whh (r h)), h' = (1-z) h + z c
//   torch:  r, z alike, c = tanh(x_c + r (Whn h + bhn)), h' = (1-z) c + z h
// In `custom` the reset gate multiplies h before the product, and z has the opposite sense: the two
// are not interchangeable.

template <class Body>  // body(m, d, lanes that count)
TESSERA_INLINE void for_state(const GateArgs& a, const Body& body) {
  for (int m = 0; m < a.M; ++m)
    for (int d = 0; d < a.D; d += kLanes) body(m, d, a.D - d < kLanes ? a.D - d : kLanes);
}

void custom_gru_gates(const GateArgs& a) {
  for_state(a, [&](int m, int d, int n) {
    const float* x = a.x[m];
    const float* w = a.recurrent + m * a.ld_recurrent;
    const F r = sigmoid(load_some(x + d, n) + load_some(w + d, n));
    const F z = sigmoid(load_some(x + a.D + d, n) + load_some(w + a.D + d, n));
    store_some(a.r_h + m * a.ld_gate + d, r * load_some(a.h + m * a.ld_h + d, n), n);
    store_some(a.z + m * a.ld_gate + d, z, n);
  });
}

void custom_gru_state(const GateArgs& a) {
  for_state(a, [&](int m, int d, int n) {
    float* h = a.h + m * a.ld_h + d;
    const F c = tanh(load_some(a.x[m] + 2 * a.D + d, n) +
                     load_some(a.recurrent + m * a.ld_recurrent + d, n));
    const F z = load_some(a.z + m * a.ld_gate + d, n);
    store_some(h, fma(set(1.0f) - z, load_some(h, n), z * c), n);
  });
}

void torch_gru_state(const GateArgs& a) {
  for_state(a, [&](int m, int d, int n) {
    const float* x = a.x[m];
    const float* w = a.recurrent + m * a.ld_recurrent;
    float* h = a.h + m * a.ld_h + d;
    const F r = sigmoid(load_some(x + d, n) + load_some(w + d, n));
    const F z = sigmoid(load_some(x + a.D + d, n) + load_some(w + a.D + d, n));
    const F c = tanh(fma(r, load_some(w + 2 * a.D + d, n), load_some(x + 2 * a.D + d, n)));
    store_some(h, fma(set(1.0f) - z, c, z * load_some(h, n)), n);
  });
}
