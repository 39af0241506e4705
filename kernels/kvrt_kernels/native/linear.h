// y = x W^T for row-major W, at memory speed for a few rows of x and near the arithmetic peak for many.
//
//   k:   |<-------------- block of 1024 ------------->|<- next block ->|
//        |step|step|step| ...                         |                     step: L floats, or 2 L bf16
//
//   one output =  ((block 0) + block 1) + ...        block = tree over lanes of (sum over steps, ascending)
//
// That order is the same for every number of rows and every tile shape: a register tile of R rows of x by kOut rows of
// W only decides which outputs are computed together, so a token's result does not depend on its batch. Blocks keep a
// tile's operands in the first-level cache, and the rounding error of a long sum small.

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOut = 8;
#else
constexpr int kOut = 4;
#endif
constexpr int kBlock = 1024;
constexpr int kIn = 3;           // rows of x in the widest register tile
constexpr int kStreamRows = 12;  // up to here W is read once, as a stream; above it is reused and widened first

// Elements of k per step. bf16 is taken as 32-bit words, even elements first, which costs no shuffle; the activations
// are packed to match (linear_pack).
template <class T> constexpr int kStep = L;
template <> constexpr int kStep<bf16> = 2 * L;

// ---- packing of activations -----------------------------------------------------------------------------------------

template <class T> static void pack_row(const float* x, int k, float* packed) {
  constexpr int step = kStep<T>;
  int i = 0;
  for (; i + step <= k; i += step)
    for (int j = 0; j < step; j++) packed[i + j] = x[i + (step == L ? j : 2 * (j % L) + j / L)];
  if (i < k)
    for (int j = 0; j < step; j++) {
      const int from = i + (step == L ? j : 2 * (j % L) + j / L);
      packed[i + j] = from < k ? x[from] : 0.f;
    }
}

static int64_t linear_packed_stride(const LinearArgs& a) {
  const int step = a.dtype == Dtype::bf16 ? 2 * L : L;
  if (a.dtype != Dtype::bf16 && a.k % step == 0) return 0;
  return (a.k + step - 1) / step * step;
}

static void linear_pack(const LinearArgs& a, int m0, int m1, float* packed) {
  const int64_t stride = linear_packed_stride(a);
  for (int m = m0; m < m1; m++)
    if (a.dtype == Dtype::bf16)
      pack_row<bf16>(a.x + m * a.x_stride, a.k, packed + m * stride);
    else
      pack_row<float>(a.x + m * a.x_stride, a.k, packed + m * stride);
}

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

template <class T, int R>
KVRT_INLINE void step(const T* const* w, const float* const* x, int64_t k, vf (*acc)[kOut]) {
  vf y[R];
  if constexpr (std::is_same<T, bf16>::value) {
    vf z[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) y[r] = load(x[r] + k), z[r] = load(x[r] + k + L);
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) {
      const vu word = load_as<vu>(w[o] + k);
      const vf even = (vf)(word << 16), odd = (vf)(word & 0xffff0000u);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][o] = fma(odd, z[r], fma(even, y[r], acc[r][o]));
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) y[r] = load(x[r] + k);
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) {
      const vf v = load(w[o] + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][o] = fma(v, y[r], acc[r][o]);
    }
  }
}

// c[R][kOut] += x[R][k0 .. k1) . w[kOut][k0 .. k1)^T; asks for the same piece of the rows `ahead` meanwhile.
template <class T, int R>
static void tile(const T* const* w, const T* const* ahead, const float* const* x, int k0, int k1, float* c,
                 int64_t c_stride) {
  vf acc[R][kOut];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) acc[r][o] = vf{};
  int k = k0;
  for (; k + kStep<T> <= k1; k += kStep<T>) {
    if (ahead) {
#pragma GCC unroll 8
      for (int o = 0; o < kOut; o++)
        if (kStep<T> * sizeof(T) == 64 || k * sizeof(T) % 64 == 0) prefetch(ahead[o] + (k - k0));
    }
    step<T, R>(w, x, k, acc);
  }
  if (k < k1) {  // the last, partial step: x is packed with zeros, W is copied so as not to read beyond its end
    T copy[kOut][kStep<T>] = {};
    const T* tail[kOut];
    for (int o = 0; o < kOut; o++) {
      __builtin_memcpy(copy[o], w[o] + k, (k1 - k) * sizeof(T));
      tail[o] = copy[o] - k;
    }
    step<T, R>(tail, x, k, acc);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o += 4) {
      float* y = c + r * c_stride + o;
      store4(y, load_as<v4f>(y) + reduce4<Add>(acc[r][o], acc[r][o + 1], acc[r][o + 2], acc[r][o + 3]));
    }
}

template <class T>
static void tiles(const T* const* w, const T* const* ahead, const float* x, int64_t x_stride, int rows, int k0, int k1,
                  float* c, int64_t c_stride) {
  const float* in[kIn];
  int m = 0;
  const auto group = [&](auto height) {
    constexpr int R = decltype(height)::value;
    for (int r = 0; r < R; r++) in[r] = x + (m + r) * x_stride;
    tile<T, R>(w, m == 0 ? ahead : nullptr, in, k0, k1, c + m * c_stride, c_stride);
    m += R;
  };
  while (rows - m >= 3) group(std::integral_constant<int, 3>{});
  if (rows - m == 2) group(std::integral_constant<int, 2>{});
  if (rows - m == 1) group(std::integral_constant<int, 1>{});
}

// ---- one block of outputs -------------------------------------------------------------------------------------------

// to[0 .. count) = w, as floats in the packed order, with zeros up to a full step; returns the padded length.
template <class T> static int widen(const T* w, int count, float* to) {
  int i = 0;
  const auto one = [&](const T* from) {
    if constexpr (std::is_same<T, bf16>::value) {
      const vu word = load_as<vu>(from);
      store(to + i, (vf)(word << 16));
      store(to + i + L, (vf)(word & 0xffff0000u));
    } else {
      store(to + i, load(from));
    }
  };
  for (; i + kStep<T> <= count; i += kStep<T>) one(w + i);
  if (i < count) {
    T copy[kStep<T>] = {};
    __builtin_memcpy(copy, w + i, (count - i) * sizeof(T));
    one(copy);
    i += kStep<T>;
  }
  return i;
}

// c[rows][c_stride] = x . W[n0 .. n1)^T; `wide` has room for kOut * kBlock floats.
template <class T>
static void product(const T* weight, int k, int n0, int n1, const float* x, int64_t x_stride, int rows, float* c,
                    int64_t c_stride, float* wide) {
  __builtin_memset(c, 0, sizeof(float) * rows * c_stride);
  // Beyond the last row stands the last row again; its result is not used.
  const auto rows_at = [&](int n, const T** w) {
    for (int o = 0; o < kOut; o++) w[o] = weight + int64_t(n + o < n1 ? n + o : n1 - 1) * k;
  };
  const T *w[kOut], *ahead[kOut];
  if (rows <= kStreamRows) {
    for (int n = n0; n < n1; n += kOut) {
      rows_at(n, w);
      for (int k0 = 0; k0 < k; k0 += kBlock) {
        const int k1 = k0 + kBlock < k ? k0 + kBlock : k;
        if (k1 < k)
          for (int o = 0; o < kOut; o++) ahead[o] = w[o] + k1;
        else
          rows_at(n + kOut < n1 ? n + kOut : n, ahead);
        tiles<T>(w, ahead, x, x_stride, rows, k0, k1, c + (n - n0), c_stride);
      }
    }
  } else {
    for (int k0 = 0; k0 < k; k0 += kBlock)
      for (int n = n0; n < n1; n += kOut) {
        const int k1 = k0 + kBlock < k ? k0 + kBlock : k;
        rows_at(n, w);
        if constexpr (std::is_same<T, float>::value) {
          tiles<T>(w, nullptr, x, x_stride, rows, k0, k1, c + (n - n0), c_stride);
        } else {
          const float* v[kOut];
          int length = 0;
          for (int o = 0; o < kOut; o++) {
            length = widen(w[o] + k0, k1 - k0, wide + o * kBlock);
            v[o] = wide + o * kBlock - k0;
          }
          tiles<float>(v, nullptr, x, x_stride, rows, k0, k0 + length, c + (n - n0), c_stride);
        }
      }
  }
}

KVRT_INLINE vf activate(Gate gate, vf x) {
  if (gate == Gate::silu) return x * sigmoid(x);
  // 0.5 x (1 + tanh(y)) = x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
  return x * sigmoid(1.5957691216f * fma(x * x * x, splat<vf>(0.044715f), x));
}

struct LinearScratch {
  int64_t stride;
  float *c, *up, *wide;

  LinearScratch(const LinearArgs& a, int rows, int columns, Arena& arena) {
    stride = (columns + 15) / 16 * 16;
    c = arena.take<float>(size_t(rows) * stride);
    up = a.gate == Gate::none ? nullptr : arena.take<float>(size_t(rows) * stride);
    wide = arena.take<float>(kOut * kBlock);
  }
};

template <class T>
static void linear_block(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1,
                         Arena arena) {
  const LinearScratch s(a, m1 - m0, n1 - n0, arena);
  const T* w = static_cast<const T*>(a.w);
  const int rows = m1 - m0, columns = n1 - n0;
  x += m0 * x_stride;
  product<T>(w, a.k, n0, n1, x, x_stride, rows, s.c, s.stride, s.wide);
  if (a.gate != Gate::none)
    product<T>(w + int64_t(a.n) * a.k, a.k, n0, n1, x, x_stride, rows, s.up, s.stride, s.wide);
  for (int r = 0; r < rows; r++) {
    float* c = s.c + r * s.stride;
    if (a.gate != Gate::none) {
      const float* up = s.up + r * s.stride;
      for (int i = 0; i < columns; i += L) store(c + i, activate(a.gate, load(c + i)) * load(up + i));
    }
    if (a.bias)
      for (int i = 0; i < columns; i++) c[i] += a.bias[n0 + i];
    if (a.residual) {
      const float* add = a.residual + (m0 + r) * a.residual_stride + n0;
      for (int i = 0; i < columns; i++) c[i] += add[i];
    }
    __builtin_memcpy(a.y + (m0 + r) * a.y_stride + n0, c, sizeof(float) * columns);
  }
}

static size_t linear_scratch(const LinearArgs& a, int rows, int columns) {
  Arena arena{nullptr};
  LinearScratch(a, rows, columns, arena);
  return arena.used;
}

static void linear(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1,
                   void* scratch) {
  const Arena arena{static_cast<char*>(scratch)};
  switch (a.dtype) {
    case Dtype::f32: return linear_block<float>(a, x, x_stride, m0, m1, n0, n1, arena);
    case Dtype::bf16: return linear_block<bf16>(a, x, x_stride, m0, m1, n0, n1, arena);
    case Dtype::f16: return linear_block<f16>(a, x, x_stride, m0, m1, n0, n1, arena);
  }
}
