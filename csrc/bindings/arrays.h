// numpy arrays in and out of the native code: dtype, shape and contiguity are checked here, once.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <climits>
#include <string>
#include <vector>

#include "core/borrowed.h"
#include "core/check.h"
#include "core/parallel.h"

namespace tessera::bindings {

namespace py = pybind11;

inline std::string describe(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + ") " + std::string(py::str(a.dtype()));
}

inline py::array array_of(const py::handle& object, const std::string& name) {
  if (!py::isinstance<py::array>(object))
    throw InputError(name + ": expected a numpy array, got " +
                     std::string(py::str(py::type::of(object))));
  return py::reinterpret_borrow<py::array>(object);
}

template <class T>
T value_of(const py::handle& object, const std::string& name) {
  try {
    return object.cast<T>();
  } catch (const py::cast_error&) {
    throw InputError(name + ": expected another type, got " +
                     std::string(py::str(py::type::of(object))));
  }
}

// Whether all elements are aligned for their type, whatever the array's flag says.
inline bool is_aligned(const py::array& a) {
  const auto item = static_cast<uintptr_t>(a.itemsize());
  bool ok = reinterpret_cast<uintptr_t>(a.data()) % item == 0;
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    if (a.shape(i) == 0) return true;
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    ok = ok && (a.shape(i) <= 1 || static_cast<uintptr_t>(a.strides(i)) % item == 0);
  return ok;
}

// Sizes that kernels count in int.
inline int size_of(py::ssize_t n, const char* name, int least = 0, int most = INT_MAX) {
  if (n < least || n > most)
    throw InputError(std::string(name) + ": expected a size of " + std::to_string(least) + ".." +
                     std::to_string(most) + ", got " + std::to_string(n));
  return static_cast<int>(n);
}

inline int threads_of(int64_t threads) {
  return size_of(threads, "threads", 1, kMaxThreads);
}

// An aligned C-contiguous array of T with the given shape (-1: any), without a copy.
template <class T>
py::array_t<T> expect(const py::handle& object, const char* name, std::vector<py::ssize_t> shape) {
  const py::array array = array_of(object, name);
  bool ok = py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) &&
            array.ndim() == py::ssize_t(shape.size()) && is_aligned(array);
  for (size_t i = 0; ok && i < shape.size(); ++i)
    ok = shape[i] < 0 ? array.shape(i) <= INT_MAX : array.shape(i) == shape[i];
  if (!ok) {
    std::string wanted = "(";
    for (size_t i = 0; i < shape.size(); ++i)
      wanted += (i ? ", " : "") + (shape[i] < 0 ? "*" : std::to_string(shape[i]));
    throw InputError(std::string(name) + ": expected an aligned C-contiguous array " + wanted +
                     ") " + std::string(py::str(py::dtype::of<T>())) + ", got " + describe(array));
  }
  return py::reinterpret_borrow<py::array_t<T>>(array);
}

// Where the values of an array that is written begin.
template <class T>
T* writeable(py::array_t<T> array, const char* name) {
  if (!array.writeable())
    throw InputError(std::string(name) + ": expected an array to write, got a read-only one");
  return array.mutable_data();
}

// Pointer of an optional array: null for None.
template <class T>
const T* optional(const py::handle& object, const char* name, std::vector<py::ssize_t> shape) {
  return object.is_none() ? nullptr : expect<T>(object, name, std::move(shape)).data();
}

}  // namespace tessera::bindings
