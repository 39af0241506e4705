// What the two halves of the native module say to each other.
//
//   bind.cpp -> drive.cpp            plans the work, splits it over threads      (compiled once, baseline)
//               `-> Kernels table    does one piece of work on the calling thread (compiled once per ISA)
//
// The table is plain data and function pointers, so that no inline function or template instance is shared
// between translation units built for different instruction sets: the linker would keep any one of them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvrt {

// Of weights; codes are multiplied with activations that are rounded to codes, too, or with those that are given.
enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2, codes = 3, exact_codes = 4 };
enum class Format : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, i4 = 4 };  // of pages; kvrt.spi.KVLayout defines them
enum class Gate : int { none = 0, silu = 1, gelu_tanh = 2, clamped = 3 };

// Keys are taken in tiles of this many absolute positions, and softmax state is merged between segments. Both are
// part of the definition of the result (they fix the order of additions), not tuning knobs of one call.
constexpr int kTile = 64;
constexpr int kSegment = 512;

// One layer of the paged cache, strides in items, which are elements, or bytes for i8 and i4:
//
//   kv + page * page_stride + head * head_stride       the keys of one head: slot after slot, then their scales, if any
//   ... + v_offset                                     its values; 0: they are the first value_dim elements of its keys
struct Pages {
  Format format;
  void* kv;
  int64_t v_offset, page_stride, head_stride;
  int page_size, kv_heads, head_dim, value_dim;
};

// A ragged batch: sequence s brings the query tokens query_start[s] .. query_start[s + 1], which are the last ones of
// its context_len[s] tokens. Its page ids are page_table[s * table_stride ...].
//
// A token lies in the slot of its position, unless the sequence is a branch of drafts (tree.py): from position trunk[s]
// on, where the ancestors of its query tokens are, in slots[s * slots_stride + position - trunk[s]].
struct Batch {
  const int32_t* page_table;
  int64_t table_stride;
  const int32_t* query_start;
  const int32_t* context_len;
  int sequences;
  const int32_t* trunk;  // nullptr: no branches
  const int32_t* slots;
  int64_t slots_stride;
  int number;  // among the batches of a recorded step
};

struct AttentionArgs {
  Pages pages;
  Batch batch;
  const float* q;  // [tokens][heads][head_dim], rows q_stride apart
  float* out;      // [tokens][heads * value_dim], rows out_stride apart
  int64_t q_stride, out_stride;
  int heads;
  float scale;
  int window;     // 0: none
  float softcap;  // 0: none
  int sinks;      // so many first positions are seen besides the window
  bool causal;    // else a token sees its whole context
  const float* sink_logits;  // [heads] or nullptr: added to the sum of exponentials
};

// What query tokens [begin, end) of a sequence see between them: positions [0, sinks) and [first, last).
struct Seen {
  int64_t sinks, first, last;
};
static inline Seen seen(const AttentionArgs& a, int sequence, int begin, int end) {
  const int64_t context = a.batch.context_len[sequence];
  const int64_t past = context - (a.batch.query_start[sequence + 1] - a.batch.query_start[sequence]);
  const int64_t hidden = a.window ? past + end - a.window : 0;  // positions before the window of the last token
  const int64_t first = a.window ? past + begin + 1 - a.window : 0;
  const int64_t sinks = hidden < a.sinks ? hidden : a.sinks;
  return {sinks > 0 ? sinks : 0, first > 0 ? first : 0, a.causal ? past + end : context};
}

// One piece of attention: the query tokens [q_begin, q_end) of a sequence (counted within its queries) for one kv head
// and its group of query heads; over all keys (partial == nullptr) or over one segment, of the sinks or of the others,
// whose state goes to `partial`: rows * value_dim accumulators, then rows maxima, then rows sums (rows = tokens * heads /
// kv_heads).
struct AttentionTask {
  int32_t sequence, kv_head, q_begin, q_end, segment;
  bool of_sinks;
  float* partial;
};

// What codes in panels are, and how their scales are kept (panels.h).
enum class Codes : int { whole = 0, table = 1, e4m3 = 2 };
enum class Scales : int {
  halves = 0,
  halves_with_offsets = 1,
  halves_of_16 = 2,
  wholes = 3,
  levels = 4,
  levels_with_offsets = 5,
  levels_of_16 = 6,
  levels_of_16_with_offsets = 7,
};
struct Packing {
  int bits;  // of a code
  int zero;  // what is subtracted from each, unless each row has its own
  Scales scales;
  int span;  // elements of a row that are behind one head: a multiple of 32, or a whole row
  Codes codes = Codes::whole;
};

// Bytes of a row, which are a sixteenth of a panel's.
static inline int64_t row_bytes(Packing p, int64_t k) {
  const int heads[] = {2, 4, 4, 5, 2, 4, 2, 4}, blocks[] = {0, 0, 0, 0, 1, 2, 2, 4};
  const int64_t spans = (k + p.span - 1) / p.span, of_32 = (k + 31) / 32;
  return spans * heads[int(p.scales)] + of_32 * (blocks[int(p.scales)] + 4 * p.bits);
}

struct PackedMatrix {
  const void* panels = nullptr;
  int rows = 0;
  Packing packing = {};
};
constexpr int kMostMatrices = 4;  // that are multiplied together

// What matrices of low rank add to the products of rows [start, stop) of x: z b, each part to those with rows of W of its
// own.
struct LowRankPart {
  const void* b;          // [rank][rows]
  int first, rows, rank;  // it is added to products with rows [first, first + rows) of W
};
struct LowRankAdded {
  int start, stop;
  const float* z;  // [stop - start][ranks], one part's columns behind the other's
  int ranks, count;
  const LowRankPart* parts;
};

// y = x W^T (+ what is added) (+ bias) (+ residual); gated: W and bias are [gate; up], 2 n rows, and of z = x W^T (+ what is
// added) (+ bias), likewise [gate; up], y = act(gate) * up.
struct LinearArgs {
  Dtype dtype;
  Gate gate;
  const float* x;
  const void* w;          // [n or 2 n][k], row-major
  const float* bias;      // [n or 2 n] or nullptr
  const float* residual;  // [m][n] or nullptr
  float* y;               // [m][n]
  int64_t x_stride, residual_stride, y_stride;
  int m, n, k;
  PackedMatrix packed[kMostMatrices] = {};  // for codes, instead of `w`: the matrices whose rows are W's, in order
  float limit = 0, alpha = 1;               // of Gate::clamped; kvrt.spi.Experts
  const LowRankAdded* added = nullptr;      // of ascending rows of x
  int added_count = 0;
  Dtype added_dtype = Dtype::f32;           // of all their parts
};

// A row of W that is codes: which it is of which matrix.
struct PackedRow {
  const PackedMatrix* matrix;
  int row;
};
static inline PackedRow packed_row(const LinearArgs& a, int row) {
  const PackedMatrix* matrix = a.packed;
  for (; row >= matrix->rows && matrix < a.packed + kMostMatrices - 1; matrix++) row -= matrix->rows;
  return {matrix, row};
}
static inline const char* panel_of(PackedRow at, int64_t k) {
  return static_cast<const char*>(at.matrix->panels) + at.row / 16 * 16 * row_bytes(at.matrix->packing, k);
}

// Where a row of W is, and how many bytes it has; for codes, where its panel is.
struct Row {
  const char* at;
  int64_t bytes;
};
static inline Row row_of(const LinearArgs& a, int row) {
  if (a.dtype == Dtype::codes || a.dtype == Dtype::exact_codes) {
    const PackedRow packed = packed_row(a, row);
    return {panel_of(packed, a.k), row_bytes(packed.matrix->packing, a.k)};
  }
  const int64_t bytes = int64_t(a.k) * (a.dtype == Dtype::f32 ? 4 : 2);
  return {static_cast<const char*>(a.w) + row * bytes, bytes};
}

// y = norm(x) * weight (+ bias), row by row; added: y += scale * that, or scale * x without a norm. y may be x.
enum class Norm : int { none = 0, rms = 1, layer = 2 };
struct NormArgs {
  Norm norm;
  bool added;
  const float* x;
  const float* weight;  // [size]; nullptr without a norm
  const float* bias;    // [size] or nullptr; of the layer kind alone
  float* y;
  int64_t x_stride, y_stride;
  int rows, size;
  float eps, scale;
};

// x = f(x), number by number.
enum class Map : int { gelu = 0, gelu_tanh = 1, relu2 = 2, scaled = 3 };
struct MapArgs {
  Map map;
  float* x;
  const float* factors;  // [rows], of `scaled`
  int64_t stride;
  int rows, size;
};

struct AppendArgs {
  Pages pages;
  Batch batch;
  float* q;        // normed and rotated in place; nullptr: only keys and values are stored
  float* k;        // normed and rotated in place
  const float* v;
  int64_t q_stride, k_stride, v_stride;
  int heads;
  const float* q_norm;  // [head_dim] or nullptr
  const float* k_norm;
  float eps;
  const float* cos;  // [tokens][rot_dim / 2] or nullptr: no rotation
  const float* sin;
  int rot_dim;
};

// y = x, of whose heads the first rot_dim elements are rotated; x and y may be the same.
struct RotateArgs {
  const float* x;
  float* y;
  const float* cos;  // [tokens][rot_dim / 2] or nullptr: no rotation
  const float* sin;
  int64_t x_stride, x_head, y_stride, y_head;
  int rows, heads, size, rot_dim;
};

// A product for each head, of which `first` is that of the first: the weights of the others are behind its own, their
// x and y so far from it.
struct HeadsArgs {
  LinearArgs first;
  int64_t x_head, y_head;
  int heads;
};

// How the kernel for a product divides its work.
struct LinearShape {
  int columns;            // so many outputs are computed at a time
  int group;              // so many rows of x are packed together: blocks of rows begin at multiples of it
  int rows;               // so many rows of x at most are best computed together, so that they stay in cache
  int64_t packed_stride;  // 32-bit words of a row of the packed activations; 0: `x` can be used as it is
};

// All functions of the table work on the calling thread, in `scratch` (64-byte aligned, as large as the matching
// *_scratch function says), and write only the outputs of the piece they are given.
struct Kernels {
  const char* isa;
  size_t (*attention_scratch)(const AttentionArgs&, int rows);
  void (*attention)(const AttentionArgs&, const AttentionTask&, void* scratch);
  // Folds `count` partials, in ascending order, into the output of the task's rows.
  void (*attention_merge)(const AttentionArgs&, const AttentionTask&, const float* const* partials, int count,
                          void* scratch);

  LinearShape (*linear_shape)(const LinearArgs&);
  void (*linear_pack)(const LinearArgs&, int m0, int m1, float* packed);
  size_t (*linear_scratch)(const LinearArgs&, int rows, int columns);
  void (*linear)(const LinearArgs&, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1, void* scratch);

  void (*norm)(const NormArgs&, int row0, int row1);
  void (*map)(const MapArgs&, int row0, int row1);
  void (*append)(const AppendArgs&, int sequence, int token0, int token1);  // tokens of the batch
  void (*rotate)(const RotateArgs&, int row0, int row1);

  float (*read)(const float* data, size_t count);       // touches every cache line once
  // Multiplies in registers, as products with weights of that type do; returns the operations done.
  double (*product_rounds)(Dtype, int64_t rounds);
};

// Work drivers; `threads` counts the calling thread.
void compute(const Kernels&, const AttentionArgs&, int threads);
void compute(const Kernels&, const LinearArgs&, int threads);
void compute(const Kernels&, const NormArgs&, int threads);
void compute(const Kernels&, const MapArgs&, int threads);
void compute(const Kernels&, const AppendArgs&, int threads);
void compute(const Kernels&, const RotateArgs&, int threads);
void compute(const Kernels&, const HeadsArgs&, int threads);
double read_bandwidth(const Kernels&, const void* data, size_t bytes, int threads);  // bytes per second
double product_peak(const Kernels&, Dtype, int threads);                             // operations per second

}  // namespace kvrt
