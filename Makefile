PYTHON ?= python3
BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.venv/jax_cache

.PHONY: quickstart test test-slow lint

quickstart: .venv/installed
	$(BIN)/python -m launch.pipeline --config=configs/quickstart.py --workdir=runs/quickstart

# Most of the time goes into compiling; a file's tests share what they fit.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "slow or not slow"

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.venv/installed: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[test]'
	touch $@
