// Work over ranges, on threads of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace diverseevol {

// Calls work(first, last) on at most `threads` threads, over disjoint ranges that cover [0, count).
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

}  // namespace diverseevol
