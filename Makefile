# One line a task; `make` lists them. Everything runs inside .venv, which is made when it is first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Results do not depend on it; more threads than cores only slow small networks down.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Installing downloads torch, so one failure of the network is forgiven.
define install
@echo "$(BIN)/pip install $(1)"
@$(BIN)/python -m pip install --quiet $(1) || { echo "retrying"; sleep 5; $(BIN)/python -m pip install --quiet $(1); }
endef

PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-all lint format docs api support-matrix bench clean

help:  ## List the tasks.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.installed  ## Explain the sample photo and say where the image is.
	$(BIN)/xaihub explain -o xaihub-out
	@echo "The image: $$(ls -t xaihub-out/*.png | head -n 1)"

test: lint  ## Check style, types and imports, then run the tests.
	$(PYTEST) -m "not slow"

test-all: lint  ## The same with the slow tests (as the nightly run of continuous integration).
	$(PYTEST)

lint: $(VENV)/.installed-dev  ## Check style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev  ## Fix what can be fixed of the style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## Regenerate the generated parts of pyproject.toml, README.md and docs/.
	$(BIN)/python -m cogapp -r -U -I docs pyproject.toml README.md $$(find docs -name '*.md' | sort)

api: $(VENV)/.installed-dev  ## Pin the public names and the hooks anew, where a change is meant.
	$(BIN)/python docs/public_api.py

support-matrix: $(VENV)/.installed-dev  ## Try every explainer on every family of models (minutes).
	$(BIN)/python docs/support_matrix.py

bench: $(VENV)/.installed-dev  ## Measure speed against bare forward passes and against peers (minutes).
	@for file in tests/benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove what the other tasks made.
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
