"""What an export is besides its model: types, layout of the inputs, what is quantised."""

from dataclasses import dataclass

from ..spec import ModelSpec
from ..untrusted.suggest import one_of

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
LAYOUTS = ("packed", "dense")
# The widest head of TensorRT's fused attention, as far as has been tried (TensorRT-RTX 1.7).
_WIDEST_FUSED_HEAD = 192
# Part of the key of cached engines: another number where the graphs of a form change.
VERSION = 1


@dataclass(frozen=True)
class Form:
    """How a model is written as ONNX.

    ``precision``: the type of the activations and products; with int8 and fp8 that of the products
    of the encoder layers, as Q/DQ with a scale per output channel and one per activation.
    ``layout``: "packed" takes the arrays of `PackedTokens`, pixels side by side, with slots of
    multiplicity 0 where a pixel has fewer dates; "dense" takes whole padded sequences of one length
    (the model's own bins), which need no mask, in the types that TensorRT has.
    ``int8_output``: the head returns codes and scales instead of float32 values.
    ``dims``: leading dimensions of the embedding that are returned.
    """

    precision: str = "fp32"
    layout: str = "packed"
    int8_output: bool = False
    dims: int | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("layout", self.layout, LAYOUTS),
        ):
            one_of(what, value, known)

    @property
    def packed(self) -> bool:
        return self.layout == "packed"

    @property
    def quantized(self) -> str | None:
        """The element of the encoder layers' products, where it is not the compute type."""
        return self.precision if self.precision in ("int8", "fp8") else None

    @property
    def compute(self) -> str:
        """The type of everything that is not quantised. int8 for processors leaves it in float32,
        because they have no float16 products; int8 and fp8 for GPUs in float16."""
        if self.quantized is None:
            return self.precision
        return "fp32" if self.precision == "int8" and self.packed else "fp16"

    @property
    def between(self) -> str:
        """The type of values between products: float32 where bfloat16 would round them all."""
        return "fp32" if self.compute == "bf16" else self.compute

    def standard_attention(self, spec: ModelSpec) -> bool:
        """Whether an encoder's attention is one Attention node, or the ops that it stands for.

        TensorRT-RTX 1.7 has no fused kernel for float32 and for the teacher's heads of 1024, and
        refuses the node; one beside a recurrence crashes its builder.
        """
        if self.packed:
            return True
        fused = self.compute != "fp32" and spec.head_dim <= _WIDEST_FUSED_HEAD
        return fused and not spec.needs_steps
