"""Released checkpoints: official file names, where the Hugging Face hub has them, their digests.

The hub client (extra ``[hub]``) does the transfer and owns the cache, so its variables apply:
HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN. The bytes are pinned by sha256, so a cached file
needs no network at all.
"""

import importlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import WeightsError
from ..packages import why_not
from .checkpoint import digest

# Seconds without a byte more in the cache. The client writes blocks of 10 MB: 35 kB/s are enough.
STALL = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Release:
    """The official checkpoint of a released model. ``repo`` None: on the authors' drive only."""

    file: str  # name of the file, without a folder
    repo: str | None = None
    size: int | None = None  # bytes
    sha256: str | None = None

    @property
    def path_in_repo(self) -> str:
        return f"ckpt/{self.file}"


def _v2(letter: str, file: str, size: int, sha256: str) -> Release:
    return Release(file, f"geotessera/TESSERA-V-2.0-2B-{letter}", size, sha256)


RELEASES: dict[str, Release] = {
    "v2-nano": _v2(
        "N",
        "student_nano.pt",
        4_288_221,
        "bc9929e3643dfab2744c2ce14e7c14f698703a94e9562e4e0982f9d6540b0691",
    ),
    "v2-small": _v2(
        "S",
        "student_small.pt",
        28_488_531,
        "92619d4ffc2936895f145fdcf710140b58c23c860e02f01873828b10c6958d95",
    ),
    "v2-medium": _v2(
        "M",
        "student_medium.pt",
        84_163_403,
        "3823be7db9d9cfc93f3c2a47c7699be82821ab4e1117d4d2befdb746941ee96e",
    ),
    "v2-large": _v2(
        "L",
        "student_large.pt",
        175_363_923,
        "b5f20239dbb1849c01a3e407b095aafe39b0bf764300206af78cb9b85f9ec1e1",
    ),
    "v2-teacher": _v2(
        "Teacher",
        "tessera_v2_2B_teacher.pt",
        8_257_134_395,
        "bfca890a9956485edf9d6be61375fde4cd0b4cb4b47db79596f0523a289aa555",
    ),
    "v1.1-mpc": Release("tessera_v1_1_mpc_encoder.pt"),
    "v1.1-aws": Release("tessera_v1_1_aws_encoder.pt"),
    "v1.0-qat": Release("best_model_fsdp_20250608_220648_QAT.pt"),
    "v1.0": Release("best_model_fsdp_20250427_084307.pt"),
}


def verify(name: str, path: Path, sha256: str) -> None:
    """WeightsError unless ``sha256``, the digest of ``path``, is the released one of ``name``."""
    expected = RELEASES[name].sha256
    if expected is not None and sha256 != expected:
        raise WeightsError(
            f"{path}: not the released checkpoint of {name}: expected sha256 {expected}, got "
            f"{sha256}; delete the file and fetch it again (to use other weights of this shape, "
            f"pass their path as weights=)"
        )


def fetch(name: str) -> tuple[Path, str]:
    """Path of a released model's checkpoint in the hub's cache, downloaded if absent, and sha256.

    A file with other bytes than those released is fetched again, once. WeightsError if the model is
    not on the hub, its file is neither cached nor within reach, or the hub's bytes are wrong.
    """
    release = RELEASES[name]
    if release.repo is None:
        raise WeightsError(
            f"{name}: the weights are on the authors' drive only, linked from the README of "
            f"ucam-eo/tessera: download {release.file} and pass its path as weights=, or put it "
            f"into the folder TESSERA_FAST_WEIGHTS names"
        )
    expected = release.sha256
    with _advised(name) as client:
        cached = _hub_file(client, release, local_files_only=True)
    path = cached or _download(name)
    sha256 = digest(path)
    if sha256 != expected:
        warnings.warn(
            f"{path}: expected sha256 {expected}, got {sha256}: a damaged file in the hub's cache; "
            f"fetching it again",
            stacklevel=2,
        )
        path = _download(name, damaged=True)
        sha256 = digest(path)
    if sha256 != expected:
        raise WeightsError(
            f"{path}: not the released checkpoint of {name}: expected sha256 {expected}, got "
            f"{sha256}, also when it was fetched again: something between here and the hub changes "
            f"it (to use other weights of this shape, pass their path as weights=)"
        )
    return path, sha256


def download(name: str) -> Path:
    """Verified path of a released model's checkpoint in the hub's cache, downloaded if absent.

    ``name`` is a key of ``RELEASES``. The file is hashed on each call.
    """
    return fetch(name)[0]


def _download(name: str, damaged: bool = False) -> Path:
    """Fetch the file; ``damaged``: over the one in the cache.

    One request asks first whether the hub can be reached, because the client repeats those of a
    download for minutes.
    """
    where = "is damaged in the hub's cache" if damaged else "is not in the hub's cache"
    release = RELEASES[name]
    with _advised(name, where) as client:
        seconds = client.constants.HF_HUB_ETAG_TIMEOUT
        url = client.hf_hub_url(release.repo, release.path_in_repo)
        cache, repo = client.constants.HF_HUB_CACHE, str(release.repo).replace("/", "--")
        folder = Path(cache, f"models--{repo}")
        with _quiet(client):
            _bounded(lambda: client.get_hf_file_metadata(url, timeout=seconds), 3 * seconds)
            path = _bounded(
                lambda: _hub_file(client, release, force_download=damaged),
                STALL,
                lambda: _size(folder),
            )
    assert path is not None
    return path


def _hub_file(client: Any, release: Release, **options: bool) -> Path | None:
    """What the client's download gives; None if it may look into the cache alone, in vain."""
    try:
        return Path(client.hf_hub_download(release.repo, release.path_in_repo, **options))
    except client.errors.LocalEntryNotFoundError:
        if options.get("local_files_only"):
            return None
        raise


@contextmanager
def _advised(name: str, where: str = "is not in the hub's cache") -> Iterator[Any]:
    """The client; what it raises becomes one WeightsError that says what to do."""
    try:
        client = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        advice = _advice(name, f"downloading it needs {why_not('huggingface_hub', error)}", where)
        raise WeightsError(advice) from error
    # the base error of its HTTP library, which has been requests, httpx and httpx2
    http_error = cast("type[Exception]", errors.HfHubHTTPError.__mro__[1])
    try:
        yield client
    except WeightsError:
        raise
    except (OSError, RuntimeError, ValueError, http_error) as error:  # RuntimeError: hf_xet's
        first_line = str(error).split("\n", 1)[0].rstrip(".") or type(error).__name__
        raise WeightsError(_advice(name, f"the hub client says: {first_line}", where)) from error


@contextmanager
def _quiet(client: Any) -> Iterator[None]:
    """The client's warnings of each new attempt are left out: one error tells the end of them."""
    level = client.logging.get_verbosity()
    client.logging.set_verbosity_error()
    try:
        yield
    finally:
        client.logging.set_verbosity(level)


def _bounded(task: Callable[[], T], seconds: float, progress: Callable[[], int] = int) -> T:
    """The result of ``task``; TimeoutError if ``progress`` stands still for so many seconds.

    It runs in a thread, which nothing can end: it is left behind, until the client gives up.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(task())
        except BaseException as error:  # raised again by the caller
            failed.append(error)

    thread = threading.Thread(target=run, name="tessera_fast hub", daemon=True)
    thread.start()
    seen, since = progress(), time.monotonic()
    while thread.is_alive():
        thread.join(min(0.5, seconds))
        now = progress()
        if now != seen:
            seen, since = now, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > seconds:
            raise TimeoutError(f"no answer from the hub for {seconds:g} s")
    if failed:
        raise failed[0]
    return done[0]


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, some of which may just be going."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def source(name: str, path: Path) -> str:
    """``hub:<repo>/<file>@<revision>``; the cache keeps files under snapshots/<revision>/ckpt."""
    release = RELEASES[name]
    return f"hub:{release.repo}/{release.path_in_repo}@{path.parent.parent.name}"


def _advice(name: str, reason: str, where: str = "is not in the hub's cache") -> str:
    release = RELEASES[name]
    return (
        f"{name}: {release.path_in_repo} of {release.repo} {where} and was not "
        f"downloaded; {reason}. On a machine without network, copy {release.file} "
        f"({release.size:,} bytes, sha256 {release.sha256}) into a folder and set "
        f"TESSERA_FAST_WEIGHTS to that folder, or pass the file's path as weights="
    )
