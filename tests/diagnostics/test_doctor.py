"""The doctor: nothing fails here, and what is wrong is found and said."""

import errno
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from oracle import assert_golden
from tessera_fast.backends.cpu import CpuEncoder
from tessera_fast.diagnostics import doctor, selftest
from tessera_fast.diagnostics.info import instruction_sets
from tessera_fast.weights import hub

NEEDED = ("numpy", "pyproj", "tqdm", "zarr")
SETS = "instruction sets of the cpu back end"
PARTS = "parts of the pipeline"
RUNNABLE = [isa for isa in instruction_sets() if not isa.lacks]


def findings(heading, out=None):
    """Name -> finding of one group."""
    found = list(doctor.groups(out)[heading]())
    assert len({f.name for f in found}) == len(found)
    return {f.name: f for f in found}


def states(found):
    return {name: finding.state for name, finding in found.items()}


def test_all_is_well_here(run, tmp_path, monkeypatch):
    monkeypatch.delenv("TESSERA_FAST_WEIGHTS", raising=False)
    result = run("doctor", "--out", tmp_path / "not yet" / "x.zarr")
    lines = result.out.splitlines()
    assert (result.code, result.err) == (0, ""), result.out
    assert re.fullmatch(r"\d+ checks passed", lines[-1]) and max(map(len, lines)) <= 100
    for name in (
        "packing",
        *(isa.name for isa in RUNNABLE),
        "int8",
        "any threads",
        "write",
        "rename",
        "locks",
    ):
        assert any(line.split()[:2] == ["ok", name.split()[0]] for line in lines), name
    assert not list(tmp_path.iterdir())


def test_info_can_check(run):
    result = run("info", "--check")
    assert result.code == 0 and " checks passed" in result.out
    assert " checks passed" not in run("info").out


def test_the_stored_answers_are_the_references():
    pytest.importorskip("torch")
    from tessera_fast.backends.base import RunOptions
    from tessera_fast.backends.reference import reference

    for name, spec in selftest.MODELS.items():
        digest, answer = selftest.answers()[name]
        assert selftest.digest(name) == digest
        out = np.full((selftest.HEIGHT * selftest.WIDTH, spec.saved_dim), 7.0)
        reference.load(spec, selftest.weights(name), RunOptions("fp64")).encode(
            *selftest.packed(name), out
        )
        data = ~np.isnan(answer).any(-1)
        assert data.sum() == len(answer) - 1 and np.isnan(out[~data]).all()
        assert_golden(out[data], answer[data])
    assert selftest.ANSWERS.read_text().count("null") == sum(
        spec.saved_dim for spec in selftest.MODELS.values()
    )


def spoil(change, precision="fp32", name="v1.0"):
    """An ``encode`` whose result ``change`` alters, of one precision and model."""
    right = CpuEncoder.encode

    def encode(self, s2, s1, out, progress=None):
        right(self, s2, s1, out, progress)
        width = selftest.answers()[name][1].shape[1]
        if self.precision == precision and out.shape[1] == width:
            change(out)

    return encode


def add_to_one(out):
    out[3, 5] += np.float32(0.002)


def fill_no_data(out):
    out[np.isnan(out)] = 0


def lose_a_pixel(out):
    out[0] = np.nan


def turn(out):
    out[0] = -out[0]


@pytest.mark.parametrize(
    ("change", "precision", "message"),
    [
        (add_to_one, "fp32", "off by 2.0e-03"),
        (fill_no_data, "fp32", "no data"),
        (lose_a_pixel, "bf16", "no data"),
        (turn, "bf16", "cosine"),
        (turn, "int8", "cosine"),
    ],
)
def test_a_wrong_number_is_found(change, precision, message, monkeypatch, run):
    monkeypatch.setattr(CpuEncoder, "encode", spoil(change, precision))
    monkeypatch.setattr(doctor, "instruction_sets", lambda: RUNNABLE[:1])
    finding = findings(SETS)[RUNNABLE[0].name]
    assert finding.state == doctor.FAILED
    assert message in finding.detail and precision in finding.detail
    monkeypatch.setattr(doctor, "groups", lambda out: {SETS: doctor._instruction_sets})
    assert run("doctor").code == 1


def test_a_wrong_date_is_found(monkeypatch):
    right = selftest.packed

    def packed(name):
        s2, s1 = right(name)
        s1.multiplicity[-1] += 1
        return s2, s1

    monkeypatch.setattr(selftest, "packed", packed)
    finding = findings(SETS)["packing"]
    assert finding.state == doctor.FAILED and "v2-nano" in finding.detail


def test_wrong_parts_are_found(monkeypatch):
    from tessera_fast.model.model import Model
    from tessera_fast.store.reader import Layer

    right = Model.quantize, Layer.codes

    def quantize(self, values):
        codes, scales = right[0](self, values)
        codes[0, 0] ^= 1
        return type(right[0](self, values))(codes, scales)

    def codes(self, rows, columns):
        found, scales = right[1](self, rows, columns)
        return found[::-1], scales

    monkeypatch.setattr(Model, "quantize", quantize)
    monkeypatch.setattr(Layer, "codes", codes)
    monkeypatch.setattr(selftest, "S2_BANDS", selftest.S2_BANDS[::-1])
    found = findings(PARTS)
    for name, package in (("int8", "numpy"), ("Zarr store", "zarr"), ("xarray", "xarray")):
        if importlib.util.find_spec(package):
            assert found[name].state == doctor.FAILED, name
    assert found["any threads"].state == doctor.OK


def test_threads_that_change_bits_are_found(monkeypatch):
    right = CpuEncoder.encode

    def encode(self, s2, s1, out, progress=None):
        right(self, s2, s1, out, progress)
        out[0] *= 1 + self._threads

    monkeypatch.setattr(CpuEncoder, "encode", encode)
    assert findings(PARTS)["any threads"].state == doctor.FAILED


def test_a_package_that_is_absent_or_broken(monkeypatch):
    pytest.importorskip("rasterio")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    broken = findings(PARTS)["rasterio"]
    assert broken.state == doctor.FAILED and "Error: " in broken.detail

    right = importlib.metadata.version

    def version(name):
        if name == "rasterio":
            raise importlib.metadata.PackageNotFoundError(name)
        return right(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for group in ("packages", PARTS):
        finding = findings(group)["rasterio"]
        assert finding[::2] == (doctor.ABSENT, "pip install 'tessera_fast[geo]'")


def test_optional_parts_come_last_and_calmly(run, monkeypatch):
    """What nobody needs is no fault: at the end, with what brings it, a line for each extra."""
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name in NEEDED else None)
    monkeypatch.setattr(doctor, "groups", lambda out: {"packages": doctor._packages})
    monkeypatch.setenv("COLUMNS", "80")
    result = run("doctor")
    needed, optional = result.out.split("not here, which is no fault")
    assert result.code == 0 and "absent" not in result.out and "FAILED" not in result.out
    assert len(needed.split("\n  ok ")) == 1 + len(NEEDED) + 1  # and this package
    text = " ".join(optional.split())
    for line in (
        "xarray, rioxarray, rasterio, pystac: pip install 'tessera_fast[geo]'",
        "scikit-learn: pip install 'tessera_fast[probe]'",
        "tensorrt-rtx: pip install 'tessera_fast[tensorrt]'",
    ):
        assert line in text
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("variable", "value", "group", "name"),
    [
        ("TESSERA_FAST_THREADS", "many", "this machine", "threads"),
        ("TESSERA_FAST_ISA", "sse9", SETS, "forced"),
        ("TESSERA_FAST_WEIGHTS", "/no/such/folder", "weights, without network", "folder"),
    ],
)
def test_a_setting_that_is_wrong(variable, value, group, name, monkeypatch):
    monkeypatch.setenv(variable, value)
    finding = findings(group)[name]
    assert finding.state == doctor.FAILED and value in finding.detail


def test_little_memory(monkeypatch):
    for free, state in ((100 << 20, doctor.FAILED), (None, doctor.ABSENT), (4 << 30, doctor.OK)):
        monkeypatch.setattr(doctor, "available_bytes", lambda free=free: free)
        assert findings("this machine")["memory"].state == state


def test_weights_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_FAST_WEIGHTS", str(tmp_path))
    (tmp_path / hub.RELEASES["v2-nano"].file).write_bytes(b"short")
    (tmp_path / "v2-small.safetensors").write_bytes(b"any size")
    found = findings("weights, without network")
    assert found["v2-nano"].state == doctor.FAILED and "4,288,221 bytes" in found["v2-nano"].detail
    assert found["v2-small"].state == doctor.OK
    assert found["v1.1-mpc"].state == doctor.ABSENT


def test_a_folder_that_cannot_be_written():
    if not Path("/proc/self").exists():
        pytest.skip("no folder here that nobody can write")
    found = findings("output folder", "/proc/x.zarr")
    assert states(found) == {"write": doctor.FAILED}


def test_a_file_system_without_links_and_locks(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(doctor.Locks, "take", lambda *_, **__: True)
    found = findings("output folder", tmp_path)
    assert states(found) == {
        "write": doctor.OK,
        "rename": doctor.OK,
        "hard links": doctor.ABSENT,
        "locks": doctor.ABSENT,
    }
