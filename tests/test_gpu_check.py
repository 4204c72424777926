"""bench/gpu_check.py where there is no GPU: its dry run, its stages, its gates and its tables."""

import argparse
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="stock engines and the reference need torch"
)


@pytest.fixture(autouse=True)
def _bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


@needs_torch
def test_dry_run_executes_every_contender(tmp_path):
    command = [sys.executable, BENCH / "gpu_check.py", "--dry-run", "--only", "bench",
               "--models", "v2-nano", "--out", tmp_path]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    by_kind = {kind: [r for r in rows if r["bench"] == kind] for kind in ("gpu", "gpu_tile")}
    labels = {r["contender"] for r in by_kind["gpu"]}
    assert labels == {
        "ours fp32", "official layers, rebuilt, fp32", "eager fp32 autocast",
        "fp32 weights, fast path", "cuBLAS + dense attention fp32", "torch.compile fp32",
    }  # fmt: skip
    assert all(r["equal"] and r["px_s"] > 0 for r in rows)
    assert all(r["invariant"] for r in by_kind["gpu"] if r["contender"] == "ours fp32")
    assert [r["contender"] for r in by_kind["gpu_tile"]] == ["ours fp32, tile to int8"]
    assert (tmp_path / "gpu.txt").read_text() in done.stdout
    assert "no figure" not in done.stdout


@needs_torch
def test_ceilings_are_measured_where_there_is_no_gpu():
    import torch

    import gpu_peaks

    found = gpu_peaks.peaks(torch.device("cpu"), small=True)
    assert {"copy_gb_s", "bf16_tflop_s", "upload_gb_s"} <= set(found)
    assert all(value > 0 for value in found.values())


# ---- stages


@pytest.fixture
def check(tmp_path):
    import gpu_check

    args = gpu_check.arguments().parse_args(["--dry-run"])
    return gpu_check.Check(args, tmp_path)


def stage(program: str, least: float = 0, most: float = 60):
    import gpu_check

    return gpu_check.Stage("small", program, [sys.executable, "-c", program], least, most)


def test_a_failing_stage_is_reported_and_the_next_one_runs(check, capfd):
    check.run(stage("raise SystemExit(3)"))
    check.run(stage("print('after it')"))
    assert "FAILED: status 3" in check.summary() and "after it" in capfd.readouterr().out
    assert "passed" in check.summary() and not check.passed
    assert "after it" in check._log.read_text()


def test_a_stage_that_takes_too_long_is_ended_with_its_children(check, tmp_path):
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    check.run(stage(program, most=1))
    assert "FAILED: ended after 1 s" in check.summary()
    check.run(stage("import time; time.sleep(3)"))  # by now the child would have written
    assert not late.exists()


def test_without_time_or_tool_a_stage_is_skipped(check, capfd):
    import gpu_check

    check.run(stage("raise SystemExit(3)", least=1e6))
    check.run(gpu_check.Stage("ncu", "one encode", ["no-such-profiler"], 0, 1))
    out = capfd.readouterr().out
    assert "skipped: out of time" in out and "skipped: there is no no-such-profiler" in out
    assert check.passed


def test_the_plan_has_every_stage_in_order(tmp_path):
    import gpu_check

    args = gpu_check.arguments().parse_args(["--ncu"])
    kinds = [s.kind for s in gpu_check.plan(args, gpu_check.Check(args, tmp_path))]
    assert list(dict.fromkeys(kinds)) == list(gpu_check.KINDS)
    assert kinds.count("bench") == len(gpu_check.MODELS)
    only = argparse.Namespace(**{**vars(args), "only": ["tests"]})
    assert [s.kind for s in gpu_check.plan(only, gpu_check.Check(only, tmp_path))] == ["tests"]


# ---- gates and contenders


@needs_torch
def test_outside_the_gate_there_is_no_figure():
    import gpu_case

    expected = np.random.default_rng(0).standard_normal((6, 16))
    for precision, ours, error, equal in (
        ("fp32", True, 0, True), ("fp32", True, 1e-3, False), ("fp32", False, 1e-3, False),
        ("bf16", True, 1e-3, True), ("bf16", True, 3e-2, False), ("bf16", False, 3e-2, True),
        ("fp8", True, 3e-2, True), ("fp8", True, 0.3, False),
    ):  # fmt: skip
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


# ---- tables


def test_the_report_has_ratios_goals_and_the_ledger():
    import gpu_report

    def row(contender, px_s, precision):
        return {"bench": "gpu", "model": "v2-nano", "workload": gpu_report.GOAL_CASE, "px_s": px_s,
                "contender": contender, "precision": precision, "gate": "worst cosine"}  # fmt: skip

    rows = [
        row("ours bf16", 1.8e6, "bf16"), row("official eager fp32", 0.1e6, "fp32"),
        row("torch.compile bf16", 0.9e6, "bf16"), row("eager bf16 autocast", None, "bf16"),
    ]  # fmt: skip
    text = gpu_report.report(rows)
    figures = next(line for line in text.splitlines() if "torch.compile" in line)
    assert "1,800,000" in figures and "18.00" in figures and "2.00" in figures
    assert "50%" in figures and "90%" in figures  # of the goal, of the least
    predicted = json.loads(gpu_report.PREDICTIONS.read_text())["v2-nano"]["50 + 60 tokens"]
    off = f"{1.8e6 / predicted['px_s'] - 1:+.0%}"
    assert any(off in line and predicted["why"] in line for line in text.splitlines())
    assert "no figure: v2-nano, 50 + 60 tokens, eager bf16 autocast: worst cosine" in text


def test_every_benchmarked_case_is_predicted():
    import gpu_check
    import gpu_report

    predictions = json.loads(gpu_report.PREDICTIONS.read_text())
    for model in gpu_check.MODELS:
        cases = ["40 + 40 tokens"] if model.startswith("v1.0") else [
            "{} + {} tokens".format(*case) for case in gpu_check.CASES
        ]  # fmt: skip
        assert set(predictions[model]) == set(cases)
        assert all(p["px_s"] > 0 and p["why"] for p in predictions[model].values())
