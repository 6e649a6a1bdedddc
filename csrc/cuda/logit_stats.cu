// logit_stats: one block per tile of tokens and span of the vocabulary. It computes a tile of logits at a time in
// shared memory and reduces them to four numbers per token; a second kernel merges the spans in order.
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/simt_tile.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int64_t kSpan =
    1024;                   // words; fixed, so that a token's result does not depend on how many tokens come with it
constexpr int kStages = 3;  // steps in flight or being multiplied

// Statistics of logits z: the two largest, the sum of exp(z - largest), and the sum of exp(z - largest) (z - largest).
struct Stats {
  float largest, second, sum, weighted;

  __device__ static Stats none() {
    const float lowest = -__uint_as_float(0x7F800000U);
    return {lowest, lowest, 0.0F, 0.0F};
  }

  // Makes the sums relative to `to`, a maximum that is at least `largest`.
  __device__ void rescale(float to) {
    if (sum > 0.0F) {
      const float shift = largest - to, factor = expf(shift);
      weighted = factor * (weighted + sum * shift);
      sum *= factor;
    }
    largest = to;
  }

  __device__ void merge(Stats other) {
    const float most = fmaxf(largest, other.largest);
    second = fmaxf(fmaxf(second, other.second), fminf(largest, other.largest));
    if (other.sum == 0.0F) return;
    rescale(most);
    other.rescale(most);
    sum += other.sum;
    weighted += other.weighted;
  }

  // Merges `count` consecutive logits.
  __device__ void merge(const float* logits, int count) {
    if (count <= 0) return;
    float one = logits[0], two = -__uint_as_float(0x7F800000U);
    for (int i = 1; i < count; ++i) {
      two = fmaxf(two, fminf(one, logits[i]));
      one = fmaxf(one, logits[i]);
    }
    Stats tile{one, two, 0.0F, 0.0F};
    for (int i = 0; i < count; ++i) {
      const float shift = logits[i] - one, weight = expf(shift);
      tile.sum += weight;
      tile.weighted += weight * shift;
    }
    merge(tile);
  }
};

// Computes tiles of logits from 16-bit values on the matrix units.
template <class T, bool kAligned>
struct MatrixTiles {
  static constexpr int kTokens = kTileRows, kWords = 64;
  static constexpr int kBlocks =
      kAligned ? 2 : 1;  // per multiprocessor at least; a higher minimum would spill registers
  static constexpr bool kHalf = std::is_same_v<T, Float16>;

  struct Steps {
    uint16_t tokens[kStages][kTokens * kTileStride];
    uint16_t words[kStages][kWords * kTileStride];
  };
  union Memory {
    Steps steps;
    float logits[kTokens * (kWords + 1)];  // valid after the last step
  };

  // All threads of the block call this.
  __device__ static void compute(const LogitStats& call, int64_t first_token, int64_t first_word, Memory& memory) {
    Steps& steps = memory.steps;
    const auto copy = [&](int64_t step) {
      const int64_t column = step * kDepth;
      if (column < call.dim) {
        copy_tile<kTokens, kDepth, kAligned>(
            static_cast<const uint16_t*>(call.hidden) + first_token * call.hidden_stride + column, call.hidden_stride,
            call.tokens - first_token, call.dim - column, steps.tokens[step % kStages]);
        copy_tile<kWords, kDepth, kAligned>(
            static_cast<const uint16_t*>(call.weight) + first_word * call.weight_stride + column, call.weight_stride,
            call.vocabulary - first_word, call.dim - column, steps.words[step % kStages]);
      }
      commit_copies();
    };
    Products<kWords> products;
    products.clear();
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) copy(step);
#pragma unroll 1
    for (int64_t step = 0; step * kDepth < call.dim; ++step) {
      await_copies<kStages - 2>();
      __syncthreads();
      copy(step + kStages - 1);
      products.template add<kHalf, kDepth>(steps.tokens[step % kStages], steps.words[step % kStages]);
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < Products<kWords>::kEights; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          memory.logits[Products<kWords>::row_of(m, i) * (kWords + 1) + Products<kWords>::column_of(n, i)] =
              products.values[m][n][i];
        }
      }
    }
    __syncthreads();
  }
};

// Computes tiles of logits from float32 values.
struct FloatTiles {
  static constexpr int kTokens = kSimtSide, kWords = kSimtSide, kBlocks = 2;

  struct Memory {
    SimtMemory sides;
    float logits[kTokens * (kWords + 1)];
  };

  __device__ static void compute(const LogitStats& call, int64_t first_token, int64_t first_word, Memory& memory) {
    float sums[kSimtEach][kSimtEach];
    simt_sums({static_cast<const float*>(call.hidden), call.hidden_stride, first_token, call.tokens},
              {static_cast<const float*>(call.weight), call.weight_stride, first_word, call.vocabulary}, call.dim,
              memory.sides, sums, [](float sum, float token, float word) { return sum + token * word; });
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSimtEach; ++i) {
#pragma unroll
      for (int j = 0; j < kSimtEach; ++j)
        memory.logits[(simt_row() + i) * (kWords + 1) + simt_other() + j] = sums[i][j];
    }
    __syncthreads();
  }
};

// stats: [spans, tokens].
template <class Tiles>
__global__ void __launch_bounds__(kTileThreads, Tiles::kBlocks)
    logit_stats_kernel(LogitStats call, int64_t token_blocks, Stats* stats) {
  constexpr int kPerToken = kTileThreads / Tiles::kTokens, kEachThread = Tiles::kWords / kPerToken;
  typename Tiles::Memory& memory = *launch_shared<typename Tiles::Memory>();
  const int64_t first_token = blockIdx.x % token_blocks * Tiles::kTokens, span = blockIdx.x / token_blocks;
  const int64_t beyond = min((span + 1) * kSpan, call.vocabulary);
  const int row = static_cast<int>(threadIdx.x) / kPerToken, part = static_cast<int>(threadIdx.x) % kPerToken;
  const bool inside = first_token + row < call.tokens;
  Stats all = Stats::none();
  for (int64_t word = span * kSpan; word < beyond; word += Tiles::kWords) {
    Tiles::compute(call, first_token, word, memory);
    float* mine = memory.logits + row * (Tiles::kWords + 1) + part * kEachThread;
    const int64_t first = word + part * kEachThread, remaining = beyond - first;
    const int count = remaining < kEachThread ? static_cast<int>(remaining) : kEachThread;
    for (int i = 0; i < count && call.bias != nullptr; ++i) mine[i] += call.bias[first + i];
    all.merge(mine, count);
    __syncthreads();
  }
#pragma unroll
  for (int lanes = 1; lanes < kPerToken; lanes *= 2) {
    const Stats other{shuffle_xor(all.largest, lanes), shuffle_xor(all.second, lanes), shuffle_xor(all.sum, lanes),
                      shuffle_xor(all.weighted, lanes)};
    all.merge(other);
  }
  if (inside && part == 0) stats[span * call.tokens + first_token + row] = all;
}

// One thread per token.
__global__ void __launch_bounds__(256) merge_spans_kernel(LogitStats call, int64_t spans, const Stats* stats) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (token >= call.tokens) return;
  Stats all = Stats::none();
  for (int64_t span = 0; span < spans; ++span) all.merge(stats[span * call.tokens + token]);
  call.largest[token] = all.largest;
  call.margin[token] = all.largest - all.second;
  const float entropy = logf(all.sum) - all.weighted / all.sum;
  call.entropy[token] = entropy;
  // The entropy is NaN if a logit or its difference from the largest is not finite: 0 * -infinity, infinity - infinity.
  if (!is_finite(entropy)) lower_to(call.first_bad_token, token);
}

template <class Tiles>
void run(const LogitStats& call) {
  static_assert(sizeof(typename Tiles::Memory) <= kLeastSharedMemory);
  Stats* stats = static_cast<Stats*>(call.target.scratch);
  const int64_t token_blocks = blocks_of(call.tokens, Tiles::kTokens), spans = blocks_of(call.vocabulary, kSpan);
  launch(logit_stats_kernel<Tiles>, call.target,
         {token_blocks * spans, kTileThreads, static_cast<int64_t>(sizeof(typename Tiles::Memory))}, call, token_blocks,
         stats);
  launch(merge_spans_kernel, call.target, {blocks_of(call.tokens, 256), 256, 0}, call, spans,
         static_cast<const Stats*>(stats));
}

template <class T>
void run_on_matrix_units(const LogitStats& call) {
  if (in_chunks<T>(call.hidden, call.hidden_stride) && in_chunks<T>(call.weight, call.weight_stride)) {
    run<MatrixTiles<T, true>>(call);
  } else {
    run<MatrixTiles<T, false>>(call);
  }
}

}  // namespace

int64_t scratch_bytes(const LogitStats& call) {
  return blocks_of(call.vocabulary, kSpan) * call.tokens * static_cast<int64_t>(sizeof(Stats));
}

Status logit_stats(const LogitStats& call) {
  const Device device(call.target);
  fill(call.target, call.first_bad_token, 0xFF, sizeof(int64_t));
  if (call.tokens == 0) return Status::kOk;
  switch (call.dtype) {
    case DType::kFloat32:
      run<FloatTiles>(call);
      return Status::kOk;
    case DType::kBFloat16:
      run_on_matrix_units<BFloat16>(call);
      return Status::kOk;
    case DType::kFloat16:
      run_on_matrix_units<Float16>(call);
      return Status::kOk;
  }
  return Status::kUnknownDType;
}

}  // namespace diverseevol::cuda
