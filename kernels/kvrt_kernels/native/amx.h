// The tiles of AMX: eight, of 16 rows of 64 bytes.
//
//   tdpbf16ps   c[16][16] += a[16][32] . b[16][32]^T, b as pairs: [16][32 / 2][2] turned to [32 / 2][16][2]

constexpr int kSide = 16;         // rows of a tile
constexpr int kTileStep = 2 * L;  // bf16 of a row
constexpr int kTileBytes = kSide * 64;

// While one of these lives, the thread has eight tiles of so many rows of so many bytes.
class TileConfig {
 public:
  TileConfig(const uint8_t (&rows)[8], const uint16_t (&bytes)[8]) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    __builtin_memcpy(config.bytes, bytes, sizeof bytes);
    __builtin_memcpy(config.rows, rows, sizeof rows);
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
  }
  ~TileConfig() { _tile_release(); }
  TileConfig(const TileConfig&) = delete;
  TileConfig& operator=(const TileConfig&) = delete;
};

KVRT_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
