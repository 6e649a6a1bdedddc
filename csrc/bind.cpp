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

const std::vector<std::pair<std::string, Isa>> kIsas = {
    {"scalar", Isa::kScalar}, {"avx2", Isa::kAvx2}, {"avx512", Isa::kAvx512}};

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

int64_t bind_masked_mean_pool(uintptr_t hidden, int dtype, uintptr_t mask, uintptr_t out, int64_t batch, int64_t tokens,
                              int64_t dim, int64_t hidden_stride_batch, int64_t hidden_stride_token,
                              const std::string& isa, int threads) {
  MaskedMeanPool call{reinterpret_cast<const void*>(hidden),
                      static_cast<DType>(dtype),
                      reinterpret_cast<const uint8_t*>(mask),
                      reinterpret_cast<float*>(out),
                      batch,
                      tokens,
                      dim,
                      hidden_stride_batch,
                      hidden_stride_token,
                      isa_named(isa),
                      threads,
                      -1};
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = masked_mean_pool(call);
  }
  raise_unless_ok("masked_mean_pool", status);
  return call.first_empty_row;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "C++ kernels of diverseevol_fast; call them through diverseevol_fast.ops";
  module.def("usable_isas", &usable_isas, "ISAs that this CPU can run and this build has, slowest first");
  module.def("masked_mean_pool", &bind_masked_mean_pool, py::arg("hidden"), py::arg("dtype"), py::arg("mask"),
             py::arg("out"), py::arg("batch"), py::arg("tokens"), py::arg("dim"), py::arg("hidden_stride_batch"),
             py::arg("hidden_stride_token"), py::arg("isa"), py::arg("threads"),
             "Pools rows; returns the lowest row with nothing to pool, or -1");
}
