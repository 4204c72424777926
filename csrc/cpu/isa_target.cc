// One instruction set's copy of every op. CMake compiles this file once per ISA with
// TESSERA_ISA (a name), TESSERA_LANES and that ISA's flags; the only symbol that leaves it is
// table_<name>(), so no code of a wide ISA can be picked up by the rest of the library.
#include <cstddef>
#include <cstdint>

#include "cpu/kernel_table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TESSERA_CONCAT_(a, b) a##b
#define TESSERA_CONCAT(a, b) TESSERA_CONCAT_(a, b)
#define TESSERA_STRING_(a) #a
#define TESSERA_STRING(a) TESSERA_STRING_(a)

namespace tessera::cpu {
namespace {

constexpr int kLanes = TESSERA_LANES;

// clang-format off: each file uses those before it
#include "cpu/simd-inl.h"
#include "cpu/transpose-inl.h"
#include "cpu/dot-inl.h"
#include "cpu/linear-inl.h"
#if defined(__AMX_TILE__)
#include "cpu/linear-amx-inl.h"
#endif
#include "cpu/dispatch-inl.h"
#include "cpu/convert-inl.h"
#include "cpu/norm-inl.h"
#include "cpu/embed-inl.h"
#include "cpu/attention-inl.h"
#include "cpu/pool-inl.h"
#include "cpu/gru-inl.h"
#include "cpu/quantize-inl.h"
// clang-format on

constexpr KernelTable kTable = {TESSERA_STRING(TESSERA_ISA),
                                kLanes,
                                kPanel,
                                Int8::kGroup,
                                kNativeBf16,
                                linear,
                                convert,
                                layer_norm,
                                rms_norm,
                                attention,
                                attention_scratch,
                                standardize,
                                score,
                                pool,
                                custom_gru_gates,
                                custom_gru_state,
                                torch_gru_state,
                                quantize,
                                spin};

}  // namespace

const KernelTable& TESSERA_CONCAT(table_, TESSERA_ISA)() {
  return kTable;
}

}  // namespace tessera::cpu
