"""Graphs in 16-bit types on a runtime without such kernels: every op in float32, rounded after it.

ONNX Runtime has no bfloat16 products for processors, and it joins casts of float16 so that
rounding is lost. ``widened`` puts a cast before and after every node that computes, which is what
the types of the graph say; a session of it must not be optimised.
"""

import onnx
from onnx import TensorProto, helper, shape_inference

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Ops that only move values, or are what rounds them: runtimes have them for every type.
MOVES = {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Concat",
         "Split", "Expand", "Slice", "Shape", "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
MOVES_IN_BF16 = {"Cast", "QuantizeLinear", "DequantizeLinear"}  # of those, the ones that round


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with float32 arithmetic and the original's roundings."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        narrow = types.get(node.output[0]) in NARROW
        if not narrow or node.op_type in MOVES_IN_BF16:
            nodes.append(node)
            continue
        inputs = []
        for i, name in enumerate(node.input):
            if types.get(name) in NARROW:
                wide = f"{node.output[0]}.wide_{i}"
                nodes.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
                inputs.append(wide)
            else:
                inputs.append(name)
        outputs = [f"{name}.wide" for name in node.output]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        nodes.append(copy)
        nodes += [
            helper.make_node("Cast", [wide], [name], to=types[name])
            for wide, name in zip(outputs, node.output, strict=True)
        ]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
