"""The oracle's ops against torch.nn, and the facts that the models rest on."""

import math

import numpy as np
import pytest

from tessera_fast.spec import released

torch = pytest.importorskip("torch")
ops = pytest.importorskip("tessera_fast.reference.ops")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def load_module(module, **parameters):
    """The module in float64, with seeded random parameters; and those by name."""
    module = module.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * random(generator, *parameter.shape))
    return module.eval(), dict(module.named_parameters())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layer_equals_torch(pre_norm, generator):
    module, w = load_module(
        torch.nn.TransformerEncoderLayer(24, 4, 40, 0.0, batch_first=True, norm_first=pre_norm)
    )
    x = random(generator, 5, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(ops.transformer_layer(x, w, 4, pre_norm), module(x))


def test_qk_norm_layer_equals_its_torch_parts(generator):
    d, heads = 24, 4
    w = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        w |= {f"{name}.weight": random(generator, d, d), f"{name}.bias": random(generator, d)}
    norms = {p: load_module(torch.nn.RMSNorm(d // heads))[0] for p in "qk"}
    w |= {f"{p}_norm.weight": norm.weight.detach() for p, norm in norms.items()}
    x = random(generator, 3, 7, d)

    def heads_of(p):
        projected = torch.nn.functional.linear(x, w[f"{p}_proj.weight"], w[f"{p}_proj.bias"])
        return projected.view(3, 7, heads, d // heads)

    with torch.no_grad():
        q, k = (norms[p](heads_of(p)).transpose(1, 2) for p in "qk")
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, heads_of("v").transpose(1, 2)
        )
        expected = torch.nn.functional.linear(
            attended.transpose(1, 2).reshape(3, 7, d), w["out_proj.weight"], w["out_proj.bias"]
        )
        in_float64 = ops.self_attention(x, w, heads, False, None)
        torch.testing.assert_close(in_float64, expected)
        in_float32 = ops.self_attention(x, w, heads, True, None)
    assert in_float32.dtype == torch.float64
    assert not torch.equal(in_float32, in_float64), "a pre-norm layer normalises q, k in float32"
    torch.testing.assert_close(in_float32.float(), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_equal_torch(dtype, generator):
    x = random(generator, 6, 20).to(dtype) * 1e-4  # small enough for eps to matter
    layer, rms = torch.nn.LayerNorm(20, dtype=dtype), torch.nn.RMSNorm(20, dtype=dtype)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias, rms.weight):
            parameter.copy_(random(generator, 20))
        torch.testing.assert_close(ops.layer_norm(x, layer.weight, layer.bias), layer(x))
        torch.testing.assert_close(ops.rms_norm(x, rms.weight), rms(x))
        plain = torch.nn.functional.layer_norm(x, (20,))
        torch.testing.assert_close(ops.layer_norm(x), plain)


def test_torch_gru_equals_torch(generator):
    module, w = load_module(torch.nn.GRU(12, 12, batch_first=True))
    x = random(generator, 4, 11, 12)
    with torch.no_grad():
        torch.testing.assert_close(ops.torch_gru(x, w), module(x)[0])


def test_custom_gru_is_torch_gru_with_the_update_gate_reversed(generator):
    """Without W_hh the place of the reset gate does not matter, and s(-a) = 1 - s(a)."""
    d = 10
    w = {f"W_{g}.weight": random(generator, d, d) for g in ("ir", "iz", "ih", "hr", "hz", "hh")}
    w |= {f"b_{g}": random(generator, d) for g in "rzh"}
    x = random(generator, 3, 8, d)
    no_hh = w | {"W_hh.weight": torch.zeros(d, d, dtype=torch.float64)}

    def as_torch(w):
        return {
            "weight_ih_l0": torch.cat([w["W_ir.weight"], -w["W_iz.weight"], w["W_ih.weight"]]),
            "weight_hh_l0": torch.cat([w["W_hr.weight"], -w["W_hz.weight"], w["W_hh.weight"]]),
            "bias_ih_l0": torch.cat([w["b_r"], -w["b_z"], w["b_h"]]),
            "bias_hh_l0": torch.zeros(3 * d, dtype=torch.float64),
        }

    torch.testing.assert_close(ops.custom_gru(x, no_hh), ops.torch_gru(x, as_torch(no_hh)))
    with pytest.raises(AssertionError):  # with W_hh the two recurrences are different
        torch.testing.assert_close(ops.custom_gru(x, w), ops.torch_gru(x, as_torch(w)))


def test_positional_table():
    table = ops.positional_table(6)
    assert table.dtype == torch.float32 and table.shape == (367, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    frequencies = [10000 ** (-i / 6) for i in (0, 2, 4)]
    expected = [f(200 * w) for w in frequencies for f in (math.sin, math.cos)]
    torch.testing.assert_close(table[200], torch.tensor(expected))


def test_standardize_is_numpy_float32_per_orbit():
    statistics = released("v2-nano").statistics
    mean, std = ops.statistics_rows(statistics, 2)
    bands = np.array([[5000, 3000], [5000, 3000]], np.float32)
    got = ops.standardize(torch.from_numpy(bands), torch.tensor([0, 1]), mean, std).numpy()
    rows = [np.array(r, np.float32) for r in (statistics.s1_mean, statistics.s1_std)]
    expected = (bands - rows[0]) / (rows[1] + 1e-9)
    assert got.dtype == np.float32 and np.array_equal(got, expected)
    assert (got[0] != got[1]).all()


def test_log_multiplicity_equals_padding(generator):
    """Attention and pooling over repeated tokens = over distinct ones with log(multiplicity)."""
    q, k, v = (random(generator, 1, 2, 5, 8) for _ in "qkv")
    repeats = torch.tensor([3, 1, 2, 1, 7])
    bias = repeats.double().log()[None]
    padded = ops.attention(q, *(y.repeat_interleave(repeats, dim=2) for y in (k, v)))
    torch.testing.assert_close(ops.attention(q, k, v, bias), padded)

    w = {"query.weight": random(generator, 1, 8), "query.bias": random(generator, 1)}
    x = random(generator, 1, 5, 8)
    long = x.repeat_interleave(repeats, dim=1)
    torch.testing.assert_close(ops.pool(x, x, w, bias), ops.pool(long, long, w))
    assert torch.equal(ops.pool(x[:, :1], x[:, :1], w), x[:, 0]), "one step pools to itself"


def test_quantize_rounds_half_to_even_and_has_floors():
    spec = released("v2-nano")
    codes, scales = ops.quantize(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0]]), spec)
    assert codes.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scales[0] == 1 and scales[1] == np.float32(1e-12) / np.float32(127)
    tiny = torch.tensor([[1e-9, -1e-9]])
    assert ops.quantize(tiny, spec)[0].tolist() == [[127, -127]]
    codes, scales = ops.quantize(tiny, released("v1.1-mpc"))
    assert codes.tolist() == [[0, 0]] and scales[0] == np.float32(1e-8)
    codes, scales = ops.quantize(torch.full((1, 3), math.nan), spec)
    assert codes.tolist() == [[0, 0, 0]] and math.isinf(scales[0])
