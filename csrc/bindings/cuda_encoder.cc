// The fused encoders of kernels/cuda/encoder.h: device pointers, sizes and streams as integers.
// Shapes of what they point to are the caller's promise (backends/cuda/fused.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "core/check.h"
#include "encoder.h"

namespace py = pybind11;

namespace tessera::bindings {
namespace {

using cuda::FusedShape;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (width, heads, hidden, tokens)
FusedShape shape_of(const std::tuple<int, int, int, int>& shape, bool network) {
  const auto [width, heads, hidden, tokens] = shape;
  return {width, heads, hidden, tokens, network};
}

constexpr const char* kNoKernel = "fused encoder: no kernel of this shape";

}  // namespace

void define_encoder(py::module_& m) {
  using Shape = std::tuple<int, int, int, int>;
  m.def(
      "fused_shared_bytes",
      [](const Shape& shape, bool network) { return cuda::shared_bytes(shape_of(shape, network)); },
      "shared memory of a block, 0 where no kernel of (width, heads, hidden, tokens) exists");
  m.def(
      "schedule_pixels",
      [](uintptr_t offsets, int pixels, int tokens, uintptr_t schedule, uintptr_t stream) {
        check(pixels > 0 && tokens > 0, "schedule_pixels: expected pixels and tokens above 0");
        cuda::schedule_pixels({at<int32_t>(offsets), pixels, tokens, at<int32_t>(schedule)},
                              stream);
      },
      py::kw_only(), py::arg("offsets"), py::arg("pixels"), py::arg("tokens"), py::arg("schedule"),
      py::arg("stream"));
  m.def(
      "encode_network",
      [](const Shape& shape, bool float16, int blocks, uintptr_t stream, uintptr_t bands,
         int band_kind, int channels, uintptr_t orbit, uintptr_t doy, uintptr_t multiplicity,
         uintptr_t offsets, uintptr_t schedule, uintptr_t table, uintptr_t weights,
         uintptr_t parameters, int layers, uintptr_t constant, uintptr_t pooled, int64_t stride,
         bool float_output) {
        check(blocks > 0 && layers > 0, "encode_network: expected blocks and layers above 0");
        check(channels > 0 && channels <= 16, "encode_network: expected 1..16 channels");
        check(band_kind >= 0 && band_kind <= 3, "encode_network: band_kind is 0..3");
        const cuda::NetworkArguments arguments{at<void>(bands),
                                               at<uint8_t>(orbit),
                                               at<uint16_t>(doy),
                                               at<uint16_t>(multiplicity),
                                               at<int32_t>(offsets),
                                               at<int32_t>(schedule),
                                               at<float>(table),
                                               at<void>(weights),
                                               at<float>(parameters),
                                               at<float>(constant),
                                               at<void>(pooled),
                                               stride,
                                               channels,
                                               layers,
                                               band_kind,
                                               float_output};
        check(cuda::encode_network(shape_of(shape, true), float16, blocks, stream, arguments),
              kNoKernel);
      },
      py::kw_only(), py::arg("shape"), py::arg("float16"), py::arg("blocks"), py::arg("stream"),
      py::arg("bands"), py::arg("band_kind"), py::arg("channels"), py::arg("orbit"), py::arg("doy"),
      py::arg("multiplicity"), py::arg("offsets"), py::arg("schedule"), py::arg("table"),
      py::arg("weights"), py::arg("parameters"), py::arg("layers"), py::arg("constant"),
      py::arg("pooled"), py::arg("stride"), py::arg("float_output"));
  m.def(
      "encode_layer",
      [](const Shape& shape, bool float16, int blocks, uintptr_t stream, uintptr_t x, uintptr_t y,
         uintptr_t multiplicity, uintptr_t offsets, uintptr_t schedule, uintptr_t weights,
         uintptr_t parameters) {
        check(blocks > 0, "encode_layer: expected blocks above 0");
        const cuda::LayerArguments arguments{
            at<void>(x),          at<void>(y),           at<uint16_t>(multiplicity),
            at<int32_t>(offsets), at<int32_t>(schedule), at<void>(weights),
            at<float>(parameters)};
        check(cuda::encode_layer(shape_of(shape, false), float16, blocks, stream, arguments),
              kNoKernel);
      },
      py::kw_only(), py::arg("shape"), py::arg("float16"), py::arg("blocks"), py::arg("stream"),
      py::arg("x"), py::arg("y"), py::arg("multiplicity"), py::arg("offsets"), py::arg("schedule"),
      py::arg("weights"), py::arg("parameters"));
}

}  // namespace tessera::bindings
