// One thread's memory of an encoder, allocated before the loop.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/encoder.h"
#include "cpu/kernel_table.h"
#include "cpu/profile.h"
#include "cpu/weights.h"

namespace tessera::cpu {

// Tokens of a block: enough rows to reuse each weight panel, few enough for L2 (performance is flat
// from 96 to 384). A pixel longer than this is a block of its own.
constexpr int kBlockTokens = 128;
// Pixels of a group share the reducer's and the GRU's products; tokens bound what the GRU keeps.
constexpr int kGroupPixels = 64;
constexpr int kGroupTokens = 2048;

// Leading dimension of rows of n words: an odd number of cache lines, so that the rows of a tile
// do not fall into the same sets of L1 (a stride of 4 KB costs a quarter of the speed).
inline ptrdiff_t padded(int n) {
  return ((n + 15) / 16 | 1) * 16;
}

inline int words_of(Element element, int n, const KernelTable& table) {
  const int group = element == Element::kFloat32    ? 1
                    : element == Element::kBfloat16 ? 2
                                                    : table.int8_group;
  return (n + group - 1) / group;
}

inline Matrix floats(float* data, ptrdiff_t ld) {
  return {Element::kFloat32, data, ld, nullptr};
}

// The matrix from row m on.
inline Matrix row_of(Matrix a, ptrdiff_t m) {
  a.data = static_cast<char*>(a.data) + m * a.ld * 4;
  if (a.scale) a.scale += m;
  return a;
}

// Room for rows as a linear of this element reads them. Of float32 none: it reads the rows
// themselves, and as_read() says where they are.
class Room {
 public:
  Room() = default;
  Room(Element element, size_t rows, int columns, const KernelTable& table)
      : element_(element), ld_(padded(words_of(element, columns, table))) {
    if (element == Element::kFloat32) return;
    data_ = Buffer(rows * ld_);
    if (element == Element::kInt8) scale_ = std::vector<float>(rows);
  }
  Matrix matrix() {
    return {element_, data_.data(), ld_, scale_.empty() ? nullptr : scale_.data()};
  }
  // Rows of x that were also written to matrix(), unless they are float32.
  Matrix as_read(float* x, ptrdiff_t ld) {
    return element_ == Element::kFloat32 ? floats(x, ld) : matrix();
  }

 private:
  Element element_ = Element::kFloat32;
  ptrdiff_t ld_ = 0;
  Buffer data_;
  std::vector<float> scale_;
};

struct Encoder::Group {
  int64_t first, last;  // pixels
  int pixels() const { return static_cast<int>(last - first); }
};

struct Encoder::Sizes {
  int block = 2 * kGroupPixels;  // rows of x that run through the layers at once
  int tokens = 1;                // of a group's stream
  int steps = 1;                 // of a pixel
};

class Encoder::Workspace {
 public:
  Workspace(const Model& m, const KernelTable& table, const Sizes& sizes, bool profiled)
      : profile(profiled),
        ld_d(padded(m.config.d_model)),
        ld_qkv(padded(words_of(m.precision.accurate, 3 * m.config.d_model, table))),
        fused(size_t(kGroupPixels) * 2 * m.config.d_model),
        reduced(size_t(kGroupPixels) * padded(m.config.out_dim)) {
    const ModelConfig& c = m.config;
    const bool gru = c.pooling != Pooling::kSoftmax;
    const Element linear = m.precision.linear, accurate = m.precision.accurate;
    const int D = c.d_model, head_dim = D / c.num_heads;
    const int F = std::max(c.ff_dim, m.fusion.empty() ? 0 : 2 * D);
    const int fusion_head_dim = m.fusion.empty() ? 0 : D / m.fusion[0].num_heads;
    const size_t rows = sizes.block;
    x = Buffer(std::max<size_t>(rows, gru ? sizes.tokens : 0) * ld_d);
    y = Buffer(rows * ld_d);
    // bfloat16 hidden layers are written as they are read
    ld_hidden = padded(linear == Element::kBfloat16 ? 1 : F);
    wide =
        Buffer(std::max<size_t>(rows * std::max(ld_qkv, ld_hidden), kGroupPixels * size_t(4) * D));
    x_read = Room(linear, rows, D, table);
    y_read = Room(linear, rows, D, table);
    hidden_read = Room(linear, rows, F, table);
    fused_read = Room(accurate, kGroupPixels, 2 * D, table);
    reducer_read = Room(accurate, kGroupPixels, 4 * D, table);
    attention = Buffer(std::max(table.attention_scratch(sizes.block, head_dim),
                                table.attention_scratch(2, fusion_head_dim)));
    log_multiplicity.resize(rows);
    scores.resize(std::max<size_t>(rows, kGroupPixels));
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

  Profile profile;
  ptrdiff_t ld_d, ld_qkv, ld_hidden = 0;
  Buffer x, y;     // [block, D] each; x holds the whole group's tokens where a GRU reads them
  Buffer wide;     // [block, max(3 D, F)] q k v, then the hidden layer
  Buffer fused;    // [pixels, 2 D] pooled S2 | S1
  Buffer reduced;  // [pixels, out_dim]
  Buffer attention;
  Room x_read, y_read, hidden_read;  // of the layers
  Room fused_read, reducer_read;     // [pixels, 2 D], [pixels, 4 D]
  std::vector<float> log_multiplicity, scores, softmax;
  std::vector<int> pixel_tokens;
  // GRU: input halves [tokens, 3 D], state and gates [pixels, D], products [pixels, 3 D]
  Buffer gru_input, state, gate_r, gate_z, recurrent;
  std::vector<float> step_scores;  // [pixels, steps]
  std::vector<const float*> step_inputs;
  std::vector<int> order;
};

}  // namespace tessera::cpu
