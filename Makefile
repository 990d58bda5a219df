# Every target does its own set-up; `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench chaos restarts soak figures audit clean

help: ## List the targets.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## Build .venv with everything in it.

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## Train on digits with ten simulated devices; results in runs/demo.
	@$(BIN)/python -m simulations demo --out $(CURDIR)/runs/demo

check: install ## Format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check ## Format, lint, types and all tests.
	$(BIN)/python -m pytest -n 3 --maxschedchunk 1  # one of them mostly waits: the soak

bench: install ## Seconds a step against the plain PyTorch loop; into runs/bench.json.
	@$(BIN)/python -m simulations bench --out $(CURDIR)/runs/bench.json

compare: install ## Every method on the same data, in its quick form; into runs/compare.
	@$(BIN)/python -m simulations compare --quick --out $(CURDIR)/runs/compare

chaos: install ## Kill devices and their processes at ten moments of a run; records in runs/chaos.
	@$(BIN)/python -m simulations chaos --out $(CURDIR)/runs/chaos

restarts: install ## Kill a deployment's server at twenty moments of a run; records in runs/restarts.
	@$(BIN)/python -m simulations restarts --out $(CURDIR)/runs/restarts

soak: install ## Train for an hour and see whether anything grows; records in runs/soak.
	@$(BIN)/python -m simulations soak --out $(CURDIR)/runs/soak

figures: install ## Every experiment in its quick form; tables and pictures in runs/figures.
	@for name in accuracy deviation overhead scale steps stragglers; do \
		$(BIN)/python -m simulations $$name --quick --out $(CURDIR)/runs/figures/$$name || exit; \
	done

audit: install ## Before a release: known vulnerabilities of what is installed (needs a network).
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audited.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement $(VENV)/audited.txt

clean: ## Remove what the targets made.
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
