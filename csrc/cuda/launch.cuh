// The host's side of a launch: statuses become exceptions, the caller's device and stream are used.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace diverseevol::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a launch's error stays with the thread until it is read
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// The target's device is current while this lives.
class Device {
 public:
  explicit Device(const Target& on) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(on.device), "cudaSetDevice");
  }
  ~Device() { cudaSetDevice(before_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int before_ = 0;
};

inline int attribute(const Target& on, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, on.device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors(const Target& on) { return attribute(on, cudaDevAttrMultiProcessorCount); }

inline int capability(const Target& on) {
  return 10 * attribute(on, cudaDevAttrComputeCapabilityMajor) + attribute(on, cudaDevAttrComputeCapabilityMinor);
}

inline void fill(const Target& on, void* data, int byte, int64_t bytes) {
  check(cudaMemsetAsync(data, byte, static_cast<size_t>(bytes), static_cast<cudaStream_t>(on.stream)),
        "cudaMemsetAsync");
}

// How a kernel is spread: blocks, threads of each, and the bytes of shared memory that it asks for at run time.
struct Shape {
  int64_t blocks;
  int threads;
  int64_t shared;
};

template <class... Arguments>
void launch_with(void (*kernel)(Arguments...), const Target& on, const Shape& shape, bool cooperative,
                 Arguments... arguments) {
  if (shape.shared > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative ? 1 : 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
  config.stream = static_cast<cudaStream_t>(on.stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const Target& on, const Shape& shape, Arguments... arguments) {
  launch_with(kernel, on, shape, false, arguments...);
}

// All blocks run at once: as many as fit on the device, at most shape.blocks.
template <class... Arguments>
void launch_cooperative(void (*kernel)(Arguments...), const Target& on, Shape shape, Arguments... arguments) {
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, shape.threads, static_cast<size_t>(shape.shared)),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t most = static_cast<int64_t>(each) * multiprocessors(on);
  if (shape.blocks > most) shape.blocks = most;
  launch_with(kernel, on, shape, true, arguments...);
}

}  // namespace diverseevol::cuda
