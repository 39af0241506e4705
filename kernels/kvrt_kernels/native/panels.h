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

// ---- scales ---------------------------------------------------------------------------------------------------------

// Ways to keep scales. `head` bytes begin a span, `block` bytes each 32 of it, which are one or two groups. The value of
// a code is, as kvrt.spi.WeightFormat says, scale * (code - zero), or scale * code + offset.

// A float16 for each 32, and perhaps an offset.
template <bool with_offsets> struct Halves {
  static constexpr bool offsets = with_offsets;
  static constexpr int groups = 1, head = offsets ? 64 : 32, block = 0;
  KVRT_INLINE int span(Packing) { return kCodes; }
  KVRT_INLINE vf scale(const char* span, const char*, int lane, int) {
    return load(reinterpret_cast<const f16*>(span) + lane);
  }
  KVRT_INLINE vf offset(const char* span, const char*, int lane, int) {
    return load(reinterpret_cast<const f16*>(span + 32) + lane);
  }
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
  KVRT_INLINE vi minus_zeros(const char* span, int lane, Packing, int times) {
    const vu zeros = load_each(reinterpret_cast<const uint8_t*>(span) + 64 + lane);
    return dot2((vw)zeros, (vw)splat_word(-times & 0xffff));  // |times| < 2^15
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
  KVRT_INLINE vi minus_zeros(const char*, int, Packing packing, int times) { return splat_word(-packing.zero * times); }

 private:
  KVRT_INLINE vf number(const char* factors, const char* wholes, int lane) {
    return load(reinterpret_cast<const f16*>(factors) + lane) *
           to_floats(load_each(reinterpret_cast<const int8_t*>(wholes) + lane));
  }
};

// Calls f(bits, scales) for a packing: what packed.py lays out.
template <class F> KVRT_INLINE void by_packing(Packing p, const F& f) {
  constexpr std::integral_constant<int, 2> two{};
  constexpr std::integral_constant<int, 3> three{};
  constexpr std::integral_constant<int, 4> four{};
  constexpr std::integral_constant<int, 5> five{};
  constexpr std::integral_constant<int, 6> six{};
  constexpr std::integral_constant<int, 8> eight{};
  switch (p.scales) {
    case Scales::halves:
      return p.bits == 4 ? f(four, Halves<false>{}) : p.bits == 5 ? f(five, Halves<false>{}) : f(eight, Halves<false>{});
    case Scales::halves_with_offsets:
      return p.bits == 4 ? f(four, Halves<true>{}) : f(five, Halves<true>{});
    case Scales::wholes:
      return p.bits == 2 ? f(two, Wholes{}) : p.bits == 4 ? f(four, Wholes{}) : f(eight, Wholes{});
    case Scales::levels_with_offsets:
      return p.bits == 4 ? f(four, Levels<1, true>{}) : f(five, Levels<1, true>{});
    case Scales::levels_of_16:
      return p.bits == 3 ? f(three, Levels<2, false>{}) : f(six, Levels<2, false>{});
    case Scales::levels_of_16_with_offsets:
      return f(two, Levels<2, true>{});
  }
}
