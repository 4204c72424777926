"""What the hot loops of all kernels consist of on an H100, and the speed that L2 allows them.

    python bench/sass_table.py            # print the table
    python bench/sass_table.py --write    # renew results/sass_sm90.jsonl and .md

It needs nvcc and Triton, no GPU; two to five minutes. CUDA kernels are compiled by nvcc for sm_90a,
Triton kernels as a launch would compile them (triton_aot.py), bf16; all are disassembled. The hot
loop of a kernel is the innermost one with the most matrix products. Kernels without products
(packing, norms, pooling) are bound by memory and have no row.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sass
import triton_resources

Row = dict[str, Any]

BENCH = Path(__file__).resolve().parent
REPOSITORY = BENCH.parent
CUDA = REPOSITORY / "kernels" / "cuda"
TABLE, SUMMARY = BENCH / "results" / "sass_sm90.jsonl", BENCH / "results" / "sass_sm90.md"
ARCH, ELEMENT = 90, "bf16"
MODELS = ("v2-nano", "v2-small", "v2-medium", "v2-large", "v1.1-mpc")
# An H100 SXM: bytes per second from L2, and dense bf16 FLOP per second that products reach.
L2_BANDWIDTH, PEAK = 5.5e12, 790e12
# The kernels of the first layer differ by the type of the bands alone: one is enough.
ONE_OF = {"_embed": "C=10 STANDARDIZED=False UNSIGNED=True"}
# Most bytes that a CUDA kernel may spill, and why that is right; Triton's are in triton_resources.
SPILLED, REASON = 16, "a few scalars around the norms and once a head, outside the products' loops"
HEAD = """# Hot loops on sm_90a

Made by `python bench/sass_table.py --write`; every kernel is a line of sass_sm90.jsonl. The hot
loop is the innermost one with the most matrix products. Counts are instructions in its body, of a
warp. FLOP per L2 byte: of a block that goes through the loop once and makes every copy in it. The
fused CUDA encoders copy in a loop of their own; theirs is by the shape (a block reads all
weights). Roof: that times 5.5 TB/s of L2, at most 790 TFLOP/s, which dense bf16 products reach. An
empty cell means that the loop reads nothing from L2. Unrolled: ptxas left no loop; the row counts
all turns, from the first copy to the last product, and copies that a mask makes empty at the end of
K, if ptxas does not know it.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}, {SUMMARY.name}")
    args = parser.parse_args()
    rows = [*cuda_rows(), *triton_rows(args.workers)]
    print(summary(rows))
    found = [f"{label(row)}: {problem}" for row in rows for problem in problems(row)]
    print(*found, sep="\n")
    if args.write and not found:
        lines = [json.dumps(line, separators=(",", ":")) for line in (stamp(), *rows)]
        TABLE.write_text("".join(f"{line}\n" for line in lines))
        SUMMARY.write_text(f"{HEAD}{summary(rows)}\n")
    return 1 if found else 0


def cuda_rows(sources: Sequence[Path] = (CUDA / "encoder.cu",)) -> list[Row]:
    """The kernels of CUDA files that have matrix products."""
    rows = []
    for source in sources:
        code, report = compile_cuda(source)
        for name, body in sass.disassemble(cuobjdump(), code).items():
            if any(map(sass.flop, body)):
                rows.append(_cuda_row(name, body, _used(report, name)))
    return sorted(rows, key=lambda row: (row["kernel"], row["constants"]))


def compile_cuda(source: Path) -> tuple[bytes, str]:
    """(cubin of sm_90a, what ptxas tells of it)."""
    if shutil.which("nvcc") is None:
        raise SystemExit("nvcc is not in the path: install the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.cubin"
        done = subprocess.run(
            [
                "nvcc",
                "-std=c++17",
                "-O3",
                "-fmad=false",
                "-Xptxas",
                "-v",
                "-cubin",
                "-arch=sm_90a",
                f"-I{REPOSITORY / 'csrc'}",
                f"-I{CUDA}",
                source,
                "-o",
                out,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return out.read_bytes(), done.stderr


def _used(report: str, name: str) -> dict[str, int]:
    """Registers and spilled bytes of a function in what ``ptxas -v`` tells."""
    part = report[report.index(f"Compiling entry function '{name}'") :]
    spilled = re.search(r"(\d+) bytes spill stores", part)
    registers = re.search(r"Used (\d+) registers", part)
    assert spilled and registers, part[:400]
    return {"registers": int(registers[1]), "spilled": int(spilled[1])}


def _cuda_row(name: str, body: list[sass.Instruction], used: dict[str, int]) -> Row:
    found = re.search(
        r"\d(layer|network)_kernelI.*?SizesILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E.*?E(\d)E", name
    )
    assert found, name
    kind, *sizes, element = found.groups()
    D, H, F, tiles, warps = map(int, sizes)
    tokens = 16 * tiles * warps
    return {
        "kernel": f"{kind}_kernel (CUDA)",
        "for": ["v2-nano" if kind == "network" else "v2-small"],
        "constants": f"D={D} H={H} F={F} TOKENS={tokens} {('bf16', 'fp16')[int(element)]}",
        "warps": warps,
        **used,
        **sass.count(sass.hot_loop(body), warps),
        "unrolled": False,
        # 2 FLOP per weight of 2 bytes and token
        "flop_per_byte": tokens,
        "reason": REASON if used["spilled"] else "",
    }


def triton_rows(workers: int) -> list[Row]:
    """The kernels of MODELS, every binary once."""
    from triton_aot import compiled

    launches, rows = triton_resources.record()
    wanted = {f"{model}/{ELEMENT}" for model in MODELS}
    rows = [
        row | {"for": sorted(case.partition("/")[0] for case in wanted & set(row["for"]))}
        for row in rows
        if row["arch"] == ARCH and wanted & set(row["for"]) and _is_usual(row)
    ]
    look: Callable[[bytes], Any] = partial(_hot, cuobjdump())
    results = compiled([launches[row["launch"]] for row in rows], workers, look)
    found = []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, BaseException):
            raise RuntimeError(f"{label(row)} does not compile") from result
        body, loop = result.pop("inspected")
        if not result["product"]:
            continue
        counts = sass.count(body, result["warps"], loop)
        reason = triton_resources.accepted(row | result)[1] if result["spilled"] else ""
        kept = {key: row[key] for key in ("kernel", "for", "launch", "constants")}
        used = {key: result[key] for key in ("warps", "registers", "spilled")}
        ratio = round(counts["flop"] / counts["bytes"], 1) if counts["bytes"] else None
        rest = {"unrolled": not loop, "flop_per_byte": ratio, "reason": reason}
        found.append(kept | used | counts | rest)
    return found


def _is_usual(row: Row) -> bool:
    wanted = ONE_OF.get(row["kernel"], "")
    return set(wanted.split()) <= set(row["constants"].split())


def _hot(tool: str, code: bytes) -> tuple[list[sass.Instruction], bool]:
    """Its hot loop, or what ptxas made of it; whether it is a loop."""
    (body,) = sass.disassemble(tool, code).values()
    loop = sass.hot_loop(body)
    return loop or sass.unrolled(body), bool(loop)


def cuobjdump() -> str:
    from triton.knobs import nvidia

    return str(nvidia.cuobjdump.path)


def roof(row: Row) -> float:
    """TFLOP/s that the loop can reach at most."""
    ratio = row["flop_per_byte"]
    return (PEAK if ratio is None else min(PEAK, ratio * L2_BANDWIDTH)) / 1e12


def problems(row: Row) -> list[str]:
    """Why a kernel is not right as it is; nothing if it is."""
    found = []
    if row["spilled"] and not row["reason"]:
        found.append(f"spills {row['spilled']} bytes of registers for no reason that is known")
    if "(CUDA)" in row["kernel"] and row["spilled"] > SPILLED:
        found.append(f"spills {row['spilled']} bytes of registers, {SPILLED} are accepted")
    if row["spill_loads"]:
        found.append(
            f"reads or writes spilled registers {row['spill_loads']} times in its hot loop"
        )
    return found


def label(row: Row) -> str:
    return f"{row['kernel']} [{' '.join(row['for'])}] {row['constants']}"


def stamp() -> Row:
    """What the table is made from: Triton's version and the code of the kernels."""
    import triton

    return {
        "triton": triton.__version__,
        "sources": triton_resources.sources_digest(),
        "cuda": cuda_digest(),
    }


def cuda_digest(folder: Path = CUDA) -> str:
    """Of the code of the CUDA kernels; comments and blank lines do not count."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".h")):
        code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        digest.update(f"{path.name} {' '.join(code.split())}\n".encode())
    return digest.hexdigest()[:16]


_SHOWN = re.compile(
    r"\b(?:D|F|H|K|N|TOKENS|BM|P0|P1|BK|BF|ROWS|COLS|CHUNK|DEPTH|K0|K1|D0|D1"
    r"|SHORT_ONES)=\w+|\b(?:bf16|fp16)\b"
)


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table, a line per kernel."""
    lines = [
        "| kernel | models | shape | warps | products | shared loads | async copies, TMA | all "
        "| FLOP per L2 byte | roof, TFLOP/s | registers | spilled bytes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = " ".join(_SHOWN.findall(row["constants"])).replace(" P1=0", "")
        shape += ", unrolled" if row["unrolled"] else ""
        models = ", ".join(row["for"])
        ratio = "" if row["flop_per_byte"] is None else f"{row['flop_per_byte']:g}"
        spilled = f"{row['spilled']}: {row['reason']}" if row["spilled"] else "0"
        lines.append(
            f"| {row['kernel']} | {models} | {shape} | {row['warps']} | {row['products']} "
            f"| {row['shared_loads']} | {row['async_copies']}, {row['tma_copies']} "
            f"| {row['instructions']} | {ratio} | {roof(row):.0f} | {row['registers']} "
            f"| {spilled} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
