// numpy arrays in and out of the native code: dtype, shape and contiguity are checked here, once.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/check.h"

namespace tessera::bindings {

namespace py = pybind11;

inline std::string describe(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + ") " + std::string(py::str(a.dtype()));
}

// A C-contiguous array of T with the given shape (-1: any), without a copy.
template <class T>
py::array_t<T> expect(const py::handle& object, const char* name, std::vector<py::ssize_t> shape) {
  if (!py::isinstance<py::array>(object))
    throw InputError(std::string(name) + ": expected a numpy array, got " +
                     std::string(py::str(py::type::of(object))));
  auto array = py::reinterpret_borrow<py::array>(object);
  bool ok = py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) &&
            array.ndim() == py::ssize_t(shape.size());
  for (size_t i = 0; ok && i < shape.size(); ++i) ok = shape[i] < 0 || array.shape(i) == shape[i];
  if (!ok) {
    std::string wanted = "(";
    for (size_t i = 0; i < shape.size(); ++i)
      wanted += (i ? ", " : "") + (shape[i] < 0 ? "*" : std::to_string(shape[i]));
    throw InputError(std::string(name) + ": expected a C-contiguous array " + wanted + ") " +
                     std::string(py::str(py::dtype::of<T>())) + ", got " + describe(array));
  }
  return py::reinterpret_borrow<py::array_t<T>>(array);
}

// Pointer of an optional array: null for None.
template <class T>
const T* optional(const py::handle& object, const char* name, std::vector<py::ssize_t> shape) {
  return object.is_none() ? nullptr : expect<T>(object, name, std::move(shape)).data();
}

}  // namespace tessera::bindings
