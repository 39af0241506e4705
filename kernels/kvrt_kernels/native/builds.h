// The kernels that were built.
#pragma once
#include <vector>

#include "api.h"

namespace kvrt {

// Those that run on this machine, the fastest first.
std::vector<const Kernels*> runnable();

}  // namespace kvrt
