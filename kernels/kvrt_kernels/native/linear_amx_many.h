// y = x W^T for bf16 W in the tiles of AMX, for many rows of x: the bits of linear_amx.h, as the factors of a product may
// change places.
//
//   tile product:   sums[16 rows of x][16 rows of W] += x[16][step of 32] . W[...][step of 32]^T
//
// Here W is what is turned, a panel of 2 x 16 rows at a time (16 of gate and 16 of up), to be met by all rows of x. Turning
// is work for vectors, which rest while tiles multiply. So the next panel is turned meanwhile, and what follows on the sums
// before is done, a little after each step. Codes become such panels, too (linear_amx_fp8.h).

constexpr int kMostOfMany = 512;  // that are computed together, so that they stay in the second-level cache
constexpr int kManyBlock = 1024;  // elements of k that a panel has room for
constexpr int kPanelBytes = kTileOut * kManyBlock * int(sizeof(bf16));
constexpr int kPairSums = kTileOut * kTileOut;

// ---- panels ---------------------------------------------------------------------------------------------------------

// Rows of W that become a panel, tile by tile: [steps][2][16 pairs][16 rows]. What is missing is zero.
struct Turning {
  const bf16* halves[2];
  int64_t stride;
  int counts[2], length;  // rows of each half, elements of a row
  int tiles;
  char* panel;
  int done = 0;

  void one() {
    const int half = done % 2, i = done / 2 * kTileStep, count = counts[half], left = length - i;
    const bf16* from = halves[half] + i;
    float* to = reinterpret_cast<float*>(panel + done * kTileBytes);
    vf rows[kSide];
    if (count >= kSide && left >= kTileStep) {
#pragma GCC unroll 16
      for (int o = 0; o < kSide; o++) rows[o] = load_as<vf>(from + o * stride);
    } else {
      for (int o = 0; o < kSide; o++) {
        rows[o] = vf{};
        if (o < count) __builtin_memcpy(&rows[o], from + o * stride, sizeof(bf16) * (left < kTileStep ? left : kTileStep));
      }
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int p = 0; p < kSide; p++) store(to + p * kSide, rows[p]);
    done++;
  }
  void rest() {
    while (done < tiles) one();
  }

  static bool fits(const LinearArgs& a) { return a.m >= kLeastOfMany && a.k > 0; }

  // Rows from n on, or of gate and up from their n-th on, up to n1; elements [k0, k0 + length).
  static Turning of(const LinearArgs& a, int n, int n1, int k0, int length, char* panel) {
    const bf16* w = static_cast<const bf16*>(a.w) + int64_t(n) * a.k + k0;
    const bool gates = a.gate != Gate::none;
    const int second = gates ? a.n : kSide, left = n1 - n;
    return {{w, w + int64_t(second) * a.k}, a.k, {left, gates ? left : left - kSide}, length,
            2 * ((length + kTileStep - 1) / kTileStep), panel};
  }
};

// ---- what follows on sums -------------------------------------------------------------------------------------------

// Sums of up to 32 rows of x, [2][2][16 rows of x][16 rows of W], that become rows of y.
struct Finishing {
  float* sums;
  int m, rows, n, columns;  // of y
  int done = 0;

  // Asks for what another row needs.
  KVRT_FORCE void ask(const LinearArgs& a) {
    ask_to_follow(a, m + done, n);
    if (a.gate == Gate::none) ask_to_follow(a, m + done, n + kSide);
    done++;
  }

  void one(const LinearArgs& a) {
    float* of_row = sums + (done / kSide * 2 * kSide + done % kSide) * kSide;
    if (a.added && done % kAddedRows == 0) add(a, of_row);
    const vf first = load(of_row), second = load(of_row + kSide * kSide);
    follow(a, m + done, n, columns, first, second);
    if (a.gate == Gate::none) follow(a, m + done, n + kSide, columns - kSide, second, second);
    done++;
  }
  void rest(const LinearArgs& a) {
    while (done < rows) one(a);
  }

 private:
  static constexpr int kAddedRows = 8;  // at a time

  // Adds what matrices of low rank make of the next rows.
  void add(const LinearArgs& a, float* of_row) {
    const int m0 = m + done, m1 = rows - done < kAddedRows ? m + rows : m0 + kAddedRows;
    for (int half = 0; half < 2; half++, of_row += kSide * kSide) {
      const int first = a.gate == Gate::none ? n + half * kSide : n + half * a.n;
      const int left = a.gate == Gate::none ? columns - half * kSide : columns;
      add_low_rank(a, m0, m1, first, first + (left < kSide ? left : kSide), of_row, kSide);
    }
  }
};

// ---- one block of outputs -------------------------------------------------------------------------------------------

// What vectors do while tiles multiply: a tile is turned every so many steps, and after each step so many rows are asked
// for, and as many finished.
template <class Turning> struct Meanwhile {
  const LinearArgs& a;
  Turning turning;
  Finishing asking, finishing;
  int every, left, rows;

  KVRT_FORCE void some() {
    if (--left == 0) {
      left = every;
      if (turning.done < turning.tiles) turning.one();
    }
    for (int i = 0; i < rows && asking.done < asking.rows; i++) asking.ask(a);
    for (int i = 0; i < rows && finishing.done < finishing.rows; i++) finishing.one(a);
  }
};

// sums[2][2][16][16] += `steps` of k of 32 rows of x, or of 16; `fresh`: sums begin with zero.
template <bool two, class Turning>
static void add_many(const char* x, int64_t x_group, const char* panel, int steps, bool fresh, float* sums,
                     Meanwhile<Turning>& meanwhile) {
  if (fresh)
    zero_sums();
  else
    load_sums(sums);
  for (int i = 0; i < steps; i++, x += kTileBytes, panel += 2 * kTileBytes) {
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
    _tile_loadd(4, panel, 64);
    _tile_loadd(6, x, 64);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, panel + kTileBytes, 64);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (two) {
      _tile_loadd(7, x + x_group, 64);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
    meanwhile.some();
  }
  store_sums(sums);
}

// What linear.h wants to know of this kernel.
template <class Turning> struct ManyTiles {
  static bool fits(const LinearArgs& a) { return Turning::fits(a); }

  static LinearShape shape(const LinearArgs& a) { return {kTileOut, kSide, kMostOfMany, int64_t(steps_of(a.k)) * L}; }

  // [groups][steps][16 rows][32]; rows that are missing to a group are zero.
  static void pack(const LinearArgs& a, int m0, int m1, float* packed) {
    const int64_t steps = steps_of(a.k);
    for (int m = m0; m < (m1 + kSide - 1) / kSide * kSide; m++) {
      float* to = packed + (m / kSide * kSide * steps + m % kSide) * L;
      const float* from = a.x + m * a.x_stride;
      for (int left = a.k; left > 0; left -= kTileStep, from += kTileStep, to += kSide * L) {
        float rest[kTileStep] = {};
        if (m >= m1) {
          store(to, vf{});
        } else if (left >= kTileStep) {
          store(to, to_bf16(load(from), load(from + L)));
        } else {
          __builtin_memcpy(rest, from, sizeof(float) * left);
          store(to, to_bf16(load(rest), load(rest + L)));
        }
      }
    }
  }

  static size_t scratch(const LinearArgs& a, int rows, int columns) {
    Arena arena{nullptr};
    Room(a, rows, columns, arena);
    return arena.used;
  }

  static void block(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1, Arena arena) {
    const int rows = m1 - m0, pairs = (rows + kTileOut - 1) / kTileOut, k = a.k, wide = columns_of_panel(a);
    const int count = blocks(a), size = steps_of((k + count - 1) / count) * kTileStep;
    const Room room(a, rows, n1 - n0, arena);
    const TileConfig config = tiles_of_pairs(kSide);
    const auto length_at = [&](int k0) { return k - k0 < size ? k - k0 : size; };
    const auto turning = [&](int n, int k0, char* panel) -> Turning {  // of nothing, behind the end
      if (n >= n1) n = n0, k0 += size;
      return k0 < k ? Turning::of(a, n, n1, k0, length_at(k0), panel) : Turning{};
    };

    turning(n0, 0, room.panels[0]).rest();
    Finishing finishing{};
    int panel = 0, other = 0;
    for (int k0 = 0; k0 < k; k0 += size)
      for (int n = n0; n < n1; n += wide, panel ^= 1) {
        const int steps = steps_of(length_at(k0)), columns = n1 - n < wide ? n1 - n : wide;
        const Turning next = turning(n + wide, k0, room.panels[panel ^ 1]);
        const int every = next.tiles && pairs * steps > next.tiles ? pairs * steps / next.tiles : 1;
        Meanwhile<Turning> meanwhile{a, next, {}, finishing, every, every, (kTileOut + steps - 1) / steps};
        for (int i = 0; i < pairs; i++, other ^= 1) {
          const int m = kTileOut * i, left = rows - m;
          const char* from = reinterpret_cast<const char*>(x + (m0 + m) * x_stride) + k0 / kTileStep * kTileBytes;
          float* sums = room.sums + (count > 1 ? (n - n0) / wide * pairs + i : other) * kPairSums;
          const bool last = k0 + size >= k;
          const Finishing then{sums, m0 + m, left < kTileOut ? left : kTileOut, n, columns};
          if (last) meanwhile.asking = then;
          if (left > kSide)
            add_many<true>(from, kSide * x_stride * sizeof(float), room.panels[panel], steps, k0 == 0, sums, meanwhile);
          else
            add_many<false>(from, 0, room.panels[panel], steps, k0 == 0, sums, meanwhile);
          meanwhile.finishing.rest(a);
          if (last) meanwhile.finishing = then;
        }
        meanwhile.turning.rest();
        finishing = meanwhile.finishing;
      }
    finishing.rest(a);
  }

 private:
  static int steps_of(int k) { return (k + kTileStep - 1) / kTileStep; }
  static int blocks(const LinearArgs& a) { return (a.k + kManyBlock - 1) / kManyBlock; }
  static int columns_of_panel(const LinearArgs& a) { return a.gate == Gate::none ? kTileOut : kSide; }

  // Two panels, and the sums of two pairs of groups; where k has several blocks, of all pairs.
  struct Room {
    char* panels[2];
    float* sums;

    Room(const LinearArgs& a, int rows, int columns, Arena& arena) {
      for (char*& panel : panels) panel = arena.take<char>(kPanelBytes);
      const int64_t pairs = (rows + kTileOut - 1) / kTileOut, wide = columns_of_panel(a);
      sums = arena.take<float>(kPairSums * (blocks(a) > 1 ? pairs * ((columns + wide - 1) / wide) : 2));
    }
  };
};
