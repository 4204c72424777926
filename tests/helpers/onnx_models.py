"""An exported model in ONNX Runtime, for tests: packed tokens in, embeddings out."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from onnx_emulation import widened
from tessera_fast.exports import feeds, network
from tessera_fast.exports.form import Form
from tessera_fast.packing import PackedTokens
from tessera_fast.weights import Weights

SLOTS = 2048  # of one run: odd numbers of pixels, several runs a stream
PARTS = ("s2", "s1", "head")


def graphs(
    weights: Weights, form: Form, ranges: Mapping[str, float] | None = None
) -> dict[str, onnx.ModelProto]:
    """The three graphs of a model."""
    tensors = weights.tensors
    made = {
        s: network.encoder(weights.spec, tensors, s, form, ranges=ranges) for s in network.STREAMS
    }
    return {**made, "head": network.head(weights.spec, tensors, form)}


def session(model: onnx.ModelProto, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class OnnxModel:
    """Sessions of the graphs; 16-bit types are rounded op by op unless ``as_is``."""

    def __init__(
        self,
        weights: Weights,
        form: Form,
        ranges: Mapping[str, float] | None = None,
        as_is: bool = False,
    ) -> None:
        self.spec, self.form = weights.spec, form
        exact = not as_is and form.compute != "fp32"
        self.sessions = {
            part: session(widened(model), optimized=False) if exact else session(model)
            for part, model in graphs(weights, form, ranges).items()
        }

    def takes(self, *streams: PackedTokens) -> bool:
        """Whether the layout can hold these tokens: the packed one is of raw integers."""
        return not self.form.packed or all(
            np.issubdtype(t.bands.dtype, np.integer) and not t.standardized for t in streams
        )

    def pooled(self, stream: str, tokens: PackedTokens) -> np.ndarray:
        out = np.full((tokens.pixels, self.spec.d_model), np.nan, np.float32)
        run = self.sessions[stream]
        if self.form.packed:
            step = 13
            for first in range(0, tokens.pixels, step):
                last = min(first + step, tokens.pixels)
                out[first:last] = run.run(["pooled"], feeds.slots(tokens, first, last))[0]
            return out
        zeros = {"bands": (1, 1, tokens.bands.shape[1]), "doy": (1, 1), "orbit": (1, 1)}
        nothing = {
            i.name: np.zeros(zeros[i.name], np.float32 if i.name == "bands" else np.int32)
            for i in run.get_inputs()
        }
        out[:] = run.run(["pooled"], nothing)[0]
        for pixels, inputs in feeds.bins(self.spec, tokens, lambda length: SLOTS // length):
            out[pixels] = run.run(["pooled"], inputs)[0]
        return out

    def head(self, s2: np.ndarray, s1: np.ndarray) -> list[np.ndarray]:
        return self.sessions["head"].run(None, {"s2": s2, "s1": s1})

    def embed(self, s2: PackedTokens, s1: PackedTokens) -> list[np.ndarray]:
        return self.head(self.pooled("s2", s2), self.pooled("s1", s1))
