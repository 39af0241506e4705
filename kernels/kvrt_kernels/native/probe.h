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
