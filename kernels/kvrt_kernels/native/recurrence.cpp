// Short convolutions, and the gated delta rule (Yang et al. 2024, arXiv 2412.06464), over pages.
//
// Every sum is taken in an order that a token's position says, and nothing is fused (-ffp-contract=off): so a token has
// the same bits in any batch, and on any instruction set. Threads share tokens, or heads.
#include "recurrence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "threads.h"

namespace kvrt {
namespace {

#define KVRT_EACH_ISA static inline __attribute__((always_inline))

constexpr int kLanes = 16;

KVRT_EACH_ISA float* row(const StatePages& p, int sequence, int64_t position) {
  const int64_t page = p.page_table[sequence * p.table_stride + position / p.rows];
  return p.kv + page * p.page_stride + p.layer_offset + position % p.rows * p.width;
}

// e^x for x < 88, relative error below 3e-7; at least 2^-126. As exp2 of simd.h, of single numbers.
KVRT_EACH_ISA float exponential(float x) {
  const float y = std::max(-126.f, x * 1.44269504f);
  const float rounded = y + 12582912.f, f = y - (rounded - 12582912.f);
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  int32_t bits, power;
  std::memcpy(&bits, &p, 4);
  std::memcpy(&power, &rounded, 4);
  bits += int32_t(uint32_t(power) << 23);
  std::memcpy(&p, &bits, 4);
  return p;
}

KVRT_EACH_ISA float dot(const float* a, const float* b, int size) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int l = 0; l < kLanes; l++) lanes[l] += a[i + l] * b[i + l];
  for (; i < size; i++) lanes[i % kLanes] += a[i] * b[i];
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
  return lanes[0];
}

KVRT_EACH_ISA void add_scaled(float* __restrict to, const float* __restrict from, float scale, int size) {
  for (int i = 0; i < size; i++) to[i] += from[i] * scale;
}

// ---- convolution ----------------------------------------------------------------------------------------------------

KVRT_EACH_ISA void convolve_tokens(const ConvolveArgs& a, int token0, int token1) {
  const StatePages& p = a.pages;
  int sequence = int(std::upper_bound(p.query_start, p.query_start + p.sequences + 1, token0) - p.query_start) - 1;
  std::vector<const float*> rows(a.kernel);
  const std::vector<float> nothing(p.width);
  for (int token = token0; token < token1; token++) {
    while (token >= p.query_start[sequence + 1]) sequence++;
    const int64_t position = int64_t(p.context_len[sequence]) - p.query_start[sequence + 1] + token;
    for (int j = 0; j < a.kernel; j++) {
      const int back = a.kernel - 1 - j;
      if (position < back)
        rows[j] = nothing.data();
      else if (token - back >= p.query_start[sequence])
        rows[j] = a.x + (token - back) * a.x_stride;
      else
        rows[j] = row(p, sequence, position - back);
    }
    std::memcpy(row(p, sequence, position), a.x + token * a.x_stride, sizeof(float) * p.width);
    float* out = a.out + token * a.out_stride;
    constexpr int kBlock = 64;
    for (int c0 = 0; c0 < p.width; c0 += kBlock) {
      const int count = std::min(kBlock, p.width - c0);
      float total[kBlock] = {};
      for (int j = 0; j < a.kernel; j++) {
        const float *x = rows[j] + c0, *weight = a.weight + int64_t(c0) * a.kernel + j;
        for (int c = 0; c < count; c++) total[c] += x[c] * weight[int64_t(c) * a.kernel];
      }
      if (a.bias)
        for (int c = 0; c < count; c++) total[c] += a.bias[c0 + c];
      if (a.silu)
        for (int c = 0; c < kBlock; c++) total[c] = total[c] / (1.f + exponential(std::min(87.f, -total[c])));
      std::memcpy(out + c0, total, sizeof(float) * count);
    }
  }
}

// ---- gated delta rule -----------------------------------------------------------------------------------------------

KVRT_EACH_ISA void unit(const float* from, float* to, int size) {
  const float scale = 1.f / std::sqrt(dot(from, from, size) + 1e-6f);
  for (int i = 0; i < size; i++) to[i] = from[i] * scale;
}

struct Place {
  const float* page;  // the first row of the token's page
  float* row;
  const float* before;  // all states at the end of the page before it; nullptr: there is none
  float* after;         // where those at the end of its own go; nullptr: it is not the last
  int slot;
};

// One token and one value head, with its unit key k and query q.
KVRT_EACH_ISA void recall(const DeltaArgs& a, const Place& at, int token, int head, const float* k, const float* q,
                          float* old) {
  const int keys = a.key_dim, values = a.value_dim, width = a.tokens.width, group = a.value_heads / a.key_heads;
  const int key = head / group * keys, value = a.key_heads * keys + head * values, c = width - a.value_heads + head;
  const float* gates = a.gates + token * a.gates_stride;
  const float beta = 1.f / (1.f + std::exp(-gates[head])), x = gates[a.value_heads + head] + a.decay_bias[head];
  float gone = -std::exp(a.decay_log[head]) * (x > 20.f ? x : std::log1p(std::exp(x)));
  if (at.slot) gone += at.row[c - width];
  const float decay = std::exp(gone);
  float *by_key = old, *by_query = old + values;
  std::fill(old, old + 2 * values, 0.f);
  const int64_t state = int64_t(head) * keys * values;
  if (at.before) {
    for (int d = 0; d < keys; d++) {
      const float* s = at.before + state + int64_t(d) * values;
      const float kd = k[d], qd = q[d];
      for (int v = 0; v < values; v++) {
        by_key[v] += s[v] * kd;
        by_query[v] += s[v] * qd;
      }
    }
    for (int v = 0; v < 2 * values; v++) old[v] *= decay;
  }
  for (int j = 0; j < at.slot; j++) {
    const float* other = at.page + int64_t(j) * width;
    const float share = std::exp(gone - other[c]);
    add_scaled(by_key, other + value, dot(other + key, k, keys) * share, values);
    add_scaled(by_query, other + value, dot(other + key, q, keys) * share, values);
  }
  const float* v = a.qkv + token * a.qkv_stride + 2 * a.key_heads * keys + head * values;
  float *u = at.row + value, *out = a.out + token * a.out_stride + head * values;
  const float own = dot(k, q, keys);
  for (int i = 0; i < values; i++) {
    u[i] = (v[i] - by_key[i]) * beta;
    out[i] = by_query[i] + u[i] * own;
  }
  at.row[c] = gone;
  if (!at.after) return;
  for (int d = 0; d < keys; d++) {
    float* s = at.after + state + int64_t(d) * values;
    for (int i = 0; i < values; i++) s[i] = at.before ? at.before[state + int64_t(d) * values + i] * decay : 0.f;
  }
  for (int j = 0; j <= at.slot; j++) {
    const float* other = at.page + int64_t(j) * width;
    const float share = j < at.slot ? std::exp(gone - other[c]) : 1.f;
    for (int d = 0; d < keys; d++)
      add_scaled(at.after + state + int64_t(d) * values, other + value, other[key + d] * share, values);
  }
}

// All new tokens of a sequence, for the value heads of one key.
KVRT_EACH_ISA void delta_head(const DeltaArgs& a, int sequence, int key_head) {
  const int keys = a.key_dim, size = a.tokens.rows, group = a.value_heads / a.key_heads;
  std::vector<float> scratch(2 * keys + 2 * a.value_dim);
  float *k = scratch.data(), *q = k + keys, *old = q + keys;
  const float scale = 1.f / std::sqrt(float(keys));
  const int32_t* start = a.tokens.query_start + sequence;
  for (int token = start[0]; token < start[1]; token++) {
    const int64_t position = int64_t(a.tokens.context_len[sequence]) - start[1] + token;
    Place at;
    at.slot = int(position % size);
    at.row = row(a.tokens, sequence, position);
    at.page = at.row - int64_t(at.slot) * a.tokens.width;
    at.before = position < size ? nullptr : row(a.borders, sequence, position / size - 1);
    at.after = at.slot == size - 1 ? row(a.borders, sequence, position / size) : nullptr;
    const float* own = a.qkv + token * a.qkv_stride + key_head * keys;
    unit(own, q, keys);
    for (int d = 0; d < keys; d++) q[d] *= scale;
    unit(own + a.key_heads * keys, k, keys);
    std::memcpy(at.row + key_head * keys, k, sizeof(float) * keys);
    for (int head = key_head * group; head < (key_head + 1) * group; head++) recall(a, at, token, head, k, q, old);
  }
}

// ---- instruction sets -----------------------------------------------------------------------------------------------

struct Build {
  void (*convolve)(const ConvolveArgs&, int, int);
  void (*delta)(const DeltaArgs&, int, int);
};

#define KVRT_BUILD(name, target)                                                                               \
  target void convolve_##name(const ConvolveArgs& a, int from, int to) { convolve_tokens(a, from, to); }       \
  target void delta_##name(const DeltaArgs& a, int sequence, int head) { delta_head(a, sequence, head); }      \
  constexpr Build name{convolve_##name, delta_##name};

KVRT_BUILD(plain, )
#if defined(__x86_64__)
KVRT_BUILD(v3, __attribute__((target("avx2"))))
KVRT_BUILD(v4, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"))))
#endif

Build best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return v4;
  if (__builtin_cpu_supports("x86-64-v3")) return v3;
#endif
  return plain;
}

const Build chosen = best();

}  // namespace

void convolve(const ConvolveArgs& args, int threads) {
  const StatePages& p = args.pages;
  runs(threads, p.query_start[p.sequences], [&](int64_t from, int64_t to) { chosen.convolve(args, int(from), int(to)); });
}

void delta(const DeltaArgs& args, int threads) {
  const int64_t heads = args.key_heads;
  each(threads, args.tokens.sequences * heads,
       [&](int64_t i) { chosen.delta(args, int(i / heads), int(i % heads)); });
}

}  // namespace kvrt
