// Weights of codes in the tiles of AMX, for many rows of x: the bits of linear_packed.h, as sums of groups are exact.
//
//   tile product:   sums[16 rows of x][16 rows of W] = x[16][a group of codes] . W[16][a group of codes]^T
//
// A panel lies as the instruction wants its right operand: four codes of each row, then the next four. It is laid out for
// tiles, some blocks at a time, to be met by all rows of x: each code a byte, less the zero unless rows have their own, and
// scales widened. Sums leave the tiles after each group, as each has a scale of its own.

constexpr int kGroupSums = kSide * kPanelRows;
constexpr int kTileBlocks = 16;  // of a panel, that are laid out at a time

// Rows of x that make up for laying out; fewer are computed by vectors.
constexpr int kLeastRows = 10, kLeastRowsOf16 = 64;  // for groups of 32, and of 16

// ---- activations ----------------------------------------------------------------------------------------------------

// A block of 16 rows of x: their codes, and what each of them has, [16] each.
struct CodeTile {
  int8_t codes[kSide][kCodes];
  float scale[kSide];
  int32_t sum[kSide];
  float scaled[3][kSide];  // scale * sum: of all codes, of the first and of the second half

  void set(int row, const int32_t* block) {
    __builtin_memcpy(codes[row], block, kCodes);
    scale[row] = scale_of(block);
    sum[row] = block[kCodeWords + 1];
    for (int i = 0; i < 3; i++) scaled[i][row] = scale[row] * float(block[kCodeWords + 1 + i]);
  }
};

// ---- panels ---------------------------------------------------------------------------------------------------------

// What is laid out of a panel; one group after the other.
struct LaidOut {
  int8_t codes[kTileBlocks * kCodes * kPanelRows];
  float scales[2 * kTileBlocks][kPanelRows], offsets[2 * kTileBlocks][kPanelRows];
  int32_t minus_zeros[kTileBlocks][kPanelRows];
};

// Where in a panel the next block is.
struct PanelAt {
  const char *w, *span;
  int left;  // blocks of the span
};

// Whether the zero is subtracted from codes, which then have a sign, or from sums.
template <class S> constexpr bool kSigns = !std::is_same_v<S, Wholes>;

template <class C, class S> static PanelAt lay_out_codes(PanelAt at, Packing packing, int blocks, LaidOut& to) {
  const __m512i zero = _mm512_set1_epi8(char(kSigns<S> ? packing.zero : 0));
  int8_t* codes = to.codes;
  for (int b = 0; b < blocks; b++, at.left--) {
    if (at.left == 0) {
      at.span = at.w;
      at.w += S::head;
      at.left = (S::span(packing) + kCodes - 1) / kCodes;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCodes / 4; i++, codes += 64) {
      const __m512i v = (__m512i)C::four(at.w + S::block, i);
      store((int32_t*)codes, (vi)_mm512_sub_epi8(v, zero));
    }
#pragma GCC unroll 2
    for (int g = 0; g < S::groups; g++) {
      store(to.scales[b * S::groups + g], S::scale(at.span, at.w, 0, g));
      if constexpr (S::offsets) store(to.offsets[b * S::groups + g], S::offset(at.span, at.w, 0, g));
    }
    if constexpr (!kSigns<S>) store(to.minus_zeros[b], S::minus_zeros(at.span, 0, packing, 1));
    at.w += S::block + kPanelRows * kCodes * C::bits / 8;
  }
  return at;
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// Tiles 0 to 3 are sums; 4 and 6 are of W and x for groups of 32, 5 and 7 for those of 16.
KVRT_INLINE TileConfig tiles_of_codes() {
  return TileConfig({16, 16, 16, 16, 8, 4, 16, 16}, {64, 64, 64, 64, 64, 64, 32, 16});
}

// c[16][16] += blocks of 16 rows of x . those of a panel; `fresh`: c begins with zero.
template <class S>
static void add_code_blocks(const LaidOut& w, int blocks, const CodeTile* x, bool fresh, float* c, int32_t* sums) {
  constexpr int groups = S::groups, size = kCodes / groups;
  const int count = blocks * groups;
  vf acc[kSide];
#pragma GCC unroll 16
  for (int r = 0; r < kSide; r++) acc[r] = fresh ? vf{} : load(c + r * kPanelRows);
// Tiles have to be named by literals.
#define KVRT_GROUP(sum, of_w, of_x)                                   \
  do {                                                                \
    _tile_zero(sum);                                                  \
    _tile_loadd(of_x, from, kCodes);                                  \
    _tile_loadd(of_w, codes, 64);                                     \
    if constexpr (kSigns<S>) _tile_dpbssd(sum, of_x, of_w);           \
    else _tile_dpbsud(sum, of_x, of_w);                               \
    _tile_stored(sum, sums + n % 4 * kGroupSums, 64);                 \
  } while (false)
  const auto multiply = [&](int n, bool second) KVRT_INLINED {
    if (n >= count) return;
    const int8_t *from = x[n / groups].codes[0] + n % groups * size, *codes = w.codes + n * size * kPanelRows;
    if constexpr (groups == 1) {
      if (second) KVRT_GROUP(1, 4, 6);
      else KVRT_GROUP(0, 4, 6);
    } else {
      if (second) KVRT_GROUP(1, 5, 7);
      else KVRT_GROUP(0, 5, 7);
    }
  };
#undef KVRT_GROUP
  const auto multiply_two = [&](int n) KVRT_INLINED {
    multiply(n, false);
    multiply(n + 1, true);
  };
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  multiply_two(0);
  for (int two = 0; two < count; two += 2) {
    multiply_two(two + 2);
    for (int n = two; n < two + 2 && n < count; n++) {
      const CodeTile& of_x = x[n / groups];
      const int32_t* sum = sums + n % 4 * kGroupSums;
      const vf scale = load(w.scales[n]);
#pragma GCC unroll 16
      for (int r = 0; r < kSide; r++) {
        vi total = load_as<vi>(sum + r * kPanelRows);
        if constexpr (!kSigns<S>)
          total += dot2((vw)load_as<vi>(w.minus_zeros[n]), (vw)splat_word(of_x.sum[r] & 0xffff));
        acc[r] = acc[r] + scale * of_x.scale[r] * to_floats(total);
        if constexpr (S::offsets) acc[r] = acc[r] + load(w.offsets[n]) * of_x.scaled[groups == 1 ? 0 : 1 + n % 2][r];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kSide; r++) store(c + r * kPanelRows, acc[r]);
}

// What linear.h wants to know of this kernel.
struct CodeTiles {
  // Whether there are enough rows of x, and codes less their zero are bytes with a sign.
  static bool fits(const LinearArgs& a) {
    int least = kLeastRows;
    for (const PackedMatrix& matrix : a.packed) {
      const Packing p = matrix.packing;
      if (!matrix.rows) break;
      by_packing(p, [&](auto codes, auto scales) {
        if (scales.groups == 2 && least < kLeastRowsOf16) least = kLeastRowsOf16;
        const bool bytes = codes.bits == 8 || p.codes == Codes::table;
        if (kSigns<decltype(scales)> && (bytes ? p.zero != 128 : p.zero > 128)) least = INT32_MAX;
      });
    }
    return a.m >= least;
  }

  static LinearShape shape(const LinearArgs& a) {
    return {kPanelRows, kSide, 2 * kMostRows, int64_t(Panels::blocks(a)) * int64_t(sizeof(CodeTile) / sizeof(float) / kSide)};
  }
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    for (int m = m0; m < m1; m += kSide) {
      CodeTile* to = reinterpret_cast<CodeTile*>(packed + m * shape(a).packed_stride);
      const int rows = m1 - m < kSide ? m1 - m : kSide;
      for (int b = 0; b < Panels::blocks(a); b++, to++) {
        if (rows < kSide) __builtin_memset(to, 0, sizeof *to);
        for (int r = 0; r < rows; r++) {
          int32_t block[kBlockWords];
          Panels::pack_block(a, m + r, b, block);
          to->set(r, block);
        }
      }
    }
  }

  // What is laid out of a panel, and products with 16 rows of W, [rows][16]: of gate and up, and of the panel.
  struct Room {
    LaidOut* panel;
    int32_t* sums;
    float *c[2], *of_panel;

    Room(int rows, Arena& arena) {
      const size_t all = size_t(rows + kSide - 1) / kSide * kSide * kPanelRows;
      panel = arena.take<LaidOut>(1);
      sums = arena.take<int32_t>(4 * kGroupSums);
      for (float** to : {&c[0], &c[1], &of_panel}) *to = arena.take<float>(all);
    }
  };
  static size_t scratch(const LinearArgs&, int rows, int) {
    Arena arena{nullptr};
    Room(rows, arena);
    return arena.used;
  }

  static void block(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1, Arena arena) {
    const int rows = m1 - m0, parts = a.gate == Gate::none ? 1 : 2;
    const Room room(rows, arena);
    const TileConfig config = tiles_of_codes();
    x += m0 * x_stride;
    for (int n = n0; n < n1; n += kPanelRows) {
      const int count = n1 - n < kPanelRows ? n1 - n : kPanelRows;
      for (int part = 0; part < parts; part++) {
        const int first = part * a.n + n;
        const PackedRow at = packed_row(a, first);
        const bool whole = at.row % kPanelRows == 0 && at.matrix->rows - at.row >= count;  // of one panel
        float* sums = whole ? room.c[part] : room.of_panel;
        by_panels(a, 1, first, first + count, rows, room.c[part], kPanelRows, sums, [&](const char* panel, Packing packing) {
          by_packing(packing, [&](auto codes, auto scales) {
            if constexpr (!std::is_same_v<decltype(codes), E4m3>)
              multiply<decltype(codes), decltype(scales)>(a, panel, packing, x, x_stride, m0, rows, n, sums, room);
          });
        });
        add_low_rank(a, m0, m1, first, first + count, room.c[part], kPanelRows);
      }
      for (int r = 0; r < rows; r++)
        follow(a, m0 + r, n, count, load(room.c[0] + r * kPanelRows), load(room.c[parts - 1] + r * kPanelRows));
    }
  }

 private:
  // sums[rows][16] = x . those of a panel; asks for y[m0 .. m0 + rows][n ..].
  template <class C, class S>
  static void multiply(const LinearArgs& a, const char* panel, Packing packing, const float* x, int64_t x_stride, int m0,
                       int rows, int n, float* sums, const Room& room) {
    const int blocks = Panels::blocks(a);
    PanelAt at{panel, panel, 0};
    for (int b = 0; b < blocks; b += kTileBlocks) {
      const int count = blocks - b < kTileBlocks ? blocks - b : kTileBlocks;
      at = lay_out_codes<C, S>(at, packing, count, *room.panel);
      for (int m = 0; m < rows; m += kSide) {
        const CodeTile* from = reinterpret_cast<const CodeTile*>(x + m * x_stride) + b;
        add_code_blocks<S>(*room.panel, count, from, b == 0, sums + m * kPanelRows, room.sums);
        if (b + count == blocks)
          for (int r = m; r < m + kSide && r < rows; r++) ask_to_follow(a, m0 + r, n);
      }
    }
  }
};
