"""`tf.verify`: which outputs are the same embeddings, which pixels are not, and why."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from oracle import GOLDEN_ATOL
from places import SHARED
from tessera_fast.errors import InputError, StoreError
from verify_outputs import (
    BF16,
    DIMS,
    HERE,
    INT8,
    arrays,
    copy,
    float_folder,
    folder,
    geotessera_like,
    marker,
    sound,
    store,
    tile,
    values,
)

pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")
DATA = SHARED / "data"


@pytest.fixture
def one(tmp_path):
    return store(tmp_path / "one.zarr")


def places(pixels):
    return {(p["row"], p["column"]) for p in pixels}


# ---- equal, or nearly


def test_an_output_equals_itself(one):
    found = tf.verify(one, one)
    valid = int(np.isfinite(sound()[1]).sum())
    assert found.verdict == "equal" and found.same and found.gate.name == "fp32"
    assert (found.overall.compared, found.overall.identical) == (valid, valid)
    assert found.overall.codes == valid * DIMS == found.overall.same_codes
    assert found.overall.distance.value == found.overall.scale.value == 0
    assert not found.pixels and not found.causes
    assert tf.verify(one, one, gate="exact").verdict == "equal"


@pytest.mark.parametrize("name", ["farm", "flanders_2018"])
def test_cpu_and_reference_are_equal_within_the_fp32_gate(name, farm, mini, run, tmp_path):
    source = farm if name == "farm" else DATA / name
    if not source.exists():
        pytest.skip(f"no {source}")
    for backend in ("cpu", "reference"):
        out = tmp_path / f"{backend}.zarr"
        arguments = ("--model", mini, "--precision", "fp32", "--backend", backend)
        assert run("embed", source, "-o", out, *arguments).code == 0
    result = run("verify", tmp_path / "cpu.zarr", tmp_path / "reference.zarr")
    assert result.code == 0, result.out
    assert result.out.splitlines()[2] in ("equal", "equal within the fp32 gate")
    assert "cpu " in result.out.splitlines()[0] and "reference" in result.out.splitlines()[1]


@pytest.mark.parametrize("a", ["store", "int8", "float32"])
@pytest.mark.parametrize("b", ["store", "int8", "float32"])
def test_every_kind_of_output(tmp_path, a, b):
    beside = tile("b", 30, 20, x0=HERE.transform[2] + 5000)
    tiles = {key: sound(key, seed) for seed, key in enumerate((HERE, beside))}
    floats = {key: values(key, seed) for seed, key in enumerate(tiles)}
    write = {
        "store": lambda p: store(p.with_suffix(".zarr"), tiles),
        "int8": lambda p: folder(p, tiles),
        "float32": lambda p: float_folder(p, floats),
    }
    found = tf.verify(write[a](tmp_path / "a"), write[b](tmp_path / "b"), gate="exact")
    assert found.verdict == "equal"
    assert found.overall.compared == sum(int(np.isfinite(d[1]).sum()) for d in tiles.values())
    assert set(found.layers) == ({"utm31/2020"} if a == b == "store" else {"a", "b"})


def test_a_folder_takes_its_places_from_the_store(tmp_path, one):
    nowhere = replace(HERE, year=None, crs=None, transform=None)
    plain = folder(tmp_path / "plain", {nowhere: sound()})
    assert tf.verify(one, plain).verdict == "equal"
    assert tf.verify(plain, one).verdict == "equal"
    other = folder(tmp_path / "other", {replace(nowhere, name="b"): sound()})
    with pytest.raises(StoreError, match=r"nothing to compare.*b: its CRS, transform and year"):
        tf.verify(one, other)


@pytest.mark.parametrize("shard", [32, 256, 512])
@pytest.mark.parametrize("zone", [32631, 32731])
def test_another_program_s_store(tmp_path, shard, zone):
    key = tile("a", 45, 61, zone=zone, y0=9_629_680.0) if zone > 32700 else HERE
    ours = store(tmp_path / "ours.zarr", {key: sound()})
    theirs = geotessera_like(tmp_path / "theirs.zarr", ours, shard=shard, margin=70, zone=zone)
    for pair in ((ours, theirs), (theirs, ours)):
        found = tf.verify(*pair)
        assert found.verdict == "equal"
        assert found.overall.compared == int(np.isfinite(sound()[1]).sum())
        assert any("records no model" in w for w in found.warnings)
    arrays(theirs)["embeddings"][0, 3, 70 + 5, 70 + 7] ^= 64
    found = tf.verify(ours, theirs)
    assert places(found.pixels) == {(5, 7)} and not found.same


def test_other_years_and_tiles_are_listed_and_the_overlap_is_compared(tmp_path, one):
    key = tile("a", 45, 61, year=2021)
    west = tile("w", 45, 100, x0=HERE.transform[2] - 1000)
    tiles = {HERE: sound(), west: sound(west, seed=3), key: sound(seed=9)}
    two = store(tmp_path / "two.zarr", tiles)
    found = tf.verify(one, two)
    assert found.verdict == "different"
    assert (found.matching.only_a, found.matching.only_b) == ((), ("utm31/2021",))
    found = tf.verify(one, two, ignore_missing=True)
    assert found.verdict == "equal"
    assert found.overall.compared == int(np.isfinite(sound()[1]).sum())


# ---- different


def test_changed_pixels_are_named(tmp_path, one):
    two = copy(one, tmp_path / "two.zarr")
    valid = np.argwhere(np.isfinite(sound()[1]))
    planted = {tuple(p) for p in valid[:: len(valid) // 6].tolist()}
    group = arrays(two)
    for row, column in planted:
        group["embeddings"][0, 5:9, row, column] ^= 3
    for gate in ("exact", "fp32"):
        found = tf.verify(one, two, gate=gate)
        assert found.verdict == "different"
        assert places(found.pixels) == planted and found.overall.off == len(planted)
    pixel = found.pixels[0]
    assert pixel["x"] == HERE.transform[2] + 10 * pixel["column"] + 5
    assert pixel["y"] == HERE.transform[5] - 10 * pixel["row"] - 5
    assert int(pixel["lon"]) == 3 and int(pixel["lat"]) == 50
    expected = sound()
    row, column = pixel["row"], pixel["column"]
    changed = expected[0][row, column].copy()
    changed[5:9] ^= 3
    step = np.abs(changed.astype(int) - expected[0][row, column]).max()
    assert pixel["code_step"] == step
    worst = max(found.pixels, key=lambda p: p["deviation"])
    assert found.overall.deviation.value == worst["deviation"] == pixel["deviation"]


def test_a_code_off_by_one_is_within_fp32_and_not_exact(tmp_path, one):
    two = copy(one, tmp_path / "two.zarr")
    row, column = np.argwhere(np.isfinite(sound()[1]))[0]
    before = int(sound()[0][row, column, 4])
    arrays(two)["embeddings"][0, 4, row, column] = before + (1 if before < 127 else -1)
    found = tf.verify(one, two)
    assert found.verdict == "equal within the fp32 gate" and found.overall.off == 0
    assert found.overall.same_codes == found.overall.codes - 1
    assert tf.verify(one, two, gate="exact").verdict == "different"


def test_the_share_of_codes_is_judged_though_no_pixel_stands_out(tmp_path):
    codes, scales, counts = sound(empty=0)
    codes[...] = np.where(codes > 0, 127, -127)  # long vectors: a step of one turns them little
    a = store(tmp_path / "a.zarr", {HERE: (codes, scales, counts)})
    moved = codes.copy()
    moved[..., 1] -= np.sign(moved[..., 1])  # 1 of 24: 4 % of the codes by one
    b = store(tmp_path / "b.zarr", {HERE: (moved, scales, counts)})
    found = tf.verify(a, b)
    assert found.verdict == "different" and found.overall.off == 0
    assert [x.what for x in found.limits if not x.kept] == ["codes identical"]
    c = store(tmp_path / "c.zarr", {HERE: (moved, scales, counts)}, BF16)
    assert tf.verify(a, c).verdict == "equal within the bf16 gate"
    assert any("within the gate of bf16" in cause for cause in found.causes)


@pytest.mark.parametrize(("factor", "same"), [(0.5, True), (4, False)])
def test_float32_outputs_have_the_golden_gate(tmp_path, factor, same):
    plain = values(empty=0)
    moved = plain.copy()
    moved[3, 4, 5] += factor * GOLDEN_ATOL
    a, b = (float_folder(tmp_path / n, {HERE: v}) for n, v in (("a", plain), ("b", moved)))
    found = tf.verify(a, b)
    assert found.same is same and found.verdict != "equal"
    assert places(found.pixels) == {(3, 4)}
    assert found.overall.deviation.value == abs(float(moved[3, 4, 5]) - float(plain[3, 4, 5]))


def test_pixels_on_one_side_alone(tmp_path, one):
    codes, scales, counts = sound()
    row, column = np.argwhere(np.isfinite(scales))[7]
    codes[row, column], scales[row, column], counts[row, column] = 0, np.inf, 0
    two = store(tmp_path / "two.zarr", {HERE: (codes, scales, counts)})
    found = tf.verify(one, two)
    assert found.verdict == "different" and not found.pixels
    assert found.lonely[0]["only_in"] == "A" and places(found.lonely) == {(row, column)}
    assert (found.overall.only_a, found.overall.only_b) == (1, 0)
    assert any("has not finished" in cause for cause in found.causes)
    assert tf.verify(one, two, ignore_missing=True).verdict == "equal"
    arrays(two)["scales"][0, row, column] = np.nan  # water, and not a gap
    found = tf.verify(one, two)
    assert found.verdict == "equal" and found.overall.masked == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "v2-small"}, "model"),
        ({"weights_sha256": "cd" * 32}, "weights"),
        ({"period": "07-01/06-30"}, "period"),
    ],
)
def test_other_models_are_different_first(tmp_path, one, change, word):
    two = store(tmp_path / "two.zarr", provenance=replace(INT8, **change))
    found = tf.verify(one, two)
    assert found.verdict.startswith(f"different: other {word} (") and not found.same
    assert tf.verify(one, two, ignore_provenance=True).verdict == "equal"


def test_what_cannot_be_compared(tmp_path, one):
    narrow = replace(INT8, dims=16, prefixes=(8,))
    codes, scales, counts = sound()
    two = store(tmp_path / "two.zarr", {HERE: (codes[..., :16], scales, counts)}, narrow)
    with pytest.raises(StoreError, match=r"one width, got 24.*and 16"):
        tf.verify(one, two)
    with pytest.raises(InputError, match="expected auto, exact, fp32"):
        tf.verify(one, one, gate="half")
    with pytest.raises(StoreError, match="expected a Zarr store"):
        tf.verify(one, tmp_path / "nothing")
    far = store(tmp_path / "far.zarr", {tile("a", x0=HERE.transform[2] + 9000): sound()})
    with pytest.raises(StoreError, match="nothing to compare"):
        tf.verify(one, far)
    shapes = [
        folder(tmp_path / n, {k: sound(k)}) for n, k in (("f", HERE), ("g", tile("a", 45, 60)))
    ]
    with pytest.raises(StoreError, match=r"45 x 61 in .* and 45 x 60"):
        tf.verify(*shapes)


def test_a_damaged_shard_is_an_error_that_names_the_place(tmp_path, one):
    two = copy(one, tmp_path / "two.zarr")
    for file in ("embeddings/c/0/0/0/0", "scales/c/0/0/0"):
        (two / "utm31" / file).write_bytes(b"x" * 100)
        with pytest.raises(
            StoreError, match=r"two.zarr, utm31/2020, rows 0..45.*verify .*two.zarr`"
        ):
            tf.verify(one, two)
    marker(two).write_text("{")
    with pytest.raises(StoreError, match=r"a.2020.json: cannot be read as a marker"):
        tf.verify(one, two)
    (two / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"two.zarr/zarr.json: expected the metadata of a Zarr"):
        tf.verify(one, two)
    npy = folder(tmp_path / "npy", {HERE: sound()})
    (npy / "a.npy").write_bytes(b"x" * 100)
    with pytest.raises(StoreError, match=r"a.npy: expected a .npy file of embeddings"):
        tf.verify(one, npy)


# ---- the command line


def test_the_command_line(tmp_path, one, run):
    two = copy(one, tmp_path / "two.zarr")
    assert run("verify", one, two).code == 0
    row, column = (int(v) for v in np.argwhere(np.isfinite(sound()[1]))[3])
    arrays(two)["scales"][0, row, column] *= 2
    report = tmp_path / "report.json"
    result = run("verify", one, two, "--json", report)
    assert result.code == 1
    assert result.out.splitlines()[2] == "different"
    assert f"utm31/2020 row {row} column {column}, x " in result.out
    content = json.loads(report.read_text())
    assert content["verdict"] == "different" and content["same"] is False
    assert [(p["row"], p["column"]) for p in content["worst_pixels"]] == [(row, column)]
    assert content["overall"]["scale_ratio_worst_drift"] == 1.0
    assert content["overall"]["cosine_min"] == 1.0
    assert content["a"]["provenance"]["model"] == "v2-nano"
    assert {p.name for p in tmp_path.glob(".*")} == set()
    result = run("verify", one, "--gate", "fp32")
    assert result.code == 1 and "give a second output" in result.err
    result = run("verify", one, two, "--json", tmp_path / "no" / "folder.json")
    assert result.code == 1 and "could not be written" in result.err


def test_swapped_orbits_are_different(farm, mini, run, tmp_path):
    """A model of v2 has other statistics for each orbit."""
    swapped = Path(shutil.copytree(farm, tmp_path / "swapped" / "farm_2024"))
    names = {"sar_ascending": "sar_descending", "sar_descending": "sar_ascending"}
    for end in (".npy", "_doy.npy"):
        for old, new in names.items():
            shutil.copy(farm / f"{old}{end}", swapped / f"{new}{end}")
    for name, source in (("a", farm), ("b", swapped)):
        out = tmp_path / f"{name}.zarr"
        arguments = ("--model", mini, "--precision", "fp32")
        assert run("embed", source, "-o", out, *arguments).code == 0
    result = run("verify", tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert result.code == 1 and result.out.splitlines()[2] == "different"
    assert "ascending and descending files swapped" in result.out
    # The numbers alone would pass the laxest gate: what was observed tells them apart.
    laxest = run("verify", tmp_path / "a.zarr", tmp_path / "b.zarr", "--gate", "fp8")
    lines = [line for line in laxest.out.splitlines() if "NOT KEPT" in line]
    assert laxest.code == 1 and [line.split("  ")[1] for line in lines] == [
        "pixels of other observations"
    ]
