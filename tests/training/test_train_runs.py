"""`train` and `distill` from a file to a checkpoint: losses fall, runs go on, formats are read."""
# ruff: noqa: E402

import csv
import shutil
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oracle
import tessera_fast as tf
from tessera_fast.errors import BackendUnavailable, InputError, StoreError, TesseraError
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.training import loop, processes
from tessera_fast.training.config import DistillPart, TwinsPart, read_config
from tessera_fast.training.runs import distill, train
from tessera_fast.weights import load_weights, save_safetensors, untrained_weights
from train_configs import TWINS, two_tiles, writer


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    return two_tiles(tmp_path_factory.mktemp("training"))


@pytest.fixture
def write(tiles, tmp_path):
    return writer(tiles, tmp_path)


def parameters(path):
    return dict(load_weights(path).tensors)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def rows_of(folder):
    with (folder / "log.csv").open(newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def stop_at(step):
    def report(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    return report


def test_training_lowers_both_losses_and_says_so(write, run, tmp_path):
    path = write(run={"steps": 60, "batch": 24, "log_every": 1, "save_every": 60})
    result = run("train", path)
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "run" / "model.pt")
    assert "step 60/60" in result.err and "views_s" in result.err
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 61))
    for name in ("main", "mixup"):  # of a batch they jump, with the share that is drawn
        assert sum(row[name] for row in rows[45:]) < 0.7 * sum(row[name] for row in rows[:15])
    for row in rows:
        assert 0 < row["rankme_embedding"] <= 1 and 0 < row["rankme_z"] <= 1
        assert row["loss"] == pytest_sum(row["main"], row["mixup"])
        assert row["views_s"] > 0
    with tf.load_model(tmp_path / "run" / "model.pt", backend="cpu") as model:
        assert model.trained and model.spec.matryoshka == (32,)
        assert np.isfinite(tf.embed(synthetic_tile(3, 6), model, progress=False)).any()


def pytest_sum(a, b):
    """As float32, in which the loss was added up."""
    return float(np.float32(a) + np.float32(b))


@pytest.mark.parametrize("stopped", [2, 5])
def test_a_resumed_run_has_the_same_weights(write, tmp_path, stopped):
    whole = train(read_config(write(run={"out": "whole"}), TwinsPart))
    config = read_config(write(), TwinsPart)
    with pytest.raises(KeyboardInterrupt):
        train(config, report=stop_at(stopped))
    assert not same(parameters(whole), parameters(tmp_path / "run" / "model.pt"))
    resumed = train(config, resume=True)
    assert same(parameters(whole), parameters(resumed))
    for a, b in zip(rows_of(whole.parent), rows_of(resumed.parent), strict=True):
        for name in ("step", "loss", "gradient", "rate"):
            assert a[name] == b[name]


@pytest.mark.parametrize(
    "options",
    [
        {"objective": {**TWINS, "prefixes": [8, 32], "weights": [1, 3.0], "int8": True}},
        {"objective": {**TWINS, "mixup": False}},
        {"run": {"precision": "bf16"}},
        {"model": {"base": "v1.1-aws", "num_heads": 4}, "run": {"precision": "bf16"}},
        {"model": {"base": "v1.0", "num_heads": 8}, "run": {"precision": "bf16"}},
        {"model": {"base": "v1.0-qat", "num_heads": 4}},
        {"model": {"base": "v2-teacher", "num_heads": 4}},
    ],
)
def test_every_kind_of_run_resumes_and_loads(write, tmp_path, options):
    config = read_config(
        write(run={"steps": 2, "save_every": 1, **options.pop("run", {})}, **options), TwinsPart
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, report=stop_at(1))
    before = parameters(tmp_path / "run" / "model.pt")
    path = train(config, resume=True)
    assert not same(before, parameters(path))
    weights = load_weights(path)
    base = config.model.base.split("-")[0]
    assert weights.spec.sampling == base and weights.trained


def test_accumulation_is_as_good_as_more_processes(write, spawn, tmp_path):
    """Two processes, as torchrun starts them, against one that adds up two batches: the same."""
    one = train(read_config(write(run={"out": "one", "steps": 2, "accumulate": 2}), TwinsPart))
    path = write(run={"out": "two", "steps": 2, "device": "cpu"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [spawn("train", path, env={**shared, "RANK": str(rank)}) for rank in (0, 1)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0].strip().endswith("model.pt") and not results[1][0]
    assert same(parameters(one), parameters(tmp_path / "two" / "model.pt"))


def test_a_student_comes_to_embed_as_its_teacher(write, run, mini, tmp_path):
    objective = {"teacher": str(mini), "prefixes": [8, 32]}
    path = write(objective, run={"steps": 60, "batch": 24, "log_every": 10, "save_every": 60})
    result = run("distill", path)
    assert result.code == 0, result.err
    rows = rows_of(tmp_path / "run")
    for name in ("at_8", "at_32"):
        assert rows[-1][name] < 0.8 * rows[0][name]
    tile = synthetic_tile(4, 6)
    cosine = []
    for model in (mini, tmp_path / "run" / "model.pt"):
        with tf.load_model(model, backend="cpu") as loaded:
            cosine.append(tf.embed(tile, loaded, progress=False).reshape(24, -1))
    seen = ~np.isnan(cosine[0]).any(-1)
    assert oracle.cosines(cosine[0][seen], cosine[1][seen]).mean() > 0.5


def test_a_resumed_student_has_the_same_weights(write, mini):
    objective = {"teacher": str(mini), "prefixes": [8, 32], "heads": "linear"}
    whole = distill(read_config(write(objective, run={"out": "whole"}), DistillPart))
    config = read_config(write(objective), DistillPart)
    with pytest.raises(KeyboardInterrupt):
        distill(config, report=stop_at(3))
    assert same(parameters(whole), parameters(distill(config, resume=True)))


@pytest.mark.parametrize(
    ("heads", "teacher_out", "linear"),
    [("auto", 32, False), ("linear", 32, True), ("auto", 64, True), ("none", 64, False)],
)
def test_heads_are_where_dimensions_do_not_correspond(write, tmp_path, heads, teacher_out, linear):
    from tessera_fast.spec import variant

    spec = variant(
        "v2-nano",
        name="t",
        d_model=16,
        num_layers=1,
        num_heads=2,
        ff_dim=16,
        out_dim=teacher_out,
        saved_dim=teacher_out,
        matryoshka=(16, 32),
    )
    save_safetensors(tmp_path / "teacher.safetensors", untrained_weights(spec))
    objective = {"teacher": "teacher.safetensors", "prefixes": [16, 32], "heads": heads}
    distill(read_config(write(objective, run={"steps": 1}), DistillPart))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["objective"]
    got = {name: tuple(v.shape) for name, v in state.items() if name.startswith("heads")}
    want = {f"heads.{k}.weight": (teacher_out, k) for k in (16, 32)}
    assert {n: s for n, s in got.items() if n.endswith("weight")} == (want if linear else {})


def test_no_heads_for_a_narrow_teacher_is_refused(write, mini):
    objective = {"teacher": str(mini), "prefixes": [16, 64], "heads": "none"}
    config = read_config(write(objective, model={"out_dim": 64}), DistillPart)
    with pytest.raises(InputError, match="expected linear"):
        distill(config)


@pytest.mark.parametrize(
    ("prefixes", "recorded"),
    [([], (128,)), ([128, 16], (16, 128)), ([16, 32, 64, 128], (16, 32, 64, 128))],
)
def test_prefixes_that_were_trained_are_recorded(write, tmp_path, prefixes, recorded):
    objective = {**TWINS, "prefixes": prefixes} if prefixes else TWINS
    model = {"d_model": 144, "num_heads": 4, "num_layers": 2, "ff_dim": 384, "out_dim": 128}
    path = train(read_config(write(objective, model=model, run={"steps": 1}), TwinsPart))
    spec = load_weights(path).spec
    assert spec.matryoshka == spec.prefixes() == recorded
    assert spec.name == ("v2-nano" if len(prefixes) == 4 else "v2-custom")


def test_a_run_starts_from_a_checkpoint(write, tmp_path):
    first = train(read_config(write(run={"out": "first"}), TwinsPart))
    slow = {"learning_rate": 1e-9}
    path = write(model={"init": "first/model.pt"}, run={"steps": 1}, optimizer=slow)
    config = read_config(path, TwinsPart)
    train(config)
    a, b = parameters(first), parameters(tmp_path / "run" / "model.pt")
    name = "dim_reducer.0.weight"
    assert np.abs(a[name] - b[name]).max() < 0.01 < np.abs(a[name]).max()
    other = read_config(write(model={"init": "first/model.pt", "ff_dim": 20}), TwinsPart)
    with pytest.raises(InputError, match="expected parameters of"):
        train(other)
    heads = read_config(write(model={"init": "first/model.pt", "num_heads": 1}), TwinsPart)
    with pytest.raises(InputError, match="expected parameters of"):  # tensors of the same shapes
        train(heads)


def test_folders_hold_one_run(write, tmp_path):
    config = read_config(write(run={"steps": 2}), TwinsPart)
    with pytest.raises(InputError, match="leave --resume out"):
        train(config, resume=True)
    train(config)
    with pytest.raises(InputError, match=r"got state\.pt; pass --resume"):
        train(config)
    before = (tmp_path / "run" / "model.pt").read_bytes()
    state = (tmp_path / "run" / "state.pt").read_bytes()
    (tmp_path / "run" / "state.pt").unlink()  # nothing but model.pt is needed of a run
    with pytest.raises(InputError, match=r"got model\.pt"):
        train(config)
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    (tmp_path / "run" / "state.pt").write_bytes(state)
    other = read_config(write(run={"steps": 3}), TwinsPart)
    with pytest.raises(InputError, match=r"\[run\] steps = 2 as the run began, got 3"):
        train(other, resume=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"base": "v1.0", "num_heads": 2}},
        {"run": {"batch": 500}},
        {"run": {"tensorboard": True}},
    ],
)
def test_a_start_that_fails_is_not_in_the_way(write, tmp_path, monkeypatch, wrong):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TesseraError):
        train(read_config(write(**wrong), TwinsPart))
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    train(read_config(write(run={"steps": 1}), TwinsPart))


def test_a_run_goes_on_with_the_same_tiles_and_teacher(write, mini, tiles, tmp_path):
    for name in ("tile_1", "tile_2"):
        shutil.copytree(tiles / name, tmp_path / "land" / name)
    data = {"tiles": ["land/tile_*"]}
    config = read_config(write(run={"steps": 2}, data=data), TwinsPart)
    with pytest.raises(KeyboardInterrupt):
        train(config, report=stop_at(1))
    shutil.copytree(tiles / "tile_1", tmp_path / "land" / "tile_3")
    with pytest.raises(InputError, match=r"\[tiles\] number = 2 as the run began, got 3"):
        train(config, resume=True)
    shutil.copy(mini, tmp_path / "teacher.safetensors")
    objective = {"teacher": "teacher.safetensors", "prefixes": [32]}
    student = read_config(write(objective, run={"out": "student", "steps": 2}), DistillPart)
    with pytest.raises(KeyboardInterrupt):
        distill(student, report=stop_at(1))
    other = replace(load_weights(mini).spec, name="other", out_dim=48, saved_dim=48)
    save_safetensors(tmp_path / "teacher.safetensors", untrained_weights(other), overwrite=True)
    with pytest.raises(InputError, match=r"\[teacher\] sha256 = .* as the run began"):
        distill(student, resume=True)


def test_only_what_is_kept_is_trained(write, tmp_path):
    """v1.1 gives more dimensions than it keeps."""
    model = {"base": "v1.1-mpc", "num_heads": 4, "out_dim": 136}
    train(read_config(write(model=model, run={"steps": 1}), TwinsPart))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["objective"]
    assert state["projectors.128.0.weight"].shape[1] == 128


def test_a_gradient_that_is_not_finite_stops_the_run(write, tmp_path, monkeypatch):
    before = loop.losses.barlow_twins
    config = read_config(write(run={"save_every": 1}), TwinsPart)
    calls = []

    def broken(a, b):
        calls.append(1)
        return before(a, b) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(loop.losses, "barlow_twins", broken)
    with pytest.raises(StoreError, match="step 3: expected finite gradients"):
        train(config)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2
    assert all(np.isfinite(v).all() for v in parameters(tmp_path / "run" / "model.pt").values())


def test_a_state_that_is_damaged_is_named(write, tmp_path):
    config = read_config(write(run={"steps": 2}), TwinsPart)
    train(config)
    path = tmp_path / "run" / "state.pt"
    whole = torch.load(path, weights_only=True)
    for change in (
        {"step": "2"},
        {"step": -1},
        {"step": True},
        {"config": "["},
        {"config": {}},
        {"config": '{"model": 3}'},
        {"objective": None},
        {"objective": {}},
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": [3]}},
        {"optimizer": 3},
    ):
        torch.save(whole | change, path)
        with pytest.raises(StoreError, match=r"state\.pt: expected the state of a run"):
            train(config, resume=True)
    for other in ([], None, 3, {}):
        torch.save(other, path)
        with pytest.raises(StoreError, match=r"state\.pt: expected the state of a run"):
            train(config, resume=True)
    path.write_bytes(b"PK not a state")
    with pytest.raises(StoreError, match=r"state\.pt: expected the state of a run"):
        train(config, resume=True)


def test_a_run_of_two_processes_is_resumed_by_two(write, monkeypatch):
    config = read_config(write(run={"steps": 2}), TwinsPart)
    train(config)
    monkeypatch.setattr(loop.Run, "_settles", lambda self: {"torchrun": {"processes": 2}})
    with pytest.raises(InputError, match=r"\[torchrun\] processes = 1 as the run began, got 2"):
        train(config, resume=True)


def test_tensorboard_is_asked_for_by_name(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendUnavailable, match="pip install tensorboard"):
        train(read_config(write(run={"tensorboard": True}), TwinsPart))


def test_a_device_that_is_not_there(write):
    with pytest.raises(BackendUnavailable, match="device: 'cuda:99'"):
        train(read_config(write(run={"device": "cuda:99"}), TwinsPart))
    with processes.joined("cpu", 0) as place:
        assert (place.rank, place.count, place.device.type) == (0, 1, "cpu")


def test_the_rate_rises_and_falls():
    rates = [loop.schedule(step, 100, 0.1) for step in range(1, 101)]
    assert rates[:10] == [n / 10 for n in range(1, 11)]
    assert np.all(np.diff(rates[9:]) < 0)
    assert 0 < rates[-1] < 0.01
    assert loop.schedule(1, 1, 0.0) == 1
