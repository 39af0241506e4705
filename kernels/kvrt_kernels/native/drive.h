// A product in two steps, for what needs its rows of x in between. Only for files that are compiled once.
#pragma once
#include "api.h"
#include "threads.h"

namespace kvrt {

// Rows of x as the kernel of a product takes them.
struct PackedRows {
  const float* x;  // of row 0
  int64_t stride;
};

// In memory that the calling thread keeps until its next product, unless the kernel takes rows as they are.
PackedRows pack(const Kernels&, const LinearArgs&, int threads);
// Of rows [begin, end), in `memory`; `begin` is a multiple of the kernel's group.
PackedRows pack(const Kernels&, const LinearArgs&, int begin, int end, Buffer& memory, int threads);

void multiply(const Kernels&, const LinearArgs&, PackedRows x, int threads);

}  // namespace kvrt
