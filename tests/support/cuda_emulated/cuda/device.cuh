// csrc/cuda/device.cuh on a CPU. Asynchronous copies run as late as possible: in the wait for them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "grid.h"

using std::min;

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline void __syncthreads() {
  emulated::meet_block([](auto&) {});
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

namespace diverseevol::cuda {

// Lane l gets the value of lane source(l).
template <class T, class Source>
T shuffle(T value, const Source& source) {
  struct Lane {
    T in, out;
    Source source;
  } mine{value, value, source};
  emulated::meet_warp(&mine, [](auto& lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      Lane& one = *static_cast<Lane*>(lanes[static_cast<size_t>(lane)]);
      const int from = one.source(lane);
      one.out = from >= 0 && from < 32 ? static_cast<Lane*>(lanes[static_cast<size_t>(from)])->in : one.in;
    }
  });
  return mine.out;
}

template <class T>
T shuffle_xor(T value, int lanes) {
  return shuffle(value, [lanes](int lane) { return lane ^ lanes; });
}

template <class T>
T shuffle_up(T value, int lanes) {
  return shuffle(value, [lanes](int lane) { return lane - lanes; });
}

template <class T>
T shuffle_down(T value, int lanes) {
  return shuffle(value, [lanes](int lane) { return lane + lanes; });
}

template <class T>
T shuffle_from(T value, int from) {
  return shuffle(value, [from](int) { return from; });
}

inline unsigned ballot(bool value) {
  struct Lane {
    bool in;
    unsigned out;
  } mine{value, 0};
  emulated::meet_warp(&mine, [](auto& lanes) {
    unsigned all = 0;
    for (size_t lane = 0; lane < 32; ++lane) all |= static_cast<Lane*>(lanes[lane])->in ? 1U << lane : 0;
    for (void* lane : lanes) static_cast<Lane*>(lane)->out = all;
  });
  return mine.out;
}

inline void sync_warp() {
  emulated::meet_warp(nullptr, [](auto&) {});
}

inline void sync_grid() {
  emulated::meet_block([](auto&) { emulated::here->others->arrive_and_wait(); });
}

template <class T>
T* launch_shared() {
  return reinterpret_cast<T*>(emulated::here->shared);
}

template <class T, class Better>
void replace_if(T* place, T value, const Better& better) {
  std::atomic_ref<T> at(*place);
  T before = at.load();
  while (better(value, before) && !at.compare_exchange_weak(before, value)) {
  }
}

inline void lower_to(int64_t* place, int64_t value) {
  replace_if(place, value, [](int64_t a, int64_t b) { return static_cast<uint64_t>(a) < static_cast<uint64_t>(b); });
}

inline void lower_to(double* place, double value) {
  replace_if(place, value, [](double a, double b) { return bits_as<uint64_t>(a) < bits_as<uint64_t>(b); });
}

inline void lower_to(float* place, float value) {
  replace_if(place, value, [](float a, float b) { return bits_as<int32_t>(a) < bits_as<int32_t>(b); });
}

inline void raise_to(float* place, float value) {
  replace_if(place, value, [](float a, float b) { return bits_as<uint32_t>(a) > bits_as<uint32_t>(b); });
}

inline unsigned add_one(unsigned* place) { return std::atomic_ref<unsigned>(*place).fetch_add(1); }

template <class T>
T load_fresh(const T* place) {
  return std::atomic_ref<T>(*const_cast<T*>(place)).load();
}

inline double add(double a, double b) { return a + b; }
inline double subtract(double a, double b) { return a - b; }
inline double multiply(double a, double b) { return a * b; }

inline float float_above(double value) {
  const float rounded = static_cast<float>(value);
  return static_cast<double>(rounded) < value ? std::nextafterf(rounded, INFINITY) : rounded;
}

inline float half_to_float(uint16_t bits) { return static_cast<float>(bits_as<_Float16>(bits)); }

inline uint16_t float_to_half(float value) { return bits_as<uint16_t>(static_cast<_Float16>(value)); }

inline uint16_t float_to_bfloat(float value) {  // to nearest, ties to even
  const uint32_t bits = bits_as<uint32_t>(value);
  if (value != value) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline uint32_t floats_to_bfloats(float first, float second) {
  return float_to_bfloat(first) | static_cast<uint32_t>(float_to_bfloat(second)) << 16;
}

inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(static_cast<const char*>(place) - emulated::here->shared);
}

inline void copy_later(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulated::fail("an asynchronous copy that is not aligned to 16 bytes");
  }
  emulated::here->running->uncommitted.emplace_back([=] { std::memcpy(to, from, 16); });
}

inline void commit_copies() {
  emulated::Fibre& fibre = *emulated::here->running;
  fibre.groups.push_back(std::move(fibre.uncommitted));
  fibre.uncommitted.clear();
}

template <int kPending>
void await_copies() {
  auto& groups = emulated::here->running->groups;
  while (groups.size() > kPending) {
    for (const auto& copy : groups.front()) copy();
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  struct Lane {
    uint32_t (*out)[4];
    const char* row;
  } mine{&out, static_cast<const char*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulated::fail("a matrix row that is not aligned to 16 bytes");
  emulated::meet_warp(&mine, [](auto& lanes) {
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t matrix = 0; matrix < 4; ++matrix) {
        const char* from = static_cast<Lane*>(lanes[matrix * 8 + lane / 4])->row + lane % 4 * 4;
        std::memcpy(&(*static_cast<Lane*>(lanes[lane])->out)[matrix], from, 4);
      }
    }
  });
}

inline float bfloat(uint32_t pair, int which) { return bits_as<float>(which == 0 ? pair << 16 : pair & 0xFFFF0000U); }

inline float half(uint32_t pair, int which) { return half_to_float(static_cast<uint16_t>(pair >> (16 * which))); }

// PTX ISA, matrix fragments for mma.m16n8k16 with 16-bit types.
template <float (*kValue)(uint32_t, int)>
void multiply_fragments(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  struct Lane {
    float (*acc)[4];
    const uint32_t (*left)[4];
    uint32_t right[2];
  } mine{&acc, &left, {right0, right1}};
  emulated::meet_warp(&mine, [](auto& lanes) {
    float rows[16][16], others[8][16];
    for (size_t lane = 0; lane < 32; ++lane) {
      const Lane& one = *static_cast<Lane*>(lanes[lane]);
      for (size_t i = 0; i < 2; ++i) {
        const size_t column = lane % 4 * 2 + i;
        for (size_t r = 0; r < 4; ++r) {
          rows[lane / 4 + r % 2 * 8][column + r / 2 * 8] = kValue((*one.left)[r], static_cast<int>(i));
        }
        for (size_t r = 0; r < 2; ++r) others[lane / 4][column + r * 8] = kValue(one.right[r], static_cast<int>(i));
      }
    }
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        float& sum = (*static_cast<Lane*>(lanes[lane])->acc)[i];
        for (size_t k = 0; k < 16; ++k) sum += rows[lane / 4 + i / 2 * 8][k] * others[lane % 4 * 2 + i % 2][k];
      }
    }
  });
}

inline void multiply_bfloats(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  multiply_fragments<bfloat>(acc, left, right0, right1);
}

inline void multiply_halves(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  multiply_fragments<half>(acc, left, right0, right1);
}

}  // namespace diverseevol::cuda
