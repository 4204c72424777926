"""The cuda back end end to end: golden outputs, gates, invariance, every way in and out.

Without a GPU it runs in Triton's interpreter and the emulation of CUDA, on inputs cut to what those
can do; with one, on whole inputs and every model.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda back end needs torch")
import tessera_fast as tf  # noqa: E402
from golden_cases import CASES, MODEL_INPUT, MODELS, GoldenCase, crop, golden_weights  # noqa: E402
from oracle import assert_golden, assert_reduced  # noqa: E402
from tessera_fast.backends.base import Plan  # noqa: E402
from tessera_fast.backends.cuda import cuda  # noqa: E402
from tessera_fast.backends.cuda.encoder import CudaEncoder  # noqa: E402
from tessera_fast.backends.cuda.replay import Replay, rounded  # noqa: E402
from tessera_fast.errors import BackendUnavailable, InputError  # noqa: E402
from tessera_fast.packing import Observations, PackedTokens, pack  # noqa: E402
from tessera_fast.pipeline import embed_rows  # noqa: E402
from tessera_fast.quantization import QuantizedEmbeddings, quantize  # noqa: E402
from tessera_fast.spec import ModelSpec, variant  # noqa: E402
from tessera_fast.synthetic import synthetic_tile  # noqa: E402
from tessera_fast.tile import open_tile  # noqa: E402
from tessera_fast.weights import untrained_weights  # noqa: E402
from triton_cases import INTERPRETED  # noqa: E402  (skips the module without triton)

PLACE = "interpreter" if INTERPRETED else "cuda"
_reason = cuda.why_not(MODELS["v2_nano"], Plan("bf16", PLACE))
if _reason is not None:
    pytest.skip(f"the cuda back end cannot run: {_reason}", allow_module_level=True)

# Rows beyond a rounded request hold whatever the workspace held, and numpy says what that gives.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Models that the interpreter is quick enough for, and how many of an input's pixels it is given.
INTERPRETED_PIXELS = {"v2_nano": 12, "v2_qknorm": 12, "v2_teacher_mini": 12, "v1_1_mini_aws": 12,
                      "v2_small": 2, "v2_medium": 2}  # fmt: skip
STEMS = list(INTERPRETED_PIXELS if INTERPRETED else MODELS)
TINY = variant("v2-nano", name="v2-tiny", d_model=32, num_layers=1, num_heads=2, ff_dim=48,
               out_dim=32, saved_dim=32, matryoshka=(8, 16, 32))  # fmt: skip
TINY_GRU = variant("v1.1-mpc", name="v1.1-tiny", d_model=32, num_layers=1, num_heads=2, ff_dim=48,
                   out_dim=24, saved_dim=16)  # fmt: skip


@lru_cache(maxsize=2)
def golden_encoder(stem: str, precision: str) -> CudaEncoder:
    return cuda.load(MODELS[stem], golden_weights(stem), Plan(precision, PLACE))


@lru_cache(maxsize=8)
def tiny(spec: ModelSpec = TINY, precision: str = "fp32") -> tf.Model:
    weights, plan = untrained_weights(spec), Plan(precision, PLACE)
    return tf.Model(weights, "cuda", cuda.load(spec, weights, plan), plan)


@lru_cache
def farm() -> Observations:
    """5 x 7 synthetic pixels, one of them never observed."""
    seen = open_tile(synthetic_tile(5, 7)).rows(0, 5)
    masks = seen.s2_masks.copy()
    masks[:, 2, 3] = 0
    orbits = tuple(replace(o, bands=o.bands.copy()) for o in seen.orbits)
    for orbit in orbits:
        orbit.bands[:, 2, 3:5] = 0  # one pixel never observed, one by Sentinel-2 alone
    return replace(seen, s2_masks=masks, orbits=orbits)


def encode(encoder: CudaEncoder, tokens: tuple[PackedTokens, PackedTokens, object]) -> np.ndarray:
    out = np.full((tokens[0].pixels, encoder.width), np.nan, np.float32)
    encoder.encode(*tokens[:2], out)
    return out


def golden(case: GoldenCase, encoder: CudaEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the official float32 output, of observed pixels, as many as are affordable."""
    expected, observed = case.expected("f32"), case.compared()
    tokens = case.model_input() if case.input == MODEL_INPUT else None
    pixels = np.arange(len(expected))
    if INTERPRETED:
        assert tokens is None
        height, width = case.observations().shape
        rows = max(1, min(height, INTERPRETED_PIXELS[case.stem] // min(width, 6)))
        window = crop(case.observations(), slice(0, rows), slice(0, min(width, 6)))
        pixels = np.arange(height * width).reshape(height, width)[:rows, :6].reshape(-1)
    else:
        window = case.observations() if tokens is None else None
    out = encode(encoder, tokens or pack(window, case.spec))
    kept = observed[pixels]
    assert np.isnan(out[~kept]).all()
    return out[kept], expected[pixels][kept]


def cases(stem: str) -> list[GoldenCase]:
    return [c for c in CASES if c.stem == stem]


@pytest.mark.parametrize("case", [c for s in STEMS for c in cases(s)], ids=str)
def test_fp32_equals_the_official_output(case):
    got, expected = golden(case, golden_encoder(case.stem, "fp32"))
    assert_golden(got, expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "fp8", "tf32"])
@pytest.mark.parametrize("stem", STEMS)
def test_reduced_precisions_are_within_their_gates(stem, precision):
    reason = cuda.why_not(MODELS[stem], Plan(precision, PLACE))
    if reason is not None:
        pytest.skip(reason)
    encoder = golden_encoder(stem, precision)
    pairs = [golden(case, encoder) for case in cases(stem)]
    got, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert_reduced(got, expected, precision if precision in ("int8", "fp8") else "bf16")


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pixel_does_not_depend_on_its_neighbours(spec, precision):
    model, seen = tiny(spec, precision), farm()
    height, width = seen.shape
    whole = np.empty((height * width, model.repr_dim), np.float32)
    model.encode(seen, whole)
    for row, column in ((0, 0), (2, 4), (4, 6)):
        alone = np.empty((1, model.repr_dim), np.float32)
        window = crop(seen, slice(row, row + 1), slice(column, column + 1))
        model.encode(window, alone)
        np.testing.assert_array_equal(alone[0], whole[row * width + column])


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
def test_chunks_and_runs_of_rows_do_not_show(spec, monkeypatch):
    model, seen = tiny(spec), farm()
    expected = np.empty((35, model.repr_dim), np.float32)
    counts = model.encode(seen, expected)
    encoder = cuda.load(spec, model.weights, Plan("fp32", PLACE))
    monkeypatch.setattr(Replay, "suits", staticmethod(lambda *_: False))
    for tokens in (256, 1024):
        encoder._chunk_tokens = tokens
        got = np.full_like(expected, 7)
        done: list[int] = []
        seen_again = encoder.encode_window(seen, got, progress=done.append)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(seen_again, counts)
        assert done == sorted(done) and done[-1] == 35 and len(done) > 2


def test_packing_on_the_device_is_packing_on_the_host():
    model, seen = tiny(), farm()
    there = np.empty((35, model.repr_dim), np.float32)
    counts = model.encode(seen, there)
    s2, s1, expected_counts = pack(seen, model.spec)
    np.testing.assert_array_equal(encode(model._encoder, (s2, s1, None)), there)
    np.testing.assert_array_equal(counts, expected_counts)
    assert np.isnan(there[2 * 7 + 3]).all() and np.isfinite(np.delete(there, 2 * 7 + 3, 0)).all()


def test_codes_are_those_of_the_float_output():
    model, seen = tiny(precision="bf16"), farm()
    values = np.empty((35, 16), np.float32)
    model.encode(seen, values)
    out = QuantizedEmbeddings(np.full((35, 16), 99, np.int8), np.full(35, 7, np.float32))
    model.encode(seen, out)
    expected = quantize(values, absmax_floor=model.spec.absmax_floor)
    np.testing.assert_array_equal(out.codes, expected.codes)
    np.testing.assert_array_equal(out.scales, expected.scales)
    assert np.isinf(out.scales[2 * 7 + 3]) and not out.codes[2 * 7 + 3].any()


def test_tensors_in_and_out():
    model, seen = tiny(), farm()
    expected = np.empty((35, model.repr_dim), np.float32)
    model.encode(seen, expected)
    s2, s1, _ = pack(seen, model.spec)

    def on_device(tokens: PackedTokens) -> PackedTokens:
        moved = {
            name: torch.from_numpy(value).to(model._encoder.device)
            for name, value in vars(tokens).items()
            if isinstance(value, np.ndarray)
        }
        return replace(tokens, **moved)

    out = torch.full((35, model.repr_dim), torch.nan, device=model._encoder.device)
    model._encoder.encode(on_device(s2), on_device(s1), out)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("spec", [TINY, TINY_GRU], ids=lambda s: s.name)
def test_observations_on_the_device(spec):
    model, seen = tiny(spec), farm()
    expected = np.empty((35, model.repr_dim), np.float32)
    counts = model.encode(seen, expected)

    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(model._encoder.device)

    there = replace(
        seen,
        s2_bands=moved(seen.s2_bands),
        s2_masks=moved(seen.s2_masks),
        s2_doys=moved(seen.s2_doys),
        orbits=tuple(replace(o, bands=moved(o.bands), doys=moved(o.doys)) for o in seen.orbits),
    )
    out = torch.full((35, model.repr_dim), torch.nan, device=model._encoder.device)
    np.testing.assert_array_equal(model.encode(there, out), counts)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("pixels", [1, 3, 35])
def test_rounded_requests_give_the_same(pixels):
    """What a CUDA graph replays: sizes rounded up, on buffers that hold older requests."""
    model = tiny()
    encoder = model._encoder
    seen = farm()
    s2, s1, _ = pack(crop(seen, slice(0, 5), slice(0, 7)), model.spec)
    expected = encode(encoder, (s2, s1, None))  # small: it went through Replay
    with encoder.ranges.timed():  # no graphs while ops are timed
        plain = encode(encoder, (s2, s1, None))
    np.testing.assert_array_equal(plain, expected)
    columns = pixels if pixels < 7 else 7
    window = crop(seen, slice(0, max(1, pixels // 7)), slice(0, columns))
    part = encode(encoder, pack(window, model.spec))
    index = np.arange(35).reshape(5, 7)[: max(1, pixels // 7), :columns].reshape(-1)
    np.testing.assert_array_equal(part, expected[index])


def test_sizes_are_rounded_by_at_most_a_quarter():
    sizes = np.arange(1, 5000)
    up = np.array([rounded(int(n)) for n in sizes])
    assert (up >= sizes).all() and (up[64:] <= sizes[64:] * 1.25).all()
    assert (np.diff(up) >= 0).all() and len(np.unique(up)) < 40


def test_bands_of_a_tile_with_int8_made_on_the_device():
    tile, model = open_tile(synthetic_tile(4, 3)), tiny(precision="bf16")
    (floats,) = embed_rows(tile, model)
    (codes,) = embed_rows(tile, model, quantized=True)
    expected = quantize(floats.values, absmax_floor=model.spec.absmax_floor)
    np.testing.assert_array_equal(codes.values.codes, expected.codes)
    np.testing.assert_array_equal(codes.values.scales, expected.scales)
    np.testing.assert_array_equal(codes.counts, floats.counts)


def test_every_op_is_timed():
    model, seen = tiny(), farm()
    s2, s1, _ = pack(seen, model.spec)
    out = np.empty((35, model.repr_dim), np.float32)
    seconds = model._encoder.profile(s2, s1, out)
    assert {"embed", "pool", "reducer", "finish"} <= set(seconds)
    assert all(s > 0 for s in seconds.values())
    assert np.isfinite(out[0]).all()


def test_outputs_that_do_not_fit_are_refused():
    model, seen = tiny(), farm()
    for out, message in (
        (np.empty((34, 32), np.float32), r"out: expected \(35, 1..32\) float32, got \(34, 32\)"),
        (np.empty((35, 33), np.float32), r"expected \(35, 1..32\) float32, got \(35, 33\)"),
        (np.empty((35, 32), np.float64), "float32, got .* float64"),
        (QuantizedEmbeddings(np.empty((35, 32), np.int8), np.empty(3, np.float32)), "scales: "),
        (torch.empty(32, 35).T, "contiguous"),
    ):
        with pytest.raises(InputError, match=message):
            model.encode(seen, out)


def test_a_closed_model_says_so():
    spec, weights = TINY, untrained_weights(TINY)
    encoder = cuda.load(spec, weights, Plan("fp32", PLACE))
    encoder.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        encoder.encode_window(farm(), np.empty((35, 32), np.float32))


def test_tokens_without_steps_are_refused():
    s2, s1, _ = pack(farm(), TINY)
    with pytest.raises(InputError, match="without steps"):
        encode(tiny(TINY_GRU)._encoder, (s2, s1, None))


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp64", None, "runs bf16, fp16, tf32, fp32, fp8, int8, not fp64"),
        ("bf16", "cpu", "runs on device cuda or cuda:N, not 'cpu'"),
        ("bf16", "cuda:x", "runs on device cuda or cuda:N, not 'cuda:x'"),
        ("bf16", "cuda:99", "cuda:99 was asked for|is missing|without CUDA|finds no GPU"),
    ],
)
def test_refusals_are_sentences(precision, device, message):
    with pytest.raises(BackendUnavailable, match=message):
        tf.load_model("v2-nano", device, weights="untrained", backend="cuda", precision=precision)
