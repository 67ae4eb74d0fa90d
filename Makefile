# `make` lists the tasks. Everything runs inside .venv, which is created on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Results do not depend on the number of threads; more threads than idle cores slow small networks down.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Installing downloads torch, so retry once after a network failure.
define install
@echo "$(BIN)/pip install $(1)"
@$(BIN)/python -m pip install --quiet $(1) || { echo "retrying"; sleep 5; $(BIN)/python -m pip install --quiet $(1); }
endef

UV = $(BIN)/uv
# The announcement is about the next major version, which this site does not use.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(WARNINGS)
# Where changes are checked, warnings that the project's own modules cause are errors.
WARNINGS = $(if $(CI),-o "filterwarnings=error:::(xaihub|tests)")

.PHONY: help demo test pytest test-all test-lowest lint format docs site serve publish-site api support-matrix output-kinds gallery bench lock dist audit release clean

help:  ## List the tasks.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.installed  ## Explain the sample photo and print the path of the figure.
	$(BIN)/xaihub explain -o xaihub-out
	@echo "Figure: $$(ls -t xaihub-out/*.png | head -n 1)"

test: lint pytest  ## Check style, types and imports, then run the tests.

pytest: $(VENV)/.installed-dev  ## Run the tests only.
	$(PYTEST) -m "not slow"

test-all: lint  ## Like test, with the slow tests as well; for nightly runs.
	NUMBA_DISABLE_JIT=0 $(PYTEST)

test-lowest: $(VENV)/.installed-uv  ## Run the tests with the lowest versions that pyproject.toml allows.
	$(UV) run --isolated --resolution lowest-direct --group dev --python 3.11 \
	  python -m pytest -q -n auto --maxprocesses 4 -m "not slow"

lint: $(VENV)/.installed-dev  ## Check style, types and import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev  ## Fix the style automatically.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: regenerated site  ## Regenerate the generated parts of pyproject.toml, README.md and docs/, and build the site.

regenerated: $(VENV)/.installed-dev
	$(BIN)/python -m cogapp -r -U -I docs pyproject.toml README.md $$(find docs -name '*.md' | sort)

site: $(VENV)/.installed-docs  ## Build the documentation site into build/site; broken links are errors.
	$(MKDOCS) build --quiet --config-file docs/site/mkdocs.yml
	@echo "Site: build/site/index.html"

serve: $(VENV)/.installed-docs  ## Preview the documentation site and follow changes.
	$(MKDOCS) serve --config-file docs/site/mkdocs.yml

publish-site: $(VENV)/.installed-docs  ## Publish the site of VERSION beside those of other versions.
	$(BIN)/mike deploy --config-file docs/site/mkdocs.yml --push --update-aliases "$(VERSION)" latest
	$(BIN)/mike set-default --config-file docs/site/mkdocs.yml --push latest

api: $(VENV)/.installed-dev  ## Accept an intended change of the public names, hooks and JSON output.
	$(BIN)/python docs/public_api.py
	$(BIN)/python -m docs.schemas

support-matrix: $(VENV)/.installed-dev  ## Run every explainer on every model family (minutes).
	$(BIN)/python docs/support_matrix.py

output-kinds: $(VENV)/.installed-dev  ## Check every explainer and metric on every kind of output (minutes).
	$(BIN)/python docs/output_kinds.py

gallery: $(VENV)/.installed-dev  ## Draw every explainer on the sample photo for the gallery page (minutes).
	$(BIN)/python docs/gallery.py

bench: $(VENV)/.installed-dev  ## Measure speed relative to bare forward passes and to other libraries (minutes).
	@for file in tests/benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

lock: $(VENV)/.installed-uv  ## Update requirements.lock, the exact versions for development.
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --group dev --group docs pyproject.toml --output-file requirements.lock

dist: $(VENV)/.installed-dev  ## Build the wheel and the source archive; equal sources give equal bytes.
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --quiet
	@$(BIN)/python docs/release.py

audit: $(VENV)/.installed-uv  ## Look up the locked versions in the database of known vulnerabilities, and write an SBOM.
	@mkdir -p dist
	$(UV) tool run pip-audit --disable-pip --require-hashes --requirement requirements.lock \
	  --format cyclonedx-json --output dist/sbom.json

release: test dist audit  ## Check everything for VERSION and print the steps that are left to a person.
	@$(BIN)/python docs/release.py "$(VERSION)"

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

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(call install,--upgrade 'pip>=25.1')
	$(call install,--group docs)
	@touch $@

$(VENV)/.installed-uv: | $(BIN)/python
	$(call install,uv)
	@touch $@
