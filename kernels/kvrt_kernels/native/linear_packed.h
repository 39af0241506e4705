// y = x W^T for W of codes in panels, with activations that are rounded to codes, too, as kvrt.spi.PackedMatrices says.
// Products of codes and their sums over a group are whole numbers, and exact; in which order they are added does not
// matter. One output is, in float32, each operation rounded, so that all instruction sets have the same bits:
//
//   block 0 + block 1 + ...     block = group + group, or one group of 32
//
//   group = (scale of W * scale of x) * sum of (code - zero) * (code of x)
//           [ + offset of W * (scale of x * sum of codes of x) ]

// ---- activations ----------------------------------------------------------------------------------------------------

// A block of x: its codes and, behind them, their scale, their sum, and that of the first and the second half.
constexpr int kCodeWords = kCodes / 4 * kFour;
constexpr int kBlockWords = kCodeWords + 4;

// The larger one of the bits of numbers without a sign: NaN is the largest.
struct Larger {
  template <class V> KVRT_INLINE V of(V a, V b) {
    using I = typename Int<V>::type;
    return (V)((I)a > (I)b ? (I)a : (I)b);
  }
};

static void pack_codes(const float* x, int32_t* to) {
  vf most = {}, sums[2] = {};
  for (int i = 0; i < kCodes; i += L) most = Larger::of(most, (vf)((vi)load(x + i) & 0x7fffffff));
  const float top = reduce4<Larger>(most, most, most, most)[0];
  const bool finite = top < __builtin_inff(), zero = !finite || top < 0x1p-100f;
  const vf factor = splat<vf>(zero ? 0.f : 127.f / top);
  const vi kept = splat_word(zero ? 0 : -1);
  for (int i = 0; i < kCodes; i += L) {
    const vi codes = nearest(load(x + i) * factor) & kept;
    sums[i / 16] = sums[i / 16] + to_floats(codes);
    if constexpr (kFour == 1) {
      store_each(reinterpret_cast<int8_t*>(to) + i, codes);
    } else {
      for (int j = 0; j < L; j += 4) {
        int32_t* four = to + (i + j) / 4 * kFour;
        four[0] = (codes[j] & 65535) | codes[j + 2] << 16;
        four[1] = (codes[j + 1] & 65535) | codes[j + 3] << 16;
      }
    }
  }
  to += kCodeWords;
  const v4f halves = reduce4<Add>(sums[0], sums[1], sums[0], sums[1]);  // exact
  const float scale = !finite ? __builtin_nanf("") : zero ? 0.f : top / 127.f;
  __builtin_memcpy(to, &scale, sizeof scale);
  to[1] = int32_t(halves[0] + halves[1]);
  to[2] = int32_t(halves[0]);
  to[3] = int32_t(halves[1]);
}

KVRT_INLINE float scale_of(const int32_t* block) {
  float scale;
  __builtin_memcpy(&scale, block + kCodeWords, sizeof scale);
  return scale;
}
// Of the codes of one of `groups`.
KVRT_INLINE int32_t sum_of(const int32_t* block, int groups, int group) {
  return block[kCodeWords + (groups == 1 ? 1 : 2 + group)];
}

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

// c[R][16] = x[R] . (16 rows of W)^T. Asks for what is `ahead` bytes behind, as much as it reads.
template <int R, class C, class S>
static void panel_tile(const char* panel, Packing packing, int blocks, const int32_t* x, int64_t x_stride, float* c,
                       int64_t ahead) {
  constexpr int fours = kCodes / 4 / S::groups, bytes = S::block + kPanelRows * kCodes * C::bits / 8;
  const int in_span = (S::span(packing) + kCodes - 1) / kCodes;
  for (int lane = 0; lane < kPanelRows; lane += L, c += L) {
    vf acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = vf{};
    const auto ask = [&](const char* w, int count) KVRT_INLINED {
      if (ahead && lane == 0)
        for (int line = 0; line < count; line += 64) prefetch(w + ahead + line);
    };
    const char* w = panel;
    const int32_t* from = x;
    for (int left = blocks; left > 0; left -= in_span) {
      const char* span = w;
      w += S::head;
      if (S::span(packing) > kCodes) ask(span, S::head);
      for (int b = in_span < left ? in_span : left; b > 0; b--, w += bytes, from += kBlockWords) {
#pragma GCC unroll 2
        for (int g = 0; g < S::groups; g++) {
          vi sum[R];
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const int32_t total = sum_of(from + r * x_stride, S::groups, g);
            sum[r] = S::minus_zeros(span, lane, packing, total);
            if constexpr (kLess != 0) sum[r] = sum[r] + splat_word(kLess * total);
          }
          const auto codes = [&](int i) KVRT_INLINED { return C::four(w + S::block + 4 * lane, i); };
          add_fours<R, fours>(codes, g * fours, from, x_stride, sum);
          const vf scale = S::scale(span, w, lane, g);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const float of_x = scale_of(from + r * x_stride);
            acc[r] = acc[r] + scale * of_x * to_floats(sum[r]);
            if constexpr (S::offsets)
              acc[r] = acc[r] +
                       S::offset(span, w, lane, g) * (of_x * float(sum_of(from + r * x_stride, S::groups, g)));
          }
        }
        ask(w, bytes);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(c + r * kPanelRows, acc[r]);
  }
}

template <class C, class S>
static void panel_tiles(const char* panel, Packing packing, int blocks, const int32_t* x, int64_t x_stride, int rows,
                        float* c, int64_t ahead) {
  int m = 0;
  const auto some = [&](auto height) {
    constexpr int R = decltype(height)::value;
    for (; rows - m >= R; m += R)
      panel_tile<R, C, S>(panel, packing, blocks, x + m * x_stride, x_stride, c + m * kPanelRows, m == 0 ? ahead : 0);
  };
  some(std::integral_constant<int, 8>{});
  some(std::integral_constant<int, 4>{});
  some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

// What linear.h wants to know of this kernel.
struct Panels {
  static LinearShape shape(const LinearArgs& a) { return {kPanelRows, 1, kMostRows / 2, int64_t(blocks(a)) * kBlockWords}; }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    const int64_t stride = shape(a).packed_stride;
    for (int m = m0; m < m1; m++)
      for (int b = 0; b < blocks(a); b++)
        pack_block(a, m, b, reinterpret_cast<int32_t*>(packed + m * stride) + b * kBlockWords);
  }
  static size_t work(int rows) { return size_t(kPanelRows) * rows; }

  static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                      float* c, int64_t c_stride, float* work) {
    by_panels(a, parts, n0, n1, rows, c, c_stride, work, [&](const char* panel, Packing packing) {
      by_packing(packing, [&](auto codes, auto scales) {
        if constexpr (!std::is_same_v<decltype(codes), E4m3>)
          panel_tiles<decltype(codes), decltype(scales)>(panel, packing, blocks(a),
                                                         reinterpret_cast<const int32_t*>(x), x_stride, rows, work,
                                                         kPanelRows * row_bytes(packing, a.k));
      });
    });
  }

  static int blocks(const LinearArgs& a) { return (a.k + kCodes - 1) / kCodes; }
  static void pack_block(const LinearArgs& a, int row, int block, int32_t* to) {
    const float* from = a.x + row * a.x_stride + block * kCodes;
    float rest[kCodes] = {};
    if ((block + 1) * kCodes > a.k) {
      __builtin_memcpy(rest, from, sizeof(float) * (a.k - block * kCodes));
      from = rest;
    }
    pack_codes(from, to);
  }
};
