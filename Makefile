# Every target sets up what it needs; a fresh clone with Python >= 3.11, pip and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.warm

.PHONY: demo lab test lint bench cassandra simulate lock clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(KERNELS): $(STAMP) $(wildcard kernels/*.py)
	$(BIN)/defender warm
	touch $@

demo: $(KERNELS)  ## a simulated fab, judged end to end; ARGS="--seconds 20 --json"
	@$(BIN)/defender demo $(ARGS)

test: $(KERNELS)  ## all tests, on a real nats-server; ARGS="-k ring"
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=. $(BIN)/mypy deploy/cassandra/cassandra_server.py

bench: $(KERNELS)  ## the figures, as a table; BENCH_QUICK=1 for one short round of each
	$(BIN)/python -m pytest bench $(ARGS)

lab: $(KERNELS)  ## whole fleets compared three ways, under load and faults; ARGS="crash --defenders 8"
	@$(BIN)/defender lab compare $(ARGS)

cassandra: $(STAMP)  ## a one-node Cassandra 5.0 until Ctrl-C; needs Java 17 and Maven; ARGS="--port 0 --data DIR"
	@PYTHONPATH=. $(BIN)/python deploy/cassandra/cassandra_server.py $(ARGS)

simulate: $(STAMP)  ## 100,000 schedules of a simulated fleet; ARGS="5000 --json out.json", ARGS="--seed 7"
	@PYTHONPATH=tests $(BIN)/python -m simulation $(ARGS)

lock: $(STAMP)  ## pins every version again, with hashes and without addresses
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate --extra dev --extra cassandra --extra bench --extra parquet --extra plot \
	  pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate --extra cassandra -c requirements.lock \
	  pyproject.toml -o deploy/docker/requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
