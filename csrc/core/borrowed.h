// Reading memory that belongs to the caller, who may write it at the same time from another thread.
// Every value is read once, by a relaxed atomic load, so that what was checked is what is used: a
// plain load could be repeated by the compiler. docs/design/0013-borrowed-memory.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tessera {

// One T; `from` is aligned for it.
template <class T>
T borrowed(const void* from) {
  using Same = std::conditional_t<
      sizeof(T) == 1, uint8_t,
      std::conditional_t<sizeof(T) == 2, uint16_t,
                         std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
  static_assert(sizeof(Same) == sizeof(T));
  using Bits [[gnu::may_alias]] = Same;
  const Same bits = __atomic_load_n(static_cast<const Bits*>(from), __ATOMIC_RELAXED);
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `count` values of T, each by itself.
template <class T>
void copy_borrowed(const void* from, size_t count, T* to) {
  for (size_t i = 0; i < count; ++i)
    to[i] = borrowed<T>(static_cast<const char*>(from) + i * sizeof(T));
}

template <class T>
bool aligned_for(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(T) == 0;
}

}  // namespace tessera
