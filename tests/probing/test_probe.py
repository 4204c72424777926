"""The parts of a probe: RankMe, splits, raw features, metrics, heads."""

import sys

import numpy as np
import pytest

import tessera_fast as tf
from oracle import assert_op
from tessera_fast.errors import BackendUnavailable, InputError
from tessera_fast.probing import metrics, raw, splits
from tessera_fast.probing.heads import CLASSIFIERS, REGRESSORS, Head
from tessera_fast.probing.spectrum import rankme
from tessera_fast.synthetic import synthetic_tile

pytest.importorskip("sklearn", reason="a probe needs scikit-learn")
RNG = np.random.default_rng(3)


def definition(rows: np.ndarray) -> np.ndarray:
    """Entropy of the singular values over their sum by log(min(P, E)), all in float64."""
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    p = values / values.sum()
    p = p[p > 0]
    return np.array([-(p * np.log(p)).sum() / np.log(min(rows.shape))])


@pytest.mark.parametrize("shape", [(200, 16), (16, 200), (31, 31), (2, 5)])
def test_rankme_is_its_formula(shape):
    rows = (RNG.standard_normal(shape) * np.geomspace(1, 100, shape[1])).astype(np.float32)
    assert_op(np.array([rankme(rows)]), definition(rows), terms=1)


def test_rankme_of_known_spectra():
    turned = np.linalg.qr(RNG.standard_normal((64, 8)))[0]
    two = np.array([[1.0, 0], [0, 3]])
    line = np.outer(RNG.standard_normal(50), RNG.standard_normal(8))
    for rows, expected in (
        (turned, 1),
        (two, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)),
        (line, 0),
    ):
        assert_op(np.array([rankme(rows)]), np.array([float(expected)]), terms=1)


def test_rankme_is_that_of_training():
    torch = pytest.importorskip("torch")
    from tessera_fast.training.losses import rankme as of_a_batch

    rows = RNG.standard_normal((96, 24)).astype(np.float32)
    assert_op(np.array([rankme(rows)]), np.array([of_a_batch(torch.from_numpy(rows))]))


def test_rankme_leaves_pixels_without_data_out():
    image = RNG.standard_normal((6, 7, 5)).astype(np.float32)
    rows = image.reshape(-1, 5)[1:]
    image[0, 0] = np.nan
    assert tf.rankme(image) == rankme(rows)
    for bad in (np.zeros((9, 4)), np.full((9, 4), np.nan), np.ones((1, 4)), np.ones(4)):
        with pytest.raises(InputError, match="two pixels with data"):
            rankme(bad)


LABELS = np.array(
    [[1, 1, 2, 2, 1], [1, 0, 2, 1, 1], [3, 1, 0, 1, 0], [3, 3, 3, 0, 2]]
)  # fields of 1: two (of parts that touch at a corner), of 2: two, of 3: one


def test_fields_are_connected_pixels_of_one_label():
    found = splits.fields(LABELS, LABELS != 0)
    assert (found[LABELS == 0] == -1).all()
    assert sorted(np.unique(found[LABELS != 0])) == list(range(5))
    assert found[0, 0] == found[1, 0] and found[2, 0] == found[3, 2]
    assert found[0, 4] == found[1, 3] == found[2, 3] != found[2, 1]
    assert found[0, 2] == found[1, 2] != found[3, 4]
    assert found[2, 1] == found[1, 0] != found[0, 4]  # by a corner
    for corner in (np.eye(3, dtype=int), np.eye(3, dtype=int)[::-1]):
        assert splits.fields(corner, corner > 0).max() == 0


def test_groups_differ_between_tiles():
    both = [LABELS, LABELS]
    known = [LABELS != 0, LABELS != 0]
    for split in splits.SPLITS:
        a, b = splits.groups_of(split, both, known, 2)
        assert not set(a[a >= 0]) & set(b[b >= 0]), split
        assert ((a < 0) == (LABELS == 0)).all()
    a, _ = splits.groups_of("block", both, known, 2)
    assert a[0, 0] == a[1, 0] != a[0, 2] and a[0, 4] == a[1, 4] != a[2, 3]
    assert len(np.unique(splits.groups_of("random", both, known, 2)[0])) == 1 + (LABELS != 0).sum()


def test_halves_hold_whole_groups_of_every_class():
    groups = np.repeat(np.arange(12), 5)
    classes = np.repeat([1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3], 5)
    seen = set()
    for seed in range(30):
        learn = splits.halves(groups, classes, seed)
        assert not set(groups[learn]) & set(groups[~learn])
        for c, n in ((1, 5), (2, 2), (3, 5)):
            count = len(set(groups[learn & (classes == c)]))
            assert count in (n // 2, n - n // 2)
        seen.add(learn.tobytes())
    assert len(seen) > 20
    values = [splits.halves(groups, None, seed).mean() for seed in range(30)]
    assert set(values) == {0.5}
    assert [splits.halves(np.array([4, 4, 9]), None, s).sum() in (1, 2) for s in range(9)] == [
        True
    ] * 9


def test_more_labels_contain_the_fewer():
    classes = np.repeat([4, 7], 50)
    learn = np.arange(100) % 2 == 0
    first, again = (splits.draw(classes, learn, 5) for _ in range(2))
    for a, b, c in zip(first, again, (4, 7), strict=True):
        assert np.array_equal(a, b) and (classes[a] == c).all() and learn[a].all()
        assert len(set(a)) == 25
    assert not np.array_equal(first[0], splits.draw(classes, learn, 6)[0])
    (values,) = splits.draw(None, learn, 5)
    assert sorted(values) == list(range(0, 100, 2))


def test_percentiles_are_those_of_the_observed_dates():
    values = RNG.uniform(0, 9000, (11, 3, 4, 2)).astype(np.float32)
    known = RNG.uniform(size=(11, 3, 4)) < 0.6
    known[:, 0, 0] = False
    known[1:, 0, 1], known[0, 0, 1] = False, True
    found = raw.percentiles(values, known).reshape(3, 4, 5, 2)
    assert np.isnan(found[0, 0]).all() and (found[0, 1] == values[0, 0, 1]).all()
    wide = np.where(known[..., None], values.astype(np.float64), np.nan)
    wide[:, 0, 0] = 0
    expected = np.moveaxis(np.nanpercentile(wide, raw.PERCENTILES, axis=0), 0, 2)
    found[0, 0] = 0
    assert_op(found, expected)


def test_months_are_means_and_gaps_are_between():
    days = np.array([5, 20, 100, 340])  # two in January, April, December
    values = np.array([1.0, 3, 8, 16], np.float32)[:, None, None, None].repeat(3, axis=2)
    known = np.ones((4, 1, 3), bool)
    known[:, 0, 1] = False
    known[[0, 1, 3], 0, 2] = False
    january_to_april = [2, 4, 6, 8]
    april_to_december = [9, 10, 11, 12, 13, 14, 15, 16]
    found = raw.monthly(values, known, days)[0]
    assert found[0].tolist() == january_to_april + april_to_december
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [8] * 12


def test_raw_features_do_not_depend_on_the_band_of_rows():
    tile = synthetic_tile(8, 9, seed=1)
    for make, dims in ((raw.statistics, 75), (raw.months, 180)):
        image = make(tile)
        whole = image.read(0, 8)
        assert whole.shape == (8, 9, dims) and image.dims == dims
        parts = np.concatenate([image.read(0, 3), image.read(3, 8)])
        assert np.array_equal(whole, parts, equal_nan=True)
        assert np.isfinite(whole[1:]).all()
        assert np.isnan(whole[0, 2]).all()  # no observation at all
        assert np.isfinite(whole[0, 0]).any() and np.isnan(whole[0, 0]).any()  # Sentinel-1 alone


def test_metrics_are_those_of_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    classes = np.array([2, 5, 9, 11])  # 11 is never judged
    truth, found = RNG.choice(classes[:3], 500), RNG.choice(classes, 500)
    matrix = metrics.confusion(truth, found, classes)
    assert np.array_equal(matrix, sk.confusion_matrix(truth, found, labels=classes))
    got = metrics.of_confusion(matrix)
    expected = [
        sk.recall_score(truth, found, labels=classes[:3], average="macro"),
        sk.accuracy_score(truth, found),
        sk.f1_score(truth, found, labels=classes[:3], average="macro"),
    ]
    assert_op(np.array([got[m] for m in metrics.CLASSIFICATION]), np.array(expected))
    truth = RNG.uniform(0, 30, 400)
    found = truth + RNG.standard_normal(400)
    got = metrics.of_values(truth, found)
    expected = [
        sk.r2_score(truth, found),
        sk.mean_squared_error(truth, found) ** 0.5,
        sk.mean_absolute_error(truth, found),
    ]
    assert_op(np.array([got[m] for m in metrics.REGRESSION]), np.array(expected))


def problem(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two halves (features, labels) in which two of five features tell the label; one does not
    vary, one is missing everywhere, and one is missing here and there."""
    x = RNG.standard_normal((400, 5)) * [1, 1000, 1, 1, 1]
    y = x[:, 0] + x[:, 1] / 1000
    x[:, 2], x[:, 3] = 7, np.nan
    x[RNG.uniform(size=400) < 0.2, 4] = np.nan
    labels = 900 + 300 * y if task == "regression" else np.where(y > 0, 21, 4)
    x = x.astype(np.float32)
    return x[:200], labels[:200], x[200:], labels[200:]


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_heads_learn_classes(head):
    x, y, other, truth = problem("classification")
    found = Head(head, "classification", 0).fit(x, y).predict(other)
    assert (found == truth).mean() > 0.85
    again = Head(head, "classification", 0).fit(x, y).predict(other)
    assert np.array_equal(found, again)


@pytest.mark.parametrize("head", REGRESSORS)
def test_heads_learn_values(head):
    x, y, other, truth = problem("regression")
    found = Head(head, "regression", 0).fit(x, y).predict(other)
    assert metrics.of_values(truth, found)["r2"] > 0.75


def test_a_head_of_one_label_says_it():
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    assert Head("knn", "classification", 0).fit(x, np.full(3, 8)).predict(x).tolist() == [8] * 3
    one = Head("ridge", "regression", 0).fit(x[:1], np.array([2.5]))
    assert one.predict(x).tolist() == [2.5] * 3


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tessera_fast\[probe\]'"):
        tf.probe(np.zeros((4, 4, 3), np.float32), np.ones((4, 4), int))
