"""Machine code of NVIDIA GPUs, counted: what the loops of a kernel consist of."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_NEVER = re.compile(r"^@!PT |^LDGSTS.*, !PT$")  # by a predicate that is false: they do nothing
_BITS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # of a load, in bytes; else 4
LANES, WARPGROUP = 32, 4


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # "@P0 BRA 0x290"

    @property
    def name(self) -> str:
        """With its modifiers: "LDGSTS.E.BYPASS.128"."""
        return re.sub(r"^@!?U?P\w+ ", "", self.text).split(" ", 1)[0]

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def jumps_to(self) -> int | None:
        found = re.search(r"\b0x([0-9a-f]+)$", self.text) if self.kind == "BRA" else None
        return int(found[1], 16) if found else None


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Mangled name -> instructions, of what ``cuobjdump -sass`` prints."""
    names = list(_FUNCTION.finditer(listing))
    ends = [match.start() for match in names[1:]] + [len(listing)]
    return {
        match[1]: [
            Instruction(int(address, 16), text)
            for address, text in _LINE.findall(listing[match.end() : end])
        ]
        for match, end in zip(names, ends, strict=True)
    }


def disassemble(tool: str, code: bytes) -> dict[str, list[Instruction]]:
    """The functions of a cubin; ``tool`` is cuobjdump."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        listing = subprocess.run(
            [tool, "-sass", path], capture_output=True, text=True, check=True
        ).stdout
    return functions(listing)


def flop(instruction: Instruction) -> int:
    """Of a matrix product, for the warp or the warp group that does it; 0 of other instructions."""
    name = instruction.name
    if group := re.match(r"[HQI]GMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", name):
        m, n, k = map(int, group.groups())
        return 2 * m * n * k
    if warp := re.match(r"[HI]MMA\.(?:SP\.)?(16)(8)(\d+)", name):
        m, n, k = map(int, warp.groups())
        return 2 * m * n * k
    return 0


def hot_loop(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most matrix products: one of those that have some, and in which
    no other loop has. Empty where no loop has any."""
    found: list[list[Instruction]] = []
    starts: dict[int, int] = {}  # of a loop -> its last jump back
    for instruction in code:
        start = instruction.jumps_to
        if start is not None and start <= instruction.address:
            starts[start] = instruction.address
    for start, end in starts.items():
        body = [i for i in code if start <= i.address <= end]
        if any(map(flop, body)):
            found.append(body)
    inner = [
        body
        for body in found
        if not any(other is not body and _within(other, body) for other in found)
    ]
    return max(inner, key=lambda body: sum(flop(i) > 0 for i in body), default=[])


def unrolled(code: list[Instruction]) -> list[Instruction]:
    """From the first asynchronous copy, or product, to the last product: all turns of a loop that
    ptxas unrolled. Empty without products."""
    places = [i for i, instruction in enumerate(code) if flop(instruction)]
    copies = [i for i, instruction in enumerate(code) if instruction.kind == "LDGSTS"]
    return code[min(places[:1] + copies[:1]) : places[-1] + 1] if places else []


def _within(inner: list[Instruction], outer: list[Instruction]) -> bool:
    return outer[0].address <= inner[0].address and inner[-1].address <= outer[-1].address


def count(code: Iterable[Instruction], warps: int, loop: bool = True) -> dict[str, int]:
    """Of a loop's body: instructions by what they do; FLOP and bytes of a whole block of threads
    that goes through it once, every copy in it made. Not a ``loop``: bytes of asynchronous copies
    alone, because loads for what follows stand among the turns."""
    done = [i for i in code if not _NEVER.match(i.text)]
    products = [i for i in done if flop(i)]
    groups = warps if any(i.kind in ("HMMA", "IMMA") for i in products) else warps // WARPGROUP
    loads = [i for i in done if i.kind == "LDGSTS" or (loop and i.kind == "LDG")]
    return {
        "products": len(products),
        "shared_loads": sum(i.kind in ("LDS", "LDSM") for i in done),
        "shared_stores": sum(i.kind in ("STS", "STSM") for i in done),
        "async_copies": sum(i.kind == "LDGSTS" for i in done),
        "tma_copies": sum(i.kind in ("UTMALDG", "UBLKCP") for i in done),
        "global_loads": sum(i.kind == "LDG" for i in done),
        "spill_loads": sum(i.kind in ("LDL", "STL") for i in done),
        "instructions": len(done),
        "flop": groups * sum(map(flop, products)),
        "bytes": warps * LANES * sum(map(_bytes, loads)),
    }


def _bytes(load: Instruction) -> int:
    parts = load.name.split(".")[1:]
    return next((_BITS[part] for part in parts if part in _BITS), 4)
