// Python face of the kernels: addresses and numbers only, so that a call costs about a microsecond. Tensors, their
// checks and their lifetime are the business of the Python modules beside this one.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "api.h"
#include "builds.h"
#include "experts.h"
#include "low_rank.h"
#include "program.h"
#include "recurrence.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvrt {
namespace {

const std::vector<const Kernels*> available = runnable();
const Kernels* chosen = available.front();

void set_isa(const std::string& name) {
  std::string names;
  for (const Kernels* k : available) {
    if (name == k->isa) {
      chosen = k;
      return;
    }
    names += std::string(names.empty() ? "" : ", ") + k->isa;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one of those this machine runs: " + names);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available) names.push_back(k->isa);
  return names;
}

thread_local Program* recording = nullptr;

template <class Args> void submit(const Args& args, int threads) {
  if (recording)
    recording->add(args);
  else
    compute(*chosen, args, threads);
}

using Added = std::shared_ptr<const LowRankRows>;

// A product with rows of a matrix from `first` on, and what is added to it, if anything.
void submit(const LinearArgs& product, const Added& added, int first, int threads) {
  if (added)
    submit(AdaptedArgs{product, added, first}, threads);
  else
    submit(product, threads);
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

using A = uintptr_t;
using S = int64_t;

StatePages state_pages(const std::array<S, 10>& from) {
  const auto& [kv, page_stride, layer_offset, rows, width, table, table_stride, query_start, context_len, sequences] =
      from;
  return {at<float>(kv), page_stride, layer_offset, int(rows), int(width), at<const int32_t>(table), table_stride,
          at<const int32_t>(query_start), at<const int32_t>(context_len), int(sequences)};
}

// rows: queries, keys, values, out; strides: of the first three, of out; shape: heads of keys and of values, widths of
// both, decays of a value head, whether keys are tiled.
StateArgs state_args(const std::array<S, 10>& tokens, const std::array<S, 10>& borders, const std::array<A, 4>& rows,
                     const std::array<S, 2>& strides, const std::array<int, 6>& shape) {
  return {state_pages(tokens), state_pages(borders), at<const float>(rows[0]), at<const float>(rows[1]),
          at<const float>(rows[2]), strides[0], at<float>(rows[3]), strides[1],
          shape[0], shape[1], shape[2], shape[3], shape[4], shape[5] != 0};
}

PackedMatrix packed_matrix(const std::array<S, 7>& from) {
  const auto& [panels, rows, bits, zero, scales, span, codes] = from;
  return {at<const void>(A(panels)), int(rows), {int(bits), int(zero), Scales(scales), int(span), Codes(codes)}};
}

// The arguments that say what the batch is, and those that attention and append share, in this order.
#define KVRT_BATCH_ARGS                                                                                            \
  A page_table, S table_stride, A query_start, A context_len, int sequences, A trunk, A slots, S slots_stride, int number
#define KVRT_BATCH_NAMES                                                                                           \
  "page_table"_a, "table_stride"_a, "query_start"_a, "context_len"_a, "sequences"_a, "trunk"_a, "slots"_a,         \
      "slots_stride"_a, "number"_a
#define KVRT_CACHE_ARGS                                                                                            \
  int format, A kv, S v_offset, S page_stride, S head_stride, int page_size, int kv_heads, int head_dim,            \
      int value_dim, KVRT_BATCH_ARGS
#define KVRT_CACHE_NAMES                                                                                           \
  "format"_a, "kv"_a, "v_offset"_a, "page_stride"_a, "head_stride"_a, "page_size"_a, "kv_heads"_a, "head_dim"_a,    \
      "value_dim"_a, KVRT_BATCH_NAMES
#define KVRT_PAGES                                                                                                 \
  Pages{Format(format), at<void>(kv), v_offset, page_stride, head_stride, page_size, kv_heads, head_dim, value_dim}
#define KVRT_BATCH                                                                                                 \
  Batch{at<const int32_t>(page_table), table_stride, at<const int32_t>(query_start), at<const int32_t>(context_len), \
        int(sequences), at<const int32_t>(trunk), at<const int32_t>(slots), slots_stride, int(number)}

}  // namespace
}  // namespace kvrt

NB_MODULE(_native, m) {
  using namespace kvrt;
  using release = nb::call_guard<nb::gil_scoped_release>;
  m.def("isas", &isas, "Instruction sets that run on this machine, the fastest first.");
  m.def("isa", [] { return chosen->isa; }, "The instruction set in use.");
  m.def("set_isa", &set_isa, "name"_a, "Use another instruction set, in the whole process; for tests.");

  m.def(
      "attention",
      [](KVRT_CACHE_ARGS, A q, S q_stride, A out, S out_stride, int heads, float scale, int window, float softcap,
         int sinks, bool causal, A sink_logits, int threads) {
        submit(AttentionArgs{KVRT_PAGES, KVRT_BATCH, at<const float>(q), at<float>(out), q_stride, out_stride, heads,
                             scale, window, softcap, sinks, causal, at<const float>(sink_logits)},
               threads);
      },
      KVRT_CACHE_NAMES, "q"_a, "q_stride"_a, "out"_a, "out_stride"_a, "heads"_a, "scale"_a, "window"_a, "softcap"_a,
      "sinks"_a, "causal"_a, "sink_logits"_a, "threads"_a, release());

  m.def(
      "append",
      [](KVRT_CACHE_ARGS, A q, S q_stride, int heads, A k, S k_stride, A v, S v_stride, A q_norm, A k_norm, float eps,
         A cos, A sin, int rot_dim, int threads) {
        submit(AppendArgs{KVRT_PAGES, KVRT_BATCH, at<float>(q), at<float>(k), at<const float>(v), q_stride, k_stride,
                          v_stride, heads, at<const float>(q_norm), at<const float>(k_norm), eps, at<const float>(cos),
                          at<const float>(sin), rot_dim},
               threads);
      },
      KVRT_CACHE_NAMES, "q"_a, "q_stride"_a, "heads"_a, "k"_a, "k_stride"_a, "v"_a, "v_stride"_a, "q_norm"_a,
      "k_norm"_a, "eps"_a, "cos"_a, "sin"_a, "rot_dim"_a, "threads"_a, release());

  m.def(
      "linear",
      [](int dtype, int gate, A x, S x_stride, A w, A bias, A residual, S residual_stride, A y, S y_stride, int rows,
         int out_features, int in_features, int threads, const Added& added) {
        submit(LinearArgs{Dtype(dtype), Gate(gate), at<const float>(x), at<const void>(w), at<const float>(bias),
                          at<const float>(residual), at<float>(y), x_stride, residual_stride, y_stride, rows,
                          out_features, in_features},
               added, 0, threads);
      },
      "dtype"_a, "gate"_a, "x"_a, "x_stride"_a, "w"_a, "bias"_a, "residual"_a, "residual_stride"_a, "y"_a,
      "y_stride"_a, "rows"_a, "out_features"_a, "in_features"_a, "threads"_a, "added"_a.none(), release(),
      "The matrices must live as long as what is recorded; those that are added, too.");

  m.def(
      "by_head",
      [](int dtype, A x, S x_stride, S x_head, A w, A y, S y_stride, S y_head, int rows, int heads, int out_features,
         int in_features, int threads) {
        const LinearArgs first{Dtype(dtype), Gate::none, at<const float>(x), at<const void>(w), nullptr, nullptr,
                               at<float>(y), x_stride, 0, y_stride, rows, out_features, in_features};
        submit(HeadsArgs{first, x_head, y_head, heads}, threads);
      },
      "dtype"_a, "x"_a, "x_stride"_a, "x_head"_a, "w"_a, "y"_a, "y_stride"_a, "y_head"_a, "rows"_a, "heads"_a,
      "out_features"_a, "in_features"_a, "threads"_a, release());

  m.def(
      "rotate",
      [](A x, S x_stride, S x_head, A y, S y_stride, S y_head, A cos, A sin, int rows, int heads, int size, int rot_dim,
         int threads) {
        submit(RotateArgs{at<const float>(x), at<float>(y), at<const float>(cos), at<const float>(sin), x_stride, x_head,
                          y_stride, y_head, rows, heads, size, rot_dim},
               threads);
      },
      "x"_a, "x_stride"_a, "x_head"_a, "y"_a, "y_stride"_a, "y_head"_a, "cos"_a, "sin"_a, "rows"_a, "heads"_a, "size"_a,
      "rot_dim"_a, "threads"_a, release());

  m.def(
      "packed_linear",
      [](const std::vector<std::array<S, 7>>& matrices, bool exact, int gate, A x, S x_stride, A bias, A residual,
         S residual_stride, A y, S y_stride, int rows, int out_features, int in_features, int threads, const Added& added,
         int first) {
        LinearArgs args{exact ? Dtype::exact_codes : Dtype::codes, Gate(gate), at<const float>(x), nullptr,
                        at<const float>(bias), at<const float>(residual), at<float>(y), x_stride, residual_stride,
                        y_stride, rows, out_features, in_features};
        if (matrices.size() > kMostMatrices) throw std::invalid_argument("too many matrices");
        std::transform(matrices.begin(), matrices.end(), args.packed, packed_matrix);
        submit(args, added, first, threads);
      },
      "matrices"_a, "exact"_a, "gate"_a, "x"_a, "x_stride"_a, "bias"_a, "residual"_a, "residual_stride"_a, "y"_a,
      "y_stride"_a, "rows"_a, "out_features"_a, "in_features"_a, "threads"_a, "added"_a.none(), "first"_a, release(),
      "Of each matrix: its address, rows, and `struct Packing`.");

  nb::class_<ExpertWeights>(m, "ExpertWeights", "Codes of all experts: of each matrix what `packed_linear` takes.")
      .def("__init__",
           [](ExpertWeights* weights, const std::vector<std::array<S, 7>>& matrices, int parts) {
             new (weights) ExpertWeights{{}, parts};
             if (parts > kMostMatrices) throw std::invalid_argument("too many matrices");
             for (const auto& matrix : matrices) weights->matrices.push_back(packed_matrix(matrix));
           },
           "matrices"_a, "parts"_a);

  m.def(
      "route",
      [](A logits, A correction, A to, A weights, int tokens, int experts, int chosen, int score, bool renormalise,
         float scale, int groups, int groups_chosen, bool best_two, float least, float jitter, int threads) {
        submit(RouteArgs{at<const float>(logits), at<const float>(correction), at<int32_t>(to), at<float>(weights),
                         tokens, experts, chosen, Score(score), renormalise, scale, groups, groups_chosen, best_two,
                         least, jitter},
               threads);
      },
      "logits"_a, "correction"_a, "to"_a, "weights"_a, "tokens"_a, "experts"_a, "chosen"_a, "score"_a, "renormalise"_a,
      "scale"_a, "groups"_a, "groups_chosen"_a, "best_two"_a, "least"_a, "jitter"_a, "threads"_a, release());

  m.def(
      "experts",
      [](int dtype, int down_dtype, int gate, float limit, float alpha, const ExpertWeights& gate_up,
         const ExpertWeights& down, A w, A down_w, A bias, A down_bias, A x, S x_stride, A expert, A weight, A residual,
         A y, int tokens, int chosen, int experts, int in_features, int width, int out_features, int threads) {
        LinearArgs up{Dtype(dtype), Gate(gate), at<const float>(x), at<const void>(w), at<const float>(bias), nullptr,
                      nullptr, x_stride, 0, 0, 0, width, in_features};
        up.limit = limit;
        up.alpha = alpha;
        const LinearArgs last{Dtype(down_dtype), Gate::none, nullptr, at<const void>(down_w),
                              at<const float>(down_bias), nullptr, at<float>(y), 0, 0, out_features, 0, out_features,
                              width};
        submit(ExpertArgs{up, last, &gate_up, &down, at<const int32_t>(expert), at<const float>(weight),
                          at<const float>(residual), tokens, chosen, experts},
               threads);
      },
      "dtype"_a, "down_dtype"_a, "gate"_a, "limit"_a, "alpha"_a, "gate_up"_a, "down"_a, "w"_a, "down_w"_a, "bias"_a,
      "down_bias"_a, "x"_a, "x_stride"_a, "expert"_a, "weight"_a, "residual"_a, "y"_a, "tokens"_a, "chosen"_a,
      "experts"_a, "in_features"_a, "width"_a, "out_features"_a, "threads"_a, release(),
      "The weights must live as long as what is recorded.");

  m.def(
      "rms_norm",
      [](A x, S x_stride, A weight, A y, S y_stride, int rows, int size, float eps, int threads) {
        submit(NormArgs{Norm::rms, false, at<const float>(x), at<const float>(weight), nullptr, at<float>(y), x_stride,
                        y_stride, rows, size, eps, 1.f},
               threads);
      },
      "x"_a, "x_stride"_a, "weight"_a, "y"_a, "y_stride"_a, "rows"_a, "size"_a, "eps"_a, "threads"_a, release());

  m.def(
      "layer_norm",
      [](A x, S x_stride, A weight, A bias, A y, S y_stride, int rows, int size, float eps, int threads) {
        submit(NormArgs{Norm::layer, false, at<const float>(x), at<const float>(weight), at<const float>(bias),
                        at<float>(y), x_stride, y_stride, rows, size, eps, 1.f},
               threads);
      },
      "x"_a, "x_stride"_a, "weight"_a, "bias"_a, "y"_a, "y_stride"_a, "rows"_a, "size"_a, "eps"_a, "threads"_a,
      release());

  m.def(
      "add_branch",
      [](A x, S x_stride, A weight, A y, S y_stride, int rows, int size, float eps, float scale, int threads) {
        submit(NormArgs{weight ? Norm::rms : Norm::none, true, at<const float>(x), at<const float>(weight), nullptr,
                        at<float>(y), x_stride, y_stride, rows, size, eps, scale},
               threads);
      },
      "x"_a, "x_stride"_a, "weight"_a, "y"_a, "y_stride"_a, "rows"_a, "size"_a, "eps"_a, "scale"_a, "threads"_a,
      release());

  m.def(
      "map",
      [](int map, A x, S stride, A factors, int rows, int size, int threads) {
        submit(MapArgs{Map(map), at<float>(x), at<const float>(factors), stride, rows, size}, threads);
      },
      "map"_a, "x"_a, "stride"_a, "factors"_a, "rows"_a, "size"_a, "threads"_a, release());

  m.def(
      "convolve",
      [](const std::array<S, 10>& pages, A x, S x_stride, A weight, A bias, int kernel, bool silu, A out, S out_stride,
         int threads) {
        convolve({state_pages(pages), at<const float>(x), x_stride, at<const float>(weight), at<const float>(bias),
                  kernel, silu, at<float>(out), out_stride},
                 threads);
      },
      "pages"_a, "x"_a, "x_stride"_a, "weight"_a, "bias"_a, "kernel"_a, "silu"_a, "out"_a, "out_stride"_a, "threads"_a,
      release());

  m.def(
      "delta",
      [](const std::array<S, 10>& tokens, const std::array<S, 10>& borders, const std::array<A, 4>& rows,
         const std::array<S, 2>& strides, const std::array<int, 6>& shape, A gates, S gates_stride, A decay_log,
         A decay_bias, float strength, int threads) {
        delta({state_args(tokens, borders, rows, strides, shape), at<const float>(gates), gates_stride,
               at<const float>(decay_log), at<const float>(decay_bias), strength},
              threads);
      },
      "tokens"_a, "borders"_a, "rows"_a, "strides"_a, "shape"_a, "gates"_a, "gates_stride"_a, "decay_log"_a,
      "decay_bias"_a, "strength"_a, "threads"_a, release());

  m.def(
      "scan",
      [](const std::array<S, 10>& tokens, const std::array<S, 10>& borders, const std::array<A, 4>& rows,
         const std::array<S, 2>& strides, const std::array<int, 6>& shape, A times, S times_stride, A decay_log,
         A time_bias, A skip, float shortest, float longest, int threads) {
        scan({state_args(tokens, borders, rows, strides, shape), at<const float>(times), times_stride,
              at<const float>(decay_log), at<const float>(time_bias), at<const float>(skip), shortest, longest},
             threads);
      },
      "tokens"_a, "borders"_a, "rows"_a, "strides"_a, "shape"_a, "times"_a, "times_stride"_a, "decay_log"_a,
      "time_bias"_a, "skip"_a, "shortest"_a, "longest"_a, "threads"_a, release());

  nb::class_<LowRank>(m, "LowRank", "The address of a; of each part of b its address, first row, rows and rank.")
      .def("__init__",
           [](LowRank* made, A a, const std::vector<std::array<S, 4>>& parts) {
             new (made) LowRank{at<const void>(a)};
             for (const auto& [b, first, rows, rank] : parts) {
               made->parts.push_back({at<const void>(A(b)), int(first), int(rows), int(rank)});
               made->ranks += int(rank);
             }
           },
           "a"_a, "parts"_a);

  nb::class_<LowRankRows>(m, "LowRankRows", "Of segments of rows: start, stop, what is added.")
      .def("__init__",
           [](LowRankRows* made, int dtype, const std::vector<std::tuple<int, int, std::shared_ptr<LowRank>>>& segments) {
             new (made) LowRankRows{Dtype(dtype), {}};
             for (const auto& [start, stop, added] : segments) made->segments.push_back({start, stop, added});
           },
           "dtype"_a, "segments"_a);

  nb::class_<Program>(m, "Program", "Calls of the operators above, recorded to be computed again by one.")
      .def(nb::init<>())
      .def("record", [](Program& program) { recording = &program; },
           "From now on, calls in this thread are added to this program instead of being computed.")
      .def_static("stop", [] { recording = nullptr; }, "Compute calls again.")
      .def("run",
           [](const Program& program, const std::vector<std::array<S, 9>>& batches, int threads) {
             std::vector<Batch> all;
             for (const auto& [page_table, table_stride, query_start, context_len, sequences, trunk, slots, slots_stride,
                               number] : batches)
               all.push_back(KVRT_BATCH);
             program.run(*chosen, all, threads);
           },
           "batches"_a, "threads"_a, release(),
           "Compute what was recorded, for other batches of as many tokens, each the arguments of the operators above.");

  m.def(
      "read_bandwidth",
      [](A data, size_t bytes, int threads) { return read_bandwidth(*chosen, at<const void>(data), bytes, threads); },
      "data"_a, "bytes"_a, "threads"_a, release(), "Bytes per second of one pass over the memory.");
  m.def(
      "product_peak", [](int dtype, int threads) { return product_peak(*chosen, Dtype(dtype), threads); }, "dtype"_a,
      "threads"_a, release(),
      "Operations per second of the instructions that multiply with weights of that type; a multiply-add is two.");
}
