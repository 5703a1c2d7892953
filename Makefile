# One command each; `make` alone lists them. Needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
DEV := requirements/dev.txt
RUN := requirements/run.txt

# An environment whose Python has gone (an upgrade of the system) is made anew.
$(shell [ -x $(BIN)/python ] || rm -f .venv/.run .venv/.dev)

# An environment for development has all that running needs.
INSTALLED := $(if $(wildcard .venv/.dev),.venv/.dev,.venv/.run)

.DEFAULT_GOAL := help
.PHONY: help run test check bench lock clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(INSTALLED) ## Start Onsale on http://127.0.0.1:3000 (PORT), data in ./data; Ctrl-C stops it
	@exec $(BIN)/onsale up

test: .venv/.dev ## Run the whole test suite
	$(BIN)/pytest

check: .venv/.dev ## Look at format, lint, types and contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit tests/architecture

bench: .venv/.dev ## Measure positions among a million waiters (40 s)
	$(BIN)/python loadtests/bench_positions.py

lock: .venv/.dev ## Write requirements/*.txt anew from pyproject.toml
	@$(PIP) install -q --upgrade --target .venv/uv uv
	$(call compile,$(RUN),--group build)
	$(call compile,$(DEV),--group build --group dev)

clean: ## Remove the virtual environment and all caches; ./data stays
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define compile
	.venv/uv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-header pyproject.toml $(2) -o $(1)
endef

# A lock that has changed, or another version of the project, installs again. The project itself
# is installed as a link to this directory, with the build tools of the lock and no others.
define install
	@echo "Installing $(1) into .venv ($(2)) ..."
	@$(have_pip)
	@$(PIP) install -q --require-hashes -r $(1)
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@
endef

# Debian keeps ensurepip in a package of its own: without it a pip of the system serves, if any.
have_pip = $(BIN)/python -m pip --version >/dev/null 2>&1 \
  || $(BIN)/python -m ensurepip >/dev/null 2>&1 \
  || $(PYTHON) -m pip --python $(BIN)/python install -q pip \
  || { echo "$(PYTHON) has neither ensurepip nor pip (on Debian: apt install python3-venv)" >&2; exit 1; }

.venv/.run: $(RUN) pyproject.toml | $(BIN)/python
	$(call install,$(RUN),about 20 s)

.venv/.dev: $(DEV) pyproject.toml | $(BIN)/python
	$(call install,$(DEV),about 40 s)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON): install Python 3.11 or newer, or make PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Onsale needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    "try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear --without-pip .venv
