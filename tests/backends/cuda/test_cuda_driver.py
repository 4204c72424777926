"""A driver that does not start is a sentence for why_not, never an exception."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tessera_fast

CODES = {
    35: "absent, or older",
    100: "finds no GPU",
    802: "fabricmanager",
    803: "library and kernel module are of different versions",
    804: "forward compatibility",
    999: "does not start (CUDA error 999",
}
# A driver whose cuInit returns an error: what the CUDA runtime asks of it before it gives up.
DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return atoi(getenv("FAKE_CUDA_ERROR")); }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuGetProcAddress_v2(const char* name, void** found, int version, unsigned long long flags,
                        int* status) {
  *found = strcmp(name, "cuDriverGetVersion") ? (void*)cuInit : (void*)cuDriverGetVersion;
  if (!strcmp(name, "cuGetProcAddress")) *found = cuGetProcAddress_v2;
  if (status) *status = 0;
  return 0;
}
"""
ASK = """
import tessera_fast as tf
from tessera_fast import _cuda
from tessera_fast.backends.base import RunOptions
from tessera_fast.backends.cuda import cuda
from tessera_fast.spec import released

print(_cuda.device_count())
print(_cuda.why_no_device())
print(cuda.why_not(released("v2-nano"), RunOptions()))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that does not start."""
    folder = tmp_path_factory.mktemp("driver")
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("a driver to load is made by gcc on Linux")
    (folder / "driver.c").write_text(DRIVER)
    command = ["gcc", "-shared", "-fPIC", folder / "driver.c", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, check=True)
    return folder


@pytest.mark.parametrize("code", [100, 803, 804, 999])
def test_a_driver_that_does_not_start_is_a_sentence(driver: Path, code: int) -> None:
    for name in ("_cuda", "torch", "triton"):
        pytest.importorskip(f"tessera_fast.{name}" if name == "_cuda" else name)
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "LD_LIBRARY_PATH": str(driver),
            "FAKE_CUDA_ERROR": str(code),
            "PYTHONPATH": str(Path(tessera_fast.__file__).parents[1]),
        },
    )
    assert done.returncode == 0, done.stderr
    count, reason, why_not = done.stdout.splitlines()
    assert count == "0"
    assert CODES[code] in reason
    assert why_not == reason


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_its_sentence(code: int) -> None:
    native = pytest.importorskip(
        "tessera_fast._cuda_emulated", reason="the emulator is built with TESSERA_TEST_ISAS=ON"
    )
    assert CODES[code] in native.device_problem(code)
    assert ": " in native.device_problem(code)  # what to do
    assert native.device_problem(0) == ""
