// The layers of one block: embedding, transformer layers, and the reducer.
#include <cstring>
#include <limits>

#include "cpu/encoder.h"
#include "cpu/workspace.h"

namespace tessera::cpu {
namespace {

constexpr float kNormEps = 1e-5f;
constexpr float kRmsEps = std::numeric_limits<float>::epsilon();  // as torch's RMSNorm(eps=None)

}  // namespace

void Encoder::run_linear(const Linear& linear, Matrix x, int M, const float* residual, bool relu,
                         Matrix y) const {
  table_.linear({M, x, linear.view(), residual, y.ld, relu, y});
}

// What the linear `next` reads of float32 rows: themselves, or their conversion in `room`.
Matrix Encoder::convert(const Linear& next, float* x, ptrdiff_t ld, int M, int K, Room& room,
                        Workspace& ws) const {
  if (next.element() != Element::kFloat32) {
    table_.convert({M, K, x, ld, next.nonnegative_input(), room.matrix()});
    ws.profile.lap(Op::kConvert);
  }
  return room.as_read(x, ld);
}

// Where rows that `next` reads are to be written: to `room` in bfloat16, else to y in float32, from
// where int8 is converted.
Matrix Encoder::target(const Linear& next, float* y, ptrdiff_t ld, Room& room) const {
  return next.element() == Element::kBfloat16 ? room.matrix() : floats(y, ld);
}

Matrix Encoder::as_read(const Linear& next, Matrix y, int M, int K, Room& room,
                        Workspace& ws) const {
  if (next.element() != Element::kInt8) return y;
  return convert(next, static_cast<float*>(y.data), y.ld, M, K, room, ws);
}

// x [M, D] = Linear(ReLU(Linear(standardised bands))) + position of the day; returns x as the first
// layer reads it.
Matrix Encoder::embed(const Stream& s, const TokensView& tokens, int64_t first, int M, float* x,
                      Workspace& ws) const {
  const int D = model_.config.d_model, C = s.bands;
  const size_t size = tokens.element == 2 ? 4 : 2;
  const char* bands = tokens.bands + first * C * size;
  float* standardized = ws.wide.data();  // [M, C]
  const ptrdiff_t ld = padded(C);
  if (tokens.standardized)
    for (int m = 0; m < M; ++m)
      std::memcpy(standardized + m * ld, bands + m * C * size, C * sizeof(float));
  else
    table_.standardize(
        {M, C, bands, tokens.element, tokens.orbit + first, s.mean, s.std, standardized, ld});
  for (int m = 0; m < M; ++m)
    std::memcpy(x + m * ws.ld_d, model_.positions.data() + size_t(tokens.doy[first + m]) * D,
                D * sizeof(float));
  Matrix hidden = target(s.embed2, ws.y.data(), ws.ld_d, ws.y_read);
  run_linear(s.embed1, floats(standardized, ld), M, nullptr, true, hidden);
  hidden = as_read(s.embed2, hidden, M, D, ws.y_read, ws);
  run_linear(s.embed2, hidden, M, x, false, floats(x, ws.ld_d));
  ws.profile.lap(Op::kEmbed);
  if (model_.config.pre_norm) return floats(x, ws.ld_d);
  return convert(s.layers[0].qkv, x, ws.ld_d, M, D, ws.x_read, ws);
}

// x [M, D] in place, `read` being x as the projections read it; returns the same of the new x.
// Post-LN: x = LN(x + attention(x)); x = LN(x + FFN(x)).
// Pre-LN: x += attention(LN(x)); x += FFN(LN(x)); `read` is x itself.
Matrix Encoder::run_layer(const Layer& layer, int F, int M, float* x, Matrix read,
                          const std::vector<int>& pixel_tokens, Workspace& ws) const {
  const int D = model_.config.d_model, H = layer.num_heads, head_dim = D / H;
  const bool pre = model_.config.pre_norm;
  const ptrdiff_t ld = ws.ld_d;
  float* y = ws.y.data();
  Profile& profile = ws.profile;
  Room& normed = pre ? ws.y_read : ws.x_read;
  auto norm = [&](const Norm& n, float* out) {
    table_.layer_norm(
        {M, D, x, ld, n.weight.data(), n.bias.data(), kNormEps, false, out, ld, normed.matrix()});
    profile.lap(Op::kNorm);
    return normed.as_read(out, ld);
  };

  if (pre) read = norm(layer.norm1, y);
  Matrix qkv{model_.precision.accurate, ws.wide.data(), ws.ld_qkv, nullptr};
  run_linear(layer.qkv, read, M, nullptr, false, qkv);
  profile.lap(Op::kQkv);
  if (!layer.q_norm.empty()) {
    table_.rms_norm({M, H, head_dim, qkv, 0, layer.q_norm.data(), kRmsEps});
    table_.rms_norm({M, H, head_dim, qkv, D, layer.k_norm.data(), kRmsEps});
    profile.lap(Op::kNorm);
  }
  Matrix attended = target(layer.out, y, ld, ws.y_read);
  int m = 0;
  for (int T : pixel_tokens) {
    if (T > 0)
      table_.attention({T, H, head_dim, row_of(qkv, m), ws.log_multiplicity.data() + m,
                        row_of(attended, m), ws.attention.data()});
    m += T;
  }
  profile.lap(Op::kAttention);
  attended = as_read(layer.out, attended, M, D, ws.y_read, ws);
  run_linear(layer.out, attended, M, x, false, floats(x, ld));
  profile.lap(Op::kOut);
  read = norm(pre ? layer.norm2 : layer.norm1, pre ? y : x);
  Matrix hidden = target(layer.ff2, ws.wide.data(), ws.ld_hidden, ws.hidden_read);
  run_linear(layer.ff1, read, M, nullptr, true, hidden);
  profile.lap(Op::kFf1);
  hidden = as_read(layer.ff2, hidden, M, F, ws.hidden_read, ws);
  run_linear(layer.ff2, hidden, M, x, false, floats(x, ld));
  profile.lap(Op::kFf2);
  return pre ? floats(x, ld) : norm(layer.norm2, x);
}

// ws.fused [pixels, 2 D] -> ws.reduced [pixels, out_dim]
void Encoder::fuse(int pixels, Workspace& ws) const {
  const ModelConfig& c = model_.config;
  const int D = c.d_model;
  float* fused = ws.fused.data();
  if (!model_.fusion.empty()) {  // two tokens a pixel: [S2, S1] + modality embedding
    float* x = ws.x.data();
    const int M = 2 * pixels;
    for (int i = 0; i < M; ++i)
      for (int d = 0; d < D; ++d)
        x[i * ws.ld_d + d] = fused[size_t(i) * D + d] + model_.modality_embed[i % 2 * D + d];
    ws.pixel_tokens.assign(pixels, 2);
    std::fill_n(ws.log_multiplicity.begin(), M, 0.0f);
    ws.profile.lap(Op::kReduce);
    Matrix read = c.pre_norm ? floats(x, ws.ld_d)
                             : convert(model_.fusion[0].qkv, x, ws.ld_d, M, D, ws.x_read, ws);
    for (const Layer& layer : model_.fusion)
      read = run_layer(layer, 2 * D, M, x, read, ws.pixel_tokens, ws);
    for (int i = 0; i < M; ++i)
      std::memcpy(fused + size_t(i) * D, x + i * ws.ld_d, D * sizeof(float));
  }
  const ptrdiff_t ld = padded(c.out_dim);
  float* reduced = ws.reduced.data();
  const Linear& first = c.mlp_reducer ? model_.reduce1 : model_.reduce2;
  Matrix input = convert(first, fused, 2 * D, pixels, 2 * D, ws.fused_read, ws);
  if (c.mlp_reducer) {
    float* hidden = ws.wide.data();  // [pixels, 4 D]
    run_linear(model_.reduce1, input, pixels, nullptr, false, floats(hidden, 4 * D));
    table_.layer_norm({pixels, 4 * D, hidden, 4 * D, model_.reduce_norm.weight.data(),
                       model_.reduce_norm.bias.data(), kNormEps, true, hidden, 4 * D,
                       ws.reducer_read.matrix()});
    input = ws.reducer_read.as_read(hidden, 4 * D);
  }
  run_linear(model_.reduce2, input, pixels, nullptr, false, floats(reduced, ld));
  if (c.final_norm)
    table_.layer_norm({pixels, c.out_dim, reduced, ld, nullptr, nullptr, kNormEps, false, reduced,
                       ld, floats(nullptr, 0)});
  ws.profile.lap(Op::kReduce);
}

}  // namespace tessera::cpu
