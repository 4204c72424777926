"""`tessera-fast mosaic`: one raster of a region from an output's tiles and zones."""

import argparse
import time

from .common import OK, Commands
from .export import bands


def add(commands: Commands) -> None:
    mosaic = commands.add_parser(
        "mosaic",
        help="one GeoTIFF of a region from a store",
        description="Write the embeddings of a region in one year as one GeoTIFF.",
    )
    mosaic.add_argument("store", metavar="STORE", help="a .zarr store, or a folder of .npy files")
    mosaic.add_argument("-o", "--out", required=True, metavar="FILE.tif")
    region = mosaic.add_mutually_exclusive_group(required=True)
    region.add_argument("--polygon", metavar="FILE.geojson", help="NaN outside of it")
    region.add_argument("--template", metavar="RASTER", help="take its CRS, transform and size")
    mosaic.add_argument("--year", type=int, help="needed if the store has more than one")
    mosaic.add_argument("--crs", help="with --polygon: e.g. EPSG:3035 (default: the store's zone)")
    mosaic.add_argument(
        "--resolution", type=float, help="with --polygon: in units of the CRS (default: 10 m)"
    )
    mosaic.add_argument("--bands", type=bands, metavar="LIST", help="dimensions, e.g. 0-15,20")
    mosaic.add_argument(
        "--quantized", action="store_true", help="int8 codes, and scales in FILE_scales.tif"
    )
    mosaic.add_argument(
        "--resampling",
        choices=("nearest", "bilinear"),
        default="nearest",
        help="where grids differ: take the nearest embedding (default), or blend neighbours",
    )
    mosaic.add_argument("--format", choices=("cog", "geotiff"), default="cog")
    mosaic.add_argument("--overwrite", action="store_true", help="replace what is there")
    mosaic.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..products.mosaics import mosaic

    started = time.perf_counter()
    path = mosaic(
        args.store,
        args.out,
        polygon=args.polygon,
        template=args.template,
        year=args.year,
        crs=args.crs,
        resolution=args.resolution,
        bands=args.bands,
        quantized=args.quantized,
        resampling=args.resampling,
        format=args.format,
        overwrite=args.overwrite,
    )
    seconds = time.perf_counter() - started
    print(f"{path.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s -> {path}")
    return OK
