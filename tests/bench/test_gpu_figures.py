"""Figures of the GPU check where there is no GPU: gates, ceilings, contenders, tables."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bench_programs import BENCH, bench_modules, needs_torch, python  # noqa: F401

pytestmark = pytest.mark.usefixtures("bench_modules")


@needs_torch
def test_ceilings_are_measured_where_there_is_no_gpu():
    import torch

    import gpu_peaks

    found = gpu_peaks.peaks(torch.device("cpu"), small=True)
    assert {"copy_gb_s", "bf16_tflop_s", "upload_gb_s"} <= set(found)
    assert all(value > 0 for value in found.values())


@needs_torch
def test_outside_the_gate_there_is_no_figure():
    import gpu_case

    expected = np.random.default_rng(0).standard_normal((6, 16))
    for precision, ours, error, equal in (
        ("fp32", True, 0, True),
        ("fp32", True, 1e-3, False),
        ("fp32", False, 1e-3, False),
        ("bf16", True, 1e-3, True),
        ("bf16", True, 3e-2, False),
        ("bf16", False, 3e-2, True),
        ("fp8", True, 3e-2, True),
        ("fp8", True, 0.3, False),
    ):
        got = expected + error * np.where(np.arange(16) % 2, 1, -1)
        row = gpu_case.gate(got, expected, precision, ours)
        assert row["equal"] == equal, (precision, ours, error, row)
    got[0, 0] = np.nan
    assert not gpu_case.gate(got, expected, "fp8", True)["equal"]


@needs_torch
@pytest.mark.parametrize("model", ["v2-nano", "v1.0-qat"])
def test_ragged_attention_gets_the_right_tokens(model, monkeypatch):
    """The framework's kernel needs a GPU; its place is taken by one call for every sequence."""
    torch = pytest.importorskip("torch")
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    import gpu_case
    import gpu_stock
    from tessera_fast.spec import variant
    from tessera_fast.weights import untrained_weights

    def one_by_one(q, k, v, q_offsets, k_offsets, most_q, most_k):
        assert q_offsets.tolist() == k_offsets.tolist() and q_offsets[-1] == len(q)
        out = torch.empty_like(q)
        for a, b in zip(q_offsets[:-1].tolist(), q_offsets[1:].tolist(), strict=True):
            assert b - a == most_q == most_k
            parts = (t[None, a:b].transpose(1, 2) for t in (q, k, v))
            mixed = torch.nn.functional.scaled_dot_product_attention(*parts)
            out[a:b] = mixed.transpose(1, 2)[0]
        return out

    monkeypatch.setattr(varlen, "varlen_attn", one_by_one)
    spec = variant(model, d_model=60, num_layers=2, ff_dim=72)  # heads of 15
    weights = untrained_weights(spec)
    case, device = gpu_case.Case(spec, (5, 7), 3), torch.device("cpu")
    expected = gpu_case.reference(spec, weights, *case.packed(0, 3), device)
    got = gpu_stock._plain(gpu_stock.Dense(weights, "varlen"))(*case.sequences(device)).numpy()
    row = gpu_case.gate(got[:, : spec.saved_dim], expected, "fp32", ours=False)
    assert row["equal"], row
    other = replace(case, pixels=2)
    assert other.sequences(device)[0].shape == (2, 5, 11)


@needs_torch
def test_every_contender_has_a_row_of_its_own(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = python(
        BENCH / "gpu_model.py",
        "--model",
        "v2-nano",
        "--contenders",
        "cpu:fp32",
        "--check",
        "--stock",
        "--few",
        "--compiler",
        "eager",
        "--dates",
        5,
        6,
        "--device",
        "cpu",
        "--rows",
        rows,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    figures = [r for r in found if r["bench"] == "gpu"]
    assert [r["contender"] for r in figures] == [
        "official layers, rebuilt, fp32",
        "eager fp32 autocast",
        "fp32 weights, fast path",
        "cuBLAS + dense attention fp32",
        "torch.compile fp32",
        "cpu fp32",
    ]
    assert all(r["equal"] and r["px_s"] > 0 and r["repeats"] >= 5 for r in figures)
    assert [(r["form"], r["equal"]) for r in found if r["bench"] == "gpu_small"] == [
        ("float32", True),
        ("int8", True),
    ]
    assert [r["invariant"] for r in found if r["bench"] == "gpu_details"] == [True]


@needs_torch
def test_a_contender_that_fails_keeps_the_rows_before_it(tmp_path, monkeypatch):
    import gpu_model
    import gpu_rows

    rows = tmp_path / "rows.jsonl"
    args = gpu_model.arguments().parse_args(
        ["--model", "v2-nano", "--few", "--dates", "5", "6", "--device", "cpu", "--rows", str(rows)]
    )
    bench = gpu_model.Bench(args)
    right = bench.expected.astype(np.float32)
    bench.measure("one", lambda batch: lambda i: right, (4,), "fp32", ours=True)

    def fails(batch):
        raise RuntimeError("an illegal memory access was encountered")

    bench.measure("two", fails, (4,), "fp32", ours=True)
    wrong = lambda batch: lambda i: right + 1  # noqa: E731
    bench.measure("three", wrong, (4,), "fp32", ours=True)
    found = {r["contender"]: r for r in gpu_rows.read(rows)}
    assert list(found) == ["one", "two", "three"] and bench.wrong == ["two", "three"]
    assert found["one"]["px_s"] > 0 and "illegal memory access" in found["two"]["gate"]
    assert found["three"]["px_s"] is None and "max abs error" in found["three"]["gate"]


# ---- tables


def test_the_report_has_verdicts_ratios_goals_and_the_ledger():
    import gpu_report

    def row(contender, px_s, precision, ours=False):
        return {
            "bench": "gpu",
            "model": "v2-nano",
            "workload": gpu_report.GOAL_CASE,
            "px_s": px_s,
            "contender": contender,
            "precision": precision,
            "gate": "worst cosine",
            "ours": ours,
        }

    def small(form, equal):
        return {
            "bench": "gpu_small",
            "model": "v2-small",
            "contender": "triton bf16",
            "form": form,
            "equal": equal,
            "gate": "mean cosine 0.5",
            "cosine_min": 0.4,
        }

    rows = [
        small("float32", False),
        small("int8", True),
        {"bench": "gpu_ops", "model": "v2-small", "contender": "triton bf16", "text": "ffn is off"},
        row("triton bf16", 1.8e6, "bf16", True),
        row("fused bf16", 2.7e6, "bf16", True),
        row("official eager fp32", 0.1e6, "fp32"),
        row("torch.compile bf16", 0.9e6, "bf16"),
        row("eager bf16 autocast", None, "bf16"),
    ]
    text = gpu_report.report(rows)
    assert "v2-small   triton bf16    WRONG float32: mean cosine 0.5" in text
    assert "v2-small   triton bf16    ffn is off" in text
    triton, fused = (line for line in text.splitlines() if "torch.compile" in line)
    assert "triton bf16" in triton and "fused bf16" in fused
    assert "1,800,000" in triton and "18.00" in triton and "2.00" in triton
    assert "50%" in triton and "90%" in triton  # of the goal, of the least
    predicted = json.loads(gpu_report.PREDICTIONS.read_text())["v2-nano"]["50 + 60 tokens"]
    off = f"{1.8e6 / predicted['px_s'] - 1:+.0%}"
    assert any(off in line and predicted["why"] in line for line in text.splitlines())
    assert "no figure: v2-nano, 50 + 60 tokens, eager bf16 autocast: worst cosine" in text


def test_every_benchmarked_case_is_predicted():
    import gpu_plan
    import gpu_report

    predictions = json.loads(gpu_report.PREDICTIONS.read_text())
    for model in gpu_plan.MODELS:
        predicted = predictions[model]["{} + {} tokens".format(*gpu_plan.CASE)]
        assert predicted["px_s"] > 0 and predicted["why"]
