# Everything a newcomer runs. `make demo` is the place to start.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOME_DIR ?= demo-home
SEED ?= 7
RUNS ?= 200
SECONDS ?= 60
JOBS ?= 2
VALIDATORS ?= 4
RETAIN ?= 0

.PHONY: help demo devnet test test-slow nightly lint format venv sim twins mutants model rejoin chaos soak throughput hardening compiled kernels peers lds fuzz gpu-check gpu-devnet interop machines vectors clean

help: ## say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: venv ## four validators and a full node play the whole story, check every promise, and exit
	@$(BIN)/openledger demo --home $(HOME_DIR)

devnet: venv ## the same, then stays up until Ctrl-C
	@$(BIN)/openledger devnet --home $(HOME_DIR)

test: venv ## every test that needs no network, no accelerator and no patience
	@$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

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

sim: venv ## seeded consensus schedules; SEED=7 RUNS=200 replays them, SIM_FLAGS="--compiled .sim --state .sim/state" for a campaign
	@$(BIN)/python -m tests.simulation --seed $(SEED) --runs $(RUNS) --jobs $(JOBS) $(SIM_FLAGS)

twins: venv ## every Twins scenario of three rounds, then drawn ones of six
	@$(BIN)/python -m tests.twins --rounds 3 --jobs $(JOBS)
	@$(BIN)/python -m tests.twins --rounds 6 --random 5000 --jobs $(JOBS)

mutants: venv ## break every rule of the protocol once: the tests must notice
	@$(BIN)/python -m tests.simulation.mutants --check --jobs $(JOBS)

model: venv ## every history of the rules within a bound, each rule's need, and histories played on real replicas
	@$(BIN)/python -m tests.model --rounds 3

compiled: venv ## the daemon's hot modules as machine code, and their tests on it: docs/compiled.md
	@$(BIN)/python -m scripts.compile --out build/compiled
	@$(BIN)/python -m tests.compiled

kernels: venv ## numba's kernels of the exact engine: installed, compiled, compared with torch's paths bit for bit
	@$(BIN)/pip install -qq --disable-pip-version-check "numba==0.68.1" "llvmlite==0.50.0"
	@$(BIN)/python -m attribution.exact.fused
	@$(BIN)/pytest -q tests/unit/attribution tests/machines

peers: venv ## kronfluence, bergson and dattri in .venv/peers, for `make lds`
	@PYTHON=$(BIN)/python sh scripts/peers.sh

lds: venv ## how well scores foretell training without some records, beside other methods: about an hour
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.lds --state build/lds

rejoin: venv ## a validator that was away: its catch-up beside the chain's growth
	@$(BIN)/python -m benchmarks.rejoin --json

chaos: venv ## real processes under load, killed, stopped, cut off, out of disk, lied to, while validators come and go; SECONDS=120 VALIDATORS=4
	@$(BIN)/python -m tests.chaos --validators $(VALIDATORS) --seconds $(SECONDS) --seed $(SEED)

soak: venv ## an hour of load: memory, disk and latency, judged by their slopes; RETAIN=512 with pruning
	@$(BIN)/python -m tests.chaos.soak --minutes 60 --retain $(RETAIN)

throughput: venv ## transactions a second, finality and CPU a transaction, on real processes
	@$(BIN)/python -m benchmarks.throughput --validators $(VALIDATORS) --seconds 20

hardening: venv ## remove each hardening once from a copy of the tree: its tests must fail
	@$(BIN)/python -m tests.hardening

fuzz: venv ## coverage-guided garbage for every decoder that reads from a peer or a client; SECONDS=60 each
	@$(BIN)/pip install -qq --disable-pip-version-check atheris==3.0.0
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

machines: venv ## golden hashes under every instruction set and thread count that this machine can be told to use
	@$(BIN)/python -m tests.machines

gpu-check: venv ## everything a GPU can be asked: golden hashes, tests, self-check, speeds; says so where there is none
	@$(BIN)/python -m tests.machines.gpu

gpu-devnet: venv ## a devnet whose first validator computes on a GPU and the others on the CPU: one hash for every audit
	@$(BIN)/python -m tests.machines.gpu_devnet

interop: venv ## a js-libp2p node talks to ours; needs Node.js 20 or newer
	@cd tests/interop && npm ci --silent --ignore-scripts --no-audit --no-fund
	@$(BIN)/pytest tests/interop

nightly: venv ## the property tests with twenty times the examples
	@HYPOTHESIS_PROFILE=nightly $(BIN)/pytest --timeout 3600 tests/property tests/fuzz tests/unit

vectors: venv ## hold the golden bytes in tests/vectors against the code
	@$(BIN)/python -m tests.vectors

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
