// One post-norm layer of a block's tokens: x = LN1(x + attention(x)); x = LN2(x + FFN(x)).
//
// x comes in `Rows` and goes out as C tiles. k and v of one head at a time lie in shared memory,
// [tokens][K padded]; q, scores and the mixed heads stay in registers. softmax(q k^T / sqrt(K) +
// log multiplicity) runs over key tiles of 16 that start at the pixel's first token, with a running
// maximum: a row's result has the same bits whatever other pixels its block holds. The hidden layer
// goes from C tiles to A fragments, 32 columns at a time, and is never stored.
#pragma once

#include "encoder.cuh"

namespace tessera::cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;  // below any score, and finite: a difference of two is 0

// q, k, v of one head. q, scaled, as A fragments' words of n8 tiles; k and v to shared memory.
template <class S>
__device__ __forceinline__ void project_head(Weights<S>& weights, const Shared<S>& shared,
                                             const Place<S>& at, const Rows<S>& rows,
                                             const float* bias,
                                             uint32_t (&q)[S::kTiles][S::kHead][2]) {
  const float scale = kLog2E * rsqrtf(float(S::K));
#pragma unroll
  for (int chunk = 0; chunk < S::kProject; ++chunk) {
    const uint4* b = weights.take();
    constexpr int kAll = 3 * S::kHead;
    float c[S::kTiles][4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = 4 * chunk + i;
      if (j >= kAll) break;
      const float2 v = *reinterpret_cast<const float2*>(bias + 8 * j + 2 * at.t);
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) {
        c[m][i][0] = c[m][i][2] = v.x;
        c[m][i][1] = c[m][i][3] = v.y;
      }
    }
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      uint32_t a[S::kTiles][4];
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) rows.load(m, k, a[m]);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        if (4 * chunk + i >= kAll) break;
        const uint4 w = b[(2 * k + i / 2) * 32];
#pragma unroll
        for (int m = 0; m < S::kTiles; ++m) {
          mma16<S::E>(c[m][i], a[m], w.x, w.y);
          if (4 * chunk + i + 1 < kAll) mma16<S::E>(c[m][i + 1], a[m], w.z, w.w);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = 4 * chunk + i;
      if (j >= kAll) break;
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) {
        if (j < S::kHead) {
          q[m][j][0] = pack<S::E>(c[m][i][0] * scale, c[m][i][1] * scale);
          q[m][j][1] = pack<S::E>(c[m][i][2] * scale, c[m][i][3] * scale);
          continue;
        }
        uint16_t* to = j < 2 * S::kHead ? shared.keys : shared.values;
        to += (at.row + 16 * m + at.g) * S::kHeadStride + 8 * (j % S::kHead) + 2 * at.t;
        *reinterpret_cast<uint32_t*>(to) = pack<S::E>(c[m][i][0], c[m][i][1]);
        *reinterpret_cast<uint32_t*>(to + 8 * S::kHeadStride) = pack<S::E>(c[m][i][2], c[m][i][3]);
      }
    }
  }
}

// Scores of 16 rows and the 16 keys from `key` on: s[n8][4], in units of log2.
template <class S>
__device__ __forceinline__ void score_keys(const Shared<S>& shared, const Place<S>& at,
                                           const uint32_t (&q)[S::kHead][2], int key,
                                           float (&s)[2][4]) {
  // Keys beyond the pixel are masked later; they must exist.
  const int row = min(key + at.lane / 16 * 8 + at.lane % 8, S::kTokens - 1);
  const uint16_t* from = shared.keys + row * S::kHeadStride + at.lane / 8 % 2 * 8;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[j][i] = 0.0f;
#pragma unroll
  for (int d = 0; d + 1 < S::kHead; d += 2) {
    uint32_t k[4];
    load_matrices4(k, from + 8 * d);
    const uint32_t a[4] = {q[d][0], q[d][1], q[d + 1][0], q[d + 1][1]};
    mma16<S::E>(s[0], a, k[0], k[1]);
    mma16<S::E>(s[1], a, k[2], k[3]);
  }
  if constexpr (S::kHead % 2 == 1) {
    const int other = min(key + at.lane % 16, S::kTokens - 1);
    uint32_t k[2];
    load_matrices2(k, shared.keys + other * S::kHeadStride + 8 * (S::kHead - 1));
    mma8<S::E>(s[0], q[S::kHead - 1], k[0]);
    mma8<S::E>(s[1], q[S::kHead - 1], k[1]);
  }
}

// o += p v for the same 16 keys; p as an A fragment.
template <class S>
__device__ __forceinline__ void mix_values(const Shared<S>& shared, const Place<S>& at,
                                           const uint32_t (&p)[4], int key,
                                           float (&o)[S::kHead][4]) {
  const int row = min(key + at.lane % 16, S::kTokens - 1);
  const uint16_t* from = shared.values + row * S::kHeadStride;
#pragma unroll
  for (int d = 0; d + 1 < S::kHead; d += 2) {
    uint32_t v[4];
    load_matrices4_transposed(v, from + 8 * (d + at.lane / 16));
    mma16<S::E>(o[d], p, v[0], v[1]);
    mma16<S::E>(o[d + 1], p, v[2], v[3]);
  }
  if constexpr (S::kHead % 2 == 1) {
    uint32_t v[2];
    load_matrices2_transposed(v, from + 8 * (S::kHead - 1));
    mma16<S::E>(o[S::kHead - 1], p, v[0], v[1]);
  }
}

// Attention of one m-tile whose first row is `base`: mixed values as words of A fragments.
template <class S>
__device__ __forceinline__ void attend(const Shared<S>& shared, const Place<S>& at, int base,
                                       const uint32_t (&q)[S::kHead][2],
                                       uint32_t (&mixed)[S::kHead][2]) {
  float o[S::kHead][4], sum[2] = {0.0f, 0.0f}, top[2] = {kLowest, kLowest};
#pragma unroll
  for (int d = 0; d < S::kHead; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i) o[d][i] = 0.0f;
  const int limit = min(base + 16, at.tokens);
  // The tile's pixels one after another; rows of the others are left as they are, to the bit.
  for (int row = base; row < limit;) {
    const int first = shared.first[row], last = shared.last[row];
    const bool mine[2] = {base + at.g >= first && base + at.g < last,
                          base + at.g + 8 >= first && base + at.g + 8 < last};
    for (int key = first; key < last; key += 16) {
      float s[2][4], scale[2], highest[2] = {kLowest, kLowest};
      score_keys<S>(shared, at, q, key, s);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& value = s[i / 4][i % 4];
        const int k = key + i / 4 * 8 + 2 * at.t + i % 2;
        value = k < last ? value + shared.bias[k] : kLowest;
        highest[i / 2 % 2] = fmaxf(highest[i / 2 % 2], value);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float row_top = quad_max(highest[r]);  // of all lanes, whosever the row is
        const float next = mine[r] ? fmaxf(top[r], row_top) : top[r];
        scale[r] = exp2_approximate(top[r] - next);
        top[r] = next;
        sum[r] *= scale[r];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& value = s[i / 4][i % 4];
        value = mine[i / 2 % 2] ? exp2_approximate(value - top[i / 2 % 2]) : 0.0f;
        sum[i / 2 % 2] += value;
      }
#pragma unroll
      for (int d = 0; d < S::kHead; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[d][i] *= scale[i / 2];
      uint32_t p[4];
      pack_tiles<S::E>(p, s[0], s[1]);
      mix_values<S>(shared, at, p, key, o);
    }
    row = last;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = quad_sum(sum[r]);
    sum[r] = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;  // 0: a row beyond the block's tokens
  }
#pragma unroll
  for (int d = 0; d < S::kHead; ++d) {
    mixed[d][0] = pack<S::E>(o[d][0] * sum[0], o[d][1] * sum[0]);
    mixed[d][1] = pack<S::E>(o[d][2] * sum[1], o[d][3] * sum[1]);
  }
}

// c = LN1(x + attention(x))
template <class S>
__device__ __forceinline__ void attention_block(Weights<S>& weights, const Shared<S>& shared,
                                                const Place<S>& at, const Rows<S>& rows,
                                                const float* parameters,
                                                float (&c)[S::kTiles][S::kColumns][4]) {
  // Heads enter at the end and move to the front, so that the loop stays one and every register
  // has a constant index.
  uint32_t mixed[S::kTiles][S::kMixed / 2][4];
#pragma unroll
  for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2 * S::kMixed; ++i) mixed[m][i / 4][i % 4] = 0;
#pragma unroll 1
  for (int h = 0; h < S::H; ++h) {
    uint32_t q[S::kTiles][S::kHead][2];
    project_head<S>(weights, shared, at, rows, parameters + S::kBiasQkv + h * 3 * S::kHead * 8, q);
    __syncthreads();  // k and v of all warps; the next head's come after the next chunk's barrier
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      uint32_t head[S::kHead][2];
      attend<S>(shared, at, at.row + 16 * m, q[m], head);
      constexpr int kKeep = 2 * (S::kMixed - S::kHead);
#pragma unroll
      for (int i = 0; i < kKeep; ++i) {
        const int from = i + 2 * S::kHead;
        mixed[m][i / 4][i % 4] = mixed[m][from / 4][from % 4];
      }
#pragma unroll
      for (int i = 0; i < 2 * S::kHead; ++i)
        mixed[m][(kKeep + i) / 4][(kKeep + i) % 4] = head[i / 2][i % 2];
    }
  }
  // c = x + bias, and where x waited, the mixed heads wait: step by step, to save registers.
#pragma unroll
  for (int k = 0; k < S::kSlots; ++k)
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      if (k < S::kSteps) {
        uint32_t x[4];
        rows.load(m, k, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 2 * k + i / 2;
          const float2 b =
              *reinterpret_cast<const float2*>(parameters + S::kBiasOut + 8 * j + 2 * at.t);
          c[m][j][2 * (i % 2)] = b.x + unpack_low<S::E>(x[i]);
          c[m][j][2 * (i % 2) + 1] = b.y + unpack_high<S::E>(x[i]);
        }
      }
      if (k < S::kMixed / 2) rows.store(m, k, mixed[m][k]);
    }
  multiply_rows<S, S::kMixed / 2>(weights, rows, c);
  layer_norm<S>(c, parameters + S::kNorm1, at.t);
}

// c = LN2(c + W2 relu(W1 c + b1) + b2), c rounded where it is multiplied, not where it is added.
template <class S>
__device__ __forceinline__ void feed_forward_block(Weights<S>& weights, const Place<S>& at,
                                                   const Rows<S>& rows, const float* parameters,
                                                   float (&c)[S::kTiles][S::kColumns][4]) {
  store_all<S>(rows, c);
#pragma unroll
  for (int j = 0; j < S::kColumns; ++j) {
    hold_loads<S>(j);
    const float2 b = *reinterpret_cast<const float2*>(parameters + S::kBias2 + 8 * j + 2 * at.t);
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][j][i] += i % 2 ? b.y : b.x;
  }
#pragma unroll 1
  for (int f = 0; f < S::F; f += 32) {
    uint32_t hidden[2][S::kTiles][4];
    const uint4* b = weights.take();
    float d[S::kTiles][4][4];
    fill(d, parameters + S::kBias1 + f, at.t);
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      uint32_t a[S::kTiles][4];
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) rows.load(m, k, a[m]);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint4 w = b[(2 * k + i / 2) * 32];
#pragma unroll
        for (int m = 0; m < S::kTiles; ++m) {
          mma16<S::E>(d[m][i], a[m], w.x, w.y);
          mma16<S::E>(d[m][i + 1], a[m], w.z, w.w);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 16; ++i) d[m][i / 4][i % 4] = fmaxf(d[m][i / 4][i % 4], 0.0f);
      pack_tiles<S::E>(hidden[0][m], d[m][0], d[m][1]);
      pack_tiles<S::E>(hidden[1][m], d[m][2], d[m][3]);
    }
    b = weights.take();
    multiply_deep<S>(c, hidden[0], b);
    multiply_deep<S>(c, hidden[1], b + S::kColumns / 2 * 32);
  }
  layer_norm<S>(c, parameters + S::kNorm2, at.t);
}

template <class S>
__device__ __forceinline__ void layer_block(Weights<S>& weights, const Shared<S>& shared,
                                            const Place<S>& at, const Rows<S>& rows,
                                            const float* parameters,
                                            float (&c)[S::kTiles][S::kColumns][4]) {
  attention_block<S>(weights, shared, at, rows, parameters, c);
  feed_forward_block<S>(weights, at, rows, parameters, c);
}

}  // namespace tessera::cuda
