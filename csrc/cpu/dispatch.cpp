// Chooses the ISA's kernel and spreads the rows over threads. Compiled for any CPU of the architecture.
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/pool_rows.h"
#include "ops.h"

namespace diverseevol {

// The compiler's probe reads CPUID and, for the AVX families, XCR0: an ISA whose registers the operating
// system does not save is not reported.
bool isa_usable(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
#ifdef DEF_X86
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("f16c") != 0;
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") != 0;
#endif
    default:
      return false;
  }
}

namespace {

template <class T>
PoolRow<T> pool_row_for(Isa isa) {
#ifdef DEF_X86
  if (isa == Isa::kAvx512) return masked_mean_pool_avx512;
  if (isa == Isa::kAvx2) return masked_mean_pool_avx2;
#endif
  (void)isa;
  return masked_mean_pool_scalar;
}

// Calls work(first, last) on `threads` threads over disjoint ranges that cover [0, count).
template <class Work>
void parallel_ranges(int64_t count, int threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(parts - 1));
  for (int64_t part = 1; part < parts; ++part) {
    const int64_t first = count * part / parts;
    const int64_t last = count * (part + 1) / parts;
    try {
      others.emplace_back([&work, first, last] { work(first, last); });
    } catch (const std::system_error&) {  // no thread to be had: the work is done here
      work(first, last);
    }
  }
  work(0, count / parts);
  for (std::thread& other : others) other.join();
}

template <class T>
void pool_rows(MaskedMeanPool& call) {
  const PoolRow<T> pool_row = pool_row_for<T>(call.isa);
  const T* hidden = static_cast<const T*>(call.hidden);
  std::atomic<int64_t> first_empty{call.batch};
  parallel_ranges(call.batch, call.threads, [&](int64_t first, int64_t last) {
    std::vector<int64_t> kept(static_cast<size_t>(call.tokens));
    for (int64_t b = first; b < last; ++b) {
      int64_t count = 0;
      for (int64_t t = 0; t < call.tokens; ++t) {
        if (call.mask[b * call.tokens + t] != 0) kept[static_cast<size_t>(count++)] = t;
      }
      if (count == 0) {
        int64_t lowest = first_empty.load();
        while (b < lowest && !first_empty.compare_exchange_weak(lowest, b)) {
        }
        continue;
      }
      pool_row(hidden + b * call.hidden_stride_batch, call.hidden_stride_token, kept.data(), count, call.dim,
               call.out + b * call.dim);
    }
  });
  call.first_empty_row = first_empty.load() < call.batch ? first_empty.load() : -1;
}

}  // namespace

Status masked_mean_pool(MaskedMeanPool& call) {
  if (!isa_usable(call.isa)) return Status::kUnusableIsa;
  switch (call.dtype) {
    case DType::kFloat32:
      pool_rows<float>(call);
      return Status::kOk;
    case DType::kBFloat16:
      pool_rows<BFloat16>(call);
      return Status::kOk;
    case DType::kFloat16:
      pool_rows<Float16>(call);
      return Status::kOk;
  }
  return Status::kUnknownDType;
}

}  // namespace diverseevol
