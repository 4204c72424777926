"""docs/region_to_map.md as its reader follows it; commands, scripts and links of the pages."""

import argparse
import ast
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import tessera_fast as tf
from places import REPOSITORY
from tessera_fast.__main__ import _parser, main

ROOT = REPOSITORY
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("region_to_map.md", "clusters.md")}
LINKED = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def fences(page: str) -> list[tuple[str, str]]:
    """Language and text of every block of code, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def block(page: str, language: str) -> str:
    """The only block of a language."""
    (text,) = [text for kind, text in fences(page) if kind == language]
    return text


def commands(text: str) -> list[str]:
    """The lines that begin with tessera-fast, in a shell, a job script, a makefile or a pod."""
    lines = re.findall(
        r"^(?:\$ |\t|srun |\s*- exec )?(tessera-fast [a-z].*)$", text.replace("\\\n", " "), re.M
    )
    known = [re.sub(r"\$\w*COUNT", "16", line.split(" #")[0]) for line in lines]
    return [re.sub(r"\$\w+", "0", line) for line in known]


OF_PAGES = [(page, c) for page in PAGES for _, text in fences(page) for c in commands(text)]


def test_commands_are_found():
    """In every form that a page shows them in."""
    found = {page: [c for p, c in OF_PAGES if p == page] for page in PAGES}
    assert len(found["region_to_map.md"]) > 10
    for part in ("--shard 0/16 --memory", "--shard 0/16 --on-error", "--workers auto", "--ray 8"):
        assert any(part in command for command in found["clusters.md"]), part


@pytest.mark.parametrize(("page", "command"), OF_PAGES)
def test_commands_are_understood(page, command):
    _parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page):
    """Those that the text names as well."""
    (choices,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    known = {o for c in choices.choices.values() for a in c._actions for o in a.option_strings}
    text = re.sub(r"#SBATCH [^`\n]*", "", PAGES[page])
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert len(named) > 5
    assert named <= known


@pytest.mark.parametrize("page", PAGES)
def test_python_is_understood(page):
    """It parses, and what it calls of this package takes the arguments."""
    blocks = [text for kind, text in fences(page) if kind == "python"]
    assert blocks
    for node in (n for text in blocks for n in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tf."):
            taken = inspect.signature(getattr(tf, ast.unparse(node.func)[3:])).parameters
            assert {k.arg for k in node.keywords} <= taken.keys()


@pytest.fixture(scope="module")
def follower(tmp_path_factory, mini):
    """A folder in which everything of the region's page has been done, with a narrow model."""
    for package in ("zarr", "rasterio", "rioxarray", "pyarrow", "pyproj"):
        pytest.importorskip(package, reason=f"the page needs {package}")
    folder = tmp_path_factory.mktemp("follower")
    said: list[str] = []
    ring = [[3.0165, 50.821], [3.0305, 50.8205], [3.0320, 50.8120], [3.0165, 50.821]]
    (folder / "farm.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, text in fences("region_to_map.md"):
            if kind == "python" and "geotessera" not in text:
                exec(compile(text, "the page", "exec"), {"print": lambda s, *_: said.append(s)})
            for command in commands(text):
                if "doctor" in command or "cube.zarr" in command:  # no cube is made on the page
                    continue
                words = shlex.split(command.replace(" --weights untrained", ""))[1:]
                words = [str(mini) if word == "v2-small" else word for word in words]
                assert main(words) == 0, command
    return folder, said


def test_the_page_can_be_followed(follower):
    folder, said = follower
    made = {path.name for path in folder.iterdir()}
    assert {
        "plan.parquet",
        "region.zarr",
        "region.zarr.state",
        "region.png",
        "farm.tif",
        "like.tif",
        "check.zarr",
        "classes.tif",
    } <= made
    assert len(list(folder.glob("tiles/area_2024_*"))) == 4 == len(list(folder.glob("maps/*.tiff")))
    assert "grid_3.02_50.82_2024.tiff" in {path.name for path in folder.glob("maps/*")}
    # nothing looked wrong in the tiles, else its sentence came first
    assert said[0] == 32 and re.fullmatch(r"\d+% of 300 points", said[1])


def test_the_map_is_of_the_region(follower):
    """Where it is, and more right than its most frequent class would be."""
    import rasterio

    from tessera_fast.synthetic import synthetic_classes

    truth = synthetic_classes(160, 160, seed=7, year=2024)
    with rasterio.open(follower[0] / "classes.tif") as file:
        classes, crs, transform = file.read(1), file.crs.to_string(), tuple(file.transform)[:6]
    assert (crs, transform) == ("EPSG:32631", (10, 0, 501000, 0, -10, 5630000))
    seen = classes != 255
    assert 0 < (~seen).sum() < 10
    most = max((truth == c).mean() for c in range(11))
    assert (classes == truth)[seen].mean() > most + 0.1


def test_the_job_script_is_shell():
    bash = shutil.which("bash") or pytest.skip("bash is not here")
    done = subprocess.run(
        [bash, "-n"], input=block("clusters.md", "bash"), text=True, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_job_of_kubernetes_is_yaml():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load(block("clusters.md", "yaml"))["spec"]
    (container,) = job["template"]["spec"]["containers"]
    *shell, line = container["command"]
    assert shell == ["sh", "-c"]
    assert f"$JOB_COMPLETION_INDEX/{job['completions']}" in line
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    # a rule by exit codes asks for pods that are not restarted in place
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def anchors(path: Path) -> set[str]:
    """Of the headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert {page for page in pages - {"README.md"} if f"({page})" not in index} == set()
