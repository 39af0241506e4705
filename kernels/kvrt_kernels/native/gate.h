// What follows on a product: bias, activation, residual.

KVRT_INLINE vf activate(Gate gate, vf x) {
  if (gate == Gate::silu) return x * sigmoid(x);
  // 0.5 x (1 + tanh(y)) = x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
  return x * sigmoid(1.5957691216f * fma(x * x * x, splat<vf>(0.044715f), x));
}

// What becomes of the products with gate and up.
KVRT_INLINE vf gated(const LinearArgs& a, vf gate, vf up) {
  if (a.gate != Gate::clamped) return activate(a.gate, gate) * up;
  const vf limit = splat<vf>(a.limit);  // NaN stays
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return (up + 1.f) * gate * sigmoid(gate * a.alpha);
}

#if defined(__AVX512F__)
// y[row][n .. n + count), at most L, from products with W, or with gate and up.
KVRT_INLINE void follow(const LinearArgs& a, int64_t row, int n, int count, vf product, vf up) {
  if (count <= 0) return;
  const __mmask16 lanes = count >= L ? 0xffff : __mmask16((1u << count) - 1);
  const auto some = [&](const float* p) KVRT_INLINED { return (vf)_mm512_maskz_loadu_ps(lanes, p); };
  if (a.bias) product = product + some(a.bias + n);
  if (a.gate != Gate::none) product = gated(a, product, a.bias ? up + some(a.bias + a.n + n) : up);
  if (a.residual) product = product + some(a.residual + row * a.residual_stride + n);
  _mm512_mask_storeu_ps(a.y + row * a.y_stride + n, lanes, (__m512)product);
}

// Asks for what that will write and read.
KVRT_INLINE void ask_to_follow(const LinearArgs& a, int64_t row, int n) {
  __builtin_prefetch(a.y + row * a.y_stride + n, 1, 2);
  if (a.residual) prefetch(a.residual + row * a.residual_stride + n);
}
#endif
