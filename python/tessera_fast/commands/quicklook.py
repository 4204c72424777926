"""`tessera-fast quicklook`: an output in false colours."""

import argparse

from .common import OK, Commands, positive


def add(commands: Commands) -> None:
    quicklook = commands.add_parser(
        "quicklook",
        help="a store as a picture: principal components as colours",
        description="Draw the first three principal components of a store's embeddings, in one "
        "basis for all tiles.",
    )
    quicklook.add_argument(
        "store", metavar="STORE", help="a .zarr store, or a folder of .npy files"
    )
    quicklook.add_argument(
        "-o", "--out", metavar="FILE.png", help="tiles that touch are one panel; at most 12 panels"
    )
    quicklook.add_argument("--cog", metavar="FILE.tif", help="full size, with its place on the map")
    quicklook.add_argument("--year", type=int, help="only this one")
    quicklook.add_argument("--layer", metavar="ZONE/YEAR", help="only this one, e.g. utm31/2024")
    quicklook.add_argument("--tile", action="append", metavar="NAME", help="only it; repeatable")
    quicklook.add_argument("--basis", metavar="FILE.json", help="colours of another picture")
    quicklook.add_argument("--save-basis", metavar="FILE.json", help="for --basis")
    quicklook.add_argument("--size", type=positive, default=2000, help="of the PNG (default 2000)")
    quicklook.add_argument("--overwrite", action="store_true", help="replace what is there")
    quicklook.set_defaults(run=_run, usage=quicklook.error)


def _run(args: argparse.Namespace) -> int:
    from ..products.pictures import picture

    files = [args.out, args.cog, args.save_basis]
    if not any(files):
        args.usage("expected -o, --cog or --save-basis: there is nothing to write")
    picture(
        args.store,
        args.out,
        cog=args.cog,
        year=args.year,
        layer=args.layer,
        tiles=args.tile,
        basis=args.basis,
        save=args.save_basis,
        size=args.size,
        overwrite=args.overwrite,
    )
    for file in filter(None, files):
        print(f"-> {file}")
    return OK
