"""Calls of every function of tessera_fast._cpu with arguments that it must refuse, or bear.

    python binding_fuzz.py SEED SECONDS [ISA ...]

Each call starts from arguments that are right, and up to three of them become hostile: another
type, shape, dtype, order or place, read-only, values beyond all bounds. A call may return or raise
one of EXPECTED. The process must not die, and nothing may be written beside an array. It prints the
number of calls that returned and that raised. Started by test_bindings.py and sanitizers.py.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from tessera_fast import _cpu
from tessera_fast.backends.base import RunOptions
from tessera_fast.backends.cpu import cpu
from tessera_fast.errors import TesseraError
from tessera_fast.packing import Observations, Orbit, pack
from tessera_fast.spec import variant
from tessera_fast.weights import untrained_weights

EXPECTED = (TesseraError, TypeError, MemoryError, KeyError, AttributeError, ZeroDivisionError)
FENCE = 64  # bytes on both sides of every array
SCALARS: tuple[Any, ...] = (
    None,
    0,
    -1,
    1,
    2,
    3,
    7,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**62,
    2**63,
    2**64,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    "",
    "x",
    "bf16",
    "int8",
    b"fp32",
    (),
    [],
    {},
)
DTYPES = (
    "u1",
    "i1",
    "u2",
    "i2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    ">f4",
    ">u2",
    "?",
    "O",
    "S3",
    "M8[s]",
)
ELEMENTS = ("fp32", "bf16", "int8")
SIZES = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}
MODELS = [
    variant("v2-nano", name="v2-tiny", out_dim=32, saved_dim=32, matryoshka=(32,), **SIZES),
    variant("v1.1-mpc", name="v1.1-tiny", **SIZES),
    variant("v1.0", name="v1.0-tiny", **SIZES),
]


class Fences:
    """Memory for arrays, with known bytes on both sides."""

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []

    def place(self, values: Any) -> np.ndarray:
        a = np.ascontiguousarray(values)
        memory = np.full(a.nbytes + 2 * FENCE, 0xA5, np.uint8)
        self._memory.append(memory)
        # the array's memory ends at the fence: the outermost array is not the whole
        inside = memoryview(memory)[FENCE : FENCE + a.nbytes]
        view = np.frombuffer(inside, a.dtype).reshape(a.shape) if a.nbytes else a
        view[...] = a
        return view

    def check(self) -> None:
        for memory in self._memory:
            assert (memory[:FENCE] == 0xA5).all() and (memory[-FENCE:] == 0xA5).all(), "beside"
        self._memory = []


class Raises:
    def __getitem__(self, name: str) -> np.ndarray:
        raise ZeroDivisionError(name)


class Fuzz:
    def __init__(self, seed: int, isas: list[str]) -> None:
        self.random = random.Random(seed)
        self.values = np.random.default_rng(seed)
        self.fences = Fences()
        self.isas = isas
        self.models = [self._model(spec, isa) for spec in MODELS for isa in isas]
        self.returned = self.raised = 0

    # ---- hostile values

    def hostile(self, value: Any, others: list[Any]) -> Any:
        """Something in place of ``value``."""
        if isinstance(value, np.ndarray) and self.random.random() < 0.8:
            return self._array(value, others)
        if isinstance(value, str) and self.random.random() < 0.5:
            return value + "\ud800" if self.random.random() < 0.5 else value * 1000
        return self.random.choice(SCALARS)

    def _array(self, a: np.ndarray, others: list[Any]) -> Any:
        r = self.random
        axis = r.randrange(max(a.ndim, 1))
        ways: list[Callable[[], Any]] = [
            lambda: self.fences.place(a.astype(r.choice(DTYPES[:10]))),
            lambda: np.zeros(a.shape, r.choice(DTYPES)),
            lambda: self._misaligned(a),
            lambda: a[..., None],
            lambda: a[0],
            lambda: a.ravel(),
            lambda: a.T,
            lambda: a.swapaxes(0, -1),
            lambda: np.flip(a, axis),
            lambda: np.repeat(a, 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)],
            lambda: self.fences.place(np.delete(a, 0, axis)),
            lambda: self.fences.place(np.repeat(a, 2, axis)),
            lambda: self.fences.place(np.take(a, [], axis)),
            lambda: np.broadcast_to(a.ravel()[:1].reshape((1,) * a.ndim), a.shape),
            lambda: np.broadcast_to(a[:1], (r.choice((0, 70_000)), *a.shape[1:])),
            lambda: np.lib.stride_tricks.as_strided(a, a.shape, (0,) * a.ndim),
            lambda: np.ma.masked_array(a, a == 0),
            lambda: a.view(np.recarray),
            lambda: self._read_only(a),
            lambda: self._extreme(a),
            lambda: self._extreme(a),
            lambda: a.tolist(),
            lambda: r.choice([o for o in others if isinstance(o, np.ndarray)]),
            lambda: np.float32(1),
        ]
        try:
            return r.choice(ways)()
        except (ValueError, IndexError, TypeError, OverflowError):  # numpy cannot make it
            return None

    def _misaligned(self, a: np.ndarray) -> np.ndarray:
        memory = np.zeros(a.nbytes + 1, np.uint8)
        return np.frombuffer(memory, a.dtype, offset=1, count=a.size).reshape(a.shape)

    def _read_only(self, a: np.ndarray) -> np.ndarray:
        b = a.view()
        b.flags.writeable = False
        return b

    def _extreme(self, a: np.ndarray) -> np.ndarray:
        b = self.fences.place(a)
        flat = b.reshape(-1)
        if a.dtype.kind == "f":
            values: tuple[Any, ...] = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0)
        else:
            top = np.iinfo(a.dtype)
            values = (top.min, top.max, 0, 1, top.max // 2)
        for _ in range(self.random.choice((1, 3, len(flat)))):
            flat[self.random.randrange(len(flat))] = self.random.choice(values)
        return b

    # ---- right arguments

    def floats(self, *shape: int) -> np.ndarray:
        return self.fences.place(self.values.standard_normal(shape, np.float32))

    def side(self) -> int:
        return self.random.choice((1, 2, 3, 7, 8, 16, 17, 33))

    def _model(self, spec: Any, isa: str) -> Any:
        """(spec, arguments of load_encoder, loaded)."""
        seen: list[Any] = []
        original = _cpu.load_encoder
        try:
            _cpu.load_encoder = lambda *a: seen.append(a) or original(*a)
            precision = self.random.choice(("fp32", "bf16", "int8"))
            cpu.load(spec, untrained_weights(spec), RunOptions(precision, threads=1))
        finally:
            _cpu.load_encoder = original
        config, positions, tensors, _, _ = seen[0]
        tensors = {name: tensors[name] for name in tensors}
        arguments = (config, positions, tensors, isa, precision)
        return spec, arguments, original(*arguments)

    def case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        """A function and its arguments, by name or, under the keys 0, 1, ..., by place."""
        cases = (
            self._matrix_case,
            self._row_case,
            self._small_case,
            self._load_case,
            self._pack_case,
            self._encode_case,
        )
        return self.random.choice(cases)()

    def _matrix_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        r, ops, isa = self.random, _cpu.ops, self.random.choice(self.isas)
        M, D, K, H = self.side(), self.side(), self.side(), r.choice((1, 2, 3))
        if r.random() < 0.5:
            half = r.random() < 0.3
            y = self.fences.place(np.zeros((M, D), np.uint16)) if half else self.floats(M, D)
            return ops.linear, {
                "isa": isa,
                "x": self.floats(M, K),
                "weight": self.floats(D, K),
                "bias": self.floats(D),
                "residual": self.floats(M, D),
                "relu": True,
                "y": y,
                "element": r.choice(ELEMENTS),
                "nonnegative": False,
            }
        return ops.attention, {
            "isa": isa,
            "qkv": self.floats(M, 3 * H * D),
            "heads": H,
            "log_multiplicity": self.floats(M),
            "y": self.floats(M, H * D),
            "element": r.choice(("fp32", "bf16")),
        }

    def _row_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        r, ops, isa = self.random, _cpu.ops, self.random.choice(self.isas)
        M, D, H, row = self.side(), self.side(), r.choice((1, 2, 3)), self.floats
        x = row(M, D)
        stage = r.choice(("custom_gates", "custom_state", "torch_state"))
        function, arguments = r.choice(
            (
                (ops.layer_norm, (isa, x, row(D), row(D), 1e-5, False, row(M, D))),
                (ops.rms_norm, (isa, row(M, H * D), H, row(D), 1e-5)),
                (ops.pool, (isa, x, row(D), 0.5, row(M), row(D))),
                (ops.gru_step, (isa, stage, row(M, 3 * D), row(M, 3 * D), x, row(M, D), row(M, D))),
            )
        )
        return function, dict(enumerate(arguments))

    def _small_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        r, ops, isa = self.random, _cpu.ops, self.random.choice(self.isas)
        x, element = self.floats(self.side(), self.side()), r.choice(ELEMENTS)
        return r.choice(
            (
                (ops.convert, {"isa": isa, "x": x, "element": element, "nonnegative": x[0, 0] < 0}),
                (ops.spin, {"isa": isa, "element": element, "steps": r.choice((0, 1, 9))}),
                (
                    _cpu.quantize,
                    {"embeddings": x, "absmax_floor": 1e-8, "scale_floor": 1e-10, "isa": isa},
                ),
                (ops.int8_group, {0: isa}),
                (_cpu.select_isa, {0: isa}),
                (_cpu.native_bf16, {0: isa}),
                (_cpu.isas, {}),
            )
        )

    def _load_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        _, (config, positions, tensors, isa, precision), _ = self.random.choice(self.models)
        config, tensors = dict(config), dict(tensors)
        for _ in range(self.random.choice((0, 1, 1, 2))):
            name = self.random.choice(list(config))
            config[name] = self.hostile(config[name], [positions])
            if self.random.random() < 0.1:
                del config[name]
        if self.random.random() < 0.4:
            name = self.random.choice(list(tensors))
            tensors[name] = self.hostile(tensors[name], [positions])
        source = self.random.choice((tensors, tensors, tensors, Raises(), {}))
        return _cpu.load_encoder, dict(
            config=config, positions=positions, tensors=source, isa=isa, precision=precision
        )

    def _series(self, channels: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.random.choice((1, 3, 9, 41, 260)), 2, 3)
        bands = self.values.integers(0, 3, (*shape, channels)).astype(dtype)
        days = self.values.integers(1, 367, shape, dtype=np.int32)
        return self.fences.place(bands), self.fences.place(days)

    def _pack_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        r = self.random
        bands, days = self._series(10, r.choice(("u2", "i2", "f4")))
        mask: Any = self.fences.place(self.values.integers(0, 2, bands.shape[:3]).astype(np.uint8))
        dtype = r.choice(("u2", "i2", "f4"))
        orbits: Any = [(*self._series(2, dtype), i) for i in range(r.choice((0, 1, 2)))]
        s2: Any = (bands, mask, days)
        if r.random() < 0.4:
            s2 = self._changed(s2)
        if orbits and r.random() < 0.4:
            orbits[-1] = self._changed(orbits[-1])
        return _cpu.pack, dict(
            s2=s2,
            orbits=orbits,
            sampling=r.choice(("v2", "v1.1", "v1.0")),
            want_steps=True,
            binary_masks=False,
            row0=0,
            seed=1,
            threads=r.choice((1, 2)),
        )

    def _changed(self, items: tuple[Any, ...]) -> Any:
        changed = list(items)
        i = self.random.randrange(len(changed))
        changed[i] = self.hostile(changed[i], changed)
        cut = self.random.choice((None, None, None, len(changed) - 1, 1))
        return tuple(changed[:cut])

    def _encode_case(self) -> tuple[Callable[..., Any], dict[Any, Any]]:
        r = self.random
        spec, _, encoder = r.choice(self.models)
        bands, days = self._series(10, r.choice(("u2", "i2", "f4")))
        sar, sar_days = self._series(2, "i2")
        mask = self.values.integers(0, 2, bands.shape[:3]).astype(np.uint8)
        orbit = Orbit(0, sar, sar_days)
        packed = pack(Observations(bands, mask, days, (orbit,)), spec, threads=1)[:2]
        streams = []
        for tokens in packed:
            fields = dict(vars(tokens))
            if r.random() < 0.4:
                name = r.choice(list(fields))
                fields[name] = self.hostile(fields[name], list(fields.values()))
                if r.random() < 0.1:
                    del fields[name]
            streams.append(SimpleNamespace(**fields))
        out = self.floats(6, spec.saved_dim)
        progress = r.choice((None, None, lambda _: None, 3, lambda: None, {}.__getitem__))
        return encoder.encode, dict(
            s2=streams[0],
            s1=streams[1],
            out=out,
            threads=r.choice((1, 2)),
            progress=progress,
            profile=r.random() < 0.5,
        )

    # ---- calls

    def call(self) -> None:
        function, arguments = self.case()
        names = list(arguments)
        for _ in range(min(self.random.choice((0, 1, 1, 2, 3)), len(names))):
            name = self.random.choice(names)
            arguments[name] = self.hostile(arguments[name], list(arguments.values()))
        by_place = 0 in arguments
        try:
            if by_place:
                function(*arguments.values())
            else:
                function(**arguments)
            self.returned += 1
        except EXPECTED:
            self.raised += 1
        self.fences.check()


def main(seed: int, seconds: float, isas: list[str]) -> None:
    with suppress(ImportError):  # absurd sizes fail instead of filling the machine
        import resource

        if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # its shadow is larger
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    fuzz = Fuzz(seed, isas or [name for name, runs, *_ in _cpu.isas() if runs])
    end = time.monotonic() + seconds
    with np.errstate(all="ignore"):  # casts of NaN
        while time.monotonic() < end:
            fuzz.call()
    print(fuzz.returned, fuzz.raised)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
