# Everything a newcomer runs. `make demo` is the place to start.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOME_DIR ?= demo-home
SEED ?= 7
RUNS ?= 200

.PHONY: help demo devnet test test-slow lint format venv sim clean

help: ## say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: venv ## four validators and a full node play the whole story, check every promise, and exit
	@$(BIN)/openledger demo --home $(HOME_DIR)

devnet: venv ## the same, then stays up until Ctrl-C
	@$(BIN)/openledger devnet --home $(HOME_DIR)

test: venv ## every test that needs no network, no accelerator and no patience
	@$(BIN)/pytest -m "not slow"

test-slow: venv ## the tests that take longer: hostile validator, stopped processes, copied home
	@$(BIN)/pytest -m slow

lint: venv ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: venv ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

sim: venv ## seeded consensus schedules; SEED=7 RUNS=200 replays them
	@$(BIN)/python -m tests.simulation --seed $(SEED) --runs $(RUNS)

venv: $(VENV)/installed ## only install, development tools included

$(VENV)/installed: requirements.lock pyproject.toml
	@echo "Installing pinned dependencies into $(VENV) (once; a minute or two) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OpenLedger needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# libp2p brings outdated type stubs of trio, which would hide the types that trio ships itself.
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $@

clean: ## remove the environment and what demos left
	rm -rf $(VENV) demo-home devnet-home build *.egg-info
