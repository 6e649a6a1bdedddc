// A grid of CUDA threads on a CPU, to run csrc/cuda without a GPU: every thread of a block is a fibre, and every block
// of a cooperative launch is a system thread. Fibres switch where CUDA threads wait for one another, in random order,
// and some warps lag far behind, so that a missing barrier gives wrong results. A deadlock aborts the program.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace emulated {

struct Index {
  unsigned x = 0;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

// A barrier of some threads, each of which passes a pointer; the last thread to arrive acts on all the pointers.
struct Meeting {
  explicit Meeting(int members) : brought(static_cast<size_t>(members)) {}
  std::vector<void*> brought;
  const void* purpose = nullptr;
  int arrived = 0;
  uint64_t times = 0;
};

struct Block;

struct Fibre {
  ucontext_t context;  // for the first switch; later ones use longjmp, which needs no system call
  jmp_buf place;
  bool begun = false;
  unsigned number = 0;
  bool done = false;
  std::function<bool()> ready;                             // condition that it waits for; empty: runnable
  std::vector<std::function<void()>> uncommitted;          // asynchronous copies not yet in a group
  std::vector<std::vector<std::function<void()>>> groups;  // committed groups of copies
};

constexpr size_t kStack = 96 * 1024;
constexpr size_t kSharedMemory = 227 * 1024;

struct Block {
  Index block, grid, threads;
  std::vector<Fibre> fibres;
  Fibre* running = nullptr;
  jmp_buf scheduler;
  Meeting all;
  std::vector<Meeting> warps, groups;
  std::vector<std::vector<std::vector<std::function<void()>>>> products;  // per warpgroup: groups of products
  std::unique_ptr<char[]> memory;
  char* shared;
  std::barrier<>* others;
  bool progress = false;
  std::function<void()> body;

  Block(Index number, Index blocks, unsigned count, std::barrier<>* cooperating, std::function<void()> run)
      : block(number),
        grid(blocks),
        threads{count},
        fibres(count),
        all(static_cast<int>(count)),
        warps(count / 32, Meeting(32)),
        groups((count + 127) / 128, Meeting(128)),
        products((count + 127) / 128),
        memory(new char[kSharedMemory + 1024]),
        others(cooperating),
        body(std::move(run)) {
    if (count % 32 != 0) fail("a block of incomplete warps");
    shared = memory.get() + (1024 - reinterpret_cast<uintptr_t>(memory.get()) % 1024) % 1024;
    std::memset(shared, 0xFF, kSharedMemory);  // NaN in every float type
  }

  void run();
};

inline thread_local Block* here = nullptr;

inline void begin_fibre() {
  here->body();
  here->running->done = true;
  here->progress = true;
  _longjmp(here->scheduler, 1);
}

// Switches to other fibres until ready() is true.
[[gnu::noinline]] inline void wait_for(std::function<bool()> ready) {
  here->running->ready = std::move(ready);
  if (_setjmp(here->running->place) == 0) _longjmp(here->scheduler, 1);
}

[[gnu::noinline]] inline void turn_to(Fibre& fibre) {
  here->running = &fibre;
  if (_setjmp(here->scheduler) != 0) return;
  if (fibre.begun) _longjmp(fibre.place, 1);
  fibre.begun = true;
  setcontext(&fibre.context);
}

inline void Block::run() {
  here = this;
  static thread_local std::vector<std::unique_ptr<char[]>> stacks;  // reused by later launches
  static thread_local std::mt19937 random(1);
  constexpr int kLag = 32;  // a lazy warp runs in one of kLag rounds on average
  std::vector<size_t> order(fibres.size());
  std::vector<bool> lazy(warps.size());
  for (size_t w = 0; w < lazy.size(); ++w) lazy[w] = random() % 2 == 0;
  for (size_t f = 0; f < fibres.size(); ++f) {
    order[f] = f;
    if (stacks.size() <= f) stacks.emplace_back(new char[kStack]);
    getcontext(&fibres[f].context);
    fibres[f].number = static_cast<unsigned>(f);
    fibres[f].context.uc_stack.ss_sp = stacks[f].get();
    fibres[f].context.uc_stack.ss_size = kStack;
    fibres[f].context.uc_link = nullptr;
    makecontext(&fibres[f].context, begin_fibre, 0);
  }
  int idle = 0;
  for (bool left = true; left;) {
    std::shuffle(order.begin(), order.end(), random);
    left = progress = false;
    const bool everybody = random() % kLag == 0;
    for (const size_t f : order) {
      if (fibres[f].done) continue;
      left = true;
      if (lazy[f / 32] && !everybody) continue;
      if (fibres[f].ready && !fibres[f].ready()) continue;
      fibres[f].ready = nullptr;
      turn_to(fibres[f]);
    }
    idle = progress ? 0 : idle + 1;
    if (left && idle > 100 * kLag) fail("deadlock");
  }
  here = nullptr;
}

// Waits at the meeting with the pointer `mine`; the last thread to arrive runs act(all pointers), then all continue.
template <class Act>
void meet(Meeting& meeting, size_t place, void* mine, const Act& act) {
  static const char purpose = 0;  // one address per Act
  if (meeting.arrived == 0) meeting.purpose = &purpose;
  if (meeting.purpose != &purpose) fail("threads of a warp or block execute different collective operations");
  meeting.brought[place] = mine;
  here->progress = true;
  if (++meeting.arrived == static_cast<int>(meeting.brought.size())) {
    act(meeting.brought);
    meeting.arrived = 0;
    ++meeting.times;
    return;
  }
  const uint64_t times = meeting.times;
  wait_for([&meeting, times] { return meeting.times != times; });
}

inline unsigned thread_number() { return here->running->number; }

template <class Act>
void meet_block(const Act& act) {
  meet(here->all, thread_number(), nullptr, act);
}

template <class Act>
void meet_warp(void* mine, const Act& act) {
  meet(here->warps[thread_number() / 32], thread_number() % 32, mine, act);
}

template <class Act>
void meet_group(void* mine, const Act& act) {
  meet(here->groups[thread_number() / 128], thread_number() % 128, mine, act);
}

inline void run_blocks(int64_t blocks, int threads, bool cooperative, const std::function<void()>& body) {
  const Index grid{static_cast<unsigned>(blocks)};
  if (!cooperative) {
    for (unsigned b = 0; b < grid.x; ++b) Block({b}, grid, static_cast<unsigned>(threads), nullptr, body).run();
    return;
  }
  std::barrier<> together(blocks);
  std::vector<std::thread> running;
  for (unsigned b = 0; b < grid.x; ++b) {
    running.emplace_back([&, b] { Block({b}, grid, static_cast<unsigned>(threads), &together, body).run(); });
  }
  for (std::thread& one : running) one.join();
}

}  // namespace emulated

#define DEF_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define threadIdx (emulated::Index{emulated::thread_number()})
#define blockIdx (emulated::here->block)
#define blockDim (emulated::here->threads)
#define gridDim (emulated::here->grid)
