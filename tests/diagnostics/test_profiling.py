"""`tessera-fast bench`: the count of operations, the peak, and what the report says."""

import re

import numpy as np
import pytest

import tessera_fast as tf
from isas import BEST
from tessera_fast.__main__ import main
from tessera_fast.diagnostics.profile import elements, peak, profile
from tessera_fast.model.flop import work
from tessera_fast.packing import pack
from tessera_fast.spec import ModelSpec, released, variant
from tessera_fast.synthetic import synthetic_tile, write_tile

SPECS = [
    released("v2-nano"),
    variant("v1.1-mpc", d_model=48, num_layers=2),
    variant("v2-teacher", d_model=40, num_layers=1, out_dim=16, saved_dim=16),
]


def counted(spec: ModelSpec, s2, s1) -> float:
    """Multiply-adds of every pixel of every product, times 2."""
    D, total = spec.d_model, 0
    for tokens, bands in ((s2, 10), (s1, 2)):
        for pixel in range(tokens.pixels):
            T = int(tokens.offsets[pixel + 1] - tokens.offsets[pixel])
            layer = T * (4 * D * D + 2 * D * spec.ff_dim) + 2 * T * T * D
            total += T * (bands * D + D * D) + spec.num_layers * layer + 2 * T * D
            if spec.needs_steps:
                steps = int(tokens.step_offsets[pixel + 1] - tokens.step_offsets[pixel])
                total += (T + steps) * 3 * D * D
    fusion = spec.fusion_layers * (2 * (4 * D * D + 4 * D * D) + 2 * 4 * D)
    return 2 * (total + s2.pixels * (fusion + 2 * D * 4 * D + 4 * D * spec.out_dim))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_work_counts_every_product(spec):
    s2, s1, _ = pack(synthetic_tile(5, 7).rows(0, 5), spec)
    assert sum(work(spec, s2, s1).values()) == counted(spec, s2, s1)


def test_peak_grows_with_narrower_elements():
    """int8 has at least as many products an instruction as float32; the best of several tries."""
    rates = [(peak(BEST, "fp32", 1, 0.05), peak(BEST, "int8", 1, 0.05)) for _ in range(3)]
    assert max(narrow for _, narrow in rates) > min(full for full, _ in rates) > 1e8


def test_profile_accounts_for_the_encoder():
    tile = synthetic_tile(8, 8)
    with tf.load_model("v2-nano", weights="untrained", threads=1, precision="int8") as model:
        kinds, measured = elements(model), profile(tile, model, rows=4)
    assert measured.pixels == 32
    assert list(measured.stages) == ["read", "pack", "encode", "int8"]
    assert set(measured.flop) <= set(measured.ops) and kinds["ff1"] == "int8"
    assert kinds["attention"] in ("fp32", "bf16")
    for op in ("embed", "qkv", "attention", "out", "norm", "ff1", "ff2", "convert", "pooling"):
        assert measured.ops[op] > 0, op
    assert measured.ops["gru"] == 0


def test_gru_has_its_own_line():
    spec = variant("v1.1-mpc", d_model=48, num_layers=1)
    s2, s1, _ = pack(synthetic_tile(4, 6).rows(0, 4), spec)
    from tessera_fast.backends.base import RunOptions
    from tessera_fast.backends.cpu import cpu
    from tessera_fast.weights import untrained_weights

    encoder = cpu.load(spec, untrained_weights(spec), RunOptions(threads=1))
    out, again = (np.empty((24, 128), np.float32) for _ in range(2))
    encoder.encode(s2, s1, out)
    assert encoder.profile(s2, s1, again)["gru"] > 0
    assert np.array_equal(out, again, equal_nan=True)


def test_command(capsys, tmp_path):
    folder = write_tile(synthetic_tile(6, 6), tmp_path / "tile")
    assert main(["bench", str(folder), "--model", "v2-nano", "--profile", "--threads", "2"]) == 0
    text = capsys.readouterr().out
    for word in ("measured peak", "pack", "encode", "of the arithmetic limit", "attention", "ff1"):
        assert word in text
    assert re.search(r"tile: 36 px", text)
    assert main(["bench", "--size", "8", "--rows", "2", "--model", "v2-nano"]) == 0
    assert re.search(r": 16 px", capsys.readouterr().out)


def test_other_back_ends_show_their_stages_and_no_ops(capsys):
    pytest.importorskip("torch")
    command = ["bench", "--size", "8", "--model", "v2-nano", "--backend", "reference"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "v2-nano (untrained)" in text and "backend reference" in text
    for stage in ("read", "pack", "encode", "int8", "all"):
        assert re.search(rf"^{stage} +\d+\.\d+ +\d+\.\d%", text, re.MULTILINE)
    assert main([*command, "--profile"]) == 1
    assert "ops are timed by cpu and cuda, not reference" in capsys.readouterr().err
