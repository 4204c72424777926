"""The tensorrt back end's host code on fake devices and a fake TensorRT."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
torch = pytest.importorskip("torch", reason="torch is not installed")

from fake_cuda import FakeCuda  # noqa: E402
from tessera_fast.backends.base import RunOptions  # noqa: E402
from tessera_fast.backends.tensorrt import EMULATED, adapter, encoder, lanes, tensorrt  # noqa: E402
from tessera_fast.errors import BackendUnavailable  # noqa: E402
from tessera_fast.exports.form import Form  # noqa: E402
from tessera_fast.model import export as exporting  # noqa: E402
from tessera_fast.packing import pack  # noqa: E402
from tessera_fast.spec import released  # noqa: E402
from tessera_fast.synthetic import synthetic_tile  # noqa: E402
from tessera_fast.tile import open_tile  # noqa: E402

SPEC = released("v2-nano")
DEVICE = torch.device("cuda", 1)  # not the current one
PARTS = ("s2_encoder", "s1_encoder", "head")


class Engine:
    """Stands for an engine: pooled vectors are the first day, embeddings their sum."""

    def __init__(self, part, workspace=0):
        self.part, self._workspace = part, workspace

    def workspace_bytes(self):
        return self._workspace

    def context(self, length, workspace):
        assert workspace.numel() >= self._workspace
        return workspace

    def enqueue(self, context, inputs, output):
        context.fill_(1)
        if self.part == "head":
            output.copy_(inputs["s2"][:, : output.shape[1]])
            output.add_(inputs["s1"][:, : output.shape[1]])
        else:
            output.copy_(inputs["doy"][:, :1].expand_as(output))


@pytest.fixture
def machine(monkeypatch):
    """Two pixels a batch, so that lanes take many turns."""
    made = {part: Engine(part, 1 << (10 + i)) for i, part in enumerate(PARTS)}
    monkeypatch.setattr(encoder, "engine_modules", lambda *_: (made, {}))
    monkeypatch.setattr(encoder, "emulated_modules", lambda *_: (made, {}))
    for module in (encoder, lanes):
        monkeypatch.setattr(module, "batch_pixels", lambda length: 2)
    with FakeCuda(monkeypatch) as machine:
        yield machine


def load(place=str(DEVICE)):
    return encoder.TensorrtEncoder(SimpleNamespace(spec=SPEC), Form("fp16", "dense"), place)


def tokens(height=3):
    return pack(open_tile(synthetic_tile(height, 6)).rows(0, height), SPEC)[:2]


def encode(loaded, s2, s1):
    out = np.full((s2.pixels, SPEC.saved_dim), np.nan, np.float32)
    loaded.encode(s2, s1, out)
    return out


@pytest.mark.parametrize("graphs", ["0", "1"])
def test_lanes_leave_no_hazard(machine, monkeypatch, graphs):
    """Also from several streams of a caller, and with what was captured."""
    monkeypatch.setenv("TESSERA_FAST_TENSORRT_GRAPHS", graphs)
    s2, s1 = tokens()
    expected = encode(load(EMULATED), s2, s1)
    with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
        loaded = load()
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            np.testing.assert_array_equal(encode(loaded, s2, s1), expected)
    loaded.close()
    del loaded
    assert bool(machine.captures) == (graphs == "1")
    assert {c.device for c in machine.captures} <= {DEVICE}
    assert {c.mode for c in machine.captures} <= {"thread_local"}
    assert not machine.hazards


def test_an_encode_that_raises_waits_for_its_lanes(machine, monkeypatch):
    loaded, (s2, s1) = load(), tokens()
    started = []

    def fail(self, length):
        started.append(length)
        if len(started) > 5:
            raise RuntimeError("no")
        return self._workspace.memory

    monkeypatch.setattr(lanes.Lane, "_context", fail)
    with pytest.raises(RuntimeError, match="no"):
        encode(loaded, s2, s1)
    loaded.close()
    del loaded
    assert not machine.hazards


def test_lanes_of_a_stream_share_their_workspace(machine):
    """Five lanes, two workspaces: the head runs when both streams are done."""
    loaded = load()
    spaces = {id(lane._workspace): lane._workspace for lane in [*loaded._all_lanes(), loaded._head]}
    assert sorted(space.memory.numel() for space in spaces.values()) == [1 << 11, 1 << 12]


def test_an_engine_without_a_workspace_is_given_an_address(machine):
    space = lanes.Workspace([Engine("head", 0)], DEVICE)
    assert space.memory.numel() >= 256 and space.memory.data_ptr()


# ---- TensorRT


class Recorder:
    """Stands for any object of TensorRT: takes every call and keeps it under its name."""

    def __init__(self, calls):
        self._calls = calls

    def __getattr__(self, name):
        def call(*arguments):
            self._calls.setdefault(name, []).append(arguments)
            return b"plan" if name == "build_serialized_network" else Recorder(self._calls)

        return call


def package(version, name="tensorrt", calls=None):
    recorder = Recorder({} if calls is None else calls)
    module = SimpleNamespace(
        __version__=version,
        Builder=lambda logger: recorder,
        OnnxParser=lambda network, logger: recorder,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ILogger=type(
            "ILogger", (), {"Severity": SimpleNamespace(WARNING=1, ERROR=2, INTERNAL_ERROR=3)}
        ),
    )
    return adapter.Package(name, module)


def test_a_build_is_told_how_much_memory_an_operation_may_take(tmp_path):
    calls = {}
    assert adapter.build(package("10.3.0", calls=calls), tmp_path / "x.onnx", []) == b"plan"
    assert calls["set_memory_pool_limit"] == [("workspace", adapter.SCRATCH_BYTES)]


@pytest.mark.parametrize(
    ("name", "version", "old"),
    [
        ("tensorrt", "8.6.2", True),  # of JetPack 6.0
        ("tensorrt", "10.0.1", True),
        ("tensorrt", "9.3.0.post12.dev1", True),
        ("tensorrt", "10.1.0", False),
        ("tensorrt", "10.13.3.9", False),
        ("tensorrt", "11.0", False),
        ("tensorrt_rtx", "1.0.0.21", False),
    ],
)
def test_a_tensorrt_that_is_too_old_is_a_reason(machine, monkeypatch, tmp_path, name, version, old):
    found = package(version, name)
    monkeypatch.setattr(adapter, "installed", lambda: found)
    monkeypatch.setattr(adapter, "capabilities", lambda package: [])
    reason = tensorrt.why_not(SPEC, RunOptions("fp16"))
    if not old:
        assert reason is None
        return
    assert reason == (
        f"tensorrt {version} is too old: expected 10.1 or newer; pip install -U tensorrt, or on "
        "Jetson install JetPack 6.1 or newer"
    )
    with pytest.raises(BackendUnavailable, match=r"too old: expected 10\.1"):
        exporting._write_engines(None, Form("fp16", "dense"), tmp_path, (), False, None)
