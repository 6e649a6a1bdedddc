// Parallel loops on OpenMP's threads: torch uses the same threads, so the two never compete for a core.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace diverseevol {

// Calls work(first, last) on at most `threads` threads, over disjoint ranges that cover [0, count). Rethrows an
// exception of any thread.
template <class Work>
void parallel_ranges(int64_t count, int threads, const Work& work) {
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  if (parts == 1) return work(0, count);
  std::exception_ptr failed;
#pragma omp parallel num_threads(parts)
  {
    const int64_t ranges = omp_get_num_threads();  // OpenMP may start fewer threads than requested
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
