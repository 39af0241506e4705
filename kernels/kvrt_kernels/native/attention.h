// Paged attention. One operator for decode, prefill and everything between.
//
// A task has rows = (query tokens) x (query heads of one kv head). Keys are visited in tiles of 64 absolute positions,
// tiles in segments of 512 (FlashAttention's online softmax, Dao 2023, arXiv 2307.08691, with FlashDecoding's split
// kept always):
//
//   position   0        64       128            512      576
//              |  tile  |  tile  |  ...         |  tile  |             row r:  m  = max of the scores
//              |          segment 0             |  segment 1 ...               l  = sum of 2^(score - m)
//                                                                             acc = sum of 2^(score - m) v
//     scores    S[row][token]  = sum over d, in L / 4 classes, each ascending; then a tree over the classes
//     values    acc[row][d]   += sum over token, ascending
//     segments  O             <- O merged with (m, l, acc), ascending
//
// The classes of d are the 128-bit blocks of a vector, so that a few rows meet four keys after transposing 4 x 4 within
// blocks, half the shuffles of a full transpose, while many rows meet fully transposed keys class by class.
//
// Nothing here depends on which rows share a task: each row's additions happen in an order fixed by positions alone,
// a position outside the row's causal range or window is never added, and a tile without any position for a row leaves
// that row's state as it is. So a token's result has the same bits alone, in a batch, in any chunk of a prompt,
// and for any split over threads. Softmax works in powers of two, log2(e) being folded into the scale of q.
//
// Sinks, first positions that are seen besides a window, have segments of their own, before those of the window. They
// end where a row's window begins.

// Whether keys and values meet rows in the tiles of AMX, and how many rows are then at work at a time.
template <class T> constexpr bool kInTiles = false;
#if defined(__AMX_BF16__)
template <> constexpr bool kInTiles<bf16> = true;
#endif
constexpr int kStaged = 48;

// Whether so many rows meet the keys as they are read.
template <class T> KVRT_INLINE bool few(int rows) { return !kInTiles<T> && rows <= kFewRows; }
KVRT_INLINE bool few_of(Format format, int rows) { return format == Format::bf16 ? few<bf16>(rows) : few<float>(rows); }

struct AttentionScratch {
  Rows rows;
  float *kt, *vt, *s;
  float* part;  // for a few rows
  float* sums;  // for tiles
  // Of codes: the scales of a tile's keys and values, [groups][kTile] each; for a few rows also their queries, spread, and
  // what comes of them.
  float *key_scales, *value_scales, *factor;
  int16_t* spread;
  int32_t *whole, *less, *dots;
  const void **keys, **next_keys, **value_rows;

  AttentionScratch(const AttentionArgs& a, int count, Arena& arena) {
    const int dim = a.pages.head_dim, values = a.pages.value_dim, padded = (count + 15) / 16 * 16;
    rows.count = count;
    rows.dim = dim;
    rows.values = values;
    const bool few = few_of(a.pages.format, count);
    rows.q = arena.take<float>(size_t(padded) * dim * (few ? 4 : 1));
    rows.acc = arena.take<float>(size_t(count) * values);
    rows.out = arena.take<float>(size_t(count) * values);
    for (float** p : {&rows.m, &rows.l, &rows.alpha, &rows.M, &rows.Lsum}) *p = arena.take<float>(padded);
    rows.begin = arena.take<int>(padded);
    rows.end = arena.take<int>(padded);
    s = arena.take<float>(size_t(padded < kStaged ? kStaged : padded) * kTile);
    kt = arena.take<float>(size_t(dim) * kTile);
    vt = arena.take<float>(size_t(values) * kTile);
    sums = arena.take<float>(a.pages.format == Format::bf16 && kInTiles<bf16> ? size_t(kStaged) * values : 0);
    part = few ? arena.take<float>(size_t(count) * kGroups * L) : nullptr;
    const int groups = scale_groups(a.pages.format, dim);
    key_scales = arena.take<float>(size_t(groups) * kTile);
    value_scales = arena.take<float>(size_t(scale_groups(a.pages.format, values)) * kTile);
    factor = arena.take<float>(groups ? padded : 0);
    whole = arena.take<int32_t>(groups ? dim : 0);
    const size_t all = size_t(count) * groups * few;
    spread = arena.take<int16_t>(all ? count * (a.pages.format == Format::i8 ? spread_size<i8>(dim) : spread_size<i4>(dim)) : 0);
    less = arena.take<int32_t>(all);
    dots = arena.take<int32_t>(all * kTile);
    keys = arena.take<const void*>(kTile);
    next_keys = arena.take<const void*>(kTile);
    value_rows = arena.take<const void*>(kTile);
  }
};

// Pointers to the keys or values of a tile's positions, `items` each, `offset` from the keys' block. Positions outside
// [first, last) borrow the nearest one inside, so that neither their pages nor their page-table entries are touched; their
// weight is zero.
template <class T>
static void locate(const AttentionArgs& a, const AttentionTask& task, int64_t tile, int64_t first, int64_t last,
                   int64_t offset, int items, const T** rows) {
  const int32_t* table = a.batch.page_table + task.sequence * a.batch.table_stride;
  const int size = a.pages.page_size;
  const T* base = static_cast<const T*>(a.pages.kv) + task.kv_head * a.pages.head_stride + offset;
  const int begin = first > tile ? int(first - tile) : 0, end = last - tile < kTile ? int(last - tile) : kTile;
  int straight = end;  // tokens from here on lie in the slots of a branch
  if (a.batch.trunk && tile + end > a.batch.trunk[task.sequence]) {
    const int64_t trunk = a.batch.trunk[task.sequence] - tile;
    straight = trunk > begin ? int(trunk) : begin;
    for (int t = straight; t < end; t++) {
      const int64_t at = slot_of(a.batch, task.sequence, tile + t);
      rows[t] = base + table[at / size] * a.pages.page_stride + at % size * items;
    }
  }
  if (begin < straight) {
    int64_t page = (tile + begin) / size;
    int slot = int((tile + begin) % size);
    const T* row = base + table[page] * a.pages.page_stride + int64_t(slot) * items;
    for (int t = begin; t < straight; t++) {
      if (slot == size) {
        slot = 0;
        row = base + table[++page] * a.pages.page_stride;
      }
      rows[t] = row;
      row += items;
      slot++;
    }
  }
  for (int t = 0; t < begin; t++) rows[t] = rows[begin];
  for (int t = end; t < kTile; t++) rows[t] = rows[end - 1];
}

// The scales of the keys and values of a tile's positions within [begin, end); the others may be anything.
template <class T>
static void gather_scales(const AttentionArgs& a, const AttentionTask& task, int64_t tile, int begin, int end,
                          const AttentionScratch& w) {
  using Scale = typename Kept<T>::Scale;
  const int32_t* table = a.batch.page_table + task.sequence * a.batch.table_stride;
  const int size = a.pages.page_size, dim = a.pages.head_dim;
  const int64_t to_values = a.pages.v_offset ? a.pages.v_offset + int64_t(size) * Kept<T>::items(a.pages.value_dim)
                                             : int64_t(size) * Kept<T>::items(dim);
  const T* base = static_cast<const T*>(a.pages.kv) + task.kv_head * a.pages.head_stride;
  for (int t = begin, count; t < end; t += count) {
    const int64_t at = slot_of(a.batch, task.sequence, tile + t);
    const int slot = int(at % size);
    count = end - t < size - slot ? end - t : size - slot;
    if (a.batch.trunk) {  // one by one from where a branch begins
      const int64_t trunk = a.batch.trunk[task.sequence] - tile;
      if (t >= trunk) count = 1;
      else if (t + count > trunk) count = int(trunk) - t;
    }
    const T* block = base + table[at / size] * a.pages.page_stride;
    const auto gather = [&](int64_t offset, int groups, float* to) {
      const T* scales = block + offset + slot * sizeof(Scale);
      for (int g = 0; g < groups; g++, scales += size * sizeof(Scale), to += kTile) {
        const Scale* from = reinterpret_cast<const Scale*>(scales);
        int i = 0;
        for (; i + L <= count; i += L) store(to + t + i, load(from + i));
        for (; i < count; i++) to[t + i] = widen(from[i]);
      }
    };
    gather(int64_t(size) * Kept<T>::items(dim), Kept<T>::groups(dim), w.key_scales);
    gather(to_values, Kept<T>::groups(a.pages.value_dim), w.value_scales);
  }
}

// What a row's values are to be multiplied by. With a sink's logit its exponential is a part of their sum.
KVRT_INLINE float normalizer(const AttentionArgs& a, const Rows& x, int r, int head) {
  if (!a.sink_logits) return 1.f / x.Lsum[r];
  const float sink = a.sink_logits[head] * kLog2e, top = x.M[r] > sink ? x.M[r] : sink;
  const v4f of = exp2(v4f{x.M[r] - top, sink - top, 0.f, 0.f});
  return of[0] / (x.Lsum[r] * of[0] + of[1]);
}

template <class T> static void write_out(const AttentionArgs& a, const AttentionTask& task, const Rows& x) {
  const int group = a.heads / a.pages.kv_heads;
  for (int r = 0; r < x.count; r++) {
    const int64_t token = a.batch.query_start[task.sequence] + task.q_begin + r / group;
    const int head = task.kv_head * group + r % group;
    float* y = a.out + token * a.out_stride + int64_t(head) * x.values;
    const float inverse = normalizer(a, x, r, head);
    const float* from = x.out + int64_t(r) * x.values;
    int d = 0;
    if constexpr (kWide<T> != L)
      for (; d + 2 * L <= x.values; d += 2 * L) {
        const vf even = load(from + d) * inverse, odd = load(from + d + L) * inverse;
        store(y + d, shuffle<ZipLo>(even, odd));
        store(y + d + L, shuffle<ZipHi>(even, odd));
      }
    for (; d < x.values; d += L) store(y + d, load(from + d) * inverse);
  }
}

// s = scores of the tile's keys; outside [begin, end) they may be anything.
template <class T>
static void score_tile(const AttentionArgs& a, const AttentionScratch& w, const T* const* keys, int begin, int end) {
  const Rows& x = w.rows;
  if (few<T>(x.count)) {
    few_rows<kFewRows>(x.count, [&](auto height) {
      constexpr int R = decltype(height)::value;
      constexpr int G = R <= 2 ? kSums / 2 : R <= 4 ? kSums / 4 : kSums / 8;
      if constexpr (Kept<T>::codes) {
        const int groups = Kept<T>::groups(x.dim);
        for (int t = begin / (4 * G) * (4 * G); t < end; t += 4 * G)
          dots_of_few<T, R, G>(w.spread, keys + t, a.pages.v_offset, w.less, w.dots + t, x.dim);
        for (int r = 0; r < R; r++)
          scale_dots(w.dots + r * groups * kTile, w.key_scales, w.factor[r], groups, w.s + r * kTile);
      } else {
        for (int t = begin / (4 * G) * (4 * G); t < end; t += 4 * G)
          scores_of_few<T, R, G>(x.q, keys + t, a.pages.v_offset, w.part + t / 4 * L, x.dim);
        for (int r = 0; r < R; r++) join_classes(w.part + r * kGroups * L, w.s + r * kTile);
      }
    });
  } else {
    for (int t = begin / L * L; t < end; t += L) transpose_keys<T>(keys + t, w.kt + t, x.dim);
    for (int t = begin / (kCols * L) * (kCols * L); t < end; t += kCols * L)
      strips(x.count, [&](auto height, int r) {
        constexpr int R = decltype(height)::value;
        if constexpr (Kept<T>::codes)
          scores_of_codes<R>(x.q + r * x.dim, w.factor + r, w.kt + t, w.key_scales + t, w.s + r * kTile + t, x.dim,
                             Kept<T>::group(x.dim));
        else
          scores<R>(x.q + r * x.dim, w.kt + t, w.s + r * kTile + t, x.dim);
      });
  }
}

// Whether a value lies as far from its neighbours as a key.
template <class T> KVRT_INLINE bool alike(const Pages& p) {
  return !p.v_offset || Kept<T>::items(p.head_dim) == Kept<T>::items(p.value_dim);
}

// Takes a tile's keys and values in; the values were located if they do not lie as the keys do.
template <class T>
static void attend_tile(const AttentionArgs& a, const AttentionScratch& w, const T* const* keys,
                        const T* const* next_keys, int begin, int end) {
  const Rows& x = w.rows;
  const T** located = reinterpret_cast<const T**>(w.value_rows);
  if (alike<T>(a.pages))
    for (int t = 0; t < kTile; t++) located[t] = keys[t] + a.pages.v_offset;
  if constexpr (kInTiles<T>)
    return attend_in_tiles(x, keys, a.pages.v_offset, located, next_keys, begin, end, a.softcap,
                           {w.kt, w.vt, w.s, w.sums});
  score_tile<T>(a, w, keys, begin, end);
  for (int r = 0; r < x.count; r += 4) softmax4(x, r, w.s + r * kTile, a.softcap);
  if constexpr (std::is_same<T, i8>::value)  // a weight's scale costs less than those of dim elements
    for (int r = 0; r < x.count; r++)
      for (int t = 0; t < kTile; t += L) store(w.s + r * kTile + t, load(w.s + r * kTile + t) * load(w.value_scales + t));
  if (std::is_same<T, float>::value || x.count <= 2 * kRows) {
    add_values<T>(x, w.s, located, w.value_scales, {next_keys, 0, kTile, Kept<T>::items(x.dim)});
  } else {  // many rows: widen the values once
    for (int t = begin; t < end; t++) widen_values(located[t], w.value_scales + t, w.vt + t * x.values, x.values);
    const float** rows = reinterpret_cast<const float**>(w.value_rows);
    for (int t = 0; t < kTile; t++) rows[t] = w.vt + t * x.values;
    add_values<float>(x, w.s, rows, nullptr, {nullptr, 0, 0, x.values});
  }
}

// Row r's query, in whole numbers.
template <class T> static void place_query(const float* q, float scale, int r, const AttentionScratch& w) {
  const int dim = w.rows.dim, groups = Kept<T>::groups(dim), group = Kept<T>::group(dim);
  w.factor[r] = whole_query<T>(q, dim, w.whole) * scale;
  if (!few<T>(w.rows.count)) {
    for (int d = 0; d < dim; d += L)
      store(w.rows.q + r * dim + d, __builtin_convertvector(load_as<vi>(w.whole + d), vf));
    return;
  }
  spread_codes<T>(w.whole, dim, w.spread + r * spread_size<T>(dim));
  for (int g = 0; g < groups; g++) {  // codes in i4 have 8 added
    int32_t total = 0;
    for (int d = g * group; d < (g + 1) * group && d < dim; d++) total += w.whole[d];
    w.less[r * groups + g] = 8 * total;
  }
}

template <class T>
static void attend(const AttentionArgs& a, const AttentionTask& task, Arena arena) {
  const int group = a.heads / a.pages.kv_heads, dim = a.pages.head_dim;
  AttentionScratch w(a, (task.q_end - task.q_begin) * group, arena);
  Rows& x = w.rows;
  const int32_t* start = a.batch.query_start + task.sequence;
  const int64_t position = a.batch.context_len[task.sequence] - (start[1] - start[0]) + task.q_begin;
  const float scale = a.softcap != 0.f ? a.scale / a.softcap : a.scale * kLog2e;
  for (int r = 0; r < x.count; r++) {
    const int64_t token = start[0] + task.q_begin + r / group, head = task.kv_head * group + r % group;
    const float* q = a.q + token * a.q_stride + head * dim;
    if constexpr (Kept<T>::codes)
      place_query<T>(q, scale, r, w);
    else if constexpr (kInTiles<T>)
      round_query(q, scale, r, reinterpret_cast<T*>(x.q), dim);
    else if (few<T>(x.count))
      spread_query<T>(q, scale, x.q + r * dim * 4, dim);
    else
      pack_query<T>(q, scale, x.q + r * dim, dim);
  }
  for (int r = x.count; r < (x.count + 3) / 4 * 4; r++) x.begin[r] = x.end[r] = 0;

  const T** keys = reinterpret_cast<const T**>(w.keys);
  const T** next = reinterpret_cast<const T**>(w.next_keys);
  const int items = Kept<T>::items(dim), value_items = Kept<T>::items(a.pages.value_dim);
  // Positions [first, last), the sinks or the others.
  const auto visit = [&](int64_t first, int64_t last, bool of_sinks) {
    if (first >= last) return;
    reset(x, x.m, x.l, x.acc);
    int64_t tile = first / kTile * kTile;
    locate(a, task, tile, first, last, 0, items, keys);
    for (; tile < last; tile += kTile) {
      const bool more = tile + kTile < last;
      if (more) locate(a, task, tile + kTile, first, last, 0, items, next);
      const int begin = first > tile ? int(first - tile) : 0;
      const int end = last - tile < kTile ? int(last - tile) : kTile;
      for (int r = 0; r < x.count; r++) {
        const int64_t at = position + r / group - tile;  // the row's own position within the tile
        const int64_t low = a.window ? at + 1 - a.window : 0, sinks = a.sinks - tile;
        const int64_t from = of_sinks ? 0 : low, until = of_sinks ? (low < sinks ? low : sinks) : a.causal ? at + 1 : end;
        x.begin[r] = from > 0 ? (from < kTile ? int(from) : kTile) : 0;
        x.end[r] = until > 0 ? (until < kTile ? int(until) : kTile) : 0;
      }
      if constexpr (Kept<T>::codes) gather_scales<T>(a, task, tile, begin, end, w);
      if (!alike<T>(a.pages))
        locate(a, task, tile, first, last, a.pages.v_offset, value_items, reinterpret_cast<const T**>(w.value_rows));
      attend_tile<T>(a, w, keys, more ? next : nullptr, begin, end);
      const T** t = keys;
      keys = next;
      next = t;
      if (!task.partial && ((tile + kTile) % kSegment == 0 || !more)) {
        for (int r = 0; r < x.count; r++) merge_row(x, r, x.m[r], x.l[r], x.acc + r * x.values);
        if (more) reset(x, x.m, x.l, x.acc);
      }
    }
  };

  const Seen all = seen(a, task.sequence, task.q_begin, task.q_end);
  if (!task.partial) {
    reset(x, x.M, x.Lsum, x.out);
    visit(0, all.sinks, true);
    visit(all.first, all.last, false);
    return write_out<T>(a, task, x);
  }
  x.acc = task.partial;
  const int64_t from = int64_t(task.segment) * kSegment, until = from + kSegment;
  const int64_t first = task.of_sinks ? 0 : all.first, last = task.of_sinks ? all.sinks : all.last;
  visit(first > from ? first : from, last < until ? last : until, task.of_sinks);
  float* state = task.partial + size_t(x.count) * x.values;
  for (int r = 0; r < x.count; r++) state[r] = x.m[r], state[x.count + r] = x.l[r];
}

static size_t attention_scratch(const AttentionArgs& a, int rows) {
  Arena arena{nullptr};
  AttentionScratch(a, rows, arena);
  return arena.used;
}

static void attention(const AttentionArgs& a, const AttentionTask& task, void* scratch) {
  const Arena arena{static_cast<char*>(scratch)};
  switch (a.pages.format) {
    case Format::f32: return attend<float>(a, task, arena);
    case Format::bf16: return attend<bf16>(a, task, arena);
    case Format::f16: return attend<f16>(a, task, arena);
    case Format::i8: return attend<i8>(a, task, arena);
    case Format::i4: return attend<i4>(a, task, arena);
  }
}

static void attention_merge(const AttentionArgs& a, const AttentionTask& task, const float* const* partials, int count,
                            void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  AttentionScratch w(a, (task.q_end - task.q_begin) * (a.heads / a.pages.kv_heads), arena);
  const Rows& x = w.rows;
  reset(x, x.M, x.Lsum, x.out);
  for (int i = 0; i < count; i++) {
    const float* state = partials[i] + size_t(x.count) * x.values;
    for (int r = 0; r < x.count; r++)
      merge_row(x, r, state[r], state[x.count + r], partials[i] + size_t(r) * x.values);
  }
  if (a.pages.format == Format::bf16)
    write_out<bf16>(a, task, x);
  else
    write_out<float>(a, task, x);
}
