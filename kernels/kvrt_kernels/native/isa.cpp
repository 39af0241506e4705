// The kernels for one instruction set. Built several times, each with its own flags, and with
// KVRT_ISA, the name of the namespace. System headers come first, so that none of their inline functions is built inside a namespace or, being
// shared by name with other translation units, with this one's instructions: kernels use builtins instead.
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

#include "simd.h"

#include "norm.h"

#include "append.h"
#include "attention.h"
#include "linear.h"
#include "probe.h"

extern const Kernels kernels;
const Kernels kernels = {
    KVRT_ISA_NAME,       attention_scratch,    attention, attention_merge, kOut, linear_packed_stride,
    linear_pack,         linear_scratch,       linear,    rms_norm,        append, read,
    fma_rounds,
};

}  // namespace KVRT_ISA
}  // namespace kvrt
