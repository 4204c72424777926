"""Pictures: an embedding as its first three principal components, a tile in true colour.

Images are uint8 (H, W, 3) or, with alpha 0 where there is no data, (H, W, 4).
"""

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, StoreError
from ..spec import S2_BANDS
from ..tile import Tile
from ..untrusted.readers import local_target
from . import letters

SUMMER = (121, 273)  # May to September, inclusive days of year
_SAMPLE = 100_000  # pixels that decide a basis or a stretch
_BAND_BYTES = 64 << 20  # of float32 held while medians are taken
_PAPER, _INK, _WARNING = (250, 250, 248), (30, 30, 30), (255, 196, 0)
_MARGIN = 6  # pixels beside a caption
_WIDE = 640  # pixels: a panel from there on has larger letters


@dataclass(frozen=True)
class PcaBasis:
    """What makes colours of embeddings; share one between tiles for comparable pictures."""

    mean: np.ndarray  # (E,) float64
    components: np.ndarray  # (3, E) float64, rows of unit length
    low: np.ndarray  # (3,) scores drawn black
    high: np.ndarray  # (3,) scores drawn at full brightness


def pca_basis(embeddings: np.ndarray) -> PcaBasis:
    """Basis of (H, W, E) or (P, E) float embeddings: three components, stretched from 2 to 98 %.

    Signs are fixed by making each component's largest loading positive. Raises InputError if no
    pixel has data or E < 3.
    """
    if embeddings.ndim not in (2, 3) or embeddings.shape[-1] < 3 or embeddings.dtype.kind != "f":
        raise InputError(
            "embeddings: expected float (H, W, E) with E >= 3, got "
            f"{embeddings.dtype} {embeddings.shape}; dequantize codes first"
        )
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    valid = np.flatnonzero(np.isfinite(flat).all(axis=-1))
    if not valid.size:
        raise InputError("embeddings: expected at least one pixel with data, got none")
    picks = np.unique(np.linspace(0, valid.size - 1, min(_SAMPLE, valid.size)).astype(np.int64))
    sample = flat[valid[picks]].astype(np.float64)
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, :-4:-1].T
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(3), largest])[:, None]
    low, high = np.percentile(centred @ components.T, (2, 98), axis=0)
    return PcaBasis(mean, components, low, high)


def pca_image(embeddings: np.ndarray, basis: PcaBasis | None = None) -> np.ndarray:
    """(H, W, E) float embeddings as (H, W, 4) uint8; rows with NaN are transparent."""
    if embeddings.ndim != 3:
        raise InputError(f"embeddings: expected (H, W, E), got {embeddings.shape}")
    valid = np.isfinite(embeddings).all(axis=-1)
    out = np.zeros((*valid.shape, 4), np.uint8)
    if not valid.any():
        return out
    basis = basis or pca_basis(embeddings)
    components = basis.components.astype(np.float32)
    scores = embeddings[valid].astype(np.float32) @ components.T
    scores -= (components.astype(np.float64) @ basis.mean).astype(np.float32)
    out[valid, :3] = _stretch(scores, basis.low, basis.high)
    out[valid, 3] = 255
    return out


def true_colour(tile: Tile, days: tuple[int, int] = SUMMER) -> np.ndarray:
    """Median of the clear dates of B04, B03, B02 as (H, W, 4) uint8.

    Pixels that are never clear within ``days`` (inclusive) take the whole year; pixels that are
    never clear are transparent. Stretched from 1 to 99 % of all three bands, so hues are kept.
    """
    channels = [S2_BANDS.index(band) for band in ("B04", "B03", "B02")]
    season = (tile.s2_doys >= days[0]) & (tile.s2_doys <= days[1])
    median = np.empty((tile.height, tile.width, 3), np.float32)
    step = max(1, _BAND_BYTES // (tile.dates[0] * tile.width * len(channels) * 4))
    for start in range(0, tile.height, step):
        stop = min(start + step, tile.height)
        band = tile.rows(start, stop)
        values = band.s2_bands[..., channels].astype(np.float32)
        clear = np.asarray(band.s2_masks) != 0
        chosen = clear & season[:, None, None]
        never = ~chosen.any(axis=0)
        chosen[:, never] = clear[:, never]
        median[start:stop] = _masked_median(values, chosen)
    valid = np.isfinite(median).all(axis=-1)
    out = np.zeros((tile.height, tile.width, 4), np.uint8)
    if not valid.any():
        return out
    low, high = np.percentile(median[valid], (1, 99))
    # Raised to 0.8: land is dark beside roofs and sand.
    stretched = _stretch(median[valid], low, high) / 255.0
    out[valid, :3] = np.rint(255 * stretched**0.8)
    out[valid, 3] = 255
    return out


def _masked_median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Median over dates of (T, h, w, 3) where ``chosen`` (T, h, w); NaN where none is."""
    count = chosen.sum(axis=0)
    ordered = np.sort(np.where(chosen[..., None], values, np.inf), axis=0)
    # The chosen dates come first: the median lies midway between these two.
    lower, upper = np.maximum(count - 1, 0) // 2, count // 2
    lower, upper = (i.clip(0, len(values) - 1)[None, ..., None] for i in (lower, upper))
    middle = np.take_along_axis(ordered, lower, 0)[0] / 2
    middle = middle + np.take_along_axis(ordered, upper, 0)[0] / 2
    return np.where(count[..., None] > 0, middle, np.nan)


def _stretch(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """low..high to 0..255; a channel without spread becomes mid-grey."""
    span = np.where(high > low, high - low, 1)
    scaled = np.where(high > low, (values - low) / span, 0.5)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def quicklook(
    tile: Tile, embeddings: np.ndarray, *, model: str, trained: bool, upscale: int | None = None
) -> np.ndarray:
    """True colour and PCA side by side, captioned, (h, w, 3) uint8.

    ``trained`` False puts "UNTRAINED weights" into the caption, on a yellow bar.
    """
    weights = "" if trained else ", UNTRAINED weights"
    return side_by_side(
        [true_colour(tile), pca_image(embeddings)],
        [f"{tile.name} | true colour (median)", f"{model}{weights}: PCA"],
        highlight=[False, not trained],
        upscale=upscale,
    )


def side_by_side(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    highlight: Sequence[bool] | None = None,
    upscale: int | None = None,
) -> np.ndarray:
    """Images of one size in a row with a thin gap and a caption under each, (h, w, 3) uint8.

    ``upscale`` None chooses the factor that makes each image about 400 pixels wide. Captions wrap
    at words; a highlighted one has a yellow bar.
    """
    if len({image.shape[:2] for image in images}) != 1 or len(images) != len(captions):
        shapes = [image.shape for image in images]
        raise InputError(f"images: expected one size and one caption each, got {shapes}")
    factor = upscale or max(1, -(-400 // images[0].shape[1]))
    panels = [_enlarge(_on_paper(image), factor) for image in images]
    columns = panels[0].shape[1]
    letter, spacing = (10, 19) if columns < _WIDE else (14, 26)
    bars = [letters.wrapped(text, letter, columns - 2 * _MARGIN) for text in captions]
    lines = max(len(bar) for bar in bars)
    gap = np.full((panels[0].shape[0] + spacing * lines + 10, 4, 3), _PAPER, np.uint8)
    row: list[np.ndarray] = []
    for i, (panel, bar) in enumerate(zip(panels, bars, strict=True)):
        colour = _WARNING if highlight and highlight[i] else _PAPER
        text = np.full((gap.shape[0] - panel.shape[0], panel.shape[1], 3), colour, np.uint8)
        for k, line in enumerate(bar):
            letters.write(text, _MARGIN, 8 + spacing * k, line, letter, _INK)
        row += [gap] * (i > 0) + [np.concatenate([panel, text])]
    return np.concatenate(row, axis=1)


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one width below each other, all as high as the highest, (h, w, 3) uint8."""
    height = max(len(row) for row in rows)
    out = np.full((len(rows), height, *rows[0].shape[1:]), _PAPER, np.uint8)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out.reshape(-1, *rows[0].shape[1:])


def _on_paper(image: np.ndarray) -> np.ndarray:
    """Opaque RGB: transparent pixels take the paper's colour."""
    if image.shape[2] == 3:
        return image
    return np.where(image[..., 3:] > 0, image[..., :3], np.array(_PAPER, np.uint8))


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def write_png(path: str | os.PathLike[str], image: np.ndarray, upscale: int = 1) -> Path:
    """Write (H, W), (H, W, 3) or (H, W, 4) uint8 as a PNG that appears whole or not at all.

    Raises InputError for another shape or dtype, StoreError if the file cannot be written.
    """
    # Encoded here with zlib: an 8-bit PNG is four chunks, less than a dependency on an imaging
    # library would cost whoever only embeds.
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise InputError(
            f"image: expected uint8 (H, W), (H, W, 3) or (H, W, 4), got {image.dtype} "
            f"{image.shape}; scale it to 0..255 first"
        )
    if 0 in image.shape or upscale < 1:
        raise InputError(
            f"image: expected pixels and upscale >= 1, got {image.shape} and {upscale}; give both"
        )
    image = _enlarge(image, upscale)
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # first byte 0: no filter
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    data += _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + _chunk(b"IEND", b"")
    path = local_target(path, "picture")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: the picture could not be written ({error})") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
