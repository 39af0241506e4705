// y = x W^T for W of whole codes of 4 or 8 bits, 32 of which share a scale and perhaps an offset, in panels (packed.py):
//
//   panel of 16 rows of W:  for each 32 of k:  16 scales | 16 offsets, or none | codes, by fours, of each row in turn
//
// Activations are rounded to codes, too, as kvrt.spi.PackedMatrices says. Products of codes and their sums over 32 are
// whole numbers, and exact; in which order they are added does not matter. One output is, in float32, each operation
// rounded, so that all instruction sets have the same bits:
//
//   block 0 + block 1 + ...     block = (scale of W * scale of x) * sum of (code - zero) * (code of x)
//                                       [ + offset of W * (scale of x * sum of codes of x) ]

constexpr int kPanelRows = 16;
constexpr int kCodes = 32;  // that share a scale

// ---- activations ----------------------------------------------------------------------------------------------------

// 32-bit words that four codes of x are packed in.
#if defined(__AVX512VNNI__)
constexpr int kFour = 1;
#else
constexpr int kFour = 2;  // the first and third as 16 bits each, then the second and fourth
#endif

// A block of x: its codes, their scale, their sum.
constexpr int kBlockWords = kCodes / 4 * kFour + 2;

KVRT_INLINE vi splat_word(int32_t word) { return word - vi{}; }

// sum + the products of four codes of W with four of x, in each 32-bit lane.
KVRT_INLINE vi dot4(vi codes, const int32_t* x, vi sum) {
#if defined(__AVX512VNNI__)  // GCC 12 copies sums around its own intrinsic
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(splat_word(x[0])));
  return sum;
#else
  const vi even = codes & splat_word(0x00ff00ff), odd = (vi)((vu)codes >> 8) & splat_word(0x00ff00ff);
  return sum + dot2((vw)even, (vw)splat_word(x[0])) + dot2((vw)odd, (vw)splat_word(x[1]));
#endif
}

static void pack_codes(const float* x, int32_t* to) {
  vf most = {};
  bool finite = true;
  for (int i = 0; i < kCodes; i += L) {
    const vf v = load(x + i), size = (vf)((vi)v & 0x7fffffff);
    most = max(most, size);
    const vi odd = (vi)size >= 0x7f800000;
    for (int j = 0; j < L; j++) finite &= odd[j] == 0;
  }
  const float top = reduce4<Max>(most, most, most, most)[0];
  const bool zero = !(top >= 0x1p-100f) || !finite;
  const vf factor = splat<vf>(zero ? 0.f : 127.f / top);
  int32_t codes[kCodes], sum = 0;
  for (int i = 0; i < kCodes; i += L) store(codes + i, nearest(load(x + i) * factor));
  if (zero)
    for (int& code : codes) code = 0;
  for (int code : codes) sum += code;
  for (int i = 0; i < kCodes; i += 4, to += kFour) {
    const uint32_t c[] = {uint32_t(codes[i]), uint32_t(codes[i + 1]), uint32_t(codes[i + 2]), uint32_t(codes[i + 3])};
    if constexpr (kFour == 1) {
      to[0] = int32_t((c[0] & 255) | (c[1] & 255) << 8 | (c[2] & 255) << 16 | c[3] << 24);
    } else {
      to[0] = int32_t((c[0] & 65535) | c[2] << 16);
      to[1] = int32_t((c[1] & 65535) | c[3] << 16);
    }
  }
  const float scale = !finite ? __builtin_nanf("") : zero ? 0.f : top / 127.f;
  __builtin_memcpy(to, &scale, sizeof scale);
  to[1] = sum;
}

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

// c[R][16] = x[R] . (16 rows of W)^T
template <int R, int bits, bool offsets>
static void panel_tile(const char* panel, int zero, int blocks, const int32_t* x, int64_t x_stride, float* c,
                       const char* ahead) {
  constexpr int head = offsets ? 64 : 32, bytes = head + kPanelRows * kCodes * bits / 8;
  for (int part = 0; part < kPanelRows; part += L, c += L) {
    vf acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = vf{};
    const char* w = panel;
    const int32_t* from = x;
    for (int b = 0; b < blocks; b++, w += bytes, from += kBlockWords) {
      vi sum[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sum[r] = splat_word(-zero * from[r * x_stride + kBlockWords - 1]);
#pragma GCC unroll 8
      for (int i = 0; i < 4 * bits / 4; i++) {  // 64 bytes each: four codes of each row, or twice four
        const vi v = load_as<vi>(w + head + 64 * i + 4 * part);
        if constexpr (bits == 8) {
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) sum[r] = dot4(v, from + r * x_stride + kFour * i, sum[r]);
        } else {
          const vi low = v & splat_word(0x0f0f0f0f), high = (vi)((vu)v >> 4) & splat_word(0x0f0f0f0f);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) sum[r] = dot4(low, from + r * x_stride + kFour * 2 * i, sum[r]);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) sum[r] = dot4(high, from + r * x_stride + kFour * (2 * i + 1), sum[r]);
        }
      }
      const vf scale = load(reinterpret_cast<const f16*>(w) + part);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const int32_t* behind = from + r * x_stride + kBlockWords - 2;
        float of_x;
        __builtin_memcpy(&of_x, behind, sizeof of_x);
        acc[r] = acc[r] + scale * of_x * __builtin_convertvector(sum[r], vf);
        if constexpr (offsets)
          acc[r] = acc[r] + load(reinterpret_cast<const f16*>(w + 32) + part) * (of_x * float(behind[1]));
      }
      if (ahead && part == 0) {
        for (int line = 0; line < bytes; line += 64) prefetch(ahead + line);
        ahead += bytes;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(c + r * kPanelRows, acc[r]);
  }
}

template <int bits, bool offsets>
static void panel_tiles(const char* panel, int zero, int blocks, const int32_t* x, int64_t x_stride, int rows, float* c,
                        const char* ahead) {
  int m = 0;
  const auto some = [&](auto height) {
    constexpr int R = decltype(height)::value;
    for (; rows - m >= R; m += R)
      panel_tile<R, bits, offsets>(panel, zero, blocks, x + m * x_stride, x_stride, c + m * kPanelRows,
                                   m == 0 ? ahead : nullptr);
  };
  some(std::integral_constant<int, 8>{});
  some(std::integral_constant<int, 4>{});
  some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

// What linear.h wants to know of this kernel.
struct Panels {
  static LinearShape shape(const LinearArgs& a) { return {kPanelRows, 1, int64_t(a.k / kCodes) * kBlockWords}; }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    const int64_t stride = shape(a).packed_stride;
    for (int m = m0; m < m1; m++)
      for (int b = 0; b < a.k / kCodes; b++)
        pack_codes(a.x + m * a.x_stride + b * kCodes,
                   reinterpret_cast<int32_t*>(packed + m * stride) + b * kBlockWords);
  }
  static size_t work(int rows) { return size_t(kPanelRows) * rows; }

  // c[parts][rows][c_stride] = x . W[n0 .. n1)^T for each part. A part may begin anywhere in a panel.
  static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                      float* c, int64_t c_stride, float* work) {
    const int blocks = a.k / kCodes;
    for (int part = 0; part < parts; part++, c += rows * c_stride) {
      const bool second = part == 1 && a.up;
      const Packing packing = second ? a.up_packing : a.packing;
      const int first = (part == 1 && !a.up ? a.n : 0) + n0, last = first + n1 - n0;
      for (int row = first / kPanelRows * kPanelRows; row < last; row += kPanelRows) {
        const char* panel = static_cast<const char*>(second ? a.up : a.w) + row * row_bytes(packing, a.k);
        const char* next = panel + kPanelRows * row_bytes(packing, a.k);
        const auto all = [&](auto tiles) {
          tiles(panel, packing.zero, blocks, reinterpret_cast<const int32_t*>(x), x_stride, rows, work, next);
        };
        if (packing.bits == 8)
          packing.offsets ? all(panel_tiles<8, true>) : all(panel_tiles<8, false>);
        else
          packing.offsets ? all(panel_tiles<4, true>) : all(panel_tiles<4, false>);
        const int from = row < first ? first - row : 0, until = row + kPanelRows < last ? kPanelRows : last - row;
        for (int r = 0; r < rows; r++)
          __builtin_memcpy(c + r * c_stride + row + from - first, work + r * kPanelRows + from,
                           sizeof(float) * (until - from));
      }
    }
  }
};
