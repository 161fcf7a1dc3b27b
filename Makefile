# Everything goes through .venv, which `make setup` makes. All that a machine needs is Python >= 3.11 with venv, and make.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY := .venv/bin/python
STAMP := .venv/.complete
SEEDS ?= 200
SIM_SECONDS ?= 10
CYCLES ?= 10
MINUTES ?= 10
KEYS ?= 1000000
WORKLOAD ?= register
NEMESIS ?= partition,kill
SECONDS ?= 60
INPUTS ?= 1000000
SEED ?= 1
OPS ?= 5000

# A candidate must run, not only exist: version managers leave launchers for versions that they don't have. 3.13 comes
# first: it is what the image has, and as Debian builds it makes 1.1 times the puts of a plain build of 3.11.
PYTHON ?= $(shell for p in $$(type -ap python3.13 python3.12 python3.11 python3 python); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# The tests start some hundred nodes: each would compile the package anew where no bytecode is written.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup test check demo sim sim-coverage sim-mutants crash powercut churn jepsen jepsen-all bench bench-quick bench-faces bench-stall bench-rpc fuzz-rpc etcd-diff etcd-matrix interop-setup interop-lock interop-perf interop-upstream interop-patroni compose-test protos format lock floors clean

help: ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything; quick when nothing changed.

$(STAMP): pyproject.toml requirements.lock requirements-dev.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python >= 3.11 with venv found; install one, or say which: make setup PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@# Nothing is resolved here: the locks name every file by its hash, the build backend's too.
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock -r requirements-dev.lock
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup ## The whole suite, in four runs of pytest at once.
	@$(PY) -m tools.suite

check: setup ## Lint, format, types, floors, generated code, house rules.
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m tools.protos --check
	$(PY) -m pytest tests/test_house.py

demo: setup ## Three nodes, thousands of files, a killed leader: watch nothing get lost.
	@$(PY) -m tools.demo

sim: setup ## Whole clusters on virtual time: SEEDS=200 SIM_SECONDS=10.
	$(PY) -m nebuladb.sim --seeds $(SEEDS) --seconds $(SIM_SECONDS)

sim-coverage: setup ## Which lines of raft/, kv/ and node/ the simulator runs by itself.
	$(PY) -m tools.sim_coverage --seeds 60 --lines

sim-mutants: setup ## Known bugs are put back, one at a time; the simulator must find each.
	$(PY) -m tools.mutants

crash: setup ## kill -9 under load, then check what was acknowledged: CYCLES=10.
	$(PY) -m tests.integration.crash --cycles $(CYCLES)

churn: setup ## Nodes die, come, go and are replaced under load: MINUTES=10.
	$(PY) -m tests.integration.churn --minutes $(MINUTES)

powercut: setup ## The same with the unsynced bytes cut off: CYCLES=10; needs a C compiler.
	$(PY) -m tests.integration.powercut --cycles $(CYCLES)

bench: setup ## Three nodes of etcd and three of ours in turns: rates, latencies, CPU, memory, ratios; 10 minutes.
	@$(PY) -m bench.face

bench-quick: setup ## The same in less than 2 minutes: put and range only.
	@$(PY) -m bench.face --quick

bench-faces: setup ## Etcd's API against nebula.v1 on our own nodes, 7 paired rounds.
	@$(PY) -m bench.face --faces

bench-stall: setup ## A slow disk, then big operations on KEYS=1000000: how long is the loop away?
	$(PY) -m bench.stall --keys $(KEYS)

fuzz-rpc: setup ## Mutated octets against the HTTP/2 connection: INPUTS=1000000.
	$(PY) -m tests.fuzz.rpc --inputs $(INPUTS)

bench-rpc: setup ## The transport against grpc.aio: the same bytes, client and servicer, in one run.
	$(PY) -m bench.rpc

jepsen: setup ## Real nodes, real faults, checked: WORKLOAD=register NEMESIS=partition,kill SECONDS=60.
	$(PY) -m jepsen --workload $(WORKLOAD) --nemesis $(NEMESIS) --seconds $(SECONDS)

jepsen-all: setup ## Each pair of nemeses and each workload, and a table of the verdicts: SECONDS=60.
	$(PY) -m jepsen.table --seconds $(SECONDS)

etcd-diff: setup ## Random requests to a real etcd and to ours, every answer compared: SEED=1 OPS=5000; needs etcd.
	$(PY) -m tests.etcd.diff --seed $(SEED) --ops $(OPS)

etcd-matrix: setup ## Which test holds which line of docs/etcd-lines.md; exits 1 on a gap.
	@$(PY) -m tools.etcd_matrix

interop-setup: .venv/interop/.complete ## Other people's etcd clients for Python, in an environment of their own.

.venv/interop/.complete: tests/interop/requirements.lock | setup
	$(PY) -m venv --clear .venv/interop
	.venv/interop/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

interop-lock: setup ## Write down the versions of those clients, with hashes.
	.venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--custom-compile-command "make interop-lock" --output-file tests/interop/requirements.lock tests/interop/requirements.in

interop-perf: setup ## `etcdctl check perf` against three nodes: a minute.
	NEBULA_INTEROP_LONG=1 $(PY) -m pytest tests/interop/test_etcdctl.py -k check_perf

interop-upstream: setup ## etcd's own integration tests against clusters of ours: a quarter of an hour; needs Go.
	@$(PY) -m tests.interop.upstream

interop-patroni: interop-setup ## Two of Patroni's candidates over two killed leaders: two minutes.
	@$(PY) -m tests.interop.patroni

compose-test: setup ## The image and the cluster of deploy/compose.yaml with a real engine; skipped where none can be had.
	$(PY) -m tools.compose_test

protos: setup ## Generate nebuladb/pb from proto/.
	$(PY) -m tools.protos

format: setup ## Let ruff format and mend what it can.
	.venv/bin/ruff check --fix-only -q
	.venv/bin/ruff format

lock: setup ## Write the lock files from pyproject.toml; UPGRADE=1 for the newest versions.
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m tools.lock $(if $(UPGRADE),--upgrade)

floors: setup ## The least versions that pyproject.toml allows: whether everything imports with them.
	$(PY) -m tools.floors

clean: ## Remove .venv and all caches.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
