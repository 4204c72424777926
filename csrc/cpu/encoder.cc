#include "cpu/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/parallel.h"
#include "cpu/workspace.h"

namespace tessera::cpu {

Encoder::Encoder(const KernelTable& table, Model model) : table_(table), model_(std::move(model)) {
  // An empty stream is a sequence of all-zero tokens of day 0, in standardised units: one constant.
  const ModelConfig& c = model_.config;
  const int n = c.empty_steps;
  const std::vector<float> zeros(std::max(c.s2_bands, c.s1_bands));
  const std::vector<int32_t> steps(n);
  const uint16_t doy = 0, multiplicity = static_cast<uint16_t>(n);
  const uint8_t orbit = 0;
  const int64_t offsets[] = {0, 1}, step_offsets[] = {0, n};
  const TokensView tokens{reinterpret_cast<const char*>(zeros.data()),
                          2,
                          &doy,
                          &orbit,
                          &multiplicity,
                          offsets,
                          steps.data(),
                          step_offsets,
                          true};
  Sizes sizes;
  sizes.steps = n;
  Workspace ws(model_, table_, sizes, false);
  for (int stream = 0; stream < 2; ++stream) {
    run_stream(stream, tokens, {0, 1}, ws);
    const float* pooled = ws.fused.data() + stream * c.d_model;
    empty_[stream].assign(pooled, pooled + c.d_model);
  }
}

// Threads take whole groups, so few pixels make small ones: four a thread, that none waits long for
// the last; one a thread where a GRU reads its weights once per step and group.
std::vector<Encoder::Group> Encoder::groups(const TokensView& s2, const TokensView& s1, int64_t P,
                                            int threads, Sizes* sizes) const {
  const bool gru = model_.config.pooling != Pooling::kSoftmax;
  const int64_t shares = int64_t(threads) * (gru ? 1 : 4);
  const int64_t fair = std::max(s2.offsets[P], s1.offsets[P]) / shares + 1;
  const int64_t most = std::clamp<int64_t>(fair, 2 * kBlockTokens, kGroupTokens);
  std::vector<Group> all;
  for (int64_t p = 0; p < P;) {
    const int64_t first = p;
    for (; p < P && p - first < kGroupPixels; ++p) {
      int64_t tokens = 0;
      for (const TokensView* t : {&s2, &s1}) {
        const int T = static_cast<int>(t->offsets[p + 1] - t->offsets[p]);
        tokens = std::max(tokens, t->offsets[p + 1] - t->offsets[first]);
        sizes->block = std::max(sizes->block, T);
        if (t->step_offsets)
          sizes->steps = std::max<int>(sizes->steps, t->step_offsets[p + 1] - t->step_offsets[p]);
      }
      if (p > first && tokens > most) break;
      sizes->tokens = std::max<int>(sizes->tokens, tokens);
    }
    all.push_back({first, p});
  }
  return all;
}

void Encoder::encode(const TokensView& s2, const TokensView& s1, int64_t P, float* out, int E,
                     int threads, const std::function<void(int64_t done)>& poll,
                     std::array<int64_t, kOps>* nanoseconds) const {
  check(E >= 1 && E <= model_.config.out_dim, "out: more columns than the model has dimensions");
  const TokensView tokens[] = {s2, s1};
  for (const TokensView& t : tokens)
    check(model_.config.pooling == Pooling::kSoftmax || t.step_offsets != nullptr,
          "steps: a recurrent pooling needs the padded sequence");
  Sizes sizes;
  const std::vector<Group> work = groups(s2, s1, P, threads, &sizes);
  threads = std::max(1, std::min<int>(threads, work.size()));
  std::vector<Workspace> workspaces;
  for (int i = 0; i < threads; ++i)
    workspaces.emplace_back(model_, table_, sizes, nanoseconds != nullptr);
  parallel_for(
      work.size(), threads,
      [&](int64_t i, int worker) {
        run_group(tokens, work[i], out + work[i].first * E, E, workspaces[worker]);
      },
      poll ? [&](int64_t done) { poll(done == int64_t(work.size()) ? P : work[done].first); }
           : std::function<void(int64_t)>());
  if (nanoseconds)
    for (const Workspace& ws : workspaces)
      for (int op = 0; op < kOps; ++op) (*nanoseconds)[op] += ws.profile.nanoseconds[op];
}

// out [pixels, E]
void Encoder::run_group(const TokensView* tokens, const Group& group, float* out, int E,
                        Workspace& ws) const {
  const ModelConfig& c = model_.config;
  ws.profile.start();
  for (int stream = 0; stream < 2; ++stream) run_stream(stream, tokens[stream], group, ws);
  fuse(group.pixels(), ws);
  const ptrdiff_t ld = padded(c.out_dim);
  for (int i = 0; i < group.pixels(); ++i) {
    const int64_t p = group.first + i;
    const bool data = tokens[0].offsets[p + 1] > tokens[0].offsets[p] ||
                      tokens[1].offsets[p + 1] > tokens[1].offsets[p];
    if (data)
      std::memcpy(out + i * E, ws.reduced.data() + i * ld, E * sizeof(float));
    else
      std::fill_n(out + i * E, E, std::numeric_limits<float>::quiet_NaN());
  }
}

// Writes every pixel's pooled row to ws.fused [pixels, 2 D], columns stream * D...
void Encoder::run_stream(int stream, const TokensView& tokens, const Group& group,
                         Workspace& ws) const {
  const Stream& s = model_.streams[stream];
  const int D = model_.config.d_model;
  const int64_t group_first = tokens.offsets[group.first];
  auto count = [&](int64_t p) {
    return static_cast<int>(tokens.offsets[p + 1] - tokens.offsets[p]);
  };
  auto pooled = [&](int64_t p) { return ws.fused.data() + (p - group.first) * 2 * D + stream * D; };

  for (int64_t p = group.first; p < group.last;) {
    const int64_t first_pixel = p, first = tokens.offsets[p];
    int M = 0;
    ws.pixel_tokens.clear();
    for (; p < group.last && (M == 0 || M + count(p) <= kBlockTokens); ++p) {
      ws.pixel_tokens.push_back(count(p));
      M += count(p);
    }
    float* x = ws.x.data() + (s.gru ? (first - group_first) * ws.ld_d : 0);
    if (M > 0) {
      for (int m = 0; m < M; ++m)
        ws.log_multiplicity[m] = std::log(float(tokens.multiplicity[first + m]));
      Matrix read = embed(s, tokens, first, M, x, ws);
      for (const Layer& layer : s.layers)
        read = run_layer(layer, model_.config.ff_dim, M, x, read, ws.pixel_tokens, ws);
      if (s.gru) {
        run_linear(s.gru->input, read, M, nullptr, false,
                   floats(ws.gru_input.data() + (first - group_first) * 3 * D, 3 * D));
        ws.profile.lap(Op::kGru);
      }
    }
    for (int64_t q = first_pixel, m = 0; q < p; m += count(q), ++q) {
      if (count(q) == 0)
        std::copy(empty_[stream].begin(), empty_[stream].end(), pooled(q));
      else if (!s.gru) {
        table_.score({count(q), D, x + m * ws.ld_d, ws.ld_d, s.query.data(), s.query_bias,
                      ws.log_multiplicity.data() + m, ws.scores.data()});
        table_.pool({count(q), D, ws.scores.data(), nullptr, x + m * ws.ld_d, ws.ld_d, pooled(q),
                     ws.softmax.data()});
      }
    }
    ws.profile.lap(Op::kPool);
  }
  if (s.gru) pool_gru(s, tokens, group, stream, ws);
}

}  // namespace tessera::cpu
