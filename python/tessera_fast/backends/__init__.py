"""The engines behind one seam (base.py). Peers do not import each other."""

import importlib
import logging

from ..errors import BackendUnavailable
from ..spec import ModelSpec
from ..untrusted.suggest import one_of
from ..weights import Weights
from .base import Backend, Encoder, RunOptions

BEST_FIRST = ("cuda", "tensorrt", "cpu", "reference")
# tensorrt is not known to be the best choice anywhere yet, and the reference is slow on purpose:
# they run when they are named
AUTOMATIC = ("cuda", "cpu")
# every name that some back end knows; which of them it runs is its own to say
PRECISIONS = ("auto", "fp32", "bf16", "int8", "fp16", "tf32", "fp8", "fp64")
DEVICES, _OF_TESTS = ("auto", "cpu", "cuda"), ("interpreter", "onnxruntime")

_log = logging.getLogger("tessera_fast")


def get(name: str) -> Backend:
    """The back end ``name``; InputError lists the names there are."""
    one_of("backend", name, ("auto", *BEST_FIRST))
    backend: Backend = getattr(importlib.import_module(f".{name}", __name__), name)
    return backend


def load(name: str, spec: ModelSpec, weights: Weights, options: RunOptions) -> tuple[str, Encoder]:
    """Load a model on the named back end, or on the first automatic one that can ("auto").

    Raises InputError for a name that does not exist, else BackendUnavailable with every reason; a
    back end asked for by name runs or raises.
    """
    one_of("backend", name, ("auto", *BEST_FIRST))
    one_of("precision", options.precision, PRECISIONS)
    kind = (options.device or "auto").partition(":")[0]
    if kind not in _OF_TESTS:
        one_of("device", kind, DEVICES)
    if name != "auto":
        return name, get(name).load(spec, weights, options)
    reasons = []
    for candidate in AUTOMATIC:
        reason = get(candidate).why_not(spec, options)
        if reason is None:
            return candidate, get(candidate).load(spec, weights, options)
        _log.info("back end %s passed over: %s", candidate, reason)
        reasons.append(f"{candidate}: {reason}")
    raise BackendUnavailable("no back end can run this: " + "; ".join(reasons))
