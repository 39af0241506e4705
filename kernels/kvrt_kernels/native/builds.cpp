// Which kernels were built, and which of them this machine runs.
#include "builds.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace kvrt {

// The address of a build is null where the compiler knows no such instructions: see CMakeLists.txt.
#define KVRT_BUILD(name) namespace name { extern const Kernels kernels __attribute__((weak)); }
#if defined(__x86_64__)
KVRT_BUILD(x86_64_v4_amx)
KVRT_BUILD(x86_64_v4_bf16)
KVRT_BUILD(x86_64_v4_vnni)
KVRT_BUILD(x86_64_v4)
KVRT_BUILD(x86_64_v3_vnni)
KVRT_BUILD(x86_64_v3)
KVRT_BUILD(x86_64)
#elif defined(__aarch64__)
KVRT_BUILD(neon_bf16)
KVRT_BUILD(neon_dotprod)
KVRT_BUILD(neon)
#endif

#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};
Registers extended_features(unsigned subleaf) {
  Registers r;
  __get_cpuid_count(7, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// Whether the processor has AMX for bf16 and int8, and the system lets this process use it: it must be asked, because
// what tiles hold makes a thread's state 8 KiB larger.
bool amx() {
  constexpr unsigned kBf16 = 1 << 22, kTile = 1 << 24, kInt8 = 1 << 25;
  if (~extended_features(0).d & (kBf16 | kTile | kInt8)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace
#endif

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;
  const auto add = [&](const Kernels* build, bool runs) {
    if (build && runs) found.push_back(build);
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v4 = __builtin_cpu_supports("x86-64-v4"), v3 = __builtin_cpu_supports("x86-64-v3");
  const bool vnni = v4 && __builtin_cpu_supports("avx512vnni"), bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  // Intel's processors take twice as long for a product of pairs as for the two of float32.
  const bool pairs_are_fast = __builtin_cpu_is("amd");
  constexpr unsigned kAvxVnni = 1 << 4;
  add(&x86_64_v4_amx::kernels, bf16 && amx());
  add(&x86_64_v4_bf16::kernels, bf16 && pairs_are_fast);
  add(&x86_64_v4_vnni::kernels, vnni);
  add(&x86_64_v4::kernels, v4);
  add(&x86_64_v4_bf16::kernels, bf16 && !pairs_are_fast);
  add(&x86_64_v3_vnni::kernels, v3 && extended_features(1).a & kAvxVnni);
  add(&x86_64_v3::kernels, v3);
  add(&x86_64::kernels, true);
#elif defined(__aarch64__)
  constexpr unsigned long kDotprod = 1 << 20, kI8mm = 1 << 13, kBf16 = 1 << 14;
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  add(&neon_bf16::kernels, first & kDotprod && second & kI8mm && second & kBf16);
  add(&neon_dotprod::kernels, first & kDotprod);
  add(&neon::kernels, true);
#endif
  return found;
}

}  // namespace kvrt
