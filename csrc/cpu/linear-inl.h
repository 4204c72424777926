// linear: y [M, N] = x [M, K] W^T + bias (+ residual), then ReLU if asked.
// W is packed [N / kPanel][K][kPanel]; x and y are row-major. Panels outside, rows inside: one
// panel (K x kPanel floats) stays in the cache while all M rows pass; x is broadcast, never packed.
// The accumulators start from bias + residual and take one fma per k, in order, whatever the tile.

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
// Accumulators of a tile: 6 x 2 fill the 16 registers of SSE and AVX2 with two weights and a
// broadcast; 12 x 2 leave 8 of AVX-512's 32.
constexpr int kTileRows = kLanes == 16 ? 12 : 6;

template <int kRows, int kVectors>
TESSERA_INLINE void linear_tile(const LinearArgs& a, int m, int n, const float* panel) {
  F acc[kRows][kVectors];
  const int columns = a.w.N - n;  // left in this panel; the last vector may be partial
  const int last = columns < kVectors * kLanes ? columns - (kVectors - 1) * kLanes : kLanes;
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = a.w.bias ? load(a.w.bias + n + v * kLanes) : F{};
      if (!a.residual) continue;
      const float* residual = a.residual + (m + i) * a.ld_residual + n + v * kLanes;
      const bool whole = v < kVectors - 1 || last == kLanes;
      acc[i][v] += whole ? load(residual) : load_first(residual, last);
    }
  const float* x = a.x + m * a.ld_x;
  for (int k = 0; k < a.w.K; ++k, panel += kPanel) {
    F w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load(panel + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const F xk = set(x[i * a.ld_x + k]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = fma(xk, w[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) {
      const F y = a.relu ? max(acc[i][v], F{}) : acc[i][v];
      float* out = a.y + (m + i) * a.ld_y + n + v * kLanes;
      if (v < kVectors - 1 || last == kLanes)
        store(out, y);
      else
        store_first(out, y, last);
    }
}

// One tile of `rows` <= kRows rows.
template <int kRows, int kVectors>
TESSERA_INLINE void linear_rows(const LinearArgs& a, int rows, int m, int n, const float* panel) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      linear_tile<kRows, kVectors>(a, m, n, panel);
    else
      linear_rows<kRows - 1, kVectors>(a, rows, m, n, panel);
  }
}

// Whole tiles, then the last kTileRows + 1 .. 2 kTileRows - 1 rows as two halves: a tile of one or
// two rows would wait for each fma.
template <int kVectors>
TESSERA_INLINE void linear_panel(const LinearArgs& a, int n, const float* panel) {
  int m = 0;
  for (; a.M - m >= 2 * kTileRows || a.M - m == kTileRows; m += kTileRows)
    linear_tile<kTileRows, kVectors>(a, m, n, panel);
  const int rest = a.M - m, first = rest > kTileRows ? (rest + 1) / 2 : rest;
  linear_rows<kTileRows, kVectors>(a, first, m, n, panel);
  linear_rows<kTileRows, kVectors>(a, rest - first, m + first, n, panel);
}

void linear(const LinearArgs& a) {
  for (int n = 0; n < a.w.N; n += kPanel) {
    const float* panel = a.w.packed + ptrdiff_t(n) * a.w.K;
    if (a.w.N - n > kLanes)
      linear_panel<2>(a, n, panel);
    else
      linear_panel<1>(a, n, panel);
  }
}
