"""`tessera-fast model-repository`: an export for Triton Inference Server."""

import argparse

from ..untrusted.readers import local_path, local_target
from .common import OK, Commands, positive


def add(commands: Commands) -> None:
    repository = commands.add_parser(
        "model-repository", help="an export as models of Triton Inference Server"
    )
    repository.add_argument("export", metavar="EXPORT", help="folder written by export")
    repository.add_argument("-o", "--out", required=True, metavar="DIR", help="new, or added to")
    repository.add_argument("--name", help="of the models (default: tessera-MODEL)")
    repository.add_argument("--version", type=positive, default=1, help="default 1")
    repository.add_argument("--max-batch", type=positive, default=256, help="pixels; default 256")
    repository.add_argument("--cpu", action="store_true", help="run on the server's processors")
    repository.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..exports.repository import write_repository

    export, out = local_path(args.export, "export"), local_target(args.out, "--out")
    write_repository(
        export, out, name=args.name, version=args.version, max_batch=args.max_batch, cpu=args.cpu
    )
    for folder in sorted(p.parent for p in out.glob("*/config.pbtxt")):
        versions = sorted(p.name for p in folder.iterdir() if p.is_dir())
        print(f"{folder}: version {', '.join(versions)}")
    return OK
