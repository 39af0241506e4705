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
constexpr int kMostRows = 192;  // of x, of which a block of k stays in the second-level cache while W passes by
constexpr int kIn = 3;  // rows of x in the widest register tile
constexpr int kDirectRows = 24;  // up to here tiles read W where it is, as one stream; above, a panel is laid out

// Elements of k per step.
template <class T> constexpr int kStep = L;
template <> constexpr int kStep<bf16> = 2 * L;

// Whether a step is one instruction on pairs of elements: of W, and of activations rounded to bf16.
template <class T> constexpr bool kPairs = false;
#if defined(KVRT_PAIRS)
template <> constexpr bool kPairs<bf16> = true;
#endif

// ---- packing of activations -----------------------------------------------------------------------------------------

// 32-bit words that a step of activations is packed in. bf16 weights are taken as such words, too, which costs no
// shuffle: as pairs, or odd elements first, which is the order of the instruction on pairs.
template <class T> constexpr int kPacked = L;
template <> constexpr int kPacked<bf16> = kPairs<bf16> ? L : 2 * L;

template <class T> constexpr int64_t words(int64_t k) { return (k + kStep<T> - 1) / kStep<T> * kPacked<T>; }

template <class T> KVRT_INLINE void pack_step(const float* x, float* packed) {
  const vf a = load(x);
  if constexpr (kStep<T> == L) return store(packed, a);
  const vf b = load(x + L);
#if defined(KVRT_PAIRS)
  if constexpr (kPairs<T>) return store(packed, to_bf16(a, b));
#endif
  store(packed, shuffle<Odd>(a, b));
  store(packed + L, shuffle<Even>(a, b));
}

template <class T> static void pack_row(const float* x, int k, float* packed) {
  constexpr int step = kStep<T>;
  int i = 0;
  for (; i + step <= k; i += step, packed += kPacked<T>) pack_step<T>(x + i, packed);
  if (i < k) {
    float rest[2 * L] = {};
    __builtin_memcpy(rest, x + i, sizeof(float) * (k - i));
    pack_step<T>(rest, packed);
  }
}

// One step of W: L floats, or the bits of 2 L bf16.
KVRT_INLINE vf load_step(const bf16* w) { return load_as<vf>(w); }
template <class T> KVRT_INLINE vf load_step(const T* w) { return load(w); }

// ---- micro-kernel ---------------------------------------------------------------------------------------------------

// A tile walks through words of x, and asks its W for those of row o that they meet.

// kOut rows of W where they are.
template <class T> struct InPlace {
  using Element = T;
  const T* w;
  int64_t stride;
  static constexpr int vectors = kPacked<T> / L;  // of x for one of W

  // Bits of one step of row o: L floats, or 2 L bf16.
  KVRT_FORCE vf at(int o, int word) const { return load_step(w + o * stride + word / kPacked<T> * kStep<T>); }
};

// kOut rows of W, widened unless in pairs, and laid out step by step: [steps][kOut][L].
template <class T> struct Panel {
  using Element = T;
  const float* w;
  static constexpr int vectors = 1;

  KVRT_FORCE vf at(int o, int word) const { return load(w + word * kOut + o * L); }
};

// sum + w * x, or with pairs sum + w[1] * x[1] + w[0] * x[0].
template <class T> KVRT_INLINE vf add_product(vf w, vf x, vf sum) {
#if defined(KVRT_PAIRS)
  if constexpr (kPairs<T>) return dot2(w, x, sum);
#endif
  return fma(w, x, sum);
}

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

// Nothing.
struct NotAhead {
  const char* w = nullptr;
  int64_t stride = 0;
  int rows = 0;

  KVRT_FORCE void ask() {}
};

// c[R][kOut] += x[R][0 .. words) . w^T
template <int R, class W, class Asked>
static void tile(const W w, const float* x, int64_t x_stride, int words, float* c, int64_t c_stride, Asked ahead) {
  using T = typename W::Element;
  constexpr int V = W::vectors;
  vf acc[R][kOut];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) acc[r][o] = vf{};
  for (int i = 0; i < words; i += V * L) {
    vf y[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) y[r][j] = load(x + r * x_stride + i + j * L);
    ahead.ask();
#pragma GCC unroll 8
    for (int o = 0; o < kOut; o++) {
      vf v = w.at(o, i), low;
      if constexpr (V == 2) low = low_half(v), v = high_half(v);
      keep(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][o] = add_product<T>(v, y[r][0], acc[r][o]);
      if constexpr (V == 2) {
        keep(low);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r][o] = add_product<T>(low, y[r][1], acc[r][o]);
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

template <class W, class Asked>
static void tiles(const W w, const float* x, int64_t x_stride, int rows, int words, float* c, int64_t c_stride,
                  Asked ahead) {
  const int groups = (rows + kIn - 1) / kIn;
  int m = 0, asked = 0;
  const auto group = [&](auto height) {
    constexpr int R = decltype(height)::value;
    const int ask = (m / kIn + 1) * kOut / groups;  // an even share with each group of rows
    ahead.rows = ask - asked;
    tile<R>(w, x + m * x_stride, x_stride, words, c + m * c_stride, c_stride, ahead);
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
  constexpr int step = kStep<T>, V = kPacked<T> / L;
  for (int o = 0; o < kOut; o++) {
    float* to = panel + o * L;
    for (int i = 0; i < k; i += step, to += V * kOut * L) {
      T part[step] = {};
      const T* from = w + o * stride + i;
      if (o >= count || i + step > k) {
        if (o < count) __builtin_memcpy(part, from, sizeof(T) * (k - i));
        from = part;
      }
      const vf v = load_step(from);
      store(to, V == 2 ? high_half(v) : v);
      if constexpr (V == 2) store(to + kOut * L, low_half(v));
    }
  }
}

// What one call of tiles() covers: kOut rows of one part of W (the gate and up of a gated layer are two), one block of k.
struct Piece {
  int part, n, k0;
};

// Of the blocks of k, of nearly equal size, all but the last.
template <class T> static int block_size(int64_t k) {
  constexpr int step = kStep<T>;
  const int blocks = k > kBlock ? int((k + kBlock - 1) / kBlock) : 1;
  return int((k + blocks - 1) / blocks + step - 1) / step * step;
}

// c[parts][rows][c_stride] = x . W[n0 .. n1)^T for each part; `panel` has room for kOut * kBlock floats. Pieces come in
// the order of memory for a few rows of x; each asks for the next one.
template <class T>
static void product_in_lanes(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride,
                             int rows, float* c, int64_t c_stride, float* panel) {
  constexpr int step = kStep<T>;
  const int64_t k = a.k;
  const int size = block_size<T>(k);
  __builtin_memset(c, 0, sizeof(float) * parts * rows * c_stride);

  const auto weights = [&](const Piece& p) { return static_cast<const T*>(a.w) + (p.part * a.n + p.n) * k + p.k0; };
  const auto compute = [&](const Piece& p, const Piece& next) {
    const int length = p.k0 + size < k ? size : int(k) - p.k0, count = p.n + kOut < n1 ? kOut : n1 - p.n;
    const auto all = [&](auto from) {
      constexpr int bytes = kStep<T> * from.vectors * L / kPacked<T> * sizeof(T);
      const Piece after = p.part + 1 < parts ? Piece{p.part + 1, p.n, 0} : Piece{0, p.n + kOut, 0};
      const Ahead ahead = rows <= kDirectRows
          ? Ahead{reinterpret_cast<const char*>(weights(after) + kOut * p.k0), bytes, 0, kOut * bytes}
          : Ahead{reinterpret_cast<const char*>(weights(next)), int64_t(k * sizeof(T)), 0, bytes};
      tiles(from, x + words<T>(p.k0), x_stride, rows, int(words<T>(length)),
            c + p.part * rows * c_stride + (p.n - n0), c_stride, ahead);
    };
    if (rows <= kDirectRows && count == kOut && length % step == 0) {
      all(InPlace<T>{weights(p), k});
    } else {
      lay_out(weights(p), k, count, length, panel);
      all(Panel<T>{panel});
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

// What linear.h wants to know of these kernels.
template <class T> struct Lanes {
  static LinearShape shape(const LinearArgs& a) {
    return {kOut, 1, kMostRows, kStep<T> == L && a.k % L == 0 ? 0 : words<T>(a.k)};
  }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    for (int m = m0; m < m1; m++) pack_row<T>(a.x + m * a.x_stride, a.k, packed + m * words<T>(a.k));
  }
  static size_t work(int) { return kOut * kBlock; }
  static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                      float* c, int64_t c_stride, float* work) {
    product_in_lanes<T>(a, parts, n0, n1, x, x_stride, rows, c, c_stride, work);
  }
};
