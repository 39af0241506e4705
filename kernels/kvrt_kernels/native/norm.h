// RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467), y = x / sqrt(mean(x^2) + eps) * weight, row by row; and layer norm
// (Ba et al. 2016, arXiv 1607.06450), the same of x - mean(x), and then + bias.

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

// In the same order.
KVRT_INLINE float mean(const float* x, int size) {
  vf s[4] = {};
  int i = 0, j = 0;
  for (; i + L <= size; i += L, j = (j + 1) & 3) s[j] += load(x + i);
  if (i < size) s[j] += load_part(x + i, size - i);
  const v4f total = reduce4<Add>(s[0], s[1], s[2], s[3]);
  return ((total[0] + total[1]) + (total[2] + total[3])) / float(size);
}

static void norm(const NormArgs& a, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float* x = a.x + r * a.x_stride;
    float* y = a.y + r * a.y_stride;
    if (a.norm == Norm::none) {
      for (int i = 0; i < a.size; i++) y[i] += a.scale * x[i];
    } else if (a.norm == Norm::layer) {
      const float middle = mean(x, a.size);
      for (int i = 0; i < a.size; i++) y[i] = x[i] - middle;
      const float scale = inverse_rms(y, a.size, a.eps);
      for (int i = 0; i < a.size; i++) y[i] = y[i] * scale * a.weight[i];
      if (a.bias)
        for (int i = 0; i < a.size; i++) y[i] += a.bias[i];
    } else {
      const float scale = inverse_rms(x, a.size, a.eps);
      if (a.added)
        for (int i = 0; i < a.size; i++) y[i] += a.scale * (x[i] * scale * a.weight[i]);
      else
        for (int i = 0; i < a.size; i++) y[i] = x[i] * scale * a.weight[i];
    }
  }
}
