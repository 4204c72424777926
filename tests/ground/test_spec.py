"""What a model's spec may say, in code and in the metadata of a file."""

import json
from dataclasses import replace

import pytest

from official_checkpoints import MINI
from tessera_fast.errors import InputError, WeightsError
from tessera_fast.spec import NAMED, RELEASED, STATISTICS, ModelSpec, variant
from tessera_fast.weights import load_weights, save_safetensors, untrained_weights

NAN, INF = float("nan"), float("inf")
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]

# field -> values that no model has
WRONG = {
    "name": ["", "..", "../x", "a/b", "a\\b", "a\nb", "\x1b[31m", "x" * 101, 3, None, ["v2"]],
    "d_model": [0, -48, 3.0, True, "48", None, 1 << 40, 10**400, [48]],
    "num_layers": [0, -1, 1025, 2.0, True],
    "num_heads": [0, -1, 5, 2000, NAN, False],
    "ff_dim": [0, 1 << 30, INF],
    "out_dim": [0, -1, 1 << 20, 24.0],
    "saved_dim": [0, 25, "24"],
    "sampling": ["v9", "", None, 2, ["v2"]],
    "pooling": ["gru", None],
    "reducer": ["MLP", 0],
    "pre_norm": [0, 1, "no", None],
    "qk_norm": [1],
    "final_norm": ["True"],
    "dummy_orbit": [None],
    "fusion_layers": [-1, 0.0, 5000, True],
    "matryoshka": [
        (-1, 24),
        (8, "a"),
        (0,),
        (8, 8),
        (24, 8),
        (25,),
        (8.0,),
        (True,),
        8,
        "8",
        None,
        tuple(range(1, 100)),
        ((8,),),
    ],
    "absmax_floor": [NAN, INF, -INF, -1e-12, 1e9, 1e-50, "0", None, True, 10**400],
    "scale_floor": [NAN, INF, -1.0, 1.0, 1e-40, DEEP],
    "statistics": [None, {}, 3],
}
STATISTICS_WRONG = {
    "s2_mean": [
        (),
        (1.0,) * 9,
        (1.0,) * 9 + (NAN,),
        (1.0,) * 9 + (INF,),
        (1.0,) * 9 + ("a",),
        3,
        (1e30,) * 10,
        (True,) * 10,
        (10**400,) * 10,
    ],
    "s2_std": [(0.0,) * 10, (-1.0,) * 10, (1e-30,) * 10, (NAN,) * 10, None],
    "s1_mean": [
        (),
        ((1.0, 2.0),),
        ((1.0, 2.0),) * 3,
        ((1.0, NAN), (1.0, 2.0)),
        (1.0, 2.0),
        5,
        ((1.0, 2.0, 3.0), (1.0, 2.0)),
    ],
    "s1_std": [((1.0, 0.0), (1.0, 1.0)), ((INF, 1.0), (1.0, 1.0))],
}
CASES = [(field, value) for field, values in WRONG.items() for value in values]
ROWS = [(field, value) for field, values in STATISTICS_WRONG.items() for value in values]


@pytest.mark.parametrize("field, value", CASES, ids=lambda v: str(v)[:20] if v is not DEEP else "")
def test_no_spec_has_such_a_value(field, value):
    with pytest.raises(InputError, match=f"{field}: expected|must be even") as caught:
        replace(MINI["v2"], **{field: value})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("field, value", ROWS)
def test_no_statistics_have_such_a_value(field, value):
    with pytest.raises(InputError, match=f"{field}: expected"):
        replace(STATISTICS["v2"], **{field: value})


def test_both_floors_0_would_divide_by_0():
    with pytest.raises(InputError, match="scale_floor: expected more than 0"):
        replace(MINI["v2"], absmax_floor=0.0)
    assert replace(MINI["v2"], absmax_floor=0.0, scale_floor=1e-8).scale_floor == 1e-8


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "x.safetensors"
    save_safetensors(path, untrained_weights(MINI["v2"]))
    return path.read_bytes()


def with_spec(saved, change):
    """The bytes of a file whose embedded spec is ``change(spec)``, with the same values."""
    length = int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8 : 8 + length])
    spec = change(json.loads(header["__metadata__"]["tessera_fast.spec"]))
    text = spec if isinstance(spec, str) else json.dumps(spec)
    header["__metadata__"]["tessera_fast.spec"] = text
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + saved[8 + length :]


def refused(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "field, value", [c for c in CASES if c[1] is not DEEP], ids=lambda v: str(v)[:20]
)
def test_no_file_has_such_a_value(tmp_path, saved, field, value):
    refused(tmp_path, with_spec(saved, lambda spec: spec | {field: value}), "spec is malformed")


@pytest.mark.parametrize("field, value", ROWS)
def test_no_file_has_such_statistics(tmp_path, saved, field, value):
    def change(spec):
        return spec | {"statistics": spec["statistics"] | {field: value}}

    refused(tmp_path, with_spec(saved, change), "spec is malformed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: {k: v for k, v in spec.items() if k != "scale_floor"}, "without scale_floor"),
        (lambda spec: spec | {"colour": 1}, "also 'colour'"),
        (lambda spec: spec | {"statistics": {}}, "statistics: expected exactly"),
        (lambda spec: [spec], "a JSON object"),
        (lambda spec: "[" * 50_000, "nested too deeply"),
        (lambda spec: json.dumps(spec).replace("1e-12", "1e999"), "too large"),
        (lambda spec: json.dumps(spec)[:-1] + ', "name": "x"}', "occurs twice"),
        (lambda spec: spec | {"num_layers": 1000}, "layers in"),
        (lambda spec: spec | {"num_layers": 3}, "layers.2.self_attn.in_proj_weight: expected"),
        (lambda spec: spec | {"matryoshka": DEEP[0][0]}, "nested too deeply|recursion"),
    ],
)
def test_other_damage_to_a_spec(tmp_path, saved, change, message):
    try:
        data = with_spec(saved, change)
    except RecursionError:  # json cannot write it, so write it by hand
        data = with_spec(
            saved,
            lambda spec: json.dumps(spec | {"matryoshka": "@"}).replace(
                '"@"', "[" * 5000 + "]" * 5000
            ),
        )
    refused(tmp_path, data, message)


def test_numbers_without_a_point_are_numbers(tmp_path, saved):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_spec(saved, lambda spec: spec | {"scale_floor": 0}))
    assert load_weights(path).spec == MINI["v2"]


def test_every_spec_survives_json():
    for spec in (*NAMED.values(), *MINI.values()):
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_variant_keeps_the_prefixes_that_fit():
    assert variant("v2-nano", out_dim=40, saved_dim=40).matryoshka == (16, 32)
    assert variant("v2-nano", ff_dim=8).matryoshka == RELEASED["v2-nano"].matryoshka
    with pytest.raises(InputError, match=r"matryoshka: expected .* widths of 1 to 40"):
        variant("v2-nano", out_dim=40, saved_dim=40, matryoshka=(16, 128))
