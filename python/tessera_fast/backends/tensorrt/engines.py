"""Folders of engines: an ONNX export of the dense layout, and one engine for each of its graphs.

A folder is found again by its manifest: weights, model, form, TensorRT and what it was built for.
The cache holds such folders; TESSERA_FAST_ENGINES names another place, where folders made by
`tessera-fast export --format tensorrt` on another machine lie.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import env
from ...errors import BackendUnavailable, InputError
from ...exports import folder as exports
from ...exports.calibrate import ActivationRanges, synthetic_calibration
from ...exports.form import VERSION, Form
from ...spec import MAX_SEQUENCE, S1_BANDS, S2_BANDS, ModelSpec
from ...untrusted.readers import Unreadable, parse_json, read_bytes
from ...weights import Weights
from .adapter import Engine, Package, Profile, build

_log = logging.getLogger("tessera_fast")

# Slots of one batch, and pixels of the head's. 65,536 slots are 1,000 pixels of a usual series: two
# waves of 128-row tiles on an H100, twenty on an L4. The widest layer of v2-large takes 340 MB of
# hidden values for them.
BATCH_SLOTS = 1 << 16
HEAD_PIXELS = 1 << 14
# Lengths of sequences, multiples of 8, that share an optimisation profile: a kernel that suits one
# end of a group suits the other, and every profile takes room in the engine.
GROUPS = ((8, 32), (40, 64), (72, 128), (136, MAX_SEQUENCE))
_MOST_BYTES = 64 << 30  # of an engine


def group_of(length: int) -> int:
    """The profile of a sequence length. Shorter ones, of v1.0 and of tests, share the first."""
    return next(i for i, (_, longest) in enumerate(GROUPS) if length <= longest)


def batch_pixels(length: int) -> int:
    """Pixels of a batch of this sequence length."""
    return BATCH_SLOTS // GROUPS[group_of(length)][1]


def profiles(spec: ModelSpec, part: str) -> list[Profile]:
    """The optimisation profiles of a graph: one a group of lengths, or of any number of pixels."""
    if part == "head":
        shapes = ((1, spec.d_model), (HEAD_PIXELS, spec.d_model), (HEAD_PIXELS, spec.d_model))
        return [{"s2": shapes, "s1": shapes}]
    made = []
    bands = len(S2_BANDS if part == "s2_encoder" else S1_BANDS)
    for i, (_, longest) in enumerate(GROUPS):
        shortest = 1 if i == 0 else GROUPS[i - 1][1] + 1
        pixels = batch_pixels(longest)
        plain = ((1, shortest), (pixels, longest), (pixels, longest))
        wide = ((1, shortest, bands), (pixels, longest, bands), (pixels, longest, bands))
        profile: Profile = {"bands": wide, "doy": plain}
        made.append(profile if part == "s2_encoder" else {**profile, "orbit": plain})
    return made


def identity(weights: Weights, form: Form, package: Package, refittable: bool) -> dict[str, Any]:
    """What must be equal for an engine to be used again, beside what it was built for."""
    return {
        "weights": weights.sha256,
        "spec": weights.spec.to_json(),
        "form": asdict(form),
        "version": VERSION,
        "package": package.name,
        "tensorrt": package.version,
        "refittable": refittable,
    }


def write_engines(
    weights: Weights,
    form: Form,
    package: Package,
    folder: Path,
    *,
    targets: tuple[str, ...] = (),
    device: str = "",
    refittable: bool = False,
    calibration: ActivationRanges | None = None,
) -> None:
    """Write an ONNX export and its engines into an existing folder.

    ``targets``: compute capabilities (TensorRT-RTX); none: ``device``, the GPU that is there.
    Raises BackendUnavailable where TensorRT refuses.
    """
    if form.packed:
        raise InputError("engines are of the dense layout: TensorRT has no 16-bit integer inputs")
    if refittable and targets:  # TensorRT-RTX 1.7 asks CUDA for a device to build them
        raise InputError(
            "refittable: such engines are built on the GPU that runs them; give no targets, got "
            f"{', '.join(targets)}"
        )
    if form.precision == "fp8" and any(float(t) < 8.9 for t in targets):
        raise InputError(f"targets: fp8 needs compute capability 8.9, got {', '.join(targets)}")
    manifest = exports.write_onnx(weights, form, folder, calibration)
    for part, graph in manifest["graphs"].items():
        _log.info("TensorRT: building %s of %s", part, weights.spec.name)
        plan = build(
            package,
            folder / graph["file"],
            profiles(weights.spec, part),
            targets=targets,
            exact_fp32=form.precision == "fp32",
            refittable=refittable,
        )
        graph["engine"] = f"{part}.engine"
        (folder / graph["engine"]).write_bytes(plan)
        graph["engine_sha256"] = hashlib.sha256(plan).hexdigest()
    manifest["engines"] = {
        "identity": parse_json(json.dumps(identity(weights, form, package, refittable))),
        "targets": list(targets),
        "device": device,
    }
    exports.write_manifest(folder, manifest)


def engines(
    weights: Weights, form: Form, package: Package, capability: str, device: str
) -> tuple[dict[str, Engine], Path]:
    """The engines of a model on this GPU and their folder: found, refitted or built.

    ``capability`` "8.6", ``device`` its name. What is built in int8 or fp8 is calibrated on the
    synthetic tile.
    """
    for refit in (False, True):
        found = _find(weights, form, package, capability, device, refit)
        if found is not None:
            return _load(found, package, weights, form if refit else None), found
    wanted = json.dumps([identity(weights, form, package, False), device], sort_keys=True)
    key = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    folder = env.engine_cache() / f"{weights.spec.name}-{form.precision}-{key}"
    with exports.whole(folder, overwrite=folder.exists()) as made:
        calibration = synthetic_calibration(weights, form.precision) if form.quantized else None
        write_engines(weights, form, package, made, device=device, calibration=calibration)
    return _load(folder, package, weights, None), folder


def _find(
    weights: Weights, form: Form, package: Package, capability: str, device: str, refit: bool
) -> Path | None:
    """A folder whose engines are these; ``refit``: of other parameters, and refittable."""
    wanted = parse_json(json.dumps(identity(weights, form, package, refit)))
    for folder, manifest in _folders():
        made = manifest["engines"]
        there = dict(made["identity"])
        if refit:
            if form.quantized:  # the scales are not parameters that a refit replaces
                return None
            there["weights"] = wanted["weights"]
        elif not wanted["refittable"]:
            there["refittable"] = False  # with its own parameters it serves as well
        fits = capability in made["targets"] if made["targets"] else device == made["device"]
        if there == wanted and fits:
            return folder
    return None


def _folders() -> Iterator[tuple[Path, dict[str, Any]]]:
    for place in (env.engines_dir(), env.engine_cache()):
        if place is None or not place.is_dir():
            continue
        for path in sorted({*place.glob(exports.MANIFEST), *place.glob(f"*/{exports.MANIFEST}")}):
            try:
                manifest = exports.read_manifest(path.parent)
            except InputError as error:
                _log.warning("%s, so its engines are not used", error)
                continue
            if "engines" in manifest:
                yield path.parent, manifest


def _engine(path: Path) -> bytes:
    try:
        return read_bytes(path, _MOST_BYTES)
    except (OSError, Unreadable) as error:
        raise BackendUnavailable(
            f"{path}: expected an engine, got {error}; delete the folder"
        ) from error


def _load(
    folder: Path, package: Package, weights: Weights, refit: Form | None
) -> dict[str, Engine]:
    """Deserialise a folder's engines; ``refit`` gives them the parameters of ``weights``."""
    manifest = exports.read_manifest(folder)
    loaded = {}
    for part, graph in manifest["graphs"].items():
        plan = _engine(folder / graph["engine"])
        if hashlib.sha256(plan).hexdigest() != graph["engine_sha256"]:
            raise BackendUnavailable(
                f"{folder / graph['engine']}: its sha256 is not the manifest's; delete the folder"
            )
        loaded[part] = Engine(package, plan)
    if refit is not None and manifest["weights"]["sha256"] != weights.sha256:
        with exports.scratch() as onnx:
            described = exports.write_onnx(weights, refit, onnx)
            for part, graph in described["graphs"].items():
                loaded[part].refit(onnx / graph["file"])
    return loaded
