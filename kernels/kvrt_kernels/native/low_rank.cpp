// Products with matrices of low rank added: first z = x a^T of the rows that have any, by the kernels of any product, whose
// bits do not depend on what else is computed; then the product itself, whose kernels add what b makes of z to each block
// while it is at hand (expand.h). Both take the same packed rows of x where they are of one type.
#include "low_rank.h"

#include <algorithm>

#include "drive.h"

namespace kvrt {
namespace {

thread_local Buffer scratch;          // of the thread that computes
thread_local Buffer between, packed;  // of the thread that called, read or written by all

constexpr int kMaxRows = 96, kMaxColumns = 96;  // of a unit of work
constexpr int64_t kSmall = 1 << 15;             // multiply-adds that one thread does sooner than others could be woken

// Rows [start, stop) times one a. Rows that are packed together are multiplied together, so there may be some that have
// nothing, or something else, added.
struct Narrow {
  const void* a;
  int ranks, start, stop;
  float* z = nullptr;  // [stop - start][ranks]
};

// Some of its rows with some rows of a.
struct Unit {
  const Narrow* of;
  int m0, m1, n0, n1;
};

// All products with a, and which of them each segment has.
void collect(const LowRankRows& rows, int group, std::vector<Narrow>& narrow, std::vector<int>& of_segment) {
  for (const LowRankSegment& segment : rows.segments) {
    const int start = segment.start / group * group;
    const LowRank& added = *segment.added;
    const auto shares = [&](const Narrow& other) { return other.a == added.a && other.stop > start; };
    const auto found = std::find_if(narrow.begin(), narrow.end(), shares);
    of_segment.push_back(int(found - narrow.begin()));
    if (found == narrow.end())
      narrow.push_back({added.a, added.ranks, start, segment.stop});
    else
      found->stop = segment.stop;
  }
}

void multiply_narrow(const Kernels& kernels, const LinearArgs& whole, const std::vector<Narrow>& narrow, PackedRows x,
                     int threads) {
  std::vector<Unit> units;
  for (const Narrow& of : narrow)
    for (int n0 = 0; n0 < of.ranks; n0 += kMaxColumns)
      for (int m0 = of.start; m0 < of.stop; m0 += kMaxRows)
        units.push_back({&of, m0, std::min(of.stop, m0 + kMaxRows), n0, std::min(of.ranks, n0 + kMaxColumns)});
  const auto product = [&](const Narrow& of) {
    LinearArgs one = whole;
    one.n = of.ranks;
    one.w = of.a;
    one.y_stride = of.ranks;
    one.y = of.z - int64_t(of.start) * of.ranks;
    return one;
  };
  const auto ask = [&](const Unit& unit) {  // for its rows of a
    const Row row = row_of(product(*unit.of), unit.n0);
    for (const char *line = row.at, *end = line + (unit.n1 - unit.n0) * row.bytes; line < end; line += 64)
      __builtin_prefetch(line, 0, 2);
  };
  runs(threads, int64_t(units.size()), [&](int64_t begin, int64_t end) {
    ask(units[begin]);
    for (int64_t i = begin; i < end; i++) {
      if (i + 1 < end && units[i + 1].of != units[i].of) ask(units[i + 1]);
      const auto [of, m0, m1, n0, n1] = units[i];
      const LinearArgs one = product(*of);
      const size_t bytes = kernels.linear_scratch(one, m1 - m0, std::max(n1 - n0, kernels.linear_shape(one).columns));
      kernels.linear(one, x.x, x.stride, m0, m1, n0, n1, scratch.get(bytes));
    }
  });
}

}  // namespace

void compute(const Kernels& kernels, const AdaptedArgs& a, int threads) {
  const std::vector<LowRankSegment>& segments = a.rows->segments;
  LinearArgs product = a.product;
  if (product.m == 0 || product.n == 0) return;
  threads = std::max(1, threads);
  const LinearArgs whole{a.rows->dtype, Gate::none, product.x, nullptr, nullptr, nullptr, nullptr,
                         product.x_stride, 0, 0, product.m, 0, product.k};
  const int group = kernels.linear_shape(whole).group;

  std::vector<Narrow> narrow;
  std::vector<int> of_segment;
  collect(*a.rows, group, narrow, of_segment);
  int64_t size = 0, work = 0;
  for (const Narrow& of : narrow) {
    size += int64_t(of.stop - of.start) * of.ranks;
    work += int64_t(of.stop - of.start) * of.ranks * product.k;
  }
  float* z = static_cast<float*>(between.get(sizeof(float) * size));
  for (Narrow& of : narrow) {
    of.z = z;
    z += int64_t(of.stop - of.start) * of.ranks;
  }
  std::vector<LowRankAdded> added;
  std::vector<LowRankPart> parts;
  for (const LowRankSegment& segment : segments)
    for (LowRankPart part : segment.added->parts) {
      part.first -= a.first;
      parts.push_back(part);
    }
  const LowRankPart* own = parts.data();
  for (size_t i = 0; i < segments.size(); i++) {
    const Narrow& of = narrow[of_segment[i]];
    const int start = segments[i].start, count = int(segments[i].added->parts.size());
    added.push_back({start, segments[i].stop, of.z + int64_t(start - of.start) * of.ranks, of.ranks, count, own});
    own += count;
  }

  const PackedRows x = pack(kernels, product, threads);
  PackedRows same = x;
  if (product.dtype != whole.dtype)
    same = pack(kernels, whole, narrow.front().start, segments.back().stop, packed, threads);
  multiply_narrow(kernels, whole, narrow, same, work < kSmall ? 1 : threads);
  product.added = added.data();
  product.added_count = int(added.size());
  product.added_dtype = whole.dtype;
  multiply(kernels, product, x, threads);
}

}  // namespace kvrt
