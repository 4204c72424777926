// The parts of the extension module tessera_fast._cpu, one per file.
#pragma once

#include <pybind11/pybind11.h>

namespace tessera::bindings {

void define_pack(pybind11::module_& m);
void define_encoder(pybind11::module_& m);
void define_ops(pybind11::module_& m);

}  // namespace tessera::bindings
