PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
ARGS ?=

.PHONY: serve test lint benchmark clean

## serve the embedded models: make serve PORT=8000 ARGS="--model shapes"
serve: $(VENV)/.installed
	$(BIN)/stride serve --port $(PORT) $(ARGS)

## everything that must hold before a commit, a process a core; ARGS go to pytest
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

## speed, on a quiet machine
benchmark: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/benchmarks -m benchmark -s $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --editable .
	$(BIN)/python -m kernels.cpu
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	$(BIN)/python -m kernels.cpu
	touch $(VENV)/.installed $@
