"""The committed table of hot loops, and the counting of machine code that makes it."""

import importlib.util
import json
import os
import shutil
import sys
from typing import Any

import pytest

from places import REPOSITORY

pytest.importorskip("torch", reason="the kernels need torch")
triton = pytest.importorskip("triton", reason="the kernels need triton")

BENCH = REPOSITORY / "bench"
RENEW = "run `python bench/sass_table.py --write`"
SLOW = pytest.mark.skipif(
    not os.environ.get("TESSERA_FAST_TEST_ALL"),
    reason="compiles for half a minute: set TESSERA_FAST_TEST_ALL=1",
)


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sass = _module("sass")
_module("triton_resources")
tool = _module("sass_table")


@pytest.fixture(scope="module")
def committed() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    stamp, *rows = (json.loads(line) for line in tool.TABLE.read_text().splitlines())
    return stamp, rows


def test_the_table_is_of_these_kernels(committed):
    stamp, rows = committed
    assert stamp["cuda"] == tool.cuda_digest(), RENEW
    assert stamp["sources"] == tool.triton_resources.sources_digest(), RENEW
    assert tool.SUMMARY.read_text() == f"{tool.HEAD}{tool.summary(rows)}\n", RENEW


def test_every_model_has_rows_without_a_spill_that_has_no_reason(committed):
    _, rows = committed
    assert {model for row in rows for model in row["for"]} == set(tool.MODELS)
    assert not [f"{tool.label(row)}: {p}" for row in rows for p in tool.problems(row)]
    assert all(row["products"] > 0 for row in rows)


def test_counted_bytes_are_those_of_the_tile(committed):
    """A tile of M x N reads M + N values of 2 bytes from L2 per 2 M N FLOP."""
    _, rows = committed
    checked = 0
    for row in rows:
        constants = dict(pair.split("=") for pair in row["constants"].split() if "=" in pair)
        whole = row["kernel"] == "_linear" and int(constants["K"]) % int(constants["BK"]) == 0
        if whole or (row["kernel"] == "_linear" and not row["unrolled"]):
            m, n = int(constants["BM"]), int(constants["P0"]) + int(constants["P1"])
            assert row["flop_per_byte"] == round(m * n / (m + n), 1), row
            checked += 1
    assert checked > 10


LISTING = """
		Function : _Z5first
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR6][R2.64] ;   /* 0x1 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;     /* 0x1 */
        /*0030*/              @!PT LDS RZ, [RZ] ;                     /* 0x1 */
        /*0038*/                   LDGSTS.E [R7], desc[UR6][R2.64], !PT ;  /* 0x1 */
        /*0040*/                   LDS.128 R8, [R3] ;                 /* 0x1 */
        /*0050*/                   HMMA.1688.F32 R4, R8, R2, R4 ;     /* 0x1 */
        /*0060*/               @P1 LDG.E.64 R8, desc[UR6][R2.64] ;    /* 0x1 */
        /*0070*/                   LDGSTS.E [R7], desc[UR6][R2.64] ;  /* 0x1 */
        /*0080*/               @P0 BRA 0x20 ;                          /* 0x1 */
        /*0090*/                   IADD3 R1, R1, 0x1, RZ ;            /* 0x1 */
        /*00a0*/              @!P1 BRA 0x10 ;                         /* 0x1 */
        /*00b0*/                   EXIT ;                             /* 0x1 */
        /*00c0*/                   BRA 0xc0 ;                         /* 0x1 */
		Function : _Z6second
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ; /* 0x1 */
        /*0010*/                   UTMALDG.2D [UR8], [UR4] ;          /* 0x1 */
        /*0020*/               @P0 BRA 0x0 ;                          /* 0x1 */
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ; /* 0x1 */
        /*0040*/                   HGMMA.64x8x16.F32 R24, gdesc[UR4], R24, gsb0 ; /* 0x1 */
        /*0050*/                   LDL R1, [R2] ;                     /* 0x1 */
        /*0060*/              @!P0 BRA 0x30 ;                         /* 0x1 */
		Function : _Z5third
        /*0000*/                   EXIT ;                             /* 0x1 */
"""


def test_the_innermost_loop_with_products_is_counted():
    first = sass.functions(LISTING)["_Z5first"]
    body = sass.hot_loop(first)
    assert [body[0].address, body[-1].address] == [0x20, 0x80]
    assert sass.count(body, warps=2) == {
        "products": 2,
        "shared_loads": 1,  # not the one that never runs; nor such a copy
        "shared_stores": 0,
        "async_copies": 1,
        "tma_copies": 0,
        "global_loads": 1,
        "spill_loads": 0,
        "instructions": 6,
        "flop": 2 * 2 * 16 * 8 * (16 + 8),
        "bytes": 2 * 32 * (8 + 4),
    }


def test_products_of_warp_groups_and_spills_are_counted():
    second = sass.functions(LISTING)["_Z6second"]
    counts = sass.count(sass.hot_loop(second), warps=8)
    assert counts["products"] == 2 and counts["spill_loads"] == 1 and counts["tma_copies"] == 0
    assert counts["flop"] == 2 * 2 * 64 * (128 + 8) * 16
    assert sass.count(second[:3], warps=8)["tma_copies"] == 1
    third = sass.functions(LISTING)["_Z5third"]
    assert sass.hot_loop(third) == [] == sass.unrolled(third)


def test_an_unrolled_loop_is_counted_from_the_first_copy_to_the_last_product():
    first = [i for i in sass.functions(LISTING)["_Z5first"] if i.kind != "BRA"]
    assert sass.hot_loop(first) == []
    body = sass.unrolled(first)
    assert [body[0].address, body[-1].address] == [0x10, 0x50]
    loads = [*body, first[7]]
    assert first[7].kind == "LDG"
    assert sass.count(loads, 1)["bytes"] - sass.count(loads, 1, loop=False)["bytes"] == 32 * 8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"spilled": 8}, "for no reason"),
        ({"spilled": 8, "reason": "because"}, ""),
        ({"spilled": 20, "reason": "because", "kernel": "layer (CUDA)"}, "16 are accepted"),
        ({"spill_loads": 2}, "in its hot loop"),
    ],
)
def test_problems(change, problem):
    row = {"kernel": "k", "spilled": 0, "reason": "", "spill_loads": 0}
    found = tool.problems(row | change)
    assert len(found) == bool(problem) and all(problem in line for line in found)


def test_roof():
    assert round(tool.roof({"flop_per_byte": 64})) == 352
    assert tool.roof({"flop_per_byte": 256}) == tool.roof({"flop_per_byte": None}) == 790


@SLOW
def test_the_cuda_rows_are_what_nvcc_gives(committed):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    _, rows = committed
    assert tool.cuda_rows() == [row for row in rows if "(CUDA)" in row["kernel"]], RENEW
