# Everything here works from a fresh clone with CPython >= 3.11, its venv module, git and make; as root or not.
# The first target that needs it makes .venv and installs what pyproject.toml names.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first Python that is new enough and can make virtual environments; set PYTHON to choose another.
PYTHON ?= $(shell for candidate in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v "$$candidate"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then: a tenth of what pip would compile.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
# Five at a time on two cores: many tests wait for a server most of the time.  Each has servers of its own.
JOBS ?= 5
# Hundreds of processes are started: none should compile all its modules again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal
ARGS ?=

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: $(VENV)/.runtime ## Run 10,000 real HTTP requests through a log, end to end
	@$(BIN)/logstore demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## Everything that must hold: `make check`, then every test
	@$(MAKE) --no-print-directory --jobs=2 check .tests

# Beside the checks: those use one core.
.PHONY: .tests
.tests: .collected
	$(PYTEST) $(ARGS)

.PHONY: test-all
test-all: check ## The same on every server in both colours, with the long versions of tests (a quarter of an hour)
	$(PYTEST) --all $(ARGS)

# Compiles the tests and what they import, once: the processes that run them all need it at the same time.
.PHONY: .collected
.collected: $(VENV)/.dev
	@$(BIN)/python -m pytest --collect-only --quiet $(ARGS) >/dev/null 2>&1 || true

.PHONY: check
check: $(VENV)/.dev ## Style, types, layers and generated files; no tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/unasync.py --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev ## Write the generated files and format everything
	$(BIN)/python tools/unasync.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.dev ## Measure, against the raw ceiling in the same run
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## Kill members of a share group at random over 100,000 records (minutes)
	$(BIN)/python -m tests.support.share_chaos $(ARGS)

PROOFS ?= history_chaos every_point producer_chaos exactly_once_chaos transfer_chaos outbox_chaos \
	model_runs worker_killed worker_chaos worker_takeover simulated_day tier_killed compaction_crash quota_chaos mirror_killed

.PHONY: prove
prove: $(VENV)/.dev ## Hold the guarantees against random faults, at length (half an hour; PROOFS=... for some)
	@failed=; for proof in $(PROOFS); do \
		echo "== $$proof"; $(BIN)/python -m tests.support.$$proof $(ARGS) || failed="$$failed $$proof"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

.PHONY: test-cluster
test-cluster: $(VENV)/.dev ## Failovers of a real Patroni group on this machine, and a storm (half an hour; SEED=, FAULTS=)
	LOGSTORE_TEST_CLUSTER=1 LOGSTORE_TEST_SEED=$(SEED) LOGSTORE_TEST_FAULTS=$(FAULTS) \
	$(BIN)/python -m pytest tests/cluster tests/recovery $(ARGS)

.PHONY: test-docker
test-docker: $(VENV)/.dev ## A slice of the tests on a PostgreSQL in a container (Linux, root, Docker's programs)
	$(BIN)/python tools/docker-image/run.py $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with the venv module was found" \
		"(Debian: python3-venv); set PYTHON to one." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime
