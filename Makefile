# What one types here. Everything runs in .venv, which `setup` makes and keeps up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests end to end wait more than they work, so there may be more workers than cores.
WORKERS ?= 4
READY := $(VENV)/.ready

.DELETE_ON_ERROR:
.PHONY: help setup up demo test soak mutants bench lint audit

help: ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(READY) ## Install PulseGuard and what it needs into .venv

# Again only when one of these changed. The stamp lies in .venv, so that it goes with it.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo 'PulseGuard runs on Python 3.10 to 3.13. Name one: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo 'This Python cannot make virtual environments. On Debian: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

up: setup ## Start the platform against CoinGecko
	$(BIN)/pulseguard up

demo: setup ## Start the platform against the simulator: no key, no internet
	$(BIN)/pulseguard demo

test: setup ## Run all tests but the long ones
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

soak: setup ## Run the long tests
	$(BIN)/pytest -m soak -n $(WORKERS) --dist loadfile --no-loadscope-reorder --timeout 3600

mutants: setup ## Break one rule after the other, and see a test turn red for each
	$(BIN)/python tests/mutants/run.py

bench: setup ## Measure, and print the figures as tables
	$(BIN)/python -m benchmarks

lint: setup ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

audit: setup ## Check what is installed, and ask for known vulnerabilities where there is internet
	$(BIN)/python -m pip check --disable-pip-version-check
	$(BIN)/python .ci/advisories.py
