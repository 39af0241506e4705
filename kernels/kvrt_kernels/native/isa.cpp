// The kernels for one instruction set. Built several times, each with its own flags and its own KVRT_ISA, the name of
// the namespace. System headers come first, outside of it. Kernels call no inline function of theirs: such a function
// has one name in all translation units, and the linker might keep the copy with instructions this machine lacks.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "api.h"

namespace kvrt {
namespace KVRT_ISA {

// clang-format off: each needs the ones above it
#include "simd.h"
#include "norm.h"
#include "codes.h"
#include "append.h"
#if defined(__AMX_BF16__)
#include "amx.h"
#endif
#include "attention_tiles.h"
#include "attention_codes.h"
#include "attention_rows.h"
#if defined(__AMX_BF16__)
#include "attention_amx.h"
#endif
#include "attention.h"
#include "gate.h"
#include "expand.h"
#include "linear_lanes.h"
#if defined(__AMX_BF16__)
#include "linear_amx.h"
#include "linear_amx_many.h"
#endif
#include "panels.h"
#include "dot4.h"
#include "linear_packed.h"
#if defined(__AMX_INT8__)
#include "linear_amx_codes.h"
#endif
#include "linear_exact.h"
#if defined(__AMX_BF16__)
#include "linear_amx_fp8.h"
#endif
#include "linear.h"
#include "map.h"
#include "probe.h"
// clang-format on

extern const Kernels kernels;
const Kernels kernels = {
    KVRT_ISA_NAME, attention_scratch, attention, attention_merge, linear_shape, linear_pack,
    linear_scratch, linear, norm, map, append, rotate, read, product_rounds,
};

}  // namespace KVRT_ISA
}  // namespace kvrt
