"""Drop-in for the official package's `encode_tile` and `encode_pixels`: same names, same arguments.

Like upstream, any numeric dtype is taken, a missing mask means that every date is clear, and a
missing or empty orbit is absent. Unlike upstream, a pixel that was never observed is NaN.
Series that lie on the model's GPU, from any library that speaks DLPack, are read there.
"""

from typing import Any

import numpy as np

from ..errors import InputError
from ..packing import Observations, Orbit
from ..untrusted.suggest import checks_keywords
from .host_arrays import HostArrays
from .model import Model

_HOST = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost


@checks_keywords()
def encode_tile(
    model: Model,
    s2_bands: np.ndarray,
    s2_doys: np.ndarray,
    s2_masks: np.ndarray | None = None,
    s1_asc_bands: np.ndarray | None = None,
    s1_asc_doys: np.ndarray | None = None,
    s1_desc_bands: np.ndarray | None = None,
    s1_desc_doys: np.ndarray | None = None,
    batch_pixels: int = 1024,
    device: Any = None,
    standardize: bool = True,
    autocast_dtype: Any = None,
) -> np.ndarray:
    """Encode a tile held in memory: (H, W, E) float32.

    The dates are read in the order given, as upstream does; another order gives another embedding.
    `tessera_fast.embed` sorts them. Of masked arrays, masked Sentinel-1 is not observed, a masked
    mask is not clear, and masked Sentinel-2 is an error where the mask is clear.

    ``s2_bands`` (T, H, W, 10), ``s2_doys`` (T,), ``s2_masks`` (T, H, W) with not 0 = clear or None
    = all clear; ``s1_*_bands`` (T, H, W, 2), ``s1_*_doys`` (T,) or None. Days are 1..366. With
    ``standardize=False`` the bands are already (x - mean) / std. ``batch_pixels`` is accepted and
    has no effect: nothing is batched by length here. ``device`` must be where the model was loaded.
    Bands on the model's GPU give a torch tensor there, in the order of the current stream; the
    other arrays may then lie on either side.
    Raises InputError where shapes, days or values cannot be what the model expects.
    """
    _accept(model, device, autocast_dtype, batch_pixels)
    arrays = _arrays(model, s2_bands, standardize)
    bands = arrays.bands("s2_bands", s2_bands, "(T, H, W, 10)", np.uint16)
    window = bands.shape[1:3]
    masks = arrays.masks(s2_masks, bands.shape[:3])
    doys = arrays.days("s2_doys", s2_doys, [bands.shape[:1]])
    orbits = []
    for index, kind, raw, days in _orbits(s1_asc_bands, s1_asc_doys, s1_desc_bands, s1_desc_doys):
        name = f"s1_{kind}_bands"
        sar = arrays.bands(name, raw, "(T, H, W, 2)", np.int16)
        if sar.shape[1:3] != window:
            raise InputError(
                f"{name}: expected (T, {window[0]}, {window[1]}, 2), got {tuple(sar.shape)}"
            )
        orbits.append(Orbit(index, sar, arrays.days(f"s1_{kind}_doys", days, [sar.shape[:1]])))
    observations = Observations(bands, masks, doys, tuple(orbits), not standardize)
    return _encode(model, observations, arrays).reshape(*window, model.repr_dim)


@checks_keywords()
def encode_pixels(
    model: Model,
    s2_bands: np.ndarray,
    s2_doys: np.ndarray,
    s1_asc_bands: np.ndarray | None = None,
    s1_asc_doys: np.ndarray | None = None,
    s1_desc_bands: np.ndarray | None = None,
    s1_desc_doys: np.ndarray | None = None,
    s2_masks: np.ndarray | None = None,
    batch_pixels: int = 1024,
    device: Any = None,
    standardize: bool = True,
    autocast_dtype: Any = None,
) -> np.ndarray:
    """Encode independent pixel series: (P, E) float32.

    ``s2_bands`` (P, T, 10), ``s2_doys`` (P, T) or (T,), ``s2_masks`` (P, T); ``s1_*_bands``
    (P, T, 2), ``s1_*_doys`` (P, T) or (T,). Series of different lengths are padded with dates that
    are not observed (mask 0, backscatter 0), whose days do not matter. Everything else as in
    `encode_tile`, also that the dates of each pixel are read in the order given.
    """
    _accept(model, device, autocast_dtype, batch_pixels)
    arrays = _arrays(model, s2_bands, standardize)
    bands = arrays.bands("s2_bands", s2_bands, "(P, T, 10)", np.uint16)
    pixels = len(bands)
    if pixels == 0:
        return arrays.empty(0, model.repr_dim)
    masks = arrays.masks(s2_masks, bands.shape[:2])
    doys = arrays.days("s2_doys", s2_doys, [bands.shape[:2], bands.shape[1:2]], masks)
    orbits = []
    for index, kind, raw, days in _orbits(s1_asc_bands, s1_asc_doys, s1_desc_bands, s1_desc_doys):
        name = f"s1_{kind}_bands"
        sar = arrays.bands(name, raw, "(P, T, 2)", np.int16)
        if len(sar) != pixels:
            raise InputError(f"{name}: expected ({pixels}, T, 2), got {tuple(sar.shape)}")
        shapes = [sar.shape[:2], sar.shape[1:2]]
        sar_days = arrays.days(f"s1_{kind}_doys", days, shapes, (sar != 0).any(-1))
        orbits.append(Orbit(index, _as_window(sar), _as_window(sar_days)))
    observations = Observations(
        _as_window(bands),
        None if masks is None else _as_window(masks),
        _as_window(doys),
        tuple(orbits),
        not standardize,
    )
    return _encode(model, observations, arrays)


def _arrays(model: Model, s2_bands: Any, standardize: bool) -> Any:
    """What reads the arguments: HostArrays, or DeviceArrays where the bands lie on a GPU."""
    if hasattr(s2_bands, "__dlpack_device__") and s2_bands.__dlpack_device__()[0] not in _HOST:
        from .device_arrays import DeviceArrays

        return DeviceArrays(model.device, standardize)
    return HostArrays(standardize)


def _encode(model: Model, observations: Observations, arrays: Any) -> Any:
    height, width = observations.shape
    out = arrays.empty(height * width, model.repr_dim)
    model.encode(observations, out)
    return out


def _as_window(array: Any) -> Any:
    """(P, T, ...) as a view (T, P, 1, ...): a window of P x 1 pixels; (T,) days stay."""
    return array if array.ndim == 1 else array.swapaxes(0, 1)[:, :, None]


def _accept(model: Any, device: Any, autocast_dtype: Any, batch_pixels: int) -> None:
    if not isinstance(model, Model):
        raise InputError(
            f"model: expected what tessera_fast.load_model returns, got {type(model).__name__}"
        )
    loaded_on = model.device
    if device is not None and str(device) not in ("auto", loaded_on, loaded_on.partition(":")[0]):
        raise InputError(
            f"device: this model was loaded on {loaded_on!r}, got {str(device)!r}; pass the device "
            "to load_model"
        )
    if autocast_dtype is not None:
        raise InputError("autocast_dtype: choose the precision in load_model(precision=...)")
    if batch_pixels < 1:
        raise InputError(f"batch_pixels: expected a positive integer, got {batch_pixels}")


def _orbits(asc: Any, asc_doys: Any, desc: Any, desc_doys: Any) -> list[tuple[int, str, Any, Any]]:
    """The orbits that are there: None or empty bands mean an absent one, as upstream."""
    given = [(0, "asc", asc, asc_doys), (1, "desc", desc, desc_doys)]
    return [
        (i, kind, bands, days)
        for i, kind, bands, days in given
        if bands is not None and 0 not in np.shape(bands)
    ]
