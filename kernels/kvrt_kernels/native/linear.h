// A product as a whole: which kernel computes it, and what follows on it (bias, activation, residual).

template <class T> struct KernelOf { using type = Lanes<T>; };
#if defined(__AMX_BF16__)
template <> struct KernelOf<bf16> { using type = Tiles; };
#endif

template <class F> KVRT_INLINE auto by_kernel(const LinearArgs& a, const F& f) {
#if defined(__AMX_INT8__)
  if (a.dtype == Dtype::codes && CodeTiles::fits(a)) return f(CodeTiles{});
#endif
  switch (a.dtype) {
    case Dtype::bf16: return f(typename KernelOf<bf16>::type{});
    case Dtype::f16: return f(typename KernelOf<f16>::type{});
    case Dtype::codes: return f(Panels{});
    case Dtype::exact_codes: return f(Decoded{});
    default: return f(typename KernelOf<float>::type{});
  }
}

static LinearShape linear_shape(const LinearArgs& a) {
  return by_kernel(a, [&](auto kernel) KVRT_INLINED { return kernel.shape(a); });
}

static void linear_pack(const LinearArgs& a, int m0, int m1, float* packed) {
  by_kernel(a, [&](auto kernel) KVRT_INLINED { kernel.pack(a, m0, m1, packed); });
}

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

struct LinearScratch {
  int64_t stride;
  float *c, *work;

  template <class Kernel>
  LinearScratch(Kernel, int parts, int rows, int columns, Arena& arena) {
    stride = (columns + 15) / 16 * 16;
    c = arena.take<float>(size_t(parts) * rows * stride);
    work = arena.take<float>(Kernel::work(rows));
  }
};

template <class Kernel>
static void linear_block(Kernel kernel, const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0,
                         int n1, Arena arena) {
  const int rows = m1 - m0, columns = n1 - n0, parts = a.gate == Gate::none ? 1 : 2;
  const LinearScratch s(kernel, parts, rows, columns, arena);
  kernel.product(a, parts, n0, n1, x + m0 * x_stride, x_stride, rows, s.c, s.stride, s.work);
  for (int r = 0; r < rows; r++) {
    float* c = s.c + r * s.stride;
    if (a.bias)
      for (int part = 0; part < parts; part++)
        for (int i = 0; i < columns; i++) c[part * rows * s.stride + i] += a.bias[part * a.n + n0 + i];
    if (a.gate != Gate::none) {
      const float* up = c + rows * s.stride;
      for (int i = 0; i < columns; i += L) store(c + i, gated(a, load(c + i), load(up + i)));
    }
    if (a.residual) {
      const float* add = a.residual + (m0 + r) * a.residual_stride + n0;
      for (int i = 0; i < columns; i++) c[i] += add[i];
    }
    __builtin_memcpy(a.y + (m0 + r) * a.y_stride + n0, c, sizeof(float) * columns);
  }
}

static size_t linear_scratch(const LinearArgs& a, int rows, int columns) {
  Arena arena{nullptr};
  by_kernel(a, [&](auto kernel) {
    LinearScratch(kernel, a.gate == Gate::none ? 1 : 2, rows, columns, arena);
  });
  return arena.used;
}

static void linear(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1,
                   void* scratch) {
  by_kernel(a, [&](auto kernel) {
    linear_block(kernel, a, x, x_stride, m0, m1, n0, n1, Arena{static_cast<char*>(scratch)});
  });
}
