// y = x W^T for row-major W, at memory speed for a few rows of x and near the arithmetic peak for many.
//
//   k:   |<------- block, at most 1024 -------->|<- next block ->|
//        |step|step|step| ...                   |                      step: L floats, or 2 L bf16
//
//   one output =  (block 0 + block 1) + ...        block = tree over lanes of (sum over steps, ascending)
//
// That order depends on k alone: a register tile of R rows of x by kOut rows of W only decides which outputs are
// computed together, so a token's result does not depend on its batch. Blocks keep a tile's operands in the first-level
// cache, and the rounding error of a long sum small.

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOut = 8;
#else
constexpr int kOut = 4;
#endif
constexpr int kBlock = 1024;
constexpr int kIn = 3;  // rows of x in the widest register tile
constexpr int kDirectRows = 24;  // up to here tiles read W where it is, as one stream; above, a panel is laid out

// Elements of k per step. bf16 is taken as 32-bit words, even elements first, which costs no shuffle; the activations
// are packed to match (linear_pack).
template <class T> constexpr int kStep = L;
template <> constexpr int kStep<bf16> = 2 * L;

// ---- packing of activations -----------------------------------------------------------------------------------------

template <class T> KVRT_INLINE void pack_step(const float* x, float* packed) {
  const vf a = load(x);
  if constexpr (kStep<T> == L) return store(packed, a);
  const vf b = load(x + L);
  store(packed, shuffle<Even>(a, b));
  store(packed + L, shuffle<Odd>(a, b));
}

template <class T> static void pack_row(const float* x, int k, float* packed) {
  constexpr int step = kStep<T>;
  int i = 0;
  for (; i + step <= k; i += step) pack_step<T>(x + i, packed + i);
  if (i < k) {
    float rest[2 * L] = {};
    __builtin_memcpy(rest, x + i, sizeof(float) * (k - i));
    pack_step<T>(rest, packed + i);
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

// One step of W: L floats, or the bits of 2 L bf16.
KVRT_INLINE vf load_step(const bf16* w) { return load_as<vf>(w); }
template <class T> KVRT_INLINE vf load_step(const T* w) { return load(w); }

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

// kOut rows of W where they are.
template <class T> struct InPlace {
  const T* w;
  int64_t stride;
  static constexpr int vectors = kStep<T> / L;

  // Bits of one step of row o: L floats, or 2 L bf16.
  KVRT_FORCE vf at(int o, int k) const { return load_step(w + o * stride + k); }
};

// kOut rows of W, widened and laid out step by step: [steps][kOut][L].
struct Panel {
  const float* w;
  static constexpr int vectors = 1;

  KVRT_FORCE vf at(int o, int k) const { return load(w + k * kOut + o * L); }
};

// Rows of W that will be read next; tiles ask for them on the way, `step` bytes of each with every step of theirs.
struct Ahead {
  const char* w;
  int64_t stride;
  int rows, step;

  KVRT_FORCE void ask() {
    const char* line = w;
    if (rows == kOut) {  // without a loop: most often there is one group of rows of x
#pragma GCC unroll 8
      for (int o = 0; o < kOut; o++) prefetch(line + o * stride);
    } else {
      for (int o = 0; o < rows; o++, line += stride) prefetch(line);
    }
    w += step;
  }
};

// c[R][kOut] += x[R][0 .. k) . w^T
template <int R, class W>
static void tile(const W w, const float* x, int64_t x_stride, int k, float* c, int64_t c_stride, Ahead ahead) {
  constexpr int V = W::vectors;
  vf acc[R][kOut];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) acc[r][o] = vf{};
  for (int i = 0; i < k; i += V * L) {
    vf y[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) y[r][j] = load(x + r * x_stride + i + j * L);
    ahead.ask();
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) {
      vf v = w.at(o, i), high;
      if constexpr (V == 2) high = high_half(v), v = low_half(v);
      keep(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][o] = fma(v, y[r][0], acc[r][o]);
      if constexpr (V == 2) {
        keep(high);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r][o] = fma(high, y[r][1], acc[r][o]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o += 4) {
      float* y = c + r * c_stride + o;
      store4(y, load_as<v4f>(y) + reduce4<Add>(acc[r][o], acc[r][o + 1], acc[r][o + 2], acc[r][o + 3]));
    }
}

template <class W>
static void tiles(const W w, const float* x, int64_t x_stride, int rows, int k, float* c, int64_t c_stride,
                  Ahead ahead) {
  const int groups = (rows + kIn - 1) / kIn;
  int m = 0, asked = 0;
  const auto group = [&](auto height) {
    constexpr int R = decltype(height)::value;
    const int ask = (m / kIn + 1) * kOut / groups;  // an even share with each group of rows
    ahead.rows = ask - asked;
    tile<R>(w, x + m * x_stride, x_stride, k, c + m * c_stride, c_stride, ahead);
    ahead.w += ahead.rows * ahead.stride;
    asked = ask;
    m += R;
  };
  while (rows - m >= 3) group(std::integral_constant<int, 3>{});
  if (rows - m == 2) group(std::integral_constant<int, 2>{});
  if (rows - m == 1) group(std::integral_constant<int, 1>{});
}

// ---- one block of outputs -------------------------------------------------------------------------------------------

// Lays out `count` rows of W, `k` elements each; what is missing to kOut rows and to a full step is zero.
template <class T> static void lay_out(const T* w, int64_t stride, int count, int k, float* panel) {
  constexpr int V = kStep<T> / L;
  for (int o = 0; o < kOut; o++) {
    float* to = panel + o * L;
    for (int i = 0; i < k; i += V * L, to += V * kOut * L) {
      T part[V * L] = {};
      const T* from = w + o * stride + i;
      if (o >= count || i + V * L > k) {
        if (o < count) __builtin_memcpy(part, from, sizeof(T) * (k - i));
        from = part;
      }
      const vf v = load_step(from);
      store(to, V == 2 ? low_half(v) : v);
      if constexpr (V == 2) store(to + kOut * L, high_half(v));
    }
  }
}

// What one call of tiles() covers: kOut rows of one part of W (the gate and up of a gated layer are two), one block of k.
struct Piece {
  int part, n, k0;
};

// c[parts][rows][c_stride] = x . W[n0 .. n1)^T for each part; `panel` has room for kOut * kBlock floats. Pieces come in
// the order of memory for a few rows of x; each asks for the next one.
template <class T>
static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                    float* c, int64_t c_stride, float* panel) {
  constexpr int step = kStep<T>;
  const int64_t k = a.k;
  const int blocks = k > kBlock ? int((k + kBlock - 1) / kBlock) : 1;  // of nearly equal size
  const int size = int((k + blocks - 1) / blocks + step - 1) / step * step;
  __builtin_memset(c, 0, sizeof(float) * parts * rows * c_stride);

  const auto weights = [&](const Piece& p) { return static_cast<const T*>(a.w) + (p.part * a.n + p.n) * k + p.k0; };
  const auto compute = [&](const Piece& p, const Piece& next) {
    const int length = p.k0 + size < k ? size : int(k) - p.k0, count = p.n + kOut < n1 ? kOut : n1 - p.n;
    const auto all = [&](auto from, int steps) {
      constexpr int bytes = from.vectors * L * sizeof(T);
      const Piece after = p.part + 1 < parts ? Piece{p.part + 1, p.n, 0} : Piece{0, p.n + kOut, 0};
      const Ahead ahead = rows <= kDirectRows
          ? Ahead{reinterpret_cast<const char*>(weights(after) + kOut * p.k0), bytes, 0, kOut * bytes}
          : Ahead{reinterpret_cast<const char*>(weights(next)), int64_t(k * sizeof(T)), 0, bytes};
      tiles(from, x + p.k0, x_stride, rows, steps, c + p.part * rows * c_stride + (p.n - n0), c_stride, ahead);
    };
    if (rows <= kDirectRows && count == kOut && length % step == 0) {
      all(InPlace<T>{weights(p), k}, length);
    } else {
      lay_out(weights(p), k, count, length, panel);
      all(Panel{panel}, (length + step - 1) / step * step);
    }
  };
  Piece current{0, n0, 0};
  const auto then = [&](const Piece& next) {
    if (next.part != current.part || next.n != current.n || next.k0 != current.k0) compute(current, next);
    current = next;
  };
  if (rows <= kDirectRows) {
    for (int n = n0; n < n1; n += kOut)
      for (int part = 0; part < parts; part++)
        for (int k0 = 0; k0 < k; k0 += size) then({part, n, k0});
  } else {
    for (int part = 0; part < parts; part++)
      for (int k0 = 0; k0 < k; k0 += size)
        for (int n = n0; n < n1; n += kOut) then({part, n, k0});
  }
  then({0, n1, 0});  // where this thread probably goes on
}

KVRT_INLINE vf activate(Gate gate, vf x) {
  if (gate == Gate::silu) return x * sigmoid(x);
  // 0.5 x (1 + tanh(y)) = x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
  return x * sigmoid(1.5957691216f * fma(x * x * x, splat<vf>(0.044715f), x));
}

struct LinearScratch {
  int64_t stride;
  float *c, *panel;

  LinearScratch(int parts, int rows, int columns, Arena& arena) {
    stride = (columns + 15) / 16 * 16;
    c = arena.take<float>(size_t(parts) * rows * stride);
    panel = arena.take<float>(kOut * kBlock);
  }
};

template <class T>
static void linear_block(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1,
                         Arena arena) {
  const int rows = m1 - m0, columns = n1 - n0, parts = a.gate == Gate::none ? 1 : 2;
  const LinearScratch s(parts, rows, columns, arena);
  product<T>(a, parts, n0, n1, x + m0 * x_stride, x_stride, rows, s.c, s.stride, s.panel);
  for (int r = 0; r < rows; r++) {
    float* c = s.c + r * s.stride;
    if (a.bias)
      for (int part = 0; part < parts; part++)
        for (int i = 0; i < columns; i++) c[part * rows * s.stride + i] += a.bias[part * a.n + n0 + i];
    if (a.gate != Gate::none) {
      const float* up = c + rows * s.stride;
      for (int i = 0; i < columns; i += L) store(c + i, activate(a.gate, load(c + i)) * load(up + i));
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
  LinearScratch(a.gate == Gate::none ? 1 : 2, rows, columns, arena);
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
