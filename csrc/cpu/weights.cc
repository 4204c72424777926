#include "cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace tessera::cpu {

namespace {

constexpr int kFusionHeads = 4;

uint16_t to_bf16(float value) {  // to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

Linear::Linear(const KernelTable& table, Element element, int K, int N, Sign input)
    : element_(element), input_(input), K_(K), N_(N), panel_(table.panel) {
  group_ = element == Element::kFloat32 ? 1 : element == Element::kBfloat16 ? 2 : table.int8_group;
  const size_t padded = size_t(N + panel_ - 1) / panel_ * panel_;
  packed_ = Buffer(padded * ((K + group_ - 1) / group_));
  bias_ = Buffer(padded);
  if (element == Element::kInt8) scale_ = Buffer(padded);
  if (element == Element::kInt8) offset_ = Buffer(padded);
}

void Linear::set_rows(int first, int count, const float* weight, float scale) {
  const size_t depth = (K_ + group_ - 1) / group_;
  for (int r = 0; r < count; ++r) {
    const int n = first + r;
    const float* row = weight + size_t(r) * K_;
    float step = 0;
    if (element_ == Element::kInt8) {
      float invalid = 0;  // NaN if a value is not finite
      for (int k = 0; k < K_; ++k) {
        step = std::max(step, std::abs(row[k] * scale) / 127);
        invalid += row[k] * scale - row[k] * scale;
      }
      scale_.data()[n] = step + invalid;
      if (!(step > 0) || invalid != 0) continue;  // codes 0: of a row of zeros, or times NaN
    }
    int32_t sum = 0;
    for (int k = 0; k < K_; ++k) {
      const size_t word = (n / panel_ * depth + k / group_) * panel_ + n % panel_;
      char* out = reinterpret_cast<char*>(packed_.data() + word);
      const float w = row[k] * scale;
      if (element_ == Element::kFloat32) {
        std::memcpy(out, &w, 4);
      } else if (element_ == Element::kBfloat16) {
        const uint16_t half = to_bf16(w);
        std::memcpy(out + k % 2 * 2, &half, 2);
      } else {
        const float rounded = std::nearbyint(w / step);
        const int code = std::abs(rounded) <= 127 ? static_cast<int>(rounded) : 0;
        sum += code;
        const int8_t byte = static_cast<int8_t>(code);
        const int16_t half = static_cast<int16_t>(code);
        if (group_ == 4)
          std::memcpy(out + k % 4, &byte, 1);
        else
          std::memcpy(out + k % 2 * 2, &half, 2);
      }
    }
    if (element_ == Element::kInt8 && group_ == 4 && input_ == Sign::kAny) {
      const int32_t start = -128 * sum;
      std::memcpy(offset_.data() + n, &start, 4);
    }
  }
}

void Linear::set_bias(int first, int count, const float* bias, float scale) {
  for (int r = 0; r < count; ++r) bias_.data()[first + r] += bias[r] * scale;
}

LinearWeights Linear::view() const {
  const bool int8 = element_ == Element::kInt8;
  return {element_,
          K_,
          N_,
          packed_.data(),
          bias_.data(),
          int8 ? scale_.data() : nullptr,
          int8 ? reinterpret_cast<const int32_t*>(offset_.data()) : nullptr};
}

namespace {

class Builder {
 public:
  Builder(const KernelTable& table, const ModelConfig& config, Precision precision,
          const TensorSource& source)
      : table_(table), config_(config), precision_(precision), source_(source) {}

  std::vector<float> vector(const std::string& name, int n) const {
    const float* p = source_(name, {n, 1});
    return std::vector<float>(p, p + n);
  }

  Linear linear(const std::string& name, Element element, int K, int N,
                Sign input = Sign::kAny) const {
    const float* weight = source_(name + ".weight", {N, K});
    Linear l(table_, element, K, N, input);  // after the check of the size that it takes
    l.set_rows(0, N, weight, 1);
    l.set_bias(0, N, source_(name + ".bias", {N, 1}), 1);
    return l;
  }

  Norm norm(const std::string& name, int n) const {
    return {vector(name + ".weight", n), vector(name + ".bias", n)};
  }

  // Rows first.. of `l` from a weight and (where named) a bias, both times `scale`.
  void append(Linear& l, const std::string& weight, const std::string& bias, int first, int count,
              int K, float scale = 1) const {
    l.set_rows(first, count, source_(weight, {count, K}), scale);
    if (!bias.empty()) l.set_bias(first, count, source_(bias, {count, 1}), scale);
  }

  Layer layer(const std::string& name, int F, int heads, bool qk_norm) const {
    const int D = config_.d_model, head_dim = D / heads;
    const float scale = 1 / std::sqrt(float(head_dim));
    const Element element = precision_.linear;
    Layer layer;
    layer.num_heads = heads;
    layer.qkv = Linear(table_, element, D, 3 * D);
    if (qk_norm) {
      const char* projections[] = {".q_proj", ".k_proj", ".v_proj"};
      for (int i = 0; i < 3; ++i) {
        const std::string base = name + projections[i];
        append(layer.qkv, base + ".weight", base + ".bias", i * D, D, D);
      }
      layer.q_norm = vector(name + ".q_norm.weight", head_dim);
      for (float& w : layer.q_norm) w *= scale;
      layer.k_norm = vector(name + ".k_norm.weight", head_dim);
      layer.out = linear(name + ".out_proj", element, D, D);
    } else {
      const std::string base = name + ".self_attn.";
      const float* w = source_(base + "in_proj_weight", {3 * D, D});
      layer.qkv.set_rows(0, D, w, scale);
      layer.qkv.set_rows(D, 2 * D, w + size_t(D) * D, 1);
      const float* b = source_(base + "in_proj_bias", {3 * D, 1});
      layer.qkv.set_bias(0, D, b, scale);
      layer.qkv.set_bias(D, 2 * D, b + D, 1);
      layer.out = linear(base + "out_proj", element, D, D);
    }
    layer.ff1 = linear(name + ".linear1", element, D, F);
    layer.ff2 = linear(name + ".linear2", element, F, D, Sign::kNonnegative);
    layer.norm1 = norm(name + ".norm1", D);
    layer.norm2 = norm(name + ".norm2", D);
    return layer;
  }

  std::unique_ptr<Gru> gru(const std::string& pool) const {
    const int D = config_.d_model;
    const Element element = precision_.linear;
    auto gru = std::make_unique<Gru>();
    gru->input = Linear(table_, element, D, 3 * D);
    if (config_.pooling == Pooling::kCustomGru) {
      const std::string cell = pool + ".temporal_context.gru_cell.";
      const char* gates = "rzh";
      gru->gates = Linear(table_, element, D, 2 * D);
      gru->candidate = Linear(table_, element, D, D);
      for (int i = 0; i < 3; ++i) {
        const std::string g(1, gates[i]);
        append(gru->input, cell + "W_i" + g + ".weight", cell + "b_" + g, i * D, D, D);
        Linear& hidden = i < 2 ? gru->gates : gru->candidate;
        append(hidden, cell + "W_h" + g + ".weight", "", i < 2 ? i * D : 0, D, D);
      }
      gru->norm = norm(pool + ".layer_norm", D);
    } else {
      const std::string cell = pool + ".temporal_context.";
      gru->gates = Linear(table_, element, D, 3 * D);
      append(gru->input, cell + "weight_ih_l0", cell + "bias_ih_l0", 0, 3 * D, D);
      append(gru->gates, cell + "weight_hh_l0", cell + "bias_hh_l0", 0, 3 * D, D);
    }
    return gru;
  }

  Stream stream(const std::string& name, int bands, const float* mean, const float* std) const {
    const int D = config_.d_model;
    Stream s;
    s.bands = bands;
    s.mean = mean;
    s.std = std;
    s.embed1 = linear(name + ".embedding.0", Element::kFloat32, bands, D);
    s.embed2 = linear(name + ".embedding.2", precision_.linear, D, D, Sign::kNonnegative);
    for (int i = 0; i < config_.num_layers; ++i)
      s.layers.push_back(layer(name + "." + config_.layer_prefix + std::to_string(i),
                               config_.ff_dim, config_.num_heads, config_.qk_norm));
    const std::string pool = name + ".attn_pool";
    s.query = vector(pool + ".query.weight", D);
    s.query_bias = *source_(pool + ".query.bias", {1, 1});
    if (config_.pooling != Pooling::kSoftmax) s.gru = gru(pool);
    return s;
  }

 private:
  const KernelTable& table_;
  const ModelConfig& config_;
  Precision precision_;
  const TensorSource& source_;
};

}  // namespace

Model build_model(const KernelTable& table, ModelConfig config, Precision precision,
                  const float* positions, const TensorSource& source) {
  Model m;
  m.config = std::move(config);
  m.precision = precision;
  const ModelConfig& c = m.config;
  check(c.d_model % c.num_heads == 0, "d_model must be a multiple of num_heads");
  check(!c.fusion_layers || c.d_model % kFusionHeads == 0,
        "fusion: d_model must be a multiple of 4");
  const int D = c.d_model;
  const Builder build(table, c, precision, source);
  m.streams[0] = build.stream("s2_backbone", c.s2_bands, c.s2_mean.data(), c.s2_std.data());
  m.streams[1] = build.stream("s1_backbone", c.s1_bands, c.s1_mean.data(), c.s1_std.data());
  if (c.fusion_layers) {
    m.modality_embed = build.vector("fusion_modality_embed", 2 * D);
    for (int i = 0; i < c.fusion_layers; ++i)  // always ff 2 D, QK-norm
      m.fusion.push_back(
          build.layer("fusion_transformer.layers." + std::to_string(i), 2 * D, kFusionHeads, true));
  }
  if (c.mlp_reducer) {
    m.reduce1 = build.linear("dim_reducer.0", precision.accurate, 2 * D, 4 * D);
    m.reduce_norm = build.norm("dim_reducer.1", 4 * D);
    m.reduce2 =
        build.linear("dim_reducer.4", precision.accurate, 4 * D, c.out_dim, Sign::kNonnegative);
  } else {
    m.reduce2 = build.linear("dim_reducer.0", precision.accurate, 2 * D, c.out_dim);
  }
  m.positions.assign(positions, positions + size_t(367) * D);
  return m;
}

}  // namespace tessera::cpu
