"""The fused encoders of kernels/cuda/encoder.cu on the emulator, against float64 reference ops."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference ops and the operands need torch")
native = pytest.importorskip(
    "tessera_fast._cuda_emulated", reason="the emulator is built with TESSERA_TEST_ISAS=ON"
)

from torch import Tensor  # noqa: E402

import oracle  # noqa: E402
from cuda_resources import by_architecture  # noqa: E402
from emulated_orders import ORDERS  # noqa: E402
from tessera_fast.backends.cuda import fused  # noqa: E402
from tessera_fast.backends.cuda.tokens import DeviceTokens  # noqa: E402
from tessera_fast.backends.cuda.weights import NetworkWeights, network_weights  # noqa: E402
from tessera_fast.reference import ops  # noqa: E402
from tessera_fast.reference.model import to_tensors  # noqa: E402
from tessera_fast.spec import released, variant  # noqa: E402
from tessera_fast.weights import untrained_weights  # noqa: E402

NANO, SMALL = released("v2-nano"), released("v2-small")
ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
LENGTHS = (0, 1, 8, 9, 63, 64, 65, 128, 3, 17, 0, 50, 31)
LONG = (255, 2, 256, 0, 1)
# Bytes that a thread may spill: a few scalars, around the norms and once a head; elsewhere none.
SPILLED = {"90a": 16, "100": 40, "110": 24, "120": 60}


@pytest.fixture(autouse=True)
def forward_order() -> Iterator[None]:
    native.emulator.set_order("forward")
    yield
    native.emulator.set_order("forward")


def make_tokens(lengths: tuple[int, ...], channels: int, seed: int = 0) -> DeviceTokens:
    """Pixels of these lengths; a pixel's tokens depend on its place in ``lengths`` only."""
    parts = []
    for p, n in enumerate(lengths):
        rng = np.random.RandomState(1000 * seed + p)
        parts.append(
            (
                rng.randint(100, 7000, (n, channels)).astype(np.int16),
                rng.randint(1, 367, n).astype(np.int16),
                rng.randint(0, 2, n).astype(np.uint8),
                rng.randint(1, 6, n).astype(np.int16),
            )
        )
    return join(parts)


def join(parts: list[tuple[np.ndarray, ...]]) -> DeviceTokens:
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])])
    return DeviceTokens(
        *columns,
        torch.from_numpy(offsets.astype(np.int32)),
        None,
        None,
        False,
        False,
        offsets,
        None,
    )


def pick(tokens: DeviceTokens, pixels: list[int]) -> DeviceTokens:
    columns = (tokens.bands, tokens.doy, tokens.orbit, tokens.multiplicity)
    offsets = tokens.host_offsets
    return join([tuple(c[offsets[p] : offsets[p + 1]].numpy() for c in columns) for p in pixels])


@cache
def weights_of(element: str, layers: int = 2) -> NetworkWeights:
    spec = variant("v2-nano", num_layers=layers)
    return network_weights(spec, untrained_weights(spec).tensors, torch.device("cpu"), element)


def planned(shape: fused.Shape, tokens: DeviceTokens) -> Tensor:
    plan = torch.full((fused.schedule_size(tokens.pixels) + 8,), -5, dtype=torch.int32)
    fused.schedule(native, shape, tokens.offsets, plan[4:-4], 0)
    assert (plan[:4] == -5).all() and (plan[-4:] == -5).all()
    return plan[4:-4]


def encode(
    tokens: DeviceTokens,
    element: str,
    block: int,
    *,
    stream: str = "s2",
    layers: int = 2,
    constant: Tensor | None = None,
    storage: bool = False,
) -> Tensor:
    """Pooled [P, D] of nano in blocks of ``block`` tokens, between guard rows and columns."""
    weights = weights_of(element, layers)
    shape = fused.Shape(NANO.d_model, NANO.num_heads, NANO.ff_dim, block)
    operands = fused.network_operands(getattr(weights, stream), element, NANO.num_heads)
    dtype = ELEMENTS[element] if storage else torch.float32
    room = torch.full((tokens.pixels + 2, 2 * NANO.d_model), float("nan"), dtype=dtype)
    out = room[1:-1, NANO.d_model :]
    fused.encode_network(
        native, shape, operands, tokens, weights.table, planned(shape, tokens), out, constant, 0
    )
    assert room[[0, -1]].isnan().all() and room[:, : NANO.d_model].isnan().all()
    return out.clone()


def parameters_under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def expected(tokens: DeviceTokens, stream: str = "s2", layers: int = 2) -> Tensor:
    """The same from the reference ops in float64; NaN where a pixel has no token."""
    spec = variant("v2-nano", num_layers=layers)
    tensors = to_tensors(untrained_weights(spec).tensors, torch.float64, "cpu")
    weights = weights_of("bf16", layers)
    statistics = getattr(weights, stream)
    name = f"{stream}_backbone"
    rows = []
    for p in range(tokens.pixels):
        at = slice(*tokens.host_offsets[p : p + 2])
        if at.start == at.stop:
            rows.append(torch.full((spec.d_model,), float("nan"), dtype=torch.float64))
            continue
        orbit = tokens.orbit[at].long()
        mean, std = statistics.mean[orbit].double(), statistics.std[orbit].double()
        bands = ((tokens.bands[at].double() - mean) / (std + 1e-9))[None]
        x = ops.embed(
            bands,
            tokens.doy[at].long()[None],
            weights.table.double(),
            parameters_under(tensors, f"{name}.embedding"),
        )
        bias = tokens.multiplicity[at].double().log()[None]
        for i in range(layers):
            layer = parameters_under(tensors, spec.layer_name(name, i))
            x = ops.transformer_layer(x, layer, spec.num_heads, key_bias=bias)
        rows.append(ops.pool(x, x, parameters_under(tensors, f"{name}.attn_pool"), bias)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("stream", ("s2", "s1"))
@pytest.mark.parametrize("element", ELEMENTS)
def test_network_against_float64(element: str, stream: str) -> None:
    tokens = make_tokens(LENGTHS, 10 if stream == "s2" else 2)
    got, wanted = encode(tokens, element, 128, stream=stream), expected(tokens, stream)
    empty = wanted.isnan().any(1)
    assert got[empty].isnan().all()  # left alone
    oracle.assert_reduced(got[~empty].numpy(), wanted[~empty].numpy(), "bf16")


@pytest.mark.parametrize("order", ORDERS[1:], ids=str)
def test_order_of_threads_changes_no_bit(order: tuple[str, int]) -> None:
    tokens = make_tokens(LENGTHS, 10)
    wanted = encode(tokens, "bf16", 128)
    native.emulator.set_order(*order)
    assert torch.equal(encode(tokens, "bf16", 128).nan_to_num(7), wanted.nan_to_num(7))


def test_neighbours_and_block_size_change_no_bit() -> None:
    tokens = make_tokens(LENGTHS, 10)
    wanted = encode(tokens, "bf16", 128)
    assert torch.equal(encode(tokens, "bf16", 256).nan_to_num(7), wanted.nan_to_num(7))
    order = [int(p) for p in np.random.RandomState(1).permutation(tokens.pixels)]
    shuffled = encode(pick(tokens, order), "bf16", 128)
    assert torch.equal(shuffled.nan_to_num(7), wanted[order].nan_to_num(7))
    for p, n in enumerate(LENGTHS):
        if n in (1, 9, 65, 128, 31):
            assert torch.equal(encode(pick(tokens, [p]), "bf16", 128)[0], wanted[p])


def test_longest_pixels() -> None:
    tokens = make_tokens(LONG, 10, seed=2)
    got, wanted = encode(tokens, "bf16", 256), expected(tokens)
    seen = [p for p, n in enumerate(LONG) if n]
    oracle.assert_reduced(got[seen].numpy(), wanted[seen].numpy(), "bf16")
    assert torch.equal(encode(pick(tokens, [2]), "bf16", 256)[0], got[2])


def test_inputs_and_outputs() -> None:
    """Kinds of bands, storage of the result, the row of a pixel without tokens, three layers."""
    tokens = make_tokens((5, 0, 12), 10)
    wanted = encode(tokens, "bf16", 128)
    floats = tokens.bands.float()
    stream = weights_of("bf16").s2
    standard = (floats - stream.mean[0]) / (stream.std[0] + 1e-9)
    for change in (
        {"unsigned": True},
        {"bands": floats},
        {"bands": standard, "standardized": True},
    ):
        got = encode(DeviceTokens(**{**tokens.__dict__, **change}), "bf16", 128)
        assert torch.equal(got.nan_to_num(7), wanted.nan_to_num(7)), list(change)
    constant = torch.arange(NANO.d_model, dtype=torch.float32)
    stored = encode(tokens, "bf16", 128, constant=constant, storage=True)
    assert torch.equal(stored[[0, 2]], wanted[[0, 2]].bfloat16())
    assert torch.equal(stored[1], constant.bfloat16())
    deep = encode(tokens, "fp16", 128, layers=3)[[0, 2]]
    oracle.assert_reduced(deep.numpy(), expected(tokens, layers=3)[[0, 2]].numpy(), "bf16")


def test_schedule_covers_every_pixel_once() -> None:
    rng = np.random.RandomState(0)
    for pixels, block in ((1, 128), (127, 128), (128, 256), (129, 128), (5000, 256), (300, 128)):
        lengths = rng.randint(0, 90, pixels)
        lengths[rng.rand(pixels) < 0.2] = 0
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        plan = torch.full((fused.schedule_size(pixels),), -5, dtype=torch.int32)
        shape = fused.Shape(144, 4, 384, block)
        fused.schedule(native, shape, torch.from_numpy(offsets.astype(np.int32)), plan, 0)
        count = int(plan[0])
        runs = plan[1 : 1 + 2 * count].reshape(-1, 2).numpy()
        runs = runs[np.argsort(runs[:, 0], kind="stable")]
        assert runs[0, 0] == 0 and runs[-1, 1] == pixels
        assert np.array_equal(runs[1:, 0], runs[:-1, 1])
        assert (offsets[runs[:, 1]] - offsets[runs[:, 0]] <= block).all()
        assert count <= fused.blocks(shape, pixels, int(offsets[-1]))


@pytest.mark.parametrize("element", ELEMENTS)
def test_layer_against_float64(element: str) -> None:
    """One layer of v2-small, x in and out; in place; alone and among others."""
    spec = variant("v2-small", num_layers=1)
    arrays = untrained_weights(spec).tensors
    layer = network_weights(spec, arrays, torch.device("cpu"), element).s2.layers[0]
    operands = fused.layer_operands(layer, element, spec.num_heads)
    shape = fused.Shape(spec.d_model, spec.num_heads, spec.ff_dim, 128)
    tokens = make_tokens((1, 0, 9, 63, 17, 128), 10)
    x = torch.from_numpy(np.random.RandomState(3).standard_normal((len(tokens.doy), 256)))
    x = x.to(ELEMENTS[element])

    def run(x: Tensor, tokens: DeviceTokens) -> Tensor:
        room = torch.full((len(x) + 2, 256), float("nan"), dtype=x.dtype)
        room[1:-1] = x
        fused.encode_layer(
            native,
            shape,
            operands,
            room[1:-1],
            room[1:-1],
            tokens.offsets,
            tokens.multiplicity,
            planned(shape, tokens),
            0,
        )
        assert room[[0, -1]].isnan().all()
        return room[1:-1].clone()

    got = run(x, tokens)
    tensors = to_tensors(arrays, torch.float64, "cpu")
    w = parameters_under(tensors, spec.layer_name("s2_backbone", 0))
    for p in range(tokens.pixels):
        at = slice(*tokens.host_offsets[p : p + 2])
        if at.start == at.stop:
            continue
        bias = tokens.multiplicity[at].double().log()[None]
        wanted = ops.transformer_layer(x[at].double()[None], w, spec.num_heads, key_bias=bias)[0]
        oracle.assert_reduced(got[at].double().numpy(), wanted.numpy(), "bf16")
    at = slice(*tokens.host_offsets[3:5])
    assert torch.equal(run(x[at], pick(tokens, [3])), got[at])


def test_rules() -> None:
    assert fused.why_not(NANO, "bf16", whole=True) is None
    assert fused.why_not(SMALL, "fp16", whole=False) is None
    assert "width" in fused.why_not(SMALL, "bf16", whole=True)
    assert "fp8" in fused.why_not(NANO, "fp8", whole=True)
    assert "pools by softmax" in fused.why_not(
        variant("v2-nano", pooling="custom_gru"), "bf16", True
    )
    kilobytes = 1024
    limits = {"sm_86": 99 * kilobytes, "sm_80": 163 * kilobytes}
    for longest, sm_86, sm_80 in (
        (1, 128, 128),
        (128, 128, 128),
        (129, None, 256),
        (257, None, None),
    ):
        for name, tokens in (("sm_86", sm_86), ("sm_80", sm_80)):
            shape = fused.shape_for(NANO, longest, limits[name], native, whole=True)
            assert (shape.tokens if shape else None) == tokens, (longest, name)
    assert fused.shape_for(SMALL, 128, limits["sm_86"], native, whole=False) is None
    assert fused.shape_for(SMALL, 128, limits["sm_80"], native, whole=False) is not None


def test_unknown_shape_is_refused() -> None:
    tokens = make_tokens((3,), 10)
    weights = weights_of("bf16")
    operands = fused.network_operands(weights.s2, "bf16", 4)
    with pytest.raises(Exception, match="no kernel of this shape"):
        fused.encode_network(
            native,
            fused.Shape(144, 4, 384, 64),
            operands,
            tokens,
            weights.table,
            torch.zeros(3, dtype=torch.int32),
            torch.empty(1, 144),
            None,
            0,
        )


def test_compiles_without_spills() -> None:
    for architecture, found in by_architecture("encoder").items():
        assert len(found) == 7  # three shapes, two elements, the scheduler
        stacks = {name: used.stack for name, used in found.items()}
        assert max(stacks.values()) <= SPILLED.get(architecture, 0), (architecture, stacks)
