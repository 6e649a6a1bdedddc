// All kernels without vector instructions: they run on any CPU, and tests compare the other ISAs with them.
#include "cpu/convert.h"
#include "cpu/gemm_kernel.h"
#include "cpu/masked_mean_pool.h"
#include "cpu/sqdist.h"

namespace {

struct Vec {
  static constexpr int64_t kWidth = 1;
  template <class T>
  static float load(const T* from) {
    return to_float(*from);
  }
  static void store(float* to, float value) { *to = value; }
  static float zero() { return 0.0F; }
  static float add(float a, float b) { return a + b; }
  static float sub(float a, float b) { return a - b; }
  static float mul(float a, float b) { return a * b; }
  static float div(float a, float b) { return a / b; }
  static float sum(float a) { return a; }

  struct Double {
    static constexpr int64_t kWidth = 1;
    template <class T>
    static double load(const T* from) {
      return static_cast<double>(to_float(*from));
    }
    static double from(const double* from) { return *from; }
    static void store(double* to, double value) { *to = value; }
    static double add(double a, double b) { return a + b; }
    static double sub(double a, double b) { return a - b; }
    static double mul(double a, double b) { return a * b; }
  };
};

struct MicroKernel : FloatMicroKernel<Vec> {
  static constexpr int kRows = 4;
  static constexpr int kVecs = 4;
  static float broadcast(const float* from) { return *from; }
  static float multiply_add(float acc, float a, float b) { return acc + a * b; }
};

}  // namespace

namespace diverseevol {

Kernels scalar_kernels() {
  return {{pool_row<Vec, float>, pool_row<Vec, BFloat16>, pool_row<Vec, Float16>},
          gemm_kernel_of<Vec, MicroKernel>(),
          {sqdist<Vec, float>, sqdist<Vec, BFloat16>, sqdist<Vec, Float16>}};
}

}  // namespace diverseevol
