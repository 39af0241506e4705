// Matrices of low rank: first all products with a, by the kernels of any product, whose bits do not depend on what else is
// computed; then what b makes of them is added, a block of rows and columns at a time, and gates follow while it is at
// hand. The threads share the work of all segments, and ask the cache for what is read next while they multiply.
#include "low_rank.h"

#include <algorithm>

#include "threads.h"

namespace kvrt {
namespace {

thread_local Buffer scratch;          // of the thread that computes
thread_local Buffer between, packed;  // of the thread that called, read or written by all

constexpr int kMaxRows = 96, kMaxColumns = 96;       // of a unit of work of products with a
constexpr int kMaxTokens = 512;                      // that are packed together, so that they stay in cache
constexpr int kMaxGroup = 16;                        // rows that a kernel packs together
constexpr int kBlockRows = 32, kBlockColumns = 512;  // of the rest, and of few rows more columns
constexpr int kFewRows = 8, kColumnsOfFew = 2048;
constexpr int64_t kSmall = 1 << 15;  // multiply-adds that one thread does sooner than others could be woken

int64_t item(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Asks the cache for memory that will be read soon.
void ask(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (const char* end = line + bytes; line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

// Rows [start, stop), which are of one segment, or of none.
struct Block {
  int start, stop;
  const LowRankSegment* segment;
  const float* z;  // of its first row
};

int ranks_of(const LowRankSegment& segment) {
  int ranks = 0;
  for (const LowRankPart& part : segment.parts) ranks += part.rank;
  return ranks;
}

// ---- products with a ------------------------------------------------------------------------------------------------

// Some rows with some rows of a.
struct Unit {
  LinearArgs product;  // its x and y are of all tokens that are packed together
  const LowRankSegment* segment;
  int m0, m1, n0, n1;
};

// Of the tokens from `first` on, as many as `whole` has: the units of work of those in segments. Packed rows come in groups,
// so a unit may begin with rows that are not its own, of which `z` has what is not asked for.
void split(const LinearArgs& whole, int first, const LinearShape& shape, const std::vector<Block>& products,
           std::vector<Unit>& units) {
  for (const Block& of : products) {
    const int start = std::max(of.start - first, 0), stop = std::min(of.stop - first, whole.m);
    if (start >= stop) continue;
    LinearArgs product = whole;
    product.n = ranks_of(*of.segment);
    product.w = of.segment->a;
    product.y_stride = product.n;
    product.y = const_cast<float*>(of.z) - int64_t(of.start - first) * product.n;
    for (int m0 = start / shape.group * shape.group; m0 < stop; m0 += kMaxRows)
      for (int n0 = 0; n0 < product.n; n0 += kMaxColumns)
        units.push_back({product, of.segment, m0, std::min(stop, m0 + kMaxRows), n0,
                         std::min(product.n, n0 + kMaxColumns)});
  }
}

void multiply(const Kernels& kernels, const Unit& unit, const float* x, int64_t x_stride) {
  const LinearArgs& product = unit.product;
  const int columns = std::max(unit.n1 - unit.n0, kernels.linear_shape(product).columns);
  const size_t bytes = kernels.linear_scratch(product, unit.m1 - unit.m0, columns);
  kernels.linear(product, x, x_stride, unit.m0, unit.m1, unit.n0, unit.n1, scratch.get(bytes));
}

void multiply_all(const Kernels& kernels, const LowRankArgs& a, const std::vector<Block>& products, int threads) {
  const LowRankRows& rows = *a.rows;
  std::vector<Unit> units;
  for (int first = 0; first < a.tokens; first += kMaxTokens) {
    LinearArgs whole{rows.dtype, Gate::none, a.x + first * a.x_stride, nullptr, nullptr, nullptr, nullptr,
                     a.x_stride, 0, 0, std::min(kMaxTokens, a.tokens - first), 0, rows.in};
    const LinearShape shape = kernels.linear_shape(whole);
    units.clear();
    split(whole, first, shape, products, units);
    const float* x = whole.x;
    int64_t x_stride = whole.x_stride;
    if (shape.packed_stride && !units.empty()) {
      const int groups = (whole.m + shape.group - 1) / shape.group, begin = units.front().m0, end = units.back().m1;
      float* to = static_cast<float*>(packed.get(sizeof(float) * groups * shape.group * shape.packed_stride));
      each(threads, (end - begin + kMaxGroup - 1) / kMaxGroup, [&](int64_t i) {
        const int row = begin + int(i) * kMaxGroup;
        kernels.linear_pack(whole, row, std::min(whole.m, row + kMaxGroup), to);
      });
      x = to;
      x_stride = shape.packed_stride;
    }
    each(threads, int64_t(units.size()), [&](int64_t i) {
      const Unit *unit = &units[i], *next = i + 1 < int64_t(units.size()) ? unit + 1 : nullptr;
      if (!next || next->segment != unit->segment) {
        if (next) ask(next->product.w, next->product.n * rows.in * item(rows.dtype));
        for (const LowRankPart& part : unit->segment->parts) ask(part.b, part.rank * part.rows * item(rows.dtype));
      }
      multiply(kernels, units[i], x, x_stride);
    });
  }
}

// ---- what b makes of them -------------------------------------------------------------------------------------------

void add(const Kernels& kernels, const LowRankArgs& a, const Block& block, int n0, int n1) {
  const float* z = block.z;
  for (const LowRankPart& part : block.segment->parts) {
    const int begin = std::max(n0, part.first), end = std::min(n1, part.first + part.rows);
    if (begin < end)
      kernels.expand({a.rows->dtype, z, static_cast<const char*>(part.b) + (begin - part.first) * item(a.rows->dtype),
                      a.y + block.start * a.y_stride + begin, ranks_of(*block.segment), part.rows, a.y_stride,
                      block.stop - block.start, end - begin, part.rank});
    z += part.rank;
  }
}

void finish(const Kernels& kernels, const LowRankArgs& a, const Block& block, int n0, int n1) {
  if (block.segment) add(kernels, a, block, n0, n1);
  if (a.gate == Gate::none) return;
  const int half = a.columns / 2;
  if (block.segment) add(kernels, a, block, half + n0, half + n1);
  const float* x = a.y + block.start * a.y_stride + n0;
  kernels.gate({a.gate, x, x + half, a.out + int64_t(block.start) * half + n0, a.y_stride, half,
                block.stop - block.start, n1 - n0});
}

void cut(const Block& whole, std::vector<Block>& blocks) {
  const int ranks = whole.segment ? ranks_of(*whole.segment) : 0;
  for (int row = whole.start; row < whole.stop; row += kBlockRows)
    blocks.push_back({row, std::min(whole.stop, row + kBlockRows), whole.segment,
                      whole.z + int64_t(row - whole.start) * ranks});
}

}  // namespace

void compute(const Kernels& kernels, const LowRankArgs& a, int threads) {
  int64_t size = 0, work = 0;
  for (const LowRankSegment& s : a.rows->segments) {
    size += int64_t(s.stop - s.start + kMaxGroup) * ranks_of(s);
    for (const LowRankPart& part : s.parts)
      work += int64_t(s.stop - s.start) * part.rank * (a.rows->in + part.rows);
  }
  if (work < kSmall) threads = 1;
  float* z = static_cast<float*>(between.get(sizeof(float) * size));
  std::vector<Block> products, blocks;
  int last = 0;
  for (const LowRankSegment& s : a.rows->segments) {
    const int ranks = ranks_of(s);
    z += kMaxGroup * ranks;  // before its own rows there may be those of a group that it begins in
    products.push_back({s.start, s.stop, &s, z});
    if (a.gate != Gate::none) cut({last, s.start, nullptr, z}, blocks);
    cut(products.back(), blocks);
    z += int64_t(s.stop - s.start) * ranks;
    last = s.stop;
  }
  if (a.gate != Gate::none) cut({last, a.tokens, nullptr, z}, blocks);
  multiply_all(kernels, a, products, threads);
  const int columns = a.gate == Gate::none ? a.columns : a.columns / 2;
  const bool few = a.tokens <= kFewRows * int(products.size());
  const int strip = few ? kColumnsOfFew : kBlockColumns, strips = (columns + strip - 1) / strip;
  each(threads, int64_t(strips) * int64_t(blocks.size()), [&](int64_t i) {
    const int64_t at = i / strips;
    const int n0 = int(i % strips) * strip;
    finish(kernels, a, blocks[at], n0, std::min(columns, n0 + strip));
  });
}

}  // namespace kvrt
