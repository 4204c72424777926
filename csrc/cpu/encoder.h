// The whole model on packed tokens, depth first: a block of whole pixels runs through all layers
// while its activations stay in the cache, then the next. Threads share groups of pixels.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/weights.h"

namespace tessera::cpu {

// One stream of packed tokens (docs/data_flow.md); nothing is owned.
struct TokensView {
  const char* bands;  // [N, C]
  int element;        // 0 uint16, 1 int16, 2 float32
  const uint16_t* doy;
  const uint8_t* orbit;
  const uint16_t* multiplicity;
  const int64_t* offsets;       // [P + 1]
  const int32_t* steps;         // [S] or null
  const int64_t* step_offsets;  // [P + 1] or null
  bool standardized;
};

class Encoder {
 public:
  Encoder(const KernelTable& table, Model model);

  // out [P, E] float32, E <= out_dim: NaN where a pixel has no token in either stream.
  void encode(const TokensView& s2, const TokensView& s1, int64_t P, float* out, int E, int threads,
              const std::function<void(int64_t done)>& poll) const;

  const KernelTable& table() const { return table_; }

 private:
  struct Group;
  struct Sizes;
  class Workspace;

  std::vector<Group> groups(const TokensView& s2, const TokensView& s1, int64_t P,
                            Sizes* sizes) const;
  void run_group(const TokensView* tokens, const Group& group, float* out, int E,
                 Workspace& ws) const;
  void run_stream(int stream, const TokensView& tokens, const Group& group, Workspace& ws) const;
  void embed(const Stream& s, const TokensView& tokens, int64_t first, int M, float* x,
             Workspace& ws) const;
  void run_layer(const Layer& layer, int F, int M, float* x, const std::vector<int>& pixel_tokens,
                 Workspace& ws) const;
  void pool_softmax(const Stream& s, const float* x, int T, float* y, Workspace& ws) const;
  void pool_gru(const Stream& s, const TokensView& tokens, const Group& group, int stream,
                Workspace& ws) const;
  void fuse(int pixels, Workspace& ws) const;

  const KernelTable& table_;
  Model model_;
  std::vector<float> empty_[2];  // [D] what a stream without observations pools to
};

}  // namespace tessera::cpu
