// The ops of the cpu back end as plain functions: one table per instruction set, filled by
// isa_target.cc. Everything is row-major; a leading dimension (ld_*) counts 4-byte words.
// Every op computes a row (a token, a pixel) by itself and in one fixed order, so a pixel's bits do
// not depend on its neighbours, its place in a block or the number of threads.
// Letters: M rows, K inputs, N outputs, T tokens of a pixel, D width, H heads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::cpu {

// What a matrix is stored as where products are taken. A product's sums are float32, or int32 of
// int8; every other op computes in float32.
enum class Element : int { kFloat32, kBfloat16, kInt8 };

// Rows in one of the elements. A 4-byte word holds a group of neighbours of a row: 1 float32,
// 2 bfloat16, or of int8 what KernelTable::int8_group says:
//   4  unsigned bytes, the code + 128 (vpdpbusd takes unsigned times signed)
//   2  int16, the code
// Codes are -127..127, or 0..255 where nothing is negative (Linear::nonnegative): without the +128.
// Past K, up to a whole word, elements of float types are 0.
struct Matrix {
  Element element;
  void* data;
  ptrdiff_t ld;  // words
  // [M] that the stored values are to be multiplied with: of int8, and of float types where a
  // linear without bias and residual reads them; or null
  float* scale;
};

// y = x W^T + b with W [N, K] packed [N / panel][K / group][panel][group], zero-filled past N and
// K; the vectors are likewise padded to a multiple of panel.
struct LinearWeights {
  Element element = Element::kFloat32;
  int K = 0, N = 0;
  const void* packed = nullptr;
  const float* bias = nullptr;      // [N]; null is 0, not with int8
  const float* scale = nullptr;     // int8: [N] of a row of W
  const int32_t* offset = nullptr;  // int8: [N] where the sums start: undoes the codes' + 128
};

struct LinearArgs {
  int M;
  Matrix x;  // [M, K] in the weights' element
  LinearWeights w;
  const float* residual;  // [M, N] added before ReLU, or null; may be y itself
  ptrdiff_t ld_residual;
  bool relu;
  Matrix y;  // [M, N] float32 or bfloat16; nothing past column N is written, but for whole words
};

struct ConvertArgs {  // y = x in another element; int8 with a scale per row, max|x| / 127
  int M, K;
  const float* x;  // [M, K]
  ptrdiff_t ld_x;
  bool nonnegative;  // no x is negative: int8 codes 0..255, scale max x / 255
  Matrix y;
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
  Matrix converted;  // y once more in another element; float32: nothing
};

struct RmsNormArgs {  // per head: x = x / sqrt(mean(x^2) + eps) * weight, in place
  int M, H, head_dim;
  Matrix x;             // [M, *] float32 or bfloat16
  int first;            // column of the first head
  const float* weight;  // [head_dim]
  float eps;
};

// Softmax attention of one pixel over its T tokens; the scale is folded into q. Products are taken
// in the element of qkv.
struct AttentionArgs {
  int T, H, head_dim;
  Matrix qkv;                     // [T, 3 * H * head_dim] float32 or bfloat16
  const float* log_multiplicity;  // [T] added to the key logits
  Matrix y;                       // [T, H * head_dim] float32 or bfloat16
  float* scratch;                 // attention_scratch(T, head_dim) words
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
  int lanes;         // floats per vector
  int panel;         // columns of a packed weight panel
  int int8_group;    // int8 codes in a word: 4 or 2 (Matrix)
  bool native_bf16;  // products of bfloat16 at twice the rate of float32 or better
  void (*linear)(const LinearArgs&);
  void (*convert)(const ConvertArgs&);
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
  // Keeps the product units busy with `steps` rounds of independent products in registers, for the
  // measurement of the peak; returns the multiply-adds done.
  int64_t (*spin)(Element, int64_t steps);
};

}  // namespace tessera::cpu
