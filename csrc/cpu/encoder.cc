#include "cpu/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/parallel.h"

namespace tessera::cpu {
namespace {

// Tokens of a block: enough rows to reuse each weight panel, few enough for L2 (performance is flat
// from 96 to 384). A pixel longer than this is a block of its own.
constexpr int kBlockTokens = 128;
// Pixels of a group share the reducer's and the GRU's products; tokens bound what the GRU keeps.
constexpr int kGroupPixels = 64;
constexpr int kGroupTokens = 2048;
constexpr float kNormEps = 1e-5f;
constexpr float kRmsEps = std::numeric_limits<float>::epsilon();  // as torch's RMSNorm(eps=None)

// Leading dimension of rows of n floats: an odd number of cache lines, so that the rows of a tile
// do not fall into the same sets of L1 (a stride of 4 KB costs a quarter of the speed).
ptrdiff_t padded(int n) {
  return ((n + 15) / 16 | 1) * 16;
}

}  // namespace

struct Encoder::Group {
  int64_t first, last;  // pixels
  int pixels() const { return static_cast<int>(last - first); }
};

struct Encoder::Sizes {
  int block = 2 * kGroupPixels;  // rows of x that run through the layers at once
  int tokens = 1;                // of a group's stream
  int steps = 1;                 // of a pixel
};

// One thread's memory, allocated before the loop.
class Encoder::Workspace {
 public:
  Workspace(const Model& m, const KernelTable& table, const Sizes& sizes)
      : ld_d(padded(m.config.d_model)),
        ld_wide(padded(std::max(3 * m.config.d_model, m.config.ff_dim))),
        fused(size_t(kGroupPixels) * 2 * m.config.d_model),
        reduced(size_t(kGroupPixels) * padded(m.config.out_dim)) {
    const bool gru = m.config.pooling != Pooling::kSoftmax;
    const int D = m.config.d_model, head_dim = D / m.config.num_heads;
    const int fusion_head_dim = m.fusion.empty() ? 0 : D / m.fusion[0].num_heads;
    x = Buffer(std::max(sizes.block, gru ? sizes.tokens : 0) * ld_d);
    y = Buffer(sizes.block * ld_d);
    wide = Buffer(std::max<size_t>(sizes.block * ld_wide, size_t(kGroupPixels) * 4 * D));
    attention = Buffer(std::max(table.attention_scratch(sizes.block, head_dim),
                                table.attention_scratch(2, fusion_head_dim)));
    log_multiplicity.resize(sizes.block);
    scores.resize(std::max(sizes.block, kGroupPixels));
    softmax.resize(std::max(sizes.steps, sizes.block) + 16);
    if (gru) {
      gru_input = Buffer(size_t(sizes.tokens) * 3 * D);
      state = Buffer(kGroupPixels * ld_d);
      gate_r = Buffer(kGroupPixels * ld_d);
      gate_z = Buffer(kGroupPixels * ld_d);
      recurrent = Buffer(size_t(kGroupPixels) * padded(3 * D));
      step_scores.resize(size_t(kGroupPixels) * sizes.steps);
      step_inputs.resize(kGroupPixels);
      order.resize(kGroupPixels);
    }
  }

  ptrdiff_t ld_d, ld_wide;
  Buffer x, y;     // [block, D] each; x holds the whole group's tokens where a GRU reads them
  Buffer wide;     // [block, max(3 D, F)] q k v, then the hidden layer
  Buffer fused;    // [pixels, 2 D] pooled S2 | S1
  Buffer reduced;  // [pixels, out_dim]
  Buffer attention;
  std::vector<float> log_multiplicity, scores, softmax;
  std::vector<int> pixel_tokens;
  // GRU: input halves [tokens, 3 D], state and gates [pixels, D], products [pixels, 3 D]
  Buffer gru_input, state, gate_r, gate_z, recurrent;
  std::vector<float> step_scores;  // [pixels, steps]
  std::vector<const float*> step_inputs;
  std::vector<int> order;
};

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
  Workspace ws(model_, table_, sizes);
  for (int stream = 0; stream < 2; ++stream) {
    run_stream(stream, tokens, {0, 1}, ws);
    const float* pooled = ws.fused.data() + stream * c.d_model;
    empty_[stream].assign(pooled, pooled + c.d_model);
  }
}

std::vector<Encoder::Group> Encoder::groups(const TokensView& s2, const TokensView& s1, int64_t P,
                                            Sizes* sizes) const {
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
      if (p > first && tokens > kGroupTokens) break;
      sizes->tokens = std::max<int>(sizes->tokens, tokens);
    }
    all.push_back({first, p});
  }
  return all;
}

void Encoder::encode(const TokensView& s2, const TokensView& s1, int64_t P, float* out, int E,
                     int threads, const std::function<void(int64_t done)>& poll) const {
  check(E >= 1 && E <= model_.config.out_dim, "out: more columns than the model has dimensions");
  const TokensView tokens[] = {s2, s1};
  for (const TokensView& t : tokens)
    check(model_.config.pooling == Pooling::kSoftmax || (t.steps && t.step_offsets),
          "steps: a recurrent pooling needs the padded sequence");
  Sizes sizes;
  const std::vector<Group> work = groups(s2, s1, P, &sizes);
  threads = std::max(1, std::min<int>(threads, work.size()));
  std::vector<Workspace> workspaces;
  for (int i = 0; i < threads; ++i) workspaces.emplace_back(model_, table_, sizes);
  parallel_for(
      work.size(), threads,
      [&](int64_t i, int worker) {
        run_group(tokens, work[i], out + work[i].first * E, E, workspaces[worker]);
      },
      poll ? [&](int64_t done) { poll(done == int64_t(work.size()) ? P : work[done].first); }
           : std::function<void(int64_t)>());
}

// out [pixels, E]
void Encoder::run_group(const TokensView* tokens, const Group& group, float* out, int E,
                        Workspace& ws) const {
  const ModelConfig& c = model_.config;
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
      embed(s, tokens, first, M, x, ws);
      for (const Layer& layer : s.layers)
        run_layer(layer, model_.config.ff_dim, M, x, ws.pixel_tokens, ws);
      if (s.gru)
        table_.linear({M, x, ws.ld_d, s.gru->input.view(), nullptr, 0, false,
                       ws.gru_input.data() + (first - group_first) * 3 * D, 3 * D});
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
  }
  if (s.gru) pool_gru(s, tokens, group, stream, ws);
}

// x [M, D] = Linear(ReLU(Linear(standardised bands))) + position of the day
void Encoder::embed(const Stream& s, const TokensView& tokens, int64_t first, int M, float* x,
                    Workspace& ws) const {
  const int D = model_.config.d_model, C = s.bands;
  const size_t size = tokens.element == 2 ? 4 : 2;
  const char* bands = tokens.bands + first * C * size;
  float* standardized = ws.wide.data();  // [M, C]
  const ptrdiff_t ld = ws.ld_wide;
  if (tokens.standardized)
    for (int m = 0; m < M; ++m)
      std::memcpy(standardized + m * ld, bands + m * C * size, C * sizeof(float));
  else
    table_.standardize(
        {M, C, bands, tokens.element, tokens.orbit + first, s.mean, s.std, standardized, ld});
  for (int m = 0; m < M; ++m)
    std::memcpy(x + m * ws.ld_d, model_.positions.data() + size_t(tokens.doy[first + m]) * D,
                D * sizeof(float));
  float* hidden = ws.y.data();
  table_.linear({M, standardized, ld, s.embed1.view(), nullptr, 0, true, hidden, ws.ld_d});
  table_.linear({M, hidden, ws.ld_d, s.embed2.view(), x, ws.ld_d, false, x, ws.ld_d});
}

// x [M, D] in place. Post-LN: x = LN(x + attention(x)); x = LN(x + FFN(x)).
// Pre-LN: x += attention(LN(x)); x += FFN(LN(x)).
void Encoder::run_layer(const Layer& layer, int F, int M, float* x,
                        const std::vector<int>& pixel_tokens, Workspace& ws) const {
  const int D = model_.config.d_model, H = layer.num_heads, head_dim = D / H;
  const bool pre = model_.config.pre_norm;
  const ptrdiff_t ld = ws.ld_d, ld_qkv = padded(3 * D), ld_hidden = padded(F);
  float* y = ws.y.data();
  float* wide = ws.wide.data();
  auto norm = [&](const Norm& n, float* out) {
    table_.layer_norm({M, D, x, ld, n.weight.data(), n.bias.data(), kNormEps, false, out, ld});
  };

  if (pre) norm(layer.norm1, y);
  table_.linear({M, pre ? y : x, ld, layer.qkv.view(), nullptr, 0, false, wide, ld_qkv});
  if (!layer.q_norm.empty()) {
    table_.rms_norm({M, H, head_dim, wide, ld_qkv, layer.q_norm.data(), kRmsEps});
    table_.rms_norm({M, H, head_dim, wide + D, ld_qkv, layer.k_norm.data(), kRmsEps});
  }
  int m = 0;
  for (int T : pixel_tokens) {
    if (T > 0)
      table_.attention({T, H, head_dim, wide + m * ld_qkv, ld_qkv, ws.log_multiplicity.data() + m,
                        y + m * ld, ld, ws.attention.data()});
    m += T;
  }
  table_.linear({M, y, ld, layer.out.view(), x, ld, false, x, ld});
  norm(pre ? layer.norm2 : layer.norm1, pre ? y : x);
  table_.linear({M, pre ? y : x, ld, layer.ff1.view(), nullptr, 0, true, wide, ld_hidden});
  table_.linear({M, wide, ld_hidden, layer.ff2.view(), x, ld, false, x, ld});
  if (!pre) norm(layer.norm2, x);
}

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
    table_.linear({running, h, ld, gru.gates.view(), nullptr, 0, false, product, ld_recurrent});
    const float* states = h;
    if (custom) {
      table_.custom_gru_gates(gates);
      table_.linear(
          {running, r_h, ld, gru.candidate.view(), nullptr, 0, false, product, ld_recurrent});
      table_.custom_gru_state(gates);
      table_.layer_norm({running, D, h, ld, gru.norm.weight.data(), gru.norm.bias.data(), kNormEps,
                         false, r_h, ld});
      states = r_h;
    } else {
      table_.torch_gru_state(gates);
    }
    table_.score({running, D, states, ld, s.query.data(), s.query_bias, nullptr, ws.scores.data()});
    for (int i = 0; i < running; ++i)
      ws.step_scores[size_t(ws.order[i]) * longest + step] = ws.scores[i];
  }
  for (int i = 0; i < group.pixels(); ++i) {
    if (length(i) == 0) continue;
    const int64_t p = group.first + i;
    table_.pool({length(i), D, ws.step_scores.data() + size_t(i) * longest,
                 tokens.steps + tokens.step_offsets[p],
                 ws.x.data() + (tokens.offsets[p] - group_first) * ld, ld,
                 ws.fused.data() + i * 2 * D + stream * D, ws.softmax.data()});
  }
}

// ws.fused [pixels, 2 D] -> ws.reduced [pixels, out_dim]
void Encoder::fuse(int pixels, Workspace& ws) const {
  const ModelConfig& c = model_.config;
  const int D = c.d_model;
  float* fused = ws.fused.data();
  if (!model_.fusion.empty()) {  // two tokens a pixel: [S2, S1] + modality embedding
    float* x = ws.x.data();
    for (int i = 0; i < 2 * pixels; ++i)
      for (int d = 0; d < D; ++d)
        x[i * ws.ld_d + d] = fused[size_t(i) * D + d] + model_.modality_embed[i % 2 * D + d];
    ws.pixel_tokens.assign(pixels, 2);
    std::fill_n(ws.log_multiplicity.begin(), 2 * pixels, 0.0f);
    for (const Layer& layer : model_.fusion)
      run_layer(layer, 2 * D, 2 * pixels, x, ws.pixel_tokens, ws);
    for (int i = 0; i < 2 * pixels; ++i)
      std::memcpy(fused + size_t(i) * D, x + i * ws.ld_d, D * sizeof(float));
  }
  const ptrdiff_t ld = padded(c.out_dim);
  float* reduced = ws.reduced.data();
  const float* input = fused;
  int width = 2 * D;
  if (c.mlp_reducer) {
    float* hidden = ws.wide.data();  // [pixels, 4 D]
    table_.linear({pixels, fused, 2 * D, model_.reduce1.view(), nullptr, 0, false, hidden, 4 * D});
    table_.layer_norm({pixels, 4 * D, hidden, 4 * D, model_.reduce_norm.weight.data(),
                       model_.reduce_norm.bias.data(), kNormEps, true, hidden, 4 * D});
    input = hidden;
    width = 4 * D;
  }
  table_.linear({pixels, input, width, model_.reduce2.view(), nullptr, 0, false, reduced, ld});
  if (c.final_norm)
    table_.layer_norm(
        {pixels, c.out_dim, reduced, ld, nullptr, nullptr, kNormEps, false, reduced, ld});
}

}  // namespace tessera::cpu
