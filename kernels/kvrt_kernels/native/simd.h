// Vectors of float for one instruction set, on GCC/Clang vector types.
//
// Included inside a namespace of its own by isa.cpp. Code here is built with -ffp-contract=off and every fused
// multiply-add is written as fma(): which operations fuse is then part of the source, and no inlining decision can
// make two callers of one formula differ in a bit.

#define KVRT_FORCE inline __attribute__((always_inline))
#define KVRT_INLINE static KVRT_FORCE
#define KVRT_INLINED __attribute__((always_inline))  // after a lambda's parameters

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int L = kBytes / 4;  // lanes

typedef float vf __attribute__((vector_size(kBytes)));
typedef int32_t vi __attribute__((vector_size(kBytes)));
typedef uint32_t vu __attribute__((vector_size(kBytes)));
typedef int16_t vw __attribute__((vector_size(kBytes)));
typedef uint16_t vh __attribute__((vector_size(kBytes / 2)));
typedef int8_t vb __attribute__((vector_size(kBytes / 4)));
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

template <class V> struct Int;
template <> struct Int<vf> { using type = vi; };
#if defined(__AVX2__)
template <> struct Int<v4f> { using type = v4i; };
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class V> KVRT_INLINE V splat(float x) { return x - V{}; }
template <class V> KVRT_INLINE V load_as(const void* p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }
KVRT_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
KVRT_INLINE void store(int32_t* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }
KVRT_INLINE void store4(float* p, v4f v) { __builtin_memcpy(p, &v, sizeof v); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// a * b + c: fused where the instruction set can, otherwise rounded twice, always the same on one instruction set.
#if defined(__AVX512F__)
KVRT_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
KVRT_INLINE v4f fma(v4f a, v4f b, v4f c) { return (v4f)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c); }
KVRT_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
KVRT_INLINE v4f max(v4f a, v4f b) { return (v4f)_mm_max_ps((__m128)a, (__m128)b); }
#elif defined(__AVX2__)
KVRT_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
KVRT_INLINE v4f fma(v4f a, v4f b, v4f c) { return (v4f)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c); }
KVRT_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
KVRT_INLINE v4f max(v4f a, v4f b) { return (v4f)_mm_max_ps((__m128)a, (__m128)b); }
#elif defined(__aarch64__)
KVRT_INLINE vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
KVRT_INLINE vf max(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
#else
KVRT_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
KVRT_INLINE vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
#endif

// 2^x for x < 127, relative error below 2e-7; below -126 it stays at 2^-126. Adding 1.5 * 2^23 rounds to an integer in
// the low bits of the mantissa; the fraction, in [-0.5, 0.5], goes through the Taylor polynomial of degree 6 of 2^x.
template <class V> KVRT_INLINE V exp2(V x) {
  using I = typename Int<V>::type;
  x = max(splat<V>(-126.f), x);  // in this order a NaN stays one on x86
  const V rounded = x + splat<V>(12582912.f);
  const V f = x - (rounded - splat<V>(12582912.f));
  V p = splat<V>(1.5403530e-4f);
  p = fma(p, f, splat<V>(1.3333558e-3f));
  p = fma(p, f, splat<V>(9.6181291e-3f));
  p = fma(p, f, splat<V>(5.5504109e-2f));
  p = fma(p, f, splat<V>(2.4022651e-1f));
  p = fma(p, f, splat<V>(6.9314718e-1f));
  p = fma(p, f, splat<V>(1.f));
  return (V)((I)p + ((I)rounded << 23));
}

// In each 32-bit lane, the sum of the products of its two 16-bit halves; exact below 2^31.
#if defined(__AVX512F__)
KVRT_INLINE vi dot2(vw a, vw b) { return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
KVRT_INLINE vi dot2(vw a, vw b) { return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__aarch64__)
KVRT_INLINE vi dot2(vw a, vw b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return (vi)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}
#else
KVRT_INLINE vi dot2(vw a, vw b) { return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#endif

// To the nearest whole number, ties to even, for |x| < 2^22.
KVRT_INLINE vi nearest(vf x) { return (vi)(x + splat<vf>(12582912.f)) - (vi)splat<vf>(12582912.f); }

constexpr float kLog2e = 1.44269504088896341f;

// 1 / (1 + 2^y), y clamped where 2^y would overflow.
KVRT_INLINE vf logistic(vf y) { return 1.f / (1.f + exp2(-max(splat<vf>(-126.f), -y))); }
KVRT_INLINE vf sigmoid(vf x) { return logistic(x * -kLog2e); }
KVRT_INLINE vf tanh(vf x) { return 1.f - 2.f * logistic(x * (2.f * kLog2e)); }

// ---- 16-bit floats --------------------------------------------------------------------------------------------------

KVRT_INLINE vf load(const float* p) { return load_as<vf>(p); }
KVRT_INLINE vf load(const bf16* p) {
#if defined(__AVX512F__)  // GCC 12 makes five instructions of the generic conversion below
  return (vf)((vu)_mm512_cvtepu16_epi32(load_as<__m256i>(p)) << 16);
#else
  return (vf)(__builtin_convertvector(load_as<vh>(p), vu) << 16);
#endif
}
KVRT_INLINE vf load(const f16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(load_as<__m128i>(p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(load_as<float16x4_t>(p));
#else
  // Shifting the exponent field into place leaves it 112 too small; the product mends it, subnormals included.
  const vu h = __builtin_convertvector(load_as<vh>(p), vu);
  const vf magnitude = (vf)((h & 0x7fffu) << 13) * splat<vf>(0x1p112f);
  const vu special = (vu)(vi)((h & 0x7c00u) == 0x7c00u) & 0x7f800000u;  // infinity and NaN
  return (vf)((vu)magnitude | special | ((h & 0x8000u) << 16));
#endif
}

// The two bf16 of each 32-bit word, the one at the lower address first.
KVRT_INLINE vf low_half(vf words) { return (vf)((vu)words << 16); }
KVRT_INLINE vf high_half(vf words) { return (vf)((vu)words & 0xffff0000u); }

// Some have an instruction for pairs of bf16.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define KVRT_PAIRS
#endif

#if defined(__AVX512BF16__)
// The elements of a and then of b as bf16, to nearest, ties to even; subnormals become zero.
KVRT_INLINE vf to_bf16(vf a, vf b) { return (vf)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }

// c plus, in each 32-bit word, the product of the higher bf16 and then that of the lower; float32, subnormals are zero.
KVRT_INLINE vf dot2(vf a, vf b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
KVRT_INLINE vf to_bf16(vf a, vf b) {
  return (vf)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)a), (float32x4_t)b);
}

// c plus, in each 32-bit word, the sum of the products of its two bf16; all rounded to odd, subnormals are zero.
KVRT_INLINE vf dot2(vf a, vf b, vf c) {
  return (vf)vbfdotq_f32((float32x4_t)c, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#endif

KVRT_INLINE void narrow(float* p, float x) { *p = x; }
KVRT_INLINE void narrow(bf16* p, float x) {  // to nearest, ties to even
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
KVRT_INLINE void narrow(f16* p, float x) {
#if defined(__AVX2__)
  p->bits = (uint16_t)_cvtss_sh(x, 0);
#elif defined(__aarch64__)
  const __fp16 h = (__fp16)x;
  __builtin_memcpy(p, &h, 2);
#else
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) { p->bits = (uint16_t)(sign | 0x7e00); return; }  // NaN
  if (u >= 0x477ff000) { p->bits = (uint16_t)(sign | 0x7c00); return; }  // 65520 and above round to infinity
  if (u < 0x38800000) {  // below 2^-14: adding 0.5 aligns the result's last bit with the float's, rounding to even
    float f;
    __builtin_memcpy(&f, &u, 4);
    f += 0.5f;
    __builtin_memcpy(&u, &f, 4);
    p->bits = (uint16_t)(sign | (u - 0x3f000000));
    return;
  }
  p->bits = (uint16_t)(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));
#endif
}

// ---- shuffles -------------------------------------------------------------------------------------------------------

template <class F, class V, int... I>
KVRT_INLINE V shuffle(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, F::at(I, n)...);
}
template <class F, class V> KVRT_INLINE V shuffle(V a, V b) {
  return shuffle<F>(a, b, std::make_integer_sequence<int, sizeof(V) / 4>{});
}
// Index of output lane i when the second operand's lanes are numbered from n. Within each 128 bits:
//   Lo32: a0 b0 a1 b1     Hi32: a2 b2 a3 b3     Lo64: a0 a1 b0 b1     Hi64: a2 a3 b2 b3
struct Lo32 { static constexpr int at(int i, int n) { return (i & ~3) + ((i & 2) >> 1) + (i & 1) * n; } };
struct Hi32 { static constexpr int at(int i, int n) { return Lo32::at(i, n) + 2; } };
struct Lo64 { static constexpr int at(int i, int n) { return (i & ~3) + (i & 1) + ((i & 2) >> 1) * n; } };
struct Hi64 { static constexpr int at(int i, int n) { return Lo64::at(i, n) + 2; } };
// 128-bit blocks H apart change places between two vectors.
template <int H> struct LoBlock { static constexpr int at(int i, int n) { return (i / 4 & H) ? n + i - 4 * H : i; } };
template <int H> struct HiBlock { static constexpr int at(int i, int n) { return (i / 4 & H) ? n + i : i + 4 * H; } };

// Even lanes from a, odd ones from b: a0 b0 a1 b1 ... of the lower and of the upper halves.
struct ZipLo { static constexpr int at(int i, int n) { return i / 2 + (i & 1) * n; } };
struct ZipHi { static constexpr int at(int i, int n) { return (i + n) / 2 + (i & 1) * n; } };
// The even, or the odd, elements of a and then of b.
struct Even { static constexpr int at(int i, int) { return 2 * i; } };
struct Odd { static constexpr int at(int i, int) { return 2 * i + 1; } };
// Block c is four times element J of the c-th run of 4 * W elements of a and b.
template <int W, int J> struct Spread { static constexpr int at(int i, int) { return i / 4 * 4 * W + J; } };

template <int W, int... J> KVRT_INLINE void spread(vf a, vf b, float* to, std::integer_sequence<int, J...>) {
  (store(to + J * L, shuffle<Spread<W, J>>(a, b)), ...);
}

template <int H> KVRT_INLINE void swap_blocks(vf* r) {
  if constexpr (H < L / 4) {
#pragma GCC unroll 16
    for (int g = 0; g < L / 4; g++)
      if (!(g & H))
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const vf a = r[4 * g + i], b = r[4 * (g + H) + i];
          r[4 * g + i] = shuffle<LoBlock<H>>(a, b);
          r[4 * (g + H) + i] = shuffle<HiBlock<H>>(a, b);
        }
    swap_blocks<2 * H>(r);
  }
}

// Transposes the 4 x 4 matrices in the 128-bit blocks of r[0 .. 4).
KVRT_INLINE void transpose4(vf* r) {
  const vf a = shuffle<Lo32>(r[0], r[1]), b = shuffle<Hi32>(r[0], r[1]);
  const vf c = shuffle<Lo32>(r[2], r[3]), d = shuffle<Hi32>(r[2], r[3]);
  r[0] = shuffle<Lo64>(a, c);
  r[1] = shuffle<Hi64>(a, c);
  r[2] = shuffle<Lo64>(b, d);
  r[3] = shuffle<Hi64>(b, d);
}

// Transposes the L x L matrix whose rows are r[0 .. L).
KVRT_INLINE void transpose(vf* r) {
#pragma GCC unroll 4
  for (int g = 0; g < L; g += 4) transpose4(r + g);
  swap_blocks<1>(r);
}

// From x[0 .. n), n = L / 4: the 128-bit blocks of x[0], added up by a tree, then those of x[1], and so on.
template <int H = 1, class V> KVRT_INLINE V sum_blocks(V* x) {
  if constexpr (H < L / 4) {
#pragma GCC unroll 4
    for (int i = 0; i < L / 4 / H / 2; i++)
      x[i] = shuffle<LoBlock<H>>(x[2 * i], x[2 * i + 1]) + shuffle<HiBlock<H>>(x[2 * i], x[2 * i + 1]);
    return sum_blocks<2 * H>(x);
  }
  return x[0];
}

struct Add { template <class V> KVRT_INLINE V of(V a, V b) { return a + b; } };
struct Max { template <class V> KVRT_INLINE V of(V a, V b) { return max(a, b); } };

// The four horizontal reductions of a, b, c and d, by one fixed tree.
template <class Op> KVRT_INLINE v4f reduce4(vf a, vf b, vf c, vf d) {
  const vf ab = Op::of(shuffle<Lo32>(a, b), shuffle<Hi32>(a, b));
  const vf cd = Op::of(shuffle<Lo32>(c, d), shuffle<Hi32>(c, d));
  const vf r = Op::of(shuffle<Lo64>(ab, cd), shuffle<Hi64>(ab, cd));  // every block: parts of a b c d
#if defined(__AVX512F__)
  const __m256 h = (__m256)_mm512_castps512_ps256((__m512)r);
  const __m256 g = (__m256)_mm512_extractf32x8_ps((__m512)r, 1);
  return Op::of(Op::of((v4f)_mm256_castps256_ps128(h), (v4f)_mm256_castps256_ps128(g)),
                Op::of((v4f)_mm256_extractf128_ps(h, 1), (v4f)_mm256_extractf128_ps(g, 1)));
#elif defined(__AVX2__)
  return Op::of((v4f)_mm256_castps256_ps128((__m256)r), (v4f)_mm256_extractf128_ps((__m256)r, 1));
#else
  return r;
#endif
}

KVRT_INLINE float sum(vf v) { return reduce4<Add>(v, v, v, v)[0]; }

// The c-th 128-bit block.
KVRT_INLINE v4i block(vi v, int c) {
  v4i b;
  __builtin_memcpy(&b, reinterpret_cast<const char*>(&v) + 16 * c, sizeof b);
  return b;
}

// Makes the compiler hold v in a register, where it would rather read it from memory again for every use.
KVRT_INLINE void keep(vf& v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+v"(v));
#endif
}

// ---- memory ---------------------------------------------------------------------------------------------------------

KVRT_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Takes aligned pieces out of one scratch buffer; with base == nullptr it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T> T* take(size_t count) {
    T* p = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};
