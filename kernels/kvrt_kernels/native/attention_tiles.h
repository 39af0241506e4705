// The inner loops of attention, each over one tile of keys or values: scores = q k^T, and acc += weights v.

// Widest register tile: kRows rows by kCols vectors, plus operands, fills 32 or 16 vector registers.
// Up to kFewRows rows meet the keys as they are read, with kSums accumulators at a time.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6, kCols = 4, kSums = 16;
#else
constexpr int kRows = 6, kCols = 2, kSums = 8;
#endif
constexpr int kFewRows = 8;
constexpr int kClasses = L / 4;     // of d: 128-bit blocks of a vector
constexpr int kGroups = kTile / 4;  // of keys, as many as a block has lanes

// ---- asking ahead ---------------------------------------------------------------------------------------------------

// The lines of `count` rows of keys or values that will be needed next, in ascending order: a cache that sees one
// ascending stream reads ahead by itself, which is worth 5 % over asking in the order in which tiles are computed.
template <class T> struct NextRows {
  const T* const* rows;  // nullptr: there are none
  int64_t offset;        // elements from the rows given
  int count, items;  // rows, and how long one is
  int row = 0, column = 0;

  KVRT_FORCE void ask() {
    if (!rows || row == count) return;
    prefetch(rows[row] + offset + column);
    column += 64 / int(sizeof(T));
    if (column >= items) column = 0, row++;
  }
};

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

// kt[place of d, or of codes d itself][kTile], columns [0, L) = keys k[0 .. L).
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
    for (int i = 0; i < L; i++) w[i] = load_row(k[i], d);
    transpose(w);
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) store(kt + (Kept<T>::codes ? d + i : place(dim, d, i, L)) * kTile, w[i]);
  }
}

// sum[R][kCols] = q[R][...] . kt[...], over `count` elements; rows of q are `stride` apart.
template <int R>
KVRT_INLINE void scores_of_class(const float* q, int stride, const float* kt, int count, vf (*sum)[kCols]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < kCols; j++) sum[r][j] = vf{};
  for (int d = 0; d < count; d++) {
    vf k[kCols];
#pragma GCC unroll 8
    for (int j = 0; j < kCols; j++) k[j] = load(kt + d * kTile + j * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vf x = splat<vf>(q[r * stride + d]);
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
    scores_of_class<R>(q + c * step, dim, kt + c * step * kTile, step, sum);
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
  NextRows<T> values{k, to_values, 4 * G, dim};
  int d = 0;
  if constexpr (kWide<T> != L)
    for (; d + kWide<T> <= dim; d += kWide<T>)
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        vf w[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          w[i] = load_as<vf>(k[4 * g + i] + d);
          if (d * sizeof(T) % 64 == 0) values.ask();
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
        if (d * sizeof(T) % 64 == 0) values.ask();
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
//
// Values in i4 are multiplied by their scales, given for the token and each group kTile apart; the scales of i8 were taken
// into the weights.
template <class T, int C> KVRT_INLINE void load_values(const T* v, int column, const float* scales, vf* x) {
  if constexpr (std::is_same<T, i4>::value) {
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) {
      const int d = column + j * L;
      if constexpr (L == 16 && C % 2 == 0) {  // both halves of a byte at once
        if (j % 2) continue;
        const vu both = load_nibbles(v, d);
        const vf scale = splat<vf>(scales[d / 32 * kTile]);
        x[j] = number(both, scale);
        x[j + 1] = number(both >> 4, scale);
      } else {
        x[j] = number(load_nibbles(v, d) >> (d & 16 ? 4 : 0), splat<vf>(scales[d / 32 * kTile]));
      }
    }
  } else if constexpr (kWide<T> != L && C % 2 == 0) {
#pragma GCC unroll 8
    for (int j = 0; j < C; j += 2) {
      vf w = load_as<vf>(v + column + j * L);
      keep(w);
      x[j] = low_half(w);
      x[j + 1] = high_half(w);
    }
  } else {
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) x[j] = load_row(v, column + j * L);
  }
}

template <class T> static void widen_values(const T* v, const float* scales, float* to, int dim) {
  vf x[2];
  int d = 0;
  for (; d + 2 * L <= dim; d += 2 * L) {
    load_values<T, 2>(v, d, scales, x);
    store(to + d, x[0]);
    store(to + d + L, x[1]);
  }
  for (; d < dim; d += L) {
    load_values<T, 1>(v, d, scales, x);
    store(to + d, x[0]);
  }
}

// acc[R][C * L] = acc * alpha[R] + p[R][t0 .. t1) . v[t0 .. t1)[C * L]; meanwhile asks for as many bytes ahead.
template <class T, int R, int C>
static void values(const float* p, const float* alpha, const T* const* v, const float* scales, int column, int t0,
                   int t1, float* acc, int dim, NextRows<T>& next) {
  NextRows<T> ahead = next;
  vf c[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) c[r][j] = load(acc + r * dim + j * L) * alpha[r];
  for (int t = t0; t < t1; t++) {
    vf x[C];
    load_values<T, C>(v[t], column, scales + t, x);
#pragma GCC unroll 8
    for (int b = 0; b < int(C * L * sizeof(T)); b += 64) ahead.ask();
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
  next = ahead;
}

