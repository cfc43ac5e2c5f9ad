# Each target makes the virtual environment and installs what it needs by itself; CI calls `make check test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# pip compiles every file one by one; all at once on every core, without what is never imported, is twice as fast.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE = { $(BIN)/python -m compileall -q -j 0 -x '/(plotly|faker|litestar|pip|tests)/' $(VENV)/lib >/dev/null || true; }

.PHONY: demo test check format bench

demo: $(VENV)/.demo  ## the whole loop on a real year of data
	$(BIN)/everloop demo $(ARGS)

test: $(VENV)/.dev  ## unit, Temporal, loop and kill tests on the real parts
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## style, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev  ## what Everloop costs beside plain Temporal, DuckDB, polars and pandas; ROWS=200000 for a small table
	PYTHONPATH=. $(BIN)/python bench/orchestration.py
	PYTHONPATH=. $(BIN)/python bench/recovery.py
	PYTHONPATH=. $(BIN)/python bench/init.py
	PYTHONPATH=. $(BIN)/python bench/chain.py $(if $(ROWS),--rows $(ROWS))
	PYTHONPATH=. $(BIN)/python bench/prepare.py $(if $(ROWS),--rows $(ROWS))

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
