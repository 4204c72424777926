"""The formats of files that `test_fuzz.py` damages: how a mutant is made and how it is read.

Each function takes a scratch folder and returns (make_mutant, read) for `fuzz.run`.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fuzz
from products_outputs import LEFT, X0, Y0, lonlat, rectangle, store
from tessera_fast.errors import TesseraError
from tessera_fast.planning.rows import Failure, PlanRow
from tessera_fast.planning.table import Plan
from tessera_fast.probing.config import read_config as read_probe
from tessera_fast.products.basis import basis_of, load_basis, save_basis
from tessera_fast.products.parts import parts
from tessera_fast.products.target import of_polygon
from tessera_fast.store.reader import open_embeddings
from tessera_fast.tile import open_tile
from tessera_fast.tile.georeference import read_roi
from tessera_fast.tile.geotiff import plain, write_plain
from tile_sources import H, W, arrays, save, save_dates, stacked, write_zarr
from train_configs import writer

Format = tuple[Callable[[random.Random], Any], Callable[[Any], Any]]
UTM = ("EPSG:32631", (10.0, 0.0, 5e5, 0.0, -10.0, 5.6e6))
PLAN_ROW = PlanRow(
    "a_2024",
    "/tiles/a_2024",
    2024,
    *UTM,
    500,
    400,
    70,
    30,
    31,
    200_000,
    6_000_000,
    11_000_000,
    1.25e12,
    365_000_000,
    50_000_000,
    "ab12",
    1234.5,
)


def use(tile: Any) -> None:
    """All that a job does with a tile before it computes."""
    for place in ("crs", "transform"):
        try:
            getattr(tile, place)
        except TesseraError as error:
            str(error).encode()
    tile.fingerprint()
    tile.rows(0, 1)


def _damaged_in(folder: Path, whole: Path, use_it: Callable[[Path], Any]) -> Callable[[Any], Any]:
    """Reads a mutant {relative path: bytes} as ``folder`` with these files in place of its own."""
    shutil.copytree(whole, folder)

    def read(mutant: dict[str, bytes]) -> None:
        try:
            for name, data in mutant.items():
                (folder / name).write_bytes(data)
            use_it(folder)
        finally:
            for name in mutant:
                shutil.copyfile(whole / name, folder / name)

    return read


def npy(scratch: Path) -> Format:
    """The arrays of a folder in the official layout, in C and Fortran order."""
    data = arrays()
    data["sar_descending"] = np.asfortranarray(data["sar_descending"])
    whole = save(scratch / "whole_2024", data)
    save_dates(whole, data)
    (whole / "roi.tiff").write_bytes(write_plain(plain((H, W), *UTM)))
    files = {path.name: path.read_bytes() for path in whole.glob("*.npy")}

    def make(rng: random.Random) -> dict[str, bytes]:
        name = rng.choice(sorted(files))
        return {name: fuzz.mutate_bytes(rng, files[name], head=rng.choice((0, 128)))}

    def both(folder: Path) -> None:
        use(open_tile(folder))
        use(open_tile(folder, period=2024))

    return make, _damaged_in(scratch / "tile_2024", whole, both)


def roi_tiff(scratch: Path) -> Format:
    """roi.tiff: ours, and what rasterio writes in other CRS and forms."""
    rasterio = pytest.importorskip("rasterio")
    found = [write_plain(plain((H, W), *UTM))]
    for crs, transform, options in (
        ("EPSG:32631", rasterio.Affine(*UTM[1]), {"compress": "deflate", "tiled": True}),
        ("EPSG:3035", rasterio.Affine(10, 1, 100, 1, -10, 200), {"BIGTIFF": "YES"}),
        ("+proj=laea +lat_0=10", rasterio.Affine(10, 0, 1, 0, -10, 2), {"ENDIANNESS": "BIG"}),
    ):
        path = scratch / "roi.tiff"
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=H,
            width=W,
            count=1,
            dtype="uint8",
            crs=crs,
            transform=transform,
            **options,
        ) as file:
            file.write(np.ones((H, W), np.uint8), 1)
        found.append(path.read_bytes())

    def make(rng: random.Random) -> tuple[bool, bytes]:
        return rng.random() < 0.3, fuzz.mutate_bytes(rng, rng.choice(found), head=700)

    def read(mutant: tuple[bool, bytes]) -> None:
        remote, data = mutant
        path = scratch / "damaged.tiff"
        path.write_bytes(data)
        read_roi(path, (H, W), data=data if remote else None)

    return make, read


def _cube(scratch: Path, version: int, consolidated: bool) -> Format:
    pytest.importorskip("zarr")
    whole = scratch / "whole.zarr"
    dataset = stacked(arrays())
    step = 10.0 * np.arange(W)
    dataset = dataset.assign_coords(x=5e5 + step, y=5.6e6 - 10.0 * np.arange(H))
    dataset = dataset.assign_coords(spatial_ref=((), 0, {"crs_wkt": "EPSG:32631"}))
    dates = np.datetime64("2024-01-01", "ns") + (arrays()["doys"] - 1).astype("m8[D]")
    dataset = dataset.drop_vars("doys").assign_coords(time=dates)
    write_zarr(dataset, whole, zarr_format=version, consolidated=consolidated)
    files = {
        str(path.relative_to(whole)): path.read_bytes()
        for path in whole.rglob("*")
        if path.is_file()
    }
    texts = sorted(name for name, data in files.items() if data[:1] == b"{")

    def make(rng: random.Random) -> dict[str, bytes]:
        if rng.random() < 0.1:  # a chunk
            name = rng.choice(sorted(files))
            return {name: fuzz.mutate_bytes(rng, files[name])}
        name = rng.choice(texts)
        return {name: fuzz.mutate_json(rng, files[name])}

    return make, _damaged_in(scratch / "cube.zarr", whole, lambda path: use(open_tile(path)))


def zarr_v3(scratch: Path) -> Format:
    return _cube(scratch, 3, False)


def zarr_v2(scratch: Path) -> Format:
    return _cube(scratch, 2, False)


def zarr_consolidated(scratch: Path) -> Format:
    return _cube(scratch, 3, True)


def plan_file(scratch: Path) -> Format:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    other = PlanRow("b", "s3://b", None, None, None, 5, 4, 7, 3, 0, 20, 8, 5, 1e6, 9, 5, "cd")
    options = {"model": "v2-nano", "workers": 4, "dims": None, "open": {"year": None}}
    path = scratch / "plan.parquet"
    Plan([PLAN_ROW, other], [Failure("c", "no")], options, (1, 2), None, 84).save(path)
    data, table = path.read_bytes(), pyarrow.parquet.read_table(path)
    head = table.schema.metadata[b"tessera_fast.plan"]

    def make(rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.3:
            return fuzz.mutate_bytes(rng, data)
        changed = table
        if kind < 0.6:
            about = {b"tessera_fast.plan": fuzz.mutate_json(rng, head)}
            changed = table.replace_schema_metadata(about)
        else:
            records = json.loads(fuzz.mutate_json(rng, json.dumps(table.to_pylist()).encode()))
            changed = pyarrow.Table.from_pylist(records).replace_schema_metadata(
                table.schema.metadata
            )
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(changed, sink)
        return sink.getvalue().to_pybytes()

    def retried(rng: random.Random) -> bytes:
        while True:  # not every value can be put into a table
            try:
                return make(rng)
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
                RecursionError,
                OverflowError,
                NotImplementedError,
                pyarrow.ArrowException,
            ):
                continue

    def read(mutant: bytes) -> None:
        path.write_bytes(mutant)
        plan = Plan.load(path)
        plan.summary().encode()
        plan.shard(0, 2)

    return retried, read


def polygon(scratch: Path) -> Format:
    """A GeoJSON polygon, in the CRS of a store and in degrees, and a basis of its colours."""
    pytest.importorskip("zarr")
    path, _ = store(scratch / "x.zarr", LEFT)
    output = open_embeddings(path)
    square = rectangle(X0, Y0 - 300, X0 + 300, Y0)
    feature = {"type": "Feature", "geometry": lonlat(square), "properties": {}}
    found = [json.dumps(square).encode()]
    found.append(json.dumps({"type": "FeatureCollection", "features": [feature] * 2}).encode())
    save_basis(basis_of(output, parts(output)), output, scratch / "basis.json", False)
    basis = (scratch / "basis.json").read_bytes()

    def make(rng: random.Random) -> tuple[bool, bytes]:
        of_colours = rng.random() < 0.3
        return of_colours, fuzz.mutate_json(rng, basis if of_colours else rng.choice(found))

    def read(mutant: tuple[bool, bytes]) -> None:
        file = scratch / "damaged.json"
        file.write_bytes(mutant[1])
        if mutant[0]:
            load_basis(file, output)
        else:
            of_polygon(file, output.layers, None, None)

    return make, read


def config(scratch: Path) -> Format:
    """TOML files of a training run and of a probe."""
    pytest.importorskip("torch")
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    from tessera_fast.training.config import TwinsPart, read_config

    found = {
        "train.toml": writer(scratch, scratch)().read_bytes(),
        "probe.toml": b'embeddings = "x.zarr"\nlabels = "y.npy"\ntiles = ["a", "b"]\nseeds = 3\n',
    }

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(sorted(found))
        return name, fuzz.mutate_bytes(rng, found[name])

    def read(mutant: tuple[str, bytes]) -> None:
        name, data = mutant
        (scratch / name).write_bytes(data)
        if name == "train.toml":
            read_config(scratch / name, TwinsPart)
        else:
            read_probe(scratch / name)

    return make, read


def manifest(scratch: Path) -> Format:
    """The manifest of an exported model, as engines and a model repository read it."""
    pytest.importorskip("onnx")
    import tessera_fast as tf
    from tessera_fast.exports import folder, repository

    tf.export("v2-nano", scratch / "onnx", weights="untrained")
    path = scratch / "onnx" / folder.MANIFEST
    whole = json.loads(path.read_bytes())
    whole["engines"] = {"identity": {"package": "tensorrt"}, "targets": ["8.9"], "device": "a"}
    for part in whole["graphs"].values():
        part |= {"engine": part["file"], "engine_sha256": part["sha256"]}
    data = json.dumps(whole).encode()

    def read(mutant: bytes) -> None:
        path.write_bytes(mutant)
        folder.read_manifest(path.parent)
        out = scratch / "repository"
        shutil.rmtree(out, ignore_errors=True)
        repository.write_repository(path.parent, out)

    return lambda rng: fuzz.mutate_json(rng, data), read


FORMATS = {
    f.__name__: f
    for f in (
        npy,
        roi_tiff,
        zarr_v3,
        zarr_v2,
        zarr_consolidated,
        plan_file,
        polygon,
        config,
        manifest,
    )
}
