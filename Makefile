# `make demo` and `make test` work on a fresh machine with Python >= 3.11 (3.10 without the Zarr
# store) and g++. Each sets up .venv first; a target's stamp is renewed when its inputs change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc kernels python tests/cuda_emulator -type f -not -name '*.so' -not -path '*/__pycache__/*')
TORCH ?= torch==2.13.0
JOBS ?= 2
TRITON ?= triton==3.6.0
LINTERS := clang-format==23.1.5 mypy==2.4.1 ruff==0.17.6
CPP = $(shell find csrc kernels tests/cuda_emulator tests/sanitizers -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format clean

demo: $(VENV)/installed
	$(BIN)/tessera-fast demo

test: $(VENV)/tested
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build dist demo_output

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check .
	touch $@

# The tests build one more instruction set than a release: avx512's code on AVX2 instructions.
$(VENV)/tested: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TRITON)"
	$(BIN)/pip install --quiet --disable-pip-version-check \
		-C cmake.define.TESSERA_TEST_ISAS=ON ".[test]"
	touch $@ $(VENV)/installed

$(VENV)/linters: Makefile | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check numpy $(LINTERS)
	touch $@
