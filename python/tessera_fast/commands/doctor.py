"""`tessera-fast doctor`: what is installed, what works, and a self-test."""

import argparse
import shutil
import textwrap
from collections import Counter

from .common import FAILED, OK, Commands


def add(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="what is installed, what works, and a self-test")
    add_options(doctor)
    doctor.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="also check the file system that outputs are to be written to, and an output there",
    )


def run(args: argparse.Namespace) -> int:
    """Print every finding, and at the end what is optional and not here; FAILED if a check is."""
    from ..diagnostics import doctor

    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    counts: Counter[str] = Counter()
    absent: dict[str, dict[str, list[str]]] = {}  # heading -> what to do -> names
    for heading, check in doctor.groups(args.out).items():
        title = f"\n{heading}" if counts else heading
        for finding in check():
            counts[finding.state] += 1
            if finding.state == doctor.ABSENT:
                names = absent.setdefault(heading, {}).setdefault(finding.detail, [])
                names.append(finding.name)
                continue
            if title:
                print(title)
                title = ""
            _print(f"  {finding.state:7} {finding.name:16} ", finding.detail, width)
    if absent:
        print("\nnot here, which is no fault: what can be added, and how")
    for heading, parts in absent.items():
        print(f"  {heading}")
        for detail, names in parts.items():
            _print("    ", f"{', '.join(names)}: {detail}", width)
    passed, failed = counts[doctor.OK], counts[doctor.FAILED]
    print(f"\n{passed} checks passed, {failed} FAILED" if failed else f"\n{passed} checks passed")
    return FAILED if failed else OK


def _print(start: str, text: str, width: int) -> None:
    """``text`` after ``start``, in lines of at most ``width`` columns that begin below it."""
    indent = " " * max(len(start), 6)
    lines = textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )
    print("\n".join(lines), flush=True)
