// The GPU instructions that the kernels use, one thin function each, for sm_80 and later; hopper.cuh has Hopper's own.
// tests/support/cuda_emulated replaces both files to run the kernels on a CPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace diverseevol::cuda {

constexpr unsigned kWarp = 0xFFFFFFFFU;  // mask of all lanes

template <class T>
__device__ T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(kWarp, value, lanes);
}

template <class T>
__device__ T shuffle_up(T value, int lanes) {
  return __shfl_up_sync(kWarp, value, static_cast<unsigned>(lanes));
}

template <class T>
__device__ T shuffle_down(T value, int lanes) {
  return __shfl_down_sync(kWarp, value, static_cast<unsigned>(lanes));
}

template <class T>
__device__ T shuffle_from(T value, int lane) {
  return __shfl_sync(kWarp, value, lane);
}

__device__ inline unsigned ballot(bool value) { return __ballot_sync(kWarp, value); }

__device__ inline void sync_warp() { __syncwarp(); }

__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }

// The dynamic shared memory of the launch.
template <class T>
__device__ T* launch_shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

__device__ inline void lower_to(int64_t* address, int64_t value) {  // -1 (none) is the largest unsigned value
  atomicMin(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

// Values from 0 to infinity are ordered like their bits.
__device__ inline void lower_to(double* address, double value) {
  atomicMin(reinterpret_cast<unsigned long long*>(address),
            static_cast<unsigned long long>(__double_as_longlong(value)));
}

// Floats from 0 to infinity are ordered like their bits as signed integers, and -infinity is below them.
__device__ inline void lower_to(float* address, float value) {
  atomicMin(reinterpret_cast<int*>(address), __float_as_int(value));
}

__device__ inline void raise_to(float* address, float value) {  // values >= 0; NaN is above all
  atomicMax(reinterpret_cast<unsigned*>(address), __float_as_uint(value));
}

__device__ inline unsigned add_one(unsigned* address) { return atomicAdd(address, 1U); }

// Loads from L2, because this multiprocessor's L1 may hold a value from before another block's write and fence.
template <class T>
__device__ T load_fresh(const T* address) {
  return __ldcg(address);
}

// Never contracted: a fused multiply-add rounds once where the specification rounds twice.
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double subtract(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double multiply(double a, double b) { return __dmul_rn(a, b); }

__device__ inline float float_above(double value) { return __double2float_ru(value); }

__device__ inline float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

__device__ inline uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }

__device__ inline uint16_t float_to_bfloat(float value) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(both) : "f"(value));
  return static_cast<uint16_t>(both);
}

// `first` is in the lower half of the result.
__device__ inline uint32_t floats_to_bfloats(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

__device__ inline uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// Copies 16 bytes asynchronously from global to shared memory, both aligned to 16; complete after await_copies.
__device__ inline void copy_later(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Commits the thread's copies since the last commit as a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of the thread's groups are in flight.
template <int kPending>
__device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements; lane l passes the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// acc [16, 8] += left [16, 16] . right [8, 16]^T, with the fragments of mma.m16n8k16 in the PTX ISA.
__device__ inline void multiply_bfloats(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

__device__ inline void multiply_halves(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

}  // namespace diverseevol::cuda
