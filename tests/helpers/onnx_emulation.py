"""Graphs in 16-bit types on a runtime without such kernels: every op in float32, rounded after it.

ONNX Runtime has no bfloat16 products for processors, and it joins casts of float16 so that
rounding is lost. ``widened`` puts a cast before and after every node that computes, which is what
the types of the graph say; a session of it must not be optimised.
"""

import onnx
from onnx import TensorProto, helper, shape_inference

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
AS_THEY_ARE = {"Cast", "QuantizeLinear", "DequantizeLinear", "Scan"}  # runtimes have these


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with float32 arithmetic and the original's roundings."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    types |= {t.name: t.data_type for t in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _widen(result.graph, types)
    return result


def _widen(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    nodes = []
    for node in graph.node:
        if node.op_type == "Scan":  # runtimes have it for every type; its body is a graph like this
            body = next(a.g for a in node.attribute if a.name == "body")
            element = types[node.input[0]]  # a step's values are of the state's type
            inner = {name: element for n in body.node for name in n.output}
            inner |= {v.name: v.type.tensor_type.elem_type for v in body.input}
            _widen(body, types | inner)
        narrow = types.get(node.output[0]) in NARROW
        if not narrow or node.op_type in AS_THEY_ARE:
            nodes.append(node)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if types.get(name) in NARROW:
                copy.input[i] = f"{node.output[0]}.wide_{i}"
                nodes.append(
                    helper.make_node("Cast", [name], [copy.input[i]], to=TensorProto.FLOAT)
                )
        nodes.append(copy)
        for i, name in enumerate(node.output):
            copy.output[i] = f"{name}.wide"
            nodes.append(helper.make_node("Cast", [copy.output[i]], [name], to=types[name]))
    del graph.node[:]
    graph.node.extend(nodes)
