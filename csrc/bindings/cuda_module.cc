// The extension module tessera_fast._cuda: what kernels/cuda has, on pointers, sizes and streams as
// integers (torch's data_ptr() and cuda_stream). It knows nothing of torch. The same file makes
// _cuda_emulated, where pointers are the host's and kernels run on tests/cuda_emulator.
//
// The launches of further kernel files are bound in cuda_<name>.cc, by a function that is declared
// and called here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "pack.cuh"

#ifdef TESSERA_CUDA_EMULATED
#include "cuda_emulator/emulator_bindings.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace tessera::bindings {

void define_encoder(py::module_& m);  // cuda_encoder.cc

namespace {

using cuda::PackInput;
using cuda::PackOutput;

// (bands, mask or 0, doy, doy_per_pixel, dates, column, orbit)
using SeriesTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, bool, int64_t, int, int>;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

pack::Sampling sampling_of(const std::string& name) {
  if (name == "v2") return pack::Sampling::kV2;
  if (name == "v1.1") return pack::Sampling::kV1_1;
  if (name == "v1.0") return pack::Sampling::kV1_0;
  throw InputError("sampling: expected v2, v1.1 or v1.0, got " + name);
}

PackInput pack_input(const std::vector<SeriesTuple>& series, int stream, bool is_float,
                     int64_t pixels, int64_t columns, int64_t row0, const std::string& sampling,
                     uint64_t seed, bool binary_masks, uintptr_t bits, uintptr_t counts,
                     uintptr_t skip, uintptr_t errors) {
  check(stream == 0 || stream == 1, "stream: expected 0 or 1");
  check(series.size() <= 2 && (stream == 1 || series.size() == 1),
        "series: expected one of Sentinel-2, or at most two of Sentinel-1");
  check(pixels > 0 && pixels <= int64_t{1} << 30, "pixels: expected 1..2^30");
  check(columns > 0 && pixels % columns == 0, "columns: expected a divisor of pixels");
  check(counts && errors, "counts, errors: expected device pointers");
  PackInput in{};
  for (const auto& [bands, mask, doy, doy_per_pixel, dates, column, orbit] : series) {
    check(dates >= 0 && in.dates + dates <= 65535, "dates: expected at most 65,535 of a stream");
    check(!dates || (bands && doy && bits), "series: expected device pointers");
    check(bands % 4 == 0, "bands: expected words of 4 bytes to be aligned");
    check(column >= 0 && column < 3, "column: expected 0..2");
    check(!in.series_count || column != in.series[0].column, "column: expected one per series");
    check(orbit == 0 || orbit == 1, "orbit: expected 0 or 1");
    check(stream == 0 || !mask, "mask: Sentinel-1 has none");
    in.series[in.series_count++] = {pointer<const uint32_t>(bands), pointer<const uint8_t>(mask),
                                    pointer<const int32_t>(doy),    doy_per_pixel,
                                    static_cast<int>(dates),        column,
                                    static_cast<uint8_t>(orbit)};
    in.dates += static_cast<int>(dates);
  }
  in.stream = stream;
  in.is_float = is_float;
  in.pixels = static_cast<int>(pixels);
  in.columns = static_cast<int>(columns);
  in.row0 = row0;
  in.sampling = sampling_of(sampling);
  in.seed = seed;
  in.binary_masks = binary_masks;
  in.bits = pointer<uint32_t>(bits);
  in.counts = pointer<uint16_t>(counts);
  in.skip = pointer<uint8_t>(skip);
  in.errors = pointer<unsigned long long>(errors);
  return in;
}

void mark_all_zero(const PackInput& in, uintptr_t stream) {
  check(in.stream == 0 && in.skip, "mark_all_zero: expected Sentinel-2 and `skip`");
  cuda::mark_all_zero(in, stream);
}

void count_tokens(const PackInput& in, uintptr_t tokens, uintptr_t steps, uintptr_t stream) {
  check(tokens && steps, "tokens, steps: expected device pointers");
  cuda::count_tokens(in, pointer<int32_t>(tokens), pointer<int32_t>(steps), stream);
}

void fill_tokens(const PackInput& in, uintptr_t bands, uintptr_t doy, uintptr_t orbit,
                 uintptr_t multiplicity, uintptr_t offsets, uintptr_t steps, uintptr_t step_offsets,
                 uintptr_t stream) {
  check(offsets, "offsets: expected a device pointer");
  check(!steps || step_offsets, "steps: expected step_offsets beside them");
  check(bands % 4 == 0, "bands: expected words of 4 bytes to be aligned");
  cuda::fill_tokens(in,
                    {pointer<uint32_t>(bands), pointer<uint16_t>(doy), pointer<uint8_t>(orbit),
                     pointer<uint16_t>(multiplicity), pointer<const int32_t>(offsets),
                     pointer<int32_t>(steps), pointer<const int32_t>(step_offsets)},
                    stream);
}

void define_pack_kernels(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  // local: a process may load both modules
  py::class_<PackInput>(m, "PackInput", py::module_local())
      .def(py::init(&pack_input), py::arg("series"), py::arg("stream"), py::arg("is_float"),
           py::arg("pixels"), py::arg("columns"), py::arg("row0"), py::arg("sampling"),
           py::arg("seed"), py::arg("binary_masks"), py::arg("bits"), py::arg("counts"),
           py::arg("skip"), py::arg("errors"));
  m.def("mark_all_zero", mark_all_zero, py::arg("input"), py::arg("stream"), release);
  m.def("count_tokens", count_tokens, py::arg("input"), py::arg("tokens"), py::arg("steps"),
        py::arg("stream"), release);
  m.def("fill_tokens", fill_tokens, py::arg("input"), py::arg("bands"), py::arg("doy"),
        py::arg("orbit"), py::arg("multiplicity"), py::arg("offsets"), py::arg("steps"),
        py::arg("step_offsets"), py::arg("stream"), release);
}

// What the module was compiled for, as CMake's list: "90a-real", "120", ...
std::vector<std::string> arch_list() {
  std::vector<std::string> names(1);
  for (const char* c = TESSERA_CUDA_ARCHITECTURES; *c; ++c)
    if (*c == ',')
      names.emplace_back();
    else
      names.back() += *c;
  return names;
}

// Of the CUDA runtime in this module, as 1000 * major + 10 * minor; 0 without one.
int runtime_version() {
  int version = 0;
#ifndef TESSERA_CUDA_EMULATED
  if (const cudaError_t code = cudaRuntimeGetVersion(&version); code != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: runtime version: ") + cudaGetErrorString(code));
#endif
  return version;
}

// What cudaGetDeviceCount says, and how many GPUs it found.
int ask_driver([[maybe_unused]] int* count) {
#ifndef TESSERA_CUDA_EMULATED
  return cudaGetDeviceCount(count);
#else
  return 0;
#endif
}

// GPUs that can be used; 0 for whatever reason, which why_no_device tells.
int device_count() {
  int count = 0;
  return ask_driver(&count) == 0 ? count : 0;
}

// The CUDA error `code` of asking for the GPUs as a sentence; empty for 0. Numbers are those of
// cudaError_t, which the driver shares from 100 on.
std::string device_problem(int code) {
  switch (code) {
    case 0: return "";
    case 35:
      return "no GPU is found: the NVIDIA driver is absent, or older than the CUDA runtime of "
             "tessera_fast._cuda: compare the versions of nvidia-smi and tessera-fast info";
    case 100: return "the NVIDIA driver finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES";
    case 802:
      return "the GPUs are not ready (CUDA error 802): start nvidia-fabricmanager, or wait for it";
    case 803:
      return "the NVIDIA driver's library and kernel module are of different versions (CUDA error "
             "803): restart the machine, or give a container the library of its host";
    case 804:
      return "this GPU does not take the forward compatibility package of CUDA (CUDA error 804): "
             "remove cuda-compat from the library path, or install a newer NVIDIA driver";
  }
  std::string text = "CUDA error " + std::to_string(code);
#ifndef TESSERA_CUDA_EMULATED
  text += std::string(", ") + cudaGetErrorString(static_cast<cudaError_t>(code));
#endif
  return "the NVIDIA driver does not start (" + text +
         "): see what nvidia-smi and the kernel's log say, then restart the machine";
}

// Why there is no GPU to use, as a sentence; none where there is one.
std::optional<std::string> why_no_device() {
  int count = 0;
  const int code = ask_driver(&count);
  if (code == 0 && count > 0) return std::nullopt;
  return device_problem(code == 0 ? 100 : code);
}

}  // namespace
}  // namespace tessera::bindings

PYBIND11_MODULE(TESSERA_CUDA_MODULE, m) {
  using namespace tessera::bindings;
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const tessera::InputError& e) {
      py::set_error(py::module_::import("tessera_fast.errors").attr("InputError"), e.what());
    }
  });
  m.def("arch_list", arch_list);
  m.def("device_count", device_count);
  m.def("device_problem", device_problem, py::arg("code"));
  m.def("why_no_device", why_no_device);
  m.def("runtime_version", runtime_version);
  define_pack_kernels(m);
  define_encoder(m);
#ifdef TESSERA_CUDA_EMULATED
  py::module_ emulator = m.def_submodule("emulator");
  tessera::emulator::define_emulator(emulator);
#endif
}
