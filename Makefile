# Needs Python 3.11 or newer and make. Every target first makes .venv and installs anymask there, once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What tests compare with. They pin older libraries, and sam2 would build with a PyTorch of its own: hence --no-deps.
ORIGINALS := sam2==1.1.0 sam3==0.1.4 segment_anything_hq==0.3

.PHONY: demo test check format clean

demo: .venv/installed
	$(BIN)/python examples/demo.py demo

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv demo out .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp is newer than pyproject.toml when what that asks for is installed.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anymask needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable ".[dev]"
	SAM2_BUILD_CUDA=0 $(PIP) --no-deps --no-build-isolation $(ORIGINALS)
	touch $@
