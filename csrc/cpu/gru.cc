// Pooling by a recurrent cell over the padded sequence of every pixel (v1.x).
#include <algorithm>
#include <numeric>

#include "cpu/encoder.h"
#include "cpu/workspace.h"

namespace tessera::cpu {
namespace {

constexpr float kNormEps = 1e-5f;

}  // namespace

// The group's pixels step together, longest sequences first, so that those still running are a
// prefix; a pixel's own arithmetic does not depend on its place.
void Encoder::pool_gru(const Stream& s, const TokensView& tokens, const Group& group, int stream,
                       Workspace& ws) const {
  const Gru& gru = *s.gru;
  const bool custom = model_.config.pooling == Pooling::kCustomGru;
  const int D = model_.config.d_model;
  const ptrdiff_t ld = ws.ld_d, ld_recurrent = padded(3 * D);
  const int64_t group_first = tokens.offsets[group.first];
  auto length = [&](int i) {
    return static_cast<int>(tokens.step_offsets[group.first + i + 1] -
                            tokens.step_offsets[group.first + i]);
  };
  auto token = [&](int i, int step) {  // position in the group of what pixel i reads
    return tokens.offsets[group.first + i] - group_first +
           tokens.steps[tokens.step_offsets[group.first + i] + step];
  };
  std::iota(ws.order.begin(), ws.order.begin() + group.pixels(), 0);
  std::stable_sort(ws.order.begin(), ws.order.begin() + group.pixels(),
                   [&](int a, int b) { return length(a) > length(b); });
  const int longest = group.pixels() ? length(ws.order[0]) : 0;
  float *h = ws.state.data(), *r_h = ws.gate_r.data(), *z = ws.gate_z.data();
  float* product = ws.recurrent.data();
  std::fill_n(h, group.pixels() * ld, 0.0f);

  int running = group.pixels();
  for (int step = 0; step < longest; ++step) {
    while (running > 0 && length(ws.order[running - 1]) <= step) --running;
    for (int i = 0; i < running; ++i)
      ws.step_inputs[i] = ws.gru_input.data() + token(ws.order[i], step) * 3 * D;
    const GateArgs gates{running, D, ws.step_inputs.data(), product, ld_recurrent, h, ld, r_h,
                         z,       ld};
    const Matrix products = floats(product, ld_recurrent);
    run_linear(gru.gates, convert(gru.gates, h, ld, running, D, ws.x_read, ws), running, nullptr,
               false, products);
    const float* states = h;
    if (custom) {
      table_.custom_gru_gates(gates);
      run_linear(gru.candidate, convert(gru.candidate, r_h, ld, running, D, ws.y_read, ws), running,
                 nullptr, false, products);
      table_.custom_gru_state(gates);
      table_.layer_norm({running, D, h, ld, gru.norm.weight.data(), gru.norm.bias.data(), kNormEps,
                         false, r_h, ld, floats(nullptr, 0)});
      states = r_h;
    } else {
      table_.torch_gru_state(gates);
    }
    table_.score({running, D, states, ld, s.query.data(), s.query_bias, nullptr, ws.scores.data()});
    for (int i = 0; i < running; ++i)
      ws.step_scores[size_t(ws.order[i]) * longest + step] = ws.scores[i];
    ws.profile.lap(Op::kGru);
  }
  for (int i = 0; i < group.pixels(); ++i) {
    if (length(i) == 0) continue;
    const int64_t p = group.first + i;
    table_.pool({length(i), D, ws.step_scores.data() + size_t(i) * longest,
                 tokens.steps + tokens.step_offsets[p],
                 ws.x.data() + (tokens.offsets[p] - group_first) * ld, ld,
                 ws.fused.data() + i * 2 * D + stream * D, ws.softmax.data()});
  }
  ws.profile.lap(Op::kPool);
}

}  // namespace tessera::cpu
