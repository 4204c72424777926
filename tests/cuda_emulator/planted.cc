#include "cuda_emulator/planted.h"

#include <iterator>

#include "warp.cuh"

namespace tessera::emulator {
namespace {

constexpr int kMaxBlock = 1024;

// Beside each: who reports it. "Order": the result differs, in some order of threads.
enum Fault {
  kNone,
  kNoBarrier,         // order, TSan: reads before the others wrote
  kPartBarrier,       // emulator: half of the block skips the barrier
  kOverrun,           // emulator: writes the 4 bytes after dynamic shared memory
  kUnderrun,          // emulator: writes the 4 bytes before it
  kDivergentWarp,     // emulator: lanes of a warp are in different functions
  kMissingLane,       // emulator: lane 31 does not come to a function that names it
  kForeignLane,       // emulator: a shuffle reads a lane outside its mask
  kNoCopyWait,        // order: reads what cp.async has not been waited for
  kUnwritten,         // result: reads dynamic shared memory that nobody wrote
  kUnwrittenStatic,   // result: the same of a __shared__ variable, which the block before wrote
  kMisalignedCopy,    // emulator: cp.async of 16 bytes to an address between
  kMisalignedMatrix,  // emulator: ldmatrix of a row that starts between
  kShuffleOnly,       // TSan: a shuffle, which orders no memory, between a write and reads
  kEarlyCopy,         // TSan: cp.async into memory that other threads still read
  kMisalignedVector,  // UBSan: 8 bytes at an address that is a multiple of 4
  kBeyondArray,       // UBSan: an index one past the end
  kBeyondOutput,      // ASan: writes after the end of the output
  kBeyondShared,      // ASan: reads after the end of dynamic shared memory
};
const char* const kNames[] = {"none",
                              "no_barrier",
                              "part_barrier",
                              "overrun",
                              "underrun",
                              "divergent",
                              "missing_lane",
                              "foreign_lane",
                              "no_copy_wait",
                              "unwritten",
                              "unwritten_static",
                              "misaligned_copy",
                              "misaligned_matrix",
                              "shuffle_only",
                              "early_copy",
                              "misaligned_vector",
                              "beyond_array",
                              "beyond_output",
                              "beyond_shared"};

__global__ void reverse_kernel(int* out, int fault) {
  TESSERA_DYNAMIC_SHARED(bytes);
  __shared__ int array[kMaxBlock + 1];
  int* const shared = reinterpret_cast<int*>(bytes);
  const int i = threadIdx.x, n = blockDim.x;
  const int given = i;
  alignas(16) const int four[8] = {};
  if (fault == kNoCopyWait) {
    copy_later(shared + i, &given, sizeof given, sizeof given);
    commit_copies();
  } else if (fault != kUnwritten && fault != kShuffleOnly) {
    shared[i] = given;
  }
  if (fault == kOverrun && i == 0) shared[n] = 1;
  if (fault == kUnderrun && i == 0) shared[-1] = 1;
  if (fault == kDivergentWarp) {
    if (i % 32 == 7)
      __ballot_sync(0xffffffffu, 1);
    else
      __syncwarp();
  }
  if (fault == kMissingLane && i % 32 != 31) __syncwarp();
  if (fault == kForeignLane && i % 32 < 16) __shfl_sync(0x0000ffffu, i, 20);
  if (fault == kMisalignedCopy) cuda::copy_async(shared + i, four);
  if (fault == kMisalignedMatrix) {
    uint32_t words[2];
    cuda::load_matrices2(words, bytes + 8);
  }
  if (fault == kShuffleOnly) {
    const int first = i / 32 * 32;
    for (int j = first; i == first && j < first + 32; ++j) shared[j] = n - 1 - j;
    __shfl_sync(0xffffffffu, i, 0);
    out[blockIdx.x * n + i] = shared[i];
    return;
  }
  if (fault == kMisalignedVector && i == 0) reinterpret_cast<float2*>(bytes + 4)->x = 1;
  if (fault == kBeyondArray) array[kMaxBlock + 1 + i] = 1;
  if (fault == kBeyondOutput && i == 0 && blockIdx.x == gridDim.x - 1) out[gridDim.x * n] = 1;
  if (fault == kBeyondShared && i == 0 && shared[n] == 1) return;
  if (fault != kNoBarrier && !(fault == kPartBarrier && i >= n / 2)) __syncthreads();
  const int got = shared[n - 1 - i];
  if (fault == kEarlyCopy && i == 0) cuda::copy_async(shared, four);
  if (fault == kUnwrittenStatic && blockIdx.x > 0) {
    out[blockIdx.x * n + i] = array[i];
    return;
  }
  array[i] = got;
  out[blockIdx.x * n + i] = got;
  if (fault == kEarlyCopy) {
    __syncthreads();
    cuda::commit_copies();
    cuda::wait_copies<0>();
  }
}

}  // namespace

void reverse(int* out, unsigned blocks, unsigned threads, const std::string& fault) {
  for (int f = 0; f < int(std::size(kNames)); ++f)
    if (fault == kNames[f])
      return run("reverse_kernel", reverse_kernel, blocks, threads, 4 * threads, out, f);
  throw Error("no such fault: " + fault);
}

}  // namespace tessera::emulator
