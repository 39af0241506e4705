// Matrices of low rank: first all products with a, by the kernels of any product, whose bits do not depend on what else is
// computed; then what b makes of them is added, a block of rows and columns at a time, and gates follow while it is at
// hand. The threads share the work of all segments.
#include "low_rank.h"

#include <algorithm>

#include "threads.h"

namespace kvrt {
namespace {

thread_local Buffer scratch, packed;  // of the thread that computes
thread_local Buffer between;          // of the thread that called, read or written by all

constexpr int kMaxRows = 96, kMaxColumns = 96;    // of a unit of work of products with a
constexpr int kBlockRows = 32, kBlockColumns = 512;  // of the rest
constexpr int64_t kSmall = 1 << 15;  // multiply-adds that one thread does sooner than others could be woken

// A block of a product's rows with some of its columns.
struct Unit {
  LinearArgs product;
  int n0, n1;
};

void split(const Kernels& kernels, LinearArgs whole, std::vector<Unit>& units) {
  const int blocks = (whole.m + kMaxRows - 1) / kMaxRows, rows = (whole.m + blocks - 1) / blocks;
  for (int m0 = 0; m0 < whole.m; m0 += rows) {
    LinearArgs block = whole;
    block.m = std::min(rows, whole.m - m0);
    block.x += m0 * whole.x_stride;
    block.y += m0 * whole.y_stride;
    const int least = kernels.linear_shape(block).columns, step = std::max(1, kMaxColumns / least) * least;
    for (int n0 = 0; n0 < whole.n; n0 += step) units.push_back({block, n0, std::min(whole.n, n0 + step)});
  }
}

void multiply(const Kernels& kernels, const Unit& unit) {
  const auto& [product, n0, n1] = unit;
  const LinearShape shape = kernels.linear_shape(product);
  const float* x = product.x;
  int64_t x_stride = product.x_stride;
  if (shape.packed_stride) {
    const int64_t groups = (product.m + shape.group - 1) / shape.group;
    float* to = static_cast<float*>(packed.get(sizeof(float) * groups * shape.group * shape.packed_stride));
    kernels.linear_pack(product, 0, product.m, to);
    x = to;
    x_stride = shape.packed_stride;
  }
  const size_t bytes = kernels.linear_scratch(product, product.m, std::max(n1 - n0, shape.columns));
  kernels.linear(product, x, x_stride, 0, product.m, n0, n1, scratch.get(bytes));
}

// Rows [start, stop), which are of one segment, or of none.
struct Block {
  int start, stop;
  const LowRankSegment* segment;
  const float* z;  // of its first row
  int ranks;
};

void add(const Kernels& kernels, const LowRankArgs& a, const Block& block, int n0, int n1) {
  const float* z = block.z;
  const int64_t item = a.rows->dtype == Dtype::f32 ? 4 : 2;
  for (const LowRankPart& part : block.segment->parts) {
    const int begin = std::max(n0, part.first), end = std::min(n1, part.first + part.rows);
    if (begin < end)
      kernels.expand({a.rows->dtype, z, static_cast<const char*>(part.b) + (begin - part.first) * item,
                      a.y + block.start * a.y_stride + begin, block.ranks, part.rows, a.y_stride,
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

void blocks_of(int start, int stop, const LowRankSegment* segment, const float* z, int ranks,
               std::vector<Block>& blocks) {
  for (int row = start; row < stop; row += kBlockRows)
    blocks.push_back({row, std::min(stop, row + kBlockRows), segment, z + int64_t(row - start) * ranks, ranks});
}

}  // namespace

void compute(const Kernels& kernels, const LowRankArgs& a, int threads) {
  int64_t size = 0, work = 0;
  for (const LowRankSegment& s : a.rows->segments)
    for (const LowRankPart& part : s.parts) {
      const int64_t each = int64_t(s.stop - s.start) * part.rank;
      size += each;
      work += each * (a.rows->in + part.rows);
    }
  if (work < kSmall) threads = 1;
  float* z = static_cast<float*>(between.get(sizeof(float) * size));
  std::vector<Unit> units;
  std::vector<Block> blocks;
  int last = 0;
  for (const LowRankSegment& s : a.rows->segments) {
    const int rows = s.stop - s.start;
    int ranks = 0;
    for (const LowRankPart& part : s.parts) ranks += part.rank;
    const LinearArgs product{a.rows->dtype, Gate::none, a.x + s.start * a.x_stride, s.a, nullptr, nullptr, z,
                             a.x_stride, 0, ranks, rows, ranks, a.rows->in};
    split(kernels, product, units);
    if (a.gate != Gate::none) blocks_of(last, s.start, nullptr, z, 0, blocks);
    blocks_of(s.start, s.stop, &s, z, ranks, blocks);
    last = s.stop;
    z += int64_t(rows) * ranks;
  }
  if (a.gate != Gate::none) blocks_of(last, a.tokens, nullptr, z, 0, blocks);
  each(threads, int64_t(units.size()), [&](int64_t i) { multiply(kernels, units[i]); });
  const int columns = a.gate == Gate::none ? a.columns : a.columns / 2;
  const int64_t strips = (columns + kBlockColumns - 1) / kBlockColumns;
  each(threads, strips * int64_t(blocks.size()), [&](int64_t i) {
    const int n0 = int(i % strips) * kBlockColumns;
    finish(kernels, a, blocks[i / strips], n0, std::min(columns, n0 + kBlockColumns));
  });
}

}  // namespace kvrt
