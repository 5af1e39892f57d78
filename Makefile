# Needs Python 3.11 or newer, pip and make; everything else goes into .venv.
#   make demo     three generated domains, six sites: about a minute on 2 cores
#   make test     the fast tests; `make test-slow` starts real processes and takes longer

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install

.PHONY: demo test test-slow lint image supply-chain clean
.DELETE_ON_ERROR:

demo: $(VENV)/core.installed
	$(BIN)/fedfm run experiments/quickstart.toml

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/test.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/test.installed
	$(BIN)/ruff check .

# The container image; ARGS for more, e.g. ARGS="--build-arg TORCH_INDEX=..." (docker/README.md).
DOCKER ?= docker
image:
	$(DOCKER) build -f docker/Dockerfile -t localhost/fedfm:latest $(ARGS) \
	  --build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	  --build-arg COMMIT=$$(git rev-parse --short HEAD) .

# A report and no verdict: build/sbom.json and build/audit.txt, of what the image installs.
supply-chain: $(VENV)/supply-chain.installed
	$(BIN)/python scripts/supply_chain.py $(VENV)/supply-chain build

clean:
	rm -rf $(VENV) build *.egg-info

# Debian's python3 has venv but no ensurepip: there the environment gets its pip from the outside.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("fedfm needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }

$(VENV)/core.installed: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

# Tools with dependencies of their own, which must not move those under test.
$(VENV)/supply-chain.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/supply-chain || $(BIN)/python -m venv --clear --without-pip $(VENV)/supply-chain
	$(BIN)/python -m pip --python $(VENV)/supply-chain/bin/python install 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	@touch $@

$(VENV)/test.installed: $(VENV)/core.installed
	$(PIP) -e '.[test,minilm]'
	@touch $@
