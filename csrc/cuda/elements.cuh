// Stored values, how kernels read them, and how scratch memory is divided.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "ops.h"

namespace diverseevol::cuda {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
__device__ inline float to_float(Float16 value) { return half_to_float(value.bits); }

__device__ inline bool is_finite(float value) { return value - value == 0.0F; }

template <class T>
__device__ bool all_finite(const T* row, int64_t dim) {
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) finite &= is_finite(to_float(row[d]));
  return finite;
}

// 16 bytes of stored values, the largest single load.
template <class T>
struct alignas(16) Chunk {
  static constexpr int kValues = 16 / sizeof(T);
  T values[kValues];
};

// The values from[0] to from[kValues - 1], zero from index `count` on. kAligned: `from` is aligned to 16 bytes, so that
// a whole chunk is one load.
template <bool kAligned, class T>
__device__ Chunk<T> load_chunk(const T* from, int64_t count) {
  if (kAligned && count >= Chunk<T>::kValues) return *reinterpret_cast<const Chunk<T>*>(from);
  Chunk<T> chunk{};
#pragma unroll
  for (int i = 0; i < Chunk<T>::kValues; ++i) {
    if (i < count) chunk.values[i] = from[i];
  }
  return chunk;
}

// Whether all rows of a matrix are aligned to 16 bytes.
template <class T>
bool in_chunks(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

inline int64_t rounded_up(int64_t count, int64_t to) { return blocks_of(count, to) * to; }

// Calls use(T{}) with the type T of a dtype; returns false for an unknown dtype.
template <class Use>
bool with_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat32:
      use(float{});
      return true;
    case DType::kBFloat16:
      use(BFloat16{});
      return true;
    case DType::kFloat16:
      use(Float16{});
      return true;
  }
  return false;
}

// Divides scratch memory into arrays.
class Scratch {
 public:
  explicit Scratch(void* data) : data_(static_cast<char*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(data_ + bytes_);
    bytes_ += rounded_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return taken;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* data_;
  int64_t bytes_ = 0;
};

}  // namespace diverseevol::cuda
