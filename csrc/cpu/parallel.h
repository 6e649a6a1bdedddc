// Work over ranges, on OpenMP's threads: the ones that torch uses, so that the two never compete for a core.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace diverseevol {

// Calls work(first, last) on at most `threads` threads, over disjoint ranges that cover [0, count). An exception of
// any of them is thrown here.
template <class Work>
void parallel_ranges(int64_t count, int threads, const Work& work) {
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  if (parts == 1) return work(0, count);
  std::exception_ptr failed;
#pragma omp parallel num_threads(parts)
  {
    const int64_t ranges = omp_get_num_threads();  // may be fewer
    const int64_t range = omp_get_thread_num();
    try {
      work(count * range / ranges, count * (range + 1) / ranges);
    } catch (...) {
#pragma omp critical
      failed = std::current_exception();
    }
  }
  if (failed) std::rethrow_exception(failed);
}

}  // namespace diverseevol
