// tessera_fast._cpu.Encoder and quantize: a loaded model and its int8 output.
#include "bindings/arrays.h"
#include "bindings/modules.h"
#include "cpu/encoder.h"
#include "cpu/isa.h"

namespace tessera::bindings {
namespace {

using namespace tessera::cpu;

template <class T>
T field(const py::dict& config, const char* name) {
  return config[name].cast<T>();
}

ModelConfig model_config(const py::dict& d) {
  ModelConfig c;
  c.d_model = field<int>(d, "d_model");
  c.num_layers = field<int>(d, "num_layers");
  c.num_heads = field<int>(d, "num_heads");
  c.ff_dim = field<int>(d, "ff_dim");
  c.out_dim = field<int>(d, "out_dim");
  c.pre_norm = field<bool>(d, "pre_norm");
  c.qk_norm = field<bool>(d, "qk_norm");
  c.mlp_reducer = field<std::string>(d, "reducer") == "mlp";
  c.final_norm = field<bool>(d, "final_norm");
  c.fusion_layers = field<int>(d, "fusion_layers");
  const auto pooling = field<std::string>(d, "pooling");
  c.pooling = pooling == "softmax"      ? Pooling::kSoftmax
              : pooling == "custom_gru" ? Pooling::kCustomGru
                                        : Pooling::kTorchGru;
  check(c.pooling != Pooling::kTorchGru || pooling == "torch_gru", "pooling: unknown name");
  c.empty_steps = field<int>(d, "empty_steps");
  c.layer_prefix = field<std::string>(d, "layer_prefix");
  auto statistics = [&](const char* name, int* bands) {
    const auto a = expect<float>(d[name], name, {2, -1});
    *bands = static_cast<int>(a.shape(1));
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

// The arrays of a Python PackedTokens, borrowed while it lives.
TokensView tokens_view(const py::object& t, const char* stream, int bands, int64_t P) {
  TokensView v{};
  const auto values = t.attr("bands").cast<py::array>();
  if (py::isinstance<py::array_t<uint16_t>>(values))
    v.element = 0;
  else if (py::isinstance<py::array_t<int16_t>>(values))
    v.element = 1;
  else if (py::isinstance<py::array_t<float>>(values))
    v.element = 2;
  else
    throw InputError(std::string(stream) + ".bands: expected uint16, int16 or float32, got " +
                     describe(values));
  if (values.ndim() != 2 || values.shape(1) != bands || !(values.flags() & py::array::c_style))
    throw InputError(std::string(stream) + ".bands: expected C-contiguous (N, " +
                     std::to_string(bands) + "), got " + describe(values));
  const py::ssize_t N = values.shape(0);
  v.bands = static_cast<const char*>(values.data());
  v.doy = expect<uint16_t>(t.attr("doy"), "doy", {N}).data();
  v.orbit = expect<uint8_t>(t.attr("orbit"), "orbit", {N}).data();
  v.multiplicity = expect<uint16_t>(t.attr("multiplicity"), "multiplicity", {N}).data();
  v.offsets = expect<int64_t>(t.attr("offsets"), "offsets", {P + 1}).data();
  v.standardized = t.attr("standardized").cast<bool>();
  check(!v.standardized || v.element == 2, "bands: standardized values must be float32");
  check(v.offsets[0] == 0 && v.offsets[P] == N, "offsets: must run from 0 to the number of tokens");
  for (int64_t p = 0; p < P; ++p) check(v.offsets[p] <= v.offsets[p + 1], "offsets: must not fall");
  for (py::ssize_t i = 0; i < N; ++i) {
    check(v.doy[i] <= 366, "doy: expected 0..366");
    check(v.orbit[i] < 2, "orbit: expected 0 or 1");
    check(v.multiplicity[i] > 0, "multiplicity: expected at least 1");
  }
  v.step_offsets = optional<int64_t>(t.attr("step_offsets"), "step_offsets", {P + 1});
  if (v.step_offsets) {
    const auto steps = expect<int32_t>(t.attr("steps"), "steps", {v.step_offsets[P]});
    v.steps = steps.data();
    check(v.step_offsets[0] == 0, "step_offsets: must start at 0");
    for (int64_t p = 0; p < P; ++p) {
      const int64_t T = v.offsets[p + 1] - v.offsets[p];
      check(v.step_offsets[p] <= v.step_offsets[p + 1], "step_offsets: must not fall");
      for (int64_t s = v.step_offsets[p]; s < v.step_offsets[p + 1]; ++s)
        check(v.steps[s] >= 0 && v.steps[s] < T, "steps: must name the pixel's own tokens");
    }
  }
  return v;
}

class PyEncoder {
 public:
  PyEncoder(const py::dict& config, const py::object& positions, const py::object& tensors,
            const std::string& isa, const std::string& precision)
      : config_(model_config(config)),
        encoder_(make(config_, positions, tensors, isa, precision)) {}

  // Returns seconds per op, summed over threads, where `profile` asks for them.
  py::object encode(const py::object& s2, const py::object& s1, const py::object& out, int threads,
                    const py::object& progress, bool profile) const {
    const auto target = expect<float>(out, "out", {-1, -1});
    if (!target.writeable()) throw InputError("out: the array is read-only");
    const int64_t P = target.shape(0);
    const int E = static_cast<int>(target.shape(1));
    const TokensView a = tokens_view(s2, "s2", config_.s2_bands, P);
    const TokensView b = tokens_view(s1, "s1", config_.s1_bands, P);
    float* data = const_cast<float*>(target.data());
    // Ctrl-C ends the work within the pixels in hand; progress(done pixels) runs in this thread.
    auto poll = [&](int64_t done) {
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress.is_none()) progress(done);
    };
    std::array<int64_t, kOps> nanoseconds{};
    {
      py::gil_scoped_release release;
      encoder_.encode(a, b, P, data, E, threads, poll, profile ? &nanoseconds : nullptr);
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
    const KernelTable& table = select_isa(isa);
    const auto pe = expect<float>(positions, "positions", {367, config.d_model});
    py::object held;  // the tensor last handed out: a source may draw or map them on access
    const TensorSource source = [&](const std::string& name, Shape shape) {
      held = tensors[py::str(name)];
      const auto array = py::reinterpret_borrow<py::array>(held);
      if (!py::isinstance<py::array_t<float>>(array) || !(array.flags() & py::array::c_style) ||
          array.size() != shape.rows * shape.columns)
        throw InputError(name + ": expected " + std::to_string(shape.rows * shape.columns) +
                         " contiguous float32 values, got " + describe(array));
      return static_cast<const float*>(array.data());
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
  py::class_<PyEncoder>(m, "Encoder")
      .def(py::init<const py::dict&, const py::object&, const py::object&, const std::string&,
                    const std::string&>(),
           py::arg("config"), py::arg("positions"), py::arg("tensors"), py::arg("isa"),
           py::arg("precision"))
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
