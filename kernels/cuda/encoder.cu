// Fused encoders of narrow models. Network: tokens to pooled vectors, all of a stream's layers in
// one kernel; activations never leave a multiprocessor. Layer: one transformer layer, x in, x out.
//   pooled[p] = sum over its tokens of softmax(query . x + log multiplicity) x
//   x_0 = W2 relu(W1 (bands - mean[orbit]) / (std[orbit] + 1e-9) + b1) + b2 + table[doy]
// Inputs, outputs and layouts: encoder.h, encoder.cuh. One block works on whole pixels of at most
// Sizes::kTokens tokens, chosen by `schedule_kernel`; the grid is a bound that the host knows, and
// blocks beyond the schedule exit. A pixel is pooled by one warp. The first product is
// done in two parts of each operand (high + low), which is float32 to 2^-16: bands and statistics
// are the only inputs whose rounding would be shared by all of a pixel's later values.
#include "encoder.h"
#include "encoder_layer.cuh"
#include "launch.h"

namespace tessera::cuda {
namespace {

constexpr int kSegment = 128;  // pixels that a warp of the scheduler packs into blocks
constexpr int kSchedulers = 32;

// Greedy in every segment by itself, so that segments run in parallel; at most half a block of each
// is lost. The order of blocks is that of arrival; no result depends on it.
__global__ void __launch_bounds__(32 * kSchedulers) schedule_kernel(ScheduleArguments a) {
  __shared__ int32_t offsets[kSchedulers][kSegment + 1];
  __shared__ int32_t starts[kSchedulers][kSegment + 1];
  __shared__ int32_t blocks;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) blocks = 0;
  __syncthreads();
  for (int pixel = warp * kSegment; pixel < a.pixels; pixel += kSchedulers * kSegment) {
    const int count = min(kSegment, a.pixels - pixel);
    for (int i = lane; i <= count; i += 32) offsets[warp][i] = a.offsets[pixel + i];
    __syncwarp();
    int n = 0, base = 0;
    if (lane == 0) {
      int start = 0;
      starts[warp][0] = 0;
      for (int i = 1; i < count; ++i)
        if (offsets[warp][i + 1] - offsets[warp][start] > a.tokens) starts[warp][++n] = start = i;
      starts[warp][++n] = count;
      base = atomicAdd(&blocks, n);
    }
    __syncwarp();  // `starts`: a shuffle orders no memory
    n = __shfl_sync(kAllLanes, n, 0);
    base = __shfl_sync(kAllLanes, base, 0);
    for (int i = lane; i < n; i += 32) {
      a.schedule[1 + 2 * (base + i)] = pixel + starts[warp][i];
      a.schedule[2 + 2 * (base + i)] = pixel + starts[warp][i + 1];
    }
    __syncwarp();
  }
  __syncthreads();
  if (threadIdx.x == 0) a.schedule[0] = blocks;
}

// This block's pixels, and where its tokens start.
struct Run {
  int first_pixel, last_pixel, token, tokens;

  __device__ __forceinline__ Run(const int32_t* schedule, const int32_t* offsets)
      : first_pixel(schedule[1 + 2 * blockIdx.x]),
        last_pixel(schedule[2 + 2 * blockIdx.x]),
        token(offsets[first_pixel]),
        tokens(offsets[last_pixel] - offsets[first_pixel]) {}
};

// What attention and pooling know of the tokens. No barrier: the next chunk of weights is one.
template <class S>
__device__ __forceinline__ void describe_tokens(const Shared<S>& shared, const Run& run,
                                                const int32_t* offsets,
                                                const uint16_t* multiplicity) {
  for (int p = run.first_pixel + int(threadIdx.x); p < run.last_pixel; p += S::kThreads) {
    const int first = offsets[p] - run.token, last = offsets[p + 1] - run.token;
    for (int row = first; row < last; ++row) {
      shared.first[row] = uint16_t(first);
      shared.last[row] = uint16_t(last);
    }
  }
  for (int row = threadIdx.x; row < run.tokens; row += S::kThreads)
    shared.bias[row] = log2f(float(multiplicity[run.token + row]));
}

// Bands of the block's tokens, standardised, to shared memory where k will be: [tokens][16], 0
// where there is no token or band.
template <class S>
__device__ __forceinline__ float* standardize_bands(const Shared<S>& shared,
                                                    const NetworkArguments& a, const Run& run) {
  static_assert(S::kTokens * 16 * 4 <= S::kHeadBytes);
  float* const staged = reinterpret_cast<float*>(shared.keys);
  const BandKind kind = BandKind(a.band_kind);
#pragma unroll 1
  for (int i = threadIdx.x; i < S::kTokens * 16; i += S::kThreads) {
    const int token = run.token + i / 16, column = i % 16;
    float value = 0.0f;
    if (i / 16 < run.tokens && column < a.channels) {
      const int64_t from = int64_t(token) * a.channels + column;
      if (kind == BandKind::kInt16)
        value = float(static_cast<const int16_t*>(a.bands)[from]);
      else if (kind == BandKind::kUint16)
        value = float(static_cast<const uint16_t*>(a.bands)[from]);
      else
        value = static_cast<const float*>(a.bands)[from];
      const float* const statistics = a.parameters + a.orbit[token] * 16 + column;
      if (kind != BandKind::kStandardized)
        value = (value - statistics[S::kMean]) / (statistics[S::kStd] + 1e-9f);
    }
    staged[i] = value;
  }
  return staged;
}

// x_0, to its place in shared memory.
template <class S>
__device__ __forceinline__ void embed_block(Weights<S>& weights, const Shared<S>& shared,
                                            const Place<S>& at, const Rows<S>& rows,
                                            const NetworkArguments& a, const Run& run) {
  const float* const parameters = a.parameters;
  const float* const staged = standardize_bands<S>(shared, a, run);
  float c[S::kTiles][S::kColumns][4];
  const uint4* b = weights.take();
  uint32_t high[S::kTiles][4], low[S::kTiles][4];
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = at.row + 16 * m + at.g + 8 * (i % 2), column = 2 * at.t + 8 * (i / 2);
      const float2 bands = *reinterpret_cast<const float2*>(staged + row * 16 + column);
      high[m][i] = pack<S::E>(bands.x, bands.y);
      low[m][i] = pack<S::E>(bands.x - unpack_low<S::E>(high[m][i]),
                             bands.y - unpack_high<S::E>(high[m][i]));
    }
  fill(c, parameters + S::kEmbed1, at.t);
#pragma unroll
  for (int j = 0; j < S::kColumns; j += 2) {
    const uint4 w = b[j / 2 * 32], rest = b[(S::kColumns / 2 + j / 2) * 32];
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      mma16<S::E>(c[m][j], high[m], w.x, w.y);
      mma16<S::E>(c[m][j], low[m], w.x, w.y);
      mma16<S::E>(c[m][j], high[m], rest.x, rest.y);
      mma16<S::E>(c[m][j + 1], high[m], w.z, w.w);
      mma16<S::E>(c[m][j + 1], low[m], w.z, w.w);
      mma16<S::E>(c[m][j + 1], high[m], rest.z, rest.w);
    }
  }
  relu<S>(c);
  store_all<S>(rows, c);
  fill(c, parameters + S::kEmbed2, at.t);
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = at.row + 16 * m + at.g + 8 * r;
      if (row >= run.tokens) continue;
      const float* position = a.table + int(a.doy[run.token + row]) * S::D + 2 * at.t;
#pragma unroll
      for (int j = 0; j < S::kColumns; ++j) {
        const float2 p = *reinterpret_cast<const float2*>(position + 8 * j);
        c[m][j][2 * r] += p.x;
        c[m][j][2 * r + 1] += p.y;
      }
    }
  multiply_rows<S, S::kSteps>(weights, rows, c);
  store_all<S>(rows, c);
}

// States to shared memory, row-major, with their scores.
template <class S>
__device__ __forceinline__ void score_states(const Shared<S>& shared, const Place<S>& at,
                                             const float* parameters,
                                             const float (&c)[S::kTiles][S::kColumns][4]) {
  uint32_t* const states = reinterpret_cast<uint32_t*>(shared.rows);
  const float bias = parameters[S::kQueryBias];
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m) {
    const int row = at.row + 16 * m + at.g;
    float score[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < S::kColumns; ++j) {
      const float2 q = *reinterpret_cast<const float2*>(parameters + S::kQuery + 8 * j + 2 * at.t);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* const v = c[m][j] + 2 * r;
        score[r] = fmaf(v[0], q.x, fmaf(v[1], q.y, score[r]));
        states[(row + 8 * r) * (S::D / 2) + 4 * j + at.t] = pack<S::E>(v[0], v[1]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(score[r]) + bias;
      if (at.t == 0 && row + 8 * r < at.tokens)
        shared.score[row + 8 * r] = fmaf(sum, kLog2E, shared.bias[row + 8 * r]);
    }
  }
}

template <class S>
__device__ __forceinline__ void write_pooled(const NetworkArguments& a, int pixel, int word,
                                             float low, float high) {
  const int64_t to = int64_t(pixel) * a.stride + 2 * word;
  if (a.float_output)
    *reinterpret_cast<float2*>(static_cast<float*>(a.pooled) + to) = make_float2(low, high);
  else
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(a.pooled) + to) = pack<S::E>(low, high);
}

// One pixel by one warp: a lane sums columns, tokens in their order.
template <class S>
__device__ __forceinline__ void pool_pixel(const Shared<S>& shared, const NetworkArguments& a,
                                           int pixel, int first, int last, int lane) {
  constexpr int kWords = S::D / 2, kPerLane = (kWords + 31) / 32;
  if (first == last) {
    for (int w = lane; a.constant && w < kWords; w += 32)
      write_pooled<S>(a, pixel, w, a.constant[2 * w], a.constant[2 * w + 1]);
    return;
  }
  float top = kLowest, sum = 0.0f;
  for (int i = first + lane; i < last; i += 32) top = fmaxf(top, shared.score[i]);
  for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, i));
  for (int i = first + lane; i < last; i += 32) {
    const float weight = exp2_approximate(shared.score[i] - top);
    shared.score[i] = weight;
    sum += weight;
  }
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAllLanes, sum, i);
  __syncwarp();
  const uint32_t* const states = reinterpret_cast<const uint32_t*>(shared.rows);
  float low[kPerLane], high[kPerLane];
#pragma unroll
  for (int w = 0; w < kPerLane; ++w) low[w] = high[w] = 0.0f;
  for (int i = first; i < last; ++i) {
    const float weight = shared.score[i];
#pragma unroll
    for (int w = 0; w < kPerLane; ++w) {
      if (lane + 32 * w >= kWords) break;
      const uint32_t word = states[i * kWords + lane + 32 * w];
      low[w] = fmaf(weight, unpack_low<S::E>(word), low[w]);
      high[w] = fmaf(weight, unpack_high<S::E>(word), high[w]);
    }
  }
  const float scale = 1.0f / sum;
#pragma unroll
  for (int w = 0; w < kPerLane; ++w) {
    if (lane + 32 * w >= kWords) break;
    write_pooled<S>(a, pixel, lane + 32 * w, low[w] * scale, high[w] * scale);
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) network_kernel(NetworkArguments a) {
  TESSERA_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes);
  if (int(blockIdx.x) >= a.schedule[0]) return;
  if (const Run run(a.schedule, a.offsets); run.tokens > 0) {
    Weights<S> weights(a.weights, shared.chunks);
    const Place<S> at(run.tokens);
    const Rows<S> rows(shared, at);
    describe_tokens<S>(shared, run, a.offsets, a.multiplicity);
    embed_block<S>(weights, shared, at, rows, a, run);
    const int end = S::kEmbedParameters + a.layers * S::kLayerParameters;
#pragma unroll 1
    for (int layer = S::kEmbedParameters; layer < end; layer += S::kLayerParameters) {
      float c[S::kTiles][S::kColumns][4];
      layer_block<S>(weights, shared, at, rows, a.parameters + layer, c);
      if (layer + S::kLayerParameters < end)
        store_all<S>(rows, c);
      else
        score_states<S>(shared, at, a.parameters, c);
    }
    wait_copies<0>();
    __syncthreads();  // states and scores
  }
  // Read again: kept, it would take registers through all layers.
  const Run run(a.schedule, a.offsets);
  for (int p = run.first_pixel + int(threadIdx.x) / 32; p < run.last_pixel; p += S::kWarps)
    pool_pixel<S>(shared, a, p, a.offsets[p] - run.token, a.offsets[p + 1] - run.token,
                  int(threadIdx.x) % 32);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) layer_kernel(LayerArguments a) {
  TESSERA_DYNAMIC_SHARED(bytes);
  const Shared<S> shared(bytes);
  if (int(blockIdx.x) >= a.schedule[0]) return;
  const Run run(a.schedule, a.offsets);
  if (run.tokens == 0) return;
  Weights<S> weights(a.weights, shared.chunks);
  const Place<S> at(run.tokens);
  describe_tokens<S>(shared, run, a.offsets, a.multiplicity);
  const Rows<S> rows(shared, at);
  // Words of rows g and g + 8, columns 2t and 2t + 8 of a k16 step.
  const auto word = [&](int m, int k, int i) {
    const int row = at.row + 16 * m + at.g + 8 * (i % 2);
    return row < run.tokens ? int64_t(run.token + row) * (S::D / 2) + 8 * k + at.t + 4 * (i / 2)
                            : -1;
  };
  for (int m = 0; m < S::kTiles; ++m)
    for (int k = 0; k < S::kSteps; ++k) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t from = word(m, k, i);
        x[i] = from < 0 ? 0 : static_cast<const uint32_t*>(a.x)[from];
      }
      rows.store(m, k, x);
    }
  float c[S::kTiles][S::kColumns][4];
  layer_block<S>(weights, shared, at, rows, a.parameters, c);
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      uint32_t y[4];
      pack_tiles<S::E>(y, c[m][2 * k], c[m][2 * k + 1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t to = word(m, k, i);
        if (to >= 0) static_cast<uint32_t*>(a.y)[to] = y[i];
      }
    }
  wait_copies<0>();
}

template <Element E>
using Nano = Sizes<144, 4, 384, 2, 8, E>;  // 256 tokens: any pixel
template <Element E>
using NanoHalf = Sizes<144, 4, 384, 2, 4, E>;  // 128 tokens: two blocks a multiprocessor
template <Element E>
using Small = Sizes<256, 4, 1024, 1, 8, E>;  // 128 tokens

template <class S>
bool is(const FusedShape& shape, bool network) {
  return shape.width == S::D && shape.heads == S::H && shape.hidden == S::F &&
         shape.tokens == S::kTokens && shape.network == network;
}

template <Element E>
bool network(const FusedShape& shape, int blocks, uintptr_t stream, const NetworkArguments& a) {
  const auto run = [&](auto kernel, int threads, int shared) {
    launch("network_kernel", kernel, dim3(blocks), dim3(threads), shared, stream, a);
    return true;
  };
  using Full = Nano<E>;
  using Half = NanoHalf<E>;
  if (is<Full>(shape, true)) return run(network_kernel<Full>, Full::kThreads, Full::kSharedBytes);
  if (is<Half>(shape, true)) return run(network_kernel<Half>, Half::kThreads, Half::kSharedBytes);
  return false;
}

template <Element E>
bool layer(const FusedShape& shape, int blocks, uintptr_t stream, const LayerArguments& a) {
  using S = Small<E>;
  if (!is<S>(shape, false)) return false;
  launch("layer_kernel", layer_kernel<S>, dim3(blocks), dim3(S::kThreads), S::kSharedBytes, stream,
         a);
  return true;
}

}  // namespace

bool encode_network(const FusedShape& shape, bool float16, int blocks, uintptr_t stream,
                    const NetworkArguments& a) {
  return float16 ? network<Element::kFloat16>(shape, blocks, stream, a)
                 : network<Element::kBfloat16>(shape, blocks, stream, a);
}

bool encode_layer(const FusedShape& shape, bool float16, int blocks, uintptr_t stream,
                  const LayerArguments& a) {
  return float16 ? layer<Element::kFloat16>(shape, blocks, stream, a)
                 : layer<Element::kBfloat16>(shape, blocks, stream, a);
}

void schedule_pixels(const ScheduleArguments& a, uintptr_t stream) {
  launch("schedule_kernel", schedule_kernel, dim3(1), dim3(32 * kSchedulers), 0, stream, a);
}

int shared_bytes(const FusedShape& shape) {
  constexpr Element E = Element::kBfloat16;
  if (is<Nano<E>>(shape, true)) return Nano<E>::kSharedBytes;
  if (is<NanoHalf<E>>(shape, true)) return NanoHalf<E>::kSharedBytes;
  if (is<Small<E>>(shape, false)) return Small<E>::kSharedBytes;
  return 0;
}

}  // namespace tessera::cuda
