// The inner loops of attention over keys and values of bf16 in the tiles of AMX; queries, scaled, and weights are rounded
// to bf16.
//
//   scores   s[16 rows][16 keys]    = q[16][32 of d] . keys[16][32 of d]^T + the next 32 of d + ...
//   values   sums[16 rows][16 of d] = weights[16][32 tokens] . values[32][16 of d] + the next 32 tokens
//
// A step of 32 adds as linear_amx.h says; sums of the 64 tokens of a tile are then added to what was there, times alpha. Rows
// are the left operand; keys are turned, and values of two tokens put side by side, once for all rows.

// ---- layout ---------------------------------------------------------------------------------------------------------

KVRT_INLINE int steps_of(int dim) { return (dim + kTileStep - 1) / kTileStep; }

// Row r of to[rows][steps][32] = q * scale; what is missing to a step is zero.
static void round_query(const float* q, float scale, int r, bf16* to, int dim) {
  to += r * steps_of(dim) * kTileStep;
  for (int d = 0; d < dim; d += kTileStep) {
    const vf rest = d + L < dim ? load(q + d + L) * scale : vf{};
    store(reinterpret_cast<float*>(to + d), to_bf16(load(q + d) * scale, rest));
  }
}

// kt[steps][keys / 16][pairs of d][16 keys], those of keys [begin, end), by sixteens. Meanwhile asks for the values of these
// tokens.
static void turn_keys(const bf16* const* k, int64_t to_values, int begin, int end, float* kt, int dim) {
  NextRows<bf16> values{k, to_values, kTile, dim};
  for (int t = begin / kSide * kSide; t < end; t += kSide)
    for (int d = 0; d < dim; d += kTileStep) {
      vf w[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; i++) {
        w[i] = d + kTileStep <= dim ? load_as<vf>(k[t + i] + d) : load_bytes(k[t + i] + d, L * int(sizeof(bf16)));
        values.ask();
      }
      transpose(w);
      float* to = kt + (d / kTileStep * (kTile / kSide) + t / kSide) * (kTileBytes / 4);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; i++) store(to + i * L, w[i]);
    }
}

// Two bf16 of each word: the higher halves of a and b, b's above.
KVRT_INLINE vf side_by_side(vf a, vf b) { return (vf)((vu)a >> 16 | ((vu)b & 0xffff0000u)); }

// vt[steps of tokens][columns / 16][pairs of tokens][16 columns]; tokens outside [begin, end) are zero. Columns are as in
// load_values(): of each 32 the even ones, then the odd ones. Meanwhile asks for the next keys, if there are any.
static void pair_values(const bf16* const* v, int begin, int end, float* vt, int dim, NextRows<bf16>& next) {
  const auto row = [&](int t, int d, bool whole) KVRT_INLINED {
    if (t < begin || t >= end) return vf{};
    return whole ? load_as<vf>(v[t] + d) : load(v[t] + d);
  };
  const int64_t column = kTileBytes / 4, step = dim / L * column;
  for (int t = begin / kTileStep * kTileStep; t < (end + kTileStep - 1) / kTileStep * kTileStep; t += 2) {
    float* to = vt + t / kTileStep * step + t % kTileStep / 2 * L;
    int d = 0;
    for (; d + kTileStep <= dim; d += kTileStep, to += 2 * column) {
      const vf a = row(t, d, true), b = row(t + 1, d, true);
      next.ask();
      next.ask();
      store(to, side_by_side(low_half(a), low_half(b)));
      store(to + column, side_by_side(a, b));
    }
    if (d < dim) store(to, side_by_side(row(t, d, false), row(t + 1, d, false)));
  }
}

// Whether the values of tokens [begin, end) are finite.
static bool all_finite(const bf16* const* v, int begin, int end, int dim) {
  vu carries = {};  // of exponents that are all ones
  for (int t = begin; t < end; t++)
    for (int d = 0; d < dim; d += kTileStep) {
      const int left = (dim - d) * int(sizeof(bf16));
      carries |= ((vu)load_bytes(v[t] + d, left < 64 ? left : 64) & 0x7f807f80u) + 0x00800080u;
    }
  for (int i = 0; i < L; i++)
    if (carries[i] & 0x80008000u) return false;
  return true;
}

// While one of these lives, arithmetic takes and gives subnormals as zero, as tiles do; in functions that are not inlined,
// as the compiler does not know that arithmetic must not leave its scope.
class Flushing {
 public:
  Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~Flushing() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
};

// ---- tiles ----------------------------------------------------------------------------------------------------------

// Tiles 0 to 3 are sums and 4 is of queries or weights, of sixteen rows, the last of which may be missing; 5 to 7 are of keys
// or values.
KVRT_INLINE TileConfig tiles_of_rows() {
  return TileConfig({16, 16, 16, 16, 16, 16, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
}

// s[16][kTile] = q . kt for rows from r on.
static void scores_of_turned(const Rows& x, int r, const float* kt, float* s) {
  const int steps = steps_of(x.dim), stride = steps * 64;
  const char* q = reinterpret_cast<const char*>(x.q) + int64_t(r) * stride;
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  zero_sums();
  for (int i = 0; i < steps; i++, q += 64, kt += kTileBytes) {
    _tile_loadd(4, q, stride);
    _tile_loadd(5, kt, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, kt + kTileBytes / 4, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, kt + kTileBytes / 2, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, kt + kTileBytes / 4 * 3, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, s, kTile * sizeof(float));
  _tile_stored(1, s + L, kTile * sizeof(float));
  _tile_stored(2, s + 2 * L, kTile * sizeof(float));
  _tile_stored(3, s + 3 * L, kTile * sizeof(float));
}

// The weights of so many rows, s[rows][kTile], as bf16 where they are.
static void round_weights(int rows, float* s) {
  for (int r = 0; r < rows; r++, s += kTile)
    for (int t = 0; t < kTile; t += kTileStep) store(s + t / 2, to_bf16(load(s + t), load(s + t + L)));
}

// acc = acc * alpha + sums for rows [r0, r1); sums [...][values].
__attribute__((noinline)) static void add_sums(const Rows& x, int r0, int r1, const float* sums) {
  const Flushing flushing;
  const int values = x.values;
  for (int r = r0; r < r1; r++, sums += values) {
    const vf alpha = splat<vf>(x.alpha[r]);
    float* acc = x.acc + int64_t(r) * values;
    for (int d = 0; d < values; d += L) store(acc + d, fma(load(acc + d), alpha, load(sums + d)));
  }
}

// to[16][C * 16 of the columns] = weights . values, steps [first, last) of tokens.
template <int C>
static void values_of_columns(const char* weights, int first, int last, const float* vt, int64_t step, float* to,
                              int64_t stride) {
  zero_sums();
  for (int i = first; i < last; i++) {
    const float* v = vt + i * step;
    _tile_loadd(4, weights + i * 64, kTile * sizeof(float));
    _tile_loadd(5, v, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (C > 1) _tile_loadd(5, v + kTileBytes / 4, 64);
    if constexpr (C > 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (C > 2) _tile_loadd(5, v + kTileBytes / 2, 64);
    if constexpr (C > 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (C > 2) _tile_loadd(5, v + kTileBytes / 4 * 3, 64);
    if constexpr (C > 2) _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, to, stride);
  if constexpr (C > 1) _tile_stored(1, to + L, stride);
  if constexpr (C > 2) _tile_stored(2, to + 2 * L, stride);
  if constexpr (C > 2) _tile_stored(3, to + 3 * L, stride);
}

// to[16][values] = weights s . vt for tokens [begin, end).
static void values_in_tiles(int values, const float* s, int begin, int end, const float* vt, float* to) {
  const int first = begin / kTileStep, last = (end + kTileStep - 1) / kTileStep;
  const char* weights = reinterpret_cast<const char*>(s);
  int left = values / L;
  const auto columns = [&](auto width) {
    constexpr int C = decltype(width)::value;
    for (; left >= C; left -= C, to += C * L, vt += C * kTileBytes / 4)
      values_of_columns<C>(weights, first, last, vt, values * kTileStep / 2, to, values * sizeof(float));
  };
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  columns(std::integral_constant<int, 4>{});
  columns(std::integral_constant<int, 2>{});
  columns(std::integral_constant<int, 1>{});
}

// ---- a few rows -----------------------------------------------------------------------------------------------------
//
// The additions of tiles, in their order, by vectors. A few rows do not make up for what tiles and vectors wait for each other.

constexpr int kFewInTiles = 8;

// s[R][kTile] = q . kt for keys [begin, end), by C vectors of them; q [R][stride].
template <int R>
static void scores_by_vectors(const bf16* q, int stride, const float* kt, int begin, int end, float* s,
                              NextRows<bf16>& next) {
  NextRows<bf16> ahead = next;
  constexpr int C = R <= 2 ? 4 : 2;
  for (int t = begin / (C * L) * (C * L); t < end; t += C * L) {
    vf sum[R][C] = {};
    for (int d = 0; d < stride; d += kTileStep) {
      vf even[R][C] = {}, odd[R][C] = {};
      const float* k = kt + (d / kTileStep * kTile + t) * L;
      for (int i = 0; i < L; i++, k += L) {
        ahead.ask();
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) {
          const vf pair = load(k + j * L * L), low = low_half(pair), high = high_half(pair);
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) {
            const bf16* of = q + r * stride + d + 2 * i;
            even[r][j] = fma(low, splat<vf>(widen(of[0])), even[r][j]);
            odd[r][j] = fma(high, splat<vf>(widen(of[1])), odd[r][j]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sum[r][j] = sum[r][j] + (even[r][j] + odd[r][j]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) store(s + r * kTile + t + j * L, sum[r][j]);
  }
  next = ahead;
}

// Calls f<R>(row) over rows [r0, r1) in strips of four, and the rest in one.
template <class F> KVRT_INLINE void by_fours(int r0, int r1, const F& f) {
  for (int r = r0, count; r < r1; r += count) {
    count = r1 - r < 4 ? r1 - r : 4;
    few_rows<4>(count, [&](auto height) { f(height, r); });
  }
}

__attribute__((noinline)) static void score_few(const Rows& x, const float* kt, int begin, int end, float* s,
                                                NextRows<bf16>& next) {
  const Flushing flushing;
  const int stride = steps_of(x.dim) * kTileStep;
  by_fours(0, x.count, [&](auto height, int r) {
    scores_by_vectors<decltype(height)::value>(reinterpret_cast<const bf16*>(x.q) + r * stride, stride, kt, begin, end,
                                               s + r * kTile, next);
  });
}

// acc[R][C * L of the columns] = acc * alpha + weights p[R][kTile] . v for tokens [begin, end).
template <int R, int C>
static void read_values(const float* p, const float* alpha, const bf16* const* v, int column, int begin, int end,
                        float* acc, int dim, NextRows<bf16>& next) {
  NextRows<bf16> ahead = next;
  vf sum[R][C] = {};
  for (int t = begin; t < end;) {
    const int until = (t / kTileStep + 1) * kTileStep < end ? (t / kTileStep + 1) * kTileStep : end;
    vf part[2][R][C] = {};  // of even and of odd tokens
    const auto add = [&](int t, vf (*to)[C]) KVRT_INLINED {
      vf x[C];
      load_values<bf16, C>(v[t], column, nullptr, x);
#pragma GCC unroll 4
      for (int b = 0; b < C * L * int(sizeof(bf16)); b += 64) ahead.ask();
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const vf weight = splat<vf>(p[r * kTile + t]);
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) to[r][j] = fma(x[j], weight, to[r][j]);
      }
    };
    if (t % 2) add(t++, part[1]);
    for (; t + 2 <= until; t += 2) {
      add(t, part[0]);
      add(t + 1, part[1]);
    }
    if (t < until) add(t++, part[0]);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) sum[r][j] = sum[r][j] + (part[0][r][j] + part[1][r][j]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < C; j++)
      store(acc + r * dim + j * L, fma(load(acc + r * dim + j * L), splat<vf>(alpha[r]), sum[r][j]));
  next = ahead;
}

// For rows [r0, r1); meanwhile asks for the next keys, if there are any.
__attribute__((noinline)) static void read_all_values(const Rows& x, int r0, int r1, const float* p, const bf16* const* v,
                                                      int begin, int end, NextRows<bf16>& next) {
  const Flushing flushing;
  by_fours(r0, r1, [&](auto height, int r) {
    constexpr int R = decltype(height)::value;
    int c = 0;
    const auto columns = [&](auto width) {
      constexpr int C = decltype(width)::value;
      for (; x.values - c >= C * L; c += C * L)
        read_values<R, C>(p + (r - r0) * kTile, x.alpha + r, v, c, begin, end, x.acc + r * x.values + c, x.values, next);
    };
    if constexpr (R <= 2) columns(std::integral_constant<int, 4>{});
    columns(std::integral_constant<int, 2>{});
    columns(std::integral_constant<int, 1>{});
  });
}

// The same for rows [r0, r1) whose weights s are bf16; `alone` each with the tokens that it sees.
static void read_values_of(const Rows& x, int r0, int r1, float* s, const bf16* const* v, int begin, int end, bool alone,
                           NextRows<bf16>& next) {
  for (int r = 0; r < r1 - r0; r++)
    for (int t = kTile - L; t >= 0; t -= L)  // widened where they are
      store(s + r * kTile + t, load(reinterpret_cast<const bf16*>(s + r * kTile) + t));
  if (!alone) return read_all_values(x, r0, r1, s, v, begin, end, next);
  for (int r = r0; r < r1; r++) read_all_values(x, r, r + 1, s + (r - r0) * kTile, v, x.begin[r], x.end[r], next);
}

// ---- one tile of keys and values ------------------------------------------------------------------------------------

// Scores and sums are of three groups of sixteen rows, as each is at another stage.
struct TileScratch {
  float *kt, *vt, *s, *sums;
};

// Takes keys and values [begin, end) in: of many rows sixteen at a time, so that all of theirs stays in the first-level
// cache; what one of tiles and vectors stores for the other is read a stage later, when it is there.
static void attend_in_tiles(const Rows& x, const bf16* const* keys, int64_t to_values, const bf16* const* v,
                            const bf16* const* next_keys, int begin, int end, float softcap, const TileScratch& w) {
  bool same = true;
  for (int r = 0; r < x.count; r++) same &= x.begin[r] <= begin && x.end[r] >= end;
  // Weights are zero where a row does not see; where values are not finite each row is computed alone, as 0 times infinity
  // is not 0.
  const bool alone = !same && !all_finite(v, begin, end, x.values);
  const auto weigh = [&](int r0, int r1, float* s) {
    for (int r = r0; r < r1; r += 4) softmax4(x, r, s + (r - r0) * kTile, softcap);
    round_weights(r1 - r0, s);
  };
  NextRows<bf16> next{next_keys, 0, kTile, x.dim};
  turn_keys(keys, to_values, begin, end, w.kt, x.dim);
  if (x.count <= kFewInTiles) {
    score_few(x, w.kt, begin, end, w.s, next);
    weigh(0, x.count, w.s);
    return read_values_of(x, 0, x.count, w.s, v, begin, end, alone, next);
  }
  if (!alone) pair_values(v, begin, end, w.vt, x.values, next);
  const TileConfig config = tiles_of_rows();
  const int groups = (x.count + kSide - 1) / kSide;
  const auto last = [&](int g) { return kSide * (g + 1) < x.count ? kSide * (g + 1) : x.count; };
  const auto scores = [&](int g) { return w.s + g % 3 * kSide * kTile; };
  const auto sums = [&](int g) { return w.sums + g % 3 * kSide * x.values; };
  scores_of_turned(x, 0, w.kt, scores(0));
  for (int g = 0; g < groups + 2; g++) {
    if (g + 1 < groups) scores_of_turned(x, kSide * (g + 1), w.kt, scores(g + 1));
    if (g < groups) weigh(kSide * g, last(g), scores(g));
    if (alone) {
      if (g < groups) read_values_of(x, kSide * g, last(g), scores(g), v, begin, end, true, next);
      continue;
    }
    if (g > 0 && g <= groups) values_in_tiles(x.values, scores(g - 1), begin, end, w.vt, sums(g - 1));
    if (g > 1) add_sums(x, kSide * (g - 2), last(g - 2), sums(g - 2));
  }
}
