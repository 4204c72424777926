"""Registers, spills and shared memory of the Triton kernels of every released model, without a GPU.

    python bench/triton_resources.py --write                       # all; renews results/
    python bench/triton_resources.py --models v2-nano --archs 90   # a part, beside results/
    python bench/triton_resources.py --kernels ffn --archs 86 90   # kernels with that in their name

Kernels are compiled to machine code as a launch would compile them (triton_aot.py). The exit status
is 1 if one does not compile, spills, or asks for more than a block of that GPU may have.
results/triton_resources.jsonl: a line about Triton and the sources, then a line a binary.
"""

import argparse
import ast
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

BENCH = Path(__file__).resolve().parent
KERNELS = BENCH.parent / "kernels" / "triton"
TABLE = BENCH / "results" / "triton_resources.jsonl"
SUMMARY = BENCH / "results" / "triton_resources.md"

# Bytes of shared memory that a block may have, by compute capability (CUDA programming guide).
KIB = 1024
SHARED_LIMIT = {
    80: 163 * KIB,
    86: 99 * KIB,
    89: 99 * KIB,
    90: 227 * KIB,
    100: 227 * KIB,
    120: 99 * KIB,
}
TENSOR_MEMORY_LIMIT = 512  # columns, on sm_100
ARCHS = tuple(SHARED_LIMIT)
MODELS = (
    "v2-nano",
    "v2-small",
    "v2-medium",
    "v2-large",
    "v1.1-mpc",
    "v1.0-qat",
    "v1.0",
    "v2-teacher",
)  # v1.1-aws has the shape of v1.1-mpc
# Element -> what it is compiled for: the default for everything, the others to prove that they do.
PLAN: dict[str, tuple[Sequence[str], Sequence[int]]] = {
    "bf16": (MODELS, ARCHS),
    "fp8": (("v2-nano", "v2-small"), (89, 90, 100, 120)),
    "int8": (("v2-nano", "v2-small"), (89, 90, 100, 120)),
    "fp16": (("v2-nano",), (89, 90, 100, 120)),
    "tf32": (("v2-nano",), (89, 90, 100, 120)),
    "fp32": (("v2-nano",), (90,)),
}
# (kernel, constants it must have, targets) -> most bytes it may spill, why that is right.
_ONCE = "a value or two, stored and read once a program, beside thousands of products"
_B200 = "sm_100 keeps the sums in tensor memory and spills while it moves them to registers, once"
ACCEPTED: dict[tuple[str, str, Sequence[int]], tuple[int, str]] = {
    ("_embed", "D=768 STANDARDIZED=True", (90, 100)): (4, _ONCE),
    ("_linear", "N=440 K=1792 NORM=True", (90,)): (4, _ONCE),
    ("attention_kernel", "K=36 PRECISION=ieee", (90,)): (8, _ONCE),  # float32
    ("_linear", "BM=128 P0=256 NORM=False", (100,)): (160, _B200),
    ("_linear", "N=432 PRECISION=tf32", (100,)): (32, _B200),
    ("_ffn", "D=256 F=1024", (100,)): (104, _B200),
    ("_ffn", "D=256 F=1024 TOP=448.0", (90,)): (4, _ONCE),  # fp8
}


UNSTEADY = ("seconds",)  # what differs from run to run stays out of the table
SUMMARY_HEAD = """# Resources of the Triton kernels

Made by `python bench/triton_resources.py --write`; every binary is a line of
triton_resources.jsonl. Registers are those of a thread.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--elements", nargs="+", default=list(PLAN), choices=list(PLAN))
    parser.add_argument("--archs", nargs="+", type=int, default=ARCHS, choices=ARCHS)
    parser.add_argument("--kernels", nargs="+", default=[""], help="parts of kernels' names")
    parser.add_argument("--sample", action="store_true", help="few: each kernel, target, element")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}, {SUMMARY.name}")
    parser.add_argument("--rows", type=Path, help="write all rows here; with resources if compiled")
    args = parser.parse_args()
    launches, rows = record()
    chosen = [
        row
        for row in rows
        if row["arch"] in args.archs
        and any(part in row["kernel"] for part in args.kernels)
        and any(_within(case, args.models, args.elements) for case in row["for"])
    ]
    done = sample(chosen) if args.sample else chosen
    fill(done, launches, args.workers)
    if args.rows:
        args.rows.write_text("".join(json.dumps(row) + "\n" for row in [stamp(), *rows]))
    found = [f"{label(row)}: {problem}" for row in done for problem in problems(row)]
    print(summary(done), *found, sep="\n")
    if args.write:
        if len(done) < len(rows) or any("error" in row for row in rows):
            raise SystemExit("the table was not written: it is of everything, and all must compile")
        write_table(rows)
    return 1 if found else 0


def record() -> tuple[dict[str, Any], list[Row]]:
    """The launches of PLAN by their identity, and a row for each, which lacks the resources."""
    import torch

    from tessera_fast.spec import released
    from triton_network import NetworkLaunches

    launches: dict[str, Any] = {}
    cases: dict[str, set[str]] = defaultdict(set)
    for element, (models, archs) in PLAN.items():
        for model in models:
            network = NetworkLaunches(released(model), element)
            for arch in archs:
                found = network.of(arch)
                if model == models[0]:
                    found += network.of(arch, bands=(torch.float32, torch.float32))
                for launch in found:
                    launches[launch.identity] = launch
                    cases[launch.identity].add(f"{model}/{element}")
    rows: list[Row] = [
        {
            "kernel": launch.name,
            "arch": launch.arch,
            "for": sorted(cases[identity]),
            "launch": identity,
            "constants": launch.constants(),
        }
        for identity, launch in launches.items()
    ]
    return launches, sorted(rows, key=lambda row: [*row.values()])


def _within(case: str, models: Sequence[str], elements: Sequence[str]) -> bool:
    model, element = case.split("/")
    return model in models and element in elements


def sample(rows: Iterable[Row]) -> list[Row]:
    """Rows in which every kernel meets each of its targets and each of its elements."""
    seen: set[tuple[str, Any]] = set()
    chosen = []
    for row in sorted(rows, key=lambda row: row["launch"]):  # a digest: no model is first
        traits = {(row["kernel"], case.split("/")[1]) for case in row["for"]}
        traits.add((row["kernel"], row["arch"]))
        if not traits <= seen:
            seen |= traits
            chosen.append(row)
    return chosen


def fill(rows: Sequence[Row], launches: dict[str, Any], workers: int) -> None:
    """Compile, and put the resources into the rows, or ``error`` where there are none."""
    from triton_aot import compiled

    started = time.perf_counter()
    results = compiled([launches[row["launch"]] for row in rows], workers)
    for i, (row, result) in enumerate(zip(rows, results, strict=True), start=1):
        error = isinstance(result, BaseException)
        row |= {"error": f"{type(result).__name__}: {result}"} if error else result
        seconds = time.perf_counter() - started
        note = "; ".join(problems(row)) or f"{row['registers']} registers"
        print(f"{i}/{len(rows)} {seconds:4.0f} s  {label(row)}: {note}", file=sys.stderr)


def problems(row: Row) -> list[str]:
    """Why a kernel is not right as it is; nothing if it is."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    found = []
    allowed, _ = accepted(row)
    if row["spilled"] > allowed:
        found.append(f"spills {row['spilled']} bytes of registers, {allowed} are accepted")
    if row["stack"] and not row["spilled"]:
        found.append(f"keeps {row['stack']} bytes of arrays in local memory")
    limit = SHARED_LIMIT[row["arch"]]
    if row["shared"] > limit:
        found.append(f"asks for {row['shared']:,} bytes of shared memory, a block has {limit:,}")
    if row["tensor_memory"] > TENSOR_MEMORY_LIMIT:
        found.append(
            f"asks for {row['tensor_memory']} columns of tensor memory, there are "
            f"{TENSOR_MEMORY_LIMIT}"
        )
    if row["scratch"]:
        found.append(f"asks for {row['scratch']} bytes of device memory, which nobody gives it")
    return found


def accepted(row: Row) -> tuple[int, str]:
    """Bytes that a kernel may spill, and the reason."""
    for (kernel, constants, archs), allowance in ACCEPTED.items():
        has = set(constants.split()) <= set(row["constants"].split())
        if kernel == row["kernel"] and row["arch"] in archs and has:
            return allowance
    return 0, ""


def label(row: Row) -> str:
    """A row on one line, for people."""
    return f"sm_{row['arch']} {row['kernel']} [{' '.join(row['for'])}] {row['constants']}"


def stamp() -> Row:
    """What the table is made from: Triton's version and the code of the kernels."""
    import triton

    return {"triton": triton.__version__, "sources": sources_digest()}


def sources_digest(folder: Path = KERNELS) -> str:
    """Of the code of the kernels and their launchers; comments, docstrings, blank lines do not
    count."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(f"{path.name}\n{code_of(path.read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()[:16]


def code_of(text: str) -> str:
    """The lines of a Python source that are neither blank, nor a comment, nor a docstring."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            prose |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return "\n".join(
        line
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in prose and line.strip() and not line.lstrip().startswith("#")
    )


def read_table(path: Path = TABLE) -> tuple[Row, list[Row]]:
    """(what it was made from, rows)."""
    first, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return first, rows


def write_table(rows: list[Row]) -> None:
    lines = [stamp()]
    for row in rows:
        reason = accepted(row)[1]
        kept = {key: value for key, value in row.items() if key not in UNSTEADY}
        lines.append(kept | {"reason": reason} if row["spilled"] and reason else kept)
    dense = (json.dumps(line, separators=(",", ":")) for line in lines)
    TABLE.write_text("".join(f"{line}\n" for line in dense))
    SUMMARY.write_text(f"{SUMMARY_HEAD}{summary(rows)}\n")


def summary(rows: Iterable[Row]) -> str:
    """A Markdown table, a line per kernel and target."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if "registers" in row:
            groups[row["kernel"], row["arch"]].append(row)
    lines = [
        "| kernel | target | binaries | warps | registers | spills: binaries, most bytes "
        "| shared, KiB: most, limit | products |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kernel, arch), group in sorted(groups.items()):
        spilled = [row["spilled"] for row in group if row["spilled"]]
        lines.append(
            f"| {kernel} | sm_{arch} | {len(group)} | {_range(group, 'warps')} "
            f"| {_range(group, 'registers')} | {len(spilled)}, {max(spilled, default=0)} "
            f"| {max(row['shared'] for row in group) / KIB:.0f}, {SHARED_LIMIT[arch] // KIB} "
            f"| {', '.join(sorted({row['product'] for row in group if row['product']}))} |"
        )
    return "\n".join(lines)


def _range(rows: list[Row], key: str) -> str:
    low, high = min(row[key] for row in rows), max(row[key] for row in rows)
    return str(low) if low == high else f"{low}..{high}"


if __name__ == "__main__":
    sys.exit(main())
