// Rotary embedding (Su et al. 2021, arXiv 2104.09864, half-split) after an optional norm of each head, in place, and
// storing of keys and values into their slots (codes.h), rounded to nearest even.

// Where the token at a position lies, counted in slots from the sequence's first page on.
KVRT_INLINE int64_t slot_of(const Batch& batch, int sequence, int64_t position) {
  if (!batch.trunk || position < batch.trunk[sequence]) return position;
  return batch.slots[sequence * batch.slots_stride + position - batch.trunk[sequence]];
}

// The pairs (d, d + half) of x, in place.
KVRT_INLINE void rotate_pairs(float* x, const float* cos, const float* sin, int half) {
  for (int d = 0; d < half; d++) {
    const float a = x[d], b = x[d + half];
    x[d] = a * cos[d] - b * sin[d];
    x[d + half] = b * cos[d] + a * sin[d];
  }
}

static void rotate(const RotateArgs& a, int row0, int row1) {
  const int half = a.rot_dim / 2;
  for (int r = row0; r < row1; r++)
    for (int h = 0; h < a.heads; h++) {
      const float* x = a.x + r * a.x_stride + h * a.x_head;
      float* y = a.y + r * a.y_stride + h * a.y_head;
      if (x != y) __builtin_memcpy(y, x, sizeof(float) * a.size);
      if (a.cos) rotate_pairs(y, a.cos + int64_t(r) * half, a.sin + int64_t(r) * half, half);
    }
}

// x[0 .. dim) of one head, in place.
KVRT_INLINE void prepare_head(float* x, int dim, const float* norm, float eps, const float* cos, const float* sin,
                              int half) {
  if (norm) {
    const float scale = inverse_rms(x, dim, eps);
    for (int d = 0; d < dim; d++) x[d] = x[d] * scale * norm[d];
  }
  if (cos) rotate_pairs(x, cos, sin, half);
}

template <class T>
static void append_tokens(const AppendArgs& a, int sequence, int token0, int token1) {
  const Pages& p = a.pages;
  const int32_t* table = a.batch.page_table + sequence * a.batch.table_stride;
  const int64_t offset = a.batch.context_len[sequence] - int64_t(a.batch.query_start[sequence + 1]);
  const int half = a.rot_dim / 2;
  for (int token = token0; token < token1; token++) {
    const float* cos = a.cos ? a.cos + int64_t(token) * half : nullptr;
    const float* sin = a.cos ? a.sin + int64_t(token) * half : nullptr;
    if (a.q && (cos || a.q_norm))
      for (int h = 0; h < a.heads; h++)
        prepare_head(a.q + token * a.q_stride + h * p.head_dim, p.head_dim, a.q_norm, a.eps, cos, sin, half);
    const int64_t at = slot_of(a.batch, sequence, offset + token);
    T* block = static_cast<T*>(p.kv) + table[at / p.page_size] * p.page_stride;
    const int slot = int(at % p.page_size);
    for (int h = 0; h < p.kv_heads; h++, block += p.head_stride) {
      float* k = a.k + token * a.k_stride + h * p.head_dim;
      if (cos || a.k_norm) prepare_head(k, p.head_dim, a.k_norm, a.eps, cos, sin, half);
      store_head(k, block, slot, p.page_size, p.head_dim);
      if (p.v_offset)
        store_head(a.v + token * a.v_stride + h * p.value_dim, block + p.v_offset, slot, p.page_size, p.value_dim);
    }
  }
}

static void append(const AppendArgs& a, int sequence, int token0, int token1) {
  switch (a.pages.format) {
    case Format::f32: return append_tokens<float>(a, sequence, token0, token1);
    case Format::bf16: return append_tokens<bf16>(a, sequence, token0, token1);
    case Format::f16: return append_tokens<f16>(a, sequence, token0, token1);
    case Format::i8: return append_tokens<i8>(a, sequence, token0, token1);
    case Format::i4: return append_tokens<i4>(a, sequence, token0, token1);
  }
}
