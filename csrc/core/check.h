// Errors of the native code. C++ throws, never aborts; the bindings turn InputError into
// tessera_fast.errors.InputError and Unavailable into tessera_fast.errors.BackendUnavailable.
#pragma once

#include <stdexcept>
#include <string>

namespace tessera {

struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool ok, const char* message) {
  if (!ok) throw InputError(message);
}

}  // namespace tessera
