// Products of codes: four of W, bytes from 0 on, with four of x, signed bytes, are added up in each 32-bit lane. Sums are
// exact, so each instruction set takes what it has.
//
//   vpdpbusd (VNNI), usdot, usmmla (i8mm)    bytes without a sign with bytes that have one: just these
//   sdot (dotprod)                           both have one: 128 is subtracted from codes of W, and made up for
//   pmaddwd, smull                           16 bits: both are widened

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int kFour = 1;  // 32-bit words that four codes of x are packed in
#else
constexpr int kFour = 2;  // the first and third as 16 bits each, then the second and fourth
#endif

// What is subtracted from codes of W; whoever adds up adds so many times the codes of x.
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kLess = 128;
#else
constexpr int kLess = 0;
#endif

// sum + the products of codes of W, less kLess, with four of x.
KVRT_INLINE vi dot4(vi codes, const int32_t* x, vi sum) {
#if defined(__AVX512VNNI__)  // GCC 12 copies sums around its own intrinsic
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(splat_word(x[0])));
  return sum;
#elif defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(splat_word(x[0])));
  return sum;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return (vi)vusdotq_s32((int32x4_t)sum, (uint8x16_t)codes, (int8x16_t)splat_word(x[0]));
#elif defined(__ARM_FEATURE_DOTPROD)
  const vi less = codes ^ splat_word(int32_t(0x80808080));
  return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)less, (int8x16_t)splat_word(x[0]));
#else
  const vi even = codes & splat_word(0x00ff00ff), odd = (vi)((vu)codes >> 8) & splat_word(0x00ff00ff);
  return sum + dot2((vw)even, (vw)splat_word(x[0])) + dot2((vw)odd, (vw)splat_word(x[1]));
#endif
}

// sum[R] += the products of codes(first), codes(first + 1), ..., `count` of them, with those of R rows of x.
template <int R, int count, class F>
KVRT_INLINE void add_fours(const F& codes, int first, const int32_t* x, int64_t x_stride, vi* sum) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (R % 2 == 0) {  // two rows of W by two of x, eight codes of each
    vi low[R / 2] = {}, high[R / 2] = {};  // of the first two rows of W, and of the last two
#pragma GCC unroll 8
    for (int i = first; i < first + count; i += 2) {
      const int32x4_t a = (int32x4_t)codes(i), b = (int32x4_t)codes(i + 1);
      const uint8x16_t w0 = (uint8x16_t)vzip1q_s32(a, b), w1 = (uint8x16_t)vzip2q_s32(a, b);
#pragma GCC unroll 8
      for (int p = 0; p < R / 2; p++) {
        const int32_t* from = x + 2 * p * x_stride + i;
        const int8x16_t y = (int8x16_t)vcombine_s32(load_as<int32x2_t>(from), load_as<int32x2_t>(from + x_stride));
        low[p] = (vi)vusmmlaq_s32((int32x4_t)low[p], w0, y);
        high[p] = (vi)vusmmlaq_s32((int32x4_t)high[p], w1, y);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < R / 2; p++) {
      sum[2 * p] += (vi)vuzp1q_s32((int32x4_t)low[p], (int32x4_t)high[p]);
      sum[2 * p + 1] += (vi)vuzp2q_s32((int32x4_t)low[p], (int32x4_t)high[p]);
    }
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = first; i < first + count; i++) {
    const vi four = codes(i);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = dot4(four, x + r * x_stride + kFour * i, sum[r]);
  }
}
