# The two commands of the README, and what CI runs. Everything happens in .venv (in CI, Debian's Chromium
# is installed too, for the tests of the report; without it they are skipped).

PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # pip compiles nothing here (all of torch takes a minute): what is imported is, once

.PHONY: demo test suite prove check install chromium clean

demo: .venv/installed                ## train on the embedded digits, end with the table of outputs
	$(BIN)/auxnet train

test:                                ## linter, types, and the whole suite but for the long proofs
	$(MAKE) --no-print-directory -j 2 check suite

suite: .venv/tested chromium
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

prove: .venv/tested                  ## the long proofs of the suite
	$(BIN)/pytest -n auto -m long

check: .venv/tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: .venv/installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("auxnet needs Python 3.11 or newer: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[export]'
	@touch $@
	@echo 'installed: . .venv/bin/activate gives the command auxnet'

.venv/tested: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch .venv/installed $@

chromium:
	@if [ "$$CI" = true ] && ! command -v chromium >/dev/null; then \
	    (apt-get update -qq && apt-get install -qq -y chromium) >/dev/null 2>&1 || true; fi

clean:                               ## remove what make made, not your runs
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
