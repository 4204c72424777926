// Launching a kernel, on a GPU or on the emulator. CUDA's error codes become exceptions.
//
// A launch goes to the calling thread's current device, which must be the stream's: Python sets it
// with `torch.cuda.stream` or `torch.cuda.device`. Launches are asynchronous, so an error of a
// kernel itself shows at a later call or synchronisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace tessera::cuda {

#if defined(__CUDACC__)
inline void check(cudaError_t code, const char* what, const char* kernel) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + what + " " + kernel + ": " +
                             cudaGetErrorString(code));
}
#endif

// name: the kernel's, for errors. stream: a cudaStream_t as a number, which is what Python has and
// needs no header of CUDA.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, uintptr_t stream, const Arguments&... arguments) {
#if defined(__CUDACC__)
  if (shared_bytes > (48 << 10))  // more must be asked for
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory of a block of", name);
  kernel<<<grid, block, shared_bytes, reinterpret_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "launch of", name);
#else
  static_cast<void>(stream);
  emulator::run(name, kernel, grid, block, shared_bytes, static_cast<Parameters>(arguments)...);
#endif
}

}  // namespace tessera::cuda
