// Parts of the fused encoders: sizes, the stream of weights, products and norms of a warp's rows.
//
// A block holds kTokens tokens of whole pixels; a warp owns kTiles m-tiles of 16 rows for the whole
// time. Sums are in its registers as C tiles `c[tile][n8][4]` (float32); two neighbouring ones pack
// into an A fragment of the next product without a shuffle. Fragments of a whole row would not fit
// beside the sums, so they wait in shared memory, every lane's own words (class Rows). Weights come
// from L2 through shared memory in chunks of D / 4 B fragments, two buffers, asynchronously; every
// warp reads every chunk.
//
// Chunk: pairs of B fragments of 512 bytes, 16 a lane: both words of n8 tile 2i, then of 2i + 1.
//   "wide": 4 n8 tiles over all of D, [k16 D/16][pair 2];  "deep": 2 k16 of all D outputs,
//   [k16 2][pair D/16]. A layer is, per head, wide chunks of q | k | v (K padded to 8s), then deep
//   ones of the output projection (k: heads, each padded), then F / 32 times one wide, one deep.
#pragma once

#include "device.cuh"
#include "warp.cuh"

namespace tessera::cuda {

template <int kD, int kH, int kF, int kM, int kW, Element kE>
struct Sizes {
  static constexpr Element E = kE;
  static constexpr int D = kD, H = kH, F = kF, K = kD / kH;
  static constexpr int kTiles = kM, kWarps = kW, kThreads = 32 * kW;
  static constexpr int kBlocks = kW <= 4 ? 2 : 1;  // of a multiprocessor: 255 registers a thread
  static constexpr int kRows = 16 * kM, kTokens = kRows * kW;  // of a warp, of a block
  static constexpr int kSteps = kD / 16, kColumns = kD / 8;    // k16 and n8 of the width
  static constexpr int kHead = (K + 7) / 8;                    // n8 tiles of a head
  static constexpr int kMixed = kH * kHead;                    // of all heads
  static constexpr int kProject = (3 * kHead + 3) / 4;         // chunks of a head's q, k, v
  static constexpr int kOutput = (kMixed / 2 + 1) / 2, kInput = (kSteps + 1) / 2;
  static constexpr int kLayerChunks = kH * kProject + kOutput + kF / 16;
  static constexpr int kEmbedChunks = 1 + kInput;
  static constexpr int kChunkBytes = kD / 4 * 256;
  // Rows of k and v: an odd number of 16 bytes, so that 8 rows of ldmatrix meet no bank twice.
  static constexpr int kHeadStride = 8 * (kHead | 1);
  static constexpr int kHeadBytes = 2 * kTokens * kHeadStride * 2;
  // k16 steps of a row that wait in shared memory: of x, or of all heads' mixed values.
  static constexpr int kSlots = kSteps > kMixed / 2 ? kSteps : kMixed / 2;
  static constexpr int kRowBytes = kTokens * kSlots * 32;
  static constexpr int kSharedBytes = kRowBytes + kHeadBytes + 2 * kChunkBytes + kTokens * 12;
  // Offsets in the parameters of a layer, and of the embedding before the first layer.
  static constexpr int kBiasQkv = 0, kBiasOut = 3 * kMixed * 8, kNorm1 = kBiasOut + kD;
  static constexpr int kBias1 = kNorm1 + 2 * kD, kBias2 = kBias1 + kF, kNorm2 = kBias2 + kD;
  static constexpr int kLayerParameters = kNorm2 + 2 * kD;
  static constexpr int kMean = 0, kStd = 32, kEmbed1 = 64, kEmbed2 = 64 + kD;
  static constexpr int kQuery = 64 + 2 * kD, kQueryBias = 64 + 3 * kD;
  static constexpr int kEmbedParameters = kQueryBias + 16;

  static_assert(kD % 16 == 0 && kD % kH == 0 && kF % 32 == 0 && kMixed % 2 == 0);
  static_assert(kTokens <= 65535);
};

// Dynamic shared memory of a block.
template <class S>
struct Shared {
  unsigned char* rows;      // A fragments (class Rows); in the end the states, row-major
  uint16_t *keys, *values;  // [tokens][kHeadStride] of one head
  unsigned char* chunks;    // two of weights
  float* bias;              // [tokens] log2 of the multiplicity
  float* score;             // [tokens] of the pooling
  uint16_t *first, *last;   // [tokens] rows of the token's pixel

  __device__ __forceinline__ explicit Shared(unsigned char* base)
      : rows(base),
        keys(reinterpret_cast<uint16_t*>(base + S::kRowBytes)),
        values(keys + S::kTokens * S::kHeadStride),
        chunks(base + S::kRowBytes + S::kHeadBytes),
        bias(reinterpret_cast<float*>(chunks + 2 * S::kChunkBytes)),
        score(bias + S::kTokens),
        first(reinterpret_cast<uint16_t*>(score + S::kTokens)),
        last(first + S::kTokens) {}
};

// Which rows a thread works on.
template <class S>
struct Place {
  int lane, warp, g, t, row;  // row: first of the warp, in the block
  int tokens;                 // of the block

  __device__ __forceinline__ explicit Place(int tokens)
      : lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        g(lane / 4),
        t(lane % 4),
        row(warp * S::kRows),
        tokens(tokens) {}
};

// A warp's rows in shared memory as A fragments, 16 bytes a lane. A lane reads what it wrote
// itself, so no barrier is needed, and no two lanes meet in a bank.
template <class S>
class Rows {
 public:
  __device__ __forceinline__ Rows(const Shared<S>& shared, const Place<S>& at)
      : at_(reinterpret_cast<uint4*>(shared.rows) + at.warp * (S::kTiles * S::kSlots * 32) +
            at.lane) {}

  __device__ __forceinline__ void store(int tile, int step, const uint32_t (&a)[4]) const {
    at_[(tile * S::kSlots + step) * 32] = make_uint4(a[0], a[1], a[2], a[3]);
  }
  __device__ __forceinline__ void load(int tile, int step, uint32_t (&a)[4]) const {
    const uint4 words = at_[(tile * S::kSlots + step) * 32];
    a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
  }

 private:
  uint4* at_;
};

// The chunks, in their order. The next one is on its way while one is read; the last is followed by
// one more, which nobody reads.
template <class S>
class Weights {
 public:
  __device__ __forceinline__ Weights(const void* weights, unsigned char* buffers)
      : weights_(static_cast<const unsigned char*>(weights)), buffers_(buffers) {
    fetch();
  }

  // The next chunk, as this lane reads it. All threads of the block call; it is a barrier, too:
  // what was written to shared memory before can be read after.
  __device__ __forceinline__ const uint4* take() {
    wait_copies<0>();
    __syncthreads();  // the chunk is whole, and the other buffer's readers are done
    const unsigned char* chunk = buffers_ + ((next_ & 1) ^ 1) * S::kChunkBytes;
    fetch();
    return reinterpret_cast<const uint4*>(chunk) + threadIdx.x % 32;
  }

 private:
  __device__ __forceinline__ void fetch() {
    const unsigned char* from = weights_ + int64_t(next_) * S::kChunkBytes;
    unsigned char* to = buffers_ + (next_ & 1) * S::kChunkBytes;
    for (int i = threadIdx.x * 16; i < S::kChunkBytes; i += S::kThreads * 16)
      copy_async(to + i, from + i);
    commit_copies();
    ++next_;
  }

  const unsigned char* weights_;
  unsigned char* buffers_;
  int next_ = 0;
};

// c[tile][n8][4] = bias[8 n8 + column], the same for every row.
template <int kTiles, int kColumns>
__device__ __forceinline__ void fill(float (&c)[kTiles][kColumns][4], const float* bias, int t) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const float2 b = *reinterpret_cast<const float2*>(bias + 8 * j + 2 * t);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      c[m][j][0] = c[m][j][2] = b.x;
      c[m][j][1] = c[m][j][3] = b.y;
    }
  }
}

// c += a b for one k16 step of a deep chunk.
template <class S>
__device__ __forceinline__ void multiply_deep(float (&c)[S::kTiles][S::kColumns][4],
                                              const uint32_t (&a)[S::kTiles][4],
                                              const uint4* chunk) {
#pragma unroll
  for (int j = 0; j < S::kColumns; j += 2) {
    const uint4 b = chunk[j / 2 * 32];
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      mma16<S::E>(c[m][j], a[m], b.x, b.y);
      mma16<S::E>(c[m][j + 1], a[m], b.z, b.w);
    }
  }
}

// c += rows b for a matrix of kSteps k16 steps, in deep chunks.
template <class S, int kSteps>
__device__ __forceinline__ void multiply_rows(Weights<S>& weights, const Rows<S>& rows,
                                              float (&c)[S::kTiles][S::kColumns][4]) {
#pragma unroll 1
  for (int step = 0; step < kSteps; step += 2) {
    const uint4* b = weights.take();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (step + k >= kSteps) break;
      uint32_t a[S::kTiles][4];
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) rows.load(m, step + k, a[m]);
      multiply_deep<S>(c, a, b + k * (S::kColumns / 2 * 32));
    }
  }
}

// The A fragment of two neighbouring C tiles.
template <Element E>
__device__ __forceinline__ void pack_tiles(uint32_t (&a)[4], const float* left,
                                           const float* right) {
  a[0] = pack<E>(left[0], left[1]);
  a[1] = pack<E>(left[2], left[3]);
  a[2] = pack<E>(right[0], right[1]);
  a[3] = pack<E>(right[2], right[3]);
}

template <class S>
__device__ __forceinline__ void store_all(const Rows<S>& rows,
                                          const float (&c)[S::kTiles][S::kColumns][4]) {
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      uint32_t a[4];
      pack_tiles<S::E>(a, c[m][2 * k], c[m][2 * k + 1]);
      rows.store(m, k, a);
    }
}

template <class S>
__device__ __forceinline__ void relu(float (&c)[S::kTiles][S::kColumns][4]) {
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int j = 0; j < S::kColumns; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][j][i] = fmaxf(c[m][j][i], 0.0f);
}

// Called before the loads of n8 tile j: some stay below this point. Hoisted together, a row's
// parameters take the registers of its sums. The places are those where ptxas 13.0 spills least,
// found by trying (tests/backends/cuda/test_cuda_encoder.py); results do not depend on them.
template <class S>
__device__ __forceinline__ void hold_loads(int j) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
  constexpr bool kHopper = true;
#else
  constexpr bool kHopper = false;
#endif
  if constexpr (S::kTiles == 1) {
    if (j % (kHopper ? 4 : 8) == 0) __threadfence_block();
  } else if (kHopper ? j == S::kColumns / 2 : j % 4 == 0) {
    __syncwarp();
  }
}

// Rows of c become (c - mean) / sqrt(var + 1e-5) weight + bias; `norm` is weight, then bias.
template <class S>
__device__ __forceinline__ void layer_norm(float (&c)[S::kTiles][S::kColumns][4], const float* norm,
                                           int t) {
  float scale[S::kTiles][2];
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m) {
    float sum[2] = {0.0f, 0.0f}, square[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < S::kColumns; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i / 2] += c[m][j][i];
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = quad_sum(sum[r]) * (1.0f / S::D);
#pragma unroll
    for (int j = 0; j < S::kColumns; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c[m][j][i] -= sum[i / 2];
        square[i / 2] = fmaf(c[m][j][i], c[m][j][i], square[i / 2]);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) scale[m][r] = rsqrtf(fmaf(quad_sum(square[r]), 1.0f / S::D, 1e-5f));
  }
#pragma unroll
  for (int j = 0; j < S::kColumns; ++j) {
    hold_loads<S>(j);
    const float2 w = *reinterpret_cast<const float2*>(norm + 8 * j + 2 * t);
    const float2 b = *reinterpret_cast<const float2*>(norm + S::D + 8 * j + 2 * t);
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        c[m][j][i] = fmaf(c[m][j][i] * scale[m][i / 2], i % 2 ? w.y : w.x, i % 2 ? b.y : b.x);
  }
}

}  // namespace tessera::cuda
