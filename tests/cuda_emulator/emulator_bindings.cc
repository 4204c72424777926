#include "cuda_emulator/emulator_bindings.h"

#include "cuda_emulator/emulator.h"

namespace py = pybind11;

namespace tessera::emulator {
namespace {

// out[i] = reversed thread index, through shared memory; `fault` names what is wrong with it.
enum Fault {
  kNone,
  kNoBarrier,      // reads before the others wrote
  kPartBarrier,    // half of the block skips the barrier
  kOverrun,        // writes the 4 bytes after dynamic shared memory
  kUnderrun,       // writes the 4 bytes before it
  kDivergentWarp,  // lanes of a warp are in different functions
  kMissingLane,    // lane 31 does not come to a function that names it
  kForeignLane,    // a shuffle reads a lane outside its mask
  kNoCopyWait,     // reads what cp.async has not been waited for
  kUnwritten,      // reads shared memory that nobody wrote
};

__global__ void reverse(int* out, int fault) {
  TESSERA_DYNAMIC_SHARED(bytes);
  int* const shared = reinterpret_cast<int*>(bytes);
  const int i = threadIdx.x, n = blockDim.x;
  const int given = i;
  if (fault == kNoCopyWait) {
    copy_later(shared + i, &given, sizeof given, sizeof given);
    commit_copies();
  } else if (fault != kUnwritten) {
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
  if (fault != kNoBarrier && !(fault == kPartBarrier && i >= n / 2)) __syncthreads();
  out[blockIdx.x * n + i] = shared[n - 1 - i];
}

// What warp functions give, one row of 32 per function.
__global__ void warp_functions(int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x;
  int row = 0;
  const auto put = [&](int value) { out[row++ * 32 + lane] = value; };
  put(__shfl_sync(all, lane * 3, 5));
  put(__shfl_up_sync(all, lane, 3));
  put(__shfl_down_sync(all, lane, 3));
  put(__shfl_xor_sync(all, lane, 9));
  put(__shfl_xor_sync(all, lane, 2, 4));
  put(int(__ballot_sync(all, lane % 3 == 0)));
  put(__any_sync(all, lane == 40));
  put(__all_sync(all, lane < 40));
  put(__reduce_add_sync(all, lane));
  put(lane < 16 ? __shfl_sync(0x0000ffffu, lane, 3) : __shfl_sync(0xffff0000u, lane, 19));
  put(__syncthreads_count(lane % 5 == 0));
}

void set_order_by_name(const std::string& name, uint64_t seed) {
  if (name == "forward") return set_order(Order::kForward);
  if (name == "reverse") return set_order(Order::kReverse);
  if (name == "random") return set_order(Order::kRandom, seed);
  throw Error("order: expected forward, reverse or random, got " + name);
}

}  // namespace

void define_emulator(py::module_& m) {
  m.def("set_order", set_order_by_name, "order of fibers, until set again", py::arg("name"),
        py::arg("seed") = 0);
  m.def("reverse", [](uintptr_t out, unsigned blocks, unsigned threads, const std::string& fault) {
    const char* const names[] = {"none",         "no_barrier", "part_barrier", "overrun",
                                 "underrun",     "divergent",  "missing_lane", "foreign_lane",
                                 "no_copy_wait", "unwritten"};
    for (int f = 0; f < int(std::size(names)); ++f)
      if (fault == names[f])
        return run(reverse, blocks, threads, 4 * threads, reinterpret_cast<int*>(out), f);
    throw Error("no such fault: " + fault);
  });
  m.def("warp_functions",
        [](uintptr_t out) { run(warp_functions, 1, 32, 0, reinterpret_cast<int*>(out)); });
}

}  // namespace tessera::emulator
