// Mixtures of experts, as bind.cpp and recorded programs ask for them. Only for files that are compiled once.
#pragma once
#include <vector>

#include "api.h"

namespace kvrt {

enum class Score : int { softmax = 0, sigmoid = 1, chosen = 2, sparsemixer = 3 };  // kvrt.spi.Router

// Of each token the experts that kvrt.spi.Router says.
struct RouteArgs {
  const float* logits;      // [tokens][experts]
  const float* correction;  // [experts] or nullptr
  int32_t* to;              // [tokens][chosen]
  float* weights;           // likewise
  int tokens, experts, chosen;
  Score score;
  bool renormalise;
  float scale;
  int groups, groups_chosen;
  bool best_two;
  float least, jitter;
};

// Codes of all experts, `parts` matrices of each; 0: the weights are floats, one expert's behind the other's.
struct ExpertWeights {
  std::vector<PackedMatrix> matrices;
  int parts = 0;
};

// y[t] = (residual[t] +) sum over s of weight[t][s] * expert[t][s](x[t]), of whose products `gate_up` and `down` are
// those of the first expert: x of the one, y of the other, and not what is between them.
struct ExpertArgs {
  LinearArgs gate_up, down;
  const ExpertWeights *weights, *down_weights;
  const int32_t* expert;  // [tokens][chosen]
  const float* weight;    // likewise
  const float* residual;  // [tokens][out] or nullptr
  int tokens, chosen, experts;
};

void compute(const Kernels&, const RouteArgs&, int threads);
void compute(const Kernels&, const ExpertArgs&, int threads);

}  // namespace kvrt
