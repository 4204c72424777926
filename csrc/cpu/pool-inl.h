// score and pool: softmax over a pixel's steps, then the weighted sum of its tokens.

void score(const ScoreArgs& a) {
  for (int m = 0; m < a.M; m += kLanes) {
    const int rows = a.M - m < kLanes ? a.M - m : kLanes;
    F sums[kLanes] = {};
    for (int i = 0; i < rows; ++i)
      for_row(a.x + (m + i) * a.ld_x, a.D,
              [&](int d, F v, int n) { sums[i] = fma(v, load_some(a.query + d, n), sums[i]); });
    const F extra = a.extra ? load_some(a.extra + m, rows) : F{};
    store_some(a.scores + m, reduce_add(sums) + set(a.bias) + extra, rows);
  }
}

void pool(const PoolArgs& a) {
  float *weights = a.scratch, scale;  // [S rounded up to whole vectors]
  for (int s = 0; s < a.S; ++s) weights[s] = a.scores[s];
  softmax_rows<Float32>(weights, 1, a.S, 0, &scale);
  for (int d = 0; d < a.D; d += kLanes) {
    const int n = a.D - d < kLanes ? a.D - d : kLanes;
    F sum = {};
    for (int s = 0; s < a.S; ++s) {
      const float* x = a.x + (a.steps ? a.steps[s] : s) * a.ld_x + d;
      sum = fma(set(weights[s]), load_some(x, n), sum);
    }
    store_some(a.y + d, sum * set(scale), n);
  }
}
