// score and pool: softmax over a pixel's steps, then the weighted sum of its tokens.

void score(const ScoreArgs& a) {
  for (int m = 0; m < a.M; ++m) {
    F sum = {};
    for_row(a.x + m * a.ld_x, a.D,
            [&](int d, F v, int n) { sum = fma(v, load_some(a.query + d, n), sum); });
    a.scores[m] = reduce_add(sum) + a.bias + (a.extra ? a.extra[m] : 0.0f);
  }
}

void pool(const PoolArgs& a) {
  float* weights = a.scratch;  // [S rounded up to whole vectors]
  for (int s = 0; s < a.S; ++s) weights[s] = a.scores[s];
  softmax_rows(weights, 1, a.S, 0);
  for (int d = 0; d < a.D; d += kLanes) {
    const int n = a.D - d < kLanes ? a.D - d : kLanes;
    F sum = {};
    for (int s = 0; s < a.S; ++s) {
      const float* x = a.x + (a.steps ? a.steps[s] : s) * a.ld_x + d;
      sum = fma(set(weights[s]), load_some(x, n), sum);
    }
    store_some(a.y + d, sum, n);
  }
}
