// y = x W^T for W of codes in panels, with activations as they are. A block of k of a panel is decoded, each value as
// kvrt.spi.WeightFormat says, and laid out as linear_lanes.h lays out rows of float32, or of bf16. The rest is its product.
// So the result has the bits of one with weights that were unpacked to that type.

constexpr int kPanelOuts = kPanelRows / kOut;  // tiles that a panel is laid out for

// Elements `at` to `at + L` of a block, of L rows from `lane` on: rows[r] of the r-th.
template <class C, class S>
KVRT_INLINE void decode(const char* span, const char* block, Packing packing, int lane, int at, vf* rows) {
  const int group = at / (kCodes / S::groups);
  const vf scale = S::scale(span, block, lane, group);
  vf offset = {}, zeros = {};
  if constexpr (S::offsets) offset = S::offset(span, block, lane, group);
  else zeros = S::zeros(span, lane, packing);
#pragma GCC unroll 4
  for (int j = 0; j < L; j += 4) {
    const vu codes = (vu)C::four(block + S::block + 4 * lane, (at + j) / 4);
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
      const vf code = C::numbers((vi)(codes >> (8 * b) & 255));
      rows[j + b] = S::offsets ? scale * code + offset : scale * (code - zeros);
    }
  }
  transpose(rows);
}

// The nearest bf16, ties to even, as floats.
KVRT_INLINE vf nearest_bf16(vf x) {
  const vu bits = (vu)x;
  return (vf)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

// One step of a row of W, as lay_out() stores it: elements `a`, and for bf16 `b` behind them.
template <class T> KVRT_INLINE void store_step(float* to, vf a, vf b) {
  if constexpr (kStep<T> == L) return store(to, a);
#if defined(KVRT_PAIRS)
  if constexpr (kPairs<T>) return store(to, to_bf16(a, b));
#endif
  store(to, shuffle<Odd>(nearest_bf16(a), nearest_bf16(b)));
  store(to + kOut * L, shuffle<Even>(nearest_bf16(a), nearest_bf16(b)));
}

// Lays out elements k0 .. k0 + length of a panel, as lay_out() does rows, kOut * kBlock floats for each kOut of them. k0 is a
// multiple of a step.
template <class T, class C, class S>
static void lay_out_codes(const char* panel, Packing packing, int k0, int length, float* to) {
  constexpr int bytes = S::block + kPanelRows * kCodes * C::bits / 8, step = kStep<T>, V = kPacked<T> / L;
  const int in_span = (S::span(packing) + kCodes - 1) / kCodes;
  for (int b = k0 / kCodes; b * kCodes < k0 + length; b++) {
    const char *span = panel + b / in_span * (S::head + in_span * bytes), *block = span + S::head + b % in_span * bytes;
#pragma GCC unroll 8
    for (int at = 0; at < kCodes; at += step) {
      const int i = b * kCodes + at - k0;
      if (i < 0 || i >= length) continue;
#pragma GCC unroll 4
      for (int lane = 0; lane < kPanelRows; lane += L) {
        vf rows[step];
#pragma GCC unroll 2
        for (int part = 0; part < step; part += L) decode<C, S>(span, block, packing, lane, at + part, rows + part);
#pragma GCC unroll 16
        for (int r = 0; r < L; r++)
          store_step<T>(to + (lane + r) / kOut * kOut * kBlock + (i / step * V * kOut + (lane + r) % kOut) * L, rows[r],
                        rows[step - L + r]);
      }
    }
  }
}

// Whether weights of codes are multiplied as those of bf16, and not with activations that are codes, too: a weight's matrices
// all are, or none.
KVRT_INLINE bool as_bf16(const LinearArgs& a) { return a.dtype == Dtype::codes && a.packed[0].packing.codes == Codes::e4m3; }

// What linear.h wants to know of this kernel.
template <class T> struct Decoded {
  static constexpr int kDecoded = kPanelRows * kBlock;  // floats

  static LinearShape shape(const LinearArgs& a) { return {kPanelRows, 1, kMostRows / 2, Lanes<T>::shape(a).packed_stride}; }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) { Lanes<T>::pack(a, m0, m1, packed); }
  static size_t work(int rows) { return kDecoded + size_t(kPanelRows) * rows; }

  static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                      float* c, int64_t c_stride, float* work) {
    float* sums = work + kDecoded;
    const int size = block_size<T>(a.k);
    by_panels(a, parts, n0, n1, rows, c, c_stride, sums, [&](const char* panel, Packing packing) {
      __builtin_memset(sums, 0, sizeof(float) * kPanelRows * rows);
      for (int k0 = 0; k0 < a.k; k0 += size) {
        const int length = k0 + size < a.k ? size : a.k - k0;
        by_packing(packing, [&](auto codes, auto scales) {
          lay_out_codes<T, decltype(codes), decltype(scales)>(panel, packing, k0, length, work);
        });
        for (int o = 0; o < kPanelOuts; o++)
          tiles(Panel<T>{work + o * kOut * kBlock}, x + words<T>(k0), x_stride, rows, int(words<T>(length)),
                sums + o * kOut, kPanelRows, NotAhead{});
      }
    });
  }
};
