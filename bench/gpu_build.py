"""Build the extensions in a folder and put the package together there, by links: nothing is
installed and no file outside the folder changes.

    python bench/gpu_build.py build/gpu && PYTHONPATH=build/gpu/python python ...
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from gpu_plan import capability, cmake_architecture

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "python" / "tessera_fast"
LOCAL_NVCC = Path("/usr/local/cuda/bin/nvcc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architectures", help="of CUDA code (default: the one of GPU 0)")
    parser.add_argument("--no-cuda", action="store_true", help="only what runs on a CPU")
    args = parser.parse_args()
    folder = args.folder.resolve()
    build(folder, [] if args.no_cuda else cuda_options(args.architectures))
    print(f"package in {stage(folder)}")


def cuda_options(architectures: str | None) -> list[str]:
    chosen = architectures or cmake_architecture(capability("cuda:0"))
    # CMakeLists.txt sets CMAKE_CUDA_ARCHITECTURES itself, from this
    options = [f"-DTESSERA_CUDA_ARCHITECTURES={chosen}", "-DTESSERA_CUDA=ON"]
    if shutil.which("nvcc") is None and LOCAL_NVCC.exists():
        options.append(f"-DCMAKE_CUDA_COMPILER={LOCAL_NVCC}")
    return options


def build(folder: Path, options: list[str]) -> None:
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        raise SystemExit(f"{headers} is missing: Python's headers are needed to build")
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 is None or pybind11.origin is None:
        raise SystemExit("pybind11 is missing")
    cmake = ["cmake"] if shutil.which("cmake") else [sys.executable, "-m", "cmake"]
    subprocess.run(
        [
            *cmake,
            "-S",
            str(REPOSITORY),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={Path(pybind11.origin).parent / 'share' / 'cmake' / 'pybind11'}",
            *options,
        ],
        check=True,
    )
    jobs = str(len(os.sched_getaffinity(0)))
    subprocess.run([*cmake, "--build", str(folder), "--parallel", jobs], check=True)


def stage(folder: Path) -> Path:
    """``folder/python/tessera_fast``: links to the sources, the kernels and what was built."""
    package = folder / "python" / "tessera_fast"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in SOURCE.iterdir():
        if path.suffix != ".so" and path.name not in ("__pycache__", "kernels"):
            (package / path.name).symlink_to(path)
    (package / "kernels").symlink_to(REPOSITORY / "kernels")
    built = sorted(folder.glob("*.so"))
    if not built:
        raise SystemExit(f"no extension was built in {folder}")
    for path in built:
        (package / path.name).symlink_to(path)
    return package.parent


if __name__ == "__main__":
    main()
