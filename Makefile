# Everything one does here, by name. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := broker edge_api remote_worker
# The first of these that exists and is new enough; `make PYTHON=/path/to/python3.12` picks another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v $$p; break; fi; done)
# Twice quiet: errors only. Warnings are about the caller's pip configuration, not about us.
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.made ## One real job from queue to patch, in one terminal (REPO=… INSTRUCTION="…" for your own)
	@$(BIN)/python deploy/demo/demo.py

.PHONY: up
up: $(VENV)/.made ## The whole stack on this machine until Ctrl-C (ARGS="--workers 2" and so on)
	@exec $(BIN)/drawbridge up $(ARGS)

.PHONY: test
test: $(VENV)/.made codex ## Every test, against real servers; says what it had to skip
	@# A file is one process's: its servers are shared. Most tests wait more than they compute.
	@# The order is that of tests/order.py; loadfile's own begins with the many short ones.
	@$(BIN)/pytest tests -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: check
check: lint safe ## The gate before every commit: format, lint, types, imports, safety, fast tests
	@$(BIN)/pytest -q -n 2 -m "not slow" tests/unit tests/contract tests/attacks

.PHONY: lint
lint: $(VENV)/.made ## Format, lint, types and import contracts; changes nothing
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >$(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

.PHONY: safe
safe: $(VENV)/.made ## Look for what is unsafe in the code, and known to be so in the lock
	@# B108, temporary paths, is ruff's S108, which wants a reason on the line
	@$(BIN)/bandit --quiet --skip B108 --severity-level medium --recursive $(PACKAGES) deploy
	@.ci/audit $(BIN) $(VENV)/.audited

.PHONY: format
format: $(VENV)/.made ## Put the code in shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --quiet --fix .

.PHONY: bench
bench: $(VENV)/.made ## Measure throughput and latency beside a native Celery worker
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.made ## Break all that can break, and see that no promise does (ARGS="--seed 1 --seconds 60" …)
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: soak
soak: $(VENV)/.made ## Work one worker hard while it and its edge are killed (ARGS="--jobs 500 --seed 1" …)
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.made ## Make thousands of requests of the edge's own description (ARGS="--seed 1 --cases 300" …)
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: openapi
openapi: $(VENV)/.made ## Write edge_api/openapi.json from the code
	@$(BIN)/python -m edge_api.openapi

.PHONY: lock
lock: ## Pin every dependency anew in requirements.lock
	@bash .ci/lock $(PYTHON)

.PHONY: venv
venv: $(VENV)/.made ## Make .venv with everything installed; again only when the lock changes

.PHONY: clean
clean: ## Remove what make made (the Codex CLI cached in .demo stays)
	@rm -rf $(VENV) build dist *.egg-info .coverage* htmlcov \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(PACKAGES) tests deploy -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.locked: requirements.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with its venv module was found on PATH." >&2; \
		echo "Install one (Debian: apt-get install python3 python3-venv)" >&2; \
		echo "or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; fi
	@echo "making $(VENV) with $(PYTHON) (a minute or so)…"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.made: $(VENV)/.locked setup.cfg pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# At home the tests that need Codex skip, loudly; in CI there is no excuse.
.PHONY: codex
codex: $(VENV)/.made
	@if ! $(BIN)/python deploy/demo/install_codex.py >$(VENV)/codex.log; then \
		if [ -n "$${CI:-}" ]; then echo "CI needs the Codex CLI." >&2; exit 1; fi; \
		echo "Going on without the Codex CLI." >&2; fi
