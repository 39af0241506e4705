// y = x W^T for bf16 W in the tiles of AMX; activations are rounded to bf16.
//
//   tile product:   c[16 rows of W][up to 16 rows of x] += W[16][step of 32] . x[...][step of 32]^T
//
//   one output =  step 0 + step 1 + ...        step = (even elements, ascending) + (odd elements, ascending)
//
// That order is the instruction's, for any number of rows of x, so all numbers of them take it. W is the left operand
// because that is row-major: its tiles are read where they are, and only x is packed. Each product is exact in float32,
// each sum is rounded to nearest, subnormals are zero.

constexpr int kTileOut = 2 * kSide;  // rows of W that are multiplied together
constexpr int kLeastOfMany = 1024;   // rows of x that linear_amx_many.h computes: they make up for turning W
constexpr int kTileBlock = 512;      // elements of k that a panel has room for

// ---- packing of activations -----------------------------------------------------------------------------------------

// Rows of x in a tile. They are packed in groups of so many, pair by pair: [pairs of k][rows][2].
KVRT_INLINE int tile_columns(const LinearArgs& a) { return a.m < kSide ? a.m : kSide; }

// Packs one group, of `rows` rows; those that are missing are zero.
static void pack_group(const LinearArgs& a, int m0, int rows, float* packed) {
  const int columns = tile_columns(a);
  for (int i = 0; i < a.k; i += kTileStep, packed += L * columns) {
    vf pairs[kSide] = {};
    for (int r = 0; r < rows; r++) {
      const float* from = a.x + (m0 + r) * a.x_stride + i;
      float rest[kTileStep] = {};
      if (i + kTileStep > a.k) {
        __builtin_memcpy(rest, from, sizeof(float) * (a.k - i));
        from = rest;
      }
      pairs[r] = to_bf16(load(from), load(from + L));
    }
    if (columns > 1) transpose(pairs);
    const int count = columns > 1 ? L : 1;
    for (int p = 0; p < count; p++) store(packed + p * columns, pairs[p]);  // the next covers what is too much
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// Tiles 0 to 3 are sums (of the first and second rows of W with the first group of x, then with the second), 4 and 5 are
// of W, of which there are `count` rows, 6 and 7 of x, so many rows each. A tile has a row at least.
KVRT_INLINE TileConfig tiles_of_pairs(int columns, int count = kTileOut) {
  const uint16_t wide = uint16_t(4 * columns);
  const uint8_t first = uint8_t(count < kSide ? count : kSide), second = uint8_t(count > kSide ? count - kSide : 1);
  return TileConfig({first, second, first, second, first, second, 16, 16},
                    {wide, wide, wide, wide, 64, 64, wide, wide});
}

// Where rows of W are, in bytes: from one row to the next, to the second sixteen, and to the next step.
struct TileRows {
  const char* w;
  int64_t row, half, step;
};

// Adds up `steps` of k; `two` groups of x, or one. Asks for the memory at `ahead`, as much as it reads.
template <bool two>
static void add_steps(TileRows w, const char* x, int64_t x_group, int columns, int steps, const char* ahead) {
  const int64_t x_row = 4 * columns;
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  for (int i = 0; i < steps; i++, w.w += w.step, x += L * x_row) {
    _tile_loadd(6, x, x_row);
    _tile_loadd(4, w.w, w.row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w.w + w.half, w.row);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (two) {
      _tile_loadd(7, x + x_group, x_row);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (ahead) {
#pragma GCC unroll 32
      for (int line = 0; line < 2 * kTileBytes; line += 64) prefetch(ahead + line);
      ahead += 2 * kTileBytes;
    }
  }
}

// Sums of all four tiles, [4][16 rows of W][16 rows of x].
KVRT_INLINE void load_sums(const float* sums) {
  asm volatile("" ::: "memory");
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + 256, 64);
  _tile_loadd(2, sums + 512, 64);
  _tile_loadd(3, sums + 768, 64);
}
KVRT_INLINE void store_sums(float* sums) {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// c[rows of x][count] from the sums of one group.
static void turn(const float* sums, int rows, int count, float* c, int64_t c_stride) {
  for (int half = 0; kSide * half < count; half++, sums += 256) {
    vf t[kSide];
    for (int i = 0; i < kSide; i++) t[i] = load(sums + i * kSide);
    transpose(t);
    for (int r = 0; r < rows; r++) store(c + r * c_stride + kSide * half, t[r]);
  }
}

// ---- one block of outputs -------------------------------------------------------------------------------------------

// Lays out `count` rows of W, `k` elements each, tile by tile: [steps][2][16][32]; what is missing is zero.
static void lay_out_tiles(const bf16* w, int64_t stride, int count, int k, char* panel) {
  for (int i = 0; i < k; i += kTileStep)
    for (int o = 0; o < kTileOut; o++, panel += 64) {
      vf v = {};
      const bf16* from = w + o * stride + i;
      if (o < count && i + kTileStep <= k)
        v = load_as<vf>(from);
      else if (o < count)
        __builtin_memcpy(&v, from, sizeof(bf16) * (k - i));
      __builtin_memcpy(panel, &v, sizeof v);
    }
}

// c[parts][rows][c_stride] = x . W[n0 .. n1)^T for each part.
static void product_in_tiles(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                             float* c, int64_t c_stride, char* panel, float* sums) {
  const int64_t k = a.k, row = k * sizeof(bf16);
  const int64_t x_group = kSide * x_stride * sizeof(float);
  const int columns = tile_columns(a), blocks = int(k / kTileBlock) + 1;  // of nearly equal size, the first in any case
  const int size = int(k / blocks / kTileStep + 1) * kTileStep;
  const auto weights = [&](int part, int n) {
    return reinterpret_cast<const char*>(static_cast<const bf16*>(a.w) + (part * a.n + n) * k);
  };
  const auto strip = [&](int n, int count) {
    for (int part = 0; part < parts; part++) {
      const char* next = part + 1 < parts ? weights(part + 1, n) : weights(0, n + kTileOut);  // in the order of memory
      for (int k0 = 0; k0 == 0 || k0 < k; k0 += size) {
        const int length = k0 + size < k ? size : int(k) - k0, steps = (length + kTileStep - 1) / kTileStep;
        TileRows w{weights(part, n) + k0 * sizeof(bf16), row, count > kSide ? kSide * row : 0, 64};
        if (length % kTileStep) {
          lay_out_tiles(reinterpret_cast<const bf16*>(w.w), k, count, length, panel);
          w = {panel, 64, kTileBytes, 2 * kTileBytes};
        }
        for (int m = 0; m < rows; m += kTileOut) {
          const char* from = reinterpret_cast<const char*>(x + m * x_stride + k0 / 2 * columns);
          const char* ahead = m == 0 && count == kTileOut ? next + int64_t(kTileOut) * k0 * sizeof(bf16) : nullptr;
          float* sum = sums + m / kTileOut * 4 * 256;
          if (k0 == 0)
            zero_sums();
          else
            load_sums(sum);
          if (rows - m > kSide)
            add_steps<true>(w, from, x_group, columns, steps, ahead);
          else
            add_steps<false>(w, from, x_group, columns, steps, ahead);
          store_sums(sum);
        }
      }
      for (int m = 0; m < rows; m += kSide)
        turn(sums + m / kSide * 512, rows - m < kSide ? rows - m : kSide, count,
             c + (part * rows + m) * c_stride + (n - n0), c_stride);
    }
  };
  const int rest = (n1 - n0) % kTileOut;
  if (n0 < n1 - rest) {
    const TileConfig config = tiles_of_pairs(columns);
    for (int n = n0; n < n1 - rest; n += kTileOut) strip(n, kTileOut);
  }
  if (rest) {
    const TileConfig config = tiles_of_pairs(columns, rest);
    strip(n1 - rest, rest);
  }
}

// What linear.h wants to know of this kernel.
struct Tiles {
  static constexpr int kPanel = kTileOut * kTileBlock / 2;  // floats

  static LinearShape shape(const LinearArgs& a) { return {kTileOut, kSide, kMostRows / 2, (a.k + kTileStep - 1) / kTileStep * L}; }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    for (int m = m0; m < m1; m += kSide)
      pack_group(a, m, m1 - m < kSide ? m1 - m : kSide, packed + m * shape(a).packed_stride);
  }
  static size_t work(int rows) { return kPanel + size_t(rows + kTileOut - 1) / kTileOut * 4 * 256; }
  static void product(const LinearArgs& a, int parts, int n0, int n1, const float* x, int64_t x_stride, int rows,
                      float* c, int64_t c_stride, float* work) {
    product_in_tiles(a, parts, n0, n1, x, x_stride, rows, c, c_stride, reinterpret_cast<char*>(work), work + kPanel);
  }
};
