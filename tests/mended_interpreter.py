"""Triton's interpreter (3.6), mended where it is wrong or fails.

- It keeps bfloat16 as uint16 and multiplies those bits. Here products take the values.
- float32 becomes bfloat16 and float8 e4m3 by rounding to nearest even, as every GPU does it.
- A scalar is an array of one element, which numpy 2.4 no longer takes as an int.
"""

from typing import Any

import numpy as np


def install() -> None:
    """Mend the interpreter of this process; once."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    if plain_dot.__name__ == "dot":
        return

    def dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16 and b.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(widened(x.data), tl.float32) for x in (a, b))
        return plain_dot(self, a, b, d, *options)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar in (tl.bfloat16, tl.float8e4nv):
            rounds = rounded if to.scalar == tl.bfloat16 else rounded_to_e4m3
            return TensorHandle(rounds(source.data), to.scalar)
        if source.dtype.scalar == tl.bfloat16 and to.scalar == tl.float32:
            return TensorHandle(widened(source.data), tl.float32)
        return plain_cast(self, source, to)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast_impl
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(InterpreterBuilder, name, lambda self, x, to: self.cast_impl(x, to))
    plain_convert = InterpreterBuilder.create_fp_to_fp

    def create_fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        pair = (source.dtype.scalar, to.scalar)
        if pair in (
            (tl.bfloat16, tl.float32), (tl.float32, tl.bfloat16), (tl.float32, tl.float8e4nv),
        ):  # fmt: skip
            return cast_impl(self, source, to)
        return plain_convert(self, source, to, rounding)

    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    plain_patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as the float32 values they are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    even = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    out = ((bits + even) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), out).reshape(np.shape(values))


def rounded_to_e4m3(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of float8 e4m3 (finite, NaN without infinity)."""
    import torch

    wide = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(np.shape(values))
