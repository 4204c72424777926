"""Released checkpoints: official file names, where the Hugging Face hub has them, their digests.

The hub client (extra ``[hub]``) does the transfer and owns the cache, so its variables apply:
HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN. The bytes are pinned by sha256, so a cached file
needs no network at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ..errors import WeightsError
from ..packages import why_not
from .checkpoint import digest


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
        "N", "student_nano.pt", 4_288_221,
        "bc9929e3643dfab2744c2ce14e7c14f698703a94e9562e4e0982f9d6540b0691",
    ),
    "v2-small": _v2(
        "S", "student_small.pt", 28_488_531,
        "92619d4ffc2936895f145fdcf710140b58c23c860e02f01873828b10c6958d95",
    ),
    "v2-medium": _v2(
        "M", "student_medium.pt", 84_163_403,
        "3823be7db9d9cfc93f3c2a47c7699be82821ab4e1117d4d2befdb746941ee96e",
    ),
    "v2-large": _v2(
        "L", "student_large.pt", 175_363_923,
        "b5f20239dbb1849c01a3e407b095aafe39b0bf764300206af78cb9b85f9ec1e1",
    ),
    "v2-teacher": _v2(
        "Teacher", "tessera_v2_2B_teacher.pt", 8_257_134_395,
        "bfca890a9956485edf9d6be61375fde4cd0b4cb4b47db79596f0523a289aa555",
    ),
    "v1.1-mpc": Release("tessera_v1_1_mpc_encoder.pt"),
    "v1.1-aws": Release("tessera_v1_1_aws_encoder.pt"),
    "v1.0-qat": Release("best_model_fsdp_20250608_220648_QAT.pt"),
    "v1.0": Release("best_model_fsdp_20250427_084307.pt"),
}  # fmt: skip


def verify(name: str, path: Path, sha256: str) -> None:
    """WeightsError unless ``sha256``, the digest of ``path``, is the released one of ``name``."""
    expected = RELEASES[name].sha256
    if expected is not None and sha256 != expected:
        raise WeightsError(
            f"{path}: not the released checkpoint of {name}: expected sha256 {expected}, got "
            f"{sha256}; delete the file and fetch it again (to use other weights of this shape, "
            f"pass their path as weights=)"
        )


def locate(name: str) -> Path:
    """Path of the released file in the hub's cache, downloaded if absent; the bytes unverified.

    WeightsError if the model is not on the hub, or its file is neither cached nor within reach.
    """
    release = RELEASES[name]
    if release.repo is None:
        raise WeightsError(
            f"{name}: the weights are on the authors' drive only, linked from the README of "
            f"ucam-eo/tessera: download {release.file} and pass its path as weights=, or put it "
            f"into the folder TESSERA_FAST_WEIGHTS names"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        needed = why_not("huggingface_hub", error)
        raise WeightsError(_advice(name, f"downloading it needs {needed}")) from error
    # the base error of the client's HTTP library, which has been requests, httpx and httpx2
    http_error = cast("type[Exception]", HfHubHTTPError.__mro__[1])
    try:
        try:
            path = hf_hub_download(release.repo, release.path_in_repo, local_files_only=True)
        except LocalEntryNotFoundError:
            path = hf_hub_download(release.repo, release.path_in_repo)
    except (OSError, http_error) as error:
        first_line = str(error).split("\n", 1)[0].rstrip(".")
        raise WeightsError(_advice(name, f"the hub client says: {first_line}")) from error
    return Path(path)


def download(name: str) -> Path:
    """Verified path of a released model's checkpoint in the hub's cache, downloaded if absent.

    ``name`` is a key of ``RELEASES``. The file is hashed on each call; ``load_weights`` goes
    through :func:`locate` instead and so hashes it once.
    """
    path = locate(name)
    verify(name, path, digest(path))
    return path


def source(name: str, path: Path) -> str:
    """``hub:<repo>/<file>@<revision>``; the cache keeps files under snapshots/<revision>/ckpt."""
    release = RELEASES[name]
    return f"hub:{release.repo}/{release.path_in_repo}@{path.parent.parent.name}"


def _advice(name: str, reason: str) -> str:
    release = RELEASES[name]
    return (
        f"{name}: {release.path_in_repo} of {release.repo} is not in the hub's cache and was not "
        f"downloaded; {reason}. On a machine without network, copy {release.file} "
        f"({release.size:,} bytes, sha256 {release.sha256}) into a folder and set "
        f"TESSERA_FAST_WEIGHTS to that folder, or pass the file's path as weights="
    )
