"""Letters, colours and legends of pictures."""

import itertools

import numpy as np
import pytest

from tessera_fast.drawing import letters
from tessera_fast.drawing.legend import legend
from tessera_fast.drawing.palette import COLOURS, colour

ASCII = [chr(k) for k in range(33, 127)]
MORE = ["\u00d7", "\u00b0", "\u2013", "\u00b7", "\u00b2", "\u00b1"]  # times degree dash dot 2 +-
SIZES = (8, 10, 11, 14, 23)


def padded(line, size, columns):
    cover = letters.drawn(line, size)
    return np.pad(cover, ((0, 0), (0, columns - cover.shape[1])))


@pytest.mark.parametrize("size", SIZES)
def test_every_letter_is_its_own(size):
    """No two look alike, and none is the box of a letter that is not known."""
    known = [*ASCII, *MORE, "\u5317"]
    columns = max(letters.width(c, size) for c in known)
    images = [padded(c, size, columns) for c in known]
    for image in images:
        assert image.min() >= 0 and 0.5 < image.max() <= 1
    for (i, a), (k, b) in itertools.combinations(enumerate(images), 2):
        assert np.abs(a - b).sum() > 0.7, known[i] + known[k]


@pytest.mark.parametrize("size", SIZES)
def test_heights_are_those_of_the_size(size):
    """A capital is ``size`` high between the middles of its strokes; its edges are sharp."""
    rows = np.flatnonzero(letters.drawn("H", size).max(axis=1) > 0.5)
    assert abs(int(np.ptp(rows)) - size) <= max(1, round(0.13 * size))
    line = letters.drawn("E", size)
    assert line.max(axis=1).max() > 0.95 and line.max(axis=0).max() > 0.95
    for letter in "gjpqy":
        assert (letters.drawn(letter, size).max(axis=1) > 0.3).sum() > 0.9 * size
    assert letters.drawn("x", size).sum() < letters.drawn("X", size).sum()


def test_letters_are_smooth():
    """Edges of slanted strokes have values between paper and ink."""
    cover = letters.drawn("/", 10)
    assert ((cover > 0.1) & (cover < 0.9)).sum() > 0.4 * (cover > 0.1).sum()


def test_accents_and_other_dashes_are_read():
    same = {"\u00fc": "u", "\u00e9": "e", "\u00c5": "A", "\u2212": "\u2013", "\u2019": "'"}
    for given, drawn in same.items():
        np.testing.assert_array_equal(letters.drawn(given, 11), letters.drawn(drawn, 11))
    box = letters.drawn("\u5317", 11)
    assert box.sum() > 0


def test_a_line_is_as_wide_as_it_says():
    for size in SIZES:
        for line in ("", "i", "Winter wheat, 62 %", "WWW"):
            assert letters.drawn(line, size).shape == (
                letters.height(size),
                letters.width(line, size),
            )
    assert letters.width("iii", 10) < letters.width("mmm", 10)


@pytest.mark.parametrize("columns", [1, 20, 90, 400])
def test_lines_are_wrapped_at_words(columns):
    text = "utm31/2024 | 160 x 160 px, a_word_that_is_longer_than_a_line_of_any_sensible_width"
    lines = letters.wrapped(text, 10, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(letters.width(line, 10) <= columns or len(line) == 1 for line in lines)
    assert letters.wrapped("", 10, columns) == []


@pytest.mark.parametrize(("x", "y"), [(2, 3), (-4, -5), (36, 16), (200, 3), (3, 200), (-300, 0)])
def test_what_does_not_fit_is_cut_off(x, y):
    """Where it lies does not change what it looks like."""
    large = np.full((700, 900, 3), 255, np.uint8)
    letters.write(large, 400 + x, 300 + y, "Ag", 14, (0, 0, 0))
    small = np.full((20, 40, 3), 255, np.uint8)
    letters.write(small, x, y, "Ag", 14, (0, 0, 0))
    np.testing.assert_array_equal(small, large[300:320, 400:440])
    assert (large < 128).any()


# ---- colours

# Linear RGB as seen without red, green or blue cones (Machado, Oliveira and Fernandes, 2009).
SEEN = (
    np.eye(3),
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
)
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]


def lab(colours, seen):
    """CIE Lab of (n, 3) sRGB."""
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(seen).T, 0, 1)
    xyz = linear @ np.array(TO_XYZ).T / (0.95047, 1, 1.08883)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("seen", range(4), ids=["all cones", "no red", "no green", "no blue"])
def test_classes_are_told_apart_by_every_reader(seen):
    """A difference of 2 is just seen, one of 10 at a glance."""
    others = [(205, 205, 202), (250, 250, 248)]  # labels that are not judged, paper
    places = lab([*COLOURS, *others], SEEN[seen])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + 100 * np.eye(len(places))
    assert apart.min() > 15
    assert apart[:5, :5].min() > 22


def test_there_is_a_colour_for_every_class():
    found = [colour(k) for k in range(60)]
    assert found[:12] == list(COLOURS) and len(set(found[:24])) == 24


# ---- legends


def test_a_legend_has_every_colour():
    entries = [(f"class {k}", colour(k)) for k in range(11)]
    for width in (120, 300, 2000):
        image = legend(entries, width)
        assert image.shape[1:] == (width, 3)
        for _, ink in entries:
            assert (image == ink).all(-1).sum() >= 16 * 24
    assert legend(entries, 2000).shape[0] < legend(entries, 300).shape[0]
    assert legend(entries[:1], 30).shape[1] == 30  # narrower than the name
