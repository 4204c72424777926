"""The ops of a TESSERA model as ONNX nodes: typed, and named after their parameters.

P pixels, T slots of a sequence, D width, H heads, K head width. A method takes and returns names
of values, which have the form's `between` type: the compute type, but float32 around bfloat16,
whose eight bits do not bear a rounding after every sum. Products round their inputs and results to
the compute type; norms, softmax and pooling are float32 inside, or in full.
"""

from collections.abc import Mapping

import numpy as np

from ..errors import InputError
from .form import Form
from .graph import Graph, numpy_dtype

LAYER_NORM_EPS = 1e-5
RMS_NORM_EPS = float(np.finfo(np.float32).eps)  # torch.nn.RMSNorm's default, in float32
# The logit of a slot that does not count: exp gives 0, float16 holds it, and where it is the logit
# of all slots they weigh alike, which is how an empty stream becomes its constant.
MASKED = -30000.0
_LARGEST_CODE = {"int8": 127.0, "fp8": 448.0}


class Layers:
    """Writes ops into ``graph`` with the parameters of ``tensors`` (official names)."""

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, np.ndarray],
        form: Form,
        ranges: Mapping[str, float],
        standard_attention: bool = False,
    ) -> None:
        """``ranges``: the largest magnitude of the input of every quantised linear, by its name.
        ``standard_attention``: an Attention node, or the ops that it stands for."""
        self.graph, self.form, self._standard_attention = graph, form, standard_attention
        self._tensors, self._ranges = tensors, ranges
        self.inputs_of_products: dict[str, str] = {}  # linear's name -> the value it reads

    def tensor(self, name: str, element: str, transposed: bool = False) -> str:
        """A parameter as a constant of ``element``; InputError where it overflows."""
        array = self._tensors[name]
        return self._stored(
            name, array.T if transposed else array, element, "T" if transposed else ""
        )

    def linear(self, x: str, name: str, quantized: bool = False) -> str:
        """x W^T + b of the parameters ``name``.weight and .bias."""
        g, form = self.graph, self.form
        weight, bias = f"{name}.weight", f"{name}.bias"
        if name.endswith("in_proj"):  # torch joins q, k and v under names of their own
            weight, bias = f"{name}_weight", f"{name}_bias"
        if quantized:
            self.inputs_of_products[name] = x
        x = self.narrow(x)
        if quantized and form.quantized:
            product = self._quantized_product(x, name, weight, form.quantized)
        else:
            product = g.node("MatMul", x, self.tensor(weight, form.compute, transposed=True))
        return g.node("Add", self.widen(product), self.tensor(bias, form.between))

    def exact_linear(self, x: str, name: str) -> str:
        """x W^T + b in float32. x float32."""
        product = self.graph.node(
            "MatMul", x, self.tensor(f"{name}.weight", "fp32", transposed=True)
        )
        return self.graph.node("Add", product, self.tensor(f"{name}.bias", "fp32"))

    def narrow(self, x: str) -> str:
        """To the compute type, from the type between products."""
        f = self.form
        return x if f.between == f.compute else self.graph.cast(x, f.compute)

    def widen(self, x: str) -> str:
        """Inverse of ``narrow``."""
        f = self.form
        return x if f.between == f.compute else self.graph.cast(x, f.between)

    def from_float(self, x: str) -> str:
        """float32 to the type between products."""
        return x if self.form.between == "fp32" else self.graph.cast(x, self.form.between)

    def to_float(self, x: str) -> str:
        """The type between products to float32."""
        return x if self.form.between == "fp32" else self.graph.cast(x, "fp32")

    def layer_norm(self, x: str, name: str) -> str:
        """LayerNorm over the last axis with the parameters ``name``."""
        scale, bias = (self.tensor(f"{name}.{p}", self.form.between) for p in ("weight", "bias"))
        return self._layer_norm(x, scale, bias)

    def plain_layer_norm(self, x: str, width: int) -> str:
        """LayerNorm without parameters. x (..., width) float32."""
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self._layer_norm(
            x, self._stored("ones", ones, "fp32"), self._stored("zeros", zeros, "fp32")
        )

    def _layer_norm(self, x: str, scale: str, bias: str) -> str:
        return self.graph.node(
            "LayerNormalization", x, scale, bias, axis=-1, epsilon=LAYER_NORM_EPS, stash_type=1
        )

    def rms_norm(self, x: str, weight: str) -> str:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis, float32 inside. x (..., K)."""
        g = self.graph
        wide = self.to_float(x)
        square = g.node("Mul", wide, wide)
        mean = g.node("ReduceMean", square, g.constant([-1], "int64"), keepdims=1)
        root = g.node("Sqrt", g.node("Add", mean, g.constant(RMS_NORM_EPS, "fp32")))
        scaled = g.node("Mul", g.node("Div", wide, root), self.tensor(weight, "fp32"))
        return self.from_float(scaled)

    def transformer_layer(
        self,
        x: str,
        name: str,
        width: int,
        heads: int,
        pre_norm: bool,
        bias: str | None = None,
        quantized: bool = False,
        first: bool = False,
    ) -> str:
        """x (P, T, D) -> (P, T, D); ``bias`` (P, 1, T, T) float32 on the logits, or None.

        Not quantised with the rest, as there is no norm before them that bounds what they read:
        the output projection, and what projects the input of the ``first`` layer. They are 15 % of
        the products of v2-small and bring more than half of the error (docs/design/0008).
        """
        g = self.graph

        def attend(y: str) -> str:
            bounded = quantized and (pre_norm or not first)
            return self.self_attention(y, name, width, heads, bias, bounded)

        def feed_forward(y: str) -> str:
            hidden = g.node("Relu", self.linear(y, f"{name}.linear1", quantized=quantized))
            return self.linear(hidden, f"{name}.linear2", quantized=quantized)

        if pre_norm:
            x = g.node("Add", x, attend(self.layer_norm(x, f"{name}.norm1")))
            return g.node("Add", x, feed_forward(self.layer_norm(x, f"{name}.norm2")))
        x = self.layer_norm(g.node("Add", x, attend(x)), f"{name}.norm1")
        return self.layer_norm(g.node("Add", x, feed_forward(x)), f"{name}.norm2")

    def self_attention(
        self, x: str, name: str, width: int, heads: int, bias: str | None, quantized: bool
    ) -> str:
        """Projections, QK-norm where the parameters have it, attention, output projection."""
        joint = f"{name}.self_attn.in_proj"
        if f"{joint}_weight" in self._tensors:
            q, k, v = self.graph.split(self.linear(x, joint, quantized=quantized), 3)
            out = f"{name}.self_attn.out_proj"
        else:
            q, k, v = (self.linear(x, f"{name}.{p}_proj", quantized=quantized) for p in "qkv")
            q, k = (
                self._head_norm(y, f"{name}.{p}_norm.weight", width, heads)
                for p, y in (("q", q), ("k", k))
            )
            out = f"{name}.out_proj"
        mixed = self.attention(q, k, v, width, heads, bias)
        return self.linear(mixed, out)

    def attention(self, q: str, k: str, v: str, width: int, heads: int, bias: str | None) -> str:
        """softmax(q k^T / sqrt(K) + bias) v per head. q, k, v (P, T, D) -> (P, T, D)."""
        g, compute = self.graph, self.form.compute
        q, k, v = (self.narrow(y) for y in (q, k, v))
        if self._standard_attention:
            mask = [] if bias is None else [bias if compute == "fp32" else g.cast(bias, compute)]
            return self.widen(
                g.node("Attention", q, k, v, *mask, q_num_heads=heads, kv_num_heads=heads)
            )
        scale = g.constant((width // heads) ** -0.5, compute)
        q, k, v = (self._split_heads(y, width, heads) for y in (q, k, v))
        keys = g.node("Transpose", k, perm=[0, 1, 3, 2])
        logits = g.cast(g.node("MatMul", g.node("Mul", q, scale), keys), "fp32")
        if bias is not None:
            logits = g.node("Add", logits, bias)
        weights = g.cast(g.node("Softmax", logits, axis=-1), compute)
        joined = g.node("Transpose", g.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.widen(g.node("Reshape", joined, g.constant([0, 0, width], "int64")))

    def pool(self, x: str, logits: str, bias: str | None) -> str:
        """sum_t a_t x_t, a = softmax over slots of logits (P, T, 1) + bias (P, T, 1); float32."""
        g = self.graph
        if bias is not None:
            logits = g.node("Add", logits, bias)
        weights = g.node("Transpose", g.node("Softmax", logits, axis=1), perm=[0, 2, 1])
        pooled = g.node("MatMul", weights, self.to_float(x))  # (P, 1, D)
        return g.node("Squeeze", pooled, g.constant([1], "int64"))

    def gru(self, x: str, name: str, width: int, custom: bool) -> str:
        """The states of a recurrence over the slots, h_0 = 0: x (P, T, D) -> (P, T, D).

        ``custom``: the cell of v1.1 and v1.0-qat, else torch.nn.GRU (formulas in reference/ops.py).
        A Scan and not ONNX's GRU, which could express both, as TensorRT-RTX 1.7 does not read that
        one in bfloat16. The input's part of the gates is one product for all slots.
        """
        g = self.graph
        if custom:
            cell = f"{name}.gru_cell"
            inputs = self._joined(f"{cell}.inputs", [f"{cell}.W_i{k}.weight" for k in "rzh"])
            input_bias = self._joined(f"{cell}.bias", [f"{cell}.b_{k}" for k in "rzh"])
        else:
            inputs = self.tensor(f"{name}.weight_ih_l0", self.form.compute, transposed=True)
            input_bias = self.tensor(f"{name}.bias_ih_l0", self.form.compute)
        steps = g.node("Transpose", self.narrow(x), perm=[1, 0, 2])  # (T, P, D)
        gates = g.node("Add", g.node("MatMul", steps, inputs), input_bias)  # (T, P, 3D)
        first = g.node("Gather", steps, g.constant(0, "int64"), axis=0)  # (P, D)
        body = Graph(f"{g.name}-step", prefix="step_")
        state = body.input("step_state", self.form.compute, ("P", width))
        parts = body.split(body.input("step_gates", self.form.compute, ("P", 3 * width)), 3)
        new = (self._custom_cell if custom else self._torch_cell)(body, name, state, parts)
        for output in ("step_next", "step_result"):
            body.output(new, output, self.form.compute, ("P", width))
        zero = g.node("Sub", first, first)
        return self.widen(g.node("Transpose", g.scan(body, zero, gates), perm=[1, 0, 2]))

    def _custom_cell(self, body: Graph, name: str, state: str, gates: list[str]) -> str:
        """h' = h + z (c - h), r applied to h before W_hh."""
        cell = f"{name}.gru_cell"
        both = self._joined(f"{cell}.W_hr_hz", [f"{cell}.W_h{k}.weight" for k in "rz"])
        hidden = self.tensor(f"{cell}.W_hh.weight", self.form.compute, transposed=True)
        from_state = body.split(body.node("MatMul", state, both), 2)
        r, z = (
            body.node("Sigmoid", body.node("Add", gate, part))
            for gate, part in zip(gates, from_state, strict=False)
        )
        reset = body.node("MatMul", body.node("Mul", r, state), hidden)
        candidate = body.node("Tanh", body.node("Add", gates[2], reset))
        step = body.node("Mul", z, body.node("Sub", candidate, state))
        return body.node("Add", state, step)

    def _torch_cell(self, body: Graph, name: str, state: str, gates: list[str]) -> str:
        """h' = n + z (h - n), r applied to W_hh h + b_hh."""
        hidden = self.tensor(f"{name}.weight_hh_l0", self.form.compute, transposed=True)
        bias = self.tensor(f"{name}.bias_hh_l0", self.form.compute)
        from_state = body.split(body.node("Add", body.node("MatMul", state, hidden), bias), 3)
        r, z = (
            body.node("Sigmoid", body.node("Add", gate, part))
            for gate, part in zip(gates[:2], from_state[:2], strict=True)
        )
        reset = body.node("Mul", r, from_state[2])
        candidate = body.node("Tanh", body.node("Add", gates[2], reset))
        step = body.node("Mul", z, body.node("Sub", state, candidate))
        return body.node("Add", candidate, step)

    def _joined(self, label: str, names: list[str]) -> str:
        """Parameters side by side, matrices transposed: (K, sum of N), or vectors end to end."""
        joint = np.concatenate([self._tensors[name] for name in names])
        return self._stored(label, joint.T if joint.ndim == 2 else joint, self.form.compute)

    def _head_norm(self, x: str, weight: str, width: int, heads: int) -> str:
        """RMSNorm of every head. (P, T, D) -> (P, T, D)."""
        g = self.graph
        apart = g.node("Reshape", x, g.constant([0, 0, heads, width // heads], "int64"))
        return g.node("Reshape", self.rms_norm(apart, weight), g.constant([0, 0, width], "int64"))

    def _split_heads(self, x: str, width: int, heads: int) -> str:
        """(P, T, D) -> (P, H, T, K)."""
        g = self.graph
        apart = g.node("Reshape", x, g.constant([0, 0, heads, width // heads], "int64"))
        return g.node("Transpose", apart, perm=[0, 2, 1, 3])

    def _quantized_product(self, x: str, name: str, weight: str, element: str) -> str:
        """MatMul of Q/DQ inputs: one scale for x, one per output channel for the weight."""
        g, compute = self.graph, self.form.compute
        if name not in self._ranges:
            raise InputError(f"precision {element}: no calibrated range for {name}")
        top = _LARGEST_CODE[element]
        dtype = numpy_dtype(compute)
        largest_input = max(self._ranges[name], float(np.finfo(np.float16).tiny))
        step = np.asarray(largest_input / top).astype(dtype)
        scale = g.parameter(f"{name}.input_scale", step)
        zero = g.constant(0, element)
        coded = g.node("QuantizeLinear", x, scale, zero)
        values = g.node("DequantizeLinear", coded, scale, zero)

        array = np.asarray(self._tensors[weight]).T  # (K, N)
        largest = np.maximum(np.abs(array).max(axis=0), np.finfo(np.float32).tiny)
        steps = np.maximum((largest / top).astype(dtype), np.finfo(dtype).smallest_normal)
        codes = array / steps.astype(np.float32)
        codes = np.clip(np.rint(codes) if element == "int8" else codes, -top, top)
        stored = g.parameter(f"{weight}.codes", codes.astype(numpy_dtype(element)))
        channel_scales = g.parameter(f"{weight}.scales", steps)
        restored = g.node("DequantizeLinear", stored, channel_scales, axis=1)
        return g.node("MatMul", values, restored)

    def _stored(self, name: str, array: np.ndarray, element: str, suffix: str = "") -> str:
        label = f"{name}{'.' + suffix if suffix else ''}.{element}"
        with np.errstate(over="ignore"):  # it is looked for
            made = np.asarray(array).astype(numpy_dtype(element), order="C")
        if element == "fp16" and not np.isfinite(made).all():
            raise InputError(
                f"precision fp16: {name} has a value of {np.abs(array).max():.3g}, beyond the "
                "65504 of float16; export bf16"
            )
        return self.graph.parameter(label, made)
