// Scores of keys that are kept as codes. A query becomes whole numbers, too, so few digits of them that all products of a
// group of elements, added up, are exact in a float. So they may be computed in any order and in integers as well as in
// floats, always with the same bits:
//
//   q[d]  ->  n[d] = nearest(q[d] / step)         step = max |q| / N,    N = 2^24 / (largest code * elements of a group)
//   score  =  (sum over groups, ascending, of (sum over d of n[d] code[d]) scale) step
//
// For heads of 128 in int8, N is 1,032: the rounding of q is eight times finer than that of the keys.

constexpr int kWords = kBytes / 16;  // 16-byte pieces of a vector, each of which is 4 words of one key after transposing

template <class T> constexpr int kParts = std::is_same<T, i4>::value ? 4 : 2;  // 16-bit vectors that a word unpacks to

// to[dim] = q in whole numbers; returns the step.
template <class T> KVRT_INLINE float whole_query(const float* q, int dim, int32_t* to) {
  const int exact = (1 << 24) / (Kept<T>::largest * Kept<T>::group(dim));
  const Range range = Range::of(q, dim);
  const bool live = range.finite && range.magnitude() >= kTiny;
  const float step = range.magnitude() / float(exact < 32767 ? exact : 32767);
  round_codes(q, dim, step, live, to);
  return kept_scale(step, live, range.finite);
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// s[R][kCols * L] = scores of keys kt[dim][kTile], codes; q [R][dim], whole numbers; scales [groups][kTile].
template <int R>
static void scores_of_codes(const float* q, const float* factor, const float* kt, const float* scales, float* s, int dim,
                            int group) {
  vf sum[R][kCols];
  for (int d = 0; d < dim; d += group, scales += kTile) {
    const bool first = d == 0, last = d + group >= dim;
    scores_of_class<R>(q + d, dim, kt + d * kTile, last ? dim - d : group, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int j = 0; j < kCols; j++) {
        float* y = s + r * kTile + j * L;
        const vf scale = load(scales + j * L), all = first ? sum[r][j] * scale : fma(sum[r][j], scale, load(y));
        store(y, last ? all * factor[r] : all);
      }
  }
}

// ---- a few rows -----------------------------------------------------------------------------------------------------

// A vector of a key's bytes, transposed with those of three other keys, is words: 4 bytes of one key in each lane. A word
// unpacks to kParts vectors of 16-bit codes; the pair in a lane is elements pair() and pair() + 2. Lane 4 c + t of word i
// is bytes 16 c + 4 i .. + 4 of key t.
template <class T> KVRT_INLINE int pair(int piece, int word, int part) {
  if constexpr (std::is_same<T, i4>::value) return 32 * piece + 16 * (part & 1) + 4 * word + (part >> 1);
  return 16 * piece + 4 * word + part;
}
KVRT_INLINE void unpack(vf word, vw* parts, i8) {
  const vw w = (vw)word;
  parts[0] = (vw)(w << 8) >> 8;
  parts[1] = w >> 8;
}
KVRT_INLINE void unpack(vf word, vw* parts, i4) {  // without the 8 that was added
  typedef uint16_t unsigned_words __attribute__((vector_size(kBytes)));
  const unsigned_words w = (unsigned_words)word;
  parts[0] = (vw)(w & 15);
  parts[1] = (vw)(w >> 4 & 15);
  parts[2] = (vw)(w >> 8 & 15);
  parts[3] = (vw)(w >> 12);
}

// 16-bit numbers of one row: for each vector of a key's bytes, word and part, the pairs that its lanes meet.
template <class T> KVRT_INLINE int spread_size(int dim) {
  return (Kept<T>::items(dim) + kBytes - 1) / kBytes * 4 * kParts<T> * kBytes / 2;
}
template <class T> static void spread_codes(const int32_t* q, int dim, int16_t* to) {
  const int pieces = (Kept<T>::items(dim) + kBytes - 1) / kBytes * kWords;
  for (int piece = 0; piece < pieces; piece++)
    for (int word = 0; word < 4; word++)
      for (int part = 0; part < kParts<T>; part++) {
        const int d = pair<T>(piece, word, part);
        const int low = d < dim ? q[d] : 0, high = d + 2 < dim ? q[d + 2] : 0;
        const v4i both = v4i{} + int32_t((uint32_t(low) & 0xffff) | uint32_t(high) << 16);
        const int vector = (piece / kWords * 4 + word) * kParts<T> + part;
        __builtin_memcpy(to + vector * (kBytes / 2) + piece % kWords * 8, &both, sizeof both);
      }
}

// dots[R][groups][kTile], keys [0, 4 * G) = n . code, plus what `less` [R][groups] says. Meanwhile asks for the values.
template <class T, int R, int G>
static void dots_of_few(const int16_t* q, const T* const* k, int64_t to_values, const int32_t* less, int32_t* dots,
                        int dim) {
  constexpr int P = kParts<T>;
  const int items = Kept<T>::items(dim), groups = Kept<T>::groups(dim), row_stride = spread_size<T>(dim);
  NextRows<T> values{k, to_values, 4 * G, items};
  vi sum[R][G];
  for (int at = 0; at < items; at += kBytes) {
    if (at == 0 || std::is_same<T, i4>::value)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) sum[r][g] = vi{};
    const int16_t* from = q + at / kBytes * 4 * P * (kBytes / 2);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) {
      vf w[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        w[i] = load_bytes(k[4 * g + i] + at, items - at);
        if (at % 64 == 0) values.ask();
      }
      transpose4(w);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        vw parts[P];
        unpack(w[i], parts, T{});
#pragma GCC unroll 4
        for (int p = 0; p < P; p++)
#pragma GCC unroll 8
          for (int r = 0; r < R; r++)
            sum[r][g] += dot2(parts[p], load_as<vw>(from + r * row_stride + (i * P + p) * (kBytes / 2)));
      }
    }
    if constexpr (std::is_same<T, i4>::value)  // each 16-byte piece is a group of its own
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++)
#pragma GCC unroll 4
          for (int c = 0; c < kWords; c++)
            if (const int group = at / 16 + c; group < groups) {
              const v4i piece = block(sum[r][g], c) - less[r * groups + group];
              __builtin_memcpy(dots + (r * groups + group) * kTile + 4 * g, &piece, sizeof piece);
            }
  }
  if constexpr (std::is_same<T, i8>::value)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      static_assert(G % kWords == 0 || kWords > G, "");
      vi x[kWords];
#pragma GCC unroll 8
      for (int g = 0; g < G; g += kWords) {
#pragma GCC unroll 4
        for (int i = 0; i < kWords; i++) x[i] = g + i < G ? sum[r][g + i] : vi{};
        const vi all = sum_blocks(x);
        __builtin_memcpy(dots + r * kTile + 4 * g, &all, (G - g < kWords ? G - g : kWords) * 16);
      }
    }
}

// s[kTile] = dots [groups][kTile] with their scales [groups][kTile], in the order of scores_of_codes().
KVRT_INLINE void scale_dots(const int32_t* dots, const float* scales, float factor, int groups, float* s) {
  for (int t = 0; t < kTile; t += L) {
    vf all = __builtin_convertvector(load_as<vi>(dots + t), vf) * load(scales + t);
    for (int g = 1; g < groups; g++)
      all = fma(__builtin_convertvector(load_as<vi>(dots + g * kTile + t), vf), load(scales + g * kTile + t), all);
    store(s + t, all * factor);
  }
}
