// Layers that go over a sequence token by token: see kvrt.spi.Recurrence.
#pragma once
#include <cstdint>

namespace kvrt {

// Pages of float32 rows, and the sequences of a step over them.
struct StatePages {
  float* kv;
  int64_t page_stride, layer_offset;
  int rows, width;  // of a layer in a page
  const int32_t* page_table;
  int64_t table_stride;
  const int32_t *query_start, *context_len;
  int sequences;
};

struct ConvolveArgs {
  StatePages pages;
  const float* x;
  int64_t x_stride;
  const float *weight, *bias;  // [width, kernel]; [width] or nullptr
  int kernel;
  bool silu;
  float* out;
  int64_t out_stride;
};

// What the rules have in common that keep a state of each value head: [key_dim, value_dim].
struct StateArgs {
  StatePages tokens, borders;
  const float *queries, *keys, *values;  // of the first token
  int64_t stride;                        // from one token to the next
  float* out;
  int64_t out_stride;
  int key_heads, value_heads, key_dim, value_dim;
  int decays;  // of a value head: 1, or one for each of a key's numbers
  bool tiled;  // value heads take the keys in turns, and not several neighbours each
};

struct DeltaArgs {
  StateArgs state;
  const float* gates;  // of each value head b, then of each a
  int64_t gates_stride;
  const float *decay_log, *decay_bias;
  float strength;
};

struct ScanArgs {
  StateArgs state;
  const float* times;
  int64_t times_stride;
  const float *decay_log, *time_bias, *skip;
  float shortest, longest;
};

void convolve(const ConvolveArgs& args, int threads);
void delta(const DeltaArgs& args, int threads);
void scan(const ScanArgs& args, int threads);

}  // namespace kvrt
