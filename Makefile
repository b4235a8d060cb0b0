# `make help` lists the commands. The first of any sets everything up; the next installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup train check format test test-slow clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make .venv with everything, .venv/bin/asr included

train: $(INSTALLED) ## train and score a recogniser of spoken digits; ARGS="key=value ..." overrides
	$(BIN)/python launch.py $(ARGS)

check: $(INSTALLED) ## format, lint, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## put the code into its format and mend what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(INSTALLED) ## the fast tests, under 5 minutes on 2 cores
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(INSTALLED) ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info

# torch first, by its exact pin: a range would bring gigabytes of CUDA packages
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gaudi,digits,phonemes,dev]'
	@touch $@
