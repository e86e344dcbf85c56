# make train: the main job, end to end.  make test: the tests that take less than 10 s each.  make test-slow: the others.
# make check: formatter, linter, type checker.
# The environment in .venv is built on first use and again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: train test test-slow check install clean

train: $(INSTALLED)
	$(BIN)/python train.py fit -c configs/smoke.yaml
	$(BIN)/python train.py fit -c configs/smoke_parts.yaml

# Threads that sleep while they wait leave the processor to the other processes.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"expected Python 3.11 to 3.13, but {sys.executable} is {v[0]}.{v[1]}: name another one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
