// RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * weight, row by row.

KVRT_INLINE vf load_part(const float* p, int count) {
  float copy[L] = {};
  __builtin_memcpy(copy, p, sizeof(float) * count);
  return load(copy);
}

// 1 / sqrt(mean(x^2) + eps); four sums over interleaved vectors, then one tree.
KVRT_INLINE float inverse_rms(const float* x, int size, float eps) {
  vf s[4] = {};
  int i = 0, j = 0;
  for (; i + L <= size; i += L, j = (j + 1) & 3) s[j] = fma(load(x + i), load(x + i), s[j]);
  if (i < size) {
    const vf tail = load_part(x + i, size - i);
    s[j] = fma(tail, tail, s[j]);
  }
  const v4f total = reduce4<Add>(s[0], s[1], s[2], s[3]);
  return 1.f / __builtin_sqrtf(((total[0] + total[1]) + (total[2] + total[3])) / float(size) + eps);
}

static void rms_norm(const NormArgs& a, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float* x = a.x + r * a.x_stride;
    const float scale = inverse_rms(x, a.size, a.eps);
    float* y = a.y + r * a.y_stride;
    for (int i = 0; i < a.size; i++) y[i] = x[i] * scale * a.weight[i];
  }
}
