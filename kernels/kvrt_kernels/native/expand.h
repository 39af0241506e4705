// What is done to rows once a product has made them: matrices of low rank added, gates.

static void gate(const GateArgs& a) {
  for (int r = 0; r < a.rows; r++) {
    const float *x = a.x + r * a.x_stride, *up = a.up + r * a.x_stride;
    float* out = a.out + r * a.out_stride;
    int i = 0;
    for (; i + L <= a.size; i += L) store(out + i, activate(a.gate, load(x + i)) * load(up + i));
    if (i < a.size) {
      float last[L];
      store(last, activate(a.gate, load_part(x + i, a.size - i)) * load_part(up + i, a.size - i));
      __builtin_memcpy(out + i, last, sizeof(float) * (a.size - i));
    }
  }
}

// R rows, some of their columns: all L from `i` on.
template <int R, class T> KVRT_INLINE void expand_step(const ExpandArgs& a, const T* b, int row, int i) {
  const float* z = a.z + row * a.z_stride;
  float* y = a.y + row * a.y_stride + i;
  vf sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r] = load(y + r * a.y_stride);
  for (int j = 0; j < a.rank; j++) {
    const vf weight = load(b + j * a.b_stride + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = fma(splat<vf>(z[r * a.z_stride + j]), weight, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) store(y + r * a.y_stride, sum[r]);
}

template <class T> static void expand_as(const ExpandArgs& a) {
  const T* b = static_cast<const T*>(a.b);
  int row = 0, i = 0;
  for (; row + 8 <= a.rows; row += 8)
    for (i = 0; i + L <= a.size; i += L) expand_step<8>(a, b, row, i);
  for (; row + 2 <= a.rows; row += 2)
    for (i = 0; i + L <= a.size; i += L) expand_step<2>(a, b, row, i);
  for (; row < a.rows; row++)
    for (i = 0; i + L <= a.size; i += L) expand_step<1>(a, b, row, i);
  i = a.size / L * L;
  for (row = 0; row < a.rows && i < a.size; row++) {  // the same instructions for what is left
    float* y = a.y + row * a.y_stride + i;
    vf sum = load_part(y, a.size - i);
    for (int j = 0; j < a.rank; j++) {
      T part[L] = {};
      __builtin_memcpy(part, b + j * a.b_stride + i, sizeof(T) * (a.size - i));
      sum = fma(splat<vf>(a.z[row * a.z_stride + j]), load(part), sum);
    }
    float last[L];
    store(last, sum);
    __builtin_memcpy(y, last, sizeof(float) * (a.size - i));
  }
}

static void expand(const ExpandArgs& a) {
  switch (a.dtype) {
    case Dtype::bf16: return expand_as<bf16>(a);
    case Dtype::f16: return expand_as<f16>(a);
    default: return expand_as<float>(a);
  }
}
