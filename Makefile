# make demo: the main job, with a report. make test: the tests. Both set up what they need, once.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# The tests of one file stay in one process, so that what they set up is made once.
PARALLEL = -n $(WORKERS) --maxprocesses 8 --dist loadfile

.PHONY: demo docs wheel extras test test-all lint bench bench-peers bench-datajuicer results mutants setup clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

# One environment for all; made again only when what it holds has changed.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; a few minutes) …"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Diptych needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scenes,weights,report,trackers,curate,ocr,adapt,align,video,serve,index,lancedb,milvus,onnx,openvino,browser,dev]'
	@touch $@

setup: $(VENV)/.ready ## set up .venv with everything

demo: $(VENV)/.ready ## train recipes of several paradigms under one budget, judge them, write runs/demo/report.html
	$(BIN)/diptych demo

test: $(VENV)/.ready lint ## lint, types and the tests
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.ready lint ## the slow and the broad tests too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest $(PARALLEL) -m ''

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests bench examples tools
	$(BIN)/ruff format --check src tests bench examples tools
	$(BIN)/mypy

# What Diptych is measured against, in a directory that only benchmarks look into.
bench/.peers/.ready: bench/peers.txt $(VENV)/.ready
	rm -rf bench/.peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target bench/.peers --requirement bench/peers.txt
	@touch $@

bench-peers: bench/.peers/.ready ## install what Diptych is measured against

# data-juicer needs versions of its own, so it has an environment of its own.
bench/.datajuicer/.ready: bench/datajuicer.txt
	$(PYTHON) -m venv bench/.datajuicer
	bench/.datajuicer/bin/python -m pip install --quiet --disable-pip-version-check --requirement bench/datajuicer.txt
	@touch $@

bench-datajuicer: bench/.datajuicer/.ready ## install data-juicer, pinned, for the case curation-datajuicer

bench: bench-peers ## measure everything, write docs/benchmarks.md (20 minutes; a quiet machine)
	$(BIN)/python -m bench $(CASES)

# A run that is done is not run again: its record is in bench/results/recipes.
TIME ?= 60m
results: $(VENV)/.ready ## runs of recipes that are missing in the results, for TIME (60m); writes docs/results.md and docs/systems
	$(BIN)/python -m bench.recipes --time "$(TIME)"

mutants: $(VENV)/.ready ## mutation testing for TIME (60m): are the tests able to fail? writes docs/mutants.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python -m bench.mutants $(AREAS) --time "$(TIME)"

wheel: ## build the wheel, install it in a new environment, try it; EXTRAS="video serve": each of them alone, too
	$(PYTHON) tools/wheel.py

extras: ## the same for every extra, each alone in an environment of its own (hours, gigabytes)
	EXTRAS=all $(PYTHON) tools/wheel.py

docs: $(VENV)/.ready ## build the site of the docs into build/site, with every link checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## remove the environment and the demo's runs
	rm -rf $(VENV) bench/.peers bench/.datajuicer runs/demo
