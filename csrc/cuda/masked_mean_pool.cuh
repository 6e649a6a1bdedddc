// The sum of one row's tokens at a thread's columns, which masked_mean_pool and pool_min_sqdist share.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace diverseevol::cuda {

constexpr int kPoolThreads = 128;
constexpr int kGroup = 8;      // tokens that are summed as a tree
constexpr int kListed = 1024;  // tokens per list, eight per thread

// The next unmasked tokens of a row, ascending.
struct TokenList {
  int tokens[kListed + kGroup];  // begins with the previous list's incomplete group
  int counts[kPoolThreads / 32];
};

// The tokens of one row.
template <class T>
struct RowTokens {
  const T* first;
  int64_t stride;
  int length;
  const uint8_t* mask;  // null: no token is masked

  __device__ RowTokens(const MaskedMeanPool& call, int64_t row) : stride(call.hidden_stride_token), mask(nullptr) {
    const T* hidden = static_cast<const T*>(call.hidden);
    if (call.cu_seqlens != nullptr) {
      first = hidden + call.cu_seqlens[row] * stride;
      length = static_cast<int>(call.cu_seqlens[row + 1] - call.cu_seqlens[row]);
    } else {
      first = hidden + row * call.hidden_stride_batch;
      length = static_cast<int>(call.tokens);
      mask = call.mask + row * call.tokens;
    }
  }
};

// Appends the unmasked tokens in [start, start + kListed) to the `pending` listed ones. All threads of the block call
// it; returns the new length of the list.
__device__ inline int list_tokens(const uint8_t* mask, int start, int length, int pending, TokenList& list) {
  constexpr int kEach = kListed / kPoolThreads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int begin = start + thread * kEach;
  unsigned unmasked = 0;  // bit i: token begin + i
  for (int i = 0; i < kEach; ++i) {
    if (begin + i < length && mask[begin + i] != 0) unmasked |= 1U << i;
  }
  const int count = __popc(unmasked);
  int upto = count;  // inclusive prefix sum over the lanes
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int before = shuffle_up(upto, lanes);
    if (lane >= lanes) upto += before;
  }
  if (lane == 31) list.counts[warp] = upto;
  __syncthreads();
  int next = pending + upto - count, total = pending;
  for (int w = 0; w < kPoolThreads / 32; ++w) {
    if (w < warp) next += list.counts[w];
    total += list.counts[w];
  }
  for (int i = 0; i < kEach; ++i) {
    if ((unmasked >> i) & 1U) list.tokens[next++] = begin + i;
  }
  __syncthreads();
  return total;
}

// kVec columns of a row's sum, added in the order that ops.h defines.
template <class T, int kVec>
struct Columns {
  float sums[kVec];
  int64_t count = 0;  // number of tokens added

  __device__ static void load(const T* from, float (&values)[kVec]) {
    if constexpr (kVec == 1) {
      values[0] = to_float(*from);
    } else {
      const Chunk<T> chunk = *reinterpret_cast<const Chunk<T>*>(from);
#pragma unroll
      for (int v = 0; v < kVec; ++v) values[v] = to_float(chunk.values[v]);
    }
  }

  // token(i) points to the first of the thread's columns of the group's token i.
  template <class Token>
  __device__ void add_group(const Token& token) {
    float values[kGroup][kVec];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) load(token(i), values[i]);
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      const float first = (values[0][v] + values[1][v]) + (values[2][v] + values[3][v]);
      const float second = (values[4][v] + values[5][v]) + (values[6][v] + values[7][v]);
      sums[v] += first + second;
    }
    count += kGroup;
  }

  __device__ void add_one(const T* token) {
    float values[kVec];
    load(token, values);
#pragma unroll
    for (int v = 0; v < kVec; ++v) sums[v] += values[v];
    ++count;
  }
};

// The sum of a row's tokens at columns [column, column + kVec), including the prefix. All threads of the block call it;
// those beyond the last column (inside is false) only help to list the tokens.
template <class T, int kVec>
__device__ Columns<T, kVec> sum_of_tokens(const MaskedMeanPool& call, int64_t row, int64_t column, bool inside,
                                          TokenList& list) {
  const RowTokens<T> tokens(call, row);
  Columns<T, kVec> columns;
#pragma unroll
  for (int v = 0; v < kVec; ++v)
    columns.sums[v] = call.prefix_sum != nullptr && inside ? call.prefix_sum[column + v] : 0.0F;
  const T* first = tokens.first + column;
  if (tokens.mask == nullptr) {
    int t = 0;
    if (!inside) {
      columns.count = tokens.length;
      return columns;
    }
    for (; t + kGroup <= tokens.length; t += kGroup) {
      columns.add_group([&](int i) { return first + (t + i) * tokens.stride; });
    }
    for (; t < tokens.length; ++t) columns.add_one(first + t * tokens.stride);
    return columns;
  }
  int pending = 0;
  for (int start = 0; start < tokens.length; start += kListed) {
    pending = list_tokens(tokens.mask, start, tokens.length, pending, list);
    const int whole = pending / kGroup * kGroup;
    for (int t = 0; t < whole && inside; t += kGroup) {
      columns.add_group([&](int i) { return first + list.tokens[t + i] * tokens.stride; });
    }
    if (!inside) columns.count += whole;
    pending -= whole;
    const int carried = static_cast<int>(threadIdx.x) < pending ? list.tokens[whole + threadIdx.x] : 0;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < pending) list.tokens[threadIdx.x] = carried;
    __syncthreads();
  }
  for (int t = 0; t < pending && inside; ++t) columns.add_one(first + list.tokens[t] * tokens.stride);
  if (!inside) columns.count += pending;
  return columns;
}

// Whether all tokens are aligned to 16 bytes and consist of whole chunks.
template <class T>
bool tokens_in_chunks(const MaskedMeanPool& call) {
  return call.dim % Chunk<T>::kValues == 0 && in_chunks<T>(call.hidden, call.hidden_stride_token) &&
         (call.cu_seqlens != nullptr || in_chunks<T>(call.hidden, call.hidden_stride_batch));
}

}  // namespace diverseevol::cuda
