// Splits each operator over threads. Which thread computes what, and when, changes no result (attention.h, linear.h),
// so work is handed out dynamically.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "api.h"
#include "drive.h"

namespace kvrt {
namespace {

thread_local Buffer scratch;  // of the thread that computes
thread_local Buffer own;      // likewise, beside it
thread_local Buffer shared;   // of the thread that called, read or written by all

}  // namespace

// ---- attention ------------------------------------------------------------------------------------------------------

namespace {

// Query tokens of one sequence and one kv head that are computed together: at most this many rows.
constexpr int kRowsPerUnit = 126;

struct Unit {
  AttentionTask task;  // over all segments
  int sinks;           // segments of sinks, which come first
  int first_segment, segments;  // of the others, and how many there are in all
  int64_t cost;
  int partials = -1;  // index of its first partial, if it is split
};

struct Plan {
  std::vector<Unit> units;
  std::vector<std::pair<int32_t, int32_t>> tasks;  // unit, which of its segments (-1: all)
  std::vector<size_t> partials;                    // offsets into the shared buffer, in floats
};

// Work of a unit, in arbitrary units: every key is read and transposed once, and met by every row.
int64_t unit_cost(int64_t keys, int rows) { return keys * (8 + rows); }

void make_plan(const AttentionArgs& a, int threads, Plan& plan, size_t& partial_floats) {
  const int group = a.heads / a.pages.kv_heads;
  const int step = std::max(1, kRowsPerUnit / group);
  int64_t total = 0;
  for (int s = 0; s < a.batch.sequences; s++) {
    const int tokens = a.batch.query_start[s + 1] - a.batch.query_start[s];
    for (int q = 0; q < tokens; q += step) {
      const int q_end = std::min(tokens, q + step);
      const Seen all = seen(a, s, q, q_end);
      const int first_segment = int(all.first / kSegment), sinks = int((all.sinks + kSegment - 1) / kSegment);
      const int segments = sinks + int((all.last - 1) / kSegment) - first_segment + 1;
      const int64_t cost = unit_cost(all.sinks + all.last - all.first, (q_end - q) * group);
      for (int h = 0; h < a.pages.kv_heads; h++) {
        plan.units.push_back({{s, h, q, q_end, -1, false, nullptr}, sinks, first_segment, segments, cost});
        total += cost;
      }
    }
  }
  // A unit that costs more than a quarter of a thread's share is split at its segments.
  const int64_t limit = total / (4 * threads);
  partial_floats = 0;
  for (size_t u = 0; u < plan.units.size(); u++) {
    Unit& unit = plan.units[u];
    if (threads == 1 || unit.segments == 1 || unit.cost <= limit) {
      plan.tasks.push_back({int32_t(u), -1});
      continue;
    }
    const size_t rows = size_t(unit.task.q_end - unit.task.q_begin) * group;
    unit.partials = int(plan.partials.size());
    for (int s = 0; s < unit.segments; s++) {
      plan.tasks.push_back({int32_t(u), s});
      plan.partials.push_back(partial_floats);
      partial_floats += (rows * (a.pages.value_dim + 2) + 15) / 16 * 16;
    }
  }
  const auto cost = [&](const std::pair<int32_t, int32_t>& t) {
    const Unit& unit = plan.units[t.first];
    return t.second < 0 ? unit.cost : unit.cost / unit.segments;
  };
  const auto dearer = [&](const auto& x, const auto& y) { return cost(x) > cost(y); };
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(), dearer);
}

}  // namespace

void compute(const Kernels& kernels, const AttentionArgs& a, int threads) {
  threads = std::max(1, threads);
  Plan plan;
  size_t partial_floats;
  make_plan(a, threads, plan, partial_floats);
  const int group = a.heads / a.pages.kv_heads;
  float* partials = partial_floats ? static_cast<float*>(shared.get(partial_floats * sizeof(float))) : nullptr;
  std::vector<std::atomic<int>> left(partial_floats ? plan.units.size() : 0);
  for (size_t u = 0; u < left.size(); u++) left[u].store(plan.units[u].segments, std::memory_order_relaxed);

  each(threads, int64_t(plan.tasks.size()), [&](int64_t i) {
    const auto [u, segment] = plan.tasks[i];
    const Unit& unit = plan.units[u];
    // By this unit's own rows: few rows are laid out in another way, and can need more memory than some more do.
    void* memory = scratch.get(kernels.attention_scratch(a, (unit.task.q_end - unit.task.q_begin) * group));
    AttentionTask task = unit.task;
    if (segment < 0) return kernels.attention(a, task, memory);
    task.of_sinks = segment < unit.sinks;
    task.segment = task.of_sinks ? segment : unit.first_segment + segment - unit.sinks;
    task.partial = partials + plan.partials[unit.partials + segment];
    kernels.attention(a, task, memory);
    // Whoever finishes a unit's last segment merges them, in ascending order.
    if (left[u].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::vector<const float*> parts;
      for (int s = 0; s < unit.segments; s++) parts.push_back(partials + plan.partials[unit.partials + s]);
      kernels.attention_merge(a, unit.task, parts.data(), unit.segments, memory);
    }
  });
}

// ---- linear ---------------------------------------------------------------------------------------------------------

PackedRows pack(const Kernels& kernels, const LinearArgs& a, int begin, int end, Buffer& memory, int threads) {
  const LinearShape shape = kernels.linear_shape(a);
  const int64_t stride = shape.packed_stride, groups = (end - begin + shape.group - 1) / shape.group;
  if (!stride) return {a.x, a.x_stride};
  constexpr int kRows = 16;  // starting the other threads for fewer would take longer
  float* packed = static_cast<float*>(memory.get(sizeof(float) * groups * shape.group * stride)) - begin * stride;
  each(end - begin <= kRows ? 1 : threads, (end - begin + kRows - 1) / kRows, [&](int64_t i) {
    const int row = begin + int(i) * kRows;
    kernels.linear_pack(a, row, std::min(end, row + kRows), packed);
  });
  return {packed, stride};
}

PackedRows pack(const Kernels& kernels, const LinearArgs& a, int threads) {
  return pack(kernels, a, 0, a.m, shared, threads);
}

void multiply(const Kernels& kernels, const LinearArgs& a, PackedRows x, int threads) {
  // A unit of work is a block of rows, which stay in the second-level cache while W passes by, times some columns: the
  // fewest if there is one block of few rows, as runs of units are computed as one; else up to 96, as kernels for many rows
  // begin slowly, but so few that each thread has some units.
  constexpr int64_t kFewRows = 96, kMaxColumns = 96, kMaxColumnsOfFew = 256, kUnits = 8, kUnitsOfOneBlock = 3;
  const LinearShape shape = kernels.linear_shape(a);
  const int64_t least = shape.columns, groups = (a.m + shape.group - 1) / shape.group;
  const int64_t fair = int64_t(a.m) * a.n / (least * kUnits * threads);
  const int64_t most_rows = std::min<int64_t>(shape.rows, std::max(kFewRows, fair));
  const int64_t blocks = (a.m + most_rows - 1) / most_rows, rows = (groups + blocks - 1) / blocks * shape.group;
  const int64_t most = rows <= 16 ? kMaxColumnsOfFew : kMaxColumns;
  const int64_t share = a.n * blocks / ((blocks == 1 ? kUnitsOfOneBlock : kUnits) * threads);
  int64_t columns = blocks == 1 && rows <= kFewRows ? least : std::min(most, share);
  columns = std::max<int64_t>(1, columns / least) * least;

  const size_t bytes = kernels.linear_scratch(a, int(rows), int(std::max(most, columns)));
  const auto compute = [&](int64_t block, int64_t n0, int64_t n1) {
    const int64_t m0 = block * rows, m1 = std::min<int64_t>(a.m, m0 + rows);
    kernels.linear(a, x.x, x.stride, int(m0), int(m1), int(n0), int(std::min<int64_t>(a.n, n1)), scratch.get(bytes));
  };
  runs(threads, blocks * ((a.n + columns - 1) / columns), [&](int64_t begin, int64_t end) {
    if (blocks > 1) {
      for (int64_t i = begin; i < end; i++) compute(i % blocks, i / blocks * columns, (i / blocks + 1) * columns);
    } else {
      const int64_t until = std::min<int64_t>(a.n, end * columns);
      for (int64_t n = begin * columns; n < until; n += most) compute(0, n, std::min(n + most, until));
    }
  });
}

void compute(const Kernels& kernels, const LinearArgs& a, int threads) {
  if (a.m == 0 || a.n == 0) return;
  threads = std::max(1, threads);
  multiply(kernels, a, pack(kernels, a, threads), threads);
}

// Products of heads have few columns, and rows of their own, which whoever computes a piece packs for itself.
void compute(const Kernels& kernels, const HeadsArgs& a, int threads) {
  const LinearArgs& first = a.first;
  if (first.m == 0 || first.n == 0) return;
  constexpr int64_t kMaxColumns = 96, kMaxColumnsOfFew = 256;
  const LinearShape shape = kernels.linear_shape(first);
  const int64_t blocks = (first.m + shape.rows - 1) / shape.rows, rows = (first.m + blocks - 1) / blocks;
  const int64_t most = rows <= 16 ? kMaxColumnsOfFew : kMaxColumns;
  const int64_t columns = std::max<int64_t>(1, most / shape.columns) * shape.columns;
  const int64_t pieces = (first.n + columns - 1) / columns;
  const int64_t groups = (rows + shape.group - 1) / shape.group;
  const size_t bytes = kernels.linear_scratch(first, int(rows), int(columns));
  each(std::max(1, threads), a.heads * blocks * pieces, [&](int64_t i) {
    const int64_t head = i / pieces / blocks, m0 = i / pieces % blocks * rows, n0 = i % pieces * columns;
    const int count = int(std::min(rows, first.m - m0));
    LinearArgs one = first;  // with all its rows, by which a kernel is chosen
    one.x += head * a.x_head + m0 * first.x_stride;
    one.y += head * a.y_head + m0 * first.y_stride;
    one.w = row_of(first, int(head * first.n)).at;
    const float* x = one.x;
    int64_t x_stride = one.x_stride;
    if (shape.packed_stride) {
      float* packed = static_cast<float*>(own.get(sizeof(float) * groups * shape.group * shape.packed_stride));
      kernels.linear_pack(one, 0, count, packed);
      x = packed;
      x_stride = shape.packed_stride;
    }
    kernels.linear(one, x, x_stride, 0, count, int(n0), int(std::min<int64_t>(first.n, n0 + columns)), scratch.get(bytes));
  });
}

// ---- per token ------------------------------------------------------------------------------------------------------

namespace {
constexpr int64_t kSmall = 1 << 14;  // elements that one thread handles sooner than others could be woken

template <class Args> void by_rows(void (*kernel)(const Args&, int, int), const Args& a, int threads) {
  if (a.size == 0) return;
  const int step = int(std::max<int64_t>(1, kSmall / a.size));
  each(threads, (a.rows + step - 1) / step,
       [&](int64_t i) { kernel(a, int(i * step), int(std::min<int64_t>(a.rows, (i + 1) * step))); });
}

}  // namespace

void compute(const Kernels& kernels, const NormArgs& a, int threads) { by_rows(kernels.norm, a, threads); }

void compute(const Kernels& kernels, const MapArgs& a, int threads) { by_rows(kernels.map, a, threads); }

void compute(const Kernels& kernels, const RotateArgs& a, int threads) {
  const int step = int(std::max<int64_t>(1, kSmall / (int64_t(a.heads) * a.size)));
  each(threads, (a.rows + step - 1) / step,
       [&](int64_t i) { kernels.rotate(a, int(i * step), int(std::min<int64_t>(a.rows, (i + 1) * step))); });
}

void compute(const Kernels& kernels, const AppendArgs& a, int threads) {
  const int32_t* start = a.batch.query_start;
  const int tokens = start[a.batch.sequences];
  const int64_t per_token = int64_t(a.heads + 2 * a.pages.kv_heads) * a.pages.head_dim;
  const int step = int(std::max<int64_t>(1, kSmall / per_token));
  each(threads, (tokens + step - 1) / step, [&](int64_t i) {
    int token = int(i * step);
    const int end = std::min(tokens, token + step);
    int sequence = int(std::upper_bound(start, start + a.batch.sequences + 1, token) - start) - 1;
    while (token < end) {
      const int stop = std::min(end, start[sequence + 1]);
      if (token < stop) kernels.append(a, sequence, token, stop);
      token = std::max(token, stop);
      sequence++;
    }
  });
}

// ---- the machine's limits -------------------------------------------------------------------------------------------

namespace {
template <class Body> double seconds(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
}  // namespace

double read_bandwidth(const Kernels& kernels, const void* data, size_t bytes, int threads) {
  constexpr size_t kPiece = 1 << 18;  // floats
  const size_t count = bytes / sizeof(float), pieces = (count + kPiece - 1) / kPiece;
  const float* base = static_cast<const float*>(data);
  std::atomic<float> keep{0};
  const double time = seconds([&] {
    runs(threads, int64_t(pieces), [&](int64_t begin, int64_t end) {
      const size_t from = begin * kPiece, until = std::min(count, end * kPiece);
      keep.store(kernels.read(base + from, until - from), std::memory_order_relaxed);
    });
  });
  return double(bytes) / time;
}

double product_peak(const Kernels& kernels, Dtype dtype, int threads) {
  std::vector<double> done(threads);
  const double time = seconds([&] {
    each(threads, threads, [&](int64_t i) { done[i] = kernels.product_rounds(dtype, 4'000'000); });
  });
  double total = 0;
  for (double d : done) total += d;
  return total / time;
}

}  // namespace kvrt
