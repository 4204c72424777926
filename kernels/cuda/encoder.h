// Host side of the fused encoders (encoder.cu): device pointers and sizes in, launches on a stream.
//
// What is fixed offline: `weights`, the B fragments of every product in the order in which a block
// consumes them, in chunks of equal size, and `parameters`, the float32 rest
// (python/tessera_fast/backends/cuda/fused.py writes both; encoder.cuh has the order).
#pragma once

#include <cstdint>

namespace tessera::cuda {

enum class BandKind : int { kInt16 = 0, kUint16 = 1, kFloat32 = 2, kStandardized = 3 };

// Whole pixels of a block, `schedule` [1 + 2 P] int32: the number of blocks, then first and last
// pixel (exclusive) of each. Every pixel is in one block, also one without tokens.
struct ScheduleArguments {
  const int32_t* offsets;  // [P + 1]
  int pixels, tokens;      // P; tokens a block holds, at least those of the longest pixel
  int32_t* schedule;
};

struct LayerArguments {
  const void* x;                 // [N, D] 16-bit elements
  void* y;                       // [N, D]; may be x
  const uint16_t* multiplicity;  // [N]
  const int32_t* offsets;
  const int32_t* schedule;
  const void* weights;
  const float* parameters;
};

struct NetworkArguments {
  const void* bands;             // [N, C]
  const uint8_t* orbit;          // [N] row of the statistics
  const uint16_t* doy;           // [N] row of the table
  const uint16_t* multiplicity;  // [N]
  const int32_t* offsets;        // [P + 1]
  const int32_t* schedule;
  const float* table;  // [367, D]
  const void* weights;
  const float* parameters;
  const float* constant;  // [D] of a pixel without tokens, or null: its row is left as it is
  void* pooled;           // [P, stride] 16-bit elements, or float32; D of them written
  int64_t stride;         // in values
  int channels;           // C <= 16
  int layers;
  int band_kind;     // BandKind
  int float_output;  // 1: pooled is float32
};

// The shapes that are compiled.
struct FusedShape {
  int width, heads, hidden;  // D, H, F
  int tokens;                // that a block holds
  bool network;              // the whole network, or one layer
};

// False where no kernel of that shape exists. `float16`: the element, else bfloat16. `blocks`: of
// the grid, at least the schedule's.
bool encode_network(const FusedShape& shape, bool float16, int blocks, uintptr_t stream,
                    const NetworkArguments& arguments);
bool encode_layer(const FusedShape& shape, bool float16, int blocks, uintptr_t stream,
                  const LayerArguments& arguments);
void schedule_pixels(const ScheduleArguments& arguments, uintptr_t stream);

// Bytes of dynamic shared memory, 0 where no kernel of that shape exists.
int shared_bytes(const FusedShape& shape);

}  // namespace tessera::cuda
