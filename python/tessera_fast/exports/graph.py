"""A typed ONNX graph, written node by node; parameters inside the file or beside it.

Every value is a name. ``Graph`` knows nothing of TESSERA: network.py does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 23  # the first with Attention
IR_VERSION = 10  # what opset 23 needs at least: runtimes refuse a later one than they know
_MINIMUM_EXTERNAL = (
    1024  # bytes: smaller tensors stay in the file, where shape inference reads them
)
_ALIGNMENT = 4096  # of tensors beside the file, so that runtimes can map them

DTYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "uint8": TensorProto.UINT8,
}


def numpy_dtype(element: str) -> np.dtype:
    """The numpy dtype of a name of ``DTYPES``; bf16 and fp8 are those of ml_dtypes."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(DTYPES[element]))


class Graph:
    """Nodes, inputs, outputs and parameters of one graph, in the order they are added."""

    def __init__(self, name: str, data: Path | None = None, prefix: str = "") -> None:
        """``data``: the file beside the graph that parameters are written to; None keeps them in
        the graph, which protobuf limits to 2 GiB. ``prefix`` of the names of values."""
        self.name = name
        self._prefix = prefix
        self._data = data
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._parameters: dict[str, TensorProto] = {}
        self._count = 0
        self._end = 0  # of the data file
        if data is not None:
            data.write_bytes(b"")

    def input(self, name: str, element: str, shape: tuple[int | str, ...]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, DTYPES[element], shape))
        return name

    def output(self, value: str, name: str, element: str, shape: tuple[int | str, ...]) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, DTYPES[element], shape))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        return self.nodes(op, *inputs, outputs=1, **attributes)[0]

    def nodes(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append a node with several outputs; returns their names."""
        self._count += 1
        label = f"{self._prefix}{op.lower()}_{self._count}"
        results = [label if outputs == 1 else f"{label}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), results, name=label, **attributes))
        return results

    def split(self, value: str, parts: int) -> list[str]:
        """Equal parts of the last axis."""
        return self.nodes("Split", value, outputs=parts, axis=-1, num_outputs=parts)

    def scan(self, body: "Graph", state: str, sequence: str) -> str:
        """``body`` over the first axis of ``sequence``: inputs (state, element), outputs (state,
        result); returns the stacked results. Its parameters are those of this graph."""
        inner = helper.make_graph(body._nodes, body.name, body._inputs, body._outputs)
        return self.nodes("Scan", state, sequence, outputs=2, body=inner, num_scan_inputs=1)[1]

    def parameter(self, name: str, array: np.ndarray) -> str:
        """A constant by name; the same name again is the same constant."""
        if name not in self._parameters:
            self._parameters[name] = self._tensor(name, np.asarray(array, order="C"))
        return name

    def constant(self, value: Any, element: str) -> str:
        """A small constant, named after its value: ``constant([0, -1], "int64")``."""
        dtype = np.dtype(np.int64) if element == "int64" else numpy_dtype(element)
        label = "_".join(map(str, np.ravel(value))) + ("_list" if np.ndim(value) else "")
        return self.parameter(f"const_{element}_{label}", np.asarray(value).astype(dtype))

    def cast(self, value: str, element: str) -> str:
        return self.node("Cast", value, to=DTYPES[element])

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model; ``metadata`` becomes its metadata_props."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._parameters.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="tessera_fast",
        )
        helper.set_model_props(model, metadata)
        return model

    def _tensor(self, name: str, array: np.ndarray) -> TensorProto:
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=array.shape)
        if self._data is None or array.nbytes < _MINIMUM_EXTERNAL:
            tensor.raw_data = array.tobytes()
            return tensor
        start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        with self._data.open("r+b") as file:
            file.seek(start)
            file.write(array.tobytes())
        self._end = start + array.nbytes
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self._data.name),
            ("offset", start),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
