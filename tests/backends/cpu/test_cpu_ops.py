"""Single ops of every instruction set against naive float64 numpy.

Outputs are views of larger arrays filled with one NaN: what an op leaves out shows, and so does
what it writes beyond.
"""

import itertools

import numpy as np
import pytest

from cpu_arrays import (
    DATES,
    POISON,
    SIZES,
    Fenced,
    attention,
    attention_input,
    normal,
    placed,
    softmax,
    wide,
)
from isas import BEST, every_isa
from oracle import assert_op
from tessera_fast import _cpu
from tessera_fast.errors import BackendUnavailable, InputError

ops = _cpu.ops


@pytest.mark.parametrize("isa", [name for name, *_ in _cpu.isas()])
def test_instruction_set_runs_here(isa):
    """A skip says which of this library's instruction sets these tests say nothing of."""
    needs = {name: needs for name, runs, needs, _ in _cpu.isas() if not runs}
    if isa in needs:
        pytest.skip(f"instruction set {isa}: this machine lacks {needs[isa]}")
    assert _cpu.select_isa(isa) == isa


# ---- linear


def check_linear(isa, rng, M, K, N, bias=True, residual=None, relu=False):
    """``residual``: None, "apart" or "y", the output itself."""
    x, weight, b, r = normal(rng, M, K), normal(rng, N, K), normal(rng, N), normal(rng, M, N)
    out = Fenced(M, N, r if residual == "y" else None)
    add = {None: None, "apart": placed(r), "y": out.view}[residual]
    ops.linear(isa, placed(x), weight, b if bias else None, add, relu, out.view)

    x, weight, b, r = wide(x, weight, b, r)
    expected, terms = x @ weight.T, np.abs(x) @ np.abs(weight.T)
    if bias:
        expected, terms = expected + b, terms + np.abs(b)
    if residual:
        expected, terms = expected + r, terms + np.abs(r)
    assert_op(out.result(), np.maximum(expected, 0) if relu else expected, terms.max())


@every_isa
def test_linear_shapes(isa):
    rng = np.random.default_rng(0)
    rows = itertools.cycle(SIZES)
    for K, N in itertools.product(SIZES, SIZES):
        for _ in range(3):
            check_linear(isa, rng, next(rows), K, N)


@every_isa
@pytest.mark.parametrize("N", [1, 7, 16, 33, 144])
def test_linear_options(isa, N):
    rng = np.random.default_rng(1)
    for M, bias, residual, relu in itertools.product(
        (1, 2, 5, 6, 12, 13, 25), (True, False), (None, "apart", "y"), (True, False)
    ):
        check_linear(isa, rng, M, 36, N, bias, residual, relu)


@every_isa
def test_linear_rows_do_not_depend_on_their_neighbours(isa):
    rng = np.random.default_rng(2)
    x, weight, bias = normal(rng, 29, 110), normal(rng, 45, 110), normal(rng, 45)
    together = np.empty((29, 45), np.float32)
    ops.linear(isa, x, weight, bias, None, False, together)
    for first in range(29):
        for last in (first + 1, 29):
            part = np.empty((last - first, 45), np.float32)
            ops.linear(isa, x[first:last], weight, bias, None, False, part)
            assert np.array_equal(part, together[first:last])


@every_isa
def test_linear_keeps_denormals_and_large_values(isa):
    for size in (1e-41, 1e-30, 1e30):
        x = np.full((3, 5), size, np.float32)
        weight = np.array([[1, 1, 1, 1, 1], [1, -1, 1, -1, 1]], np.float32)
        out = Fenced(3, 2)
        ops.linear(isa, x, weight, None, None, False, out.view)
        assert_op(out.result(), x.astype(np.float64) @ weight.T)


@every_isa
def test_linear_refuses_shapes_that_disagree(isa):
    x, weight, y = np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((2, 4))
    x, weight, y = (a.astype(np.float32) for a in (x, weight, y))
    for bad in [(x[:, :2], weight, y), (x, weight, y[:1]), (x.astype(float), weight, y)]:
        with pytest.raises(InputError):
            ops.linear(isa, bad[0], bad[1], None, None, False, bad[2])


# ---- norms


@every_isa
@pytest.mark.parametrize("D", SIZES)
def test_layer_norm(isa, D):
    rng = np.random.default_rng(D)
    for M, affine, relu in itertools.product((1, 2, 7), (True, False), (True, False)):
        x = 3 * normal(rng, M, D) + 1
        x[-1] *= np.float32(1e-3)  # a row small enough for eps to matter
        weight, bias = (normal(rng, D), normal(rng, D)) if affine else (None, None)
        out = Fenced(M, D)
        ops.layer_norm(isa, placed(x), weight, bias, 1e-5, relu, out.view)
        expected = layer_norm(x, weight, bias)
        assert_op(out.result(), np.maximum(expected, 0) if relu else expected, terms_of(expected))


def layer_norm(x, weight=None, bias=None):
    (x,) = wide(x)
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-5))
    return y if weight is None else y * weight + bias


def terms_of(expected):
    """A norm's output is of order 1 before its bias: where D = 1 all of it may cancel."""
    return max(1.0, float(np.abs(expected).max()))


@every_isa
def test_layer_norm_in_place_and_of_extreme_rows(isa):
    rng = np.random.default_rng(3)
    x = normal(rng, 5, 37)
    x *= np.array([[0], [1e-40], [1e-20], [1], [1e17]], np.float32)
    expected = layer_norm(x)
    out = Fenced(5, 37, x)
    ops.layer_norm(isa, out.view, None, None, 1e-5, False, out.view)
    assert_op(out.result(), expected)
    assert not out.view[0].any()


@every_isa
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (3, 5), (4, 12), (4, 36), (2, 110)])
def test_rms_norm(isa, heads, head_dim):
    rng = np.random.default_rng(4)
    x, weight = normal(rng, 6, heads * head_dim), normal(rng, head_dim)
    x *= np.array([[0], [1e-30], [1e-4], [1], [3], [1e15]], np.float32)
    eps = np.finfo(np.float32).eps
    by_head = x.astype(np.float64).reshape(6, heads, head_dim)
    mean = (by_head**2).mean(-1, keepdims=True)
    expected = (by_head / np.sqrt(mean + eps) * weight).reshape(x.shape)
    out = Fenced(*x.shape, x)
    ops.rms_norm(isa, out.view, heads, weight, eps)
    assert_op(out.result(), expected)


# ---- attention and pooling


def check_attention(isa, qkv, heads, multiplicity):
    T, D = len(qkv), qkv.shape[1] // 3
    log = np.log(multiplicity.astype(np.float32))
    out = Fenced(T, D)
    ops.attention(isa, placed(qkv), heads, log, out.view)
    values = np.abs(qkv[:, 2 * D :]).max()
    assert_op(out.result(), attention(qkv, heads, multiplicity), float(values))


@every_isa
@pytest.mark.parametrize("T", DATES)
@pytest.mark.parametrize(
    ("heads", "head_dim"), [(1, 1), (3, 20), (4, 36), (2, 64), (2, 110), (1, 160), (8, 14)]
)
def test_attention(isa, T, heads, head_dim):
    qkv, multiplicities = attention_input(T, heads, head_dim)
    for multiplicity in multiplicities:
        check_attention(isa, qkv, heads, multiplicity)


@every_isa
@pytest.mark.parametrize("T", [2, 9, 63, 256])
def test_attention_of_very_peaked_logits(isa, T):
    """Integers, so that logits of +-1e4 are exact in float32 and only the softmax is judged."""
    rng = np.random.default_rng(5)
    qkv = normal(rng, T, 3 * 64)
    qkv[:, :128] = rng.integers(-40, 41, (T, 128))
    qkv[:, :64] *= 4
    qkv[0, :64], qkv[0, 64:128] = 40, 40  # one logit of 1e5
    qkv[1, 64:128] = -40  # and one of -1e5
    logits = qkv[:, :64].astype(np.float64) @ qkv[:, 64:128].T
    assert logits.max() > 6e4 and logits.min() < -6e4
    check_attention(isa, qkv, 1, rng.integers(1, 4, T))


@every_isa
@pytest.mark.parametrize("logit", [-1e4, -88.0, 0.0, 88.0, 1e4])
def test_attention_to_equal_keys_is_the_mean(isa, logit):
    rng = np.random.default_rng(6)
    qkv = normal(rng, 21, 9)
    qkv[:, 0:3] = [logit, 0, 0]
    qkv[:, 3:6] = [1, 0, 0]
    # without multiplicities: log(2) next to a logit of 1e4 has three digits in float32
    check_attention(isa, qkv, 1, np.ones(21, int))


def check_pool(isa, x, query, query_bias, multiplicity):
    log = np.log(multiplicity.astype(np.float32))
    fence = np.full(x.shape[1] + 40, POISON, np.uint32)
    y = fence.view(np.float32)[20:-20]
    ops.pool(isa, placed(x), query, query_bias, log, y)
    assert (fence[:20] == POISON).all() and (fence[-20:] == POISON).all()
    long = np.repeat(x.astype(np.float64), multiplicity, axis=0)
    weights = softmax(long @ query.astype(np.float64) + query_bias)
    assert_op(y, weights @ long, float(np.abs(x).max()))


@every_isa
@pytest.mark.parametrize("D", [1, 2, 7, 36, 110, 144])
def test_pool(isa, D):
    rng = np.random.default_rng(D)
    for T in DATES:
        x, query = normal(rng, T, D), 2 * normal(rng, D) / np.float32(np.sqrt(D))
        check_pool(isa, x, query, 0.7, np.ones(T, int))
        check_pool(isa, x, query, -3.0, rng.integers(1, 9, T))


@every_isa
def test_pool_of_very_peaked_scores(isa):
    rng = np.random.default_rng(7)
    x, query = normal(rng, 70, 6), np.zeros(6, np.float32)
    x[:, 0], query[0] = rng.integers(-100, 101, 70), 100
    x[3, 0] = -30_000
    check_pool(isa, x, query, 5.0, rng.integers(1, 9, 70))


@every_isa
def test_exp_keeps_its_relative_precision(isa):
    """The weight of a token whose score is a below the other's: e^a / (1 + e^a), for each a."""
    query, log, got = np.ones(1, np.float32), np.zeros(2, np.float32), np.empty(2, np.float32)
    arguments = -np.concatenate([np.geomspace(1e-8, 87.2, 500), [0.0, 87.25]]).astype(np.float32)
    for a in arguments:
        # columns: the score, and 1 for the token that is weighed
        x = np.array([[0, 0], [a, 1]], np.float32)
        ops.pool(isa, x, np.append(query, np.float32(0)), 0.0, log, got)
        assert_op(got[1:], 1 / (1 + np.exp(-a.astype(np.float64)))[None])
    for a in (-87.4, -1e3, -3e38):  # beyond: below the smallest normal number
        x = np.array([[0, 0], [a, 1]], np.float32)
        ops.pool(isa, x, np.append(query, np.float32(0)), 0.0, log, got)
        assert 0 <= got[1] <= np.finfo(np.float32).tiny


# ---- the gates of a recurrent step


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


GATE_SIZES = list(itertools.product((1, 2, 7), (1, 2, 3, 13, 36, 110)))


def gate_inputs(M, D, recurrent):
    """x [M, 3 D], recurrent, h, r_h, z [M, D]; the widest inputs saturate every gate."""
    rng = np.random.default_rng(M * D)
    x, w = 3 * normal(rng, M, 3 * D), 3 * normal(rng, M, recurrent * D)
    extreme = np.float32([-1e30, -1e4, -90, -1e-40, 0, 90, 1e4, 1e30])
    x[:, ::5] = rng.choice(extreme, x[:, ::5].shape)
    return x, w, np.tanh(normal(rng, M, D)), normal(rng, M, D), sigmoid(normal(rng, M, D))


@every_isa
@pytest.mark.parametrize(("M", "D"), GATE_SIZES)
def test_custom_gru_gates(isa, M, D):
    x, w, h, _, _ = gate_inputs(M, D, 2)
    state, r_h, z = Fenced(M, D, h), Fenced(M, D), Fenced(M, D)
    ops.gru_step(isa, "custom_gates", placed(x), placed(w), state.view, r_h.view, z.view)
    a, b, h = wide(x[:, : 2 * D], w, h)
    assert_op(r_h.result(), sigmoid((a + b)[:, :D]) * h, 1.0)
    assert_op(z.result(), sigmoid((a + b)[:, D:]), 1.0)
    assert np.array_equal(state.result(), h)


@every_isa
@pytest.mark.parametrize(("M", "D"), GATE_SIZES)
def test_custom_gru_state(isa, M, D):
    x, w, h, r_h, z = gate_inputs(M, D, 1)
    z = z.astype(np.float32)
    state, reset, update = Fenced(M, D, h), Fenced(M, D, r_h), Fenced(M, D, z)
    ops.gru_step(isa, "custom_state", placed(x), placed(w), state.view, reset.view, update.view)
    a, b, h, z = wide(x[:, 2 * D :], w, h, z)
    assert_op(state.result(), (1 - z) * h + z * np.tanh(a + b), 1.0)
    assert np.array_equal(reset.result(), r_h) and np.array_equal(update.result(), z)


@every_isa
@pytest.mark.parametrize(("M", "D"), GATE_SIZES)
def test_torch_gru_state(isa, M, D):
    x, w, h, _, _ = gate_inputs(M, D, 3)
    state, r_h, z = Fenced(M, D, h), Fenced(M, D), Fenced(M, D)
    ops.gru_step(isa, "torch_state", placed(x), placed(w), state.view, r_h.view, z.view)
    a, b, h = wide(x, w, h)
    r, update = (sigmoid((a + b)[:, i * D : (i + 1) * D]) for i in (0, 1))
    candidate = np.tanh(a[:, 2 * D :] + r * b[:, 2 * D :])
    assert_op(state.result(), (1 - update) * candidate + update * h, 1.0)


@every_isa
def test_gru_step_refuses_an_unknown_stage(isa):
    arrays = gate_inputs(1, 4, 3)
    with pytest.raises(InputError, match="stage"):
        ops.gru_step(isa, "gates", *(np.asarray(a, np.float32) for a in arrays))


def test_select_isa():
    names = [name for name, runs, *_ in _cpu.isas() if runs]
    assert [_cpu.select_isa(name) for name in names] == names
    assert _cpu.select_isa("") == BEST
    for name, runs, *_ in _cpu.isas():
        if not runs:
            with pytest.raises(BackendUnavailable, match=f"{name}: this machine lacks"):
                _cpu.select_isa(name)
    with pytest.raises(BackendUnavailable, match=r"expected one of .*portable, got 'neon9'"):
        _cpu.select_isa("neon9")
