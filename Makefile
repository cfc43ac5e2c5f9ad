# Each target makes the virtual environment and installs what it needs by itself; CI calls `make check test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# pip compiles every file one by one; all at once on every core, without what is never imported, is twice as fast.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE = { $(BIN)/python -m compileall -q -j 0 -x '/(plotly|faker|litestar|pip|tests)/' $(VENV)/lib >/dev/null || true; }

.PHONY: demo test check format bench proof-compute proof-sleep proof-leases proof-lease-kills proof-gangs proof-clusters proof-log proof-search proof-watch

demo: $(VENV)/.demo  ## the whole loop on a real year of data
	$(BIN)/everloop demo $(ARGS)

# Hundreds of processes start in the tests: where an image forbids bytecode, each would compile our packages again.
test: $(VENV)/.dev  ## unit, Temporal, loop and kill tests on the real parts
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## style, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

BENCHES := orchestration recovery init stack_memory chain prepare torch_tabular serving prediction_log leases lease_ledger search_overhead single_row automl drift pool_simulation
bench: $(VENV)/.dev  ## what Everloop costs, beside others; ROWS=200000 for small tables; ONLY="init prepare" for some; automl: MINUTES=, ARGS="--only peers"
	@missed=0; for name in $(or $(ONLY),$(BENCHES)); do echo "== $$name"; \
	  $(BIN)/python -m bench.$$name $(if $(ROWS),$$(case $$name in (prepare|chain) echo --rows $(ROWS);; esac)) \
	    $$(case $$name in (automl) echo $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS);; esac) \
	  || missed=1; done; exit $$missed

proof-compute: $(VENV)/.dev  ## faults at random moments of trainings; MINUTES=, SEED= (the same goes on), TRAINER=torch, PLANT=1..3
	$(BIN)/python -m tests.faults.proof_compute

proof-watch: $(VENV)/.dev  ## kill -9 of each process in a check, its decision and the start: one retraining; KILLS=, MINUTES=, SEED=, PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_watch

proof-leases: $(VENV)/.dev  ## anything happens to a pool, EXAMPLES=50000 times; MINUTES=, SEED= (the same goes on), PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_leases

proof-sleep: $(VENV)/.dev  ## the machine sleeps for MINUTES in a training: docs/proof/sleep.csv; PLANT=1..3 must fail
	PYTHONPATH=. $(BIN)/python bench/sleep.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RUNS),--runs $(RUNS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(PLANT),--plant $(PLANT))

proof-log: $(VENV)/.dev  ## kill -9 of prediction servers and of the log's keeper under load: 0 answered rows lost, 0 twice; SEED= (the same goes on), KILLS=20, MINUTES=30, PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_log

proof-gangs: $(VENV)/.dev  ## a gang of four, kill -9 of a rank KILLS=10 times: docs/proof/gangs.csv; SEED=, PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_gangs

proof-clusters: $(VENV)/.dev  ## two hosts with disks of their own (as root: networks and mounts too), Postgres, S3: kill -9 in each phase, a gang across both: docs/proof/clusters.csv; MINUTES=, ROUNDS=3, ONLY=gang, SEED= (the same goes on), PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_clusters

proof-search: $(VENV)/.dev  ## kill -9 of everything at trial 37 of 100, one and four at once: docs/proof/search.csv; MINUTES= for more, SEED= (the same goes on), PLANT=1..3 must fail
	$(BIN)/python -m tests.faults.proof_search

proof-lease-kills: $(VENV)/.dev  ## many jobs on few devices, kill -9 of each process in turn, Temporal too: 0 overlaps, 0 leaks; ARGS="--lifecycles 20", "--gpus" for fractions
	EVERLOOP_SLOTS=4 EVERLOOP_SLOT_CORES=2 $(BIN)/python -m tests.faults.proof_lease_kills $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than pyproject.toml once its extra is installed; `dev` holds everything that `demo` does.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	test $(VENV)/.dev -nt pyproject.toml || { $(PIP) -e '.[compute,demo]' && $(COMPILE); }
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@$(COMPILE)
	touch $@
