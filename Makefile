# Two commands do everything: `make demo` and `make test`. Both make their own
# environment in .venv, from requirements.lock, and can be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint slow torch docs notebook release lock clean

demo: .venv/ready
	$(BIN)/python -m jax_robust_kd.main --config configs/quickstart.py \
	  --workdir runs/quickstart

test: .venv/ready lint
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m 'not slow and not torch' \
	  -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart 0

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

slow: .venv/docs
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow

torch: .venv/ready
	$(BIN)/python -m pip install --quiet torch
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m torch

.venv/ready: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  "Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps -e .
	touch $@

# The site, in build/site, with every link checked. Once the tools are
# installed it needs no network.
docs: .venv/docs
	$(BIN)/python docs/site.py

notebook: .venv/docs
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow tests/test_docs.py \
	  -k tutorial

# Both distributions, and the wheel in an environment of its own.
release: .venv/docs
	rm -rf dist build/release
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet \
	  --disable-pip-version-check dist/*.whl
	cd build && release/bin/jax-robust-kd --version

.venv/docs: .venv/ready docs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r docs/requirements.lock
	touch $@

# One lock for all supported Python versions, by markers.
lock: .venv/ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --quiet \
	  --no-header --no-annotate --no-emit-index-url --extra dev --extra tensorboard \
	  --extra report \
	  setup.py -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --quiet \
	  --no-header --no-annotate --no-emit-index-url --extra docs --extra release \
	  --constraint requirements.lock setup.py -o docs/requirements.lock

clean:
	rm -rf .cache .venv build dist runs
