"""A tiny job with a known answer, for `tessera-fast doctor`.

The window is drawn as integers and the parameters with numpy's frozen RandomState, so both are the
same on every machine. selftest.json holds what the reference back end makes of them in float64:
embeddings of every family of models, as float32, and a digest of the packed tokens.
`python -m tessera_fast.diagnostics.selftest` writes it anew, where the recipe has changed.
"""

import hashlib
import json
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np

from .. import backends, env
from ..backends.base import Encoder
from ..backends.base import RunOptions as Running
from ..errors import TesseraError
from ..model.model import Model
from ..packages import how_to_install, version
from ..packing import Observations, Orbit, PackedTokens, pack
from ..quantization import quantize
from ..spec import S1_BANDS, S2_BANDS, ModelSpec, variant
from ..store import Provenance, TileKey, open_output
from ..store.reader import open_embeddings
from ..tile import open_tile
from ..tile.fields import DAYS, ORBITS
from ..tile.georeference import read_roi
from ..weights import Weights, untrained_weights

ANSWERS = Path(__file__).with_name("selftest.json")
HEIGHT, WIDTH = 3, 4  # pixels of the window
_DATES, _PASSES = 24, 20

# When an engine has computed the stored answer: the gates of docs/correctness.md.
# fp32 adds in another order than the float64 answer: 3e-6 in these models, 9e-6 in the widest.
MAX_ERROR = 2e-5
# Least cosine to the answer, of all pixels in the mean and of any. Measured in these models:
# 0.99997 and 0.99995 with products of 16 bits, 0.9999 and 0.9997 with int8; fp8 has three bits of
# mantissa, and misses the gate of int8.
COSINES_16 = (0.9999, 0.9995)
COSINES = {"int8": (0.999, 0.998), "fp8": (0.995, 0.98)}


class WrongAnswer(TesseraError):
    """Something computes, and not what it should."""


class Absent(TesseraError):
    """What a check needs is not installed."""


def _tiny(base: str, d_model: int, num_layers: int, **changes: int) -> ModelSpec:
    sizes = {"ff_dim": 2 * d_model, "out_dim": 32, "saved_dim": 32, **changes}
    return variant(
        base,
        name=f"self-test {base}",
        d_model=d_model,
        num_layers=num_layers,
        num_heads=2,
        matryoshka=(16, 32) if base == "v2-nano" else (),
        **sizes,
    )


# One of each family: every op and rule of packing is in one of them.
MODELS = {
    "v2-nano": _tiny("v2-nano", 48, 2),
    "v2-teacher": _tiny("v2-teacher", 32, 2, fusion_layers=1),
    "v1.1-mpc": _tiny("v1.1-mpc", 48, 1, out_dim=48),
    "v1.0": _tiny("v1.0", 32, 2),
}


@cache
def weights(name: str) -> Weights:
    """Seeded parameters of a model of ``MODELS``."""
    return untrained_weights(MODELS[name])


@cache
def window() -> Observations:
    """3 x 4 pixels, of which one lacks Sentinel-2, one Sentinel-1 and one has nothing."""
    random = np.random.RandomState(20_240_229)
    shape = (HEIGHT, WIDTH)
    bands = random.randint(1, 8000, (_DATES, *shape, 10)).astype(np.uint16)
    masks = random.randint(0, 2, (_DATES, *shape)).astype(np.uint8)
    days = np.sort(random.choice(np.arange(1, 367), _DATES, replace=False)).astype(np.int32)
    orbits = []
    for index in (0, 1):
        radar = random.randint(1, 12_000, (_PASSES, *shape, 2)).astype(np.int16)
        radar[random.randint(0, 4, (_PASSES, *shape)) == 0] = 0  # not observed
        doys = np.sort(random.choice(np.arange(1, 367), _PASSES, replace=False)).astype(np.int32)
        orbits.append(Orbit(index, radar, doys))
    masks[:, 0, 1] = 0
    masks[:, 1, 1] = 0
    for orbit in orbits:
        orbit.bands[:, 0, 2] = 0
        orbit.bands[:, 1, 1] = 0
    bands[:, 1, 1] = 0
    return Observations(bands, masks, days, tuple(orbits))


def packed(name: str) -> tuple[PackedTokens, PackedTokens]:
    """The window's tokens for a model of ``MODELS``."""
    s2, s1, _ = pack(window(), MODELS[name], binary_masks=True, threads=1)
    return s2, s1


def digest(name: str) -> str:
    """Of every integer of a model's packed tokens."""
    found = hashlib.sha256()
    for tokens in packed(name):
        for array in (
            tokens.bands,
            tokens.doy,
            tokens.orbit,
            tokens.multiplicity,
            tokens.offsets,
            tokens.steps,
            tokens.step_offsets,
        ):
            if array is not None:
                found.update(np.ascontiguousarray(array.astype("<i8")).tobytes())
    return found.hexdigest()


@cache
def answers() -> dict[str, tuple[str, np.ndarray]]:
    """Model -> digest of its tokens, embeddings (P, E) float32, NaN where there is no data."""
    stored = json.loads(ANSWERS.read_text())
    return {
        name: (stored[name]["packed"], np.array(stored[name]["embeddings"], float).astype("f4"))
        for name in MODELS
    }


def judge(encoder: Encoder, name: str) -> None:
    """Raise WrongAnswer unless ``encoder`` computes the stored answer of a model."""
    expected = answers()[name][1]
    got = np.zeros_like(expected)
    encoder.encode(*packed(name), got)
    what = f"{name} in {encoder.precision}"
    data = ~np.isnan(expected).any(-1)
    if not (np.isfinite(got[data]).all() and np.isnan(got[~data]).all()):
        raise WrongAnswer(f"{what}: values where there is no data, or none where there is")
    a, b = got[data].astype(float), expected[data].astype(float)
    if encoder.precision in ("fp32", "fp64"):
        worst = float(np.abs(a - b).max())
        if worst > MAX_ERROR:
            raise WrongAnswer(f"{what}: off by {worst:.1e}, allowed {MAX_ERROR:.0e}")
        return
    cosine = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    mean, least = COSINES.get(encoder.precision, COSINES_16)
    if not (cosine.mean() >= mean and cosine.min() >= least):
        raise WrongAnswer(
            f"{what}: cosine to the known answer {cosine.mean():.5f}, of the worst pixel "
            f"{cosine.min():.5f}; expected {mean} and {least}"
        )


def _cpu_model(name: str, threads: int = 1) -> Model:
    running = Running("fp32", threads=threads)
    made = weights(name)
    return Model(made, *backends.load("cpu", made.spec, made, running), running)


def check_int8() -> str:
    """Codes and scales of native code and of numpy."""
    for name, (_, values) in answers().items():
        with _cpu_model(name) as model:
            native = model.quantize(values)
            floors = model.spec.absmax_floor, model.spec.scale_floor
        expected = quantize(values, absmax_floor=floors[0], scale_floor=floors[1])
        for ours, known in zip(native, expected, strict=True):
            if not np.array_equal(ours, known):
                raise WrongAnswer(f"{name}: native int8 codes or scales are not those of numpy")
    return "native and numpy codes are the same"


def check_threads() -> str:
    """The same bits with one thread and with several."""
    threads, results = max(env.threads(), 2), []
    for count in (1, threads):
        with _cpu_model("v1.1-mpc", count) as model:
            out = np.zeros_like(answers()["v1.1-mpc"][1])
            model.encode(window(), out)
            results.append(out.tobytes())
    if results[0] != results[1]:
        raise WrongAnswer(f"{threads} threads give other bits than one")
    return f"{threads} threads give the bits of one"


def check_xarray() -> str:
    """A Dataset with its bands in another order."""
    _need("xarray")
    import xarray

    given = window()
    variables: dict[str, object] = {
        "masks": (("time", "y", "x"), given.s2_masks),
        "doys": ("time", given.s2_doys),
        "bands": (("band", "time", "x", "y"), given.s2_bands.transpose(3, 0, 2, 1)[::-1]),
    }
    for orbit, name in zip(given.orbits, ORBITS, strict=True):
        variables[name] = ((name, "y", "x", "polarization"), orbit.bands)
        variables[DAYS[name]] = (name, orbit.doys)
    names = {"band": list(S2_BANDS[::-1]), "polarization": list(S1_BANDS)}
    read = open_tile(xarray.Dataset(variables, names)).rows(0, HEIGHT)
    if not np.array_equal(read.s2_bands, given.s2_bands):
        raise WrongAnswer("a Dataset's bands were not put in order")
    return "a Dataset is read by names"


def check_rasterio() -> str:
    """Georeferences of tiles."""
    _need("rasterio")
    import rasterio

    shape, transform = (HEIGHT, WIDTH), (10.0, 0.0, 5e5, 0.0, -10.0, 3e6)
    for crs in ("EPSG:32631", "EPSG:3035"):
        with tempfile.TemporaryDirectory(prefix="tessera_fast_") as folder:
            path = Path(folder) / "roi.tiff"
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                count=1,
                dtype="uint8",
                height=shape[0],
                width=shape[1],
                crs=crs,
                transform=rasterio.Affine(*transform),
            ) as file:
                file.write(np.ones(shape, np.uint8), 1)
            found = read_roi(path, shape)
        if (found.get_crs(), found.get_transform()) != (crs, transform):
            raise WrongAnswer(f"roi.tiff in {crs} was read as {found}")
    return "roi.tiff is read, in UTM and in another CRS"


def check_store() -> str:
    """A tile through a Zarr store in a temporary folder."""
    _need("zarr")
    values = answers()["v2-nano"][1].reshape(HEIGHT, WIDTH, -1)
    codes, scales = quantize(values)
    counts = np.where(np.isfinite(scales)[..., None], np.arange(3, 6), 0).astype(np.uint16)
    made = Provenance("self-test", "", "", False, "fp32", codes.shape[-1], "int8", (16,))
    place = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
    key = TileKey("self-test", HEIGHT, WIDTH, "", 2024, "EPSG:32631", place)
    with tempfile.TemporaryDirectory(prefix="tessera_fast_") as folder:
        path = Path(folder) / "self-test.zarr"
        with closing(open_output(path, [key], made)) as output:
            writer = output.begin(key)
            if writer is None:
                raise WrongAnswer("a tile of a new store counts as taken")
            writer.write_rows(0, codes, scales, counts)
            writer.commit()
        (layer,) = open_embeddings(path).layers
        rows, columns = slice(0, layer.height), slice(0, layer.width)
        read = (*layer.codes(rows, columns), layer.counts(rows, columns))
    for got, known in zip(read, (codes, scales, counts), strict=True):
        if got is None or not np.array_equal(got, known):
            raise WrongAnswer("a store gives back other values than were written")
    return "a tile is written and read back"


def _need(package: str) -> None:
    if version(package) is None:
        raise Absent(how_to_install(package))


def computed() -> str:
    """What selftest.json has to say, by the reference back end in float64 (needs PyTorch)."""
    from ..backends.reference import reference

    found = {}
    for name, spec in MODELS.items():
        out = np.empty((HEIGHT * WIDTH, spec.saved_dim), np.float64)
        encoder = reference.load(spec, weights(name), Running("fp64", threads=1))
        encoder.encode(*packed(name), out)
        rows = [[None if np.isnan(x) else float(f"{x:.7g}") for x in row] for row in out]
        found[name] = {"packed": digest(name), "embeddings": rows}
    rows_apart = json.dumps(found).replace("], [", "],\n[").replace("{", "{\n").replace("}", "\n}")
    return rows_apart + "\n"


if __name__ == "__main__":
    ANSWERS.write_text(computed())
