// tessera_fast._cpu.ops: single ops of one instruction set, for tests and benchmarks. `out` arrays
// come from the caller, so that a test can poison and fence them.
#include "bindings/arrays.h"
#include "bindings/modules.h"
#include "cpu/isa.h"
#include "cpu/weights.h"

namespace tessera::bindings {
namespace {

using cpu::KernelTable;

// One row of floats between two rows, in floats; the last axis must be contiguous.
struct Rows {
  float* data;
  py::ssize_t M, D, ld;
};

Rows rows(const py::array& a, const char* name, py::ssize_t M = -1, py::ssize_t D = -1) {
  if (!py::isinstance<py::array_t<float>>(a) || a.ndim() != 2 ||
      (a.shape(1) > 1 && a.strides(1) != 4) || (M >= 0 && a.shape(0) != M) ||
      (D >= 0 && a.shape(1) != D))
    throw InputError(std::string(name) + ": unexpected array " + describe(a));
  return {const_cast<float*>(static_cast<const float*>(a.data())), a.shape(0), a.shape(1),
          a.shape(0) > 1 ? a.strides(0) / 4 : a.shape(1)};
}

void linear(const std::string& isa, const py::array& x, const py::array& weight,
            const py::object& bias, const py::object& residual, bool relu, const py::array& y) {
  const KernelTable& table = cpu::select_isa(isa);
  const auto w = expect<float>(weight, "weight", {-1, -1});
  const int N = w.shape(0), K = w.shape(1);
  cpu::Linear packed(table, K, N);
  packed.set_rows(0, N, w.data(), 1);
  if (const float* b = optional<float>(bias, "bias", {N})) packed.set_bias(0, N, b, 1);
  const Rows in = rows(x, "x", -1, K), out = rows(y, "y", in.M, N);
  const Rows add =
      residual.is_none() ? Rows{} : rows(residual.cast<py::array>(), "residual", in.M, N);
  table.linear(
      {int(in.M), in.data, in.ld, packed.view(), add.data, add.ld, relu, out.data, out.ld});
}

void layer_norm(const std::string& isa, const py::array& x, const py::object& weight,
                const py::object& bias, float eps, bool relu, const py::array& y) {
  const Rows in = rows(x, "x"), out = rows(y, "y", in.M, in.D);
  cpu::select_isa(isa).layer_norm(
      {int(in.M), int(in.D), in.data, in.ld, optional<float>(weight, "weight", {in.D}),
       optional<float>(bias, "bias", {in.D}), eps, relu, out.data, out.ld});
}

void rms_norm(const std::string& isa, const py::array& x, int heads, const py::array& weight,
              float eps) {
  const Rows in = rows(x, "x");
  const auto w = expect<float>(weight, "weight", {in.D / heads});
  cpu::select_isa(isa).rms_norm(
      {int(in.M), heads, int(in.D / heads), in.data, in.ld, w.data(), eps});
}

void attention(const std::string& isa, const py::array& qkv, int heads,
               const py::array& log_multiplicity, const py::array& y) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows in = rows(qkv, "qkv"), out = rows(y, "y", in.M, in.D / 3);
  const auto bias = expect<float>(log_multiplicity, "log_multiplicity", {in.M});
  const int head_dim = int(in.D / 3 / heads);
  cpu::Buffer scratch(table.attention_scratch(int(in.M), head_dim));
  table.attention(
      {int(in.M), heads, head_dim, in.data, in.ld, bias.data(), out.data, out.ld, scratch.data()});
}

void pool(const std::string& isa, const py::array& x, const py::array& query, float query_bias,
          const py::array& extra, const py::array& y) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows in = rows(x, "x");
  const auto q = expect<float>(query, "query", {in.D});
  const auto bias = expect<float>(extra, "extra", {in.M});
  auto out = expect<float>(y, "y", {in.D});
  std::vector<float> scores(in.M), scratch(in.M + 16);
  table.score(
      {int(in.M), int(in.D), in.data, in.ld, q.data(), query_bias, bias.data(), scores.data()});
  table.pool({int(in.M), int(in.D), scores.data(), nullptr, in.data, in.ld, out.mutable_data(),
              scratch.data()});
}

// One recurrent step of M pixels. gates: "custom_gates" (writes r_h and z), "custom_state",
// "torch_state" (both update h).
void gru_step(const std::string& isa, const std::string& stage, const py::array& x,
              const py::array& recurrent, const py::array& h, const py::array& r_h,
              const py::array& z) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows state = rows(h, "h"), in = rows(x, "x", state.M, 3 * state.D);
  const Rows product = rows(recurrent, "recurrent", state.M);
  const Rows reset = rows(r_h, "r_h", state.M, state.D), update = rows(z, "z", state.M, state.D);
  std::vector<const float*> inputs(in.M);
  for (py::ssize_t m = 0; m < in.M; ++m) inputs[m] = in.data + m * in.ld;
  const cpu::GateArgs args{int(state.M), int(state.D), inputs.data(), product.data, product.ld,
                           state.data,   state.ld,     reset.data,    update.data,  reset.ld};
  if (stage == "custom_gates")
    table.custom_gru_gates(args);
  else if (stage == "custom_state")
    table.custom_gru_state(args);
  else if (stage == "torch_state")
    table.torch_gru_state(args);
  else
    throw InputError("stage: expected custom_gates, custom_state or torch_state, got " + stage);
}

}  // namespace

void define_ops(py::module_& m) {
  m.def("linear", linear);
  m.def("layer_norm", layer_norm);
  m.def("rms_norm", rms_norm);
  m.def("attention", attention);
  m.def("pool", pool);
  m.def("gru_step", gru_step);
}

}  // namespace tessera::bindings
