// Matrices of codes in panels (packed.py), read vector by vector.
//
//   panel of 16 rows of W, for each span of k:    head: scales, or the factors of scales
//                          for each 32 of k:      the scales, where heads have their factors | codes
//
// Whatever is kept for each row is kept for 16 rows, one after the other. So a vector has numbers of L rows, and nothing
// is ever added across its lanes.

constexpr int kPanelRows = 16;
constexpr int kCodes = 32;  // a block

KVRT_INLINE vi splat_word(int32_t word) { return word - vi{}; }

// ---- codes ----------------------------------------------------------------------------------------------------------

// Codes are kept in planes as kvrt.spi.WeightFormat says: the low bits first, as many as fit a power of two. A plane of
// `width` bits is lines of 64 bytes; four codes of each row are a byte each, and 8 / width times four share their bytes.

constexpr int first_plane(int bits) { return bits & 8 ? 8 : bits & 4 ? 4 : bits & 2 ? 2 : 1; }

// Codes 4 i .. 4 i + 4 of L rows of a block, a byte each; `planes` begin with those of the first row wanted.
template <int bits, int low = 0> KVRT_INLINE vi four(const char* planes, int i) {
  constexpr int width = first_plane(bits), in_byte = 8 / width;
  const vu line = (vu)load_as<vi>(planes + 64 * (i / in_byte));
  if constexpr (width == 8) return (vi)line;
  constexpr uint32_t mask = (((1u << width) - 1) << low) * 0x01010101u;
  const int from = i % in_byte * width;
  const vi codes = (vi)((from > low ? line >> (from - low) : line << (low - from)) & mask);
  if constexpr (bits == width) return codes;
  else return codes | four<bits - width, low + width>(planes + 64 * (8 / in_byte), i);
}

// What codes are. `four` gives numbers of one byte from 0 on, for products of whole numbers; `numbers` widens a byte of
// each lane.
template <int width> struct Whole {
  static constexpr int bits = width;
  KVRT_INLINE vi four(const char* planes, int i) { return kvrt::KVRT_ISA::four<bits>(planes, i); }
  KVRT_INLINE vf numbers(vi bytes) { return to_floats(bytes); }
};

// 16 numbers that are looked up, with 128 added.
struct Iq4 { static constexpr uint8_t numbers[] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}; };
struct E2m1 {
  static constexpr uint8_t numbers[] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};
};
template <class Table> struct LookedUp {
  static constexpr int bits = 4;
  KVRT_INLINE vi four(const char* planes, int i) {
    const vi codes = kvrt::KVRT_ISA::four<bits>(planes, i);
#if defined(__AVX512F__)
    return (vi)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_as<__m128i>(Table::numbers)), (__m512i)codes);
#elif defined(__AVX2__)
    return (vi)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_as<__m128i>(Table::numbers)), (__m256i)codes);
#elif defined(__aarch64__)
    return (vi)vqtbl1q_u8(load_as<uint8x16_t>(Table::numbers), (uint8x16_t)codes);
#else
    uint8_t bytes[kBytes];
    __builtin_memcpy(bytes, &codes, kBytes);
    for (uint8_t& byte : bytes) byte = Table::numbers[byte];
    return load_as<vi>(bytes);
#endif
  }
  KVRT_INLINE vf numbers(vi bytes) { return to_floats(bytes); }
};

// Numbers of E4M3 that are finite: a sign, four bits of exponent with 7 added, three of mantissa. Only for products with
// activations as they are.
struct E4m3 {
  static constexpr int bits = 8;
  KVRT_INLINE vi four(const char* planes, int i) { return kvrt::KVRT_ISA::four<bits>(planes, i); }
  KVRT_INLINE vf numbers(vi bytes) {  // as whole numbers first: float arithmetic is slow where numbers are subnormal
    const vi exponent = bytes >> 3 & 15, normal = exponent > 0;  // -1: true
    const vi whole = ((bytes & 7) | (normal & 8)) << (exponent + normal);
    return (vf)((vi)(to_floats(whole) * splat<vf>(0x1p-9f)) | ((bytes & 128) << 24));
  }
};

// ---- scales ---------------------------------------------------------------------------------------------------------

// Ways to keep scales. `head` bytes begin a span, `block` bytes each 32 of it, which are one or two groups. The value of
// a code is, as kvrt.spi.WeightFormat says, scale * (code - zero), or scale * code + offset.

// A float16 for each group, and perhaps an offset.
template <int groups_of_32, bool with_offsets> struct Halves {
  static constexpr bool offsets = with_offsets;
  static constexpr int groups = groups_of_32, head = 32 * groups * (1 + offsets), block = 0;
  KVRT_INLINE int span(Packing) { return kCodes; }
  KVRT_INLINE vf scale(const char* span, const char*, int lane, int group) {
    return load(reinterpret_cast<const f16*>(span + 32 * group) + lane);
  }
  KVRT_INLINE vf offset(const char* span, const char*, int lane, int group) {
    return load(reinterpret_cast<const f16*>(span + 32 * (groups + group)) + lane);
  }
  KVRT_INLINE vf zeros(const char*, int, Packing packing) { return splat<vf>(float(packing.zero)); }
  KVRT_INLINE vi minus_zeros(const char*, int, Packing packing, int times) { return splat_word(-packing.zero * times); }
};

// A float32 for a span, and its zeros, a byte each.
struct Wholes {
  static constexpr bool offsets = false;
  static constexpr int groups = 1, head = 64 + 16, block = 0;
  KVRT_INLINE int span(Packing packing) { return packing.span; }
  KVRT_INLINE vf scale(const char* span, const char*, int lane, int) {
    return load(reinterpret_cast<const float*>(span) + lane);
  }
  KVRT_INLINE vf offset(const char*, const char*, int, int) { return vf{}; }
  KVRT_INLINE vf zeros(const char* span, int lane, Packing) { return to_floats((vi)bytes(span, lane)); }
  KVRT_INLINE vi minus_zeros(const char* span, int lane, Packing, int times) {
    return dot2((vw)bytes(span, lane), (vw)splat_word(-times & 0xffff));  // |times| < 2^15
  }

 private:
  KVRT_INLINE vu bytes(const char* span, int lane) {
    return load_each(reinterpret_cast<const uint8_t*>(span) + 64 + lane);
  }
};

// For each group a signed byte, which times a float16 of its span is the scale; perhaps offsets likewise.
template <int groups_of_32, bool with_offsets> struct Levels {
  static constexpr bool offsets = with_offsets;
  static constexpr int groups = groups_of_32, head = offsets ? 64 : 32, block = 16 * groups * (1 + offsets);
  KVRT_INLINE int span(Packing packing) { return packing.span; }
  KVRT_INLINE vf scale(const char* span, const char* block, int lane, int group) {
    return number(span, block + 16 * group, lane);
  }
  KVRT_INLINE vf offset(const char* span, const char* block, int lane, int group) {
    return number(span + 32, block + 16 * (groups + group), lane);
  }
  KVRT_INLINE vf zeros(const char*, int, Packing packing) { return splat<vf>(float(packing.zero)); }
  KVRT_INLINE vi minus_zeros(const char*, int, Packing packing, int times) { return splat_word(-packing.zero * times); }

 private:
  KVRT_INLINE vf number(const char* factors, const char* wholes, int lane) {
    return load(reinterpret_cast<const f16*>(factors) + lane) *
           to_floats(load_each(reinterpret_cast<const int8_t*>(wholes) + lane));
  }
};

// Calls f(codes, scales) for a packing: those that panels.py lays out.
template <class F> KVRT_INLINE void by_packing(Packing p, const F& f) {
  const bool table = p.codes != Codes::whole;
  switch (p.scales) {
    case Scales::halves:
      if (table) return f(LookedUp<Iq4>{}, Halves<1, false>{});
      return p.bits == 4   ? f(Whole<4>{}, Halves<1, false>{})
             : p.bits == 5 ? f(Whole<5>{}, Halves<1, false>{})
                           : f(Whole<8>{}, Halves<1, false>{});
    case Scales::halves_with_offsets:
      return p.bits == 4 ? f(Whole<4>{}, Halves<1, true>{}) : f(Whole<5>{}, Halves<1, true>{});
    case Scales::halves_of_16:
      return f(LookedUp<E2m1>{}, Halves<2, false>{});
    case Scales::wholes:
      if (p.codes == Codes::e4m3) return f(E4m3{}, Wholes{});
      if (table) return f(LookedUp<E2m1>{}, Wholes{});
      return p.bits == 2 ? f(Whole<2>{}, Wholes{}) : p.bits == 4 ? f(Whole<4>{}, Wholes{}) : f(Whole<8>{}, Wholes{});
    case Scales::levels:
      return f(LookedUp<Iq4>{}, Levels<1, false>{});
    case Scales::levels_with_offsets:
      return p.bits == 4 ? f(Whole<4>{}, Levels<1, true>{}) : f(Whole<5>{}, Levels<1, true>{});
    case Scales::levels_of_16:
      return p.bits == 3 ? f(Whole<3>{}, Levels<2, false>{}) : f(Whole<6>{}, Levels<2, false>{});
    case Scales::levels_of_16_with_offsets:
      return f(Whole<2>{}, Levels<2, true>{});
  }
}

// ---- products -------------------------------------------------------------------------------------------------------

// c[parts][rows][c_stride] = x . W[n0 .. n1)^T for each part, where compute(panel, packing) leaves the products with the
// 16 rows of a panel in `sums`, [rows][16]. A part may begin anywhere in a panel. `c` may be `sums`, for one panel's rows.
template <class F>
KVRT_INLINE void by_panels(const LinearArgs& a, int parts, int n0, int n1, int rows, float* c, int64_t c_stride,
                           const float* sums, const F& compute) {
  for (int part = 0; part < parts; part++, c += rows * c_stride) {
    const int first = part * a.n + n0, last = first + n1 - n0;
    for (int row = first, until; row < last; row = until) {
      const PackedRow at = packed_row(a, row);
      const int lane = at.row % kPanelRows, left = at.matrix->rows - at.row;
      until = row + (left < kPanelRows - lane ? left : kPanelRows - lane);
      if (until > last) until = last;
      compute(panel_of(at, a.k), at.matrix->packing);
      if (c == sums) continue;
      for (int r = 0; r < rows; r++)
        __builtin_memcpy(c + r * c_stride + row - first, sums + r * kPanelRows + lane, sizeof(float) * (until - row));
    }
  }
}
