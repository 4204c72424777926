// The emulator's own seam in tessera_fast._cuda_emulated: its setting, and kernels with planted
// errors (tests/backends/cuda/test_cuda_emulator.py). Call from the module's definition.
#pragma once

#include <pybind11/pybind11.h>

namespace tessera::emulator {

void define_emulator(pybind11::module_& m);

}  // namespace tessera::emulator
