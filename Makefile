# `make run` and `make test` are all one needs; both install into .venv first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := $(wildcard kernels/kvrt_kernels/native/*)
PACKAGES := $(shell find kvrt backends kernels cli -name __init__.py)

.PHONY: run test lint kit bench clean

run: $(VENV)/installed
	$(BIN)/kvrt run --verbose --max-tokens 100 --seed 7 </dev/null

test: $(VENV)/installed-dev
	$(BIN)/pytest
	$(BIN)/pytest -q --pyargs kvrt.testing.suite --kvrt-backend null
	$(BIN)/pytest -q --pyargs kvrt.testing.suite --kvrt-backend cpu

lint: $(VENV)/installed-dev
	ci/lint

bench: $(VENV)/installed-dev
	ci/bench

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(BIN)/python pyproject.toml CMakeLists.txt ci/constraints.txt $(NATIVE) $(PACKAGES)
	$(BIN)/python -m pip install -c ci/constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install -c ci/constraints.txt --group dev
	touch $@
