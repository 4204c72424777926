"""Triton's interpreter (3.6), mended where it is wrong or fails.

- It keeps bfloat16 as uint16 and multiplies those bits. Here products take the values.
- The library it multiplies with takes a row's sum in an order that depends on the row's place,
  which no GPU does. Here sums are float64, and rounded once.
- float32 becomes bfloat16 and float8 e4m3 by rounding to nearest even, as every GPU does it.
- A scalar is an array of one element, which numpy 2.4 no longer takes as an int.
- Every call of a function within a kernel patches triton.language once more, on top of itself, and
  every sum of integers is checked for overflow: half of the time. Here it is patched once.
"""

from typing import Any, ClassVar

import numpy as np


def install() -> None:
    """Mend the interpreter of this process; once."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    if plain_dot.__name__ == "dot":
        return

    def values(x: Any) -> np.ndarray:
        if x.dtype.scalar == tl.bfloat16:
            return widened(x.data)
        return widened_from_e4m3(x.data) if x.dtype.scalar == tl.float8e4nv else x.data

    def dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype.scalar == tl.int8:
            return plain_dot(self, a, b, d, *options)
        sums = values(a).astype(np.float64) @ values(b).astype(np.float64) + d.data
        return TensorHandle(sums.astype(d.data.dtype), d.dtype.scalar)

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
            (tl.bfloat16, tl.float32),
            (tl.float32, tl.bfloat16),
            (tl.float32, tl.float8e4nv),
        ):
            return cast_impl(self, source, to)
        return plain_convert(self, source, to, rounding)

    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    plain_patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    plain_patch_lang = interpreter._patch_lang

    class AllOfIt:
        __globals__: ClassVar[dict[str, Any]] = {"tl": tl, "core": tl.core}

    plain_patch_lang(AllOfIt)  # for good
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()  # nothing to restore
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)


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


def widened_from_e4m3(bits: np.ndarray) -> np.ndarray:
    import torch

    codes = torch.from_numpy(np.ascontiguousarray(bits)).view(torch.uint8)
    return codes.view(torch.float8_e4m3fn).float().numpy().reshape(np.shape(bits))
