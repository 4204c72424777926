// A model's parameters in the layout of one KernelTable: packed once at load, shared by all
// threads.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace tessera::cpu {

// 64-byte aligned words (floats, or what a Matrix holds) that live as long as their owner.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t n) : raw_(n + 16) {}
  Buffer(Buffer&&) = default;  // a copy's storage would be aligned differently
  Buffer& operator=(Buffer&&) = default;
  float* data() {
    auto p = reinterpret_cast<uintptr_t>(raw_.data());
    return reinterpret_cast<float*>((p + 63) & ~uintptr_t{63});
  }
  const float* data() const { return const_cast<Buffer*>(this)->data(); }

 private:
  std::vector<float> raw_;
};

struct Shape {
  int64_t rows, columns;  // columns 1 for a vector
};

// Hands out a parameter by its official name: [rows, columns] float32, valid until the next call.
using TensorSource = std::function<const float*(const std::string& name, Shape shape)>;

enum class Pooling { kSoftmax, kCustomGru, kTorchGru };

struct ModelConfig {
  int d_model, num_layers, num_heads, ff_dim, out_dim;
  int s2_bands, s1_bands;
  bool pre_norm, qk_norm, mlp_reducer, final_norm;
  int fusion_layers;
  Pooling pooling;
  int empty_steps;           // length of the all-zero sequence that stands for an empty stream
  std::string layer_prefix;  // "transformer_encoder.layers." or "transformer_encoder."
  std::vector<float> s2_mean, s2_std, s1_mean, s1_std;  // [2, C]
};

// Which element the products of a model are taken in. Sums, softmax, norms, the residual stream,
// gates and states are float32 (int32 sums of int8), and so is the first linear of the raw bands.
struct Precision {
  Element linear;    // projections, feed-forward and recurrent layers
  Element accurate;  // attention and the reducer: not int8
};

enum class Sign { kAny, kNonnegative };

class Linear {
 public:
  Linear() = default;
  // `input`: whether x can be negative, which int8 needs to know.
  Linear(const KernelTable& table, Element element, int K, int N, Sign input = Sign::kAny);
  // [count, K] rows, each value times `scale`; int8: codes round(w / s), s = max|w| / 127 of a row.
  void set_rows(int first, int count, const float* weight, float scale);
  void set_bias(int first, int count, const float* bias, float scale);
  LinearWeights view() const;
  Element element() const { return element_; }
  bool nonnegative_input() const { return input_ == Sign::kNonnegative; }

 private:
  Element element_ = Element::kFloat32;
  Sign input_ = Sign::kAny;
  int K_ = 0, N_ = 0, panel_ = 0, group_ = 1;
  Buffer packed_, bias_, scale_, offset_;
};

struct Norm {
  std::vector<float> weight, bias;
};

struct Layer {
  Linear qkv, out, ff1, ff2;
  Norm norm1, norm2;
  std::vector<float> q_norm, k_norm;  // [head_dim], empty without QK-norm; q carries 1/sqrt(K)
  int num_heads;
};

struct Gru {
  Linear input;      // D -> 3 D: r, z, candidate, biases of both halves where they only add up
  Linear gates;      // custom: D -> 2 D (r, z); torch: D -> 3 D
  Linear candidate;  // custom: D -> D on r * h
  Norm norm;         // custom: of the states before the query; empty for torch
};

struct Stream {
  int bands;
  const float *mean, *std;  // [2, C]
  Linear embed1, embed2;
  std::vector<Layer> layers;
  std::vector<float> query;  // [D]
  float query_bias;
  std::unique_ptr<Gru> gru;
};

struct Model {
  ModelConfig config;
  Precision precision;
  std::array<Stream, 2> streams;  // Sentinel-2, Sentinel-1
  std::vector<Layer> fusion;
  std::vector<float> modality_embed;  // [2, D]
  Linear reduce1, reduce2;
  Norm reduce_norm;
  std::vector<float> positions;  // [367, D]
};

Model build_model(const KernelTable& table, ModelConfig config, Precision precision,
                  const float* positions, const TensorSource& source);

}  // namespace tessera::cpu
