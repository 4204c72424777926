"""The cuda back end end to end: golden outputs, gates, invariance, every way in and out.

Without a GPU it runs in Triton's interpreter and the emulation of CUDA, on inputs cut to what those
can do; with one, on whole inputs and every model.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda back end needs torch")
import tessera_fast as tf  # noqa: E402
from golden_cases import CASES, MODEL_INPUT, MODELS, GoldenCase, golden_weights  # noqa: E402
from oracle import assert_golden, assert_reduced  # noqa: E402
from row_blocks import embed_rows  # noqa: E402
from tessera_fast.backends.base import RunOptions  # noqa: E402
from tessera_fast.backends.cuda import cuda  # noqa: E402
from tessera_fast.backends.cuda.encoder import CudaEncoder  # noqa: E402
from tessera_fast.backends.cuda.replay import Replay, rounded  # noqa: E402
from tessera_fast.errors import BackendUnavailable, InputError  # noqa: E402
from tessera_fast.model.device_arrays import DeviceArrays  # noqa: E402
from tessera_fast.packing import Observations, PackedTokens, pack  # noqa: E402
from tessera_fast.quantization import QuantizedEmbeddings, quantize  # noqa: E402
from tessera_fast.spec import ModelSpec, variant  # noqa: E402
from tessera_fast.synthetic import synthetic_tile  # noqa: E402
from tessera_fast.tile import open_tile  # noqa: E402
from tessera_fast.weights import untrained_weights  # noqa: E402
from triton_cases import INTERPRETED  # noqa: E402  (skips the module without triton)

PLACE = "interpreter" if INTERPRETED else "cuda"
_reason = cuda.why_not(MODELS["v2_nano"], RunOptions("bf16", PLACE))
if _reason is not None:
    pytest.skip(f"the cuda back end cannot run: {_reason}", allow_module_level=True)

# Rows beyond a rounded request hold whatever the workspace held, and numpy says what that gives.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# The interpreter takes seconds a pixel. It is given every model with TESSERA_FAST_TEST_ALL=1, else
# those that between them use every kernel; and the first pixels of two inputs.
NARROW = ("v2_nano", "v2_qknorm", "v2_teacher_mini", "v1_1_mini_aws")
EVERY = not INTERPRETED or os.environ.get("TESSERA_FAST_TEST_ALL") == "1"
STEMS = tuple(MODELS) if EVERY else NARROW
REDUCED = ["bf16", "fp16", "int8", "fp8", "tf32"]
# A share of codes says nothing of a few pixels; and float8 is too coarse for the made-up models.
REDUCED_CASES = [
    (stem, precision)
    for stem in STEMS
    for precision in REDUCED
    if EVERY or precision == "bf16" or stem == "v2_nano"
    if precision != "tf32" or not INTERPRETED  # which takes float32 for it
    if precision != "fp8" or MODELS[stem].d_model >= 144
]
TINY = variant(
    "v2-nano",
    name="v2-tiny",
    d_model=32,
    num_layers=1,
    num_heads=2,
    ff_dim=48,
    out_dim=32,
    saved_dim=32,
    matryoshka=(8, 16, 32),
)
TINY_GRU = variant(
    "v1.1-mpc",
    name="v1.1-tiny",
    d_model=32,
    num_layers=1,
    num_heads=2,
    ff_dim=48,
    out_dim=24,
    saved_dim=16,
)


@lru_cache(maxsize=2)
def golden_encoder(stem: str, precision: str) -> CudaEncoder:
    return cuda.load(MODELS[stem], golden_weights(stem), RunOptions(precision, PLACE))


@lru_cache(maxsize=8)
def tiny(spec: ModelSpec = TINY, precision: str = "fp32") -> tf.Model:
    weights, plan = untrained_weights(spec), RunOptions(precision, PLACE)
    return tf.Model(weights, "cuda", cuda.load(spec, weights, plan), plan)


HEIGHT, WIDTH = 2, 6
PIXELS, NEVER, OPTICAL_ONLY = HEIGHT * WIDTH, 1 * WIDTH + 2, 1 * WIDTH + 3


@lru_cache
def farm() -> Observations:
    """2 x 6 synthetic pixels with few dates; one was never observed, one by Sentinel-2 alone."""
    seen = open_tile(synthetic_tile(HEIGHT, WIDTH)).rows(0, HEIGHT)
    masks = seen.s2_masks[:40].copy()
    masks[:, 1, 2] = 0
    masks[:, 1, 3] = 1  # 40 dates: another branch of the kernels than its neighbours'
    orbits = tuple(replace(o, bands=o.bands[:9].copy(), doys=o.doys[:9]) for o in seen.orbits)
    for orbit in orbits:
        orbit.bands[:, 1, 2:] = 0
    return replace(
        seen, s2_bands=seen.s2_bands[:40], s2_masks=masks, s2_doys=seen.s2_doys[:40], orbits=orbits
    )


def encode(encoder: CudaEncoder, tokens: tuple[PackedTokens, PackedTokens, object]) -> np.ndarray:
    out = np.full((tokens[0].pixels, encoder.width), np.nan, np.float32)
    encoder.encode(*tokens[:2], out)
    return out


def golden(case: GoldenCase, encoder: CudaEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the official float32 output, of observed pixels."""
    expected, observed = case.expected("f32"), case.compared()
    pixels = np.arange(len(expected))
    if case.input == MODEL_INPUT:
        out = encode(encoder, case.model_input())
    else:
        window = case.observations()
        if INTERPRETED:
            wide = case.spec.d_model > 144
            some = (
                1 if case.input == "long" else 2 if wide else 6 if case.spec.d_model > 100 else 12
            )
            pixels, window = pixels[:some], window.window(slice(0, 1), slice(0, some))
        out = encode(encoder, pack(window, case.spec))
    kept = observed[pixels]
    assert np.isnan(out[~kept]).all()
    return out[kept], expected[pixels][kept]


def cases(stem: str) -> list[GoldenCase]:
    inputs = ("tile", "long", MODEL_INPUT)
    return [c for c in CASES if c.stem == stem and (not INTERPRETED or c.input in inputs)]


@pytest.mark.parametrize("case", [c for s in STEMS for c in cases(s)], ids=str)
def test_fp32_equals_the_official_output(case):
    got, expected = golden(case, golden_encoder(case.stem, "fp32"))
    assert_golden(got, expected)


@pytest.mark.parametrize(("stem", "precision"), REDUCED_CASES)
def test_reduced_precisions_are_within_their_gates(stem, precision):
    reason = cuda.why_not(MODELS[stem], RunOptions(precision, PLACE))
    if reason is not None:
        pytest.skip(reason)
    encoder = golden_encoder(stem, precision)
    chosen = [c for c in cases(stem) if not INTERPRETED or c.input != "long"]
    pairs = [golden(case, encoder) for case in chosen]
    got, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert_reduced(got, expected, precision if precision in ("int8", "fp8") else "bf16")


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pixel_does_not_depend_on_its_neighbours(spec, precision):
    model, seen = tiny(spec, precision), farm()
    height, width = seen.shape
    whole = np.empty((height * width, model.repr_dim), np.float32)
    model.encode(seen, whole)
    for row, column in ((0, 0), (1, 3), (1, 5)):
        alone = np.empty((1, model.repr_dim), np.float32)
        window = seen.window(slice(row, row + 1), slice(column, column + 1))
        model.encode(window, alone)
        np.testing.assert_array_equal(alone[0], whole[row * width + column])


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
def test_chunks_and_runs_of_rows_do_not_show(spec, monkeypatch):
    model, seen = tiny(spec), farm()
    expected = np.empty((PIXELS, model.repr_dim), np.float32)
    counts = model.encode(seen, expected)
    encoder = cuda.load(spec, model.weights, RunOptions("fp32", PLACE))
    monkeypatch.setattr(Replay, "suits", staticmethod(lambda *_: False))
    for tokens in (256,):
        encoder._chunk_tokens = tokens
        got = np.full_like(expected, 7)
        done: list[int] = []
        seen_again = encoder.encode_window(seen, got, progress=done.append)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(seen_again, counts)
        assert done == sorted(done) and done[-1] == PIXELS and len(done) > 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_fused_network_gives_the_same(precision, monkeypatch):
    spec, weights, seen = MODELS["v2_nano"], golden_weights("v2_nano"), farm()
    monkeypatch.setenv("TESSERA_FAST_FUSED", "1")
    fused = cuda.load(spec, weights, RunOptions(precision, PLACE))
    got = np.full((PIXELS, fused.width), 7, np.float32)
    counts = fused.encode_window(seen, got)
    expected = np.empty_like(got)
    reference = tf.load_model("v2-nano", weights="untrained:1", backend="cpu", precision="fp32")
    reference.encode(seen, expected)
    never = counts.sum(-1) == 0
    assert np.isnan(got[never]).all()
    assert_reduced(got[~never], expected[~never], "bf16")


def test_a_fused_network_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("TESSERA_FAST_FUSED", "1")
    for spec, precision in ((TINY, "bf16"), (MODELS["v2_nano"], "fp32")):
        with pytest.raises(BackendUnavailable, match="TESSERA_FAST_FUSED: "):
            cuda.load(spec, untrained_weights(spec), RunOptions(precision, PLACE))


def test_packing_on_the_device_is_packing_on_the_host():
    model, seen = tiny(), farm()
    there = np.empty((PIXELS, model.repr_dim), np.float32)
    counts = model.encode(seen, there)
    s2, s1, expected_counts = pack(seen, model.spec)
    np.testing.assert_array_equal(encode(model.encoder, (s2, s1, None)), there)
    np.testing.assert_array_equal(counts, expected_counts)
    never = counts.sum(-1) == 0
    assert never[NEVER] and not never.all()
    assert np.isnan(there[never]).all() and np.isfinite(there[~never]).all()


def test_codes_are_those_of_the_float_output():
    model, seen = tiny(precision="bf16"), farm()
    values = np.empty((PIXELS, 16), np.float32)
    model.encode(seen, values)
    out = QuantizedEmbeddings(np.full((PIXELS, 16), 99, np.int8), np.full(PIXELS, 7, np.float32))
    model.encode(seen, out)
    expected = quantize(values, absmax_floor=model.spec.absmax_floor)
    np.testing.assert_array_equal(out.codes, expected.codes)
    np.testing.assert_array_equal(out.scales, expected.scales)
    assert np.isinf(out.scales[NEVER]) and not out.codes[NEVER].any()


def test_tensors_in_and_out():
    model, seen = tiny(), farm()
    expected = np.empty((PIXELS, model.repr_dim), np.float32)
    model.encode(seen, expected)
    s2, s1, _ = pack(seen, model.spec)

    def on_device(tokens: PackedTokens) -> PackedTokens:
        moved = {
            name: torch.from_numpy(value).to(model.encoder.device)
            for name, value in vars(tokens).items()
            if isinstance(value, np.ndarray)
        }
        return replace(tokens, **moved)

    out = torch.full((PIXELS, model.repr_dim), torch.nan, device=model.encoder.device)
    model.encoder.encode(on_device(s2), on_device(s1), out)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
def test_observations_on_the_device(spec):
    model, seen = tiny(spec), farm()
    expected = np.empty((PIXELS, model.repr_dim), np.float32)
    counts = model.encode(seen, expected)

    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(model.encoder.device)

    there = replace(
        seen,
        s2_bands=moved(seen.s2_bands),
        s2_masks=moved(seen.s2_masks),
        s2_doys=moved(seen.s2_doys),
        orbits=tuple(replace(o, bands=moved(o.bands), doys=moved(o.doys)) for o in seen.orbits),
    )
    out = torch.full((PIXELS, model.repr_dim), torch.nan, device=model.encoder.device)
    np.testing.assert_array_equal(model.encode(there, out), counts)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU that arrays could lie on")
def test_the_official_functions_take_and_give_tensors():
    model, seen = tiny(), farm()
    names = ("s1_asc", "s1_desc")
    host = {f"{n}_bands": o.bands for n, o in zip(names, seen.orbits, strict=True)}
    days = {f"{n}_doys": o.doys for n, o in zip(names, seen.orbits, strict=True)}
    host |= {"s2_bands": seen.s2_bands, "s2_masks": seen.s2_masks}
    expected = tf.encode_tile(model, s2_doys=seen.s2_doys, **host, **days)
    there = {n: torch.from_numpy(np.ascontiguousarray(a)).cuda() for n, a in host.items()}
    got = tf.encode_tile(model, s2_doys=seen.s2_doys, **there, **days)
    assert got.device == there["s2_bands"].device
    np.testing.assert_array_equal(got.cpu().numpy(), expected)
    with pytest.raises(InputError, match="s2_doys: expected whole days"):
        tf.encode_tile(model, s2_doys=seen.s2_doys * 0, **there, **days)


def test_arrays_on_a_gpu_need_a_model_there():
    with pytest.raises(InputError, match="they lie on a GPU, and the model runs on cpu"):
        DeviceArrays("cpu", standardize=True)


def test_several_threads_share_a_model():
    model, seen = tiny(), farm()
    expected = np.empty((PIXELS, model.repr_dim), np.float32)
    model.encode(seen, expected)
    outs = [np.full_like(expected, 7) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda out: model.encode(seen, out), outs))
    for out in outs:
        np.testing.assert_array_equal(out, expected)


def test_rounded_requests_give_the_same():
    """What a CUDA graph replays: sizes rounded up, on buffers that hold an older request."""
    model, seen = tiny(), farm()
    encoder = model.encoder
    rounded_up = encode(encoder, pack(seen, model.spec))  # small: it went through Replay
    with encoder.ranges.timed():  # nothing is replayed while ops are timed
        plain = encode(encoder, pack(seen, model.spec))
    np.testing.assert_array_equal(plain, rounded_up)
    part = encode(encoder, pack(seen.window(slice(1, 2), slice(1, 5)), model.spec))
    index = np.arange(PIXELS).reshape(HEIGHT, WIDTH)[1:2, 1:5].reshape(-1)
    np.testing.assert_array_equal(part, plain[index])


def test_sizes_are_rounded_by_at_most_a_quarter():
    sizes = np.arange(1, 5000)
    up = np.array([rounded(int(n)) for n in sizes])
    assert (up >= sizes).all() and (up[64:] <= sizes[64:] * 1.25).all()
    assert (np.diff(up) >= 0).all() and len(np.unique(up)) < 40


def test_bands_of_a_tile_with_int8_made_on_the_device():
    tile, model = open_tile(synthetic_tile(1, 6)), tiny(precision="bf16")
    (floats,) = embed_rows(tile, model)
    (codes,) = embed_rows(tile, model, quantized=True)
    expected = quantize(floats.values, absmax_floor=model.spec.absmax_floor)
    np.testing.assert_array_equal(codes.values.codes, expected.codes)
    np.testing.assert_array_equal(codes.values.scales, expected.scales)
    np.testing.assert_array_equal(codes.counts, floats.counts)


def test_every_op_is_timed():
    model, seen = tiny(), farm()
    s2, s1, _ = pack(seen, model.spec)
    out = np.empty((PIXELS, model.repr_dim), np.float32)
    seconds = model.encoder.profile(s2, s1, out)
    assert {"embed", "pool", "reducer", "finish"} <= set(seconds)
    assert all(s > 0 for s in seconds.values())
    assert np.isfinite(out[0]).all()


def test_outputs_that_do_not_fit_are_refused():
    model, seen = tiny(), farm()
    for out, message in (
        (np.empty((11, 32), np.float32), r"out: expected \(12, 1..32\) float32, got \(11, 32\)"),
        (np.empty((PIXELS, 33), np.float32), r"expected \(12, 1..32\) float32, got \(12, 33\)"),
        (np.empty((PIXELS, 32), np.float64), "float32, got .* float64"),
        (QuantizedEmbeddings(np.empty((PIXELS, 32), np.int8), np.empty(3, np.float32)), "scales: "),
        (torch.empty(32, PIXELS).T, "contiguous"),
    ):
        with pytest.raises(InputError, match=message):
            model.encode(seen, out)


def test_a_closed_model_says_so():
    spec, weights = TINY, untrained_weights(TINY)
    encoder = cuda.load(spec, weights, RunOptions("fp32", PLACE))
    encoder.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        encoder.encode_window(farm(), np.empty((PIXELS, 32), np.float32))


def test_tokens_without_steps_are_refused():
    s2, s1, _ = pack(farm(), TINY)
    with pytest.raises(InputError, match="without steps"):
        encode(tiny(TINY_GRU).encoder, (s2, s1, None))


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp64", None, "runs bf16, fp16, tf32, fp32, fp8, int8, not fp64"),
        ("bf16", "cpu", "runs on device cuda or cuda:N, not 'cpu'"),
        ("bf16", "cuda:x", "runs on device cuda or cuda:N, not 'cuda:x'"),
        ("bf16", "cuda:99", "cuda:99 was asked for|is missing|without CUDA|no GPU"),
    ],
)
def test_refusals_are_sentences(precision, device, message):
    with pytest.raises(BackendUnavailable, match=message):
        tf.load_model("v2-nano", device, weights="untrained", backend="cuda", precision=precision)
