# Needs Python 3.11 or newer, pip and make; everything else goes into .venv.
#   make demo     three generated domains, six sites: about a minute on 2 cores
#   make test     the fast tests; `make test-slow` starts real processes and takes longer

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install

.PHONY: demo test test-slow lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/core.installed
	$(BIN)/fedfm run experiments/quickstart.toml

test: $(VENV)/test.installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/test.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/test.installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info

# Debian's python3 has venv but no ensurepip: there the environment gets its pip from the outside.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("fedfm needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }

$(VENV)/core.installed: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test.installed: $(VENV)/core.installed
	$(PIP) -e '.[test,minilm]'
	@touch $@
