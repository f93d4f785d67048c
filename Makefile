# Every target does its own set-up; Python 3.11 or newer is all it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# One worker for each core; a worker that is done takes tests from the others.
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses auto --dist worksteal
ROUNDS ?= 25
API := $(addprefix limner.,adapters client datasets errors geometry io metrics models pipeline prompts render runtime server sessions train)

.PHONY: demo test test-fast test-long coverage lint format docs sbom clean help

help:
	@echo "make demo       set up, then delineate real images and phantoms; prints where the overlays are"
	@echo "make test       set up, then run the tests, in parallel; all but what only test-long runs"
	@echo "make test-fast  the tests that take no seconds each: for every save"
	@echo "make test-long  published networks at full size; kill, fuzz and property tests with"
	@echo "                ROUNDS=$(ROUNDS) times the seeds and examples"
	@echo "make coverage   all tests, then which lines none of them ran"
	@echo "make lint       set up, then check style and types"
	@echo "make format     style that can be mended by itself"
	@echo "make docs       the API reference from the docstrings, into docs-html/"
	@echo "make sbom       what an installation with all extras consists of, as CycloneDX: sbom.json"
	@echo "make clean      remove the environment and everything generated"

demo: $(VENV)/.core
	$(BIN)/limner demo

test: $(VENV)/.test
	$(PYTEST) $(PARALLEL) -m "not full_size"

test-fast: $(VENV)/.test
	$(PYTEST) $(PARALLEL) -m "not slow and not full_size"

test-long: $(VENV)/.test
	LIMNER_TEST_ROUNDS=$(ROUNDS) $(PYTEST) $(PARALLEL) -m "long or full_size"

coverage: $(VENV)/.test
	$(PYTEST) $(PARALLEL) --cov --cov-report=term --cov-report=html:coverage-html

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/pdoc --docformat google --output-directory docs-html limner $(API)

# An environment of its own: the tools are no part of what they list.
sbom: $(VENV)/.docs
	$(PYTHON) -m venv $(VENV)/installed
	$(VENV)/installed/bin/python -m pip --quiet install --constraint constraints.txt '.[all]'
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file sbom.json $(VENV)/installed/bin/python

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

$(VENV)/.docs: $(VENV)/.core
	$(PIP) install --constraint constraints.txt --group docs --group release
	@touch $@

clean:
	rm -rf $(VENV) demo-output docs-html sbom.json coverage-html .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
