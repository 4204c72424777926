"""A TESSERA model as three ONNX graphs: the Sentinel-2 encoder, the Sentinel-1 encoder, the head.

Encoder, P pixels of T slots, C bands (dtypes of the packed layout, then of the dense one):
    bands         (P, T, C)  uint16 (Sentinel-2), int16 (Sentinel-1) | float32, raw units
    doy           (P, T)     uint16 | int32; 0: no observation, zeros in standardised units
    orbit         (P, T)     uint8 | int32, Sentinel-1 only: 0 ascending, 1 descending
    multiplicity  (P, T)     uint16, packed layout only: 0 for a slot that is not used
    pooled        (P, D)     float32, out
Head:
    s2, s1        (P, D)     float32, the encoders' outputs
    embedding     (P, E)     float32; or codes (P, E) int8 and scales (P,) float32
A row of zeros in every input of an encoder is a stream without observations.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from ..spec import S1_BANDS, S2_BANDS, ModelSpec
from ..weights.positions import positional_table
from .form import Form
from .graph import Graph
from .layers import MASKED, Layers

STREAMS = ("s2", "s1")
FUSION_HEADS = 4  # whatever the encoder's heads
Ranges = Mapping[str, float]
Tensors = Mapping[str, np.ndarray]


def encoder(
    spec: ModelSpec,
    tensors: Tensors,
    stream: str,
    form: Form,
    *,
    ranges: Ranges | None = None,
    data: Path | None = None,
    taps: list[str] | None = None,
) -> onnx.ModelProto:
    """The encoder of ``stream`` "s2" or "s1".

    ``ranges``: the largest absolute input of every quantised linear, for int8 and fp8. ``data``: a
    file beside the graph for the parameters. ``taps``: filled with the names of the linears that
    int8 and fp8 would quantise, whose inputs the graph then returns as outputs ``tap:<name>``.
    """
    graph = Graph(f"{spec.name}-{stream}", data)
    layers = Layers(graph, tensors, form, ranges or {}, form.standard_attention(spec))
    backbone = f"{stream}_backbone"
    bands = len(S2_BANDS if stream == "s2" else S1_BANDS)
    doy, multiplicity = _days(graph, form)
    values = _standardized(graph, spec, form, stream, bands, doy)
    key_bias, step_bias = _biases(graph, multiplicity)

    hidden = graph.node("Relu", layers.exact_linear(values, f"{backbone}.embedding.0"))
    x = layers.to_float(layers.linear(layers.from_float(hidden), f"{backbone}.embedding.2"))
    table = graph.parameter("positions", positional_table(spec.d_model))  # float32 in any precision
    x = layers.from_float(graph.node("Add", x, graph.node("Gather", table, doy)))
    for i in range(spec.num_layers):
        x = layers.transformer_layer(
            x,
            spec.layer_name(backbone, i),
            spec.d_model,
            spec.num_heads,
            spec.pre_norm,
            key_bias,
            quantized=True,
            first=i == 0,
        )
    pooled = layers.pool(x, _pool_logits(layers, spec, x, f"{backbone}.attn_pool"), step_bias)
    graph.output(pooled, "pooled", "fp32", ("P", spec.d_model))
    if taps is not None:
        for name, value in layers.inputs_of_products.items():
            graph.output(layers.to_float(value), f"tap:{name}", "fp32", ("P", "T", f"K:{name}"))
            taps.append(name)
    return graph.model({"model": spec.name, "precision": form.precision, "layout": form.layout})


def head(
    spec: ModelSpec, tensors: Tensors, form: Form, *, data: Path | None = None
) -> onnx.ModelProto:
    """Fusion layers where there are any, the reducer, and int8 where the form asks for it."""
    graph = Graph(f"{spec.name}-head", data)
    layers = Layers(graph, tensors, form, {})
    d = spec.d_model
    pooled = [graph.input(stream, "fp32", ("P", d)) for stream in STREAMS]
    if spec.fusion_layers:
        axis = graph.constant([1], "int64")
        tokens = graph.node("Concat", *(graph.node("Unsqueeze", p, axis) for p in pooled), axis=1)
        modality = layers.tensor("fusion_modality_embed", "fp32")
        x = layers.from_float(graph.node("Add", tokens, modality))
        for i in range(spec.fusion_layers):
            name = f"fusion_transformer.layers.{i}"
            x = layers.transformer_layer(x, name, d, FUSION_HEADS, spec.pre_norm)
        x = graph.node("Reshape", x, graph.constant([0, 2 * d], "int64"))
    else:
        x = layers.from_float(graph.node("Concat", *pooled, axis=-1))
    if spec.reducer == "mlp":
        x = graph.node(
            "Relu", layers.layer_norm(layers.linear(x, "dim_reducer.0"), "dim_reducer.1")
        )
    last = "dim_reducer.4" if spec.reducer == "mlp" else "dim_reducer.0"
    x = layers.exact_linear(layers.to_float(x), last)
    if spec.final_norm:
        x = layers.plain_layer_norm(x, spec.out_dim)
    dims = form.dims or spec.saved_dim
    if dims < spec.out_dim:
        ends = [graph.constant([n], "int64") for n in (0, dims, 1)]  # first, last, axis
        x = graph.node("Slice", x, *ends)
    if form.int8_output:
        _quantized_output(graph, spec, x, dims)
    else:
        graph.output(x, "embedding", "fp32", ("P", dims))
    return graph.model({"model": spec.name, "precision": form.precision, "layout": form.layout})


def _days(graph: Graph, form: Form) -> tuple[str, str | None]:
    """The days as int32 (P, T), and the multiplicities as float32 (P, T) where there are any."""
    if not form.packed:
        return graph.input("doy", "int32", ("P", "T")), None
    doy = graph.cast(graph.input("doy", "uint16", ("P", "T")), "int32")
    return doy, graph.cast(graph.input("multiplicity", "uint16", ("P", "T")), "fp32")


def _standardized(
    graph: Graph, spec: ModelSpec, form: Form, stream: str, bands: int, doy: str
) -> str:
    """(x - mean) / (std + 1e-9) in float32 with the orbit's statistics, 0 where doy is 0."""
    raw = "fp32" if not form.packed else "uint16" if stream == "s2" else "int16"
    x = graph.input("bands", raw, ("P", "T", bands))
    x = graph.cast(x, "fp32") if form.packed else x
    s = spec.statistics
    if stream == "s2":
        mean, std = _statistics(graph, s.s2_mean, s.s2_std)
    else:
        orbit = graph.input("orbit", "uint8" if form.packed else "int32", ("P", "T"))
        orbit = graph.cast(orbit, "int32") if form.packed else orbit
        mean, std = (
            graph.node("Gather", rows, orbit) for rows in _statistics(graph, s.s1_mean, s.s1_std)
        )
    x = graph.node("Div", graph.node("Sub", x, mean), std)
    seen = graph.node("Greater", doy, graph.constant(0, "int32"))
    seen = graph.node("Unsqueeze", seen, graph.constant([-1], "int64"))
    return graph.node("Where", seen, x, graph.constant(0.0, "fp32"))


def _statistics(graph: Graph, mean: object, std: object) -> tuple[str, str]:
    epsilon = np.float32(1e-9)
    return (
        graph.parameter("mean", np.asarray(mean, np.float32)),
        graph.parameter("std", np.asarray(std, np.float32) + epsilon),
    )


def _biases(graph: Graph, multiplicity: str | None) -> tuple[str | None, str | None]:
    """log(multiplicity) for the logits of attention (P, 1, T, T) and of pooling (P, T, 1)."""
    if multiplicity is None:
        return None, None
    one = graph.constant(1.0, "fp32")
    used = graph.node("GreaterOrEqual", multiplicity, one)
    logarithm = graph.node("Log", graph.node("Max", multiplicity, one))
    bias = graph.node("Where", used, logarithm, graph.constant(MASKED, "fp32"))
    shape = graph.node("Shape", multiplicity)
    slots = graph.node("Slice", shape, *(graph.constant([n], "int64") for n in (1, 2, 0)))
    # ONNX Runtime's Attention wants every query's row (1.32)
    every_query = graph.node(
        "Concat", graph.constant([1, 1], "int64"), slots, graph.constant([1], "int64"), axis=0
    )
    keys = graph.node("Unsqueeze", bias, graph.constant([1, 2], "int64"))
    return (
        graph.node("Expand", keys, every_query),
        graph.node("Unsqueeze", bias, graph.constant([-1], "int64")),
    )


def _pool_logits(layers: Layers, spec: ModelSpec, x: str, name: str) -> str:
    """The query's answer for every slot, float32 (P, T, 1)."""
    context = x
    if spec.pooling != "softmax":
        custom = spec.pooling == "custom_gru"
        context = layers.gru(x, f"{name}.temporal_context", spec.d_model, custom)
        if custom:
            context = layers.layer_norm(context, f"{name}.layer_norm")
    return layers.exact_linear(layers.to_float(context), f"{name}.query")


def _quantized_output(graph: Graph, spec: ModelSpec, x: str, dims: int) -> None:
    """As quantization.quantize: one scale a pixel, codes rounded half to even."""
    largest = graph.node(
        "ReduceMax", graph.node("Abs", x), graph.constant([-1], "int64"), keepdims=1
    )
    largest = graph.node("Max", largest, graph.constant(spec.absmax_floor, "fp32"))
    scale = graph.node("Div", largest, graph.constant(127.0, "fp32"))
    scale = graph.node("Max", scale, graph.constant(spec.scale_floor, "fp32"))
    code = graph.node("Round", graph.node("Div", x, scale))
    ends = [graph.constant(v, "fp32") for v in (-127.0, 127.0)]
    graph.output(graph.cast(graph.node("Clip", code, *ends), "int8"), "codes", "int8", ("P", dims))
    flat = graph.node("Squeeze", scale, graph.constant([-1], "int64"))
    graph.output(flat, "scales", "fp32", ("P",))
