// What a kernel file includes first: CUDA under nvcc, the emulator of tests/cuda_emulator
// elsewhere, so that one source serves both. Kernels use bit patterns (uint16_t) instead of the
// element types of cuda_bf16.h and cuda_fp16.h, TESSERA_DYNAMIC_SHARED instead of extern
// __shared__, and launch.h instead of <<<>>>.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

// The launch's dynamic shared memory as bytes, 16-byte aligned.
#define TESSERA_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "cuda_emulator/emulator.h"
#endif
