// Matrices of low rank that are added to some rows' products. Only for files that are compiled once.
#pragma once
#include <memory>
#include <vector>

#include "api.h"

namespace kvrt {

struct LowRankPart {
  const void* b;          // [rank][rows]
  int first, rows, rank;  // it is added to columns [first, first + rows) of y
};

// Rows [start, stop) of x: z = x a^T, of which each part has `rank` columns, one part's behind the other's.
struct LowRankSegment {
  int start, stop;
  const void* a;  // [sum of ranks][in]
  std::vector<LowRankPart> parts;
};

struct LowRankRows {
  Dtype dtype;
  int in;
  std::vector<LowRankSegment> segments;
};

// y += b (a x), each row's own; y is not x. Gated: then out = act(gate) * up, of all rows, which are [gate; up].
struct LowRankArgs {
  std::shared_ptr<const LowRankRows> rows;
  const float* x;
  float* y;  // [tokens][columns]
  int64_t x_stride, y_stride;
  int tokens, columns;
  Gate gate;
  float* out;  // [tokens][columns / 2]
};

void compute(const Kernels&, const LowRankArgs&, int threads);

}  // namespace kvrt
