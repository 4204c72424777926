#include "cpu/isa.h"

#include "core/check.h"

namespace tessera::cpu {

const KernelTable& table_portable();
#if defined(__x86_64__)
const KernelTable& table_avx2();
const KernelTable& table_avx512();
#if defined(TESSERA_TEST_ISAS)
const KernelTable& table_emulated();
#endif
#endif

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list.push_back({"avx512", table_avx512, avx512, "AVX-512 F, BW, DQ and VL", true});
    list.push_back({"avx2", table_avx2, avx2, "AVX2 and FMA", true});
#if defined(TESSERA_TEST_ISAS)
    list.push_back({"emulated", table_emulated, avx2, "AVX2 and FMA", false});
#endif
#endif
    list.push_back({"portable", table_portable, true, "", true});
    return list;
  }();
  return all;
}

const KernelTable& select_isa(const std::string& name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (name.empty() ? isa.runs && isa.automatic : name == isa.name) {
      if (isa.runs) return isa.table();
      throw Unavailable("instruction set " + name + ": this machine lacks " + isa.needs);
    }
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw Unavailable("instruction set: expected one of " + known + ", got '" + name + "'");
}

}  // namespace tessera::cpu
