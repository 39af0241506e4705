// Short convolutions, the gated delta rule (Yang et al. 2024, arXiv 2412.06464) and state spaces (Dao and Gu 2024, arXiv
// 2405.21060), over pages.
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

// ---- states ---------------------------------------------------------------------------------------------------------

// Where a token is. Its row has keys, then of each value head what is put into its state, then the logarithm of how much
// it leaves there.
struct Place {
  const float* page;  // the first row of the token's page
  float* row;
  const float* before;  // all states at the end of the page before it; nullptr: there is none
  float* after;         // where those at the end of its own go; nullptr: it is not the last
  int slot;
};

KVRT_EACH_ISA Place place_of(const StateArgs& a, int sequence, int token) {
  const int size = a.tokens.rows, next = a.tokens.query_start[sequence + 1];
  const int64_t position = int64_t(a.tokens.context_len[sequence]) - next + token;
  Place at;
  at.slot = int(position % size);
  at.row = row(a.tokens, sequence, position);
  at.page = at.row - int64_t(at.slot) * a.tokens.width;
  at.before = position < size ? nullptr : row(a.borders, sequence, position / size - 1);
  at.after = at.slot == size - 1 ? row(a.borders, sequence, position / size) : nullptr;
  return at;
}

// The parts of a row that a value head has.
struct Parts {
  int key, value, gone;
};

KVRT_EACH_ISA Parts parts_of(const StateArgs& a, int head) {
  const int values = a.key_heads * a.key_dim, gone = values + a.value_heads * a.value_dim;
  const int key = a.tiled ? head % a.key_heads : head / (a.value_heads / a.key_heads);
  return {key * a.key_dim, values + head * a.value_dim, gone + head * a.decays};
}

KVRT_EACH_ISA float softplus(float x) { return x > 20.f ? x : std::log1p(std::exp(x)); }

// A key's numbers, each by how much is left of what was put in.
KVRT_EACH_ISA void fade(float* __restrict to, const float* __restrict from, const float* __restrict gone, int decays,
                        int size) {
  if (decays == 1) {
    const float share = std::exp(*gone);
    for (int i = 0; i < size; i++) to[i] = from[i] * share;
  } else {
    for (int i = 0; i < size; i++) to[i] = from[i] * exponential(gone[i]);
  }
}

KVRT_EACH_ISA void add(float* __restrict to, const float* __restrict from, int size) {
  for (int i = 0; i < size; i++) to[i] += from[i];
}

// What the tokens before have put in under each of some keys: `found`, [kAsked][value_dim]. From the nearest one back, so
// that what has gone since is a sum of few numbers, and no difference of two large ones. `scratch`: [kAsked + 1][key_dim].
template <int kAsked>
KVRT_EACH_ISA void look_back(const StateArgs& a, const Place& at, int head, const float* const (&asked)[kAsked],
                             float* found, float* scratch) {
  const int keys = a.key_dim, values = a.value_dim, decays = a.decays;
  const Parts part = parts_of(a, head);
  float* gone = scratch + kAsked * keys;
  std::memcpy(gone, at.row + part.gone, sizeof(float) * decays);
  std::fill(found, found + kAsked * values, 0.f);
  for (int j = at.slot - 1; j >= 0; j--) {
    const float* other = at.page + int64_t(j) * a.tokens.width;
    fade(scratch, other + part.key, gone, decays, keys);
    for (int n = 0; n < kAsked; n++)
      add_scaled(found + n * values, other + part.value, dot(scratch, asked[n], keys), values);
    add(gone, other + part.gone, decays);
  }
  if (!at.before) return;
  for (int n = 0; n < kAsked; n++) fade(scratch + n * keys, asked[n], gone, decays, keys);
  float* __restrict into = found;
  for (int d = 0; d < keys; d++) {
    const float* __restrict s = at.before + (int64_t(head) * keys + d) * values;
    float shares[kAsked];
    for (int n = 0; n < kAsked; n++) shares[n] = scratch[n * keys + d];
    for (int v = 0; v < values; v++)
      for (int n = 0; n < kAsked; n++) into[n * values + v] += s[v] * shares[n];
  }
}

// A head's state at the end of its page, if that is where a token is; likewise. `scratch`: [2][key_dim].
KVRT_EACH_ISA void leave(const StateArgs& a, const Place& at, int head, float* scratch) {
  if (!at.after) return;
  const int keys = a.key_dim, values = a.value_dim, decays = a.decays;
  const Parts part = parts_of(a, head);
  const int64_t first = int64_t(head) * keys * values;
  float* gone = scratch + keys;
  std::fill(gone, gone + decays, 0.f);
  std::fill(at.after + first, at.after + first + int64_t(keys) * values, 0.f);
  for (int j = at.slot; j >= 0; j--) {
    const float* other = at.page + int64_t(j) * a.tokens.width;
    fade(scratch, other + part.key, gone, decays, keys);
    for (int d = 0; d < keys; d++)
      add_scaled(at.after + first + int64_t(d) * values, other + part.value, scratch[d], values);
    add(gone, other + part.gone, decays);
  }
  if (!at.before) return;
  for (int d = 0; d < keys; d++) {
    const int64_t n = first + int64_t(d) * values;
    const float share = decays == 1 ? std::exp(*gone) : exponential(gone[d]);
    add_scaled(at.after + n, at.before + n, share, values);
  }
}

// ---- gated delta rule -----------------------------------------------------------------------------------------------

KVRT_EACH_ISA void unit(const float* from, float* to, int size) {
  const float scale = 1.f / std::sqrt(dot(from, from, size) + 1e-6f);
  for (int i = 0; i < size; i++) to[i] = from[i] * scale;
}

// The keys of some tokens, which all value heads read: they are there before any of these begins.
KVRT_EACH_ISA void store_keys(const StateArgs& a, int token0, int token1, bool units) {
  const StatePages& p = a.tokens;
  int sequence = int(std::upper_bound(p.query_start, p.query_start + p.sequences + 1, token0) - p.query_start) - 1;
  for (int token = token0; token < token1; token++) {
    while (token >= p.query_start[sequence + 1]) sequence++;
    float* to = row(p, sequence, int64_t(p.context_len[sequence]) - p.query_start[sequence + 1] + token);
    const float* from = a.keys + token * a.stride;
    if (units)
      for (int head = 0; head < a.key_heads; head++) unit(from + head * a.key_dim, to + head * a.key_dim, a.key_dim);
    else
      std::memcpy(to, from, sizeof(float) * a.key_heads * a.key_dim);
  }
}

// All new tokens of a sequence, for a value head.
KVRT_EACH_ISA void delta_head(const DeltaArgs& args, int sequence, int head) {
  const StateArgs& a = args.state;
  const int keys = a.key_dim, values = a.value_dim, decays = a.decays;
  const Parts part = parts_of(a, head);
  std::vector<float> room(4 * keys + 2 * values);
  float *q = room.data(), *found = q + keys, *scratch = found + 2 * values;
  const float scale = 1.f / std::sqrt(float(keys)), rate = -std::exp(args.decay_log[head]);
  const float* bias = args.decay_bias + head * decays;
  for (int token = a.tokens.query_start[sequence]; token < a.tokens.query_start[sequence + 1]; token++) {
    const Place at = place_of(a, sequence, token);
    const float *k = at.row + part.key, *gates = args.gates + token * args.gates_stride;
    unit(a.queries + token * a.stride + part.key, q, keys);
    for (int d = 0; d < keys; d++) q[d] *= scale;
    const float beta = args.strength / (1.f + std::exp(-gates[head]));
    float* gone = at.row + part.gone;
    for (int d = 0; d < decays; d++) gone[d] = rate * softplus(gates[a.value_heads + head * decays + d] + bias[d]);
    look_back<2>(a, at, head, {k, q}, found, scratch);
    const float *v = a.values + token * a.stride + head * values, own = dot(k, q, keys);
    float *u = at.row + part.value, *out = a.out + token * a.out_stride + head * values;
    for (int i = 0; i < values; i++) {
      u[i] = (v[i] - found[i]) * beta;
      out[i] = found[values + i] + u[i] * own;
    }
    leave(a, at, head, scratch);
  }
}

// ---- state spaces ---------------------------------------------------------------------------------------------------

// Likewise.
KVRT_EACH_ISA void scan_head(const ScanArgs& args, int sequence, int head) {
  const StateArgs& a = args.state;
  const int keys = a.key_dim, values = a.value_dim;
  const Parts part = parts_of(a, head);
  std::vector<float> room(2 * keys + values);
  float *found = room.data(), *scratch = found + values;
  const float rate = -std::exp(args.decay_log[head]), skip = args.skip[head];
  for (int token = a.tokens.query_start[sequence]; token < a.tokens.query_start[sequence + 1]; token++) {
    const Place at = place_of(a, sequence, token);
    const float *k = at.row + part.key, *q = a.queries + token * a.stride + part.key;
    const float passed = softplus(args.times[token * args.times_stride + head] + args.time_bias[head]);
    const float time = std::min(std::max(passed, args.shortest), args.longest);
    at.row[part.gone] = rate * time;
    look_back<1>(a, at, head, {q}, found, scratch);
    const float *x = a.values + token * a.stride + head * values, own = dot(k, q, keys);
    float *u = at.row + part.value, *out = a.out + token * a.out_stride + head * values;
    for (int i = 0; i < values; i++) {
      u[i] = x[i] * time;
      out[i] = found[i] + u[i] * own + x[i] * skip;
    }
    leave(a, at, head, scratch);
  }
}

// ---- instruction sets -----------------------------------------------------------------------------------------------

struct Build {
  void (*convolve)(const ConvolveArgs&, int, int);
  void (*keys)(const StateArgs&, int, int, bool);
  void (*delta)(const DeltaArgs&, int, int);
  void (*scan)(const ScanArgs&, int, int);
};

#define KVRT_BUILD(name, target)                                                                               \
  target void convolve_##name(const ConvolveArgs& a, int from, int to) { convolve_tokens(a, from, to); }       \
  target void keys_##name(const StateArgs& a, int from, int to, bool units) { store_keys(a, from, to, units); } \
  target void delta_##name(const DeltaArgs& a, int sequence, int head) { delta_head(a, sequence, head); }      \
  target void scan_##name(const ScanArgs& a, int sequence, int head) { scan_head(a, sequence, head); }         \
  constexpr Build name{convolve_##name, keys_##name, delta_##name, scan_##name};

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

// First the keys of all tokens, then each value head of each sequence by itself.
template <typename F>
void by_head(const StateArgs& a, bool units, int threads, const F& head) {
  const StatePages& p = a.tokens;
  runs(threads, p.query_start[p.sequences],
       [&](int64_t from, int64_t to) { chosen.keys(a, int(from), int(to), units); });
  const int64_t heads = a.value_heads;
  each(threads, p.sequences * heads, [&](int64_t i) { head(int(i / heads), int(i % heads)); });
}

}  // namespace

void convolve(const ConvolveArgs& args, int threads) {
  const StatePages& p = args.pages;
  runs(threads, p.query_start[p.sequences], [&](int64_t from, int64_t to) { chosen.convolve(args, int(from), int(to)); });
}

void delta(const DeltaArgs& args, int threads) {
  by_head(args.state, true, threads, [&](int sequence, int head) { chosen.delta(args, sequence, head); });
}

void scan(const ScanArgs& args, int threads) {
  by_head(args.state, false, threads, [&](int sequence, int head) { chosen.scan(args, sequence, head); });
}

}  // namespace kvrt
