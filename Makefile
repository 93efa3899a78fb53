# The first two targets are all a newcomer needs. Each makes .venv from the lock when it is missing or old.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

.PHONY: compare test lint format clean

compare: .venv/.installed  ## compare the six presets on the embedded corpus; writes report.html
	$(BIN)/mixlab compare --report report.html

test: .venv/.installed-dev  ## the whole suite, on two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist report.html

# torch first and by its exact version: a bare "torch" from another package's needs may pick a CUDA build.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --editable '.[dev]'
	touch $@
