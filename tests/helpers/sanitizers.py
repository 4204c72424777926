"""The native code under the sanitizers of gcc or clang. Linux, two to four minutes.

    python tests/helpers/sanitizers.py [PART...]

    thread          packing, beside a thread that writes its arrays (TSan)
    memory          the same (ASan and UBSan)
    bindings        the extension module (ASan and UBSan): the fuzz of all bindings, whole models,
                    arrays written during calls
    kernel-order    the CUDA kernels, emulated, a thread for each CUDA thread and order by barriers
                    alone (TSan)
    kernel-memory   the same kernels (ASan, UBSan's alignment and bounds)
    kernel-tests    tests of the emulated kernels with such a module

"bindings" and "kernel-tests" need pybind11, numpy and Python's headers, the latter torch and pytest
too; the others need only a C++ compiler with the runtimes. "bindings" is built with two instruction
sets: portable, and the best that runs here. CXX names the compiler. It writes build/sanitizers;
what is up to date there is used again.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from native_flags import cpu_sources, isa_targets
from places import HELPERS, REPOSITORY, TESTS

BUILD = REPOSITORY / "build" / "sanitizers"
KINDS = {
    "thread": ["-fsanitize=thread"],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "kernel-order": ["-fsanitize=thread"],
    "kernel-memory": ["-fsanitize=address,alignment,bounds", "-fno-sanitize-recover=all"],
}
# The emulator tells a sanitizer what it does, and is not watched itself.
EMULATOR = {
    "kernel-order": ["-DTESSERA_WATCH_ORDER"],
    "kernel-memory": ["-DTESSERA_WATCH_ADDRESSES"],
}
KERNEL_CASES = ("none", "pack", "schedule", "network", "layer")
COMMON = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fPIC", "-pthread"]
INCLUDE = f"-I{REPOSITORY / 'csrc'}"
KERNEL_FLAGS = [
    f"-I{REPOSITORY / 'tests'}",
    f"-I{REPOSITORY / 'kernels' / 'cuda'}",
    "-Wno-unknown-pragmas",
]
FUZZ_SECONDS, RACE_SECONDS = 20, 3


class Absent(Exception):
    """What is needed here and is not there, as a sentence."""


class Fault(Exception):
    """What a compiler or a sanitizer said."""


def compiler() -> str:
    name = os.environ.get("CXX", "g++")
    if platform.system() != "Linux":
        raise Absent("the sanitizers are run on Linux alone")
    if shutil.which(name) is None:
        raise Absent(f"the compiler {name} is not installed")
    return name


def run(command: Sequence[object], **environment: str) -> str:
    """What a command prints; its output is shown where it fails."""
    done = subprocess.run(
        [str(c) for c in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        shown = " ".join(str(c) for c in command)
        raise Fault(f"{shown}\nexit {done.returncode}\n{done.stdout}{done.stderr}"[-12_000:])
    return done.stdout


def launcher(kind: str) -> list[str]:
    """What a program with this sanitizer is started by: nothing, or a fixed layout of memory, which
    older thread sanitizers need. Absent where it does not start at all."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, program = BUILD / "empty.cc", BUILD / f"empty_{kind}"
    source.write_text("int main() { return 0; }\n")
    build = [compiler(), *KINDS[kind], str(source), "-o", str(program)]
    if subprocess.run(build, capture_output=True).returncode:
        raise Absent(f"{build[0]} has no runtime for {KINDS[kind][0]}")
    for start in ([], ["setarch", "-R"]):
        if start and shutil.which(start[0]) is None:
            continue
        if subprocess.run([*start, str(program)], capture_output=True).returncode == 0:
            return start
    raise Absent(f"programs built with {KINDS[kind][0]} do not start on this machine")


def objects(sources: dict[Path, list[str]], kind: str) -> list[Path]:
    """The sources, each with its flags, compiled where they are not up to date."""
    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    headers = [
        *(REPOSITORY / "csrc").rglob("*.h"),
        *(REPOSITORY / "kernels" / "cuda").glob("*.*h"),
        *(REPOSITORY / "tests" / "cuda_emulator").glob("*.h"),
        Path(__file__),
        REPOSITORY / "CMakeLists.txt",
    ]
    newest = max(path.stat().st_mtime for path in headers)

    def compiled(item: tuple[Path, list[str]]) -> Path:
        source, flags = item
        name = "".join([source.stem, *(f"_{f[14:]}" for f in flags if "TESSERA_ISA=" in f)])
        out = folder / f"{name}.o"
        watched = EMULATOR[kind] if source.name == "emulator.cc" else KINDS[kind]
        if not out.exists() or out.stat().st_mtime < max(newest, source.stat().st_mtime):
            run([compiler(), *flags, *COMMON, *watched, INCLUDE, "-c", source, "-o", out])
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources.items()))


def packing(kind: str) -> str:
    """pack_race.cc, built and run."""
    start = launcher(kind)
    program = BUILD / f"pack_race_{kind}"
    sources = [
        *(REPOSITORY / "csrc" / "pack").glob("*.cc"),
        REPOSITORY / "tests" / "sanitizers" / "pack_race.cc",
    ]
    built = objects({source: [] for source in sources}, kind)
    run([compiler(), *COMMON, *KINDS[kind], *built, "-o", program])
    return run([*start, program, RACE_SECONDS])


@cache
def kernel_objects(kind: str) -> list[Path]:
    """The CUDA kernels, the emulator and its planted faults."""
    emulator = REPOSITORY / "tests" / "cuda_emulator"
    sources = [
        *sorted((REPOSITORY / "kernels" / "cuda").glob("*.cu")),
        emulator / "emulator.cc",
        emulator / "planted.cc",
    ]
    return objects({source: ["-xc++", *KERNEL_FLAGS] for source in sources}, kind)


@cache
def kernel_program(kind: str) -> list[str]:
    """The command that runs emulated_kernels.cc, built."""
    start = launcher(kind)
    main = REPOSITORY / "tests" / "sanitizers" / "emulated_kernels.cc"
    built = [*kernel_objects(kind), *objects({main: KERNEL_FLAGS}, kind)]
    program = BUILD / f"emulated_kernels_{kind}"
    run([compiler(), *COMMON, *KINDS[kind], *built, "-o", program])
    return [*start, str(program)]


def kernels(kind: str, *cases: str) -> str:
    """Cases of emulated_kernels.cc; Fault where one is reported."""
    return run([*kernel_program(kind), *cases])


def kernel_tests() -> str:
    """Tests of the emulated kernels, with a module that is built as "kernel-memory"."""
    for name in ("pybind11", "numpy", "torch", "pytest"):
        if importlib.util.find_spec(name) is None:
            raise Absent(f"{name} is not installed")
    start, kind = launcher("kernel-memory"), "kernel-memory"
    import pybind11

    bound = [
        *(REPOSITORY / "csrc" / "bindings").glob("cuda_*.cc"),
        REPOSITORY / "tests" / "cuda_emulator" / "emulator_bindings.cc",
    ]
    flags = [
        *KERNEL_FLAGS,
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_path('include')}",
        "-fvisibility=hidden",
        "-DTESSERA_CUDA_EMULATED",
        "-DTESSERA_CUDA_MODULE=_cuda_emulated",
        '-DTESSERA_CUDA_ARCHITECTURES="emulated"',
    ]
    built = [*kernel_objects(kind), *objects({source: flags for source in bound}, kind)]
    folder = BUILD / "kernel_tests"
    package = package_copy(folder, keep="_cpu*.so")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    run(
        [
            compiler(),
            *COMMON,
            *KINDS[kind],
            "-shared",
            *built,
            "-o",
            package / f"_cuda_emulated{suffix}",
        ]
    )
    return run(
        [
            *start,
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            TESTS / "backends" / "cuda" / "test_cuda_emulator.py",
            TESTS / "backends" / "cuda" / "test_cuda_encoder.py",
            "-k",
            "not (spills or overrun or underrun)",
        ],
        **memory_environment(folder),
    )


def memory_environment(path: Path) -> dict[str, str]:
    """Of a Python that loads modules with ASan and UBSan, from a package in ``path``."""
    return {
        "PYTHONPATH": str(path),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(runtime(n) for n in ("libasan.so", "libubsan.so", "libstdc++.so.6")),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps memory to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def package_copy(folder: Path, keep: str = "") -> Path:
    """The package in ``folder``, without its extension modules but for ``keep``."""
    package = folder / "tessera_fast"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        REPOSITORY / "python" / "tessera_fast",
        package,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    import tessera_fast

    for module in Path(tessera_fast.__file__).parent.glob(keep) if keep else ():
        shutil.copy(module, package)
    return package


def bindings() -> str:
    """The extension module, in a copy of the package, called by binding_fuzz.py and
    borrowed_memory.py."""
    for name in ("pybind11", "numpy"):
        if importlib.util.find_spec(name) is None:
            raise Absent(f"{name} is not installed")
    start = launcher("memory")
    isas = module()
    environment = memory_environment(BUILD)
    python = [*start, sys.executable]
    told = [
        "fuzz",
        run([*python, HELPERS / "binding_fuzz.py", 1, FUZZ_SECONDS, *isas], **environment),
    ]
    for name, path in checkpoints().items():
        for way in ("raw", "tokens"):
            told += [
                name,
                way,
                run(
                    [*python, HELPERS / "borrowed_memory.py", way, RACE_SECONDS, 2, path],
                    TESSERA_FAST_ISA=isas[-1],
                    **environment,
                ),
            ]
    return " ".join(told)


def runtime(name: str) -> str:
    found = subprocess.run(
        [compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True
    )
    path = found.stdout.strip()
    if not Path(path).is_absolute():
        raise Absent(f"{compiler()} has no {name}")
    return path


def module() -> list[str]:
    """Builds the package with a sanitized _cpu; the instruction sets that are in it."""
    import pybind11

    from tessera_fast import _cpu

    flags = isa_targets()
    best = next(name for name, runs, *_ in _cpu.isas() if runs and name in flags)
    isas = sorted({"portable", best}, key=["portable", best].index)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    # tables of the other instruction sets, which are never chosen here
    stubs = BUILD / "stubs.cc"
    tables = [f"const KernelTable& table_{n}() {{ std::abort(); }}" for n in flags if n not in isas]
    text = "\n".join(
        [
            "#include <cstdlib>",
            '#include "cpu/kernel_table.h"',
            "namespace tessera::cpu {",
            *tables,
            "}",
            "",
        ]
    )
    if not stubs.exists() or stubs.read_text() != text:
        stubs.write_text(text)
    sources = {path: [*includes, "-fvisibility=hidden"] for path in [*cpu_sources(), stubs]}
    built = objects(sources, "memory")
    for isa in isas:
        built += objects({REPOSITORY / "csrc" / "cpu" / "isa_target.cc": flags[isa]}, "memory")
    package = package_copy(BUILD)
    target = package / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    run([compiler(), *COMMON, *KINDS["memory"], "-shared", *built, "-o", target])
    return isas


def checkpoints() -> dict[str, Path]:
    """Small models of every pooling, as files."""
    from binding_fuzz import MODELS
    from tessera_fast.weights import save_safetensors, untrained_weights

    paths = {spec.name: BUILD / f"{spec.name}.safetensors" for spec in MODELS}
    for spec in MODELS:
        paths[spec.name].unlink(missing_ok=True)
        save_safetensors(paths[spec.name], untrained_weights(spec))
    return paths


CHECKS = {
    "thread": lambda: packing("thread"),
    "memory": lambda: packing("memory"),
    "bindings": bindings,
    "kernel-order": lambda: kernels("kernel-order", *KERNEL_CASES),
    "kernel-memory": lambda: kernels("kernel-memory", *KERNEL_CASES),
    "kernel-tests": kernel_tests,
}


def main(names: list[str]) -> int:
    if set(names) - CHECKS.keys():
        print(__doc__)
        return 2
    for name in names or CHECKS:
        try:
            print(f"{name}: clean; {' '.join(CHECKS[name]().split())}")
        except Absent as reason:
            print(f"{name}: not run, because {reason}")
            return 1
        except Fault as fault:
            print(f"{name}: {fault}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
