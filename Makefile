# `make demo` and `make test` do all set-up themselves; Python 3.11 or newer is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint format types clean help

help:
	@echo "make demo    set up, then delineate real images and phantoms; prints where the pictures are"
	@echo "make test    set up, then run all tests"
	@echo "make lint    set up, then check style and types"
	@echo "make clean   remove the environment and everything generated"

demo: $(VENV)/.core
	$(BIN)/limner demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "limner needs Python 3.11 or newer; set one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --upgrade pip

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) install --constraint constraints.txt --editable '.[all]' --group test
	@touch $@

# The type checker looks into the packages of the extras, so they have to be there.
$(VENV)/.lint: $(VENV)/.test
	$(PIP) install --constraint constraints.txt --group lint
	@touch $@

clean:
	rm -rf $(VENV) demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
