# make demo | make test | make lint | make wheel-test. Everything runs in .venv, which the first target makes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := $(shell find csrc -type f)

.PHONY: demo test lint wheel-test clean

demo: $(STAMP)
	$(BIN)/diverseevol run examples/quickstart.yml

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files

wheel-test: $(STAMP)
	bash tests/wheel.sh

# Installs again only when what it is made from has changed, so that a second call needs no network.
$(STAMP): pyproject.toml setup.py CMakeLists.txt constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info diverseevol_fast/_native*.so
