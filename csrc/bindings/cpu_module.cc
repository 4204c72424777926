// The extension module tessera_fast._cpu: packing and the cpu back end.
#include <pybind11/pybind11.h>

#include "bindings/modules.h"
#include "core/check.h"

namespace py = pybind11;

namespace {

void raise_as(const char* type, const char* what) {
  py::set_error(py::module_::import("tessera_fast.errors").attr(type), what);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const tessera::InputError& e) {
      raise_as("InputError", e.what());
    } catch (const tessera::Unavailable& e) {
      raise_as("BackendUnavailable", e.what());
    }
  });
  tessera::bindings::define_pack(m);
  tessera::bindings::define_encoder(m);
  py::module_ ops = m.def_submodule("ops", "Single ops of one instruction set");
  tessera::bindings::define_ops(ops);
}
