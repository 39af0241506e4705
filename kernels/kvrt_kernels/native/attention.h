// Paged attention. One operator for decode, prefill and everything between.
//
// A task has rows = (query tokens) x (query heads of one kv head). Keys are visited in tiles of 64 absolute positions,
// tiles in segments of 512 (FlashAttention's online softmax, Dao 2023, arXiv 2307.08691, with FlashDecoding's split
// kept always):
//
//   position   0        64       128            512      576
//              |  tile  |  tile  |  ...         |  tile  |             row r:  m  = max of the scores
//              |          segment 0             |  segment 1 ...               l  = sum of 2^(score - m)
//                                                                             acc = sum of 2^(score - m) v
//     scores    S[row][token]  = sum over d, in L / 4 classes, each ascending; then a tree over the classes
//     values    acc[row][d]   += sum over token, ascending
//     segments  O             <- O merged with (m, l, acc), ascending
//
// The classes of d are the 128-bit blocks of a vector, so that a few rows meet four keys after transposing 4 x 4 within
// blocks, half the shuffles of a full transpose, while many rows meet fully transposed keys class by class.
//
// Nothing here depends on which rows share a task: each row's additions happen in an order fixed by positions alone,
// a position outside the row's causal range or window has weight exactly 0, and a tile without any position for a row
// leaves that row's state as it is. So a token's result has the same bits alone, in a batch, in any chunk of a prompt,
// and for any split over threads. Softmax works in powers of two, log2(e) being folded into the scale of q.

constexpr float kMasked = -1e30f;

// Widest register tile: kRows rows by kCols vectors, plus operands, fills 32 or 16 vector registers.
// Up to kFewRows rows meet the keys as they are read, with kSums accumulators at a time.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6, kCols = 4, kSums = 16;
#else
constexpr int kRows = 6, kCols = 2, kSums = 8;
#endif
constexpr int kFewRows = 8;
constexpr int kTileVectors = kTile / L;

constexpr int kClasses = L / 4;
constexpr int kGroups = kTile / 4;

// ---- the order of d -------------------------------------------------------------------------------------------------
//
// Keys are read kWide elements at a time: one vector of floats, or of bf16 pairs taken as 32-bit words (split later,
// even element first). Block c of such vectors holds class c. Queries, and transposed keys, are stored class by class:
//
//   d            0 . . . . . . . | kWide . . . . . . . |           (4 classes)
//   class        0 0 1 1 2 2 3 3 |  0  0 1 1 2 2 3 3   |
//   stored as    [class 0: d = 0 1, kWide, kWide + 1, ...] [class 1: 2 3, ...] [class 2] [class 3]

template <class T> constexpr int kWide = std::is_same<T, bf16>::value ? 2 * L : L;

// Place of element d0 + i of a block of `wide` elements that begins at d0; runs of 4 or 8 elements stay together.
KVRT_INLINE int place(int dim, int d0, int i, int wide) {
  const int run = wide / kClasses;
  return i / run * (dim / kClasses) + d0 / kClasses + i % run;
}

// packed[dim] = q * scale, stored class by class.
template <class T> static void pack_query(const float* q, float scale, float* packed, int dim) {
  for (int d0 = 0; d0 < dim;) {
    const int wide = d0 + kWide<T> <= dim ? kWide<T> : L;
    for (int i = 0; i < wide; i += 4) store4(packed + place(dim, d0, i, wide), load_as<v4f>(q + d0 + i) * scale);
    d0 += wide;
  }
}

// to[dim / kClasses][L] = q * scale: the classes side by side, every element four times.
template <class T> static void spread_query(const float* q, float scale, float* to, int dim) {
  int d = 0;
  if constexpr (kWide<T> != L)
    for (; d + 2 * L <= dim; d += 2 * L)
      spread<2>(load(q + d) * scale, load(q + d + L) * scale, to + 4 * d, std::make_integer_sequence<int, 8>{});
  for (; d < dim; d += L)
    spread<1>(load(q + d) * scale, vf{}, to + 4 * d, std::make_integer_sequence<int, 4>{});
}

// ---- scores of many rows --------------------------------------------------------------------------------------------

// kt[place of d][kTile], columns [0, L) = keys k[0 .. L).
template <class T> static void transpose_keys(const T* const* k, float* kt, int dim) {
  vf w[L];
  int d = 0;
  if constexpr (kWide<T> != L)
    for (; d + kWide<T> <= dim; d += kWide<T>) {
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) w[i] = load_as<vf>(k[i] + d);
      transpose(w);
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) {
        store(kt + place(dim, d, 2 * i, 2 * L) * kTile, low_half(w[i]));
        store(kt + place(dim, d, 2 * i + 1, 2 * L) * kTile, high_half(w[i]));
      }
    }
  for (; d < dim; d += L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) w[i] = load(k[i] + d);
    transpose(w);
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) store(kt + place(dim, d, i, L) * kTile, w[i]);
  }
}

// sum[R][kCols] = q[R][...] . kt[...], over one class.
template <int R>
KVRT_INLINE void scores_of_class(const float* q, const float* kt, int dim, vf (*sum)[kCols]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < kCols; j++) sum[r][j] = vf{};
  for (int d = 0; d < dim / kClasses; d++) {
    vf k[kCols];
#pragma GCC unroll 8
    for (int j = 0; j < kCols; j++) k[j] = load(kt + d * kTile + j * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vf x = splat<vf>(q[r * dim + d]);
#pragma GCC unroll 8
      for (int j = 0; j < kCols; j++) sum[r][j] = fma(k[j], x, sum[r][j]);
    }
  }
}

// s[R][kCols * L] = q[R][dim] . kt[dim][kTile]
template <int R>
static void scores(const float* q, const float* kt, float* s, int dim) {
  const int step = dim / kClasses;
  vf odd[R][kCols], sum[R][kCols];
  for (int c = 0; c < kClasses; c++) {
    scores_of_class<R>(q + c * step, kt + c * step * kTile, dim, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int j = 0; j < kCols; j++) {  // s = (class 0 + class 1) + (class 2 + class 3)
        float* y = s + r * kTile + j * L;
        if (c == 0)
          store(y, sum[r][j]);
        else if (c == 2)
          odd[r][j] = sum[r][j];
        else
          store(y, load(y) + (c == 1 ? sum[r][j] : odd[r][j] + sum[r][j]));
      }
  }
}

// ---- scores of a few rows -------------------------------------------------------------------------------------------

// part[R][...][L], groups [0, G) = q . k[0 .. 4 * G), q spread: lane 4 c + t of a group is class c of its key t.
// Meanwhile asks for the values of these tokens.
template <class T, int R, int G>
static void scores_of_few(const float* q, const T* const* k, int64_t to_values, float* part, int dim) {
  const int row_stride = dim / kClasses * L;
  vf sum[R][G];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) sum[r][g] = vf{};
  const auto add = [&](vf x, int g, const float* at) KVRT_INLINED {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r][g] = fma(x, load(at + r * row_stride), sum[r][g]);
  };
  const auto ask = [&](const T* key, int d) KVRT_INLINED {
    if (d * sizeof(T) % 64 == 0) prefetch(key + d + to_values);
  };
  int d = 0;
  if constexpr (kWide<T> != L)
    for (; d + kWide<T> <= dim; d += kWide<T>)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        vf w[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          w[i] = load_as<vf>(k[4 * g + i] + d);
          ask(k[4 * g + i], d);
        }
        transpose4(w);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          add(low_half(w[i]), g, q + d * 4 + 2 * i * L);
          add(high_half(w[i]), g, q + d * 4 + (2 * i + 1) * L);
        }
      }
  for (; d < dim; d += L)
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) {
      vf w[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        w[i] = load(k[4 * g + i] + d);
        ask(k[4 * g + i], d);
      }
      transpose4(w);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) add(w[i], g, q + d * 4 + i * L);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) store(part + (r * kGroups + g) * L, sum[r][g]);
}

// s[kTile] = part[kGroups][L], classes added up.
KVRT_INLINE void join_classes(const float* part, float* s) {
  for (int g = 0; g < kGroups; g += kClasses) {
    vf x[kClasses];
    for (int i = 0; i < kClasses; i++) x[i] = load(part + (g + i) * L);
    store(s + 4 * g, sum_blocks(x));
  }
}

// ---- values ---------------------------------------------------------------------------------------------------------

// Accumulators of bf16 values hold each 2 L elements as the even ones, then the odd ones: splitting words takes no
// shuffle. write_out() puts them in order.
template <class T, int C> KVRT_INLINE void load_values(const T* v, vf* x) {
  if constexpr (kWide<T> != L && C % 2 == 0) {
#pragma GCC unroll 8
    for (int j = 0; j < C; j += 2) {
      const vf w = load_as<vf>(v + j * L);
      x[j] = low_half(w);
      x[j + 1] = high_half(w);
    }
  } else {
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) x[j] = load(v + j * L);
  }
}

template <class T> static void widen_values(const T* v, float* to, int dim) {
  vf x[2];
  int d = 0;
  for (; d + 2 * L <= dim; d += 2 * L) {
    load_values<T, 2>(v + d, x);
    store(to + d, x[0]);
    store(to + d + L, x[1]);
  }
  for (; d < dim; d += L) store(to + d, load(v + d));
}

// acc[R][C * L] = acc * alpha[R] + p[R][t0 .. t1) . v[t0 .. t1)[C * L]; meanwhile asks for the same columns of `next`.
template <class T, int R, int C>
static void values(const float* p, const float* alpha, const T* const* v, const T* const* next, int64_t column, int t0,
                   int t1, float* acc, int dim) {
  vf c[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) c[r][j] = load(acc + r * dim + j * L) * alpha[r];
  for (int t = t0; t < t1; t++) {
    vf x[C];
    load_values<T, C>(v[t] + column, x);
    if (next) {
      const char* line = reinterpret_cast<const char*>(next[t] + column);
#pragma GCC unroll 8
      for (int b = 0; b < int(C * L * sizeof(T)); b += 64) prefetch(line + b);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vf w = splat<vf>(p[r * kTile + t]);
#pragma GCC unroll 8
      for (int j = 0; j < C; j++) c[r][j] = fma(x[j], w, c[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(acc + r * dim + j * L, c[r][j]);
}

// ---- one tile -------------------------------------------------------------------------------------------------------

// The state of a task's rows; arrays of scalars are padded to a multiple of 4 rows.
struct Rows {
  int count, dim;
  float* q;                     // scaled; spread for a few rows, packed for many
  float *m, *l, *alpha, *acc;   // of the current segment; acc [rows][dim]
  float *M, *Lsum, *out;        // of all segments before it
  int *begin, *end;             // positions of the current tile that a row sees, within [0, kTile]
};

// Scores to weights for four rows: s becomes 2^(s - m), zero outside the row's range; m, l and alpha follow.
static void softmax4(const Rows& x, int r0, float* s, float softcap) {
  vf peak[4];
  for (int r = 0; r < 4; r++) {
    float* row = s + r * kTile;
    const int begin = x.begin[r0 + r], end = x.end[r0 + r];
    vf top = splat<vf>(kMasked);
    vi at;
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) at[i] = i;
#pragma GCC unroll 16
    for (int j = 0; j < kTileVectors; j++, at += L) {
      vf y = load(row + j * L);
      if (softcap != 0.f) y = (softcap * kLog2e) * tanh(y);
      if (begin != 0 || end != kTile) y = (at >= begin) & (at < end) ? y : splat<vf>(kMasked);
      store(row + j * L, y);
      top = max(top, y);
    }
    peak[r] = top;
  }
  const v4f before = load_as<v4f>(x.m + r0);
  const v4f m = max(before, reduce4<Max>(peak[0], peak[1], peak[2], peak[3]));
  const v4f alpha = exp2(before - m);
  vf total[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    float* row = s + r * kTile;
    const int begin = x.begin[r0 + r], end = x.end[r0 + r];
    const vf top = splat<vf>(m[r]);
    vf part = vf{};
    vi at;
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) at[i] = i;
#pragma GCC unroll 16
    for (int j = 0; j < kTileVectors; j++, at += L) {
      vf w = exp2(load(row + j * L) - top);
      if (begin != 0 || end != kTile) w = (at >= begin) & (at < end) ? w : vf{};
      store(row + j * L, w);
      part += w;
    }
    total[r] = part;
  }
  store4(x.m + r0, m);
  store4(x.alpha + r0, alpha);
  store4(x.l + r0, fma(load_as<v4f>(x.l + r0), alpha, reduce4<Add>(total[0], total[1], total[2], total[3])));
}

// Calls f<R>(row) over all rows in strips of at most kRows.
template <class F> KVRT_INLINE void strips(int rows, const F& f) {
  int r = 0;
  for (; rows - r >= kRows; r += kRows) f(std::integral_constant<int, kRows>{}, r);
  if (rows - r >= 4) f(std::integral_constant<int, 4>{}, r), r += 4;
  if (rows - r >= 2) f(std::integral_constant<int, 2>{}, r), r += 2;
  if (rows - r >= 1) f(std::integral_constant<int, 1>{}, r);
}

// Calls f<rows>() for 1 <= rows <= N.
template <int N, class F> KVRT_INLINE void few_rows(int rows, const F& f) {
  if (rows == N) return f(std::integral_constant<int, N>{});
  if constexpr (N > 1) few_rows<N - 1>(rows, f);
}

template <class T>
static void add_values(const Rows& x, const float* s, const T* const* v, const T* const* next) {
  int c = 0;
  const auto columns = [&](auto width) {
    constexpr int C = decltype(width)::value;
    for (; x.dim - c >= C * L; c += C * L)
      strips(x.count, [&](auto height, int r) {
        constexpr int R = decltype(height)::value;
        int t0 = kTile, t1 = 0;
        for (int i = r; i < r + R; i++)
          if (x.begin[i] < x.end[i]) {
            t0 = x.begin[i] < t0 ? x.begin[i] : t0;
            t1 = x.end[i] > t1 ? x.end[i] : t1;
          }
        if (t0 < t1)
          values<T, R, C>(s + r * kTile, x.alpha + r, v, r == 0 ? next : nullptr, c, t0, t1, x.acc + r * x.dim + c,
                          x.dim);
      });
  };
  columns(std::integral_constant<int, kCols>{});
  if constexpr (kCols * L > 16) {
    columns(std::integral_constant<int, 2>{});
    columns(std::integral_constant<int, 1>{});
  }
}

// ---- one task -------------------------------------------------------------------------------------------------------

struct AttentionScratch {
  Rows rows;
  float *kt, *vt, *s;
  float* part;  // for a few rows
  const void **keys, **next_keys, **value_rows;

  AttentionScratch(const AttentionArgs& a, int count, Arena& arena) {
    const int dim = a.pages.head_dim, padded = (count + 3) / 4 * 4;
    rows.count = count;
    rows.dim = dim;
    const bool few = count <= kFewRows;
    rows.q = arena.take<float>(size_t(count) * dim * (few ? 4 : 1));
    rows.acc = arena.take<float>(size_t(count) * dim);
    rows.out = arena.take<float>(size_t(count) * dim);
    for (float** p : {&rows.m, &rows.l, &rows.alpha, &rows.M, &rows.Lsum}) *p = arena.take<float>(padded);
    rows.begin = arena.take<int>(padded);
    rows.end = arena.take<int>(padded);
    s = arena.take<float>(size_t(padded) * kTile);
    kt = arena.take<float>(size_t(dim) * kTile);
    vt = arena.take<float>(size_t(dim) * kTile);
    part = few ? arena.take<float>(size_t(count) * kGroups * L) : nullptr;
    keys = arena.take<const void*>(kTile);
    next_keys = arena.take<const void*>(kTile);
    value_rows = arena.take<const void*>(kTile);
  }
};

// Pointers to the keys of a tile's positions. Positions outside [first, last) borrow the nearest one inside, so that
// neither their pages nor their page-table entries are touched; their weight is zero.
template <class T>
static void locate(const AttentionArgs& a, const AttentionTask& task, int64_t tile, int64_t first, int64_t last,
                   const T** rows) {
  const int32_t* table = a.batch.page_table + task.sequence * a.batch.table_stride;
  const int size = a.pages.page_size, dim = a.pages.head_dim;
  const T* base = static_cast<const T*>(a.pages.kv) + task.kv_head * a.pages.head_stride;
  const int begin = first > tile ? int(first - tile) : 0, end = last - tile < kTile ? int(last - tile) : kTile;
  int64_t page = (tile + begin) / size;
  int slot = int((tile + begin) % size);
  const T* row = base + table[page] * a.pages.page_stride + int64_t(slot) * dim;
  for (int t = begin; t < end; t++) {
    if (slot == size) {
      slot = 0;
      row = base + table[++page] * a.pages.page_stride;
    }
    rows[t] = row;
    row += dim;
    slot++;
  }
  for (int t = 0; t < begin; t++) rows[t] = rows[begin];
  for (int t = end; t < kTile; t++) rows[t] = rows[end - 1];
}

KVRT_INLINE void reset(const Rows& x, float* m, float* l, float* acc) {
  for (int r = 0; r < (x.count + 3) / 4 * 4; r++) m[r] = kMasked, l[r] = 0.f;
  __builtin_memset(acc, 0, sizeof(float) * x.count * x.dim);
}

// (M, Lsum, out) of row r takes in one segment. A segment without any position for this row has l == 0.
KVRT_INLINE void merge_row(const Rows& x, int r, float m, float l, const float* acc) {
  if (l == 0.f) return;
  const float top = x.M[r] > m ? x.M[r] : m;
  const v4f scale = exp2(v4f{x.M[r] - top, m - top, 0.f, 0.f});
  const vf a = splat<vf>(scale[0]), b = splat<vf>(scale[1]);
  x.M[r] = top;
  x.Lsum[r] = fma(v4f{l, 0.f, 0.f, 0.f}, splat<v4f>(scale[1]), v4f{x.Lsum[r] * scale[0], 0.f, 0.f, 0.f})[0];
  float* out = x.out + int64_t(r) * x.dim;
  for (int d = 0; d < x.dim; d += L) store(out + d, fma(load(acc + d), b, load(out + d) * a));
}

template <class T> static void write_out(const AttentionArgs& a, const AttentionTask& task, const Rows& x) {
  const int group = a.heads / a.pages.kv_heads;
  for (int r = 0; r < x.count; r++) {
    const int64_t token = a.batch.query_start[task.sequence] + task.q_begin + r / group;
    float* y = a.out + token * a.out_stride + int64_t(task.kv_head * group + r % group) * x.dim;
    const float inverse = 1.f / x.Lsum[r];
    const float* from = x.out + int64_t(r) * x.dim;
    int d = 0;
    if constexpr (kWide<T> != L)
      for (; d + 2 * L <= x.dim; d += 2 * L) {
        const vf even = load(from + d) * inverse, odd = load(from + d + L) * inverse;
        store(y + d, shuffle<ZipLo>(even, odd));
        store(y + d + L, shuffle<ZipHi>(even, odd));
      }
    for (; d < x.dim; d += L) store(y + d, load(from + d) * inverse);
  }
}

template <class T>
static void attend_tile(const AttentionArgs& a, const AttentionScratch& w, const T* const* keys,
                        const T* const* next_keys, int begin, int end) {
  const Rows& x = w.rows;
  if (x.count <= kFewRows) {
    few_rows<kFewRows>(x.count, [&](auto height) {
      constexpr int R = decltype(height)::value;
      constexpr int G = R <= 2 ? kSums / 2 : R <= 4 ? kSums / 4 : kSums / 8;
      for (int t = begin / (4 * G) * (4 * G); t < end; t += 4 * G)
        scores_of_few<T, R, G>(x.q, keys + t, a.pages.v_offset, w.part + t / 4 * L, x.dim);
      for (int r = 0; r < R; r++) join_classes(w.part + r * kGroups * L, w.s + r * kTile);
    });
  } else {
    for (int t = begin / L * L; t < end; t += L) transpose_keys<T>(keys + t, w.kt + t, x.dim);
    for (int t = begin / (kCols * L) * (kCols * L); t < end; t += kCols * L)
      strips(x.count, [&](auto height, int r) {
        scores<decltype(height)::value>(x.q + r * x.dim, w.kt + t, w.s + r * kTile + t, x.dim);
      });
  }
  for (int r = 0; r < x.count; r += 4) softmax4(x, r, w.s + r * kTile, a.softcap);
  if (std::is_same<T, float>::value || x.count <= 2 * kRows) {
    const T** rows = reinterpret_cast<const T**>(w.value_rows);
    for (int t = 0; t < kTile; t++) rows[t] = keys[t] + a.pages.v_offset;
    add_values<T>(x, w.s, rows, next_keys);
  } else {  // many rows: widen the values once
    const float** rows = reinterpret_cast<const float**>(w.value_rows);
    for (int t = 0; t < kTile; t++) rows[t] = w.vt + t * x.dim;
    for (int t = begin; t < end; t++) widen_values(keys[t] + a.pages.v_offset, w.vt + t * x.dim, x.dim);
    add_values<float>(x, w.s, rows, nullptr);
  }
}

template <class T>
static void attend(const AttentionArgs& a, const AttentionTask& task, Arena arena) {
  const int group = a.heads / a.pages.kv_heads, dim = a.pages.head_dim;
  AttentionScratch w(a, (task.q_end - task.q_begin) * group, arena);
  Rows& x = w.rows;
  const int32_t* start = a.batch.query_start + task.sequence;
  const int64_t position = a.batch.context_len[task.sequence] - (start[1] - start[0]) + task.q_begin;
  const float scale = a.softcap != 0.f ? a.scale / a.softcap : a.scale * kLog2e;
  for (int r = 0; r < x.count; r++) {
    const float* q = a.q + (start[0] + task.q_begin + r / group) * a.q_stride + (task.kv_head * group + r % group) * dim;
    if (x.count <= kFewRows)
      spread_query<T>(q, scale, x.q + r * dim * 4, dim);
    else
      pack_query<T>(q, scale, x.q + r * dim, dim);
  }
  for (int r = x.count; r < (x.count + 3) / 4 * 4; r++) x.begin[r] = x.end[r] = 0;

  int64_t last = position + (task.q_end - task.q_begin);
  int64_t first = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
  if (task.partial) {
    x.acc = task.partial;
    const int64_t from = int64_t(task.segment) * kSegment;
    first = first > from ? first : from;
    last = last < from + kSegment ? last : from + kSegment;
  } else {
    reset(x, x.M, x.Lsum, x.out);
  }
  reset(x, x.m, x.l, x.acc);

  const T** keys = reinterpret_cast<const T**>(w.keys);
  const T** next = reinterpret_cast<const T**>(w.next_keys);
  int64_t tile = first / kTile * kTile;
  locate(a, task, tile, first, last, keys);
  for (; tile < last; tile += kTile) {
    const bool more = tile + kTile < last;
    if (more) locate(a, task, tile + kTile, first, last, next);
    const int begin = first > tile ? int(first - tile) : 0;
    const int end = last - tile < kTile ? int(last - tile) : kTile;
    for (int r = 0; r < x.count; r++) {
      const int64_t at = position + r / group - tile;  // the row's own position within the tile
      const int64_t low = a.window ? at + 1 - a.window : 0;
      x.begin[r] = low > 0 ? (low < kTile ? int(low) : kTile) : 0;
      x.end[r] = at >= 0 ? (at < kTile ? int(at) + 1 : kTile) : 0;
    }
    attend_tile<T>(a, w, keys, more ? next : nullptr, begin, end);
    const T** t = keys;
    keys = next;
    next = t;
    if (!task.partial && ((tile + kTile) % kSegment == 0 || !more)) {
      for (int r = 0; r < x.count; r++) merge_row(x, r, x.m[r], x.l[r], x.acc + r * dim);
      if (more) reset(x, x.m, x.l, x.acc);
    }
  }
  if (task.partial) {
    float* state = task.partial + size_t(x.count) * dim;
    for (int r = 0; r < x.count; r++) state[r] = x.m[r], state[x.count + r] = x.l[r];
  } else {
    write_out<T>(a, task, x);
  }
}

static size_t attention_scratch(const AttentionArgs& a, int rows) {
  Arena arena{nullptr};
  AttentionScratch(a, rows, arena);
  return arena.used;
}

static void attention(const AttentionArgs& a, const AttentionTask& task, void* scratch) {
  const Arena arena{static_cast<char*>(scratch)};
  switch (a.pages.dtype) {
    case Dtype::f32: return attend<float>(a, task, arena);
    case Dtype::bf16: return attend<bf16>(a, task, arena);
    case Dtype::f16: return attend<f16>(a, task, arena);
  }
}

static void attention_merge(const AttentionArgs& a, const AttentionTask& task, const float* const* partials, int count,
                            void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  AttentionScratch w(a, (task.q_end - task.q_begin) * (a.heads / a.pages.kv_heads), arena);
  const Rows& x = w.rows;
  reset(x, x.M, x.Lsum, x.out);
  for (int i = 0; i < count; i++) {
    const float* state = partials[i] + size_t(x.count) * x.dim;
    for (int r = 0; r < x.count; r++)
      merge_row(x, r, state[r], state[x.count + r], partials[i] + size_t(r) * x.dim);
  }
  if (a.pages.dtype == Dtype::bf16)
    write_out<bf16>(a, task, x);
  else
    write_out<float>(a, task, x);
}
