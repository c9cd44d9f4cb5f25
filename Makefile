# Everything a developer or a newcomer types. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STEPS ?=
ARGS ?=
# Processes that run tests.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo stack test check fix bench docs dashboards pictures matrix wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.demo ## train a small real model with a few real faults and watch it
	$(BIN)/training-exporter demo $(if $(STEPS),--steps $(STEPS)) $(ARGS)

stack: $(VENV)/.demo ## the demo with Prometheus and Alertmanager beside it
	@$(BIN)/python -m scripts.stack $(if $(STEPS),--steps $(STEPS)) $(ARGS)

test: $(VENV)/.dev ## run the tests
ifeq ($(ARGS),)
	@failed=0; set -x; \
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not alone" || failed=1; \
	$(BIN)/python -m pytest -m alone || failed=1; \
	{ set +x; } 2>/dev/null; exit $$failed
else
	$(BIN)/python -m pytest $(ARGS)
endif

check: $(VENV)/.dev ## lint, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.11 grafana/training_dashboards
	PYTHONPATH=grafana $(BIN)/lint-imports --no-cache

fix: $(VENV)/.dev ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## run the benchmarks, each beside a peer
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev ## write docs/metrics.md and docs/detectors.md from the code
	$(BIN)/training-exporter metrics --markdown > docs/metrics.md
	$(BIN)/training-exporter detectors --markdown > docs/detectors.md

dashboards: $(VENV)/.dev ## build grafana/dashboards/*.json from grafana/training_dashboards
	PYTHONPATH=grafana $(BIN)/python -m training_dashboards

pictures: $(VENV)/.demo ## draw docs/images of the dashboards; needs prometheus, chromium and npm
	grafana/pictures/draw.sh

matrix: $(VENV)/.dev ## run the Trainer tests on older releases of transformers
	$(BIN)/python tests/matrix/run.py $(ARGS)

wheel: $(VENV)/.dev ## build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# The demo needs less than development does, so a newcomer waits for less.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) for the demo (PyTorch and transformers; this takes a minute or two)"
	$(PIP) --constraint constraints.txt --editable '.[transformers]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) for development (this takes a minute or two)"
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo
