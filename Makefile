# The README's two commands. PYTHON chooses the interpreter (3.10 to 3.13), VENV the environment's folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINIMUM ?= .venv-minimum

.PHONY: quickstart test lint minimum

quickstart: $(VENV)/installed
	$(BIN)/nni-cssnas run experiments/quickstart/experiment.yml

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# With the lowest versions that pyproject.toml allows; not part of `test`: PyTorch is downloaded once more.
minimum:
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python tests/minimum_versions.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/installed
