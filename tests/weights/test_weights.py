"""Which model a file holds, whether it fits, where weights come from; seeded parameters."""

import hashlib
import importlib.util
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from official_checkpoints import MINI, arrays, save, save_model
from places import SHARED
from tessera_fast.errors import InputError, WeightsError
from tessera_fast.spec import RELEASED, ModelSpec, variant
from tessera_fast.weights import convert, hub, load_weights, save_safetensors, untrained_weights
from tessera_fast.weights.checkpoint import Checkpoint, StoredTensor, digest
from tessera_fast.weights.recognise import match
from tessera_fast.weights.untrained import untrained

RECIPE = SHARED / "golden" / "recipe.py"
SPEC = MINI["v2"]
QUERY = "s1_backbone.attn_pool.query.weight"


def same(got, want):
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def shapes_only(spec: ModelSpec, **config) -> Checkpoint:
    """A file's description without values, enough to recognise it."""
    tensors = {
        name: StoredTensor("<f4", shape, (1,) * len(shape), 0, None)
        for name, shape in spec.parameter_shapes().items()
    }
    return Checkpoint(Path("x.pt"), tensors, config)


# ---- recognition


@pytest.mark.parametrize("name", RELEASED)
def test_released_shapes_get_the_released_name(name):
    spec = RELEASED[name]
    config = {"data_source": name.split("-")[1]} if spec.sampling == "v1.1" else {}
    assert match(shapes_only(spec, **config))[0] is spec
    assert match(shapes_only(spec), expected=spec)[0] is spec


@pytest.mark.parametrize("family", MINI)
def test_files_of_every_family(tmp_path, family):
    spec = MINI[family]
    path = save_model(tmp_path / "x.pt", spec)
    loaded = load_weights(path)
    assert loaded.spec == spec and loaded.trained
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.source == str(path)
    same(loaded.tensors, arrays(spec))


def test_a_released_model_by_name_and_by_file(tmp_path):
    spec = RELEASED["v2-nano"]
    path = save_model(tmp_path / "x.pth", spec)
    for loaded in (load_weights("v2-nano", path), load_weights(str(path))):
        assert loaded.spec is spec
        same(loaded.tensors, arrays(spec))


def test_golden_configurations():
    qk = variant("v2-nano", name="v2-custom", d_model=48, num_layers=3, ff_dim=80, qk_norm=True)
    assert match(shapes_only(qk, enable_qk_norm=True, latent_dim=12, nhead=4))[0] == qk
    mini = variant(
        "v1.1-aws", name="v1.1-aws-custom", d_model=64, ff_dim=96, out_dim=16, saved_dim=16
    )
    assert match(shapes_only(mini, data_source="aws", s2_num_heads=4))[0] == mini


def test_a_bare_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(a) for name, a in arrays(MINI["v1.0"]).items()}
    assert load_weights(save(tmp_path / "x.pt", state)).spec == MINI["v1.0"]


def test_settings_that_shapes_do_not_show():
    teacher = MINI["v2-teacher"]
    bare = match(shapes_only(teacher, final_layernorm=False))[0]
    assert bare == replace(teacher, final_norm=False)
    heads = match(shapes_only(RELEASED["v2-nano"], nhead=8))[0]
    assert heads.num_heads == 8 and heads.name == "v2-custom"
    assert match(shapes_only(SPEC))[0].matryoshka == (16,)  # those of 16, 32, 64, 128 that fit
    assert match(shapes_only(SPEC, matryoshka_dims="8, 24"))[0] == SPEC


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("v2", {"num_layers": 3}, "says num_layers 3, its tensors say 2"),
        ("v2", {"latent_dim": 64}, "says d_model 256, its tensors say 48"),
        ("v2", {"repr_dim": 128}, "says out_dim 128, its tensors say 24"),
        ("v2", {"dim_feedforward": 41}, "says ff_dim 41, its tensors say 40"),
        ("v2", {"enable_qk_norm": True}, "says qk_norm True, its tensors say False"),
        ("v2", {"nhead": 5}, "48 must be even and a multiple of its 5 heads"),
        ("v2", {"nhead": 0}, "num_heads: expected a whole number of 1 to 1024, got 0"),
        ("v2", {"nhead": 4.0}, r"nhead: expected an integer, got 4\.0"),
        ("v2", {"enable_qk_norm": "no"}, "expected True or False, got 'no'"),
        ("v2", {"matryoshka_dims": "16,128"}, r"expected widths of 1\.\.24, got '16,128'"),
        ("v2", {"matryoshka_dims": 16}, r"expected widths of 1\.\.24, got 16"),
        ("v2-qk", {"nhead": 8}, "says num_heads 8, its tensors say 4"),
        ("v2-teacher", {"latent_dim": 1024}, "says d_model 4096, its tensors say 96"),
        ("v1.1", {"data_source": "aws", "s1_num_heads": 8, "s2_num_heads": 4}, "s1_num_heads"),
        ("v1.1", {"data_source": "aws", "representation_dim": 192}, "says out_dim 192"),
        ("v1.1", {"data_source": "gee"}, "does not say which"),
        ("v1.1", {}, r"pass model='v1\.1-mpc' or 'v1\.1-aws'"),
    ],
)
def test_configuration_that_contradicts(family, config, message):
    with pytest.raises(WeightsError, match=message):
        match(shapes_only(MINI[family], **config))


# ---- whether the tensors fit


def test_the_first_offending_tensor_is_named(tmp_path):
    whole = arrays(SPEC)
    shape = str(whole[QUERY].shape).replace("(", r"\(").replace(")", r"\)")
    for change, message in [
        ({QUERY: None}, f"{QUERY}: expected {shape} for v2-custom, it is missing"),
        ({QUERY: whole[QUERY][:, :-1].copy()}, rf"{QUERY}: expected {shape} .*, got \(1, 47\)"),
        ({QUERY: whole[QUERY][0]}, rf"{QUERY}: expected {shape} .*, got \(48,\)"),
        ({"projector.0.weight": whole[QUERY]}, r"projector\.0\.weight: unexpected"),
        ({"_orig_mod." + QUERY: whole[QUERY]}, "are one parameter, with and without a wrapper"),
        ({QUERY: np.full((1, 48), np.nan, "f4")}, rf"{QUERY}: .*finite.*nan at \(0, 0\)"),
        ({QUERY: np.append(whole[QUERY][:, :-1], np.float32(-np.inf))[None]}, r"-inf at \(0, 47\)"),
        ({QUERY: np.full((1, 48), 1e39)}, rf"{QUERY}: .*finite.*inf at"),
        ({QUERY: np.ones((1, 48), "i4")}, rf"{QUERY}: expected float32, .*, got <i4"),
        ({QUERY: None, "dim_reducer.1.bias": None}, QUERY),
        ({"s2_backbone.embedding.0.weight": None}, r"s2_backbone\.embedding\.0\.weight: it is mis"),
    ]:
        tensors = {k: v for k, v in (whole | change).items() if v is not None}
        with pytest.raises(WeightsError, match=message):
            load_weights(save_model(tmp_path / "x.pt", SPEC, tensors))


@pytest.mark.parametrize("family", MINI)
def test_any_tensor_missing_is_named(family):
    spec = MINI[family]
    for name in spec.parameter_shapes():
        file = shapes_only(spec, data_source="aws")
        del file.tensors[name]
        with pytest.raises(WeightsError, match=f"{name}: .*missing"):
            match(file)


def test_a_file_of_another_model(tmp_path):
    nano, small = RELEASED["v2-nano"], RELEASED["v2-small"]
    path = save_model(tmp_path / "x.pt", nano)
    with pytest.raises(
        WeightsError,
        match=r"x\.pt: s2_backbone\.embedding\.0\.weight: expected "
        r"\(256, 10\) for v2-small, got \(144, 10\)",
    ):
        load_weights("v2-small", path)
    for given, asked in [
        (shapes_only(nano, nhead=8), nano),
        (shapes_only(RELEASED["v2-teacher"], final_layernorm=False), RELEASED["v2-teacher"]),
        (shapes_only(RELEASED["v1.1-aws"], data_source="aws"), RELEASED["v1.1-mpc"]),
        (shapes_only(replace(nano, num_layers=4)), nano),
        (shapes_only(RELEASED["v1.0"]), RELEASED["v1.0-qat"]),
        (shapes_only(small), nano),
    ]:
        with pytest.raises(WeightsError, match=asked.name):
            match(given, expected=asked)


def test_something_that_is_no_tessera(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(WeightsError, match="got conv: not a TESSERA checkpoint"):
        load_weights(save(tmp_path / "x.pt", {"model": {"conv": torch.ones(2)}}))
    with pytest.raises(WeightsError, match="got keys 'weights'"):
        load_weights(save(tmp_path / "y.pt", {"weights": 1}))
    with pytest.raises(WeightsError, match="expected a dict, got list"):
        load_weights(save(tmp_path / "z.pt", [1]))


# ---- where weights come from


def test_names_that_are_not_known(tmp_path):
    with pytest.raises(InputError, match=r"expected one of v2-nano, .*, got 'v2-nan'"):
        load_weights("v2-nan")
    with pytest.raises(WeightsError, match=r"goes with a model's name, got model='x\.pt'"):
        load_weights("x.pt", "untrained")
    for text in ("untrained:", "untrained:-1", "untrained:one", "untrained:²"):
        with pytest.raises(WeightsError, match="untrained:<seed>"):
            load_weights("v2-nano", text)


@pytest.mark.parametrize("name", ["v1.1-mpc", "v1.1-aws", "v1.0-qat", "v1.0"])
def test_v1_weights_must_be_given(name, monkeypatch):
    monkeypatch.delenv("TESSERA_FAST_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=rf"{name}: .*authors' drive only.*path as weights="):
        load_weights(name)


def test_the_folder_of_local_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_FAST_WEIGHTS", str(tmp_path / "no"))
    with pytest.raises(WeightsError, match=r"TESSERA_FAST_WEIGHTS: .* is not a folder"):
        load_weights("v2-nano")

    monkeypatch.setenv("TESSERA_FAST_WEIGHTS", str(tmp_path))
    ours = tmp_path / "v2-nano.safetensors"
    save_safetensors(ours, untrained_weights(RELEASED["v2-nano"], 2))
    same(load_weights("v2-nano").tensors, arrays(RELEASED["v2-nano"], 2))

    official = save_model(tmp_path / "student_nano.pt", RELEASED["v2-nano"])
    released, got = hub.RELEASES["v2-nano"].sha256, digest(official)
    with pytest.raises(WeightsError, match=rf"expected sha256 {released}, got {got}"):
        load_weights("v2-nano")
    monkeypatch.setitem(
        hub.RELEASES, "v2-nano", replace(hub.RELEASES["v2-nano"], sha256=digest(official))
    )
    loaded = load_weights("v2-nano")
    assert loaded.source == str(official)
    same(loaded.tensors, arrays(RELEASED["v2-nano"]))


def test_convert_checks_the_name(tmp_path):
    nano = RELEASED["v2-nano"]
    path = save_model(tmp_path / "x.pt", nano)
    with pytest.raises(WeightsError, match="for v2-small"):
        convert(path, tmp_path / "x.safetensors", model="v2-small")
    assert not (tmp_path / "x.safetensors").exists()
    convert(path, tmp_path / "x.safetensors", model="v2-nano")
    same(load_weights("v2-nano", tmp_path / "x.safetensors").tensors, arrays(nano))


# ---- seeded parameters


def test_untrained_by_name():
    default, first, second = (
        load_weights("v2-nano", text) for text in ("untrained", "untrained:1", "untrained:2")
    )
    assert not default.trained and default.source == "untrained:1"
    same(default.tensors, first.tensors)
    assert default.sha256 == first.sha256 != second.sha256
    assert not np.array_equal(first.tensors[QUERY], second.tensors[QUERY])


@pytest.mark.parametrize("name", ["v2-nano", "v1.0", "v1.0-qat", *MINI])
def test_untrained_equals_the_recipe_of_the_goldens(name):
    if not RECIPE.exists():
        pytest.skip("the recipe of the golden files is not beside this checkout")
    module_spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    recipe = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(recipe)
    spec = MINI[name] if name in MINI else RELEASED[name]
    shapes = spec.parameter_shapes()
    keep = {n: s for n, s in shapes.items() if math.prod(s) < 300_000 or ".0.linear1" in n}
    for seed in (1, 77):
        want = recipe.state_dict(keep, seed)
        got = untrained(spec, seed)
        same({n: got[n] for n in keep}, want)


def test_untrained_is_frozen():
    """The goldens were made with these very bits."""
    state = hashlib.sha256()
    for family in MINI:
        for array in untrained(MINI[family]).values():
            state.update(array.tobytes())
    assert state.hexdigest() == "16ad6dc7e022275de06eb8277d22027bd0e86ed2ba815aa6dcd051c4c51e1860"


def test_untrained_tensors_are_drawn_when_asked_for():
    tensors = load_weights("v2-teacher", "untrained").tensors
    assert len(tensors) == len(RELEASED["v2-teacher"].parameter_shapes())
    tracemalloc.start()
    embedding = tensors["s2_backbone.embedding.2.weight"]  # 64 MiB of 8 GB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert embedding.shape == (4096, 4096)
    assert peak < embedding.nbytes + (24 << 20)
    assert "nothing" not in tensors
