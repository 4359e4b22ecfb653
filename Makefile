# Every target does its own set-up: on a fresh clone `make demo` and `make test` are all there is to type.
# Another interpreter or folder for the environment: make test PYTHON=python3.12 VENV=../adaptok-venv

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
JOBS ?= auto
BENCH ?= $(basename $(notdir $(shell grep -l __main__ benchmarks/*.py)))

# The extras that are installed and tested; CI installs the same.
EXTRAS := train,vision,images,sweeps,ray,onnx,hf,dev

BIN := $(VENV)/bin
STAMP := $(VENV)/.adaptok-installed
DOCS_STAMP := $(VENV)/.adaptok-docs-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt

# One thread per process: small tensors gain nothing from more, and busy machines lose a lot.
export OMP_NUM_THREADS ?= 1
# Compiling every test and module anew in each of the many processes takes minutes.
unexport PYTHONDONTWRITEBYTECODE

# JOBS processes test side by side, by default one per core; JOBS=0 tests in one.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast test-slow test-browser lint format type bench reproduce release docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Create the environment (every other target does so by itself)

demo: $(STAMP)  ## Train IAP beside fixed patches on generated PDE data; table and pictures
	$(BIN)/adaptok demo

test: $(STAMP)  ## Lint, types and the fast tests, side by side
	$(MAKE) --no-print-directory -j3 lint type test-fast

test-fast: $(STAMP)  ## The fast tests alone
	$(PYTEST) -m "not slow and not gpu and not browser" $(PYTEST_ARGS)

# They wait for other processes half of the time: one more than there are cores keeps these busy.
test-slow: JOBS := $(if $(filter auto,$(JOBS)),$(shell expr `getconf _NPROCESSORS_ONLN` + 1),$(JOBS))
test-slow: $(STAMP)  ## The slow tests
	$(PYTEST) -m "slow and not gpu and not browser" $(PYTEST_ARGS) \
	  || test $$? -eq 5  # 5: no such test in the selection, which is no failure

test-browser: $(STAMP)  ## The report in headless Chromium (needs chromium and chromedriver)
	$(PYTEST) -m browser $(PYTEST_ARGS)

lint: $(STAMP)  ## Style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache  # its cache misses modules that appear later

format: $(STAMP)  ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP)  ## Static types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)  ## The benchmarks (or one: make bench BENCH=refinement); results in docs/benchmarks/
	set -e; for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name; done

reproduce: $(STAMP)  ## A table of a paper: make reproduce EXP=iap_table1 [SCALE=small] [DRY=1] [ARGS="data.base=/disk"]
	$(BIN)/python experiments/reproduce.py $(EXP) --scale $(or $(SCALE),full) $(if $(DRY),--dry-run) $(ARGS)

release: $(STAMP)  ## Wheel, source distribution and small trained models, into dist/
	$(BIN)/python -m build --no-isolation
	$(BIN)/python experiments/checkpoints.py dist/models

docs: $(DOCS_STAMP)  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict -f docs/mkdocs.yml

clean:  ## Remove caches and build products, keep the environment, data and runs
	rm -rf build dist site .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find adaptok tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "adaptok needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) \
	  || { rm -rf $(VENV); echo "no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }

# Order-only: the interpreter's own time stamp says nothing about what is installed.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing adaptok and what it needs into $(VENV) (once; PyTorch is a large download)"
	$(PIP) -e '.[$(EXTRAS)]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) -e '.[docs]'
	@touch $@
