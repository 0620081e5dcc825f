# Everything from a fresh clone: `make demo`, `make test`, `make check`, `make bench`.
PYTHON ?= python3
BIN := .venv/bin
TYPES := build/types/gossamer

.PHONY: demo test check format bench clean

demo: .venv/installed
	$(BIN)/gossamer demo

test: .venv/installed-test
	$(BIN)/python -m pytest

check: .venv/installed-test $(TYPES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/types $(BIN)/mypy -p gossamer

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-test
	$(BIN)/python -m benchmarks.kernels

clean:
	rm -rf .venv build runs *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "gossamer needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -c constraints.txt -e .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	@touch $@ .venv/installed

# The three folders are three packages of one namespace; mypy finds them through these links.
$(TYPES):
	mkdir -p $@
	for name in engine kernels transport; do ln -sfn ../../../$$name $@/$$name; done
