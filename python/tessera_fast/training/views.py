"""Random date-draws of pixels, by the C++ packer, shuffled across tiles. numpy only.

A view of a pixel is DATES dates of each stream, or fewer of these, drawn from those that were
observed and in the order that the models read. Tiles are read as bands of rows, a pool of bands
that fits in memory after the other, and the pixels of a pool are shuffled. A batch depends on the
tiles, the settings and its number alone, so training can go on anywhere. T dates of a tile, P
pixels, C bands.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..packing import Observations, PackedTokens, pack
from ..spec import ModelSpec, Row, released
from ..tile import Tile

DATES = 40  # a view's, of each stream: what the packer draws
# Their sampling is read, and nothing else: a view, and whatever was observed.
_RULE, _EVERY_DATE = released("v1.0"), released("v2-nano")
_BANDS = 32  # of a pool: few enough to be packed quickly, enough to mix tiles
SHUFFLE, DRAW, MIX, KEEP = 0, 1, 2, 3  # what a random number is for


@dataclass(frozen=True)
class View:
    """One draw of P pixels, float32: standardised bands (P, dates, C) and days (P, dates)."""

    s2: np.ndarray
    s2_days: np.ndarray
    s1: np.ndarray
    s1_days: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Views of the same pixels; ``parts`` holds those pixels, in order, with all their dates."""

    views: tuple[View, ...]
    parts: tuple[Observations, ...]


@dataclass(frozen=True)
class _Band:
    """Rows of a tile in memory as a window of P x 1, and which of its pixels may be drawn."""

    name: str  # for messages
    observations: Observations
    usable: np.ndarray  # int64

    def pick(self, at: np.ndarray) -> Observations:
        """The pixels ``at`` (P,), all their dates."""
        seen = self.observations
        assert seen.s2_masks is not None
        return replace(
            seen,
            s2_bands=seen.s2_bands.take(at, axis=1),
            s2_masks=seen.s2_masks.take(at, axis=1),
            orbits=tuple(replace(o, bands=o.bands.take(at, axis=1)) for o in seen.orbits),
        )


class Views:
    """The endless list of batches of a set of tiles, of ``batch`` pixels each.

    ``draws`` views of a pixel, of ``dates`` dates of each stream: one number of at most DATES, or
    the least and the most, between which every batch has a number. Pixels with fewer than
    ``min_dates`` observed dates in Sentinel-2, or in Sentinel-1, are left out. ``pool_bytes`` of
    raw observations are in memory at once. Raises InputError for no tiles and for a tile without
    Sentinel-1.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        spec: ModelSpec,
        batch: int,
        *,
        draws: int = 2,
        dates: Sequence[int] = (DATES,),
        seed: int = 0,
        min_dates: int = 20,
        pool_bytes: int = 1 << 30,
        threads: int | None = None,
    ) -> None:
        if not tiles:
            raise InputError("tiles: expected at least one to train on, got none")
        for tile in tiles:
            if not any(tile.dates[1:]):
                raise InputError(
                    f"{tile.name}: expected Sentinel-1 dates to draw from, got none; leave it out"
                )
        self._tiles, self._statistics, self._batch = tuple(tiles), spec.statistics, batch
        self._seed, self._min_dates, self._threads = seed, min_dates, threads
        self._dates = min(dates), max(dates)
        self.draw_seeds = [int(random(seed, DRAW, v).integers(2**63)) for v in range(draws)]
        self._places = _cut(tiles, max(1, pool_bytes // _BANDS))
        total = sum(t.height * t.bytes_per_row for t in tiles)
        self.pools = min(len(self._places), -(-total // pool_bytes))
        self._held: dict[int, _Band] = {}
        self._usable: dict[int, int] = {}  # usable pixels of the bands that were read

    @property
    def sources(self) -> dict[str, Any]:
        """Of what batches depend on beyond the settings: the tiles, their order and sizes."""
        tiles = [(t.name, t.height, t.width, *t.dates) for t in self._tiles]
        return {"number": len(tiles), "sha256": hashlib.sha256(repr(tiles).encode()).hexdigest()}

    def described(self) -> str:
        """How much there is to learn from, as text."""
        tiles = len(self._tiles)
        pixels = sum(t.height * t.width for t in self._tiles)
        return f"{tiles:,} tile{'s' * (tiles != 1)} of {pixels:,} pixels in all"

    def batches(self, first: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Batches ``first``, ``first + stride``, ...

        Raises InputError where no pool holds a batch, and what reading and packing raise.
        """
        number, wanted, epoch = 0, first, 0
        while True:
            start = number
            bands = random(self._seed, SHUFFLE, epoch).permutation(len(self._places))
            for pool, members in enumerate(np.array_split(bands, self.pools)):
                pool_of = sorted(int(i) for i in members)
                count = self._count(pool_of)
                end = number + count // self._batch
                if wanted < end:
                    held = self._hold(pool_of)
                    order = random(self._seed, SHUFFLE, epoch, pool).permutation(count)
                    while wanted < end:
                        at = (wanted - number) * self._batch
                        yield self._make(held, np.sort(order[at : at + self._batch]), wanted)
                        wanted += stride
                    held = []  # or they would be in memory beside the next pool
                number = end
            if number == start:
                raise InputError(
                    f"tiles: expected at least {self._batch} pixels, a batch, with "
                    f"{self._min_dates} observed dates of each sensor in memory at once, got "
                    f"{sum(self._usable.values())} in {self.pools} parts; use a smaller batch, "
                    "min_dates, more tiles or a larger pool"
                )
            epoch += 1

    def _count(self, indices: list[int]) -> int:
        """Usable pixels of these bands, which are read if one of them has not been."""
        if any(i not in self._usable for i in indices):
            self._usable |= dict(
                zip(indices, (len(b.usable) for b in self._hold(indices)), strict=True)
            )
        return sum(self._usable[i] for i in indices)

    def _hold(self, indices: list[int]) -> list[_Band]:
        """These bands in memory, and no others."""
        self._held = {i: band for i, band in self._held.items() if i in indices}
        for i in indices:
            if i not in self._held:
                self._held[i] = self._read(i)
        return [self._held[i] for i in indices]

    def _read(self, index: int) -> _Band:
        number, start, stop = self._places[index]
        tile = self._tiles[number]
        rows = tile.rows(start, stop)
        assert rows.s2_masks is not None

        def flat(array: np.ndarray) -> np.ndarray:
            """(T, h, w, ...) -> (T, h w, 1, ...), in one piece."""
            return np.ascontiguousarray(array).reshape(len(array), -1, 1, *array.shape[3:])

        observations = replace(
            rows,
            s2_bands=flat(rows.s2_bands),
            s2_masks=flat(rows.s2_masks),
            orbits=tuple(replace(o, bands=flat(o.bands)) for o in rows.orbits),
        )
        name = f"{tile.name}, pixels of rows {start} to {stop - 1} counted as rows"
        counts = _pack(name, observations, _EVERY_DATE, threads=self._threads)[2]
        enough = (counts[:, 0] >= self._min_dates) & (counts[:, 1:].sum(1) >= self._min_dates)
        some = observations.s2_bands.any(axis=(0, 2, 3))  # the rule takes nothing of all zeros
        return _Band(name, observations, np.flatnonzero(enough & some))

    def _make(self, held: list[_Band], picks: np.ndarray, number: int) -> Batch:
        """``picks`` count over the usable pixels of the bands, ascending."""
        ends = np.cumsum([len(band.usable) for band in held])
        parts, views = [], [[] for _ in self.draw_seeds]  # type: ignore[var-annotated]
        done = 0
        for band, end in zip(held, ends, strict=True):
            stop = int(np.searchsorted(picks, end))
            if stop == done:
                continue
            at = band.usable[picks[done:stop] - (end - len(band.usable))]
            part = band.pick(at)
            parts.append(part)
            for v, seed in enumerate(self.draw_seeds):
                row0 = number * self._batch + done  # a draw's place in the endless list
                s2, s1, _ = _pack(
                    band.name, part, _RULE, row0=row0, seed=seed, threads=self._threads
                )
                views[v].append(self._view(s2, s1))
            done = stop
        rng = random(self._seed, KEEP, number)
        dates = int(rng.integers(*self._dates, endpoint=True))
        return Batch(tuple(_kept(_join(view), dates, rng) for view in views), tuple(parts))

    def _view(self, s2: PackedTokens, s1: PackedTokens) -> View:
        statistics = self._statistics
        optical = _dense(s2, (statistics.s2_mean,), (statistics.s2_std,))
        return View(*optical, *_dense(s1, statistics.s1_mean, statistics.s1_std))


def _cut(tiles: Sequence[Tile], band_bytes: int) -> list[tuple[int, int, int]]:
    """(tile, first row, last row exclusive) of bands of about ``band_bytes``, none empty."""
    places = []
    for i, tile in enumerate(tiles):
        parts = min(tile.height, -(-tile.height * tile.bytes_per_row // band_bytes))
        edges = np.linspace(0, tile.height, parts + 1).astype(int)
        places += [(i, int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return places


def _pack(
    name: str, observations: Observations, spec: ModelSpec, **options: Any
) -> tuple[PackedTokens, PackedTokens, np.ndarray]:
    """`pack`, with the band's name in its errors."""
    try:
        return pack(observations, spec, **options)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _dense(
    packed: PackedTokens, mean: tuple[Row, ...], std: tuple[Row, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn tokens as (P, DATES, C) standardised bands and (P, DATES) days, float32."""
    assert packed.steps is not None
    tokens = packed.bands.astype(np.float32)
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)
    tokens -= means[packed.orbit]
    tokens /= stds[packed.orbit] + np.float32(1e-9)
    index = packed.offsets[:-1, None] + packed.steps.reshape(-1, DATES)
    return tokens[index], packed.doy.astype(np.float32)[index]


def _join(views: Sequence[View]) -> View:
    names = ("s2", "s2_days", "s1", "s1_days")
    return View(*(np.concatenate([getattr(v, name) for v in views]) for name in names))


def _kept(view: View, dates: int, rng: np.random.Generator) -> View:
    """``dates`` of every pixel's, which ones is random, in order."""
    if dates == DATES:
        return view

    def kept(bands: np.ndarray, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.sort(rng.random(days.shape).argsort(axis=1)[:, :dates], axis=1)
        return np.take_along_axis(bands, at[..., None], 1), np.take_along_axis(days, at, 1)

    return View(*kept(view.s2, view.s2_days), *kept(view.s1, view.s1_days))


def random(*key: int) -> np.random.Generator:
    """Numbers that depend on ``key`` alone: the seed, what they are for, and which."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
