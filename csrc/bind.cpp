// The extension module, the only file that uses pybind11: it releases the GIL and turns a Status into an exception.
// diverseevol_fast/ops checks shapes, dtypes and devices, and passes the addresses of torch tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops.h"

namespace py = pybind11;
using namespace diverseevol;

namespace {

const std::vector<std::pair<std::string, Isa>> kIsas = {
#define DEF_ISA(name, ...) {#name, Isa::name},
#include "isas.def"
};

Isa isa_named(const std::string& name) {
  for (const auto& [known, isa] : kIsas) {
    if (known == name) return isa;
  }
  throw std::invalid_argument("unknown ISA '" + name + "'");
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kIsas) {
    if (isa_usable(isa)) names.push_back(name);
  }
  return names;
}

bool bind_isa_usable(const std::string& name) { return isa_usable(isa_named(name)); }

struct BoundViolation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void raise_unless_ok(const char* op, Status status) {
  switch (status) {
    case Status::kOk:
      return;
    case Status::kUnknownDType:
      throw std::invalid_argument(std::string(op) + ": dtype not one of float32, bfloat16, float16");
    case Status::kUnusableIsa:
      throw std::invalid_argument(std::string(op) + ": this CPU or this build lacks the ISA");
    case Status::kBoundViolation:
      throw BoundViolation(std::string(op) +
                           ": the bound of a row is below its squared distance to the nearest center");
  }
  throw std::runtime_error(std::string(op) + ": unknown status");
}

// Python's ExecutionTarget: a GPU's comes with `allocate(bytes)`, which returns the address of scratch memory there.
struct PyTarget : ExecutionTarget {
  std::optional<py::function> allocate;
};

PyTarget cpu_target(const std::string& isa, int threads) {
  return {{isa_named(isa), threads, -1, nullptr, nullptr}, std::nullopt};
}

#ifdef DEF_CUDA
constexpr const char* kCudaArchitectures = DEF_CUDA;

PyTarget gpu_target(int device, uintptr_t stream, py::function allocate) {
  return {{Isa::scalar, 1, device, reinterpret_cast<void*>(stream), nullptr}, std::move(allocate)};
}
#endif

ExecutionTarget& target_of(PoolMinSqdist& call) { return call.pool.target; }

template <class Call>
ExecutionTarget& target_of(Call& call) {
  return call.target;
}

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

template <class Call>
using Kernel = Status (*)(const Call&);

// Runs a call on the target, without the GIL.
template <class Call>
void run(const char* op, Kernel<Call> cpu, [[maybe_unused]] Kernel<Call> gpu, Call call, const PyTarget& target) {
  target_of(call) = target;
  Kernel<Call> kernel = cpu;
#ifdef DEF_CUDA
  if (target.allocate) {
    kernel = gpu;
    target_of(call).scratch = address<void>((*target.allocate)(cuda::scratch_bytes(call)).template cast<uintptr_t>());
  }
#endif
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = kernel(call);
  }
  raise_unless_ok(op, status);
}

#ifdef DEF_CUDA
#define DEF_BOTH(op) diverseevol::op, cuda::op
#else
#define DEF_BOTH(op) diverseevol::op, nullptr
#endif

// The arguments that masked_mean_pool and pool_min_sqdist share.
MaskedMeanPool pool_call(uintptr_t hidden, int dtype, uintptr_t mask, uintptr_t cu_seqlens, uintptr_t prefix_sum,
                         int64_t prefix_len, uintptr_t out, int64_t batch, int64_t tokens, int64_t dim,
                         int64_t hidden_stride_batch, int64_t hidden_stride_token, uintptr_t first_empty_row) {
  return {address<const void>(hidden),
          static_cast<DType>(dtype),
          address<const uint8_t>(mask),
          address<const int64_t>(cu_seqlens),
          address<const float>(prefix_sum),
          prefix_len,
          address<float>(out),
          batch,
          tokens,
          dim,
          hidden_stride_batch,
          hidden_stride_token,
          address<int64_t>(first_empty_row),
          {}};
}

void bind_masked_mean_pool(const PyTarget& target, const MaskedMeanPool& call) {
  run<MaskedMeanPool>("masked_mean_pool", DEF_BOTH(masked_mean_pool), call, target);
}

void bind_pool_min_sqdist(const PyTarget& target, const MaskedMeanPool& pool, uintptr_t centers, int64_t num_centers,
                          uintptr_t offset, uintptr_t bound, uintptr_t first_bad_row) {
  const Rows pooled{pool.out, DType::kFloat32, pool.batch, pool.dim, pool.dim};
  run<PoolMinSqdist>("pool_min_sqdist", DEF_BOTH(pool_min_sqdist),
                     PoolMinSqdist{pool,
                                   {pooled, nullptr, pool.batch, address<const float>(centers), num_centers,
                                    address<const float>(offset), address<float>(bound),
                                    address<int64_t>(first_bad_row), false, target}},
                     target);
}

Rows rows_at(uintptr_t x, int dtype, int64_t rows, int64_t dim, int64_t stride) {
  return {address<const void>(x), static_cast<DType>(dtype), rows, dim, stride};
}

void bind_min_sqdist(const PyTarget& target, const Rows& x, uintptr_t indices, int64_t count, uintptr_t centers,
                     int64_t num_centers, uintptr_t offset, uintptr_t bound, uintptr_t first_bad_row, bool general) {
  run<MinSqdist>("min_sqdist", DEF_BOTH(min_sqdist),
                 MinSqdist{x,
                           address<const int64_t>(indices),
                           count,
                           address<const float>(centers),
                           num_centers,
                           address<const float>(offset),
                           address<float>(bound),
                           address<int64_t>(first_bad_row),
                           general,
                           {}},
                 target);
}

bool bind_suits_hopper([[maybe_unused]] const PyTarget& target, [[maybe_unused]] const Rows& x,
                       [[maybe_unused]] uintptr_t indices, [[maybe_unused]] int64_t count,
                       [[maybe_unused]] int64_t num_centers) {
#ifdef DEF_CUDA
  if (target.allocate) {
    return cuda::suits_hopper(
        {x, address<const int64_t>(indices), count, nullptr, num_centers, nullptr, nullptr, nullptr, false, target});
  }
#endif
  return false;
}

void bind_pick_block(const PyTarget& target, uintptr_t rows, int64_t num_rows, uintptr_t centers, int64_t num_centers,
                     int64_t dim, uintptr_t offset, uintptr_t bound, uintptr_t threshold, double stop_sqdist,
                     int64_t max_picks, uintptr_t picks, uintptr_t sqdist, uintptr_t num_picks, uintptr_t next) {
  run<PickBlock>("pick_block", DEF_BOTH(pick_block),
                 PickBlock{address<const float>(rows),
                           num_rows,
                           address<const float>(centers),
                           num_centers,
                           dim,
                           address<const float>(offset),
                           address<float>(bound),
                           address<const double>(threshold),
                           stop_sqdist,
                           max_picks,
                           address<int64_t>(picks),
                           address<double>(sqdist),
                           address<int64_t>(num_picks),
                           address<double>(next),
                           {}},
                 target);
}

void bind_update_argmax(const PyTarget& target, const Rows& x, uintptr_t center, uintptr_t nearest,
                        uintptr_t farthest) {
  run<UpdateArgmax>(
      "update_argmax", DEF_BOTH(update_argmax),
      UpdateArgmax{x, address<const float>(center), address<double>(nearest), address<int64_t>(farthest), {}}, target);
}

#ifdef DEF_CUDA
void bind_logit_stats(const PyTarget& target, uintptr_t hidden, uintptr_t weight, uintptr_t bias, int dtype,
                      int64_t tokens, int64_t vocabulary, int64_t dim, int64_t hidden_stride, int64_t weight_stride,
                      uintptr_t largest, uintptr_t margin, uintptr_t entropy, uintptr_t first_bad_token) {
  run<LogitStats>("logit_stats", nullptr, cuda::logit_stats,
                  {address<const void>(hidden),
                   address<const void>(weight),
                   address<const float>(bias),
                   static_cast<DType>(dtype),
                   tokens,
                   vocabulary,
                   dim,
                   hidden_stride,
                   weight_stride,
                   address<float>(largest),
                   address<float>(margin),
                   address<float>(entropy),
                   address<int64_t>(first_bad_token),
                   {}},
                  target);
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
  using py::arg;
  module.doc() = "C++ kernels of diverseevol_fast; call them through diverseevol_fast.ops";
  py::register_exception<BoundViolation>(module, "BoundViolationError", PyExc_RuntimeError);
  module.def("usable_isas", &usable_isas, "ISAs that this CPU can run and this build has, slowest first");
  module.def("isa_usable", &bind_isa_usable, arg("name"));
  py::class_<PyTarget>(module, "ExecutionTarget", py::module_local());
  module.def("cpu_target", &cpu_target, arg("isa"), arg("threads"));
#ifdef DEF_CUDA
  module.attr("cuda_architectures") = kCudaArchitectures;
  module.def("gpu_target", &gpu_target, arg("device"), arg("stream"), arg("allocate"));
#else
  module.attr("cuda_architectures") = "";
#endif
  py::class_<Rows>(module, "Rows", py::module_local())
      .def(py::init(&rows_at), py::kw_only(), arg("x"), arg("dtype"), arg("rows"), arg("dim"), arg("stride"));
  py::class_<MaskedMeanPool>(module, "MaskedMeanPool", py::module_local())
      .def(py::init(&pool_call), py::kw_only(), arg("hidden"), arg("dtype"), arg("mask"), arg("cu_seqlens"),
           arg("prefix_sum"), arg("prefix_len"), arg("out"), arg("batch"), arg("tokens"), arg("dim"),
           arg("hidden_stride_batch"), arg("hidden_stride_token"), arg("first_empty_row"));
  module.def("masked_mean_pool", &bind_masked_mean_pool, arg("target"), arg("call"));
  module.def("pool_min_sqdist", &bind_pool_min_sqdist, arg("target"), arg("pool"), py::kw_only(), arg("centers"),
             arg("num_centers"), arg("offset"), arg("bound"), arg("first_bad_row"));
  module.def("min_sqdist", &bind_min_sqdist, arg("target"), arg("x"), py::kw_only(), arg("indices"), arg("count"),
             arg("centers"), arg("num_centers"), arg("offset"), arg("bound"), arg("first_bad_row"), arg("general"));
  module.def("suits_hopper", &bind_suits_hopper, arg("target"), arg("x"), py::kw_only(), arg("indices"), arg("count"),
             arg("num_centers"));
  module.def("pick_block", &bind_pick_block, arg("target"), py::kw_only(), arg("rows"), arg("num_rows"), arg("centers"),
             arg("num_centers"), arg("dim"), arg("offset"), arg("bound"), arg("threshold"), arg("stop_sqdist"),
             arg("max_picks"), arg("picks"), arg("sqdist"), arg("num_picks"), arg("next"));
  module.def("update_argmax", &bind_update_argmax, arg("target"), arg("x"), py::kw_only(), arg("center"),
             arg("nearest"), arg("farthest"));
#ifdef DEF_CUDA
  module.def("logit_stats", &bind_logit_stats, arg("target"), py::kw_only(), arg("hidden"), arg("weight"), arg("bias"),
             arg("dtype"), arg("tokens"), arg("vocabulary"), arg("dim"), arg("hidden_stride"), arg("weight_stride"),
             arg("largest"), arg("margin"), arg("entropy"), arg("first_bad_token"));
#endif
}
