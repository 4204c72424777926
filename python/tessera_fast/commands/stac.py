"""`tessera-fast stac`: a store described for STAC catalogues."""

import argparse

from .common import OK, Commands


def add(commands: Commands) -> None:
    stac = commands.add_parser("stac", help="a STAC collection of a store, an item a zone and year")
    stac.add_argument("store", metavar="STORE", help="a .zarr store")
    stac.add_argument("-o", "--out", required=True, metavar="DIR", help="folder, made whole")
    stac.add_argument("--overwrite", action="store_true", help="replace what is there")
    stac.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..products.stac import stac_items

    collection = stac_items(args.store, args.out, overwrite=args.overwrite)
    items = len(list(collection.parent.glob("*.json"))) - 1
    print(f"{items} item{'s' * (items != 1)} -> {collection}")
    return OK
