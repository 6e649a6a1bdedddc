// The per-ISA, per-dtype row functions that dispatch.cpp chooses from. Declarations only.
#pragma once

#include <cstdint>

namespace diverseevol {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
using PoolRow = void (*)(const T* hidden, int64_t stride_token, const int64_t* kept, int64_t count, int64_t dim,
                         float* out);

#define DEF_DECLARE_POOL_ROW(isa)                                                                  \
  void masked_mean_pool_##isa(const float*, int64_t, const int64_t*, int64_t, int64_t, float*);    \
  void masked_mean_pool_##isa(const BFloat16*, int64_t, const int64_t*, int64_t, int64_t, float*); \
  void masked_mean_pool_##isa(const Float16*, int64_t, const int64_t*, int64_t, int64_t, float*);

DEF_DECLARE_POOL_ROW(scalar)
DEF_DECLARE_POOL_ROW(avx2)
DEF_DECLARE_POOL_ROW(avx512)
#undef DEF_DECLARE_POOL_ROW

// Defines the three for one ISA, in a file that has included masked_mean_pool.h and defined `Vec`.
#define DEF_DEFINE_POOL_ROW(isa, T)                                                                                   \
  void masked_mean_pool_##isa(const T* hidden, int64_t stride_token, const int64_t* kept, int64_t count, int64_t dim, \
                              float* out) {                                                                           \
    pool_row<Vec>(hidden, stride_token, kept, count, dim, out);                                                       \
  }
#define DEF_DEFINE_POOL_ROWS(isa)    \
  DEF_DEFINE_POOL_ROW(isa, float)    \
  DEF_DEFINE_POOL_ROW(isa, BFloat16) \
  DEF_DEFINE_POOL_ROW(isa, Float16)

}  // namespace diverseevol
