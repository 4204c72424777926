"""Name the kernel that is wrong: every op of a model's encode beside plain torch on its own inputs.

    python bench/gpu_ops.py v2-nano=triton:bf16

Each launcher of the cuda back end is called with the tensors it gets in a real encode, and its
result is compared with float64 arithmetic on copies of those tensors. So an op is judged alone: an
error of an earlier one does not count against it. The first op that deviates is named with the
error relative to its largest output; an op that crashes is named too. The fused kernel is one op:
it is run with 1, 2, ... layers, and the first number of layers that is wrong is named.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gpu_case
import gpu_expected
import gpu_rows
import gpu_small
from gpu_case import GATES
from gpu_expected import EXPECTED, relative_error
from tessera_fast.backends.cuda import forward
from tessera_fast.backends.cuda.fused import FusedNetwork
from tessera_fast.kernels.triton.elements import Linear
from tessera_fast.model.model import Model

Finding = dict[str, Any]


def main() -> None:
    args = gpu_small.arguments(__doc__).parse_args()
    device = gpu_case.torch_device(args.device)
    for model, ours in gpu_small.cases(args.cases):
        weights = gpu_small.weights_of(model)
        judge = torch.device(args.reference_device or device)
        tile = gpu_small.Tile.small(weights, args.few, judge)
        loaded = ours.load(weights, args.device)
        found = list(deviations(loaded, tile))
        found = found or [{"op": "", "deviation": 0.0, "text": "every op agrees by itself"}]
        for finding in found:
            gpu_rows.append(
                args.rows, {"bench": "gpu_ops", "model": model, "contender": ours.label, **finding}
            )
            print(f"{model:10} {ours.label:12} {finding['text']}", flush=True)


def deviations(model: Model, tile: gpu_small.Tile) -> Iterator[Finding]:
    """The first op that is wrong, if one is, with the place in the order of ops."""
    encoder: Any = model.encoder
    network = encoder._network
    checked = Checked(network)
    out = np.full(tile.expected.shape, np.nan, np.float32)
    try:
        # timed: kernels are launched one by one, and no graph is captured
        with checked.installed(), encoder.ranges.timed():
            encoder.encode(*tile.tokens, out)
            checked.synchronize()
    except gpu_case.failures() as error:
        yield {
            "op": checked.last,
            "deviation": math.inf,
            "text": f"{checked.last} (op {checked.count}) fails: {error}",
        }
        return
    yield from checked.found[:1]


class Checked:
    """The launchers of backends/cuda/forward.py, each followed by a comparison."""

    def __init__(self, network: Any) -> None:
        weights = network.weights
        self._element: str = weights.s2.layers[0].ff1.element
        self._streams = {"s2": weights.s2, "s1": weights.s1}
        self._device = weights.table.device
        self.found: list[Finding] = []
        self.last, self.count = "the first launch", 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The launchers are module-level names of forward.py, and the fused kernel a method."""
        kept = {name: getattr(forward, name) for name in EXPECTED}
        fused = FusedNetwork.encode
        try:
            for name, launcher in kept.items():
                setattr(forward, name, self._wrapped(name, launcher))
            FusedNetwork.encode = self._fused(fused)  # type: ignore[method-assign]
            yield
        finally:
            for name, launcher in kept.items():
                setattr(forward, name, launcher)
            FusedNetwork.encode = fused  # type: ignore[method-assign]

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _wrapped(self, name: str, launcher: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            before, more = _copied(args), dict(zip(options, _copied(options.values()), strict=True))
            self._begin(name)
            launcher(*args, **options)
            self.synchronize()
            place, expectation = EXPECTED[name]
            self._compare(name, args[place], expectation(*before, **more), _shapes(args))

        return call

    def _fused(self, encode: Callable[..., None]) -> Callable[..., None]:
        def call(
            network: FusedNetwork,
            name: str,
            tokens: Any,
            planned: Tensor,
            out: Tensor,
            constant: Tensor,
        ) -> None:
            whole = network._operands[name]
            for layers in range(1, whole.layers + 1):
                network._operands[name] = whole._replace(layers=layers)
                self._begin(f"encode_network, {layers} layers")
                encode(network, name, tokens, planned, out, constant)
                self.synchronize()
                expected = self._pooled(network, name, tokens, layers, constant)
                self._compare(self.last, out, expected, f"stream {name}")

        return call

    def _pooled(
        self, network: FusedNetwork, name: str, tokens: Any, layers: int, constant: Tensor
    ) -> Tensor:
        """A stream's pooled vectors after some of its layers, by the same expectations."""
        w, heads = self._streams[name], network._spec.num_heads
        x = gpu_expected.embed(
            tokens.bands,
            tokens.orbit,
            tokens.doy,
            w.mean,
            w.std,
            w.embed1,
            w.embed2,
            network._table,
            None,
            standardized=tokens.standardized,
            unsigned=tokens.unsigned,
        )
        series = tokens.offsets, tokens.multiplicity
        for layer in w.layers[:layers]:
            x = gpu_expected.attention_block(
                x, layer.qkv, layer.out, *layer.norm1, *series, None, heads
            )
            x = gpu_expected.ffn(x, layer.ff1, layer.ff2, None, *layer.norm2)
        return gpu_expected.pool(x, w.query, w.query_bias, *series, constant, None)

    def _begin(self, name: str) -> None:
        self.last, self.count = name, self.count + 1

    def _compare(self, name: str, got: Any, expected: Any, shapes: str) -> None:
        parts = zip(_parts(got), _parts(expected), strict=True)
        error = max(relative_error(g, e) for g, e in parts)
        allowed = GATES["op_deviation"](name, self._element)
        if not error <= allowed:
            text = f"{name} (op {self.count}; {shapes}) deviates by {error:.1e} of its largest"
            self.found.append(
                {
                    "op": name,
                    "count": self.count,
                    "deviation": error,
                    "allowed": allowed,
                    "text": f"{text} output, {allowed:.1e} is allowed",
                }
            )


def _copied(values: Any) -> list[Any]:
    """Of arguments: tensors may be written by the launcher, and in place."""
    return [_copy(value) for value in values]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and not isinstance(value, Linear):
        copies = [_copy(part) for part in value]
        return type(value)(*copies) if hasattr(value, "_fields") else tuple(copies)
    return value  # weights, of which none is written


def _parts(values: Any) -> tuple[Tensor, ...]:
    return values if isinstance(values, tuple) else (values,)


def _shapes(args: tuple[Any, ...]) -> str:
    """Of the operands, for the line."""
    shown = [
        list(a.weight.shape) if isinstance(a, Linear) else list(a.shape)
        for a in args
        if isinstance(a, Linear | Tensor)
    ]
    return " ".join("x".join(map(str, shape)) for shape in shown[:3])


if __name__ == "__main__":
    main()
