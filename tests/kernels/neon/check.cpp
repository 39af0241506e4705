// The kernels of each instruction set against plain loops, for machines without Python: ci/neon runs it under qemu. Prints
// one line per check; exits 1 if one fails, or if the instruction sets that run here are not those that are given.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "api.h"
#include "builds.h"
#include "program.h"

using namespace kvrt;
const Kernels* kernels;

std::mt19937 generator(1);
int failures = 0;

float normal() { return std::normal_distribution<float>()(generator); }

std::vector<float> normals(size_t n) {
  std::vector<float> v(n);
  for (float& x : v) x = normal();
  return v;
}

void report(bool ok, const char* what, double error) {
  std::printf("%s %s (%.1e)\n", ok ? "ok  " : "FAIL", what, error);
  failures += !ok;
}

// ---- numbers of the stored types, by arithmetic on their definition ----

double decode(Dtype dtype, const void* p, size_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const int bits = static_cast<const uint16_t*>(p)[i], mantissa = dtype == Dtype::bf16 ? 7 : 10;
  const int exponent = (bits & 0x7fff) >> mantissa, bias = dtype == Dtype::bf16 ? 127 : 15;
  if (exponent == (0x7fff >> mantissa)) return std::numeric_limits<double>::quiet_NaN();
  const int fraction = (bits & ((1 << mantissa) - 1)) | (exponent ? 1 << mantissa : 0);
  return (bits & 0x8000 ? -1 : 1) * std::ldexp(fraction, std::max(exponent, 1) - bias - mantissa);
}

void encode(Dtype dtype, void* p, size_t i, float x) {  // to nearest even
  if (dtype == Dtype::f32) {
    static_cast<float*>(p)[i] = x;
    return;
  }
  const int mantissa = dtype == Dtype::bf16 ? 7 : 10, bias = dtype == Dtype::bf16 ? 127 : 15;
  int exponent;
  std::frexp(x, &exponent);
  exponent = std::max(exponent - 1, 1 - bias);
  const int units = int(std::nearbyint(std::ldexp(std::fabs(x), mantissa - exponent)));
  const int bits = ((exponent + bias - 1) << mantissa) + units;
  static_cast<uint16_t*>(p)[i] = uint16_t(bits | (x < 0 ? 0x8000 : 0));
}

size_t item(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }
const char* name(Dtype dtype) { return dtype == Dtype::f32 ? "f32" : dtype == Dtype::bf16 ? "bf16" : "f16"; }

// ---- attention ----

bool codes(Format format) { return format == Format::i8 || format == Format::i4; }
const char* name(Format format) {
  return format == Format::i8 ? "i8" : format == Format::i4 ? "i4" : name(Dtype(int(format)));
}

// What a token sees, and how scores become weights.
struct Sight {
  int window = 0;
  float softcap = 0;
  int sinks = 0;
  bool causal = true;
  bool learned = false;  // a logit of each head in the denominator
  int shared = 0;        // values are so many first elements of the keys; 0: their own
};

struct Paged {
  static constexpr int kv_heads = 2, page_size = 16;
  Format format;
  int heads, dim, tokens, pages;
  int groups, items, block;  // of a head: its scales, the items of a slot, and of a page's slots and scales
  std::vector<char> kv;
  std::vector<int32_t> table;
  std::vector<float> q, k, v, logits;

  Paged(Format format, int heads, int dim, int tokens)
      : format(format), heads(heads), dim(dim), tokens(tokens), pages((tokens + page_size - 1) / page_size) {
    groups = format == Format::i8 ? 1 : format == Format::i4 ? (dim + 31) / 32 : 0;
    items = format == Format::i4 ? 16 * groups : dim;
    block = page_size * (items + groups * (format == Format::i8 ? 4 : 2));
    const size_t page = 2 * kv_heads * block;
    kv.assign(page * (pages + 1) * size(), char(0xff));  // NaN wherever no token is stored
    for (int i = 0; i < pages; i++) table.push_back((i * 7 + 3) % pages);
    if (pages % 7 == 0)
      for (int i = 0; i < pages; i++) table[i] = pages - 1 - i;
    k = normals(size_t(tokens) * kv_heads * dim);
    v = normals(size_t(tokens) * kv_heads * dim);
    q = normals(size_t(tokens) * heads * dim);
    logits = normals(heads);
    const int32_t start[2] = {0, tokens}, context = tokens;
    const int64_t row = kv_heads * dim;
    if (codes(format)) {
      compute(*kernels, AppendArgs{layout(), {table.data(), pages, start, &context, 1, nullptr, nullptr, 0, 0}, nullptr, k.data(), v.data(),
                                  0, row, row, 0, nullptr, nullptr, 0, nullptr, nullptr, 0}, 2);
      return;
    }
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < kv_heads; h++)
        for (int side = 0; side < 2; side++)
          for (int d = 0; d < dim; d++)
            encode(Dtype(int(format)), kv.data(), begin(side, t, h) + t % page_size * dim + d, given(side, t, h, d));
  }

  size_t size() const { return codes(format) ? 1 : item(Dtype(int(format))); }
  float given(int side, int t, int h, int d) const { return (side ? v : k)[(size_t(t) * kv_heads + h) * dim + d]; }
  size_t begin(int side, int t, int h) const {
    return ((size_t(table[t / page_size]) * 2 + side) * kv_heads + h) * block;
  }
  Pages layout(int shared = 0) const {
    return {format, const_cast<char*>(kv.data()), shared ? 0 : kv_heads * block, 2 * kv_heads * block, block, page_size,
            kv_heads, dim, shared ? shared : dim};
  }

  // An element as stored.
  double at(int side, int t, int h, int d) const {
    const char* base = kv.data() + begin(side, t, h) * size();
    const int slot = t % page_size;
    if (format == Format::i8) {
      float scale;
      std::memcpy(&scale, base + page_size * dim + slot * 4, 4);
      return double(scale) * static_cast<signed char>(base[slot * dim + d]);
    }
    if (format == Format::i4) {
      const int byte = static_cast<unsigned char>(base[slot * items + d / 32 * 16 + d % 16]);
      const double scale = decode(Dtype::bf16, base + page_size * items, d / 32 * page_size + slot);
      return scale * ((d % 32 < 16 ? byte & 15 : byte >> 4) - 8);
    }
    return decode(Dtype(int(format)), base, slot * dim + d);
  }

  // How far elements lie from what was stored, in steps of their scale.
  double rounding() const {
    double most = 0;
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < kv_heads; h++)
        for (int side = 0; side < 2; side++)
          for (int d = 0; d < dim; d++) {
            const int group = format == Format::i8 ? dim : 32, first = d / group * group;
            double largest = 0;
            for (int i = first; i < std::min(dim, first + group); i++)
              largest = std::max(largest, std::fabs(double(given(side, t, h, i))));
            const double step = largest / (format == Format::i8 ? 127 : 8);
            most = std::max(most, std::fabs(at(side, t, h, d) - given(side, t, h, d)) / step);
          }
    return most;
  }

  // The last `count` of the first `length` tokens; row 0 of the result is the first of them.
  std::vector<float> run(int count, int length, const Sight& sight, int threads) const {
    const Pages layout = this->layout(sight.shared);
    std::vector<float> out(size_t(count) * heads * layout.value_dim);
    const int32_t start[2] = {0, count}, context = length;
    const int64_t row = int64_t(heads) * dim;
    const AttentionArgs a{layout,
                          {table.data(), pages, start, &context, 1, nullptr, nullptr, 0, 0},
                          q.data() + (length - count) * row,
                          out.data(),
                          row,
                          int64_t(heads) * layout.value_dim,
                          heads,
                          sight.softcap ? 1.f : 1.f / std::sqrt(float(dim)),
                          sight.window,
                          sight.softcap,
                          sight.sinks,
                          sight.causal,
                          sight.learned ? logits.data() : nullptr};
    compute(*kernels, a, threads);
    return out;
  }

  double expected(int position, int head, int d, const Sight& sight) const {
    const int h = head / (heads / kv_heads), last = sight.causal ? position : tokens - 1;
    const auto seen = [&](int t) { return !sight.window || t > position - sight.window || t < sight.sinks; };
    double top = sight.learned ? double(logits[head]) : -1e300;
    std::vector<double> score(last + 1);
    for (int t = 0; t <= last; t++) {
      double s = 0;
      for (int i = 0; i < dim; i++)
        s += double(q[(size_t(position) * heads + head) * dim + i]) * at(0, t, h, i);
      score[t] = sight.softcap ? sight.softcap * std::tanh(s / sight.softcap) : s / std::sqrt(double(dim));
      if (seen(t)) top = std::max(top, score[t]);
    }
    double sum = sight.learned ? std::exp(logits[head] - top) : 0, value = 0;
    for (int t = 0; t <= last; t++) {
      if (!seen(t)) continue;
      const double w = std::exp(score[t] - top);
      sum += w;
      value += w * at(sight.shared ? 0 : 1, t, h, d);
    }
    return value / sum;
  }
};

void check_attention(Format format, int heads, int dim, int tokens, const Sight& sight = {}) {
  const Paged paged(format, heads, dim, tokens);
  const std::vector<float> whole = paged.run(tokens, tokens, sight, 1);
  const int wide = sight.shared ? sight.shared : dim;
  double error = 0;
  for (int position = tokens - 1; position >= 0; position -= 1 + tokens / 5)
    for (int head = 0; head < heads; head++)
      for (int d = 0; d < wide; d += 5)
        error = std::max(error, std::fabs(paged.expected(position, head, d, sight) -
                                          whole[(size_t(position) * heads + head) * wide + d]));
  char what[160];
  std::snprintf(what, sizeof what, "attention %s heads %d/2 of %d, %d tokens, window %d, softcap %g, sinks %d%s%s%s",
                name(format), heads, dim, tokens, sight.window, sight.softcap, sight.sinks,
                sight.causal ? "" : ", not causal", sight.learned ? ", learned logits" : "",
                sight.shared ? ", values in keys" : "");
  report(error < (codes(format) ? 4e-3 : 2e-5), what, error);
  if (codes(format)) {  // 4 bits end at 7 on one side, and their scales have but 8 binary digits
    const double most = paged.rounding();
    report(most < (format == Format::i8 ? 0.5001 : 1.04), "    rounding", most);
  }
  // The same bits for a single token, for a chunk, and split over threads.
  const size_t row = size_t(heads) * wide * sizeof(float);
  bool same = true;
  for (int count : {1, 2, 7, tokens / 2}) {
    const std::vector<float> part = paged.run(count, tokens, sight, 3);
    same = same && !std::memcmp(part.data(), whole.data() + size_t(tokens - count) * heads * wide, row * count);
  }
  report(same, "    bits", 0);
}

// ---- the others ----

// As a bf16, where activations are rounded to it before they are multiplied with weights of bf16.
double factor(Dtype dtype, float x) {
  if (dtype != Dtype::bf16 || !std::strstr(kernels->isa, "bf16")) return x;
  uint16_t rounded;
  encode(dtype, &rounded, 0, x);
  return decode(dtype, &rounded, 0);
}

void check_linear(Dtype dtype, int n, int k) {
  const int most = 40;
  const std::vector<float> x = normals(size_t(most) * k), bias = normals(n);
  std::vector<char> w(size_t(n) * k * item(dtype));
  for (size_t i = 0; i < size_t(n) * k; i++) encode(dtype, w.data(), i, normal());
  std::vector<float> whole;
  double error = 0;
  bool same = true;
  for (int m : {most, 1, 2, 5, 30}) {
    std::vector<float> y(size_t(m) * n);
    const LinearArgs a{dtype,    Gate::none, x.data(), w.data(), bias.data(), nullptr, y.data(),
                       int64_t(k), 0,        n,        m,        n,           k};
    compute(*kernels, a, m % 3 + 1);
    // Recorded: the same bits, by threads that stay awake.
    std::vector<float> replayed(y.size());
    LinearArgs again = a;
    again.y = replayed.data();
    Program program;
    for (int i = 0; i < 3; i++) program.add(again);
    program.run(*kernels, {}, 3);
    same = same && !std::memcmp(y.data(), replayed.data(), y.size() * sizeof(float));
    if (whole.empty()) {
      whole = y;
      for (int r = 0; r < m; r += 3)
        for (int o = 0; o < n; o++) {
          double sum = bias[o];
          for (int i = 0; i < k; i++)
            sum += factor(dtype, x[size_t(r) * k + i]) * decode(dtype, w.data(), size_t(o) * k + i);
          error = std::max(error, std::fabs(sum - y[size_t(r) * n + o]) / std::sqrt(k));
        }
    }
    same = same && !std::memcmp(y.data(), whole.data(), y.size() * sizeof(float));
  }
  char what[99];
  std::snprintf(what, sizeof what, "linear %s %d x %d", name(dtype), n, k);
  report(error < 2e-6, what, error);
  report(same, "    bits", 0);
}

void check_gate(Gate gate) {
  const int n = 37, k = 64;
  const std::vector<float> x = normals(k), w = normals(2 * n * k), bias = normals(2 * n);
  std::vector<float> y(n);
  compute(*kernels, LinearArgs{Dtype::f32, gate, x.data(), w.data(), bias.data(), nullptr, y.data(), k, 0, n, 1, n, k},
          1);
  double error = 0;
  for (int o = 0; o < n; o++) {
    double z = bias[o], up = bias[n + o];
    for (int i = 0; i < k; i++) z += double(x[i]) * w[o * k + i], up += double(x[i]) * w[(n + o) * k + i];
    const double act = gate == Gate::silu ? z / (1 + std::exp(-z))
                                          : z / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
    error = std::max(error, std::fabs(act * up - y[o]));
  }
  report(error < 5e-4, gate == Gate::silu ? "gated silu" : "gated gelu_tanh", error);
}

const int kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int kE2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// A panel of codes, read byte by byte: what packed.py lays out.
struct PanelBytes {
  const unsigned char* panel;
  Packing packing;
  int head, scales;  // bytes of a span's head, and of a block's scales

  PanelBytes(const unsigned char* panel, Packing packing) : panel(panel), packing(packing) {
    const int heads[] = {32, 64, 64, 80, 32, 64, 32, 64}, of_blocks[] = {0, 0, 0, 0, 16, 32, 32, 64};
    head = heads[int(packing.scales)], scales = of_blocks[int(packing.scales)];
  }
  int block() const { return scales + 64 * packing.bits; }
  int in_span() const { return packing.span / 32; }
  bool groups_of_16() const {
    return packing.scales == Scales::halves_of_16 || packing.scales >= Scales::levels_of_16;
  }
  const unsigned char* span(int i) const { return panel + i / packing.span * (head + in_span() * block()); }

  // What an element is made of: scale * number + offset.
  struct Parts {
    float scale, offset;
    int number;
  };
  Parts parts(int row, int i) const {
    const unsigned char *from = span(i), *at = from + head + i % packing.span / 32 * block();
    const int four = i % 32 / 4, group = i % 32 / 16;
    int code = 0, low = 0;
    const unsigned char* plane = at + scales;
    for (int width : {8, 4, 2, 1}) {
      if (!(packing.bits & width)) continue;
      const int in_byte = 8 / width, byte = plane[four / in_byte * 64 + row * 4 + i % 4];
      code |= (byte >> four % in_byte * width & ((1 << width) - 1)) << low;
      low += width, plane += 64 * width;
    }
    if (packing.codes == Codes::table) {
      const bool iq4 = packing.scales == Scales::halves || packing.scales == Scales::levels;
      code = (iq4 ? kIq4 : kE2m1)[code] + 128;
    }
    const auto half = [&](int n) { return float(decode(Dtype::f16, from, n * 16 + row)); };
    const auto level = [&](int n) { return float(int8_t(at[16 * n + row])); };
    switch (packing.scales) {
      case Scales::halves: return {half(0), 0, code - packing.zero};
      case Scales::halves_with_offsets: return {half(0), half(1), code};
      case Scales::halves_of_16: return {half(group), 0, code - packing.zero};
      case Scales::wholes: return {float(decode(Dtype::f32, from, row)), 0, code - from[64 + row]};
      case Scales::levels: return {half(0) * level(0), 0, code - packing.zero};
      case Scales::levels_with_offsets: return {half(0) * level(0), half(1) * level(1), code};
      case Scales::levels_of_16: return {half(0) * level(group), 0, code - packing.zero};
      default: return {half(0) * level(group), half(1) * level(2 + group), code};
    }
  }
  double value(int row, int i) const {
    const Parts made = parts(row, i);
    return double(made.scale) * made.number + made.offset;
  }
};

// The order of additions that linear_packed.h writes down, in float32.
float product_of_codes(const float* x, const PanelBytes& w, int row, int k) {
  const int group = w.groups_of_16() ? 16 : 32;
  float y = 0;
  for (int i = 0; i < k; i += group) {
    float most = 0;
    for (int j = i / 32 * 32; j < i / 32 * 32 + 32; j++) most = std::max(most, std::fabs(x[j]));
    int sum = 0, codes = 0;
    for (int j = i; j < i + group; j++) {
      const int code = int(std::nearbyint(x[j] * (127 / most)));
      sum += w.parts(row, j).number * code, codes += code;
    }
    const PanelBytes::Parts parts = w.parts(row, i);
    y += parts.scale * (most / 127) * float(sum);
    y += parts.offset * (most / 127 * float(codes));
  }
  return y;
}

// Weights of codes, with activations that are rounded as kvrt.spi.PackedMatrices says, where the rest is exact, and with
// activations as they are, which has the bits of a product with float32.
void check_codes(const char* what, Packing packing) {
  const int rows = 15, n = 32, k = packing.span > 32 ? 2 * packing.span : 96;
  const int64_t panel = 16 * row_bytes(packing, k);
  std::vector<unsigned char> w(n / 16 * panel);
  for (auto& byte : w) byte = generator() & 255;
  for (int p = 0; p < n / 16; p++)
    for (int i = 0; i < k; i += packing.span) {
      const PanelBytes bytes(w.data() + p * panel, packing);
      auto* head = const_cast<unsigned char*>(bytes.span(i));
      const Dtype kept = packing.scales == Scales::wholes ? Dtype::f32 : Dtype::f16;
      const double size = 0.25 / (packing.codes == Codes::table ? 128 : 1 << packing.bits) / (bytes.scales ? 128 : 1);
      for (int j = 0; j < (kept == Dtype::f32 ? 16 : bytes.head / 2); j++) encode(kept, head, j, normal() * size);
    }
  std::vector<float> x = normals(rows * k), y(rows * n), one(n);
  const auto multiply = [&](const float* x, int rows, float* y, int threads) {
    LinearArgs args{Dtype::codes, Gate::none, x, nullptr, nullptr, nullptr, y, k, 0, n, rows, n, k};
    args.packed[0] = {w.data(), 16, packing};
    args.packed[1] = {w.data() + panel, 16, packing};
    compute(*kernels, args, threads);
  };
  multiply(x.data(), rows, y.data(), 2);
  bool right = true, same = true;
  for (int r = 0; r < rows; r++) {
    for (int o = 0; o < n; o++)
      right = right && y[r * n + o] == product_of_codes(&x[r * k], {w.data() + o / 16 * panel, packing}, o % 16, k);
    multiply(&x[r * k], 1, one.data(), 1);
    same = same && !std::memcmp(one.data(), &y[r * n], n * sizeof(float));
  }
  report(right, what, 0);
  report(same, "    bits", 0);

  std::vector<float> values(n * k), exact(rows * n), unpacked(rows * n);
  for (int o = 0; o < n; o++)
    for (int i = 0; i < k; i++) values[o * k + i] = PanelBytes(w.data() + o / 16 * panel, packing).value(o % 16, i);
  LinearArgs args{Dtype::f32, Gate::none, x.data(), values.data(), nullptr, nullptr, unpacked.data(), k, 0, n, rows, n, k};
  compute(*kernels, args, 2);
  args.dtype = Dtype::exact_codes, args.y = exact.data();
  args.packed[0] = {w.data(), n, packing};
  compute(*kernels, args, 2);
  report(exact == unpacked, "    exact", 0);
}

// Codes of E4M3 are multiplied with the bits of weights that were rounded to bf16.
void check_fp8() {
  const int n = 32, k = 256;
  const Packing packing{8, 0, Scales::wholes, 128, Codes::e4m3};
  const int64_t panel = 16 * row_bytes(packing, k);
  std::vector<unsigned char> w(n / 16 * panel);
  std::vector<char> rounded(size_t(n) * k * 2);
  for (auto& byte : w) byte = 1 + generator() % 126 + 128 * (generator() & 1);  // neither zero nor NaN
  for (int o = 0; o < n; o++) {
    const PanelBytes bytes(w.data() + o / 16 * panel, packing);
    for (int i = 0; i < k; i++) {
      auto* span = const_cast<unsigned char*>(bytes.span(i));
      if (i % packing.span == 0) encode(Dtype::f32, span, o % 16, normal() / 64), span[64 + o % 16] = 0;
      const int code = span[bytes.head + i % packing.span / 32 * bytes.block() + i % 32 / 4 * 64 + o % 16 * 4 + i % 4];
      const int exponent = code >> 3 & 15, fraction = code & 7;
      const float number = std::ldexp(float(exponent ? 8 + fraction : fraction), std::max(exponent, 1) - 10);
      const float value = float(decode(Dtype::f32, span, o % 16)) * (code & 128 ? -number : number);
      encode(Dtype::bf16, rounded.data(), size_t(o) * k + i, value);
    }
  }
  bool same = true;
  for (int m : {1, 2, 5, 30}) {
    const std::vector<float> x = normals(size_t(m) * k);
    std::vector<float> want(m * n), got(m * n);
    LinearArgs args{Dtype::bf16, Gate::none, x.data(), rounded.data(), nullptr, nullptr, want.data(), k, 0, n, m, n, k};
    compute(*kernels, args, 2);
    args.dtype = Dtype::codes, args.y = got.data();
    args.packed[0] = {w.data(), n, packing};
    compute(*kernels, args, 2);
    same = same && got == want;
  }
  report(same, "fp8 as bf16", 0);
}

// Rows [2, 5) and the last have a matrix of low rank added, in two parts of columns.
void check_added(Dtype dtype) {
  const int m = 21, n = 40, k = 64, ranks = 8;
  const std::vector<float> x = normals(m * k);
  std::vector<char> w(n * k * item(dtype)), a(ranks * k * item(dtype)), b(ranks * n * item(dtype));
  for (int i = 0; i < n * k; i++) encode(dtype, w.data(), i, normal());
  for (int i = 0; i < ranks * k; i++) encode(dtype, a.data(), i, normal() / 8);
  for (int i = 0; i < ranks * n; i++) encode(dtype, b.data(), i, normal());
  // The first three of a are added to columns [0, 24), by b[3][24]; the others to [24, 40), by b[5][16] behind that.
  const auto added = std::make_shared<LowRank>(LowRank{a.data(), ranks, {}});
  LowRank& made = *added;
  made.parts = {{b.data(), 0, 24, 3}, {b.data() + 3 * 24 * item(dtype), 24, 16, 5}};
  const auto rows = std::make_shared<LowRankRows>(LowRankRows{dtype, {{2, 5, added}, {m - 1, m, added}}});
  std::vector<float> y(m * n), plain(m * n), alone(n);
  LinearArgs args{dtype, Gate::none, x.data(), w.data(), nullptr, nullptr, plain.data(), k, 0, n, m, n, k};
  compute(*kernels, args, 2);
  args.y = y.data();
  compute(*kernels, AdaptedArgs{args, rows, 0}, 2);
  double error = 0;
  bool same = true;
  for (int r = 0; r < m; r++)
    for (int o = 0; o < n; o++) {
      double want = plain[r * n + o];
      if ((r < 2 || r >= 5) && r != m - 1) {
        same = same && y[r * n + o] == plain[r * n + o];
        continue;
      }
      for (int j = o < 24 ? 0 : 3; j < (o < 24 ? 3 : ranks); j++) {
        double z = 0;
        for (int i = 0; i < k; i++) z += factor(dtype, x[r * k + i]) * decode(dtype, a.data(), j * k + i);
        want += z * decode(dtype, b.data(), o < 24 ? j * 24 + o : 3 * 24 + (j - 3) * 16 + o - 24);
      }
      error = std::max(error, std::fabs(want - y[r * n + o]));
    }
  args.x += (m - 1) * k, args.m = 1, args.y = alone.data();
  const auto one = std::make_shared<LowRankRows>(LowRankRows{dtype, {{0, 1, added}}});
  compute(*kernels, AdaptedArgs{args, one, 0}, 1);
  same = same && !std::memcmp(alone.data(), &y[(m - 1) * n], n * sizeof(float));
  char what[99];
  std::snprintf(what, sizeof what, "low rank added, %s", name(dtype));
  report(error < 1e-4, what, error);
  report(same, "    bits", 0);
}

void check_norm() {
  const int rows = 3, size = 123;
  const std::vector<float> x = normals(rows * size), weight = normals(size), bias = normals(size), old = normals(rows * size);
  std::vector<float> rms(rows * size), layer(rows * size), branch = old;
  compute(*kernels, NormArgs{Norm::rms, false, x.data(), weight.data(), nullptr, rms.data(), size, size, rows, size, 1e-5f, 1}, 2);
  compute(*kernels, NormArgs{Norm::layer, false, x.data(), weight.data(), bias.data(), layer.data(), size, size, rows, size, 1e-5f, 1}, 2);
  compute(*kernels, NormArgs{Norm::rms, true, x.data(), weight.data(), nullptr, branch.data(), size, size, rows, size, 1e-5f, 0.5f}, 2);
  double error[3] = {};
  for (int r = 0; r < rows; r++) {
    const float* row = &x[r * size];
    double sum = 0, squares = 0, apart = 0;
    for (int i = 0; i < size; i++) sum += row[i], squares += double(row[i]) * row[i];
    const double mean = sum / size;
    for (int i = 0; i < size; i++) apart += (row[i] - mean) * (row[i] - mean);
    for (int i = 0; i < size; i++) {
      const int at = r * size + i;
      const double by_rms = row[i] / std::sqrt(squares / size + 1e-5) * weight[i];
      const double by_layer = (row[i] - mean) / std::sqrt(apart / size + 1e-5) * weight[i] + bias[i];
      error[0] = std::max(error[0], std::fabs(by_rms - rms[at]));
      error[1] = std::max(error[1], std::fabs(by_layer - layer[at]));
      error[2] = std::max(error[2], std::fabs(old[at] + 0.5 * by_rms - branch[at]));
    }
  }
  report(error[0] < 1e-5, "rms_norm", error[0]);
  report(error[1] < 1e-5, "layer_norm", error[1]);
  report(error[2] < 1e-5, "add_branch", error[2]);
}

void check_map() {
  const int rows = 2, size = 37;
  const std::vector<float> x = normals(rows * size), factors = normals(rows);
  std::vector<float> gelu = x, relu2 = x, scaled = x;
  compute(*kernels, MapArgs{Map::gelu, gelu.data(), nullptr, size, rows, size}, 2);
  compute(*kernels, MapArgs{Map::relu2, relu2.data(), nullptr, size, rows, size}, 2);
  compute(*kernels, MapArgs{Map::scaled, scaled.data(), factors.data(), size, rows, size}, 2);
  double error = 0;
  for (int at = 0; at < rows * size; at++) {
    const double v = x[at], positive = std::max(v, 0.0);
    error = std::max({error, std::fabs(v / 2 * (1 + std::erf(v / std::sqrt(2.0))) - gelu[at]),
                      std::fabs(positive * positive - relu2[at]), std::fabs(v * factors[at / size] - scaled[at])});
  }
  report(error < 1e-5, "map", error);
}

void check_append(Dtype dtype) {
  const int dim = 48, half = 16, position = 21;
  std::vector<float> k = normals(2 * dim), q = normals(3 * dim);
  const std::vector<float> v = normals(2 * dim), old_k = k, old_q = q, weight = normals(dim);
  const std::vector<float> cos = normals(half), sin = normals(half);
  const int64_t side = 2 * 16 * dim;
  std::vector<char> kv(4 * 2 * side * item(dtype));
  const int32_t table[2] = {3, 2}, start[2] = {0, 1}, context = position + 1;
  const Pages pages{Format(int(dtype)), kv.data(), side, 2 * side, 16 * dim, 16, 2, dim, dim};
  const Batch batch{table, 2, start, &context, 1, nullptr, nullptr, 0, 0};
  const AppendArgs a{pages,  batch,         q.data(),      k.data(), v.data(),   3 * dim,    2 * dim, 2 * dim,
                     3,      weight.data(), weight.data(), 1e-6f,    cos.data(), sin.data(), 2 * half};
  compute(*kernels, a, 1);
  double error = 0;
  bool stored = true;
  const auto check = [&](const std::vector<float>& before, const std::vector<float>& after, int heads) {
    for (int h = 0; h < heads; h++) {
      double sum = 0, x[dim];
      for (int d = 0; d < dim; d++) sum += std::pow(double(before[h * dim + d]), 2);
      for (int d = 0; d < dim; d++) x[d] = before[h * dim + d] / std::sqrt(sum / dim + 1e-6) * weight[d];
      for (int d = 0; d < half; d++) {
        const double c = cos[d], s = sin[d], a = x[d], b = x[d + half];
        x[d] = a * c - b * s;
        x[d + half] = b * c + a * s;
      }
      for (int d = 0; d < dim; d++) error = std::max(error, std::fabs(x[d] - after[h * dim + d]));
    }
  };
  check(old_q, q, 3);
  check(old_k, k, 2);
  std::vector<char> one(4);
  for (int h = 0; h < 2; h++)
    for (int d = 0; d < dim; d++)
      for (int s = 0; s < 2; s++) {
        encode(dtype, one.data(), 0, (s ? v : k)[h * dim + d]);
        const size_t at = 2 * 2 * side + s * side + h * 16 * dim + (position - 16) * dim + d;
        stored = stored && !std::memcmp(one.data(), kv.data() + at * item(dtype), item(dtype));
      }
  char what[99];
  std::snprintf(what, sizeof what, "rotate and append %s", name(dtype));
  report(error < 1e-5, what, error);
  report(stored, "    stored bits", 0);
}

// What is the same text for all instruction sets.
void check_others() {
  for (Format format : {Format::f32, Format::bf16, Format::f16, Format::i8, Format::i4}) {
    check_attention(format, 8, 64, 150);
    check_attention(format, 18, 48, 70);
    check_attention(format, 2, 128, 600);
    check_attention(format, 6, 80, 130, {70, 5});
    check_attention(format, 4, 64, 700, {90, 0, 5, true, true});
    check_attention(format, 4, 64, 600, {0, 0, 0, false});
    if (!codes(format)) check_attention(format, 8, 96, 150, {0, 0, 0, true, false, 64});
  }
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) check_append(dtype);
  check_gate(Gate::silu);
  check_gate(Gate::gelu_tanh);
  check_norm();
  check_map();
}

void check_products() {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    check_linear(dtype, 37, 100);
    check_linear(dtype, 16, 1100);
    check_added(dtype);
  }
  check_codes("linear q8_0", {8, 128, Scales::halves, 32});
  check_codes("linear q5_0", {5, 16, Scales::halves, 32});
  check_codes("linear q4_1", {4, 0, Scales::halves_with_offsets, 32});
  check_codes("linear nvfp4", {4, 128, Scales::halves_of_16, 32, Codes::table});
  check_codes("linear int4 by 64", {4, 0, Scales::wholes, 64});
  check_codes("linear iq4_xs", {4, 128, Scales::levels, 256, Codes::table});
  check_codes("linear q5_k", {5, 0, Scales::levels_with_offsets, 256});
  check_codes("linear q6_k", {6, 32, Scales::levels_of_16, 256});
  check_codes("linear q2_k", {2, 0, Scales::levels_of_16_with_offsets, 256});
  check_fp8();
}

int main(int count, char** names) {
  std::vector<std::string> found, wanted(names + 1, names + count);
  for (const Kernels* build : runnable()) found.push_back(build->isa);
  report(found == wanted, "instruction sets", 0);
  for (const Kernels* build : runnable()) {
    kernels = build;
    std::printf("%s\n", build->isa);
    check_products();
  }
  if (found.size() == 1) check_others();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
