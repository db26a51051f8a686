# Everything a fresh clone needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Everything is installed with hashes; only torch without, whose builds for CPU and GPU differ, and what only they bring.
PIP_INSTALL := $(BIN)/python -m pip install --no-input -q --disable-pip-version-check
LOCKED := $(PIP_INSTALL) --require-hashes --no-deps --no-build-isolation

.PHONY: demo test test-long coverage mutation lint docs schemas lock bench clean help

help:
	@echo "make demo       generate collisions, train, calibrate, fit and report (runs/demo)"
	@echo "make test       the tests that take minutes at most"
	@echo "make test-long  the tests that take longer"
	@echo "make coverage   the same tests with coverage.py: a table, and an error below its limits"
	@echo "make mutation   200 random wrong changes of the code: how many do the tests find?"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation in docs/_build/html; warnings are errors"
	@echo "make schemas    write the JSON Schemas anew, after a change of the configuration"
	@echo "make lock       write the lock files anew, after a change of constraints.txt or pyproject.toml"
	@echo "make bench      timings"
	@echo "make clean      remove the virtual environment and caches (runs/ is kept)"

$(INSTALLED): pyproject.toml constraints.txt $(wildcard locks/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "selfcal needs Python 3.11 or later; choose one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(LOCKED) -r locks/build.txt
	$(LOCKED) -r locks/packages.txt
	$(PIP_INSTALL) -c constraints.txt torch
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check --disable-pip-version-check
	touch $@

$(VENV): $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/selfcal run configs/demo.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not long" -n 2 --dist loadfile

test-long: demo
	$(LOCKED) -r locks/puma.txt
	$(BIN)/python -m pytest -q -m long

coverage: $(INSTALLED)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q -m "not long" -n 2 --dist loadfile
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m bench.covered

mutation: $(INSTALLED)
	$(LOCKED) -r locks/mutation.txt
	$(BIN)/python -m bench.mutation cover
	$(BIN)/python -m bench.mutation run --seed 4 --count 200
	$(BIN)/python -m bench.mutation check --seed 4
	$(BIN)/python -m bench.mutation table --seed 4

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(LOCKED) -r locks/docs.txt
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

schemas: $(INSTALLED)
	$(BIN)/python -m selfcal.config.schema schemas

lock: $(INSTALLED)
	PATH="$(abspath $(BIN)):$$PATH" locks/compile.sh

bench: $(INSTALLED)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .mutation
	find selfcal tests -name __pycache__ -type d -prune -exec rm -rf {} +
