// Panels of linear_amx_many.h from weights that are codes of E4M3: scale * number, rounded to bf16. So products have the bits
// of those with weights that were unpacked to bf16 when they were loaded, for half the memory.

// A block of 16 rows in pairs, [16 pairs][16 rows][2]; `head` is that of its span.
//
// A code is moved into a float16, where it means 2^-8 of its number, subnormal ones, too: float16 is widened without the
// delay that float32 has for those. Codes of even and of odd places go apart, and meet again as pairs.
static void decode_fp8(const char* head, const char* codes, float* to) {
  const vf scales = load(reinterpret_cast<const float*>(head)) * splat<vf>(256.f);
  const vf low = shuffle<ZipLo>(scales, scales), high = shuffle<ZipHi>(scales, scales);
  const auto bf16_of = [&](__m512i bytes) KVRT_INLINED {  // one in each 16 bits, of row 0 twice, then of row 1, ...
    const __m512i moved = _mm512_slli_epi16(bytes, 7), sign = _mm512_and_si512(moved, _mm512_set1_epi16(0x4000));
    const __m512i halves = _mm512_add_epi16(moved, sign);
    const vf first = (vf)_mm512_cvtph_ps(_mm512_castsi512_si256(halves)) * low;
    const vf second = (vf)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)) * high;
    return (vu)to_bf16(first, second);
  };
  const __m512i bytes = _mm512_set1_epi16(0xff);
#pragma GCC unroll 8
  for (int i = 0; i < kCodes / 4; i++, to += 2 * L) {
    const __m512i four = load_as<__m512i>(codes + 64 * i);
    const vu even = bf16_of(_mm512_and_si512(four, bytes)), odd = bf16_of(_mm512_srli_epi16(four, 8));
    store(to, (vf)((even & 0xffff) | odd << 16));
    store(to + L, (vf)(even >> 16 | (odd & 0xffff0000)));
  }
}

// What ManyTiles wants to know of its panels: as Turning.
struct DecodingFp8 {
  const LinearArgs* a;
  int first[2], counts[2];  // rows of W, of each half
  int block, tiles;
  char* panel;
  int done = 0;

  static bool fits(const LinearArgs&) { return true; }
  static DecodingFp8 of(const LinearArgs& a, int n, int n1, int k0, int length, char* panel) {
    const bool gates = a.gate != Gate::none;
    const int left = n1 - n;
    return {&a, {n, n + (gates ? a.n : kSide)}, {left, gates ? left : left - kSide}, k0 / kCodes,
            2 * ((length + kCodes - 1) / kCodes), panel};
  }

  void one() {
    const int half = done % 2, count = counts[half] < kSide ? counts[half] : kSide;
    float* to = reinterpret_cast<float*>(panel + done * kTileBytes);
    const PackedRow at = packed_row(*a, first[half]);
    if (count > 0 && at.row % kPanelRows == 0 && at.matrix->rows - at.row >= count)
      decode(at, to, true);
    else
      gather(first[half], count, to);
    done++;
  }
  void rest() {
    while (done < tiles) one();
  }

 private:
  static constexpr int kBlockBytes = kPanelRows * kCodes;

  // The panel of that row.
  void decode(PackedRow at, float* to, bool ask) const {
    const int of = block + done / 2, in_span = (at.matrix->packing.span + kCodes - 1) / kCodes;
    const char* span = panel_of(at, a->k) + of / in_span * int64_t(Wholes::head + in_span * kBlockBytes);
    const char* codes = span + Wholes::head + of % in_span * kBlockBytes;
    if (ask) {  // for what is read when this half's next rows are
      const int64_t next = kPanelRows * row_bytes(at.matrix->packing, a->k) * (a->gate == Gate::none ? 2 : 1);
      for (int line = 0; line < kBlockBytes; line += 64) prefetch(codes + next + line);
    }
    decode_fp8(span, codes, to);
  }

  // Rows that are not of one panel; what is missing is zero.
  void gather(int row, int count, float* to) const {
    __builtin_memset(to, 0, kTileBytes);
    for (int o = 0; o < count;) {
      const PackedRow at = packed_row(*a, row + o);
      const int lane = at.row % kPanelRows, left = at.matrix->rows - at.row;
      int run = kPanelRows - lane < left ? kPanelRows - lane : left;
      if (run > count - o) run = count - o;
      float tile[kSide * L];
      decode(at, tile, false);
      for (int p = 0; p < kSide; p++) __builtin_memcpy(to + p * L + o, tile + p * L + lane, sizeof(float) * run);
      o += run;
    }
  }
};
