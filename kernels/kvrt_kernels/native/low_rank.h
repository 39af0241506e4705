// Products of which some rows have matrices of low rank added. Only for files that are compiled once.
#pragma once
#include <memory>
#include <vector>

#include "api.h"

namespace kvrt {

// z = x a^T, of which each part has `rank` columns, one part's behind the other's.
struct LowRank {
  const void* a;  // [ranks][k]
  int ranks = 0;  // of all parts
  std::vector<LowRankPart> parts;
};

// What rows [start, stop) of x have.
struct LowRankSegment {
  int start, stop;
  std::shared_ptr<const LowRank> added;
};

struct LowRankRows {
  Dtype dtype;
  std::vector<LowRankSegment> segments;  // in ascending order
};

// A product whose W is rows of a matrix from `first` on, and what is added to products with that matrix.
struct AdaptedArgs {
  LinearArgs product;
  std::shared_ptr<const LowRankRows> rows;
  int first;
};

void compute(const Kernels&, const AdaptedArgs&, int threads);

}  // namespace kvrt
