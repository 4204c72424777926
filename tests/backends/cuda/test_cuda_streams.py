"""The cuda back end's host code on fake devices: order of streams, lives of buffers, graphs."""

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from places import REPOSITORY

torch = pytest.importorskip("torch", reason="the cuda back end needs torch")
pytest.importorskip("triton", reason="the cuda back end needs triton")

from fake_cuda import FakeCuda, fake_graphs  # noqa: E402
from tessera_fast.backends import base  # noqa: E402
from tessera_fast.backends.cuda import encoder, forward, replay, uploads  # noqa: E402
from tessera_fast.backends.cuda.arena import Arena  # noqa: E402
from tessera_fast.backends.cuda.packer import DevicePacker  # noqa: E402
from tessera_fast.backends.cuda.tokens import to_device  # noqa: E402
from tessera_fast.diagnostics import profile_gpu as gpu_profiling  # noqa: E402
from tessera_fast.packing import pack  # noqa: E402
from tessera_fast.quantization import QuantizedEmbeddings  # noqa: E402
from tessera_fast.spec import released  # noqa: E402
from tessera_fast.synthetic import synthetic_tile  # noqa: E402
from tessera_fast.tile import open_tile  # noqa: E402

SPEC = released("v2-nano")
WIDTH = 8
DEVICE = torch.device("cuda", 1)  # not the current one
native = pytest.importorskip(
    "tessera_fast._cuda_emulated", reason="built without _cuda_emulated: see CMakeLists.txt"
)


class Network:
    """Stands for the kernels: an embedding counts the tokens of both streams up to its pixel."""

    def __init__(self, spec, *_):
        self.spec = spec
        self.encoded = []  # pixels of each chunk

    def token_bytes(self):
        return 64

    def pixel_bytes(self, steps):
        return 64

    def encode(self, s2, s1, arena, out):
        self.encoded.append(s2.pixels)
        with arena.frame():
            bands = arena.empty(s2.doy.numel() + 1, dtype=torch.float32)
            bands[:-1].copy_(s2.bands[:, 0])  # what a kernel reads
            sums = arena.empty(s2.pixels, WIDTH, dtype=torch.float32)
            sums.copy_(s2.offsets[1:, None].expand(-1, WIDTH))
            sums.add_(s1.offsets[1:, None].expand(-1, WIDTH))
            for part in out if isinstance(out, tuple) else (out,):
                part.copy_(sums if part.dim() == 2 else sums[:, 0])


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(encoder, "Network", Network)
    monkeypatch.setattr(encoder, "network_weights", lambda *_: None)
    with FakeCuda(monkeypatch) as machine:
        yield machine


def load(device=DEVICE):
    weights = SimpleNamespace(tensors={})
    return encoder.CudaEncoder(SPEC, weights, device, "bf16", native)


def window(height=4, width=6):
    return open_tile(synthetic_tile(height, width)).rows(0, height)


def tokens(height=4, width=6, spec=SPEC):
    """Packed pixels; the synthetic tile is at least 6 wide."""
    seen = window(height, max(width, 6)).window(slice(0, height), slice(0, width))
    return pack(seen, spec)[:2]


def expected(s2, s1):
    return np.repeat((s2.offsets + s1.offsets)[1:, None], WIDTH, 1).astype(np.float32)


def on_device(packed):
    return [to_device(stream, DEVICE) for stream in packed]


def outputs(pixels):
    """A tensor on the device, and memory that a caller has written before."""
    return torch.zeros(pixels, WIDTH, device=DEVICE)


# ---- order and lives of buffers


def test_calls_on_several_streams_leave_no_hazard(machine, monkeypatch):
    """Growing requests, each on another stream of the caller's: workspaces and graphs' buffers are
    replaced and let go while streams still run."""
    monkeypatch.setattr(replay, "_MOST_GRAPHS", 1)
    loaded = load()
    calls = []
    for height in (2, 2, 2, 9, 40, 2, 2, 2):
        s2, s1 = tokens(height)
        caller = torch.cuda.Stream(DEVICE)
        with torch.cuda.stream(caller):
            out = outputs(s2.pixels)
            loaded.encode(s2, s1, out)
        calls.append((caller, out, expected(s2, s1)))
    del out
    assert len(machine.captures) > 1
    loaded.close()
    for caller, out, wanted in calls:
        with torch.cuda.stream(caller):  # after the encode, in its order
            np.testing.assert_array_equal(out.cpu().numpy(), wanted)
    assert not machine.hazards


def test_what_a_caller_writes_next_comes_after_the_encode(machine):
    loaded, (s2, s1) = load(), tokens()
    out = outputs(s2.pixels)
    loaded.encode(s2, s1, out)
    out.zero_()
    del out
    assert not machine.hazards


def test_an_encode_that_raises_is_waited_for(machine, monkeypatch):
    loaded, (s2, s1) = load(), tokens()
    out = outputs(s2.pixels)
    run = Network.encode

    def fail(*arguments):
        run(*arguments)
        raise RuntimeError("no")

    monkeypatch.setattr(Network, "encode", fail)
    with pytest.raises(RuntimeError, match="no"):
        loaded.encode(s2, s1, out)
    out.zero_()
    assert not machine.hazards


@pytest.mark.parametrize("staging", [1 << 10, 1 << 20])
def test_windows_are_packed_beside_the_encoding(machine, monkeypatch, staging):
    """From numpy to numpy, in many runs of rows: nobody reads what is not there yet."""
    monkeypatch.setattr(encoder, "_CHUNK_TOKENS", 512)
    monkeypatch.setattr(
        encoder, "DevicePacker", lambda *arguments: DevicePacker(*arguments, staging)
    )
    loaded, seen = load(), window(6, 6)
    codes = np.full((36, WIDTH), 77, np.int8)
    scales = np.full(36, np.nan, np.float32)
    done = []
    out = QuantizedEmbeddings(codes, scales)
    loaded.encode_window(seen, out, binary_masks=True, progress=done.append)
    packed = pack(seen, SPEC)[:2]
    assert len(done) > 2 and done[-1] == 36
    for pixels in np.split(np.arange(36), done[:-1]):  # tokens are counted from a chunk's first
        s2, s1 = (np.diff(stream.offsets)[pixels] for stream in packed)
        np.testing.assert_array_equal(scales[pixels], np.cumsum(s2) + np.cumsum(s1))
    assert not machine.hazards


def test_the_host_does_not_wait_for_its_own_uploads(machine):
    """Arrays go up from pinned memory; from any other the host waits for what runs before."""
    loaded, (s2, s1) = load(), tokens()
    out = np.empty((s2.pixels, WIDTH), np.float32)
    loaded.encode(s2, s1, out)
    np.testing.assert_array_equal(out, expected(s2, s1))
    loaded.encode_window(window(), out, binary_masks=True)
    assert not machine.pageable


def test_the_order_of_a_recurrence_goes_up_from_pinned_memory(machine, monkeypatch):
    spec = released("v1.1-mpc")
    (s2, _) = on_device(tokens(2, 3, spec))
    given = {}
    monkeypatch.setattr(forward, "linear", lambda *_: None)
    monkeypatch.setattr(forward, "gru", lambda *a: given.update(order=a[9], active=a[10]))
    monkeypatch.setattr(forward, "pool_steps", lambda *_: None)
    network = SimpleNamespace(spec=spec, storage=torch.bfloat16, _accurate="bf16")
    network.ranges = lambda name: nullcontext()
    weights = SimpleNamespace(query=None, query_bias=None)
    weights.gru = SimpleNamespace(kind="gru", inputs=None, recurrent=None, norm=None)
    x = torch.zeros(s2.doy.numel(), spec.d_model, device=DEVICE)
    arena = Arena(1 << 24, DEVICE)
    forward.Network._recur(network, weights, x, s2, arena, x, x)
    lengths = np.diff(s2.host_step_offsets)
    assert (np.diff(lengths[given["order"].cpu().numpy()]) <= 0).all()
    assert given["order"].device == DEVICE and len(given["active"]) == lengths.max()
    assert not machine.pageable


def test_packing_goes_before_encoding(machine):
    loaded = load()
    assert loaded._packer._stream.priority == -1 and loaded._packer._stream.device == DEVICE
    assert loaded._stream.priority == 0 and loaded._stream.device == DEVICE


def test_staging_buffers_are_filled_when_they_have_left(machine):
    stream = torch.cuda.Stream(DEVICE)
    up = uploads.Uploads(DEVICE, stream, 64)
    source = np.arange(3 * 5 * 7, dtype=np.uint16).reshape(3, 5, 7)
    with torch.cuda.stream(stream):
        np.testing.assert_array_equal(up.upload(source).cpu().numpy(), source)
    assert not machine.hazards


# ---- graphs


def test_a_graph_is_captured_on_the_encoders_own_stream(machine):
    other = torch.device("cuda", 0)
    loaded = [load(other), load(), load()]
    for one in loaded:
        for height in (4, 4, 3):  # launched, captured, replayed: 3 rows share the sizes of 4
            s2, s1 = tokens(height)
            out = np.empty((s2.pixels, WIDTH), np.float32)
            one.encode(s2, s1, out)
            np.testing.assert_array_equal(out, expected(s2, s1))
    assert [c.device for c in machine.captures] == [other, DEVICE, DEVICE]
    assert [c.mode for c in machine.captures] == ["thread_local"] * 3
    assert [c.stream for c in machine.captures] == [one._stream for one in loaded]
    assert len({one._stream.cuda_stream for one in loaded}) == 3
    assert not machine.hazards


def test_a_capture_that_fails_leaves_no_graph(machine, monkeypatch):
    loaded, (s2, s1) = load(), tokens()
    out = np.empty((s2.pixels, WIDTH), np.float32)
    loaded.encode(s2, s1, out)
    with monkeypatch.context() as patch:
        patch.setattr(Network, "encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loaded.encode(s2, s1, out)
    for _ in range(2):
        out.fill(np.nan)
        loaded.encode(s2, s1, out)
        np.testing.assert_array_equal(out, expected(s2, s1))
    assert len(machine.captures) == 2


def test_one_thread_captures_at_a_time(monkeypatch):
    """In the whole process: torch has one allocator to capture with."""
    failed = []

    def work(i):
        try:
            for _ in range(3):
                with base.capturing(i):
                    time.sleep(0.01)
        except AssertionError as error:
            failed.append(error)

    with fake_graphs(monkeypatch) as done:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert sorted(done) == sorted(f"{i} thread_local" for i in range(4) for _ in range(3))


def test_requests_beyond_a_halved_chunk_are_not_replayed(machine):
    """Graphs hold a chunk; where memory is short, a chunk is less than what else would suit."""
    loaded = load()
    s2, s1 = tokens(20, 20)
    largest = max(int(s.offsets[-1]) for s in (s2, s1))
    assert replay.rounded(largest) <= replay.MOST_TOKENS
    machine.free = 80 * replay.rounded(largest) // 2  # a workspace of half of them fits
    out = np.empty((s2.pixels, WIDTH), np.float32)
    loaded.encode(s2, s1, out)
    assert loaded._chunk_tokens < largest
    assert sum(loaded._network.encoded) == s2.pixels and len(loaded._network.encoded) > 1
    assert loaded._replay is None
    loaded.encode(*tokens(2, 2), out[:4])
    assert loaded._replay is not None


@pytest.mark.parametrize(
    ("chunk_tokens", "chunk_pixels", "fits"),
    [
        (64, 64, True),
        (63, 64, False),
        (64, 63, False),
        (1 << 19, 1 << 15, True),
    ],
)
def test_what_is_replayed_fits_a_chunk_when_rounded(machine, chunk_tokens, chunk_pixels, fits):
    s2, s1 = on_device(tokens(1, 1))
    assert max(s2.doy.numel(), s1.doy.numel()) < 63  # and rounds to 64
    network = SimpleNamespace(spec=SPEC)
    assert replay.Replay.suits(network, s2, s1, chunk_tokens, chunk_pixels) == fits
    recurrent = SimpleNamespace(spec=released("v1.1-mpc"))
    assert not replay.Replay.suits(recurrent, s2, s1, chunk_tokens, chunk_pixels)


def test_the_fakes_see_hazards(machine):
    """What the other tests count on."""
    a = torch.zeros(4, device=DEVICE)
    side = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(side):
        b = a + 1
    assert len(machine.hazards) == 1 and "add on stream" in machine.hazards[0]
    del a
    assert len(machine.hazards) == 2 and "is freed while" in machine.hazards[1]
    torch.cuda.current_stream(DEVICE).wait_stream(side)
    c = b * 2
    b.record_stream(torch.cuda.current_stream(DEVICE))
    del b
    pinned = torch.zeros(4).pin_memory()
    pinned.copy_(c, non_blocking=True)
    assert len(machine.hazards) == 2
    pinned.numpy()
    assert len(machine.hazards) == 3 and "on the host while" in machine.hazards[2]
    c.copy_(torch.zeros(4))
    assert machine.pageable == ["copy_"]


# ---- clocks


def test_ceilings_are_timed_on_the_device_that_was_asked_for(machine, monkeypatch):
    """One operation of the fake device takes a millisecond; the current device stays idle."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import gpu_peaks

    took = gpu_peaks.seconds(lambda: torch.zeros(4, device=DEVICE).add_(1), DEVICE)
    assert took * 1e3 == 2
    found = gpu_peaks.peaks(DEVICE, small=True)
    assert found["copy_gb_s"] == 2 * gpu_peaks.SMALL_BYTES / 1e6
    assert torch.cuda.current_device() == 0


def test_the_share_of_the_peak_is_of_the_encoders_device(machine, monkeypatch):
    monkeypatch.setattr(gpu_profiling, "_PEAK_SIZE", 64)
    encoder = SimpleNamespace(device=DEVICE, precision="bf16")
    peak = 2 * 64**3 / 1e-3
    assert ", 50% of the" in gpu_profiling._share(peak / 2, encoder)
