// The rows of an attention task: what becomes of their softmax and sums with a tile of keys and values, and with a
// segment of tiles.

constexpr float kMasked = -1e30f;

// The state of a task's rows; arrays of scalars are padded to a multiple of 4 rows.
struct Rows {
  int count, dim, values;       // elements of a key, and of a value
  float* q;                     // scaled; spread for a few rows, packed for many
  float *m, *l, *alpha, *acc;   // of the current segment; acc [rows][values]
  float *M, *Lsum, *out;        // of all segments before it
  int *begin, *end;             // positions of the current tile that a row sees, within [0, kTile]
};

// ---- one tile -------------------------------------------------------------------------------------------------------

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
    for (int j = 0; j < kTile / L; j++, at += L) {
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
    for (int j = 0; j < kTile / L; j++, at += L) {
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

// Calls f<rows>() for 1 <= rows <= N.
template <int N, class F> KVRT_INLINE void few_rows(int rows, const F& f) {
  if (rows == N) return f(std::integral_constant<int, N>{});
  if constexpr (N > 1) few_rows<N - 1>(rows, f);
}

// Calls f<R>(row) over all rows in strips of kRows, and the rest in one.
template <class F> KVRT_INLINE void strips(int rows, const F& f) {
  int r = 0;
  for (; rows - r >= kRows; r += kRows) f(std::integral_constant<int, kRows>{}, r);
  few_rows<kRows - 1>(rows - r, [&](auto height) { f(height, r); });
}

// Adds the weighted values of a tile to the rows of one strip, columns [column, column + C * L). Rows of neighbouring
// tokens see slightly different positions: what not all of them see is added row by row, before and after the rest, so
// that no row ever touches a value it does not see (0 times infinity is not 0).
template <class T, int R, int C>
static void add_strip(const Rows& x, int r, const float* s, const T* const* v, const float* scales, int column,
                      NextRows<T>& next) {
  int begin = x.begin[r], end = x.end[r];
  for (int i = r + 1; i < r + R; i++) {
    begin = x.begin[i] > begin ? x.begin[i] : begin;
    end = x.end[i] < end ? x.end[i] : end;
  }
  if (begin >= end) begin = end = kTile;  // nothing in common
  float alpha[R], one = 1.f;
  float* acc = x.acc + r * x.values + column;
  const float* p = s + r * kTile;
  for (int i = 0; i < R; i++) {
    alpha[i] = x.alpha[r + i];
    const int until = x.end[r + i] < begin ? x.end[r + i] : begin;
    if (x.begin[r + i] >= until) continue;
    values<T, 1, C>(p + i * kTile, alpha + i, v, scales, column, x.begin[r + i], until, acc + i * x.values, x.values, next);
    alpha[i] = 1.f;
  }
  if (begin < end) values<T, R, C>(p, alpha, v, scales, column, begin, end, acc, x.values, next);
  for (int i = 0; i < R; i++)
    if (end < x.end[r + i])
      values<T, 1, C>(p + i * kTile, &one, v, scales, column, end, x.end[r + i], acc + i * x.values, x.values, next);
}

template <class T>
static void add_values(const Rows& x, const float* s, const T* const* v, const float* scales, NextRows<T> next) {
  int c = 0;
  const auto columns = [&](auto width) {
    constexpr int C = decltype(width)::value;
    for (; x.values - c >= C * L; c += C * L)
      strips(x.count, [&](auto height, int r) {
        add_strip<T, decltype(height)::value, C>(x, r, s, v, scales, c, next);
      });
  };
  columns(std::integral_constant<int, kCols>{});
  if constexpr (kCols * L > 16) {
    columns(std::integral_constant<int, 2>{});
    columns(std::integral_constant<int, 1>{});
  }
}

// ---- one segment ----------------------------------------------------------------------------------------------------

// Of no positions at all.
KVRT_INLINE void reset(const Rows& x, float* m, float* l, float* acc) {
  for (int r = 0; r < (x.count + 3) / 4 * 4; r++) m[r] = kMasked, l[r] = 0.f;
  __builtin_memset(acc, 0, sizeof(float) * x.count * x.values);
}

// (M, Lsum, out) of row r takes in one segment. A segment without any position for this row has l == 0.
KVRT_INLINE void merge_row(const Rows& x, int r, float m, float l, const float* acc) {
  if (l == 0.f) return;
  const float top = x.M[r] > m ? x.M[r] : m;
  const v4f scale = exp2(v4f{x.M[r] - top, m - top, 0.f, 0.f});
  const vf a = splat<vf>(scale[0]), b = splat<vf>(scale[1]);
  x.M[r] = top;
  x.Lsum[r] = fma(v4f{l, 0.f, 0.f, 0.f}, splat<v4f>(scale[1]), v4f{x.Lsum[r] * scale[0], 0.f, 0.f, 0.f})[0];
  float* out = x.out + int64_t(r) * x.values;
  for (int d = 0; d < x.values; d += L) store(out + d, fma(load(acc + d), b, load(out + d) * a));
}
