#!/usr/bin/env bash
# Builds the cpu back end for aarch64 on a machine of another kind and runs its tests in qemu.
#
#   tests/aarch64.sh                  build, then the tests at the end of this file: 5 to 15 minutes
#   tests/aarch64.sh ARGUMENTS        build, then pytest with these arguments
#   tests/aarch64.sh --python ...     build, then Python for aarch64: -c, -m or a file
#
# On Debian and Ubuntu, not as root once these packages are there:
#   apt-get install cmake g++-aarch64-linux-gnu make python3-pip qemu-user
# Python for arm64 comes from the distribution's archive, numpy and the test packages through pip.
# All that is written is build/aarch64; delete it to start afresh.
#
#   TESSERA_ARM64_SOURCES   a sources.list with arm64, else the sources of this machine. Ubuntu has
#                           arm64 apart from its main archive: there it is needed
#   TESSERA_QEMU_CPU        the processor to show (qemu-aarch64 -cpu help), else max: a neoverse-n1
#                           has products of int8 but neither i8mm nor bf16
#   PYTHON                  the Python whose pip is used, else python3
#
# A test that starts a second Python needs a binfmt handler; none of those below does. Nothing is
# timed here: an emulator's times say nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/build/aarch64
root=$build/root site=$build/site package=$build/package
python=$build/python3 host=${PYTHON:-python3}
mkdir -p "$build"

for tool in aarch64-linux-gnu-g++ apt-get cmake dpkg-deb make "$host"; do
  command -v "$tool" > /dev/null || { echo "$0: expected $tool on PATH" >&2; exit 1; }
done
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) ||
  { echo "$0: expected qemu-aarch64 on PATH (package qemu-user)" >&2; exit 1; }

# Packages of another architecture, unpacked and not installed: apt with a state of its own chooses
# and verifies them, and the distribution's database stays as it is.
unpack_root() {
  local apt=$build/apt options deb
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root/usr/lib"
  : > "$apt/status"
  options=(-q -y --no-install-recommends
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
    -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status"
    -o Dir::Cache="$apt" -o Debug::NoLocking=1)
  if [[ -n ${TESSERA_ARM64_SOURCES:-} ]]; then
    options+=(-o Dir::Etc::sourcelist="$(realpath "$TESSERA_ARM64_SOURCES")"
      -o Dir::Etc::sourceparts=/dev/null)
  fi
  apt-get "${options[@]}" update
  apt-get "${options[@]}" --download-only install libpython3-dev libstdc++6 python3
  ln -sfn usr/lib "$root/lib"
  for deb in "$apt"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$root"
  done
  rm -r "$apt"
}

if [[ ! -e $build/root.done ]]; then
  rm -rf "$root"
  unpack_root
  touch "$build/root.done"
fi

# CMake and pytest see one ordinary interpreter. pauth-impdef: should anything sign pointers, a
# cheaper algorithm than qemu's default.
cat > "$python" <<WRAPPER
#!/bin/sh
exec "$qemu" -cpu "\${TESSERA_QEMU_CPU:-max,pauth-impdef=on}" -L "$root" \
  "$root/usr/bin/python3" "\$@"
WRAPPER
chmod +x "$python"

if [[ ! -e $build/site.done ]]; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  rm -rf "$site"
  platforms=()
  for glibc in 2_17 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
  "$host" -m pip install --quiet --disable-pip-version-check --target "$site" \
    --implementation cp --python-version "$version" "${platforms[@]}" --only-binary=:all: \
    "hypothesis>=6.120" "numpy>=1.26" "pybind11>=2.12" "pytest>=8" "tqdm>=4.66"
  touch "$build/site.done"
fi

# In a cross build CMake asks the interpreter for everything but its headers. pyconfig.h includes
# <aarch64-linux-gnu/...>, which only the root has; -idirafter puts the compiler's C library first.
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
cmake -S . -B "$build/cmake" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include" \
  -DPython_EXECUTABLE="$python" -DPython_INCLUDE_DIR="$include" \
  -Dpybind11_DIR="$site/pybind11/share/cmake/pybind11"
cmake --build "$build/cmake" --parallel "$(nproc)"

rm -rf "$package"
mkdir "$package"
cp -r python/tessera_fast "$package/"
find "$package" -name '*.so' -delete
cmake --install "$build/cmake" --prefix "$package"

export PYTHONPATH=$package:$site OMP_NUM_THREADS=1
if [[ ${1:-} == --python ]]; then exec "$python" "${@:2}"; fi
pytest() { "$python" -m pytest -p no:cacheprovider "$@"; }
if (($#)); then
  pytest "$@"
  exit
fi
pytest tests/backends/cpu/test_cpu_ops.py tests/backends/cpu/test_cpu_reduced_ops.py tests/packing/test_packing.py tests/ground/test_quantize.py
# Whole models: the small ones, each kind of layer once.
pytest tests/backends/cpu/test_cpu_golden.py \
  -k "(mini and (series or tile)) or prefix or forced or random_models or every_golden"
pytest tests/backends/cpu/test_cpu_reduced.py -k "mini or auto"
pytest tests/model/test_invariance.py -k "order_of_the_pixels and (softmax or custom_gru or torch_gru)"
