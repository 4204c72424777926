"""Precisions of the GPU kernels by name: what is stored, what is multiplied, how.

Activations are stored as ``storage`` between kernels. Products take operands of ``operand`` and
accumulate in float32 (int32 for int8); everything else of a kernel is computed in float32.
"""

from typing import NamedTuple

import torch


class Element(NamedTuple):
    storage: torch.dtype  # activations in device memory
    operand: torch.dtype  # weights in device memory, and both operands of a product
    input_precision: str  # of tl.dot on float32 operands: "ieee" or "tf32"; ignored elsewhere
    scaled: bool  # operands carry scales: one per activation row, one per output channel


ELEMENTS = {
    "fp32": Element(torch.float32, torch.float32, "ieee", False),
    "tf32": Element(torch.float32, torch.float32, "tf32", False),
    "fp16": Element(torch.float16, torch.float16, "ieee", False),
    "bf16": Element(torch.bfloat16, torch.bfloat16, "ieee", False),
    "fp8": Element(torch.bfloat16, torch.float8_e4m3fn, "ieee", True),
    "int8": Element(torch.bfloat16, torch.int8, "ieee", True),
}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # what a row's largest value maps to
ACCURATE = {"fp8": "bf16", "int8": "bf16"}  # the element of ops that are not quantised


class Linear(NamedTuple):
    """y = x W^T + b, prepared for an element."""

    weight: torch.Tensor  # [n_out, n_in] operand type, row-major as torch keeps it
    bias: torch.Tensor | None  # [n_out] float32
    scale: torch.Tensor | None  # [n_out] float32, where the element is scaled: W = scale * weight
    element: str


def prepare(weight: torch.Tensor, bias: torch.Tensor | None, element: str) -> Linear:
    """A float32 ``weight`` [n_out, n_in] and ``bias`` [n_out] or None in an element's form."""
    kind = ELEMENTS[element]
    weight = weight.to(torch.float32)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    if not kind.scaled:
        return Linear(weight.to(kind.operand).contiguous(), bias, None, element)
    largest = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = largest / LARGEST[kind.operand]
    scaled = weight / scale[:, None]
    if kind.operand == torch.int8:
        scaled = torch.round(scaled)
    return Linear(scaled.to(kind.operand).contiguous(), bias, scale, element)
