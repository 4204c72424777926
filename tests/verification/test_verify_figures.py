"""What `tf.verify` computes of pixels, and the gates that it holds them against."""

from fractions import Fraction

import numpy as np
import pytest

import oracle
from tessera_fast.errors import InputError
from tessera_fast.verification.figures import Figures, Histogram, Pixels, measure
from tessera_fast.verification.gates import ENOUGH_CODES, GATES, choose
from tessera_fast.verification.judge import judge, passes
from tessera_fast.verification.tally import TileTally


def pixels(codes, scales=None, values=None):
    codes = np.array(codes, np.int8)
    scales = np.ones(len(codes)) if scales is None else scales
    return Pixels(codes, np.array(scales, np.float32), values)


def test_the_gates_are_those_of_the_tests():
    fp32, bf16, int8, fp8 = (GATES[n] for n in ("fp32", "bf16", "int8", "fp8"))
    assert fp32.max_abs == oracle.GOLDEN_ATOL
    assert (fp32.same_codes, fp32.max_step) == (oracle.SAME_CODES, oracle.MAX_CODE_STEP)
    assert (fp32.max_scale, fp32.min_cosine) == (oracle.MAX_SCALE_RATIO, oracle.MIN_COSINE)
    assert (bf16.close_codes, bf16.max_step) == (oracle.BF16_CLOSE_CODES, oracle.BF16_MAX_CODE_STEP)
    assert bf16.max_scale == oracle.BF16_MAX_SCALE_RATIO
    assert (bf16.mean_cosine, bf16.min_cosine) == (oracle.BF16_MIN_COSINE, oracle.BF16_WORST_COSINE)
    assert (int8.mean_cosine, fp8.mean_cosine) == (oracle.REDUCED_MIN_COSINE, oracle.FP8_MIN_COSINE)
    assert ENOUGH_CODES == oracle.ENOUGH_CODES


@pytest.mark.parametrize(
    ("a", "b", "gate"),
    [
        ("fp32", "fp32", "fp32"),
        ("fp64", "fp32", "fp32"),
        ("fp32", "bf16", "bf16"),
        ("tf32", "fp16", "bf16"),
        ("int8", "bf16", "int8"),
        ("fp8", "int8", "fp8"),
        (None, "bf16", "bf16"),
        (None, None, "fp32"),
    ],
)
def test_the_laxer_gate_is_chosen(a, b, gate):
    assert choose("auto", (a, b))[0] is choose("auto", (b, a))[0] is GATES[gate]
    assert choose("exact", (a, b))[0] is GATES["exact"]


def test_an_unknown_precision_needs_a_gate_by_name():
    with pytest.raises(InputError, match="'int4' of an output has no gate"):
        choose("auto", ("int4", "fp32"))
    assert choose("int8", ("int4", "fp32"))[0].name == "int8"


def test_distances_of_known_vectors():
    a = pixels([[3, 4], [1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [5, 0]])
    b = pixels([[6, 8], [0, 1], [-1, 0], [1, 0], [0, 0], [0, 2], [0, 0]])
    found = measure(a, b)
    assert found.distance.tolist() == [0, 1, 2, 0, 0, 1, 1]
    assert found.deviation.tolist() == [4, 1, 2, 0, 0, 2, 5]
    assert found.step.tolist() == [4, 1, 2, 0, 0, 2, 5]
    assert found.norm.tolist() == [1, 0, 0, 0, 0, np.inf, -1]
    assert found.changed.tolist() == [True, True, True, False, False, True, True]
    assert found.codes_within == (14, 7, 9)


def test_scales_and_single_bits():
    a, b = pixels([[3, 4]] * 3, [2, 2, 2]), pixels([[3, 4]] * 3, [2, 3, np.nextafter(2, 3)])
    found = measure(a, b)
    assert found.scale.tolist()[:2] == [0, 0.5]
    assert found.changed.tolist() == [False, True, False]  # in float64 alone the third differs
    values = np.array([[1, 0.0], [1, 0.0]], np.float32)
    other = values.copy()
    other[1, 1] = -0.0
    codes = [[127, 0], [127, 0]]
    found = measure(pixels(codes, values=values), pixels(codes, values=other))
    assert found.changed.tolist() == [False, True] and not found.deviation.any()


def test_cosines_are_the_oracle_s():
    rng = np.random.default_rng(0)
    a, b = (pixels(rng.integers(-127, 128, (50, 24))) for _ in range(2))
    expected = oracle.cosines(a.codes, b.codes)
    oracle.assert_op(1 - measure(a, b).distance, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_histogram_quantiles(sign):
    rng = np.random.default_rng(0)
    values = sign * 10.0 ** rng.uniform(-12, 0, 9999)
    whole, parts = Histogram(), Histogram()
    whole.add(values)
    for part in np.array_split(values, 7):
        other = Histogram()
        other.add(part)
        parts.merge(other)
    width = 10 ** (1 / 50)
    for share in (0.001, 0.5, 0.99, 1):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert parts.quantile(share) == whole.quantile(share)
        assert 1 / width < whole.quantile(share) / exact < width
    zeros = Histogram()
    zeros.add(np.array([0.0, 0.0, 1e-20, -1e-20, 5.0]))
    assert zeros.quantile(0.5) == 0
    assert np.isnan(Histogram().quantile(0.5))


def figures(a, b, gate, number=0):
    found = measure(a, b)
    out = Figures()
    at = np.stack([np.full(len(found.step), number), *np.indices((len(found.step), 1))[:, :, 0]], 1)
    out.add(found, found.beyond(GATES[gate], False), at)
    return out


def test_figures_add_up():
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (60, 8))
    other = np.clip(codes + (rng.random((60, 8)) < 0.1), -127, 127)
    other[41] = -codes[41]
    a, b = pixels(codes), pixels(other)
    whole = figures(a, b, "fp32")
    parts = Figures()
    for n in range(0, 60, 20):
        part = slice(n, n + 20)
        one = figures(a.picked(part), b.picked(part), "fp32", number=n)
        parts.merge(one)
    assert parts.distance.at == (40, 1, 0) and whole.distance.at == (0, 41, 0)
    for name in ("compared", "identical", "off", "codes", "same_codes", "close_codes"):
        assert getattr(parts, name) == getattr(whole, name)
    assert whole.identical == (codes == other).all(1).sum()
    assert whole.same_codes == (codes == other).sum()
    assert whole.min_cosine == parts.min_cosine == -1
    assert whole.to_json()["worst_code_step"] == np.abs(codes - other).max()


def test_nothing_compared_is_not_equal():
    for gate in GATES.values():
        assert not passes(judge(Figures(), gate, False))


def test_few_codes_say_nothing_of_a_share():
    a, b = pixels([[100, 50, 25, 12]] * 40), pixels([[100, 50, 25, 14]] * 40)
    found = figures(a, b, "bf16")
    assert passes([x for x in judge(found, GATES["bf16"], False) if x.what == "codes within 1"])
    assert found.close_codes == Fraction(3, 4) * found.codes


def test_a_tally_knows_edges_and_overlaps():
    tally = TileTally((("a", 0, 10, 0, 10), ("b", 0, 10, 6, 20), ("c", 50, 60, 0, 10)))
    everything = np.ones((10, 20), bool)
    off = np.zeros((10, 20), bool)
    off[5, 7] = off[0, 0] = True
    for left in range(0, 20, 7):
        part = np.s_[:, left : left + 7]
        tally.add(0, left, everything[part], off[part])
    assert tally.compared.tolist() == [100, 140, 0]
    assert tally.off.tolist() == [2, 1, 0]
    assert tally.shared.tolist() == [40, 1]
    # rows 0, 1, 8 and 9; in the others columns 0, 1, 8 and 9 by a, 6, 7, 18 and 19 by b
    assert tally.edge.tolist() == [4 * 20 + 6 * 8, 2]
