// The machine's own limits, to set the kernels' speed beside.

static float read(const float* data, size_t count) {
  vf s[8] = {};
  for (size_t i = 0; i + 8 * L <= count; i += 8 * L)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      prefetch(data + i + j * L + 1024);
      s[j] += load(data + i + j * L);
    }
  return sum(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
}

// Each of these returns the operations it has done; `rounds` of them take about as long everywhere.
static double fma_rounds(int64_t rounds) {
  vf s[12];
  for (int j = 0; j < 12; j++) s[j] = splat<vf>(float(j));
  const vf a = splat<vf>(0.5f), b = splat<vf>(1.f);
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) s[j] = fma(s[j], a, b);
  vf total = s[0];
  for (int j = 1; j < 12; j++) total += s[j];
  volatile float keep = sum(total);
  (void)keep;
  return double(rounds) * 12 * L * 2;
}

#if defined(__AMX_INT8__)
static double code_rounds(int64_t rounds) {
  const TileConfig config = tiles_of_codes();
  zero_sums();
  _tile_zero(4);
  _tile_zero(6);
  rounds /= 8;  // of 64 cycles each
  for (int64_t i = 0; i < rounds; i++) {
    _tile_dpbssd(0, 6, 4);
    _tile_dpbssd(1, 6, 4);
    _tile_dpbssd(2, 6, 4);
    _tile_dpbssd(3, 6, 4);
  }
  return double(rounds) * 4 * kSide * kPanelRows * kCodes * 2;
}
#else
static double code_rounds(int64_t rounds) {
  vi s[12];
  for (int j = 0; j < 12; j++) s[j] = splat_word(j);
  const vi w = splat_word(0x01010101);
  const int32_t x[2] = {0x00010001, 0x00010001};
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) s[j] = dot4(w, x, s[j]);
  for (int j = 1; j < 12; j++) s[0] += s[j];
  volatile int32_t keep = s[0][0];
  (void)keep;
  return double(rounds) * 12 * L * 4 * 2;
}
#endif

#if defined(__AMX_BF16__)
static double tile_rounds(int64_t rounds) {
  const TileConfig config = tiles_of_pairs(kSide);
  zero_sums();
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  rounds /= 8;  // of 64 cycles each
  for (int64_t i = 0; i < rounds; i++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  return double(rounds) * 4 * kSide * kSide * kTileStep * 2;
}
#endif

#if defined(KVRT_PAIRS) && !defined(__AMX_BF16__)
static double pair_rounds(int64_t rounds) {
  vf s[12];
  for (int j = 0; j < 12; j++) s[j] = splat<vf>(float(j));
  const vf a = splat<vf>(0.f);
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) s[j] = dot2(a, a, s[j]);
  for (int j = 1; j < 12; j++) s[0] += s[j];
  volatile float keep = sum(s[0]);
  (void)keep;
  return double(rounds) * 12 * L * 2 * 2;
}
#endif

// By the instructions that multiply with weights of that type.
static double product_rounds(Dtype dtype, int64_t rounds) {
  if (dtype == Dtype::codes) return code_rounds(rounds);
#if defined(__AMX_BF16__)
  if (dtype == Dtype::bf16) return tile_rounds(rounds);
#elif defined(KVRT_PAIRS)
  if (dtype == Dtype::bf16) return pair_rounds(rounds);
#endif
  return fma_rounds(rounds);
}
