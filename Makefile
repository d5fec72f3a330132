# Every target does its own set-up: Python 3.11 or newer, make and a network for pip are all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Workers share what the compiler made.
PROGRAMS := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/programs JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 \
  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0
# pip does not compile ahead, so what is imported keeps its bytecode.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(PROGRAMS) $(BIN)/python -m pytest -q -n auto --dist worksteal
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-all notebooks docs lint bench speed laws scaling kill fuzz journal coordinator fleet fleet-simulation choosing rl test-rl test-vllm test-vllm-slice vllm clean

demo: $(VENV)/.core
	$(BIN)/eggroll pretrain --preset demo --run-dir $(DEMO)
	$(BIN)/eggroll sample $(DEMO) --prompt "def " --bytes 400

# Programs are compiled without LLVM's optimisations, which take longer than these tiny tests run; test-all has them.
test: $(VENV)/.test
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(PYTEST) -m "not heavy"

# With further cases of tests that take long: other algorithms killed and gone on with.
test-all: $(VENV)/.test
	$(PYTEST)

# Each in a kernel of its own, as a reader runs them.
notebooks: $(VENV)/.test
	$(PROGRAMS) $(BIN)/python -m pytest -q --nbmake docs/notebooks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/: open site/index.html. A warning is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.core
	$(BIN)/python benchmarks/pretrain.py

speed: $(VENV)/.core
	$(BIN)/eggroll bench speed

laws: $(VENV)/.test
	$(BIN)/python benchmarks/laws.py

scaling: $(VENV)/.core
	$(BIN)/python benchmarks/scaling.py

kill: $(VENV)/.core
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/kill.py --float32

fuzz: $(VENV)/.core
	$(BIN)/python benchmarks/fuzz.py

journal: $(VENV)/.core
	$(BIN)/python benchmarks/journal.py

coordinator: $(VENV)/.core
	$(BIN)/python benchmarks/coordinator.py

fleet: $(VENV)/.test
	$(BIN)/python benchmarks/fleet.py faults
	$(BIN)/python benchmarks/fleet.py faults --ray
	$(BIN)/python benchmarks/fleet.py speed

fleet-simulation: $(VENV)/.core
	$(BIN)/python benchmarks/fleet_simulation.py

# Half an hour on two cores; what is there is not made again.
choosing: $(VENV)/.test
	$(PROGRAMS) $(BIN)/python benchmarks/choosing.py run
	$(BIN)/python benchmarks/choosing.py draw
	$(BIN)/python benchmarks/choosing.py table

# An hour and a half on two cores; what is there is not made again.
rl: $(VENV)/.test
	scripts/install-kinetix.sh
	$(BIN)/python benchmarks/rl.py run
	$(BIN)/python benchmarks/rl.py table
	$(BIN)/python benchmarks/rl.py throughput

# With Kinetix, which `make test` does not install.
test-rl: $(VENV)/.test
	scripts/install-kinetix.sh
	$(BIN)/python -m pytest -q -n auto tests/rl

# Real engines, in an environment of their own: vLLM for the CPU.
test-vllm: .venv-vllm/.done
	.venv-vllm/bin/python -m pytest -q tests/vllm

# What the gate tries of it: one architecture against dense matrices, long prefixes, two ranks, a run.
test-vllm-slice: .venv-vllm/.done
	.venv-vllm/bin/python -m pytest -q tests/vllm -k "stories or prefix or extension or what_every_run"

vllm: .venv-vllm/.done
	.venv-vllm/bin/python benchmarks/engines.py run
	.venv-vllm/bin/python benchmarks/engines.py table
	.venv-vllm/bin/python benchmarks/engines.py speed

.venv-vllm/.done: scripts/install-vllm.sh constraints-vllm.txt pyproject.toml
	PYTHON=$(PYTHON) scripts/install-vllm.sh
	touch $@

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("eggroll needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm build dist site
