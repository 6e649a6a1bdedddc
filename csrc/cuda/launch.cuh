// Kernel launches from the host, on the target's device and stream; an error status becomes an exception.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops.h"

namespace diverseevol::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which would otherwise show up in the thread's next call
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// Makes the target's device current for the lifetime of the object.
class Device {
 public:
  explicit Device(const ExecutionTarget& target) : wanted_(target.device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != wanted_) check(cudaSetDevice(wanted_), "cudaSetDevice");
  }
  ~Device() {
    if (before_ != wanted_) cudaSetDevice(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int before_ = 0;
  const int wanted_;
};

inline int attribute(const ExecutionTarget& target, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, target.device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors(const ExecutionTarget& target) { return attribute(target, cudaDevAttrMultiProcessorCount); }

inline int capability(const ExecutionTarget& target) {
  return 10 * attribute(target, cudaDevAttrComputeCapabilityMajor) +
         attribute(target, cudaDevAttrComputeCapabilityMinor);
}

// Maximum shared memory of a block in bytes, static memory included.
inline int64_t shared_memory(const ExecutionTarget& target) {
  return attribute(target, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

inline void fill(const ExecutionTarget& target, void* data, int byte, int64_t bytes) {
  check(cudaMemsetAsync(data, byte, static_cast<size_t>(bytes), static_cast<cudaStream_t>(target.stream)),
        "cudaMemsetAsync");
}

// Launch configuration: blocks, threads per block, and bytes of dynamic shared memory per block.
struct Shape {
  int64_t blocks;
  int threads;
  int64_t shared;
};

// Opts a kernel in to all dynamic shared memory that its static part leaves, because CUDA grants more than 48 KB only
// on request. Returns that number of bytes, cached per kernel and device.
inline int64_t most_shared(const void* kernel, const ExecutionTarget& target) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel, target.device});
  if (found != known.end()) return found->second;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const int64_t most = shared_memory(target) - static_cast<int64_t>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
        "cudaFuncSetAttribute");
  known[{kernel, target.device}] = most;
  return most;
}

inline void check_shared(const void* kernel, const ExecutionTarget& target, int64_t wanted) {
  const int64_t most = most_shared(kernel, target);
  if (wanted <= most) return;
  throw std::runtime_error("launch: " + std::to_string(wanted) +
                           " bytes of shared memory for a block, of which this GPU has " + std::to_string(most));
}

template <class... Arguments>
void launch_with(void (*kernel)(Arguments...), const ExecutionTarget& target, const Shape& shape, bool cooperative,
                 Arguments... arguments) {
  check_shared(reinterpret_cast<const void*>(kernel), target, shape.shared);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative ? 1 : 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const ExecutionTarget& target, const Shape& shape, Arguments... arguments) {
  launch_with(kernel, target, shape, false, arguments...);
}

// Cooperative launch with as many blocks as fit on the device at once, at most shape.blocks.
template <class... Arguments>
void launch_cooperative(void (*kernel)(Arguments...), const ExecutionTarget& target, Shape shape,
                        Arguments... arguments) {
  check_shared(reinterpret_cast<const void*>(kernel), target, shape.shared);
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, shape.threads, static_cast<size_t>(shape.shared)),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t most = static_cast<int64_t>(each) * multiprocessors(target);
  if (most == 0) throw std::runtime_error("cooperative launch: not one block fits on this GPU");
  if (shape.blocks > most) shape.blocks = most;
  launch_with(kernel, target, shape, true, arguments...);
}

}  // namespace diverseevol::cuda
