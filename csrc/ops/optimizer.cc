// Optimizer steps: checks every parameter of a step, prepares its scalars in float64, and queues at most two
// kernels, one per kind of state.
#include <cmath>
#include <cstring>

#include "core/transfer.h"
#include "kernels/clip_gradients.h"
#include "kernels/optimizer_8bit.h"
#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

constexpr const char* kStep = "optimizerStep";

// One row of `options` per parameter, in this order (src/optim/update-rule.ts writes it).
struct Options {
  double bits, has_unorm, rule, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, grad_scale, max_unorm,
      skip_zeros;
};
constexpr size_t kOptionCount = sizeof(Options) / sizeof(double);

int state_count(UpdateRule rule) {
  switch (rule) {
    case UpdateRule::adam:
    case UpdateRule::lamb: return 2;
    case UpdateRule::ademamix: return 3;
    default: return 1;
  }
}

OptimizerScalars scalars(UpdateRule rule, const Options& o) {
  const auto f = [](double x) { return static_cast<float>(x); };
  const double c1 = 1 - std::pow(o.beta1, o.step), c2 = std::sqrt(1 - std::pow(o.beta2, o.step));
  const bool is_adam = rule == UpdateRule::adam;
  const bool is_decoupled = is_adam || rule == UpdateRule::ademamix || rule == UpdateRule::lion;
  const double factor = is_adam ? c2 / c1 : 1;
  return {
      .beta1 = f(o.beta1),
      .rest1 = f(1 - o.beta1),
      .beta2 = f(o.beta2),
      .rest2 = f(1 - o.beta2),
      .beta3 = f(o.beta3),
      .rest3 = f(1 - o.beta3),
      .alpha = f(o.alpha),
      .inv_c1 = f(1 / c1),
      .inv_c2 = f(1 / c2),
      .eps = f(is_adam ? o.eps * c2 : o.eps),
      .decay = is_decoupled ? f(1 - o.lr * o.weight_decay) : 1.0f,
      .weight_decay = is_decoupled ? 0.0f : f(o.weight_decay),
      .step = f(o.lr * factor),
      .factor = f(factor),
      .grad_scale = f(o.grad_scale),
      .skip_below = o.skip_zeros != 0 ? 0.0f : -1.0f,
      .max_unorm = f(o.max_unorm),
      .norm_eps = state_count(rule) == 1 ? f(o.eps) : 0.0f,
      .first = o.step == 1,
  };
}

// Takes the tensors of the parameters one after another from the flat list.
class Cursor {
 public:
  Cursor(const std::vector<Tensor>& tensors, Device& device) : tensors_(tensors), device_(device) {}

  // What all parameters so far will have written to when the step has run.
  const std::vector<const Tensor*>& written() const { return written_; }
  const Tensor& next(int64_t parameter, const char* name, bool is_written) {
    check_argument(at_ < tensors_.size(), kStep, "parameter ", parameter, " lacks its ", name);
    const Tensor& t = tensors_[at_++];
    check_argument(t.defined(), kStep, name, " of parameter ", parameter, " must be a Tensor, got null");
    check_device(&t.device() == &device_, kStep, name, " of parameter ", parameter, " must be on ", device_.str(),
                 ", got ", t.device().str());
    if (is_written) written_.push_back(&t);
    return t;
  }
  void* next_state(int64_t parameter, const char* name, DType dtype, int64_t numel) {
    const Tensor& t = next(parameter, name, true);
    check_dtype(t.dtype() == dtype, kStep, name, " of parameter ", parameter, " must be ", name_of(dtype), ", got ",
                name_of(t.dtype()));
    check_shape(t.numel() == numel, kStep, name, " of parameter ", parameter, " must have ", numel, " elements, got ",
                t.shape());
    return t.data();
  }
  bool finished() const { return at_ == tensors_.size(); }

 private:
  const std::vector<Tensor>& tensors_;
  Device& device_;
  size_t at_ = 0;
  std::vector<const Tensor*> written_;
};

OptimizerJob next_job(Cursor& cursor, const Options& o, int64_t parameter) {
  const auto rule = static_cast<UpdateRule>(static_cast<int32_t>(o.rule));
  const bool is_8bit = o.bits == 8;
  const Tensor& p = cursor.next(parameter, "p", true);
  const Tensor& g = cursor.next(parameter, "g", false);
  check_dtype(is_float(p.dtype()), kStep, "parameter ", parameter, " must be float32, float16 or bfloat16, got ",
              name_of(p.dtype()));
  check_dtype(is_float(g.dtype()), kStep, "g of parameter ", parameter, " must be float32, float16 or bfloat16, got ",
              name_of(g.dtype()));
  check_shape(g.shape() == p.shape(), kStep, "g of parameter ", parameter, " must have shape ", p.shape(), ", got ",
              g.shape());
  const int64_t n = p.numel(), blocks = (n + kOptimizerBlock - 1) / kOptimizerBlock;
  const int rows = rule == UpdateRule::ademamix ? 2 : 1;
  const bool has_second = state_count(rule) > 1;
  const DType state = is_8bit ? DType::uint8 : DType::float32;

  OptimizerJob job{};
  job.p = p.data();
  job.g = g.data();
  job.n = n;
  job.p_dtype = p.dtype();
  job.g_dtype = g.dtype();
  job.rule = rule;
  job.scalars = scalars(rule, o);
  job.state1 = cursor.next_state(parameter, "state1", state, rows * n);
  if (has_second) job.state2 = cursor.next_state(parameter, "state2", state, n);
  if (is_8bit)
    job.absmax1 = static_cast<float*>(cursor.next_state(parameter, "absmax1", DType::float32, rows * blocks));
  if (is_8bit && has_second)
    job.absmax2 = static_cast<float*>(cursor.next_state(parameter, "absmax2", DType::float32, blocks));
  if (o.has_unorm != 0) job.unorm = static_cast<float*>(cursor.next_state(parameter, "unormVec", DType::float32, 1));
  return job;
}

template <class T>
Tensor upload_vector(const std::vector<T>& items, Device& device) {
  const size_t nbytes = items.size() * sizeof(T);
  return upload(items.data(), nbytes, Shape{static_cast<int64_t>(nbytes)}, DType::uint8, device);
}

// Appends a job after the chunks of those before it; returns the chunks including it.
template <class Job>
int64_t append(std::vector<Job>& jobs, Job job, int64_t chunks, int64_t chunk_size) {
  job.first_chunk = chunks;
  jobs.push_back(job);
  return chunks + (job.n + chunk_size - 1) / chunk_size;
}

void run(const Kernel<OptimizerArgs>& kernel, const std::vector<OptimizerJob>& jobs, int64_t chunks,
         const Tensor& nonfinite) {
  if (jobs.empty()) return;
  Device& device = nonfinite.device();
  const Tensor list = upload_vector(jobs, device);
  Tensor partials, scales;
  uint32_t rules = 0;
  for (const OptimizerJob& job : jobs) {
    rules |= 1u << static_cast<int>(job.rule);
    if (!needs_norms(job) || partials.defined()) continue;
    partials = Tensor::empty({chunks, 2}, DType::float64, device);
    scales = Tensor::empty({static_cast<int64_t>(jobs.size())}, DType::float32, device);
  }
  enqueue(kernel, device,
          OptimizerArgs{
              .jobs = list.ptr<OptimizerJob>(),
              .job_count = static_cast<int64_t>(jobs.size()),
              .chunk_count = chunks,
              .rules = rules,
              .partials = partials.defined() ? partials.ptr<double>() : nullptr,
              .scales = scales.defined() ? scales.ptr<float>() : nullptr,
              .nonfinite = nonfinite.ptr<double>(),
          });
}

}  // namespace

void optimizer_step(const std::vector<Tensor>& tensors, const std::vector<double>& options, const Tensor& nonfinite) {
  check_argument(options.size() % kOptionCount == 0, kStep, "options must hold ", kOptionCount,
                 " numbers a parameter, got ", options.size());
  check_dtype(nonfinite.dtype() == DType::float64 && nonfinite.numel() == 1, kStep,
              "nonFiniteCount must be one float64, got ", name_of(nonfinite.dtype()), " ", nonfinite.shape());
  std::vector<OptimizerJob> jobs32, jobs8;
  int64_t chunks32 = 0, chunks8 = 0;
  Cursor cursor(tensors, nonfinite.device());
  for (size_t i = 0; i < options.size() / kOptionCount; i++) {
    Options o;
    std::memcpy(&o, options.data() + i * kOptionCount, sizeof o);
    check_option(o.rule >= 0 && o.rule <= static_cast<double>(UpdateRule::lars), kStep, "the rule must be known, got ",
                 o.rule);
    check_option(o.bits == 8 || o.bits == 32, kStep, "optimBits must be 8 or 32, got ", o.bits);
    check_option(o.step >= 1, kStep, "step must be at least 1, got ", o.step);
    const OptimizerJob job = next_job(cursor, o, static_cast<int64_t>(i));
    if (job.n == 0) continue;
    if (o.bits == 8) {
      chunks8 = append(jobs8, job, chunks8, kOptimizerChunk);
    } else {
      chunks32 = append(jobs32, job, chunks32, kOptimizerChunk);
    }
  }
  check_argument(cursor.finished(), kStep,
                 "tensors must belong to the parameters, got more than their options ask for");
  run(kernels::optimizer_32bit, jobs32, chunks32, nonfinite);
  run(kernels::optimizer_8bit, jobs8, chunks8, nonfinite);
  for (const Tensor* t : cursor.written()) t->changed();
  nonfinite.changed();
}

Tensor clip_gradients(const std::vector<Tensor>& gradients, int32_t rule, double limit) {
  const char* const op = "clipGradients";
  check_argument(!gradients.empty(), op, "at least one gradient is needed, got none");
  check_option(rule >= 0 && rule <= static_cast<int32_t>(ClipRule::value), op, "the rule must be known, got ", rule);
  check_option(limit >= 0, op, "the limit must not be negative, got ", limit);
  std::vector<ClipJob> jobs;
  int64_t chunks = 0;
  for (const Tensor& g : gradients) check_argument(g.defined(), op, "gradients must be Tensors, got null");
  Device& device = gradients[0].device();
  for (const Tensor& g : gradients) {
    check_device(&g.device() == &device, op, "gradients must share a device, got ", device.str(), " and ",
                 g.device().str());
    check_dtype(is_float(g.dtype()), op, "gradients must be float32, float16 or bfloat16, got ", name_of(g.dtype()));
    if (g.numel() == 0) continue;
    chunks = append(jobs, ClipJob{.g = g.changed().data(), .n = g.numel(), .first_chunk = 0, .dtype = g.dtype()},
                    chunks, kClipChunk);
  }
  const Tensor list = upload_vector(jobs, device);
  const Tensor partials = Tensor::empty({chunks}, DType::float64, device);
  Tensor norm = Tensor::empty({}, DType::float32, device);
  enqueue(kernels::clip_gradients, device,
          ClipGradientsArgs{
              .jobs = list.ptr<ClipJob>(),
              .job_count = static_cast<int64_t>(jobs.size()),
              .chunk_count = chunks,
              .partials = partials.ptr<double>(),
              .norm = norm.ptr<float>(),
              .limit = static_cast<float>(limit),
              .rule = static_cast<ClipRule>(rule),
          });
  return norm;
}

}  // namespace bnb::ops
