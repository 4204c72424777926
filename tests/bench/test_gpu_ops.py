"""bench/gpu_ops.py names the op that is wrong, here in Triton's interpreter."""

import pytest

from places import REPOSITORY

torch = pytest.importorskip("torch", reason="the cuda back end needs torch")
from tessera_fast.backends.base import RunOptions  # noqa: E402
from tessera_fast.backends.cuda import cuda, forward  # noqa: E402
from tessera_fast.spec import released  # noqa: E402
from triton_cases import INTERPRETED  # noqa: E402  (skips the module without triton)

BENCH = REPOSITORY / "bench"
PLACE = "interpreter" if INTERPRETED else "cuda:0"
_reason = cuda.why_not(released("v2-nano"), RunOptions("bf16", PLACE))
if _reason is not None:
    pytest.skip(f"the cuda back end cannot run: {_reason}", allow_module_level=True)


@pytest.fixture(autouse=True)
def _bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def findings(model: str, contender: str = "triton:fp32"):
    import gpu_case
    import gpu_ops
    import gpu_small

    weights = gpu_small.weights_of(model)
    tile = gpu_small.Tile.small(weights, True, torch.device("cpu"))
    loaded = gpu_case.Ours.parse(contender).load(weights, PLACE)
    return list(gpu_ops.deviations(loaded, tile))


def counted(monkeypatch) -> list[str]:
    """Fills with the ops that are compared."""
    import gpu_ops

    names: list[str] = []
    compare = gpu_ops.Checked._compare

    def noted(self, name, *args):
        names.append(name)
        compare(self, name, *args)

    monkeypatch.setattr(gpu_ops.Checked, "_compare", noted)
    return names


@pytest.mark.parametrize(
    "model, contender, ops",
    [
        ("v2-tiny", "triton:fp16", {"embed", "attention_block", "ffn", "pool", "linear", "finish"}),
        ("v1.1-tiny", "triton:fp32", {"attention", "linear_norm", "gru", "pool_steps"}),
    ],
)
def test_right_ops_are_all_compared_and_none_is_named(monkeypatch, model, contender, ops):
    names = counted(monkeypatch)
    assert findings(model, contender) == []
    assert ops <= set(names)


@pytest.mark.parametrize("wrong", ["ffn", "pool", "finish"])
def test_the_first_wrong_op_is_named(monkeypatch, wrong):
    import gpu_expected

    place = gpu_expected.EXPECTED[wrong][0]
    launcher = getattr(forward, wrong)

    def off(*args, **options):
        launcher(*args, **options)
        args[place][0, 0] += 3.0

    monkeypatch.setattr(forward, wrong, off)
    (finding,) = findings("v2-tiny")
    assert finding["op"] == wrong and finding["deviation"] > finding["allowed"]
    assert finding["text"].startswith(f"{wrong} (op ")


def test_an_op_that_crashes_is_named(monkeypatch):
    from triton.runtime.errors import OutOfResources

    errors = (
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OutOfResources(240_000, 232_448, "shared memory"),
    )
    for error, text in zip(errors, ("illegal memory access", "out of resource"), strict=True):

        def crash(*args, error=error, **options):
            raise error

        monkeypatch.setattr(forward, "pool", crash)
        (finding,) = findings("v2-tiny")
        assert finding["op"] == "pool" and text in finding["text"]


def test_the_fused_kernel_is_compared_layer_by_layer(monkeypatch):
    from tessera_fast.backends.cuda.fused import FusedNetwork

    names = counted(monkeypatch)
    assert findings("v2-nano", "fused:fp16") == []
    layers = released("v2-nano").num_layers
    assert {f"encode_network, {n} layers" for n in range(1, layers + 1)} <= set(names)

    encode = FusedNetwork.encode

    def off(self, name, tokens, planned, out, constant):
        encode(self, name, tokens, planned, out, constant)
        if self._operands[name].layers >= 2:
            out[0, 0] += 3.0

    monkeypatch.setattr(FusedNetwork, "encode", off)
    (finding,) = findings("v2-nano", "fused:fp16")
    assert finding["op"] == "encode_network, 2 layers"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_graphs_give_the_bits_of_a_batch(tmp_path, monkeypatch):
    import gpu_model
    import gpu_rows
    from gpu_case import Ours

    monkeypatch.setattr(gpu_model, "REPEATS", 1)
    args = gpu_model.arguments().parse_args(
        [
            "--model",
            "v2-tiny",
            "--graphs",
            "--few",
            "--dates",
            "2",
            "2",
            "--device",
            PLACE,
            "--rows",
            str(tmp_path / "rows"),
        ]
    )
    gpu_model.Bench(args).ours(Ours.parse("triton:fp32"))
    (row,) = gpu_rows.read(tmp_path / "rows")
    assert row["contender"] == "triton fp32 graphs" and row["equal"], row
