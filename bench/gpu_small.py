"""A small tile of every kind of pixel through models: right or wrong, in seconds.

    python bench/gpu_small.py v2-nano=triton:bf16 v2-nano=fused:bf16      # against the reference
    compute-sanitizer python bench/gpu_small.py --few v2-tiny=triton:bf16
    ncu --profile-from-start off python bench/gpu_small.py --profiled v2-nano=triton:bf16

The function that users call packs, encodes and quantises; its float32 and int8 embeddings are held
to the gates of tests/helpers/oracle.py. A contender outside its gate makes the exit status 1.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu_case
import gpu_rows
import tessera_fast as tf
from gpu_case import Ours
from gpu_peaks import machine
from gpu_plan import spec_of
from tessera_fast.model.model import Model
from tessera_fast.packing import Observations, PackedTokens, pack
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights import Weights, untrained_weights

SIZE, FEW = (6, 11), (3, 7)  # the top row has the synthetic tile's edge pixels
EVERY = 7  # of the dates with --few
PROFILED_PIXELS = 4096


def main() -> None:
    args = arguments(__doc__).parse_args()
    device = gpu_case.torch_device(args.device)
    compiled, common = gpu_case.misses(), machine(device, args.commit)
    wrong = []
    for model, ours in cases(args.cases):
        weights = weights_of(model)
        loaded = ours.load(weights, args.device)
        if args.profiled:
            profiled(loaded, device)
            continue
        judge = torch.device(args.reference_device or device)
        tile = Tile.small(weights, args.few, judge)
        for form, verdict in tile.judged(loaded):
            gpu_rows.append(
                args.rows,
                {
                    "bench": "gpu_small",
                    "model": model,
                    "contender": ours.label,
                    "form": form,
                    **common,
                    **verdict,
                    "compiled": list(compiled),
                },
            )
            print(line(model, ours.label, form, verdict), flush=True)
            wrong += [] if verdict["equal"] else [f"{model} {ours.label} {form}"]
    if wrong:
        raise SystemExit(f"outside the gate: {', '.join(wrong)}")


def arguments(text: str | None) -> argparse.ArgumentParser:
    """What this script and gpu_ops.py are asked."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument("cases", nargs="+", help="model=engine:precision, v2-nano=triton:bf16")
    parser.add_argument("--device", default="cuda:0", help="or interpreter, or cpu")
    parser.add_argument("--reference-device", help="where the reference runs (default: there too)")
    parser.add_argument("--few", action="store_true", help="few pixels with few dates")
    parser.add_argument("--profiled", action="store_true", help="one batch for a profiler, instead")
    parser.add_argument("--commit")
    parser.add_argument("--rows", type=Path, help="file that rows are added to")
    return parser


def cases(texts: list[str]) -> Iterator[tuple[str, Ours]]:
    for text in texts:
        model, _, contender = text.partition("=")
        yield model, Ours.parse(contender)


def weights_of(model: str) -> Weights:
    """Seeded weights, drawn once."""
    drawn = untrained_weights(spec_of(model))
    return Weights(drawn.spec, dict(drawn.tensors), drawn.sha256, drawn.source)


def line(model: str, contender: str, form: str, verdict: dict[str, Any]) -> str:
    text = f"{model:10} {contender:12} {form:8} {'right' if verdict['equal'] else 'WRONG'}"
    if "cosine_mean" in verdict:
        text += f"  cosine {verdict['cosine_mean']:.6f}, worst {verdict['cosine_min']:.6f}"
    return text if verdict["equal"] else f"{text}  {verdict['gate']}"


class Tile:
    """A small tile, its tokens, and what the reference makes of them."""

    def __init__(self, weights: Weights, observations: Observations, device: torch.device) -> None:
        arrays = {
            "bands": observations.s2_bands,
            "masks": observations.s2_masks,
            "doys": observations.s2_doys,
        }
        for orbit in observations.orbits:
            name = f"sar_{('ascending', 'descending')[orbit.index]}"
            arrays |= {name: orbit.bands, f"{name}_doy": orbit.doys}
        self.arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        self.tokens: tuple[PackedTokens, PackedTokens] = pack(observations, weights.spec)[:2]
        self.expected = gpu_case.reference(weights.spec, weights, *self.tokens, device)

    @staticmethod
    def small(weights: Weights, few: bool, device: torch.device) -> "Tile":
        """``few``: so that an instrumented or interpreted run takes seconds."""
        size = FEW if few else SIZE
        observations = synthetic_tile(*size).rows(0, size[0])
        return Tile(weights, thinned(observations) if few else observations, device)

    def judged(self, model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
        """(form of output, verdict) of the function that users call."""
        expected, spec = self.expected, model.spec
        seen = ~np.isnan(expected).any(-1)
        values = tf.embed(dict(self.arrays), model, progress=False).reshape(expected.shape)
        verdict = gpu_case.gate(values[seen], expected[seen], model.precision, ours=True)
        yield "float32", _with_holes(verdict, bool(np.isnan(values[~seen]).all()))
        result = tf.embed(dict(self.arrays), model, output="int8", progress=False)
        codes, scales = result.codes.reshape(expected.shape), result.scales.reshape(-1)
        verdict = gpu_case.gate_int8(
            codes[seen], scales[seen], expected[seen], spec, model.precision
        )
        empty = not codes[~seen].any() and bool(np.isposinf(scales[~seen]).all())
        yield "int8", _with_holes(verdict, empty)


def thinned(observations: Observations) -> Observations:
    """Some of the dates."""
    return replace(
        observations,
        s2_bands=observations.s2_bands[::EVERY],
        s2_masks=observations.s2_masks[::EVERY],
        s2_doys=observations.s2_doys[::EVERY],
        orbits=tuple(
            replace(o, bands=o.bands[::EVERY], doys=o.doys[::EVERY]) for o in observations.orbits
        ),
    )


def _with_holes(verdict: dict[str, Any], right: bool) -> dict[str, Any]:
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
