// csrc/cuda/hopper.cuh on a CPU. A box is copied at once; products are computed as late as possible, in the wait for
// them, from the contents that shared memory has then.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/device.cuh"
#include "cuda/launch.cuh"

namespace diverseevol::cuda {

constexpr int kBoxColumns = 64;

struct TensorMap {
  const uint16_t* data;
  int64_t rows, columns, stride;
  int box_rows;
};

inline TensorMap tensor_map(const void* data, bool, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || stride % 8 != 0) throw std::runtime_error("tensor_map: alignment");
  if (stride < columns) throw std::runtime_error("tensor_map: a stride below the width");
  return {static_cast<const uint16_t*>(data), rows, columns, stride, box_rows};
}

struct CopyBarrier {
  int16_t expected, left;
  int32_t bytes : 31;
  uint32_t phase : 1;

  void init(int count) {
    expected = left = static_cast<int16_t>(count);
    bytes = 0;
    phase = 0;
  }

  void arrive() {
    if (left <= 0) emulated::fail("more threads arrive at a barrier than it expects");
    --left;
    turn();
  }

  void arrive_announcing(int count) {
    bytes += count;
    arrive();
  }

  void come(int count) {
    bytes -= count;
    turn();
  }

  void wait(unsigned parity) {
    if (phase == parity) emulated::wait_for([this, parity] { return phase != parity; });
  }

 private:
  void turn() {
    if (left > 0 || bytes > 0) return;
    left = expected;
    phase ^= 1;
    emulated::here->progress = true;
  }
};
static_assert(sizeof(CopyBarrier) == 8);

inline void publish_barriers() {}
inline void prefetch_map(const TensorMap*) {}

// The address after the 128-byte swizzle, which permutes the eight 16-byte units of each 128-byte row.
inline char* swizzled(uint32_t address) { return emulated::here->shared + (address ^ (address >> 7 & 7) << 4); }

inline void copy_box(void* to, const TensorMap* map, int64_t row, int64_t column, CopyBarrier* barrier) {
  if (shared_address(to) % 1024 != 0) emulated::fail("a box that is not aligned to 1,024 bytes");
  for (int r = 0; r < map->box_rows; ++r) {
    for (int c = 0; c < kBoxColumns; ++c) {
      const bool inside = row + r < map->rows && column + c < map->columns;
      const uint16_t value = inside ? map->data[(row + r) * map->stride + column + c] : 0;
      std::memcpy(swizzled(shared_address(to) + static_cast<uint32_t>(r * 128 + c * 2)), &value, 2);
    }
  }
  barrier->come(map->box_rows * kBoxColumns * 2);
}

inline uint64_t operand(const void* place) { return shared_address(place); }

inline uint16_t element(uint64_t operand, int row, int column) {
  uint16_t value;
  std::memcpy(
      &value,
      swizzled(static_cast<uint32_t>(operand) + static_cast<uint32_t>(row / 8 * 1024 + row % 8 * 128 + column * 2)), 2);
  return value;
}

inline void before_products() {}

template <float (*kValue)(uint32_t, int)>
void multiply_tiles(float (&acc)[128], uint64_t left, uint64_t right, bool adding) {
  struct Thread {
    float* acc;
    uint64_t left, right;
    bool adding;
  } mine{acc, left, right, adding};
  emulated::meet_group(&mine, [](auto& threads) {
    std::vector<Thread> all;
    for (void* thread : threads) all.push_back(*static_cast<Thread*>(thread));
    const unsigned group = emulated::thread_number() / 128;
    auto& groups = emulated::here->products[group];
    if (groups.empty()) groups.emplace_back();
    groups.back().emplace_back([all] {
      static thread_local float rows[64][16], others[256][16];
      for (int k = 0; k < 16; ++k) {
        for (int r = 0; r < 64; ++r) rows[r][k] = kValue(element(all[0].left, r, k), 0);
        for (int r = 0; r < 256; ++r) others[r][k] = kValue(element(all[0].right, r, k), 0);
      }
      for (int thread = 0; thread < 128; ++thread) {
        for (int n = 0; n < 32; ++n) {
          for (int i = 0; i < 4; ++i) {
            const int row = thread / 32 * 16 + i / 2 * 8 + thread % 32 / 4, column = n * 8 + thread % 4 * 2 + i % 2;
            float& sum = all[static_cast<size_t>(thread)].acc[4 * n + i];
            if (!all[static_cast<size_t>(thread)].adding) sum = 0.0F;
            for (int k = 0; k < 16; ++k) sum += rows[row][k] * others[column][k];
          }
        }
      }
    });
  });
}

inline void multiply_bfloat_tiles(float (&acc)[128], uint64_t left, uint64_t right, bool adding) {
  multiply_tiles<bfloat>(acc, left, right, adding);
}

inline void multiply_half_tiles(float (&acc)[128], uint64_t left, uint64_t right, bool adding) {
  multiply_tiles<half>(acc, left, right, adding);
}

inline void commit_products() {
  emulated::meet_group(nullptr,
                       [](auto&) { emulated::here->products[emulated::thread_number() / 128].emplace_back(); });
}

template <int kPending>
void await_products() {
  emulated::meet_group(nullptr, [](auto&) {
    auto& groups = emulated::here->products[emulated::thread_number() / 128];
    while (groups.size() > kPending + 1) {  // the last group is not committed
      for (const auto& product : groups.front()) product();
      groups.erase(groups.begin());
    }
  });
}

inline void products_have_come(float (&)[128]) {}

template <int kRegisters>
void give_registers() {}

template <int kRegisters>
void take_registers() {}

}  // namespace diverseevol::cuda
