// What matrices of low rank add to products: for each element a sum over the columns of z, in their order, that begins with
// the product.

constexpr int kExpanded = 64;  // columns of z that are taken at a time

struct ExpandArgs {
  const float* z;  // [rows][rank]
  const void* b;   // [rank][size], rows b_stride apart
  float* y;        // [rows][size]
  int64_t z_stride, b_stride, y_stride;
  int rows, size, rank;
};

// R rows, V vectors of their columns from `i` on; factors are [rank][R].
template <int R, int V, class T>
KVRT_INLINE void expand_step(const ExpandArgs& a, const T* b, const float* factors, float* y, int i) {
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[r][v] = load(y + r * a.y_stride + i + v * L);
  for (int j = 0; j < a.rank; j++) {
    vf weight[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) weight[v] = load(b + j * a.b_stride + i + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[r][v] = fma(splat<vf>(factors[j * R + r]), weight[v], sum[r][v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(y + r * a.y_stride + i + v * L, sum[r][v]);
}

// All columns of R rows; factors are [rank][R].
template <int R, class T>
static void expand_columns(const ExpandArgs& a, const T* b, const float* factors, float* y) {
  constexpr int V = kBytes == 64 || R < 8 ? 2 : 1;  // as many sums as there are registers for
  int i = 0;
  for (; i + V * L <= a.size; i += V * L) expand_step<R, V>(a, b, factors, y, i);
  for (; i + L <= a.size; i += L) expand_step<R, 1>(a, b, factors, y, i);
  for (int r = 0; r < R && i < a.size; r++) {  // the same instructions for what is left
    float* end = y + r * a.y_stride + i;
    vf sum = load_part(end, a.size - i);
    for (int j = 0; j < a.rank; j++) {
      T part[L] = {};
      __builtin_memcpy(part, b + j * a.b_stride + i, sizeof(T) * (a.size - i));
      sum = fma(splat<vf>(factors[j * R + r]), load(part), sum);
    }
    float last[L];
    store(last, sum);
    __builtin_memcpy(end, last, sizeof(float) * (a.size - i));
  }
}

template <int R, class T> static void expand_rows(const ExpandArgs& a, int row) {
  const T* b = static_cast<const T*>(a.b);
  const float* z = a.z + row * a.z_stride;
  ExpandArgs some = a;
  for (int j0 = 0; j0 < a.rank; j0 += kExpanded) {
    some.rank = a.rank - j0 < kExpanded ? a.rank - j0 : kExpanded;
    float factors[kExpanded * R];
    for (int j = 0; j < some.rank; j++)
      for (int r = 0; r < R; r++) factors[j * R + r] = z[r * a.z_stride + j0 + j];
    expand_columns<R>(some, b + j0 * a.b_stride, factors, a.y + row * a.y_stride);
  }
}

template <class T> static void expand_as(const ExpandArgs& a) {
  int row = 0;
  for (; row + 8 <= a.rows; row += 8) expand_rows<8, T>(a, row);
  for (; row + 2 <= a.rows; row += 2) expand_rows<2, T>(a, row);
  for (; row < a.rows; row++) expand_rows<1, T>(a, row);
}

static void expand(Dtype dtype, const ExpandArgs& a) {
  switch (dtype) {
    case Dtype::bf16: return expand_as<bf16>(a);
    case Dtype::f16: return expand_as<f16>(a);
    default: return expand_as<float>(a);
  }
}

// ---- in a product ---------------------------------------------------------------------------------------------------

// Rows of x and of W that a block of products has in common with a part; `b` and `z` begin there.
struct Common {
  int m0, m1, n0, n1;
  const char* b;
  const float* z;
  const LowRankAdded& of;
  const LowRankPart& part;
};

// f(Common) for all that is added to the products of rows [m0, m1) with rows [n0, n1) of W.
template <class F> KVRT_INLINE void low_rank_parts(const LinearArgs& a, int m0, int m1, int n0, int n1, const F& f) {
  const int item = a.added_dtype == Dtype::f32 ? 4 : 2;
  for (const LowRankAdded* of = a.added; of < a.added + a.added_count && of->start < m1; of++) {
    const int start = of->start > m0 ? of->start : m0, stop = of->stop < m1 ? of->stop : m1;
    if (start >= stop) continue;
    const float* z = of->z + int64_t(start - of->start) * of->ranks;
    for (const LowRankPart* part = of->parts; part < of->parts + of->count; z += part->rank, part++) {
      const int begin = part->first > n0 ? part->first : n0, last = part->first + part->rows, end = last < n1 ? last : n1;
      const char* b = static_cast<const char*>(part->b) + int64_t(begin - part->first) * item;
      if (begin < end) f(Common{start, stop, begin, end, b, z, *of, *part});
    }
  }
}

// c[m1 - m0][n1 - n0] += what is added to those.
static void add_low_rank(const LinearArgs& a, int m0, int m1, int n0, int n1, float* c, int64_t c_stride) {
  low_rank_parts(a, m0, m1, n0, n1, [&](const Common& it) {
    float* y = c + (it.m0 - m0) * c_stride + (it.n0 - n0);
    expand(a.added_dtype, {it.z, it.b, y, it.of.ranks, it.part.rows, c_stride, it.m1 - it.m0, it.n1 - it.n0, it.part.rank});
  });
}

// Asks for what that will read, which is in as many places as there are ranks.
static void ask_for_low_rank(const LinearArgs& a, int m0, int m1, int n0, int n1) {
  const int item = a.added_dtype == Dtype::f32 ? 4 : 2;
  low_rank_parts(a, m0, m1, n0, n1, [&](const Common& it) {
    for (int j = 0; j < it.part.rank; j++) {
      const char *line = it.b + int64_t(j) * it.part.rows * item, *end = line + (it.n1 - it.n0) * item;
      for (; line < end; line += 64) prefetch(line);
      prefetch(end - 1);
    }
  });
}
