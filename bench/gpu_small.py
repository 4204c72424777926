"""A tiny tile of every kind of pixel through small models: right or not, in seconds.

    python bench/gpu_small.py --device cuda:0                      # judged against the reference
    compute-sanitizer python bench/gpu_small.py --few              # the same kernels, fewer models
    ncu --profile-from-start off python bench/gpu_small.py --profiled v2-nano

Every generation's packing rule, both poolings and both kinds of layer run. A model that is outside
its gate makes the exit status 1. The released models also leave their kernels in Triton's cache.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

import gpu_case
import tessera_fast as tf
from tessera_fast import backends
from tessera_fast.backends.base import Plan
from tessera_fast.model.model import Model
from tessera_fast.packing import Observations, pack
from tessera_fast.spec import ModelSpec, released, variant
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights import Weights, untrained_weights

SIZE = (3, 7)  # the top row has the synthetic tile's edge pixels
EVERY = 7  # of its dates
PROFILED_PIXELS = 4096

TINY = {"d_model": 48, "num_layers": 1, "ff_dim": 80, "out_dim": 24, "saved_dim": 16}
SPECS = (
    variant("v2-nano", name="v2-tiny", **TINY, matryoshka=()),
    variant("v1.1-mpc", name="v1.1-tiny", **TINY),
    variant("v1.0-qat", name="v1.0-qat-tiny", **TINY),
    variant("v2-nano", name="v2-tiny-qk-norm", **TINY, matryoshka=(), qk_norm=True),
    variant("v2-teacher", name="v2-tiny-teacher", **TINY),
)
RELEASED = ("v2-nano", "v2-small", "v2-medium", "v2-large", "v1.1-mpc", "v1.0-qat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--few", action="store_true", help="only the tiny models")
    parser.add_argument("--profiled", help="encode one batch of this model for a profiler, instead")
    args = parser.parse_args()
    plan = Plan(args.precision, None if args.backend == "cpu" else args.device)
    device = torch.device(args.device if args.device.startswith("cuda") else "cpu")
    if args.profiled:
        profiled(load(released(args.profiled), args.backend, plan), device)
        return
    wrong = []
    for label, model in models(args, plan):
        for form, verdict in judged(model, device):
            print(f"  {label:16} {form:8} {'equal' if verdict['equal'] else verdict['gate']}",
                  flush=True)  # fmt: skip
            wrong += [] if verdict["equal"] else [f"{label} {form}"]
    if wrong:
        raise SystemExit(f"outside the gate: {', '.join(wrong)}")


def models(args: argparse.Namespace, plan: Plan) -> Iterator[tuple[str, Model]]:
    """One after the other; first the whole network of nano as a CUDA kernel."""
    if args.backend == "cuda" and args.precision in ("bf16", "fp16"):
        os.environ["TESSERA_FAST_FUSED"] = "1"
        try:
            fused = load(released("v2-nano"), args.backend, plan)
        finally:
            del os.environ["TESSERA_FAST_FUSED"]
        yield "v2-nano fused", fused
    for spec in (*SPECS, *(() if args.few else map(released, RELEASED))):
        yield spec.name, load(spec, args.backend, plan)


def load(spec: ModelSpec, backend: str, plan: Plan) -> Model:
    drawn = untrained_weights(spec)
    weights = Weights(spec, dict(drawn.tensors), drawn.sha256, drawn.source)
    name, encoder = backends.load(backend, spec, weights, plan)
    return Model(weights, name, encoder, plan)


def thinned(observations: Observations) -> Observations:
    """Some of the dates, so that an instrumented or interpreted run takes seconds."""
    return replace(
        observations,
        s2_bands=observations.s2_bands[::EVERY],
        s2_masks=observations.s2_masks[::EVERY],
        s2_doys=observations.s2_doys[::EVERY],
        orbits=tuple(
            replace(o, bands=o.bands[::EVERY], doys=o.doys[::EVERY]) for o in observations.orbits
        ),
    )


def judged(model: Model, device: torch.device) -> Iterator[tuple[str, dict]]:
    """(form of output, verdict) of the function that users call."""
    observations = thinned(synthetic_tile(*SIZE).rows(0, SIZE[0]))
    arrays = {
        "bands": observations.s2_bands, "masks": observations.s2_masks,
        "doys": observations.s2_doys,
    }  # fmt: skip
    for orbit in observations.orbits:
        name = f"sar_{('ascending', 'descending')[orbit.index]}"
        arrays |= {name: orbit.bands, f"{name}_doy": orbit.doys}
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    s2, s1, _ = pack(observations, model.spec)
    expected = gpu_case.reference(model.spec, model.weights, s2, s1, device)
    seen = ~np.isnan(expected).any(-1)

    values = tf.embed(dict(arrays), model, progress=False).reshape(expected.shape)
    verdict = gpu_case.gate(values[seen], expected[seen], model.precision, ours=True)
    yield "float32", _with_holes(verdict, bool(np.isnan(values[~seen]).all()))
    result = tf.embed(dict(arrays), model, output="int8", progress=False)
    codes, scales = result.codes.reshape(expected.shape), result.scales.reshape(-1)
    verdict = gpu_case.gate_int8(
        codes[seen], scales[seen], expected[seen], model.spec, model.precision
    )
    empty = not codes[~seen].any() and bool(np.isposinf(scales[~seen]).all())
    yield "int8", _with_holes(verdict, empty)


def _with_holes(verdict: dict, right: bool) -> dict:
    return verdict if right else {"equal": False, "gate": "a pixel without a date is not no data"}


def profiled(model: Model, device: torch.device) -> None:
    """One encode between the marks that a profiler waits for, after one before them."""
    case = gpu_case.Case(model.spec, gpu_case.dates(model.spec, (50, 60)), PROFILED_PIXELS)
    tokens = case.packed(0, PROFILED_PIXELS, device)
    out = torch.full((PROFILED_PIXELS, model.spec.saved_dim), torch.nan, device=device)
    model.encoder.encode(*tokens, out)
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    model.encoder.encode(*tokens, out)
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
