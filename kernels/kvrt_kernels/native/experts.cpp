// Mixtures of experts: which experts a token has, and their products, each expert's over the tokens that chose it.
//
// The rows of an expert are computed by the kernels of any product, whose bits do not depend on what else is computed;
// and a token's results are added in the order of its choice. So a token has the same bits in any batch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "experts.h"
#include "threads.h"

namespace kvrt {

// ---- the choice -----------------------------------------------------------------------------------------------------

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// The first of the largest of those that are not taken; of numbers none of which is one, too.
int best_of(const float* scores, const std::vector<char>& taken) {
  int best = -1;
  for (int e = 0; e < int(taken.size()); e++)
    if (!taken[e] && (best < 0 || scores[e] > scores[best])) best = e;
  return best;
}

// Softmax over those whose logit is not kNever.
void softmax(const float* logits, int count, float* to) {
  const float most = *std::max_element(logits, logits + count);
  float sum = 0;
  for (int e = 0; e < count; e++) sum += to[e] = std::exp(logits[e] - most);
  for (int e = 0; e < count; e++) to[e] /= sum;
}

struct Choosing {
  std::vector<float> scores, ranked, groups;
  std::vector<char> taken;
};

void keep_best_groups(const RouteArgs& a, Choosing& c) {
  const int size = a.experts / a.groups;
  c.groups.resize(a.groups);
  for (int g = 0; g < a.groups; g++) {
    float first = kNever, second = kNever;
    for (int e = g * size; e < (g + 1) * size; e++) {
      const float score = c.ranked[e];
      if (score > first) {
        second = first;
        first = score;
      } else if (score > second) {
        second = score;
      }
    }
    c.groups[g] = a.best_two && size > 1 ? first + second : first;
  }
  c.taken.assign(a.groups, 0);
  for (int i = 0; i < a.groups_chosen; i++) c.taken[best_of(c.groups.data(), c.taken)] = 1;
  for (int e = 0; e < a.experts; e++)
    if (!c.taken[e / size]) c.ranked[e] = kNever;
}

void route_sparsely(const RouteArgs& a, const float* logits, Choosing& c, int32_t* chosen, float* weights) {
  c.ranked.assign(logits, logits + a.experts);
  c.scores.resize(a.experts);
  c.taken.assign(a.experts, 0);
  for (int s = 0; s < a.chosen; s++) {
    const int best = best_of(c.ranked.data(), c.taken);
    const float most = c.ranked[best];
    for (int e = 0; e < a.experts; e++) {
      const bool far = (most - logits[e]) / std::max(std::fabs(logits[e]), most) > 2 * a.jitter;
      c.scores[e] = far ? kNever : c.ranked[e];
    }
    softmax(c.scores.data(), a.experts, c.scores.data());
    chosen[s] = best;
    weights[s] = c.scores[best] * a.scale;
    c.taken[best] = 1;
    c.ranked[best] = kNever;
  }
}

void route(const RouteArgs& a, const float* logits, Choosing& c, int32_t* chosen, float* weights) {
  if (a.score == Score::sparsemixer) return route_sparsely(a, logits, c, chosen, weights);
  c.scores.assign(logits, logits + a.experts);
  if (a.score == Score::softmax) softmax(logits, a.experts, c.scores.data());
  if (a.score == Score::sigmoid)
    for (float& score : c.scores) score = 1.f / (1.f + std::exp(-score));
  c.ranked = c.scores;
  if (a.correction)
    for (int e = 0; e < a.experts; e++) c.ranked[e] += a.correction[e];
  if (a.groups_chosen < a.groups) keep_best_groups(a, c);
  c.taken.assign(a.experts, 0);
  for (int s = 0; s < a.chosen; s++) {
    chosen[s] = best_of(c.ranked.data(), c.taken);
    c.taken[chosen[s]] = 1;
    weights[s] = c.scores[chosen[s]];
  }
  if (a.score == Score::chosen) softmax(weights, a.chosen, weights);
  float divisor = 1;
  if (a.renormalise) {
    divisor = 0;
    for (int s = 0; s < a.chosen; s++) divisor += weights[s];
    divisor = std::max(divisor, a.least);
  }
  for (int s = 0; s < a.chosen; s++) weights[s] = weights[s] / divisor * a.scale;
}

}  // namespace

void compute(const Kernels&, const RouteArgs& a, int threads) {
  const int step = std::max(1, (1 << 14) / (a.experts * (1 + a.chosen)));
  each(threads, (a.tokens + step - 1) / step, [&](int64_t i) {
    Choosing choosing;
    for (int64_t t = i * step; t < std::min<int64_t>(a.tokens, (i + 1) * step); t++)
      route(a, a.logits + t * a.experts, choosing, a.to + t * a.chosen, a.weights + t * a.chosen);
  });
}

// ---- the products ---------------------------------------------------------------------------------------------------

namespace {

thread_local Buffer scratch;                           // of the thread that computes
thread_local Buffer gathered, packed, between, results;  // of the thread that called, read or written by all

constexpr int kMaxColumns = 96, kMaxColumnsOfFew = 256;  // of a unit of work, as in drive.cpp

// Rows of an expert that are computed together; where they are among those of all experts.
struct Block {
  int expert, m0, rows;
};

// Where each slot's row is: those of an expert are one after the other, from a multiple of `group` on.
struct Rows {
  std::vector<int32_t> row_of;  // [tokens * chosen]
  std::vector<Block> blocks;
  int total = 0, most = 0;
};

std::vector<int32_t> counts_of(const ExpertArgs& a) {
  std::vector<int32_t> counts(a.experts);
  for (int64_t s = 0; s < int64_t(a.tokens) * a.chosen; s++) counts[a.expert[s]]++;
  return counts;
}

Rows rows_of(const ExpertArgs& a, const std::vector<int32_t>& counts, int group, int most) {
  Rows rows;
  std::vector<int32_t> next(a.experts);
  for (int e = 0; e < a.experts; e++) {
    next[e] = rows.total;
    if (!counts[e]) continue;
    const int groups = (counts[e] + group - 1) / group, blocks = (counts[e] + most - 1) / most;
    const int step = (groups + blocks - 1) / blocks * group;
    for (int m = 0; m < counts[e]; m += step)
      rows.blocks.push_back({e, rows.total + m, std::min(step, counts[e] - m)});
    rows.most = std::max(rows.most, std::min(step, counts[e]));
    rows.total += groups * group;
  }
  for (int64_t s = 0; s < int64_t(a.tokens) * a.chosen; s++) rows.row_of.push_back(next[a.expert[s]]++);
  return rows;
}

// The product of one expert, of which `product` has that of the first.
LinearArgs of_expert(LinearArgs product, const ExpertWeights& weights, int e) {
  const int out = product.gate == Gate::none ? product.n : 2 * product.n;
  if (weights.parts)
    for (int p = 0; p < weights.parts; p++) product.packed[p] = weights.matrices[e * weights.parts + p];
  else
    product.w = row_of(product, e * out).at;
  if (product.bias) product.bias += int64_t(e) * out;
  return product;
}

void multiply(const Kernels& kernels, LinearArgs product, const ExpertWeights& weights, const Rows& rows, int threads) {
  const LinearArgs first = of_expert(product, weights, 0);
  const LinearShape shape = kernels.linear_shape(first);
  const float* x = product.x;
  int64_t x_stride = product.x_stride;
  if (shape.packed_stride) {
    float* to = static_cast<float*>(packed.get(sizeof(float) * rows.total * shape.packed_stride));
    const auto pack = [&](int64_t i) {
      const Block& block = rows.blocks[i];
      kernels.linear_pack(first, block.m0, block.m0 + block.rows, to);
    };
    each(rows.total <= 16 * shape.group ? 1 : threads, int64_t(rows.blocks.size()), pack);
    x = to;
    x_stride = shape.packed_stride;
  }
  const int most = rows.most <= 16 ? kMaxColumnsOfFew : kMaxColumns, least = shape.columns;
  const size_t bytes = kernels.linear_scratch(first, rows.most, std::max(most, least));
  const int64_t units = (product.n + least - 1) / least, step = std::max(1, most / least);
  runs(threads, units * int64_t(rows.blocks.size()), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const Block& block = rows.blocks[begin / units];
      const int64_t unit = begin % units, count = std::min({units - unit, step, end - begin});
      kernels.linear(of_expert(product, weights, block.expert), x, x_stride, block.m0, block.m0 + block.rows,
                     int(unit * least), int(std::min<int64_t>(product.n, (unit + count) * least)), scratch.get(bytes));
      begin += count;
    }
  });
}

}  // namespace

void compute(const Kernels& kernels, const ExpertArgs& a, int threads) {
  if (a.tokens == 0) return;
  threads = std::max(1, threads);
  const std::vector<int32_t> counts = counts_of(a);
  LinearArgs up = a.gate_up, down = a.down;
  // All experts' products are computed by one kernel: that for as many rows as the busiest has.
  up.m = down.m = *std::max_element(counts.begin(), counts.end());
  const LinearShape shapes[] = {kernels.linear_shape(of_expert(up, *a.weights, 0)),
                                kernels.linear_shape(of_expert(down, *a.down_weights, 0))};
  const int group = std::max(shapes[0].group, shapes[1].group);
  const Rows rows = rows_of(a, counts, group, std::min(shapes[0].rows, shapes[1].rows));
  const int in = up.k, width = up.n, out = down.n, step = 16;

  float* x = static_cast<float*>(gathered.get(sizeof(float) * rows.total * in));
  each(a.tokens < step ? 1 : threads, (a.tokens + step - 1) / step, [&](int64_t i) {
    for (int64_t t = i * step; t < std::min<int64_t>(a.tokens, (i + 1) * step); t++)
      for (int64_t s = t * a.chosen; s < (t + 1) * a.chosen; s++)
        std::copy_n(a.gate_up.x + t * a.gate_up.x_stride, in, x + int64_t(rows.row_of[s]) * in);
  });
  up.x = x;
  up.x_stride = in;
  down.x = up.y = static_cast<float*>(between.get(sizeof(float) * rows.total * width));
  down.x_stride = up.y_stride = width;
  down.y = static_cast<float*>(results.get(sizeof(float) * rows.total * out));
  down.y_stride = out;
  multiply(kernels, up, *a.weights, rows, threads);
  multiply(kernels, down, *a.down_weights, rows, threads);

  each(a.tokens < step ? 1 : threads, (a.tokens + step - 1) / step, [&](int64_t i) {
    for (int64_t t = i * step; t < std::min<int64_t>(a.tokens, (i + 1) * step); t++) {
      float* sum = static_cast<float*>(scratch.get(sizeof(float) * out));
      for (int s = 0; s < a.chosen; s++) {
        const float weight = a.weight[t * a.chosen + s];
        const float* result = down.y + int64_t(rows.row_of[t * a.chosen + s]) * out;
        for (int j = 0; j < out; j++) sum[j] = s ? sum[j] + weight * result[j] : weight * result[j];
      }
      float* to = a.down.y + t * out;
      for (int j = 0; j < out; j++) to[j] = a.residual ? a.residual[t * out + j] + sum[j] : sum[j];
    }
  });
}

}  // namespace kvrt
