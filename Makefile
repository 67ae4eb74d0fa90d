# `make` lists the tasks. Everything runs inside .venv, which is created on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Results do not depend on the number of threads; more threads than idle cores slow small networks down.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Installing downloads torch, so retry once after a network failure.
define install
@echo "$(BIN)/pip install $(1)"
@$(BIN)/python -m pip install --quiet $(1) || { echo "retrying"; sleep 5; $(BIN)/python -m pip install --quiet $(1); }
endef

PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-all lint format docs api support-matrix bench clean

help:  ## List the tasks.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.installed  ## Explain the sample photo and print the path of the figure.
	$(BIN)/xaihub explain -o xaihub-out
	@echo "Figure: $$(ls -t xaihub-out/*.png | head -n 1)"

test: lint  ## Check style, types and imports, then run the tests.
	$(PYTEST) -m "not slow"

test-all: lint  ## Like test, with the slow tests as well; for nightly runs.
	NUMBA_DISABLE_JIT=0 $(PYTEST)

lint: $(VENV)/.installed-dev  ## Check style, types and import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev  ## Fix the style automatically.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## Regenerate the generated parts of pyproject.toml, README.md and docs/.
	$(BIN)/python -m cogapp -r -U -I docs pyproject.toml README.md $$(find docs -name '*.md' | sort)

api: $(VENV)/.installed-dev  ## Accept an intended change of the public names and hooks.
	$(BIN)/python docs/public_api.py

support-matrix: $(VENV)/.installed-dev  ## Run every explainer on every model family (minutes).
	$(BIN)/python docs/support_matrix.py

bench: $(VENV)/.installed-dev  ## Measure speed relative to bare forward passes and to other libraries (minutes).
	@for file in tests/benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove everything that the other tasks created.
	rm -rf $(VENV) build dist xaihub-out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "xaihub needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,--editable .)
	@touch $@

# Python 3.11 brings a pip that does not know dependency groups yet.
$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,--upgrade 'pip>=25.1')
	$(call install,--editable . --group dev)
	@touch $@ $(VENV)/.installed
