"""The extension module built from csrc/bindings/cuda_module.cc and kernels/cuda.

Pointers are addresses in device memory, 0 where there is none; ``stream`` is a cudaStream_t.
"""

class PackInput:
    def __init__(
        self,
        series: list[tuple[int, int, int, bool, int, int, int]],
        stream: int,
        is_float: bool,
        pixels: int,
        columns: int,
        row0: int,
        sampling: str,
        seed: int,
        binary_masks: bool,
        bits: int,
        counts: int,
        skip: int,
        errors: int,
    ) -> None:
        """``series``: (bands, mask, doy, doy per pixel, dates, column of counts, orbit) of each;
        ``stream``: 0 Sentinel-2, 1 Sentinel-1. kernels/cuda/pack.cuh has the arrays."""

def mark_all_zero(input: PackInput, stream: int) -> None: ...
def count_tokens(input: PackInput, tokens: int, steps: int, stream: int) -> None: ...
def fill_tokens(
    input: PackInput,
    bands: int,
    doy: int,
    orbit: int,
    multiplicity: int,
    offsets: int,
    steps: int,
    step_offsets: int,
    stream: int,
) -> None: ...
def arch_list() -> list[str]: ...
def device_count() -> int:
    """GPUs that can be used; 0 for whatever reason, which ``why_no_device`` tells."""

def device_problem(code: int) -> str:
    """The error ``code`` of cudaGetDeviceCount as a sentence; empty for 0."""

def why_no_device() -> str | None:
    """Why there is no GPU to use, as a sentence; None where there is one."""

def runtime_version() -> int: ...

Shape = tuple[int, int, int, int]  # width, heads, hidden, tokens of a block

def fused_shared_bytes(shape: Shape, network: bool) -> int: ...
def schedule_pixels(
    *, offsets: int, pixels: int, tokens: int, schedule: int, stream: int
) -> None: ...
def encode_network(
    *,
    shape: Shape,
    float16: bool,
    blocks: int,
    stream: int,
    bands: int,
    band_kind: int,
    channels: int,
    orbit: int,
    doy: int,
    multiplicity: int,
    offsets: int,
    schedule: int,
    table: int,
    weights: int,
    parameters: int,
    layers: int,
    constant: int,
    pooled: int,
    stride: int,
    float_output: bool,
) -> None: ...
def encode_layer(
    *,
    shape: Shape,
    float16: bool,
    blocks: int,
    stream: int,
    x: int,
    y: int,
    multiplicity: int,
    offsets: int,
    schedule: int,
    weights: int,
    parameters: int,
) -> None: ...
