// norma's operations behind C functions, so that compare.py can time them beside their peers in one process; and loops over the positions of an
// image for BLAS and LAPACK functions that the caller hands in, so that such a loop costs a peer no Python.
//
// An operation holds its inputs prepared, its memory and its results; `run` is what is timed. Pointers handed in are read during the call that
// takes them, or, where it says so, for as long as the operation lives. A function that fails gives null or a number other than 0, and norma_error says why.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/backbones/backbones.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/folder.hpp>
#include <norma/evaluation/ranking.hpp>
#include <norma/features/local_average.hpp>
#include <norma/features/patches.hpp>
#include <norma/image/gaussian.hpp>
#include <norma/linalg/covariance.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/nn/executor.hpp>
#include <norma/search/greedy_k_centre.hpp>
#include <norma/search/pruned.hpp>
#include <tests/support/formula_weights.hpp>

#include "bench/support/feature_rows.hpp"
#include "bench/support/peak.hpp"

#if NORMA_PEERS_ONEDNN
#include <dnnl.hpp>
#endif

namespace {

using namespace norma;

thread_local std::string last_error;

int report(const Status& status) {
  if (status.ok()) return 0;
  last_error = status.message();
  return 1;
}
template <class T>
T* nothing(std::string why) {
  last_error = std::move(why);
  return nullptr;
}

struct Operation {
  virtual ~Operation() = default;
  virtual Status run() = 0;
};

template <class Work>
struct Call final : Operation {
  explicit Call(Work w) : work(std::move(w)) {}
  Status run() override { return work(); }
  Work work;
};
template <class Work>
Operation* call(Work work) {
  return new Call<Work>(std::move(work));
}

/// Scratch that an operation keeps.
struct Memory {
  explicit Memory(std::size_t bytes) : buffer(static_cast<std::int64_t>(bytes)) {}
  Arena arena() { return Arena(buffer.span()); }
  Buffer<std::byte> buffer;
};

struct BackboneOperation final : Operation {
  Parallel parallel;
  std::optional<nn::Executor> executor;
  std::optional<Memory> memory;
  Tensor<float> input;
  std::vector<TensorView<const float>> outputs;
  Status run() override {
    Arena arena = memory->arena();
    return executor->run(input.view(), arena, parallel, outputs);
  }
};

Result<std::unique_ptr<BackboneOperation>> make_backbone(const std::string& name, Parallel parallel) {
  NORMA_TRY(const AnyNetwork network, AnyNetwork::find(name));
  test::FormulaGains gains;
  for (const auto& item : test::read_formula_networks()) {
    if (item.name == name) gains = item.gains;
  }
  const std::int64_t side = network.input().size;
  NORMA_TRY(auto plan, nn::Plan::create(network.graph(), network.taps().two_levels, side, side));
  NORMA_TRY(const auto weights, test::formula_weights(plan, gains));
  auto made = std::make_unique<BackboneOperation>();
  made->parallel = parallel;
  made->outputs.resize(plan.taps().size());
  NORMA_TRY(made->executor, nn::Executor::create(std::move(plan), weights));
  made->memory.emplace(made->executor->workspace_bytes(1, parallel.workers()));
  made->input = test::formula_input(side, side);
  return made;
}

template <class SearchT>
Operation* make_search(Parallel parallel, MatrixView<const float> bank, MatrixView<const float> queries, int k, float* distance, std::int64_t* row) {
  auto index = SearchT::prepare(bank, parallel);
  if (!index.ok()) return nothing<Operation>(index.message());
  auto memory = std::make_shared<Memory>(SearchT::scratch_bytes(queries.rows, queries.cols, k, parallel.workers()));
  return call([=, index = std::make_shared<typename SearchT::Index>(*std::move(index))] {
    Arena arena = memory->arena();
    return SearchT::nearest(*index, queries, k, {distance, queries.rows, k}, {row, queries.rows, k}, parallel, arena);
  });
}

/// Factors of copies of the matrices of a [positions, d, d], some at a time, so that a copy is still in a cache when it is factored.
template <class T>
Operation* make_cholesky(Parallel parallel, const T* a, std::int64_t positions, std::int64_t d, T* out) {
  constexpr std::int64_t kTogether = 16;
  return call([=]() -> Status {
    std::vector<Status> done(static_cast<std::size_t>((positions + kTogether - 1) / kTogether));
    parallel.run_ranges(positions, kTogether, [&](std::int64_t first, std::int64_t last, int) {
      std::memcpy(out + first * d * d, a + first * d * d, static_cast<std::size_t>((last - first) * d * d) * sizeof(T));
      done[static_cast<std::size_t>(first / kTogether)] = cholesky_batch(MatrixView<T>{out + first * d * d, (last - first) * d, d});
    });
    for (const Status& status : done) NORMA_CHECK(status);
    return {};
  });
}

using Ssyrk = void (*)(int order, int uplo, int trans, int n, int k, float alpha, const float* a, int lda, float beta, float* c, int ldc);
template <class T>
using Potrf = void (*)(const char* uplo, const int* n, T* a, const int* lda, int* info);

}  // namespace

extern "C" {

const char* norma_error() { return last_error.c_str(); }

void* norma_pool(int threads) { return new ThreadPool(threads); }
void norma_destroy_pool(void* pool) { delete static_cast<ThreadPool*>(pool); }
/// GFLOP/s of multiply-adds from registers, and GB/s of reading memory, all threads of the pool together.
double norma_peak(void* pool) { return bench::fma_peak(instruction_set(), static_cast<ThreadPool*>(pool)->parallel()); }
double norma_bandwidth(void* pool) { return bench::read_bandwidth(256, static_cast<ThreadPool*>(pool)->parallel()); }
const char* norma_instruction_set() { return to_string(instruction_set()).data(); }

int norma_run(void* operation) { return report(static_cast<Operation*>(operation)->run()); }
void norma_destroy(void* operation) { delete static_cast<Operation*>(operation); }

/// c [m, n] = a [m, k] b^T, b [n, k]. `a` and `c` are used by every run.
void* norma_gemm(void* pool, const float* a, const float* b, float* c, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  auto packed = std::make_shared<linalg::PackedMatrix>(linalg::PackedMatrix::pack(MatrixView<const float>{b, n, k}));
  auto memory = std::make_shared<Memory>(linalg::gemm_scratch_bytes(m, n, k, parallel.workers()));
  return call([=] {
    Arena arena = memory->arena();
    linalg::gemm(MatrixView<const float>{a, m, k}, *packed, MatrixView<float>{c, m, n}, {}, parallel, arena);
    return Status{};
  });
}

/// A network by name up to PatchCore's two outputs, with the weights and the input of tests/support/formula_weights.hpp.
void* norma_backbone(void* pool, const char* name) {
  auto made = make_backbone(name, static_cast<ThreadPool*>(pool)->parallel());
  if (!made.ok()) return nothing<Operation>(made.message());
  return static_cast<Operation*>(made->release());
}
double norma_backbone_gflop(void* operation) {
  return 2e-9 * static_cast<double>(static_cast<BackboneOperation*>(static_cast<Operation*>(operation))->executor->plan().summary().multiply_adds);
}
/// Output `i` of the last run: `shape` becomes height, width, channels. Null beyond the last.
const float* norma_backbone_output(void* operation, int i, std::int64_t* shape) {
  const auto& outputs = static_cast<BackboneOperation*>(static_cast<Operation*>(operation))->outputs;
  if (i < 0 || static_cast<std::size_t>(i) >= outputs.size()) return nullptr;
  const auto& view = outputs[static_cast<std::size_t>(i)];
  shape[0] = view.height, shape[1] = view.width, shape[2] = view.channels;
  return view.data;
}

/// k nearest rows of bank [n, d] for queries [m, d]; squared distances and rows [m, k]. All but `bank` are used by every run.
void* norma_search(void* pool, int pruned, const float* bank, std::int64_t n, const float* queries, std::int64_t m, std::int64_t d, int k,
                   float* distance, std::int64_t* row) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  const MatrixView<const float> rows{bank, n, d}, asked{queries, m, d};
  return pruned != 0 ? make_search<PrunedSearch>(parallel, rows, asked, k, distance, row) : make_search<ExactSearch>(parallel, rows, asked, k, distance, row);
}

/// The first `picks` of the greedy selection from points [n, d], beginning at row 0. Everything is used by every run.
void* norma_k_centre(void* pool, const float* points, std::int64_t n, std::int64_t d, std::int64_t picks, std::int64_t* chosen) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  return call([=]() -> Status {
    GreedyKCenter::Settings settings;
    settings.size.coreset_ratio = 1.0;
    settings.size.coreset_count = picks;
    settings.projection = Projection::none;
    settings.start = KCenterStart::first_row;
    NORMA_TRY(const auto rows, GreedyKCenter::select({points, n, d}, settings, 1, parallel, {}));
    std::copy(rows.begin(), rows.end(), chosen);
    return {};
  });
}

/// Streaming Gaussians of images [count, positions, d], added together or one by one; after a run `last` (null or [d, d]) holds the covariance of the last
/// position. A run takes the memory of the sums from the system, too.
void* norma_covariance(void* pool, int together, const float* images, std::int64_t count, std::int64_t positions, std::int64_t d, double* last) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  return call([=]() -> Status {
    NORMA_TRY(auto sums, GaussianAccumulator::create(positions, d));
    const MatrixView<const float> rows{images, count * positions, d};
    if (together != 0) {
      NORMA_CHECK(sums.add_batch(rows, parallel));
    } else {
      for (std::int64_t i = 0; i < count; ++i) NORMA_CHECK(sums.add(rows.block(i * positions, positions), parallel));
    }
    (void)sums.sums(parallel);
    return last == nullptr ? Status{} : sums.covariance(positions - 1, {last, d, d});
  });
}

/// Cholesky factors of copies of a [positions, d, d].
void* norma_cholesky_float(void* pool, const float* a, std::int64_t positions, std::int64_t d, float* out) {
  return make_cholesky(static_cast<ThreadPool*>(pool)->parallel(), a, positions, d, out);
}
void* norma_cholesky_double(void* pool, const double* a, std::int64_t positions, std::int64_t d, double* out) {
  return make_cholesky(static_cast<ThreadPool*>(pool)->parallel(), a, positions, d, out);
}

/// Fits the Gaussians and then times their distances: images [count, positions, d], x [positions, d], distance [positions].
void* norma_mahalanobis(void* pool, const float* images, std::int64_t count, std::int64_t positions, std::int64_t d, const float* x, float* distance) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  auto sums = GaussianAccumulator::create(positions, d);
  if (!sums.ok()) return nothing<Operation>(sums.message());
  if (const Status added = sums->add_batch({images, count * positions, d}, parallel); !added.ok()) return nothing<Operation>(added.message());
  auto model = std::move(*sums).finish(0.01, parallel);
  if (!model.ok()) return nothing<Operation>(model.message());
  auto memory = std::make_shared<Memory>(mahalanobis_scratch_bytes(d, parallel.workers()));
  return call([=, model = std::make_shared<GaussianModel>(*std::move(model))] {
    Arena arena = memory->arena();
    return mahalanobis(model->view(), {x, positions, d}, {distance, static_cast<std::size_t>(positions)}, parallel, arena);
  });
}

/// A convolution of x [side, side, in] with bias and ReLU; weights [out, in / groups, kernel, kernel], y [out side, out side, out]. `x`, `bias`, `y` are used
/// by every run.
void* norma_convolution(void* pool, const float* x, std::int64_t side, std::int64_t in, std::int64_t out, int kernel, int stride, int groups,
                        const float* weights, const float* bias, float* y) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  const int pad = kernel / 2;
  const nn::ConvolutionGeometry g{kernel, kernel, stride, 1, pad, pad, pad, pad, groups};
  const Shape shape{side, side, in};
  const auto count = static_cast<std::size_t>(out * (in / groups) * kernel * kernel);
  auto packed = std::make_shared<nn::PackedConvolution>(nn::PackedConvolution::pack({weights, count}, shape, out, g));
  auto memory = std::make_shared<Memory>(nn::convolution_scratch_bytes(shape, out, g, parallel.workers()));
  return call([=] {
    Arena arena = memory->arena();
    nn::convolution({x, 1, shape}, *packed, {y, 1, packed->output()}, bias, {}, Activation::relu, parallel, arena);
    return Status{};
  });
}

#if NORMA_PEERS_ONEDNN
/// The same by oneDNN, in the layouts that it likes best; x and the weights are brought into them beforehand, `fetch` brings the result back. Its threads are OpenMP's.
void* onednn_convolution(const float* x, std::int64_t side, std::int64_t in, std::int64_t out, int kernel, int stride, int groups, const float* weights,
                         const float* bias, float* y, void** fetch) {
  using namespace dnnl;
  using Tag = memory::format_tag;
  try {
    const engine cpu(engine::kind::cpu, 0);
    stream steps(cpu);
    const std::int64_t pad = kernel / 2, out_side = (side + 2 * pad - kernel) / stride + 1;
    const memory::dims x_dims{1, in, side, side}, y_dims{1, out, out_side, out_side}, b_dims{out};
    const memory::dims w_dims = groups > 1 ? memory::dims{groups, out / groups, in / groups, kernel, kernel} : memory::dims{out, in, kernel, kernel};
    const auto any = [](const memory::dims& dims) { return memory::desc(dims, memory::data_type::f32, Tag::any); };
    post_ops relu;
    primitive_attr attributes;
#if DNNL_VERSION_MAJOR >= 3
    relu.append_eltwise(algorithm::eltwise_relu, 0.0f, 0.0f);
    attributes.set_post_ops(relu);
    const convolution_forward::primitive_desc chosen(cpu, prop_kind::forward_inference, algorithm::convolution_auto, any(x_dims), any(w_dims), any(b_dims), any(y_dims),
                                                     {stride, stride}, {pad, pad}, {pad, pad}, attributes);
#else
    relu.append_eltwise(1.0f, algorithm::eltwise_relu, 0.0f, 0.0f);
    attributes.set_post_ops(relu);
    const convolution_forward::desc wanted(prop_kind::forward_inference, algorithm::convolution_auto, any(x_dims), any(w_dims), any(b_dims), any(y_dims), {stride, stride},
                                           {pad, pad}, {pad, pad});
    const convolution_forward::primitive_desc chosen(wanted, attributes, cpu);
#endif
    memory from({x_dims, memory::data_type::f32, Tag::nhwc}, cpu, const_cast<float*>(x)), to({y_dims, memory::data_type::f32, Tag::nhwc}, cpu, y);
    memory plain({w_dims, memory::data_type::f32, groups > 1 ? Tag::goihw : Tag::oihw}, cpu, const_cast<float*>(weights));
    memory x_best(chosen.src_desc(), cpu), w_best(chosen.weights_desc(), cpu), y_best(chosen.dst_desc(), cpu);
    memory b_best({b_dims, memory::data_type::f32, Tag::x}, cpu, const_cast<float*>(bias));
    reorder(from, x_best).execute(steps, from, x_best);
    reorder(plain, w_best).execute(steps, plain, w_best);
    steps.wait();
    const convolution_forward primitive(chosen);
    *fetch = call([=]() mutable {
      reorder(y_best, to).execute(steps, y_best, to);
      steps.wait();
      return Status{};
    });
    return call([=]() mutable {
      primitive.execute(steps, {{DNNL_ARG_SRC, x_best}, {DNNL_ARG_WEIGHTS, w_best}, {DNNL_ARG_BIAS, b_best}, {DNNL_ARG_DST, y_best}});
      steps.wait();
      return Status{};
    });
  } catch (const error& e) {
    return nothing<Operation>(std::string("oneDNN: ") + e.what());
  }
}
#endif

/// Area under the ROC curve of n scores, into `out`.
void* norma_auroc(void* pool, const float* scores, const std::uint8_t* labels, std::int64_t n, double* out) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  return call([=]() -> Status {
    const auto size = static_cast<std::size_t>(n);
    NORMA_TRY(const auto area, evaluation::auroc(std::span(scores, size), std::span(labels, size), parallel));
    *out = area.value_or(std::nan(""));
    return {};
  });
}

/// Gaussian filter of a map [side, side], sigma 4.
void* norma_gaussian(const float* map, std::int64_t side, float* out) {
  auto memory = std::make_shared<Memory>(image::gaussian_scratch_bytes<float>(side, side, 4.0));
  return call([=] {
    Arena arena = memory->arena();
    return image::gaussian_filter(MapView<const float>{map, side, side}, MapView<float>{out, side, side}, 4.0, arena);
  });
}

/// ResNet-18's patch features (3 x 3 averages of layers 2 and 3) of up to `most` images of a folder, resized to 256 and cropped to 224: writes
/// [images * positions, dims] and gives the number of rows, or -1. With `out` null it only counts.
std::int64_t norma_patch_rows(void* pool, const char* weight_file, const char* folder, std::int64_t most, float* out, std::int64_t* dims) {
  using Backbone = Patches<ResNet18, LocalAverage>;
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  Backbone::Settings settings;
  settings.preprocess.resize = 256;
  settings.preprocess.height = settings.preprocess.width = 224;
  const data::Folder images(folder);
  const std::int64_t count = std::min(most, images.size());
  const Shape shape = Backbone::shapes(settings)[0];
  *dims = shape.channels;
  if (out != nullptr) {
    const Status status = [&]() -> Status {
      NORMA_CHECK(images.status());
      NORMA_TRY(const auto weights, io::Weights::open(weight_file));
      NORMA_TRY(const auto backbone, Backbone::create(weights, settings));
      Memory memory(Backbone::scratch_bytes(settings, parallel.workers()));
      for (std::int64_t i = 0; i < count; ++i) {
        NORMA_TRY(const Image image, images.load(i));
        Arena arena = memory.arena();
        Context context{arena, parallel};
        Features features;
        NORMA_CHECK(backbone.extract(image.view(), features, context));
        std::copy_n(features[0].data, shape.count(), out + i * shape.count());
      }
      return {};
    }();
    if (report(status) != 0) return -1;
  }
  return count * shape.positions();
}

void norma_feature_like_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, float* out) {
  const auto made = bench::feature_like_rows(rows, cols, seed);
  std::memcpy(out, made.data(), static_cast<std::size_t>(rows * cols) * sizeof(float));
}

/// Covariances by a BLAS' ssyrk: x [positions, count, d] is centred by each position's mean, then one call a position; out [positions, d, d] (lower triangles).
void* peer_ssyrk(void* pool, Ssyrk ssyrk, const float* x, std::int64_t positions, std::int64_t count, std::int64_t d, float* out) {
  const Parallel parallel = static_cast<ThreadPool*>(pool)->parallel();
  auto scratch = std::make_shared<std::vector<float>>(static_cast<std::size_t>(parallel.workers() * (count + 1) * d));
  return call([=] {
    parallel.run_ranges(positions, 16, [&](std::int64_t first, std::int64_t last, int worker) {
      float* NORMA_RESTRICT centred = scratch->data() + worker * (count + 1) * d;
      float* NORMA_RESTRICT mean = centred + count * d;
      for (std::int64_t p = first; p < last; ++p) {
        const float* rows = x + p * count * d;
        std::fill_n(mean, d, 0.0f);
        for (std::int64_t i = 0; i < count; ++i) {
          for (std::int64_t j = 0; j < d; ++j) mean[j] += rows[i * d + j];
        }
        for (std::int64_t j = 0; j < d; ++j) mean[j] /= static_cast<float>(count);
        for (std::int64_t i = 0; i < count; ++i) {
          for (std::int64_t j = 0; j < d; ++j) centred[i * d + j] = rows[i * d + j] - mean[j];
        }
        constexpr int kRowMajor = 101, kLower = 122, kTransposed = 112;
        const int n = static_cast<int>(d);
        ssyrk(kRowMajor, kLower, kTransposed, n, static_cast<int>(count), 1.0f / static_cast<float>(count - 1), centred, n, 0.0f, out + p * d * d, n);
      }
    });
    return Status{};
  });
}

}  // extern "C"

namespace {

/// A LAPACK's potrf on a copy of every matrix of a [positions, d, d].
template <class T>
Operation* loop_of_potrf(ThreadPool* pool, Potrf<T> potrf, const T* a, std::int64_t positions, std::int64_t d, T* out) {
  const Parallel parallel = pool->parallel();
  return call([=]() -> Status {
    std::vector<int> failed(static_cast<std::size_t>(parallel.workers()));
    parallel.run_ranges(positions, 16, [&](std::int64_t first, std::int64_t last, int worker) {
      const int n = static_cast<int>(d);
      for (std::int64_t p = first; p < last; ++p) {
        int info = 0;
        std::memcpy(out + p * d * d, a + p * d * d, static_cast<std::size_t>(d * d) * sizeof(T));
        potrf("L", &n, out + p * d * d, &n, &info);
        failed[static_cast<std::size_t>(worker)] |= info;
      }
    });
    for (const int info : failed) {
      if (info != 0) return {Errc::invalid_argument, "potrf: not positive definite"};
    }
    return {};
  });
}

}  // namespace

extern "C" {

void* peer_spotrf(void* pool, Potrf<float> potrf, const float* a, std::int64_t positions, std::int64_t d, float* out) {
  return loop_of_potrf(static_cast<ThreadPool*>(pool), potrf, a, positions, d, out);
}
void* peer_dpotrf(void* pool, Potrf<double> potrf, const double* a, std::int64_t positions, std::int64_t d, double* out) {
  return loop_of_potrf(static_cast<ThreadPool*>(pool), potrf, a, positions, d, out);
}

}  // extern "C"
