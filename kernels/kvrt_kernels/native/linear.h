// A product as a whole: which kernel computes it. A kernel says its `shape`, packs activations, and computes blocks of outputs,
// what follows on them included, in `scratch`.

// Those of the kernels that leave products in c[parts][rows].
template <class Kernel> struct Followed : Kernel {
  struct Room {
    int64_t stride;
    float *c, *work;

    Room(const LinearArgs& a, int rows, int columns, Arena& arena) {
      stride = (columns + 15) / 16 * 16;
      c = arena.take<float>(size_t(a.gate == Gate::none ? 1 : 2) * rows * stride);
      work = arena.take<float>(Kernel::work(rows));
    }
  };

  static size_t scratch(const LinearArgs& a, int rows, int columns) {
    Arena arena{nullptr};
    Room(a, rows, columns, arena);
    return arena.used;
  }

  static void block(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1, Arena arena) {
    const int rows = m1 - m0, columns = n1 - n0, parts = a.gate == Gate::none ? 1 : 2;
    const Room room(a, rows, columns, arena);
    Kernel::product(a, parts, n0, n1, x + m0 * x_stride, x_stride, rows, room.c, room.stride, room.work);
    for (int part = 0; part < parts; part++)
      add_low_rank(a, m0, m1, part * a.n + n0, part * a.n + n1, room.c + part * rows * room.stride, room.stride);
    for (int r = 0; r < rows; r++) {
      float* c = room.c + r * room.stride;
      if (a.bias)
        for (int part = 0; part < parts; part++)
          for (int i = 0; i < columns; i++) c[part * rows * room.stride + i] += a.bias[part * a.n + n0 + i];
      if (a.gate != Gate::none) {
        const float* up = c + rows * room.stride;
        for (int i = 0; i < columns; i += L) store(c + i, gated(a, load(c + i), load(up + i)));
      }
      if (a.residual) {
        const float* add = a.residual + (m0 + r) * a.residual_stride + n0;
        for (int i = 0; i < columns; i++) c[i] += add[i];
      }
      __builtin_memcpy(a.y + (m0 + r) * a.y_stride + n0, c, sizeof(float) * columns);
    }
  }
};

template <class F> KVRT_INLINE auto by_kernel(const LinearArgs& a, const F& f) {
#if defined(__AMX_BF16__)
  if (as_bf16(a)) return f(ManyTiles<DecodingFp8>{});
  if (a.dtype == Dtype::codes && CodeTiles::fits(a)) return f(CodeTiles{});
  if (a.dtype == Dtype::bf16) return ManyTiles<Turning>::fits(a) ? f(ManyTiles<Turning>{}) : f(Followed<Tiles>{});
#else
  if (as_bf16(a)) return f(Followed<Decoded<bf16>>{});
#endif
  switch (a.dtype) {
    case Dtype::bf16: return f(Followed<Lanes<bf16>>{});
    case Dtype::f16: return f(Followed<Lanes<f16>>{});
    case Dtype::codes: return f(Followed<Panels>{});
    case Dtype::exact_codes: return f(Followed<Decoded<float>>{});
    default: return f(Followed<Lanes<float>>{});
  }
}

static LinearShape linear_shape(const LinearArgs& a) {
  return by_kernel(a, [&](auto kernel) KVRT_INLINED { return kernel.shape(a); });
}

static void linear_pack(const LinearArgs& a, int m0, int m1, float* packed) {
  by_kernel(a, [&](auto kernel) KVRT_INLINED { kernel.pack(a, m0, m1, packed); });
}

static size_t linear_scratch(const LinearArgs& a, int rows, int columns) {
  return by_kernel(a, [&](auto kernel) { return kernel.scratch(a, rows, columns); });
}

static void linear(const LinearArgs& a, const float* x, int64_t x_stride, int m0, int m1, int n0, int n1,
                   void* scratch) {
  for (int part = 0; part < (a.gate == Gate::none ? 1 : 2); part++) ask_for_low_rank(a, m0, m1, part * a.n + n0, part * a.n + n1);
  by_kernel(a, [&](auto kernel) { kernel.block(a, x, x_stride, m0, m1, n0, n1, Arena{static_cast<char*>(scratch)}); });
}
