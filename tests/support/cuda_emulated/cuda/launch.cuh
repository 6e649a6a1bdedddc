// csrc/cuda/launch.cuh on a CPU: a launch runs the kernel and returns when it is done.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "grid.h"
#include "ops.h"

namespace diverseevol::cuda {

class Device {
 public:
  explicit Device(const ExecutionTarget&) {}
};

constexpr int kMultiprocessors = 3;

inline int multiprocessors(const ExecutionTarget&) { return kMultiprocessors; }

inline int64_t shared_memory(const ExecutionTarget&) { return static_cast<int64_t>(emulated::kSharedMemory); }

inline int capability(const ExecutionTarget&) { return 90; }

inline void fill(const ExecutionTarget&, void* data, int byte, int64_t bytes) {
  std::memset(data, byte, static_cast<size_t>(bytes));
}

struct Shape {
  int64_t blocks;
  int threads;
  int64_t shared;
};

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const ExecutionTarget&, const Shape& shape, Arguments... arguments) {
  if (shape.shared > static_cast<int64_t>(emulated::kSharedMemory)) throw std::runtime_error("launch: shared memory");
  emulated::run_blocks(shape.blocks, shape.threads, false, [&] { kernel(arguments...); });
}

template <class... Arguments>
void launch_cooperative(void (*kernel)(Arguments...), const ExecutionTarget& target, Shape shape,
                        Arguments... arguments) {
  if (shape.shared > static_cast<int64_t>(emulated::kSharedMemory)) throw std::runtime_error("launch: shared memory");
  shape.blocks = std::min<int64_t>(shape.blocks, multiprocessors(target));
  emulated::run_blocks(shape.blocks, shape.threads, true, [&] { kernel(arguments...); });
}

}  // namespace diverseevol::cuda
