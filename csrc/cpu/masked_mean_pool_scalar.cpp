// masked_mean_pool without vector instructions: any CPU, and the yardstick of the other two.
#include "cpu/convert.h"
#include "cpu/masked_mean_pool.h"
#include "cpu/pool_rows.h"

namespace {

struct Vec {
  static constexpr int64_t kWidth = 1;
  template <class T>
  static float load(const T* from) {
    return to_float(*from);
  }
  static void store(float* to, float value) { *to = value; }
  static float add(float a, float b) { return a + b; }
  static float div(float a, float b) { return a / b; }
};

}  // namespace

namespace diverseevol {
DEF_DEFINE_POOL_ROWS(scalar)
}
