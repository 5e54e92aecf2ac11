# Everything one does here, by name. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
# The first of these that exists and is new enough; `make PYTHON=/path/to/python3.12` picks another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v $$p; break; fi; done)
PACKAGES := broker edge_api remote_worker
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## Make .venv with everything installed, again only when the lock changes

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with venv was found on PATH." >&2; \
		echo "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 2; fi
	@echo "making $(VENV) with $(PYTHON) (about a minute)…"
	@rm -f $@
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: clean
clean: ## Remove what make made (the cached Codex CLI in .demo/codex stays)
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	@find $(PACKAGES) tests deploy -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
