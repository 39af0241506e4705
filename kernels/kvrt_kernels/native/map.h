// Functions of single numbers, in place.

// x / 2 (1 + erf(x / sqrt(2))): erfc(z) = t (a1 + t (a2 + ...)) e^(-z^2), t = 1 / (1 + 0.3275911 z) for z >= 0, to
// 1.5e-7 (Abramowitz & Stegun 7.1.26), and x - x erfc(z) / 2 for x >= 0, x erfc(z) / 2 for x < 0.
KVRT_INLINE vf gelu(vf x) {
  const vf magnitude = -max(splat<vf>(-64.f), -max(x, -x));  // where the rest is 0 already: infinity times 0 is NaN
  const vf positive = max(splat<vf>(0.f), x), z = magnitude * 0.70710678f;
  const vf t = 1.f / (1.f + 0.3275911f * z);
  vf p = splat<vf>(1.061405429f);
  p = fma(p, t, splat<vf>(-1.453152027f));
  p = fma(p, t, splat<vf>(1.421413741f));
  p = fma(p, t, splat<vf>(-0.284496736f));
  p = fma(p, t, splat<vf>(0.254829592f));
  return positive - 0.5f * magnitude * (p * t * exp2(z * z * -kLog2e));
}

template <class F> KVRT_INLINE void map_row(float* x, int size, const F& f) {
  int i = 0;
  for (; i + L <= size; i += L) store(x + i, f(load(x + i)));
  if (i < size) {  // the same instructions, so that a number's place changes nothing
    float copy[L];
    store(copy, f(load_part(x + i, size - i)));
    __builtin_memcpy(x + i, copy, sizeof(float) * (size - i));
  }
}

static void map(const MapArgs& a, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    float* x = a.x + r * a.stride;
    switch (a.map) {
      case Map::gelu: map_row(x, a.size, [](vf v) KVRT_INLINED { return gelu(v); }); break;
      case Map::gelu_tanh: map_row(x, a.size, [](vf v) KVRT_INLINED { return activate(Gate::gelu_tanh, v); }); break;
      case Map::relu2:
        map_row(x, a.size, [](vf v) KVRT_INLINED {
          const vf positive = max(splat<vf>(0.f), v);
          return positive * positive;
        });
        break;
      case Map::scaled: {
        const float factor = a.factors[r];
        for (int i = 0; i < a.size; i++) x[i] *= factor;
        break;
      }
    }
  }
}
