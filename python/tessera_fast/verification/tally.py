"""Where within the tiles of an output pixels differ: in which tiles, at their edges, where several
overlap."""

from __future__ import annotations

import numpy as np

EDGE = 2  # pixels from a tile's border that count as its edge


class TileTally:
    """Pixels compared, and those beyond the gate, by tile."""

    def __init__(self, tiles: tuple[tuple[str, int, int, int, int], ...]) -> None:
        """``tiles``: name, first row, stop row, first column, stop column."""
        self.names = tuple(t[0] for t in tiles)
        self._places = np.array([t[1:] for t in tiles], np.int64).reshape(-1, 4)
        self.compared = np.zeros(len(tiles), np.int64)
        self.off = np.zeros(len(tiles), np.int64)
        self.edge = np.zeros(2, np.int64)  # compared and off, within EDGE of a tile's border
        self.shared = np.zeros(2, np.int64)  # compared and off, in two tiles or more

    def add(self, row: int, column: int, compared: np.ndarray, off: np.ndarray) -> None:
        """The window (h, w) at ``row`` and ``column``: bool, what was compared, what is off."""
        h, w = compared.shape
        top, bottom, left, right = self._places.T
        here = (top < row + h) & (bottom > row) & (left < column + w) & (right > column)
        cover = np.zeros((h, w), np.int32)
        edge = np.zeros((h, w), bool)
        for n in np.flatnonzero(here):
            lines = [np.arange(start, start + size) for start, size in ((row, h), (column, w))]
            r0, r1, c0, c1 = self._places[n]
            depth = [  # pixels to the nearer border; negative outside
                np.minimum(line - lo, hi - 1 - line)
                for line, lo, hi in zip(lines, (r0, c0), (r1, c1), strict=True)
            ]
            inside = np.minimum(depth[0][:, None], depth[1][None, :])
            cover += inside >= 0
            edge |= (inside >= 0) & (inside < EDGE)
            self.compared[n] += int(compared[inside >= 0].sum())
            self.off[n] += int(off[inside >= 0].sum())
        for sums, where in ((self.edge, edge), (self.shared, cover > 1)):
            sums += int((compared & where).sum()), int((off & where).sum())
