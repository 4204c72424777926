"""Parameters with what training code puts around them: prefixes, keys, several models."""

import pytest

from checkpoints_alike import same
from official_checkpoints import MINI, arrays, payload, save
from tessera_fast.errors import WeightsError
from tessera_fast.weights import load_weights
from tessera_fast.weights.wrappers import config_of, state_of

torch = pytest.importorskip("torch")

SPEC = MINI["v2"]
FIRST = "s2_backbone.embedding.0.weight"


def state(prefix="", seed=3):
    return {f"{prefix}{k}": torch.from_numpy(v) for k, v in arrays(SPEC, seed).items()}


ARGS = payload(SPEC, arrays(SPEC))["args"]
LOSS = {"loss.weight": torch.ones(2)}
AVERAGED = {"n_averaged": torch.tensor(3)}


@pytest.mark.parametrize(
    "content",
    {
        "bare": state(),
        "DataParallel": state("module."),
        "torch.compile": {"model": state("_orig_mod.")},
        "DDP of compile": {"model_state_dict": state("module._orig_mod.")},
        "compile of DDP": {"model": state("_orig_mod.module.")},
        "AveragedModel": AVERAGED | state("module."),
        "AveragedModel of DDP of compile": AVERAGED | state("module.module._orig_mod."),
        "Lightning": {"state_dict": state("model."), "epoch": 3, "global_step": torch.tensor(9)},
        "Lightning of compile": {"state_dict": state("model._orig_mod.") | LOSS},
        "Lightning, nested": {"state_dict": state("net.encoder.")},
        "FSDP": {"model": state("_fsdp_wrapped_module.")},
        "accelerate": state("_forward_module."),
        "DeepSpeed": {"module": state("module.")},
        "in a key in a key": {"model": {"state_dict": state("module.")}},
        "one dict under two keys": (lambda s: {"model": s, "state_dict": s})(state()),
    }.items(),
    ids=lambda item: item[0],
)
def test_wrappers_are_taken_off(tmp_path, content):
    outer = content[1]
    keys = ("model", "state_dict", "model_state_dict", "module")
    args = {"args": ARGS} if any(isinstance(outer.get(k), dict) for k in keys) else {}
    loaded = load_weights(save(tmp_path / "x.pt", outer | args))
    same(loaded.tensors, arrays(SPEC))
    assert loaded.spec.d_model == SPEC.d_model
    if args:
        assert loaded.spec == SPEC


def test_wrappers_in_the_middle_of_a_name(tmp_path):
    inner = {
        k.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): v
        for k, v in state().items()
    }
    same(load_weights(save(tmp_path / "x.pt", {"model": inner})).tensors, arrays(SPEC))


def test_modules_that_torch_wraps(tmp_path):
    network = torch.nn.Module()
    for name, values in state().items():
        *parts, last = name.split(".")
        module = network
        for part in parts:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(values))
    for module in (
        torch.nn.DataParallel(network),
        torch.compile(network),
        torch.optim.swa_utils.AveragedModel(network),
        torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(torch.compile(network))),
    ):
        loaded = load_weights(save(tmp_path / "x.pt", {"model": module.state_dict(), "args": ARGS}))
        assert loaded.spec == SPEC
        same(loaded.tensors, arrays(SPEC))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state() | state("module."), "are one parameter, with and without a wrapper"),
        (state("model.") | state("ema_model."), "it holds several models, as model"),
        (state() | state("ema."), "it holds several models"),
        (state("student.") | state("teacher."), "student.*and teacher.*the one that you mean"),
        (state("teacher."), r"unknown prefix teacher\. as in teacher.*removeprefix\('teacher\.'\)"),
        ({"state_dict": state("model.ema.")}, r"unknown prefix model\.ema\."),
        ({"model": state(), "model_ema": state("module.", 4)}, "under model and model_ema"),
        ({"model": {"ema": state(), "state_dict": state()}}, r"model\.state_dict and model\.ema"),
        (
            {"state_dict": {"a": 1}},
            "expected a dict of tensors under one of .*state_dict.*got keys 'state_d",
        ),
        ({"models": state()}, "got keys 'models'"),
        ({("x" * 600) + f".{FIRST}": torch.ones(2)} | state(), "a name of"),
    ],
)
def test_what_may_be_another_model_is_refused(tmp_path, content, message):
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(save(tmp_path / "x.pt", content))
    assert len(str(caught.value)) < 700


def test_the_configuration_of_a_wrapped_model(tmp_path):
    args = ARGS | {"nhead": 8}
    for content in (
        {"state_dict": state("model."), "hyper_parameters": args},
        {"state_dict": state("model."), "hyper_parameters": {"config": args, "lr": 1}},
        {"model": {"state_dict": state(), "args": args}},
    ):
        loaded = load_weights(save(tmp_path / "x.pt", content))
        assert loaded.spec.num_heads == 8 and loaded.spec.matryoshka == (8, 24)


def test_cycles_and_shared_dicts_end():
    from tessera_fast.weights.unpickle import Storage, TensorRecord

    content: dict = {str(i): i for i in range(100_000)}
    for key in ("model", "state_dict", "ema", "module", "args", "config", "hyper_parameters"):
        content[key] = content
    content["w"] = TensorRecord(Storage("torch.FloatStorage", "0"), 0, (), ())
    assert state_of(content) is content
    assert config_of(content) is content
