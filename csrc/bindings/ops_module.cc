// tessera_fast._cpu.ops: single ops of one instruction set, for tests and benchmarks. `out` arrays
// come from the caller, so that a test can poison and fence them.
#include <cstring>

#include "bindings/arrays.h"
#include "bindings/modules.h"
#include "cpu/isa.h"
#include "cpu/weights.h"
#include "cpu/workspace.h"
#include "pack/pack_tokens.h"

namespace tessera::bindings {
namespace {

using cpu::KernelTable;

constexpr int kMaxSide = 1 << 20;             // rows, columns, heads of a single op
constexpr int64_t kMaxSpins = 1'000'000'000;  // some seconds

// One row of floats between two rows, in floats; the last axis must be contiguous.
struct Rows {
  float* data;
  py::ssize_t M, D, ld;
};

[[noreturn]] void unexpected(const char* name, const py::array& a) {
  throw InputError(std::string(name) + ": unexpected array " + describe(a));
}

Rows rows(const py::array& a, const char* name, py::ssize_t M = -1, py::ssize_t D = -1) {
  if (!py::isinstance<py::array_t<float>>(a) || a.ndim() != 2 || !is_aligned(a) ||
      (a.shape(1) > 1 && a.strides(1) != 4) || a.shape(0) > kMaxSide || a.shape(1) > kMaxSide ||
      (M >= 0 && a.shape(0) != M) || (D >= 0 && a.shape(1) != D))
    unexpected(name, a);
  return {const_cast<float*>(static_cast<const float*>(a.data())), a.shape(0), a.shape(1),
          a.shape(0) > 1 ? a.strides(0) / 4 : a.shape(1)};
}

Rows written_rows(const py::array& a, const char* name, py::ssize_t M = -1, py::ssize_t D = -1) {
  if (!a.writeable())
    throw InputError(std::string(name) + ": expected an array to write, got a read-only one");
  return rows(a, name, M, D);
}

// Columns of one of `parts` equal parts of D: a head's.
int part_of(py::ssize_t D, int64_t parts, const char* name) {
  if (parts < 1 || parts > D || D % parts)
    throw InputError(std::string(name) + ": expected a number that divides " + std::to_string(D) +
                     ", got " + std::to_string(parts));
  return static_cast<int>(D / parts);
}

cpu::Element element_of(const std::string& name) {
  if (name == "fp32") return cpu::Element::kFloat32;
  if (name == "bf16") return cpu::Element::kBfloat16;
  if (name == "int8") return cpu::Element::kInt8;
  throw InputError("element: expected fp32, bf16 or int8, got " + name);
}

cpu::Matrix floats(const Rows& r) {
  return {cpu::Element::kFloat32, r.data, r.ld, nullptr};
}

// Rows in another element, in storage of their own.
class Converted {
 public:
  Converted(const KernelTable& table, cpu::Element element, const Rows& x, bool nonnegative)
      : room_(element, x.M, int(x.D), table), matrix_(room_.as_read(x.data, x.ld)) {
    if (element != cpu::Element::kFloat32)
      table.convert({int(x.M), int(x.D), x.data, x.ld, nonnegative, room_.matrix()});
  }
  const cpu::Matrix& matrix() const { return matrix_; }

 private:
  cpu::Room room_;
  cpu::Matrix matrix_;
};

// The end of the memory that `a` is a view of.
const char* end_of_memory(const py::array& a) {
  py::array whole = a;
  while (whole.base() && py::isinstance<py::array>(whole.base()))
    whole = py::reinterpret_borrow<py::array>(whole.base());
  const bool contiguous = whole.flags() & (py::array::c_style | py::array::f_style);
  return static_cast<const char*>((contiguous ? whole : a).data()) +
         (contiguous ? whole.nbytes() : 0);
}

// y: float32, or uint16 for bfloat16 with rows of whole words.
cpu::Matrix output(const py::array& y, py::ssize_t M, py::ssize_t N) {
  if (!py::isinstance<py::array_t<uint16_t>>(y)) return floats(written_rows(y, "y", M, N));
  if (y.ndim() != 2 || y.shape(0) != M || y.shape(1) != N || (N > 1 && y.strides(1) != 2) ||
      y.strides(0) % 4 || !y.writeable() || !is_aligned(y))
    unexpected("y", y);
  const char* row = static_cast<const char*>(y.data());
  for (py::ssize_t m = 0; N % 2 && m < M; ++m, row += y.strides(0))
    check(row + 2 * (N + 1) <= end_of_memory(y), "y: expected rows with room for whole words");
  return {cpu::Element::kBfloat16, const_cast<void*>(y.data()), y.strides(0) / 4, nullptr};
}

void linear(const std::string& isa, const py::array& x, const py::array& weight,
            const py::object& bias, const py::object& residual, bool relu, const py::array& y,
            const std::string& element, bool nonnegative) {
  const KernelTable& table = cpu::select_isa(isa);
  const auto w = expect<float>(weight, "weight", {-1, -1});
  const int N = size_of(w.shape(0), "weight", 0, kMaxSide);
  const int K = size_of(w.shape(1), "weight", 0, kMaxSide);
  cpu::Linear packed(table, element_of(element), K, N,
                     nonnegative ? cpu::Sign::kNonnegative : cpu::Sign::kAny);
  packed.set_rows(0, N, w.data(), 1);
  if (const float* b = optional<float>(bias, "bias", {N})) packed.set_bias(0, N, b, 1);
  const Rows in = rows(x, "x", -1, K);
  const Converted converted(table, element_of(element), in, nonnegative);
  const Rows add =
      residual.is_none() ? Rows{} : rows(array_of(residual, "residual"), "residual", in.M, N);
  table.linear(
      {int(in.M), converted.matrix(), packed.view(), add.data, add.ld, relu, output(y, in.M, N)});
}

// (stored rows as bytes [M, bytes], scales [M] or None) of float32 rows in another element.
py::tuple convert(const std::string& isa, const py::array& x, const std::string& element,
                  bool nonnegative) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows in = rows(x, "x");
  const cpu::Element to = element_of(element);
  const Converted converted(table, to, in, nonnegative);
  const cpu::Matrix& m = converted.matrix();
  const int bytes = 4 * cpu::words_of(to, int(in.D), table);
  py::array_t<uint8_t> stored({in.M, py::ssize_t(bytes)});
  for (py::ssize_t r = 0; r < in.M; ++r)
    std::memcpy(stored.mutable_data() + r * bytes, static_cast<const char*>(m.data) + r * m.ld * 4,
                bytes);
  if (!m.scale) return py::make_tuple(stored, py::none());
  return py::make_tuple(stored, py::array_t<float>(in.M, m.scale));
}

void layer_norm(const std::string& isa, const py::array& x, const py::object& weight,
                const py::object& bias, float eps, bool relu, const py::array& y) {
  const Rows in = rows(x, "x"), out = written_rows(y, "y", in.M, in.D);
  check(weight.is_none() == bias.is_none(), "weight, bias: expected both or neither");
  cpu::select_isa(isa).layer_norm({int(in.M),
                                   int(in.D),
                                   in.data,
                                   in.ld,
                                   optional<float>(weight, "weight", {in.D}),
                                   optional<float>(bias, "bias", {in.D}),
                                   eps,
                                   relu,
                                   out.data,
                                   out.ld,
                                   {cpu::Element::kFloat32, nullptr, 0, nullptr}});
}

void rms_norm(const std::string& isa, const py::array& x, int64_t heads, const py::array& weight,
              float eps) {
  const Rows in = written_rows(x, "x");
  const int head_dim = part_of(in.D, heads, "heads");
  const auto w = expect<float>(weight, "weight", {head_dim});
  cpu::select_isa(isa).rms_norm({int(in.M), int(heads), head_dim, floats(in), 0, w.data(), eps});
}

void attention(const std::string& isa, const py::array& qkv, int64_t heads,
               const py::array& log_multiplicity, const py::array& y, const std::string& element) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows in = rows(qkv, "qkv"), out = written_rows(y, "y", in.M, part_of(in.D, 3, "qkv"));
  check(in.M <= pack::kMaxDates, "qkv: expected at most 65,535 tokens");
  const auto bias = expect<float>(log_multiplicity, "log_multiplicity", {in.M});
  const int head_dim = part_of(out.D, heads, "heads");
  check(element != "int8", "element: attention takes fp32 or bf16");
  cpu::Buffer scratch(table.attention_scratch(int(in.M), head_dim));
  const Converted converted(table, element_of(element), in, false);
  table.attention({int(in.M), int(heads), head_dim, converted.matrix(), bias.data(), floats(out),
                   scratch.data()});
}

void pool(const std::string& isa, const py::array& x, const py::array& query, float query_bias,
          const py::array& extra, const py::array& y) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows in = rows(x, "x");
  const auto q = expect<float>(query, "query", {in.D});
  const auto bias = expect<float>(extra, "extra", {in.M});
  float* out = writeable(expect<float>(y, "y", {in.D}), "y");
  check(in.M > 0, "x: expected at least one row");
  std::vector<float> scores(in.M), scratch(in.M + 16);
  table.score(
      {int(in.M), int(in.D), in.data, in.ld, q.data(), query_bias, bias.data(), scores.data()});
  table.pool({int(in.M), int(in.D), scores.data(), nullptr, in.data, in.ld, out, scratch.data()});
}

// One recurrent step of M pixels. gates: "custom_gates" (writes r_h and z), "custom_state",
// "torch_state" (both update h).
void gru_step(const std::string& isa, const std::string& stage, const py::array& x,
              const py::array& recurrent, const py::array& h, const py::array& r_h,
              const py::array& z) {
  const KernelTable& table = cpu::select_isa(isa);
  const Rows state = written_rows(h, "h"), in = rows(x, "x", state.M, 3 * state.D);
  const py::ssize_t products = stage == "custom_gates" ? 2 : stage == "custom_state" ? 1 : 3;
  const Rows product = rows(recurrent, "recurrent", state.M);
  if (product.D < products * state.D) unexpected("recurrent", recurrent);
  const Rows reset = written_rows(r_h, "r_h", state.M, state.D);
  const Rows update = written_rows(z, "z", state.M, state.D);
  check(reset.ld == update.ld, "r_h, z: expected rows of the same distance");
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

int64_t spin(const std::string& isa, const std::string& element, int64_t steps) {
  const KernelTable& table = cpu::select_isa(isa);
  const cpu::Element e = element_of(element);
  check(steps >= 0 && steps <= kMaxSpins, "steps: expected 0..10^9");
  py::gil_scoped_release release;
  return table.spin(e, steps);
}

}  // namespace

void define_ops(py::module_& m) {
  m.def("linear", linear, py::arg("isa"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("residual"), py::arg("relu"), py::arg("y"), py::arg("element") = "fp32",
        py::arg("nonnegative") = false);
  m.def("convert", convert, py::arg("isa"), py::arg("x"), py::arg("element"),
        py::arg("nonnegative") = false);
  m.def("int8_group", [](const std::string& isa) { return cpu::select_isa(isa).int8_group; });
  m.def("spin", spin, "multiply-adds done in registers", py::arg("isa"), py::arg("element"),
        py::arg("steps"));
  m.def("layer_norm", layer_norm);
  m.def("rms_norm", rms_norm);
  m.def("attention", attention, py::arg("isa"), py::arg("qkv"), py::arg("heads"),
        py::arg("log_multiplicity"), py::arg("y"), py::arg("element") = "fp32");
  m.def("pool", pool);
  m.def("gru_step", gru_step);
}

}  // namespace tessera::bindings
