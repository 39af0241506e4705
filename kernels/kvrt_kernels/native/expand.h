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

// R rows, V vectors of their columns from `i` on; factors are [rank][R].
template <int R, int V, class T>
KVRT_INLINE void expand_step(const ExpandArgs& a, const T* b, const float* factors, float* y, int i) {
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[r][v] = load(y + r * a.y_stride + i + v * L);
  for (int j = 0; j < a.rank; j++) {
    vf weight[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) weight[v] = load(b + j * a.b_stride + i + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[r][v] = fma(splat<vf>(factors[j * R + r]), weight[v], sum[r][v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(y + r * a.y_stride + i + v * L, sum[r][v]);
}

// All columns of R rows; factors are [rank][R].
template <int R, class T>
static void expand_columns(const ExpandArgs& a, const T* b, const float* factors, float* y) {
  constexpr int V = kBytes == 64 || R < 8 ? 2 : 1;  // as many sums as there are registers for
  int i = 0;
  for (; i + V * L <= a.size; i += V * L) expand_step<R, V>(a, b, factors, y, i);
  for (; i + L <= a.size; i += L) expand_step<R, 1>(a, b, factors, y, i);
  for (int r = 0; r < R && i < a.size; r++) {  // the same instructions for what is left
    float* end = y + r * a.y_stride + i;
    vf sum = load_part(end, a.size - i);
    for (int j = 0; j < a.rank; j++) {
      T part[L] = {};
      __builtin_memcpy(part, b + j * a.b_stride + i, sizeof(T) * (a.size - i));
      sum = fma(splat<vf>(factors[j * R + r]), load(part), sum);
    }
    float last[L];
    store(last, sum);
    __builtin_memcpy(end, last, sizeof(float) * (a.size - i));
  }
}

// Few rows take those of b one after the other, as they are in memory, whose reading takes the time; y stays in cache.
template <int R, class T> static void expand_rows(const ExpandArgs& a, int row) {
  constexpr int most = R < 8 ? 1 : 64;  // rows of b
  const T* b = static_cast<const T*>(a.b);
  const float* z = a.z + row * a.z_stride;
  ExpandArgs some = a;
  for (int j0 = 0; j0 < a.rank; j0 += most) {
    some.rank = j0 + most < a.rank ? most : a.rank - j0;
    float factors[most * R];
    for (int j = 0; j < some.rank; j++)
      for (int r = 0; r < R; r++) factors[j * R + r] = z[r * a.z_stride + j0 + j];
    expand_columns<R>(some, b + j0 * a.b_stride, factors, a.y + row * a.y_stride);
  }
}

template <class T> static void expand_as(const ExpandArgs& a) {
  int row = 0;
  for (; row + 8 <= a.rows; row += 8) expand_rows<8, T>(a, row);
  for (; row + 2 <= a.rows; row += 2) expand_rows<2, T>(a, row);
  for (; row < a.rows; row++) expand_rows<1, T>(a, row);
}

static void expand(const ExpandArgs& a) {
  switch (a.dtype) {
    case Dtype::bf16: return expand_as<bf16>(a);
    case Dtype::f16: return expand_as<f16>(a);
    default: return expand_as<float>(a);
  }
}
