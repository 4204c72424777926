"""The model that learns against the reference, and its checkpoints against the loaders."""
# ruff: noqa: E402

import io
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oracle
import tessera_fast as tf
from official_checkpoints import MINI, arrays
from tessera_fast.errors import InputError, StoreError
from tessera_fast.packing import pack
from tessera_fast.reference import model as reference
from tessera_fast.spec import RELEASED, released, variant
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.training.loop import series_of
from tessera_fast.training.network import StreamBatch, TrainingNetwork
from tessera_fast.training.official_format import check_shape, save_official, write_whole
from tessera_fast.training.views import Views
from tessera_fast.weights import load_weights

CPU = torch.device("cpu")
DRAWS = replace(released("v1.0"), name="draws")


@pytest.fixture(scope="module")
def tile():
    return tf.open_tile(synthetic_tile(4, 6))


def network_of(spec):
    network = TrainingNetwork(spec)
    network.load(arrays(spec))
    return network.eval()


@pytest.mark.parametrize("name", MINI)
def test_forward_is_the_reference(name, tile):
    """On draws, which the reference gets as packed tokens of 40 steps."""
    spec = replace(MINI[name], saved_dim=MINI[name].out_dim)
    views = Views([tile], spec, 16, draws=2, min_dates=1)
    batch = next(views.batches())
    (pixels,) = batch.parts
    for view, seed in zip(batch.views, views.draw_seeds, strict=True):
        s2, s1, _ = pack(pixels, DRAWS, seed=seed)
        tensors = reference.to_tensors(arrays(spec), torch.float64)
        expected = reference.forward(spec, tensors, s2, s1, torch.float64)
        with torch.no_grad():
            got = network_of(spec)(*series_of(view, CPU))
        oracle.assert_golden(got.numpy(), expected)


@pytest.mark.parametrize("name", MINI)
def test_every_parameter_learns(name, tile):
    spec = MINI[name]
    view = next(Views([tile], spec, 8, draws=1, min_dates=1).batches()).views[0]
    network = TrainingNetwork(spec, seed=3)
    out = network(*series_of(view, CPU))
    (out * torch.linspace(-1, 1, spec.out_dim)).sum().backward()
    for parameter_name, parameter in network.official().items():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        if not parameter_name.endswith("attn_pool.query.bias"):  # softmax takes it away
            assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", MINI)
def test_mixed_precision_runs_and_is_near(name, tile):
    spec = MINI[name]
    view = next(Views([tile], spec, 16, draws=1, min_dates=1).batches()).views[0]
    network = network_of(spec)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = network(*series_of(view, CPU))
    with torch.no_grad():
        exact = network(*series_of(view, CPU))
    assert got.dtype == torch.float32
    assert not torch.equal(got, exact)
    assert oracle.cosines(got.numpy(), exact.numpy()).min() > 0.99


def test_days_may_be_fractions():
    days = torch.tensor([[1.0, 200.0]])
    a, b = StreamBatch(torch.zeros(1, 2, 2), days), StreamBatch(torch.ones(1, 2, 2), days.flip(1))
    mixed = a.mixed(b, torch.tensor([0]), torch.tensor(0.25))
    assert mixed.days.tolist() == [[150.25, 50.75]]
    assert mixed.bands.unique().tolist() == [0.75]


def test_the_seed_decides_the_parameters():
    spec = MINI["v2"]
    first, again, other = (TrainingNetwork(spec, seed).official() for seed in (1, 1, 2))
    name = "dim_reducer.0.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("name", MINI)
def test_a_checkpoint_has_the_official_names_and_is_loaded(name, tmp_path):
    spec = MINI[name]
    network = TrainingNetwork(spec, seed=4)
    path = tmp_path / "model.pt"
    save_official(path, spec, network.official())
    check_shape(spec)

    weights = load_weights(path)
    assert replace(weights.spec, name=spec.name) == spec
    for tensor_name, parameter in network.official().items():
        assert np.array_equal(weights.tensors[tensor_name], parameter.detach().numpy())

    content = torch.load(path, weights_only=True)
    outer = {
        "v2": ("model", "args"),
        "v2-qk": ("model", "args"),
        "v2-teacher": ("encoder_state_dict", "arch"),
        "v1.1": ("model_state", "config"),
        "v1.0": ("model_state_dict", "config"),
        "v1.0-qat": ("model_state_dict", "config"),
    }[name]
    assert set(content) == set(outer)
    prefix = "_orig_mod." if name.startswith("v1") else ""
    assert set(content[outer[0]]) == {prefix + n for n in spec.parameter_shapes()}


@pytest.mark.parametrize(
    "name", [n for n in RELEASED if n in ("v2-nano", "v2-small", "v1.1-aws", "v1.0-qat")]
)
def test_a_released_shape_is_recognised_as_released(name, tmp_path):
    spec = RELEASED[name]
    path = tmp_path / "model.pt"
    state = {n: torch.zeros(s) for n, s in spec.parameter_shapes().items()}
    save_official(path, spec, state)
    assert load_weights(path).spec == spec


def test_a_loaded_model_embeds_as_the_network_does(tile, tmp_path):
    """v2 reads a series of 40 dates as it is: the draw and the tile are then the same input."""
    spec = variant("v2-nano", d_model=48, num_layers=2, ff_dim=40, name="v2-custom")
    window = tile.rows(0, 4)
    dates, pixels = window.s2_bands.shape[0], 24
    orbit = window.orbits[0]
    used = np.linspace(0, dates - 1, 40).astype(int)
    radar = np.linspace(0, len(orbit.bands) - 1, 40).astype(int)
    short = {
        "bands": window.s2_bands[used],
        "masks": np.ones((40, 4, 6), np.uint8),
        "doys": window.s2_doys[used],
        "sar_ascending": np.maximum(orbit.bands[radar], 1),
        "sar_ascending_doy": orbit.doys[radar],
    }
    short_tile = tf.open_tile(short)
    batch = next(Views([short_tile], spec, pixels, draws=1, min_dates=40).batches())
    network = TrainingNetwork(spec, seed=9)
    path = tmp_path / "model.pt"
    save_official(path, spec, network.official())
    with torch.no_grad():
        mine = network(*series_of(batch.views[0], CPU)).numpy()
    with tf.load_model(path, backend="cpu", precision="fp32") as model:
        embedded = tf.embed(short_tile, model, progress=False)
    oracle.assert_golden(embedded.reshape(pixels, -1), mine)


def test_a_shape_that_the_format_cannot_hold_is_refused():
    spec = replace(MINI["v1.0"], num_heads=2)  # heads of v1.0 are not in its files
    with pytest.raises(InputError, match="cannot hold these sizes"):
        check_shape(spec)
    for name in RELEASED:
        check_shape(RELEASED[name])


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    def fail(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def through_torch(f):
        with Full(f.fileno(), "wb", closefd=False) as full:
            torch.save({"x": torch.zeros(1000)}, full)

    for write in (fail, through_torch):
        with pytest.raises(StoreError, match="No space left"):
            write_whole(tmp_path / "m.pt", write)
    assert list(tmp_path.iterdir()) == []
