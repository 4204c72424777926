// The whole model on packed tokens, depth first: a block of whole pixels runs through all layers
// while its activations stay in the cache, then the next. Threads share groups of pixels.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/profile.h"
#include "cpu/weights.h"

namespace tessera::cpu {

class Room;  // workspace.h

// One stream of packed tokens (docs/data_flow.md); nothing is owned.
struct TokensView {
  const char* bands;  // [N, C]
  int element;        // 0 uint16, 1 int16, 2 float32
  const uint16_t* doy;
  const uint8_t* orbit;
  const uint16_t* multiplicity;
  const int64_t* offsets;       // [P + 1]
  const int32_t* steps;         // [S]
  const int64_t* step_offsets;  // [P + 1], or null: no steps
  bool standardized;
};

class Encoder {
 public:
  Encoder(const KernelTable& table, Model model);

  // out [P, E] float32, E <= out_dim: NaN where a pixel has no token in either stream.
  // `nanoseconds`, if given: the time of every op, summed over threads, is added to it.
  void encode(const TokensView& s2, const TokensView& s1, int64_t P, float* out, int E, int threads,
              const std::function<void(int64_t done)>& poll,
              std::array<int64_t, kOps>* nanoseconds = nullptr) const;

  const KernelTable& table() const { return table_; }

 private:
  struct Group;
  struct Sizes;
  class Workspace;

  std::vector<Group> groups(const TokensView& s2, const TokensView& s1, int64_t P, int threads,
                            Sizes* sizes) const;
  void run_group(const TokensView* tokens, const Group& group, float* out, int E,
                 Workspace& ws) const;
  void run_stream(int stream, const TokensView& tokens, const Group& group, Workspace& ws) const;
  void run_linear(const Linear& linear, Matrix x, int M, const float* residual, bool relu,
                  Matrix y) const;
  Matrix convert(const Linear& next, float* x, ptrdiff_t ld, int M, int K, Room& room,
                 Workspace& ws) const;
  Matrix target(const Linear& next, float* y, ptrdiff_t ld, Room& room) const;
  Matrix as_read(const Linear& next, Matrix y, int M, int K, Room& room, Workspace& ws) const;
  Matrix embed(const Stream& s, const TokensView& tokens, int64_t first, int M, float* x,
               Workspace& ws) const;
  Matrix run_layer(const Layer& layer, int F, int M, float* x, Matrix read,
                   const std::vector<int>& pixel_tokens, Workspace& ws) const;
  void pool_gru(const Stream& s, const TokensView& tokens, const Group& group, int stream,
                Workspace& ws) const;
  void fuse(int pixels, Workspace& ws) const;

  const KernelTable& table_;
  Model model_;
  std::vector<float> empty_[2];  // [D] what a stream without observations pools to
};

}  // namespace tessera::cpu
