// tessera_fast._cpu.pack: raw series to packed tokens, without the GIL.
#include <memory>

#include "bindings/arrays.h"
#include "bindings/modules.h"
#include "pack/pack_tokens.h"

namespace tessera::bindings {
namespace {

using namespace tessera::pack;

void copy_strides(const py::array& a, ptrdiff_t* out) {
  for (int i = 0; i < 3; ++i) out[i] = a.strides(i);
}

constexpr int kMaxBands = 64;                  // of a date: 10 and 2 so far
constexpr int64_t kMaxRow = int64_t{1} << 40;  // of a tile
constexpr int64_t kMaxPixels = int64_t{1} << 31;

// bands (T, H, W, C), mask (T, H, W) uint8 or None, doy (T, H, W) int32, all of any strides except
// that elements are aligned and a pixel's bands contiguous.
Series series(const py::array& bands, const py::object& mask, const py::array& doy,
              Observed observed, int orbit) {
  Series s{};
  if (py::isinstance<py::array_t<uint16_t>>(bands))
    s.element = Element::kU16;
  else if (py::isinstance<py::array_t<int16_t>>(bands))
    s.element = Element::kI16;
  else if (py::isinstance<py::array_t<float>>(bands))
    s.element = Element::kF32;
  else
    throw InputError("bands: expected uint16, int16 or float32, got " + describe(bands));
  check(bands.ndim() == 4 && bands.strides(3) == bands.itemsize() && is_aligned(bands),
        "bands: expected (T, H, W, C) with contiguous, aligned bands");
  check(py::isinstance<py::array_t<int32_t>>(doy) && doy.ndim() == 3 && is_aligned(doy),
        "doys: expected (T, H, W) int32, aligned");
  check(orbit == 0 || orbit == 1, "orbit: expected 0 (ascending) or 1 (descending)");
  s.bands = static_cast<const char*>(bands.data());
  copy_strides(bands, s.bands_stride);
  s.channels = size_of(bands.shape(3), "bands: channels", 1, kMaxBands);
  s.dates = size_of(bands.shape(0), "bands: dates", 0, kMaxDates);
  s.doy = static_cast<const char*>(doy.data());
  copy_strides(doy, s.doy_stride);
  s.observed = observed;
  s.orbit = static_cast<uint8_t>(orbit);
  if (!mask.is_none()) {
    const auto m = array_of(mask, "masks");
    check(py::isinstance<py::array_t<uint8_t>>(m) && m.ndim() == 3,
          "masks: expected (T, H, W) uint8");
    s.mask = static_cast<const uint8_t*>(m.data());
    copy_strides(m, s.mask_stride);
    for (int i = 0; i < 3; ++i)
      check(m.shape(i) == bands.shape(i), "masks: shape differs from bands");
    s.observed = Observed::kMasked;
  }
  for (int i = 0; i < 3; ++i)
    check(doy.shape(i) == bands.shape(i), "doys: shape differs from bands");
  return s;
}

py::array_t<int64_t> offsets(const std::vector<int64_t>& counts) {
  py::array_t<int64_t> out(counts.size() + 1);
  int64_t* p = out.mutable_data();
  p[0] = 0;
  for (size_t i = 0; i < counts.size(); ++i) p[i + 1] = p[i] + counts[i];
  return out;
}

// (bands, doy, orbit, multiplicity, offsets, steps or None, step_offsets or None)
py::tuple pack_stream(const std::vector<Series>& all, int stream, const Window& window,
                      const uint8_t* skip, const std::vector<uint16_t*>& observed, bool want_steps,
                      const py::dtype& dtype, int channels) {
  const StreamPacker packer(all, stream, window, skip);
  Counts counts;
  {
    py::gil_scoped_release release;
    counts = packer.count(observed);
  }
  const py::array_t<int64_t> token_offsets = offsets(counts.tokens);
  const py::array_t<int64_t> step_offsets = offsets(counts.steps);
  const int64_t P = static_cast<int64_t>(counts.tokens.size());
  const int64_t N = token_offsets.data()[P];
  py::array bands(dtype, std::vector<py::ssize_t>{N, channels});
  py::array_t<uint16_t> doy(N), multiplicity(N);
  py::array_t<uint8_t> orbit(N);
  py::array_t<int32_t> steps(want_steps ? step_offsets.data()[P] : 0);
  const Tokens out{static_cast<char*>(bands.mutable_data()),
                   doy.mutable_data(),
                   orbit.mutable_data(),
                   multiplicity.mutable_data(),
                   token_offsets.data(),
                   want_steps ? steps.mutable_data() : nullptr,
                   step_offsets.data()};
  {
    py::gil_scoped_release release;
    packer.fill(out);
  }
  if (!want_steps)
    return py::make_tuple(bands, doy, orbit, multiplicity, token_offsets, py::none(), py::none());
  return py::make_tuple(bands, doy, orbit, multiplicity, token_offsets, steps, step_offsets);
}

Sampling sampling_of(const std::string& name) {
  if (name == "v2") return Sampling::kV2;
  if (name == "v1.1") return Sampling::kV1_1;
  if (name == "v1.0") return Sampling::kV1_0;
  throw InputError("sampling: expected v2, v1.1 or v1.0, got " + name);
}

// s2: (bands, mask or None, doy); orbits: [(bands, doy, index)]. Returns the two streams and the
// observed dates [P, 1 + orbits] uint16.
py::tuple pack(const py::tuple& s2, const py::list& orbits, const std::string& sampling,
               bool want_steps, bool binary_masks, int64_t row0, uint64_t seed, int64_t threads) {
  check(s2.size() == 3, "s2: expected (bands, mask, doy)");
  check(orbits.size() <= 2, "orbits: expected at most two");
  check(row0 >= 0 && row0 <= kMaxRow, "row0: expected 0..2^40");
  const py::array s2_bands = array_of(s2[0], "bands");
  const Series optical = series(s2_bands, s2[1], array_of(s2[2], "doys"), Observed::kAlways, 0);
  check(s2_bands.shape(1) <= kMaxPixels && s2_bands.shape(2) <= kMaxPixels &&
            s2_bands.shape(1) * s2_bands.shape(2) <= kMaxPixels,
        "bands: expected a window of at most 2^31 pixels; pack fewer rows at a time");
  const Window window{s2_bands.shape(1), s2_bands.shape(2),  row0, sampling_of(sampling), seed,
                      binary_masks,      threads_of(threads)};
  std::vector<Series> radar;
  const bool floats = optical.element == Element::kF32;  // the dtype of no orbit at all
  py::dtype radar_dtype = floats ? py::dtype::of<float>() : py::dtype::of<int16_t>();
  const py::tuple held(orbits);  // a list may be emptied while the GIL is released
  for (const py::handle& item : held) {
    check(py::isinstance<py::tuple>(item) && py::len(item) == 3,
          "orbits: expected tuples (bands, doy, index)");
    const auto orbit = py::reinterpret_borrow<py::tuple>(item);
    const py::array bands = array_of(orbit[0], "bands");
    check(bands.ndim() == 4 && bands.shape(1) == window.rows && bands.shape(2) == window.columns,
          "Sentinel-1: the window differs from Sentinel-2's");
    radar.push_back(series(bands, py::none(), array_of(orbit[1], "doys"), Observed::kNonZero,
                           value_of<int>(orbit[2], "orbit")));
    check(radar.back().element == radar[0].element, "Sentinel-1: the orbits' dtypes differ");
    check(radar.back().channels == 2, "Sentinel-1: expected the 2 bands VV, VH");
    radar_dtype = bands.dtype();
  }
  const int64_t P = window.rows * window.columns;
  std::vector<std::vector<uint16_t>> observed(1 + radar.size(), std::vector<uint16_t>(P));
  std::vector<uint16_t*> radar_observed;
  for (size_t i = 0; i < radar.size(); ++i) radar_observed.push_back(observed[1 + i].data());

  std::vector<uint8_t> skip;
  if (window.sampling == Sampling::kV1_0) {
    skip.resize(P);
    py::gil_scoped_release release;
    mark_all_zero(optical, window, skip.data());
  }
  const uint8_t* skipped = skip.empty() ? nullptr : skip.data();
  const py::tuple first = pack_stream({optical}, 0, window, skipped, {observed[0].data()},
                                      want_steps, s2_bands.dtype(), optical.channels);
  const py::tuple second =
      pack_stream(radar, 1, window, skipped, radar_observed, want_steps, radar_dtype, 2);
  py::array_t<uint16_t> counts({P, py::ssize_t(observed.size())});
  for (int64_t p = 0; p < P; ++p)
    for (size_t i = 0; i < observed.size(); ++i) counts.mutable_at(p, i) = observed[i][p];
  return py::make_tuple(first, second, counts);
}

}  // namespace

void define_pack(py::module_& m) {
  m.def("pack", pack, py::arg("s2"), py::arg("orbits"), py::arg("sampling"), py::arg("want_steps"),
        py::arg("binary_masks"), py::arg("row0"), py::arg("seed"), py::arg("threads"));
}

}  // namespace tessera::bindings
