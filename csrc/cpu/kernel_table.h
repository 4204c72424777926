// The ops of the cpu back end as plain functions: one table per instruction set, filled by
// isa_target.cc. Everything here is float32, row-major; a leading dimension (ld_*) is in floats.
// Every op computes a row (a token, a pixel) by itself and in one fixed order, so a pixel's bits do
// not depend on its neighbours, its place in a block or the number of threads.
// Letters: M rows, K inputs, N outputs, T tokens of a pixel, D width, H heads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::cpu {

// y = x W^T + b with W [N, K] stored as packed [N / panel][K][panel], zero-filled past N; the bias
// likewise padded to a multiple of panel, or null.
struct LinearWeights {
  int K = 0, N = 0;
  const float* packed = nullptr;
  const float* bias = nullptr;
};

struct LinearArgs {
  int M;
  const float* x;  // [M, K]
  ptrdiff_t ld_x;
  LinearWeights w;
  const float* residual;  // [M, N] added before ReLU, or null; may be y itself
  ptrdiff_t ld_residual;
  bool relu;
  float* y;  // [M, N]; nothing past column N is written
  ptrdiff_t ld_y;
};

struct NormArgs {  // y = (x - mean) / sqrt(var + eps) * weight + bias
  int M, D;
  const float* x;  // [M, D]
  ptrdiff_t ld_x;
  const float* weight;  // [D] or null
  const float* bias;    // [D] or null
  float eps;
  bool relu;
  float* y;  // [M, D], may be x
  ptrdiff_t ld_y;
};

struct RmsNormArgs {  // per head: x = x / sqrt(mean(x^2) + eps) * weight, in place
  int M, H, head_dim;
  float* x;  // [M, H * head_dim]
  ptrdiff_t ld_x;
  const float* weight;  // [head_dim]
  float eps;
};

// Softmax attention of one pixel over its T tokens; the scale is folded into q.
struct AttentionArgs {
  int T, H, head_dim;
  const float* qkv;  // [T, 3 * H * head_dim]
  ptrdiff_t ld_qkv;
  const float* log_multiplicity;  // [T] added to the key logits
  float* y;                       // [T, H * head_dim]
  ptrdiff_t ld_y;
  float* scratch;  // attention_scratch(T, head_dim) floats
};

struct StandardizeArgs {  // y = (bands - mean) / (std + 1e-9), float32
  int M, C;
  const void* bands;     // [M, C]
  int element;           // 0 uint16, 1 int16, 2 float32
  const uint8_t* orbit;  // [M] row of mean and std
  const float* mean;     // [2, C]
  const float* std;      // [2, C]
  float* y;              // [M, C]
  ptrdiff_t ld_y;
};

// Softmax over the S steps of one pixel of query . row + bias (+ log multiplicity), then the
// weighted sum of the rows of x that the steps name.
struct PoolArgs {
  int S, D;
  const float* scores;   // [S]
  const int32_t* steps;  // [S] row of x, or null: step s is row s
  const float* x;        // [T, D]
  ptrdiff_t ld_x;
  float* y;        // [D]
  float* scratch;  // [S + 16]
};

// score[m] = query . x[m] + bias (+ extra[m])
struct ScoreArgs {
  int M, D;
  const float* x;  // [M, D]
  ptrdiff_t ld_x;
  const float* query;  // [D]
  float bias;
  const float* extra;  // [M] or null
  float* scores;       // [M]
};

// One gate stage of a recurrent step, for M pixels. `x` holds the input halves (biases included)
// of the step's token, `h` the state.
struct GateArgs {
  int M, D;
  const float* const* x;   // [M] pointers to [3 D]: r, z, candidate
  const float* recurrent;  // [M, *]: custom stage 1 [M, 2 D] r, z; stage 2 [M, D]; torch [M, 3 D]
  ptrdiff_t ld_recurrent;
  float* h;  // [M, D], updated by the last stage
  ptrdiff_t ld_h;
  float* r_h;  // [M, D] custom only: r * h out of stage 1
  float* z;    // [M, D] custom only: z out of stage 1
  ptrdiff_t ld_gate;
};

struct QuantizeArgs {  // scale = max(max(max|x|, absmax_floor) / 127, scale_floor)
  int64_t M;
  int D;
  const float* x;  // [M, D]; a row with a NaN has no data: code 0, scale +inf
  ptrdiff_t ld_x;
  float absmax_floor, scale_floor;
  int8_t* codes;  // [M, D] round-half-even(x / scale), clipped to [-127, 127]
  float* scales;  // [M]
};

struct KernelTable {
  const char* isa;
  int lanes;  // floats per vector
  int panel;  // columns of a packed weight panel
  void (*linear)(const LinearArgs&);
  void (*layer_norm)(const NormArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*attention)(const AttentionArgs&);
  size_t (*attention_scratch)(int T, int head_dim);
  void (*standardize)(const StandardizeArgs&);
  void (*score)(const ScoreArgs&);
  void (*pool)(const PoolArgs&);
  void (*custom_gru_gates)(const GateArgs&);  // r, z -> r_h, z
  void (*custom_gru_state)(const GateArgs&);  // candidate, z -> h
  void (*torch_gru_state)(const GateArgs&);   // all gates -> h
  void (*quantize)(const QuantizeArgs&);
};

}  // namespace tessera::cpu
