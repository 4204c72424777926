"""Series that already lie on the model's GPU, from torch, CuPy, JAX or whatever speaks DLPack.

Nothing is copied but what has another dtype or order than the packer reads. T dates, H x W pixels,
C bands; the checks are those of host_arrays.py.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..spec import MAX_DOY
from ..tile.plain import unmasked
from .host_arrays import has_form

_RAW = (torch.uint16, torch.int16, torch.float32)


class DeviceArrays:
    """As host_arrays.HostArrays, with tensors on the model's device."""

    def __init__(self, device: str, standardize: bool) -> None:
        """``device`` is the model's."""
        if not device.startswith("cuda"):
            raise InputError(
                f"s2_bands: they lie on a GPU, and the model runs on {device}; load it with "
                "device='cuda', or pass numpy arrays"
            )
        self._device = torch.device(device)
        self._standardize = standardize

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def tensor(self, name: str, array: Any) -> Tensor:
        """A view where ``array`` lies on the device; days may come from the host."""
        if isinstance(array, np.ndarray | list | tuple):
            array = unmasked(array, name)
        elif not isinstance(array, Tensor) and hasattr(array, "__dlpack__"):
            array = torch.from_dlpack(array)
        found = torch.as_tensor(array)
        if found.device.type == "cuda" and found.device != self._device:
            raise InputError(
                f"{name}: expected an array on {self._device}, where the model is, got one on "
                f"{found.device}"
            )
        return found.to(self._device)

    def bands(self, name: str, array: Any, form: str, raw: Any) -> Tensor:
        """The raw integer types and float32 pass as they are, others as float32."""
        found = self.tensor(name, array)
        if not has_form(tuple(found.shape), form) or found.dtype in (torch.bool, torch.complex64):
            raise InputError(
                f"{name}: expected numbers {form}, got {found.dtype} {tuple(found.shape)}"
            )
        if found.dim() == 4 and 0 in found.shape:
            raise InputError(
                f"{name}: expected at least one date and one pixel, got shape {tuple(found.shape)}"
            )
        keep = found.dtype == torch.float32 or (self._standardize and found.dtype in _RAW)
        return (found if keep else found.to(torch.float32)).contiguous()

    def masks(self, array: Any, shape: tuple[int, ...]) -> Tensor | None:
        if array is None:
            return None
        found = self.tensor("s2_masks", array)
        if tuple(found.shape) != shape:
            raise InputError(
                f"s2_masks: expected {shape} to match s2_bands, got {tuple(found.shape)}"
            )
        return found if found.dtype == torch.uint8 else (found != 0).to(torch.uint8)

    def days(
        self,
        name: str,
        array: Any,
        shapes: list[tuple[int, ...]],
        observed: Tensor | None = None,
    ) -> Tensor:
        """Days as int32; those of single pixels are checked only where a date is ``observed``."""
        if array is None:
            raise InputError(f"{name}: expected the days of year of the bands given, got None")
        found = self.tensor(name, array)
        if tuple(found.shape) not in shapes:
            raise InputError(
                f"{name}: expected {' or '.join(map(str, shapes))}, got {tuple(found.shape)}"
            )
        days = found.to(torch.int32)
        if observed is not None and days.shape == observed.shape:
            days = torch.where(observed != 0, days, 1)
            found = torch.where(observed != 0, found, 1)
        bad = (days != found) | (days < 1) | (days > MAX_DOY)
        if bool(bad.any()):
            index = tuple(bad.nonzero()[0].tolist())
            raise InputError(
                f"{name}: expected whole days 1..{MAX_DOY}, got {found[index].item()} at {index}"
            )
        return days
