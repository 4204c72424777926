#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

#include "core/check.h"

namespace tessera::cpu {

const KernelTable& table_portable();
#if defined(__aarch64__)
const KernelTable& table_neonbf16();
#endif
#if defined(__x86_64__)
const KernelTable& table_avx2();
const KernelTable& table_avxvnni();
const KernelTable& table_avx512();
const KernelTable& table_avx512vnni();
const KernelTable& table_avx512bf16();
const KernelTable& table_amx();
#if defined(TESSERA_TEST_ISAS)
const KernelTable& table_emulated();
#endif
#endif

#if defined(__x86_64__)
namespace {

// Bit 4 of eax of leaf 7, subleaf 1, which __builtin_cpu_supports of gcc 12 does not know.
bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

// Tiles of bfloat16 and int8 (leaf 7, edx), for which Linux wants to be asked.
bool may_use_amx() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, tile, int8
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return (edx & amx) == amx && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#elif defined(__aarch64__)
namespace {

bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kInt8 = 1ul << 13, kBfloat16 = 1ul << 14;  // HWCAP2_I8MM, HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & (kInt8 | kBfloat16)) == (kInt8 | kBfloat16);
#elif defined(__APPLE__)
  int bf16 = 0, int8 = 0;
  size_t size = sizeof bf16;
  const bool known = sysctlbyname("hw.optional.arm.FEAT_BF16", &bf16, &size, nullptr, 0) == 0 &&
                     sysctlbyname("hw.optional.arm.FEAT_I8MM", &int8, &size, nullptr, 0) == 0;
  return known && bf16 && int8;
#else
  return false;
#endif
}

}  // namespace
#endif

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    list.push_back({"amx", table_amx, bf16 && may_use_amx(), "AMX with bf16 and int8", true});
    list.push_back({"avx512bf16", table_avx512bf16, bf16, "AVX-512 BF16 and VNNI", true});
    list.push_back({"avx512vnni", table_avx512vnni, vnni, "AVX-512 VNNI", true});
    list.push_back({"avx512", table_avx512, avx512, "AVX-512 F, BW, DQ and VL", true});
    list.push_back({"avxvnni", table_avxvnni, avx2 && has_avx_vnni(), "AVX-VNNI", true});
    list.push_back({"avx2", table_avx2, avx2, "AVX2 and FMA", true});
#if defined(TESSERA_TEST_ISAS)
    list.push_back({"emulated", table_emulated, avx2, "AVX2 and FMA", false});
#endif
#endif
#if defined(__aarch64__)
    list.push_back({"neonbf16", table_neonbf16, has_neon_bf16(), "FEAT_BF16 and FEAT_I8MM", true});
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
