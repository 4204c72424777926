#include "cuda_emulator/emulator_bindings.h"

#include "cuda_emulator/emulator.h"
#include "cuda_emulator/planted.h"

namespace py = pybind11;

namespace tessera::emulator {
namespace {

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
    reverse(reinterpret_cast<int*>(out), blocks, threads, fault);
  });
  m.def("warp_functions", [](uintptr_t out) {
    run("warp_functions", warp_functions, 1, 32, 0, reinterpret_cast<int*>(out));
  });
}

}  // namespace tessera::emulator
