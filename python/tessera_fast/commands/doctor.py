"""`tessera-fast doctor`: what is installed, what works, and a self-test."""

import argparse
import textwrap
from collections import Counter

from .common import FAILED, OK, Commands


def add(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="what is installed, what works, and a self-test")
    add_options(doctor)
    doctor.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", help="also check the file system that outputs are to be written to"
    )


def run(args: argparse.Namespace) -> int:
    """Print every finding; FAILED if one of them is."""
    from .. import doctor

    states: Counter[str] = Counter()
    for heading, check in doctor.groups(args.out).items():
        print(f"\n{heading}" if states else heading, flush=True)
        for finding in check():
            states[finding.state] += 1
            start = f"  {finding.state:7} {finding.name:16} "
            lines = textwrap.wrap(finding.detail, 100 - len(start), break_on_hyphens=False)
            print(start + ("\n" + " " * len(start)).join(lines), flush=True)
    counts = [f"{states[s]} {s}" for s in (doctor.OK, doctor.ABSENT, doctor.FAILED)]
    print(f"\n{', '.join(counts)}")
    return FAILED if states[doctor.FAILED] else OK
