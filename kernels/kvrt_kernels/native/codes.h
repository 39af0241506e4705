// Keys and values kept as codes, small whole numbers, with scales. kvrt.spi.KVLayout defines every byte.

struct i8 { int8_t code; };    // an element
struct i4 { uint8_t codes; };  // two elements: byte j of a group's 16 holds its elements j and 16 + j

// How a head of `dim` elements is kept: `items` from one slot to the next, `groups` of `group` elements with a scale.
template <class T> struct Kept {
  static constexpr bool codes = false;
  KVRT_INLINE int items(int dim) { return dim; }
};
template <> struct Kept<i8> {
  using Scale = float;
  static constexpr bool codes = true;
  static constexpr int largest = 127;  // code, in magnitude
  KVRT_INLINE int group(int dim) { return dim; }
  KVRT_INLINE int groups(int) { return 1; }
  KVRT_INLINE int items(int dim) { return dim; }
};
template <> struct Kept<i4> {
  using Scale = bf16;
  static constexpr bool codes = true;
  static constexpr int largest = 8;
  KVRT_INLINE int group(int) { return 32; }
  KVRT_INLINE int groups(int dim) { return (dim + 31) / 32; }
  KVRT_INLINE int items(int dim) { return groups(dim) * 16; }
};

KVRT_INLINE int scale_groups(Format format, int dim) {
  return format == Format::i8 ? Kept<i8>::groups(dim) : format == Format::i4 ? Kept<i4>::groups(dim) : 0;
}

// ---- reading --------------------------------------------------------------------------------------------------------

// L bytes, one in each lane.
KVRT_INLINE vi load_each(const int8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepi8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(load_as<vb>(p), vi);
#endif
}
KVRT_INLINE vu load_each(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  typedef uint8_t bytes_of_lanes __attribute__((vector_size(L)));
  return __builtin_convertvector(load_as<bytes_of_lanes>(p), vu);
#endif
}
// The lowest byte of each lane.
KVRT_INLINE void store_each(int8_t* p, vi bytes) {
#if defined(__AVX512F__)
  const __m128i low = _mm512_cvtepi32_epi8((__m512i)bytes);
#else
  const vb low = __builtin_convertvector(bytes, vb);
#endif
  __builtin_memcpy(p, &low, sizeof low);
}
KVRT_INLINE vf to_floats(vi whole) { return __builtin_convertvector(whole, vf); }

// Elements d .. d + L of a row; of codes, without their scale.
template <class T> KVRT_INLINE vf load_row(const T* row, int d) { return load(row + d); }
template <> KVRT_FORCE vf load_row(const i8* row, int d) { return to_floats(load_each(&row[d].code)); }

// The bytes that hold elements d .. d + L in their low or high four bits, one in each lane.
KVRT_INLINE vu load_nibbles(const i4* row, int d) { return load_each(&row[d / 32 * 16 + d % 16].codes); }
// The numbers in bits 0 .. 4 of each lane, less 8, times a scale: exact, as both factors have few digits.
KVRT_INLINE vf number(vu nibbles, vf scale) {
#if defined(__AVX512F__)  // looked up; the permutation takes no notice of higher bits
  const vf table = vf{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7} * scale;
  return (vf)_mm512_permutexvar_ps((__m512i)nibbles, (__m512)table);
#else
  return __builtin_convertvector((vi)(nibbles & 15) - 8, vf) * scale;
#endif
}
template <> KVRT_FORCE vf load_row(const i4* row, int d) {
  return number(load_nibbles(row, d) >> (d & 16 ? 4 : 0), splat<vf>(1.f));
}

KVRT_INLINE float widen(float x) { return x; }
KVRT_INLINE float widen(bf16 x) {
  const uint32_t u = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

// The first `count` bytes of kBytes, and zeros; a multiple of 16.
KVRT_INLINE vf load_bytes(const void* p, int count) {
#if defined(__AVX512F__)
  if (count < kBytes) return (vf)_mm512_maskz_loadu_epi32((__mmask16)((1u << count / 4) - 1), p);
#elif defined(__AVX2__)
  if (count < kBytes) return (vf)_mm256_zextsi128_si256(load_as<__m128i>(p));
#else
  (void)count;
#endif
  return load_as<vf>(p);
}

// ---- rounding -------------------------------------------------------------------------------------------------------

constexpr float kTiny = 0x1p-100f;  // what is smaller is kept as 0, so that no quotient overflows

struct Range {
  float high, low;  // of all elements, if they are finite
  bool finite;

  KVRT_INLINE Range of(const float* x, int count) {  // a multiple of 16
    vf high = load(x), below = -high, none = vf{};
    for (int d = 0; d < count; d += L) {
      const vf v = load(x + d);
      high = max(high, v);
      below = max(below, -v);
      none += v * 0.f;
    }
    const v4f ends = reduce4<Max>(high, below, high, below);
    return {ends[0], -ends[1], sum(none) == 0.f};
  }
  float magnitude() const { return high > -low ? high : -low; }
};

// to[0 .. count) = x / scale to the nearest whole number, or zeros.
KVRT_INLINE void round_codes(const float* x, int count, float scale, bool live, int32_t* to) {
  for (int d = 0; d < count; d += L) store(to + d, live ? nearest(load(x + d) / splat<vf>(scale)) : vi{});
}

constexpr int kMostOfHead = 576;  // elements

KVRT_INLINE float kept_scale(float scale, bool live, bool finite) {
  return live ? scale : finite ? 0.f : __builtin_nanf("");
}

// ---- writing --------------------------------------------------------------------------------------------------------

// Stores a head of `dim` elements in one slot of a block.
template <class T> KVRT_INLINE void store_head(const float* x, T* block, int slot, int, int dim) {
  for (int d = 0; d < dim; d++) narrow(block + slot * dim + d, x[d]);
}
template <> KVRT_FORCE void store_head(const float* x, i8* block, int slot, int page_size, int dim) {
  const Range range = Range::of(x, dim);
  const bool live = range.finite && range.magnitude() >= kTiny;
  const float scale = range.magnitude() / 127.f, kept = kept_scale(scale, live, range.finite);
  int32_t codes[kMostOfHead];
  round_codes(x, dim, scale, live, codes);
  for (int d = 0; d < dim; d++) block[slot * dim + d].code = (int8_t)codes[d];
  __builtin_memcpy(block + page_size * dim + slot * 4, &kept, 4);
}
template <> KVRT_FORCE void store_head(const float* x, i4* block, int slot, int page_size, int dim) {
  const int groups = Kept<i4>::groups(dim), items = Kept<i4>::items(dim);
  for (int g = 0; g < groups; g++) {
    const int count = dim - 32 * g < 32 ? 16 : 32;
    const Range range = Range::of(x + 32 * g, count);
    const float extreme = range.high > -range.low ? range.high : range.low;
    const bool live = range.finite && range.magnitude() >= kTiny;
    bf16 kept;
    narrow(&kept, kept_scale(extreme / -8.f, live, range.finite));
    int32_t codes[32] = {};
    round_codes(x + 32 * g, count, widen(kept), live, codes);
    for (int& code : codes) code = (code < -8 ? -8 : code > 7 ? 7 : code) + 8;
    for (int j = 0; j < 16; j++)
      block[slot * items + 16 * g + j].codes = (uint8_t)(codes[j] | codes[16 + j] << 4);
    __builtin_memcpy(block + page_size * items + (g * page_size + slot) * 2, &kept, 2);
  }
}
