"""`tessera-fast bench`: where the time of a tile goes, and how far that is from the hardware.

A multiply-add counts as 2 FLOP. The peak is measured in the same run, by products in registers.
Memory is not the limit to read these by: a block's activations stay in L2 (docs/data_flow.md).
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .. import env
from ..errors import BackendUnavailable, InputError
from ..model.flop import work
from ..model.model import Model
from ..packing import pack
from ..tile import Tile


def elements(model: Model) -> dict[str, str]:
    """The element ("fp32", "bf16", "int8") that an op's products are taken in, for ops with one."""
    from .. import _cpu

    isa = model.provenance()["isa"]
    accurate = model.precision
    if accurate == "int8":
        accurate = "bf16" if _cpu.native_bf16(isa) else "fp32"
    linear = dict.fromkeys(("embed", "qkv", "out", "ff1", "ff2", "gru"), model.precision)
    return {**linear, "attention": accurate, "reducer": accurate, "pooling": "fp32"}


def peak(isa: str, element: str, threads: int = 1, seconds: float = 0.3) -> float:
    """FLOP/s of ``threads`` threads together with products in registers: the best of several."""
    from .. import _cpu

    def spin(steps: int) -> float:
        started = time.perf_counter()
        done = _cpu.ops.spin(isa, element, steps)
        return 2 * done / (time.perf_counter() - started)

    steps, rounds = 1000, 8
    while True:  # as many steps as fill a round
        started = time.perf_counter()
        spin(steps)
        if time.perf_counter() - started > seconds / rounds:
            break
        steps *= 2
    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(spin, [steps] * threads)) for _ in range(rounds))


@dataclass(frozen=True)
class Profile:
    """Seconds of wall time per stage, and per op of the encoder summed over threads."""

    pixels: int
    threads: int
    stages: dict[str, float]
    ops: dict[str, float]
    flop: dict[str, float]

    def limit(self, peaks: dict[str, float], elements: dict[str, str]) -> float:
        """Seconds the arithmetic takes at the peaks (FLOP/s of all threads) of its elements."""
        return sum(flop / peaks[elements[op]] for op, flop in self.flop.items())


def profile(tile: Tile, model: Model, *, rows: int | None = None) -> Profile:
    """Embed the first ``rows`` rows of a tile (default: all, in one piece) and time the stages.

    Stages: reading, packing, encoding, int8. The ops of the cpu back end are timed in a second
    pass, so that their clock does not touch the first; another back end has none, and one pass
    before the clock starts, as it may compile.
    """
    from ..backends.cpu import CpuEncoder

    encoder = model.encoder
    threads = env.threads(model.options.threads)
    rows = min(rows or tile.height, tile.height)
    values = np.empty((rows * tile.width, model.repr_dim), np.float32)
    stages: dict[str, float] = {}
    marks = [time.perf_counter()]

    def lap(stage: str) -> None:
        marks.append(time.perf_counter())
        stages[stage] = marks[-1] - marks[-2]

    observations = tile.rows(0, rows)
    lap("read")
    s2, s1, _ = pack(observations, model.spec, binary_masks=True, threads=threads)
    lap("pack")
    if not isinstance(encoder, CpuEncoder):
        encoder.encode(s2, s1, values)
        marks[-1] = time.perf_counter()
    encoder.encode(s2, s1, values)
    lap("encode")
    model.quantize(values)
    lap("int8")
    ops = encoder.profile(s2, s1, values) if isinstance(encoder, CpuEncoder) else {}
    return Profile(len(values), threads, stages, ops, work(model.spec, s2, s1))


def report(
    tile: Tile,
    model: Model,
    *,
    rows: int | None = None,
    by_op: bool = False,
    trace: str | None = None,
) -> str:
    """The profile of a tile as text: px/s per stage and, ``by_op``, every op of the encoder.

    ``trace`` names a file for the cuda back end's timeline; InputError with another one.
    ``by_op`` is of the cpu and the cuda back end: BackendUnavailable with another one.
    """
    if model.backend == "cuda":
        from .profile_gpu import report_gpu

        return report_gpu(tile, model, rows=rows, by_op=by_op, trace=trace)
    if trace is not None:
        raise InputError(f"trace: only the cuda back end has a timeline, not {model.backend}")
    if model.backend != "cpu":
        if by_op:
            raise BackendUnavailable(f"bench: ops are timed by cpu and cuda, not {model.backend}")
        return "\n".join([*_heading(tile, model), *_stages(profile(tile, model, rows=rows))])
    measured = profile(tile, model, rows=rows)
    kinds, isa = elements(model), model.provenance()["isa"]
    peaks = {e: peak(isa, e, measured.threads) for e in sorted(set(kinds.values()))}
    lines = [
        f"{model.label}, {model.precision} on {isa}, {measured.threads} threads, "
        f"{tile.name}: {measured.pixels:,} px",
        f"measured peak: {', '.join(f'{e} {p / 1e9:,.0f} GFLOP/s' for e, p in peaks.items())}",
        "",
        *_stages(measured),
    ]
    limit = measured.limit(peaks, kinds)
    lines += [
        "",
        f"the encoder runs at {limit / measured.stages['encode']:.0%} of the arithmetic "
        f"limit, which is {measured.pixels / limit:,.0f} px/s",
    ]
    if not by_op:
        return "\n".join(lines)
    busy = sum(measured.ops.values())
    lines += ["", f"{'op':12}{'seconds':>10}{'share':>8}{'GFLOP/s':>12}{'of peak':>9}"]
    for op, seconds in measured.ops.items():
        if seconds == 0:
            continue
        line = f"{op:12}{seconds:10.3f}{seconds / busy:8.1%}"
        if measured.flop.get(op):
            rate = measured.flop[op] / seconds * measured.threads
            line += f"{rate / 1e9:12,.0f}{rate / peaks[kinds[op]]:9.0%}"
        lines.append(line)
    lines.append(f"(seconds of all threads together; GFLOP/s of {measured.threads} threads)")
    return "\n".join(lines)


def _heading(tile: Tile, model: Model) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in model.provenance().items())
    return [f"{model.label}, {tile.name}: {facts}", ""]


def _stages(measured: Profile) -> list[str]:
    """The table of the stages."""
    total = sum(measured.stages.values())
    lines = [f"{'stage':12}{'seconds':>10}{'share':>8}{'px/s':>12}"]
    for stage, seconds in [*measured.stages.items(), ("all", total)]:
        rate = measured.pixels / max(seconds, 1e-9)
        lines.append(f"{stage:12}{seconds:10.3f}{seconds / total:8.1%}{rate:12,.0f}")
    return lines
