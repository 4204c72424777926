"""Pictures of a store: one basis everywhere, panels where tiles are, and captions that warn."""

import json
from dataclasses import replace

import numpy as np
import pytest

import tessera_fast as tf
from fake_tiles import PROVENANCE, X0, Y0, fake, tile, write
from pictures_read import read_png, yellow
from products_outputs import EAST, LATER, LEFT, RIGHT, full_disk, names, same, store
from tessera_fast.drawing.quicklook import pca_image
from tessera_fast.errors import InputError, StoreError
from tessera_fast.products.basis import load_basis
from tessera_fast.products.pictures import picture
from tessera_fast.store.reader import open_embeddings

pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return store(tmp_path_factory.mktemp("store") / "x.zarr", LEFT, RIGHT, LATER, EAST)


def on_paper(image):
    return np.where(image[..., 3:] > 0, image[..., :3], np.array((250, 250, 248), np.uint8))


def test_two_tiles_that_touch_are_one_panel_without_a_seam(tmp_path):
    path, values = store(tmp_path / "x.zarr", LEFT, RIGHT)
    basis = picture(path, tmp_path / "p.png")
    image = read_png(tmp_path / "p.png")
    expected = on_paper(pca_image(np.concatenate([values[LEFT], values[RIGHT]], axis=1), basis))
    zoom = image.shape[1] // 310
    assert zoom == 6 and image.shape[1] == 310 * zoom  # 2000 / 310, and height is no limit
    same(image[: 70 * zoom : zoom, ::zoom], expected)
    assert names(tmp_path) == ["p.png", "x.zarr", "x.zarr.state"]


def test_panels_in_one_scale(made, tmp_path):
    path, values = made
    basis = picture(path, tmp_path / "p.png", size=1000)
    image = read_png(tmp_path / "p.png")
    # Zone 31 in 2020 and 2021, zone 32: three panels of 310 x 70 in two columns, none enlarged.
    assert image.shape[1] == 2 * 310 + 4 and image.shape[0] <= 1000
    largest = np.concatenate([values[LEFT], values[RIGHT]], axis=1)
    same(image[:70, :310], on_paper(pca_image(largest, basis)))
    same(image[:70, 314 : 314 + 250], on_paper(pca_image(values[LATER], basis)))
    third = image[image.shape[0] // 2 :]
    same(third[:40, :50], on_paper(pca_image(values[EAST], basis)))


def test_a_large_tile_is_averaged(tmp_path):
    key = tile("a", 130, 400)
    path, values = store(tmp_path / "x.zarr", key)
    basis = picture(path, tmp_path / "p.png", size=100)
    image = read_png(tmp_path / "p.png")
    full = pca_image(values[key], basis)[:128].astype(np.float64)
    blocks = full.reshape(32, 4, 100, 4, 4)
    count = (blocks[..., 3] > 0).sum(axis=(1, 3))
    mean = blocks[..., :3].sum(axis=(1, 3)) / np.maximum(count, 1)[..., None]
    # 400 pixels in 100, by whole factors: a mean of 4 x 4, of those that are there
    assert image.shape[1] == 200  # wide enough for a caption
    same(image[:32, :100], np.rint(mean).astype(np.uint8))
    assert (count > 0).all() and (count < 16).any()


def test_captions_say_untrained(made, tmp_path):
    picture(made[0], tmp_path / "u.png", tiles=["right"])
    assert yellow(read_png(tmp_path / "u.png")).sum() > 1000
    write(tmp_path / "t.zarr", {RIGHT: fake(RIGHT)}, replace(PROVENANCE, trained=True))
    picture(tmp_path / "t.zarr", tmp_path / "t.png")
    assert not yellow(read_png(tmp_path / "t.png")).any()


def test_a_basis_is_kept_and_used_again(made, tmp_path):
    path, values = made
    first = picture(path, save=tmp_path / "basis.json", year=2020)
    again = picture(path, tmp_path / "p.png", basis=tmp_path / "basis.json", tiles=["east"])
    for name in ("mean", "components", "low", "high"):
        same(getattr(again, name), getattr(first, name))
    image = read_png(tmp_path / "p.png")
    zoom = image.shape[1] // 50
    same(image[: 40 * zoom : zoom, ::zoom], on_paper(pca_image(values[EAST], first)))
    record = json.loads((tmp_path / "basis.json").read_text())
    assert record["model"] == "v2-nano" and record["weights_sha256"] == "ab" * 32


def test_a_basis_of_other_weights_is_refused(made, tmp_path):
    picture(made[0], save=tmp_path / "b.json")
    output = open_embeddings(made[0])
    for change, message in (
        ({"weights_sha256": "cd" * 32}, "of weights_sha256 'cdcd.*cannot be compared"),
        ({"model": "v2-small"}, "of model 'v2-small'"),
        ({"mean": [0.0] * 23}, "a basis of 24 dimensions"),
        ({"low": "dark"}, "that quicklook --save-basis wrote"),
    ):
        record = {**json.loads((tmp_path / "b.json").read_text()), **change}
        (tmp_path / "changed.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match=message):
            load_basis(tmp_path / "changed.json", output)
    with pytest.raises(InputError, match="that quicklook --save-basis wrote"):
        load_basis(tmp_path / "nothing.json", output)


def test_far_tiles_are_drawn_side_by_side(tmp_path):
    far = tile("far", 30, 30, x0=X0 + 70_000, y0=Y0 - 7_000)
    path, values = store(tmp_path / "x.zarr", tile("near", 30, 30), far)
    basis = picture(path, tmp_path / "p.png", size=600)
    image = read_png(tmp_path / "p.png")
    assert max(image.shape) <= 600
    zoom = 8
    same(
        image[: 30 * zoom : zoom, : 30 * zoom : zoom],
        on_paper(pca_image(values[tile("near", 30, 30)], basis)),
    )
    second = image[: 30 * zoom : zoom, 30 * zoom + 4 :: zoom]
    same(second[:, :30], on_paper(pca_image(values[far], basis)))


def test_at_most_twelve_panels(tmp_path):
    keys = [tile(f"t{k}", 20, 20, x0=X0 + 1000 * k) for k in range(14)]
    path, _ = store(tmp_path / "x.zarr", *keys)
    picture(path, tmp_path / "p.png", size=2000)
    image = read_png(tmp_path / "p.png")
    zoom, width, gap = 8, 200, 4  # pixels enlarged, panels wide enough for a caption
    assert image.shape[1] == 4 * width + 3 * gap
    rows = image.reshape(3, -1, *image.shape[1:])
    drawn = [
        rows[r, : 20 * zoom, c * (width + gap) :][:, : 20 * zoom]
        for r in range(3)
        for c in range(4)
    ]
    assert all((panel != (250, 250, 248)).any() for panel in drawn)


def test_cog(made, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path, values = made
    basis = picture(path, cog=tmp_path / "c.tif", year=2020, layer="utm31/2020")
    with rasterio.open(tmp_path / "c.tif") as raster:
        image = np.moveaxis(raster.read(), 0, -1)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.crs.to_epsg() == 32631
        assert tuple(raster.transform)[:6] == (10.0, 0.0, X0, 0.0, -10.0, Y0)
        assert [c.name for c in raster.colorinterp] == ["red", "green", "blue", "alpha"]
        assert raster.tags()["TESSERA_UNTRAINED"] == "YES"
    same(image, pca_image(np.concatenate([values[LEFT], values[RIGHT]], axis=1), basis))


def test_wrong_arguments(made, tmp_path):
    path, _ = made
    cases = (
        (dict(), InputError, "a PNG, a COG or a basis"),
        (dict(out="p.png", size=10), InputError, "at least 100"),
        (dict(cog="c.tif"), InputError, "choose a layer or year"),
        (dict(out="p.png", layer="utm30/2020"), StoreError, "no layer 'utm30/2020'; it has utm31"),
        (dict(out="p.png", layer="utm32/2020", year=2021), InputError, "no tile is of year 2021"),
        (dict(out="p.png", year=1999), InputError, "no year 1999"),
    )
    for options, error, message in cases:
        given = {k: tmp_path / v if k in ("out", "cog") else v for k, v in options.items()}
        with pytest.raises(error, match=message):
            picture(path, **given)
    (tmp_path / "p.png").write_bytes(b"mine")
    with pytest.raises(StoreError, match="give overwrite"):
        picture(path, tmp_path / "p.png")
    assert names(tmp_path) == ["p.png"] and (tmp_path / "p.png").read_bytes() == b"mine"


def test_nothing_to_draw(tmp_path):
    empty = fake(RIGHT, empty=2.0)
    write(tmp_path / "x.zarr", {RIGHT: empty})
    with pytest.raises(InputError, match="no pixel has data"):
        picture(tmp_path / "x.zarr", tmp_path / "p.png")


@pytest.mark.parametrize("what", ["out", "cog", "save"])
def test_a_full_disk_leaves_nothing(made, tmp_path, what):
    options = {what: tmp_path / "x", "layer": "utm31/2020"}
    with full_disk(1000), pytest.raises(StoreError, match="could not be written"):
        picture(made[0], **options)
    assert not list(tmp_path.iterdir())


def test_command_line(made, tmp_path, run, capsys):
    pytest.importorskip("rasterio")
    path, _ = made
    done = run(
        "quicklook",
        path,
        "-o",
        tmp_path / "p.png",
        "--cog",
        tmp_path / "c.tif",
        "--layer",
        "utm32/2020",
        "--save-basis",
        tmp_path / "b.json",
    )
    assert done.code == 0 and names(tmp_path) == ["b.json", "c.tif", "p.png"]
    assert all(name in done.out for name in ("b.json", "c.tif", "p.png"))
    again = run(
        "quicklook",
        path,
        "-o",
        tmp_path / "q.png",
        "--basis",
        tmp_path / "b.json",
        "--layer",
        "utm32/2020",
        "--size",
        500,
    )
    assert again.code == 0
    with pytest.raises(SystemExit) as ended:
        run("quicklook", path)
    assert ended.value.code == 2 and "nothing to write" in capsys.readouterr().err


def test_the_module_of_pictures_is_still_there():
    import tessera_fast.drawing.quicklook as module

    assert module.quicklook and tf.quantize
