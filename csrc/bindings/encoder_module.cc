// tessera_fast._cpu.Encoder and quantize: a loaded model and its int8 output.
#include <memory>

#include "bindings/arrays.h"
#include "bindings/modules.h"
#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "pack/pack_tokens.h"

namespace tessera::bindings {
namespace {

using namespace tessera::cpu;

constexpr int kMaxWidth = 1 << 16, kMaxHidden = 1 << 20, kMaxLayers = 1000, kMaxBands = 64;

template <class T>
T field(const py::dict& config, const char* name) {
  if (!config.contains(name)) throw InputError(std::string("config: expected '") + name + "'");
  return value_of<T>(config[name], name);
}

int size_field(const py::dict& config, const char* name, int least, int most) {
  return size_of(field<int64_t>(config, name), name, least, most);
}

ModelConfig model_config(const py::dict& d) {
  ModelConfig c;
  c.d_model = size_field(d, "d_model", 1, kMaxWidth);
  c.num_layers = size_field(d, "num_layers", 1, kMaxLayers);
  c.num_heads = size_field(d, "num_heads", 1, c.d_model);
  c.ff_dim = size_field(d, "ff_dim", 1, kMaxHidden);
  c.out_dim = size_field(d, "out_dim", 1, kMaxHidden);
  c.pre_norm = field<bool>(d, "pre_norm");
  c.qk_norm = field<bool>(d, "qk_norm");
  c.mlp_reducer = field<std::string>(d, "reducer") == "mlp";
  c.final_norm = field<bool>(d, "final_norm");
  c.fusion_layers = size_field(d, "fusion_layers", 0, kMaxLayers);
  const auto pooling = field<std::string>(d, "pooling");
  c.pooling = pooling == "softmax"      ? Pooling::kSoftmax
              : pooling == "custom_gru" ? Pooling::kCustomGru
                                        : Pooling::kTorchGru;
  check(c.pooling != Pooling::kTorchGru || pooling == "torch_gru", "pooling: unknown name");
  c.empty_steps = size_field(d, "empty_steps", 1, pack::kMaxSequence);
  c.layer_prefix = field<std::string>(d, "layer_prefix");
  auto statistics = [&](const char* name, int* bands) {
    const auto a = expect<float>(field<py::object>(d, name), name, {2, -1});
    *bands = size_of(a.shape(1), name, 1, kMaxBands);
    return std::vector<float>(a.data(), a.data() + a.size());
  };
  int s2_std, s1_std;
  c.s2_mean = statistics("s2_mean", &c.s2_bands);
  c.s2_std = statistics("s2_std", &s2_std);
  c.s1_mean = statistics("s1_mean", &c.s1_bands);
  c.s1_std = statistics("s1_std", &s1_std);
  check(s2_std == c.s2_bands && s1_std == c.s1_bands, "statistics: mean and std differ in bands");
  return c;
}

template <class T>
std::vector<T> copied(const py::object& tokens, const char* name, int64_t count) {
  const auto array = expect<T>(tokens.attr(name), name, {count});
  std::vector<T> values(count);
  copy_borrowed(array.data(), values.size(), values.data());
  return values;
}

// A Python PackedTokens. What decides where memory is read is copied, and checked in the copy;
// `bands` are numbers only and stay where they are (docs/design/0013-borrowed-memory.md).
class Tokens {
 public:
  Tokens(const py::object& t, const char* stream, int bands, int64_t P)
      : bands_(array_of(t.attr("bands"), std::string(stream) + ".bands")) {
    if (bands_.ndim() != 2 || bands_.shape(1) != bands || !(bands_.flags() & py::array::c_style))
      throw InputError(std::string(stream) + ".bands: expected C-contiguous (N, " +
                       std::to_string(bands) + "), got " + describe(bands_));
    const int64_t N = bands_.shape(0);
    doy_ = copied<uint16_t>(t, "doy", N);
    orbit_ = copied<uint8_t>(t, "orbit", N);
    multiplicity_ = copied<uint16_t>(t, "multiplicity", N);
    offsets_ = copied<int64_t>(t, "offsets", P + 1);
    check_offsets(offsets_, "offsets: must run from 0 to the number of tokens and never fall");
    check(offsets_[P] == N, "offsets: must end with the number of tokens");
    for (int64_t i = 0; i < N; ++i) {
      check(doy_[i] <= pack::kMaxDoy, "doy: expected 0..366");
      check(orbit_[i] < 2, "orbit: expected 0 or 1");
      check(multiplicity_[i] > 0, "multiplicity: expected at least 1");
    }
    if (!t.attr("step_offsets").is_none()) copy_steps(t, P);
    view_ = {static_cast<const char*>(bands_.data()),
             element(stream),
             doy_.data(),
             orbit_.data(),
             multiplicity_.data(),
             offsets_.data(),
             step_offsets_.empty() ? nullptr : steps_.data(),
             step_offsets_.empty() ? nullptr : step_offsets_.data(),
             value_of<bool>(t.attr("standardized"), "standardized")};
    check(!view_.standardized || view_.element == 2, "bands: standardized values must be float32");
  }

  const TokensView& view() const { return view_; }

 private:
  int element(const char* stream) const {
    if (py::isinstance<py::array_t<uint16_t>>(bands_)) return 0;
    if (py::isinstance<py::array_t<int16_t>>(bands_)) return 1;
    if (py::isinstance<py::array_t<float>>(bands_)) return 2;
    throw InputError(std::string(stream) + ".bands: expected uint16, int16 or float32, got " +
                     describe(bands_));
  }

  static void check_offsets(const std::vector<int64_t>& offsets, const char* message) {
    check(offsets[0] == 0, message);
    for (size_t p = 0; p + 1 < offsets.size(); ++p) {
      check(offsets[p] <= offsets[p + 1], message);
      check(offsets[p + 1] - offsets[p] <= pack::kMaxDates,
            "offsets, step_offsets: expected at most 65,535 of a pixel");
    }
  }

  void copy_steps(const py::object& t, int64_t P) {
    step_offsets_ = copied<int64_t>(t, "step_offsets", P + 1);
    check_offsets(step_offsets_, "step_offsets: must start at 0 and never fall");
    steps_ = copied<int32_t>(t, "steps", step_offsets_[P]);
    for (int64_t p = 0; p < P; ++p) {
      const int64_t T = offsets_[p + 1] - offsets_[p];
      for (int64_t s = step_offsets_[p]; s < step_offsets_[p + 1]; ++s)
        check(steps_[s] >= 0 && steps_[s] < T, "steps: must name the pixel's own tokens");
    }
  }

  py::array bands_;
  std::vector<uint16_t> doy_, multiplicity_;
  std::vector<uint8_t> orbit_;
  std::vector<int64_t> offsets_, step_offsets_;
  std::vector<int32_t> steps_;
  TokensView view_;
};

class PyEncoder {
 public:
  PyEncoder(const py::dict& config, const py::object& positions, const py::object& tensors,
            const std::string& isa, const std::string& precision)
      : config_(model_config(config)),
        encoder_(make(config_, positions, tensors, isa, precision)) {}

  // Returns seconds per op, summed over threads, where `profile` asks for them.
  py::object encode(const py::object& s2, const py::object& s1, const py::object& out,
                    int64_t threads, const py::object& progress, bool profile) const {
    const auto target = expect<float>(out, "out", {-1, -1});
    float* data = writeable(target, "out");
    const int64_t P = target.shape(0);
    const int E = static_cast<int>(target.shape(1)), workers = threads_of(threads);
    const Tokens a(s2, "s2", config_.s2_bands, P), b(s1, "s1", config_.s1_bands, P);
    // Ctrl-C ends the work within the pixels in hand; progress(done pixels) runs in this thread.
    auto poll = [&](int64_t done) {
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress.is_none()) progress(done);
    };
    std::array<int64_t, kOps> nanoseconds{};
    {
      py::gil_scoped_release release;
      encoder_.encode(a.view(), b.view(), P, data, E, workers, poll,
                      profile ? &nanoseconds : nullptr);
    }
    if (!profile) return py::none();
    py::dict seconds;
    for (int op = 0; op < kOps; ++op) seconds[kOpNames[op]] = nanoseconds[op] * 1e-9;
    return seconds;
  }

  std::string isa() const { return encoder_.table().isa; }

 private:
  // int8 leaves attention in bfloat16 where that has instructions, else in float32.
  static Precision elements(const KernelTable& table, const std::string& precision) {
    const Element bf16 = Element::kBfloat16, fp32 = Element::kFloat32;
    if (precision == "fp32") return {fp32, fp32};
    if (precision == "bf16") return {bf16, bf16};
    if (precision == "int8") return {Element::kInt8, table.native_bf16 ? bf16 : fp32};
    throw Unavailable("precision: the cpu back end has fp32, bf16 and int8, got '" + precision +
                      "'");
  }

  static Encoder make(const ModelConfig& config, const py::object& positions,
                      const py::object& tensors, const std::string& isa,
                      const std::string& precision) {
    if (!PyMapping_Check(tensors.ptr()))
      throw InputError("tensors: expected a mapping of names to arrays, got " +
                       std::string(py::str(py::type::of(tensors))));
    const KernelTable& table = select_isa(isa);
    const auto pe = expect<float>(positions, "positions", {367, config.d_model});
    py::object held;  // the tensor last handed out: a source may draw or map them on access
    const TensorSource source = [&](const std::string& name, Shape shape) {
      held = tensors[py::str(name)];
      const py::array array = array_of(held, name);
      if (!py::isinstance<py::array_t<float>>(array) || !(array.flags() & py::array::c_style) ||
          array.size() != shape.rows * shape.columns)
        throw InputError(name + ": expected " + std::to_string(shape.rows * shape.columns) +
                         " contiguous float32 values, got " + describe(array));
      if (!is_aligned(array)) held = array.attr("copy")();  // as a file may place them
      return static_cast<const float*>(py::reinterpret_borrow<py::array>(held).data());
    };
    return Encoder(table,
                   build_model(table, config, elements(table, precision), pe.data(), source));
  }

  ModelConfig config_;
  Encoder encoder_;
};

py::tuple quantize(const py::object& values, float absmax_floor, float scale_floor,
                   const std::string& isa) {
  const auto x = expect<float>(values, "embeddings", {-1, -1});
  const KernelTable& table = select_isa(isa);
  py::array_t<int8_t> codes({x.shape(0), x.shape(1)});
  py::array_t<float> scales(x.shape(0));
  const QuantizeArgs args{x.shape(0),
                          static_cast<int>(x.shape(1)),
                          x.data(),
                          x.shape(1),
                          absmax_floor,
                          scale_floor,
                          codes.mutable_data(),
                          scales.mutable_data()};
  {
    py::gil_scoped_release release;
    table.quantize(args);
  }
  return py::make_tuple(codes, scales);
}

py::list list_isas() {
  py::list out;
  for (const Isa& isa : isas())
    out.append(py::make_tuple(isa.name, isa.runs, isa.needs, isa.automatic));
  return out;
}

}  // namespace

void define_encoder(py::module_& m) {
  py::class_<PyEncoder> encoder(m, "Encoder", py::is_final());
  // Encoder.__new__ alone, as copy.copy calls it, would make an object without an encoder in it.
  reinterpret_cast<PyTypeObject*>(encoder.ptr())->tp_new = nullptr;
  m.def(
      "load_encoder",
      [](const py::dict& config, const py::object& positions, const py::object& tensors,
         const std::string& isa, const std::string& precision) {
        return std::make_unique<PyEncoder>(config, positions, tensors, isa, precision);
      },
      py::arg("config"), py::arg("positions"), py::arg("tensors"), py::arg("isa"),
      py::arg("precision"));
  encoder
      .def("encode", &PyEncoder::encode, py::arg("s2"), py::arg("s1"), py::arg("out"),
           py::arg("threads"), py::arg("progress") = py::none(), py::arg("profile") = false)
      .def_property_readonly("isa", &PyEncoder::isa);
  m.def("quantize", quantize, py::arg("embeddings"), py::arg("absmax_floor"),
        py::arg("scale_floor"), py::arg("isa") = "");
  m.def("isas", list_isas, "(name, runs here, what the machine lacks, chosen automatically)");
  m.def("select_isa", [](const std::string& name) { return std::string(select_isa(name).isa); });
  m.def("native_bf16", [](const std::string& name) { return select_isa(name).native_bf16; });
}

}  // namespace tessera::bindings
