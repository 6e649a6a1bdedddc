// The extension module: the only file that knows pybind11. Releases the GIL, turns a status into an
// exception. Shapes, dtypes and devices are checked in Python (diverseevol_fast/ops); addresses come from
// torch tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops.h"

namespace py = pybind11;
using namespace diverseevol;

namespace {

const std::vector<std::pair<std::string, Isa>> kIsas = {{"scalar", Isa::kScalar},
                                                        {"avx2", Isa::kAvx2},
                                                        {"avx512", Isa::kAvx512},
                                                        {"avx512bf16", Isa::kAvx512Bf16},
                                                        {"amxbf16", Isa::kAmxBf16}};

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

void raise_unless_ok(const char* op, Status status) {
  switch (status) {
    case Status::kOk:
      return;
    case Status::kUnknownDType:
      throw std::invalid_argument(std::string(op) + ": dtype not one of float32, bfloat16, float16");
    case Status::kUnusableIsa:
      throw std::invalid_argument(std::string(op) + ": this CPU or this build lacks the ISA");
  }
  throw std::runtime_error(std::string(op) + ": unknown status");
}

// Runs a kernel without the GIL.
template <class Call>
void run(const char* op, Status (*kernel)(Call&), Call& call) {
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = kernel(call);
  }
  raise_unless_ok(op, status);
}

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

// What masked_mean_pool and pool_min_sqdist have in common, as Python gives it.
struct PoolArguments {
  uintptr_t hidden;
  int dtype;
  uintptr_t mask, cu_seqlens, prefix_sum;
  int64_t prefix_len;
  uintptr_t out;
  int64_t batch, tokens, dim, hidden_stride_batch, hidden_stride_token;
  std::string isa;
  int threads;

  MaskedMeanPool call() const {
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
            isa_named(isa),
            threads,
            -1};
  }
};

int64_t bind_masked_mean_pool(const PoolArguments& arguments) {
  MaskedMeanPool call = arguments.call();
  run("masked_mean_pool", masked_mean_pool, call);
  return call.first_empty_row;
}

py::tuple bind_pool_min_sqdist(const PoolArguments& arguments, uintptr_t centers, int64_t num_centers, uintptr_t offset,
                               uintptr_t bound) {
  const MaskedMeanPool pool = arguments.call();
  PoolMinSqdist call{pool,
                     {{pool.out, DType::kFloat32, pool.batch, pool.dim, pool.dim},
                      nullptr,
                      pool.batch,
                      address<const float>(centers),
                      num_centers,
                      address<const float>(offset),
                      address<float>(bound),
                      pool.isa,
                      pool.threads,
                      -1}};
  run("pool_min_sqdist", pool_min_sqdist, call);
  return py::make_tuple(call.pool.first_empty_row, call.screen.first_bad_row);
}

int64_t bind_min_sqdist(uintptr_t x, int dtype, int64_t rows, int64_t dim, int64_t stride, uintptr_t numbers,
                        int64_t count, uintptr_t centers, int64_t num_centers, uintptr_t offset, uintptr_t bound,
                        const std::string& isa, int threads) {
  MinSqdist call{{address<const void>(x), static_cast<DType>(dtype), rows, dim, stride},
                 address<const int64_t>(numbers),
                 count,
                 address<const float>(centers),
                 num_centers,
                 address<const float>(offset),
                 address<float>(bound),
                 isa_named(isa),
                 threads,
                 -1};
  run("min_sqdist", min_sqdist, call);
  return call.first_bad_row;
}

py::tuple bind_pick_block(uintptr_t rows, int64_t num_rows, uintptr_t centers, int64_t num_centers, int64_t dim,
                          uintptr_t offset, uintptr_t bound, double threshold, double stop_sqdist, int64_t max_picks,
                          uintptr_t picks, uintptr_t sqdist, const std::string& isa, int threads) {
  PickBlock call{address<const float>(rows),
                 num_rows,
                 address<const float>(centers),
                 num_centers,
                 dim,
                 address<const float>(offset),
                 address<float>(bound),
                 threshold,
                 stop_sqdist,
                 max_picks,
                 isa_named(isa),
                 threads,
                 address<int64_t>(picks),
                 address<double>(sqdist),
                 0,
                 -1.0};
  run("pick_block", pick_block, call);
  return py::make_tuple(call.num_picks, call.next);
}

int64_t bind_update_argmax(uintptr_t x, int dtype, int64_t rows, int64_t dim, int64_t stride, uintptr_t center,
                           uintptr_t nearest, const std::string& isa, int threads) {
  UpdateArgmax call{{address<const void>(x), static_cast<DType>(dtype), rows, dim, stride},
                    address<const float>(center),
                    address<double>(nearest),
                    isa_named(isa),
                    threads,
                    0};
  run("update_argmax", update_argmax, call);
  return call.farthest;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  using py::arg;
  module.doc() = "C++ kernels of diverseevol_fast; call them through diverseevol_fast.ops";
  module.def("usable_isas", &usable_isas, "ISAs that this CPU can run and this build has, slowest first");
  module.def("isa_usable", &bind_isa_usable, arg("name"));
  py::class_<PoolArguments>(module, "PoolArguments")
      .def(py::init([](uintptr_t hidden, int dtype, uintptr_t mask, uintptr_t cu_seqlens, uintptr_t prefix_sum,
                       int64_t prefix_len, uintptr_t out, int64_t batch, int64_t tokens, int64_t dim,
                       int64_t hidden_stride_batch, int64_t hidden_stride_token, std::string isa, int threads) {
             return PoolArguments{hidden, dtype,  mask, cu_seqlens,          prefix_sum,          prefix_len, out,
                                  batch,  tokens, dim,  hidden_stride_batch, hidden_stride_token, isa,        threads};
           }),
           py::kw_only(), arg("hidden"), arg("dtype"), arg("mask"), arg("cu_seqlens"), arg("prefix_sum"),
           arg("prefix_len"), arg("out"), arg("batch"), arg("tokens"), arg("dim"), arg("hidden_stride_batch"),
           arg("hidden_stride_token"), arg("isa"), arg("threads"));
  module.def("masked_mean_pool", &bind_masked_mean_pool, arg("arguments"),
             "Pools rows; returns the lowest row with nothing to pool, or -1");
  module.def("pool_min_sqdist", &bind_pool_min_sqdist, arg("arguments"), arg("centers"), arg("num_centers"),
             arg("offset"), arg("bound"),
             "Pools rows and bounds them; returns the lowest row with nothing to pool, and the lowest that is not "
             "finite, or -1");
  module.def("min_sqdist", &bind_min_sqdist, arg("x"), arg("dtype"), arg("rows"), arg("dim"), arg("stride"),
             arg("numbers"), arg("count"), arg("centers"), arg("num_centers"), arg("offset"), arg("bound"), arg("isa"),
             arg("threads"), "Lowers bounds; returns the lowest row that is not finite, or -1");
  module.def("pick_block", &bind_pick_block, arg("rows"), arg("num_rows"), arg("centers"), arg("num_centers"),
             arg("dim"), arg("offset"), arg("bound"), arg("threshold"), arg("stop_sqdist"), arg("max_picks"),
             arg("picks"), arg("sqdist"), arg("isa"), arg("threads"),
             "Picks inside a block; returns how many, and the squared distance of the winner not picked (-1: none)");
  module.def("update_argmax", &bind_update_argmax, arg("x"), arg("dtype"), arg("rows"), arg("dim"), arg("stride"),
             arg("center"), arg("nearest"), arg("isa"), arg("threads"),
             "Lowers nearest for one centre; returns the farthest row");
}
