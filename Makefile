# `make help` lists the commands. The first of any sets everything up; the next installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
NEWEST := .venv-newest/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup train check format test test-slow docs clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make .venv with everything, .venv/bin/asr included

train: $(INSTALLED) ## train and score a recogniser of spoken digits; ARGS="key=value ..." overrides
	$(BIN)/python launch.py $(ARGS)

check: $(INSTALLED) ## format, lint, types, the import contract and the released experiments
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/asr experiments check

format: $(INSTALLED) ## put the code into its format and mend what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(INSTALLED) ## the fast tests, under 5 minutes on 2 cores
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(INSTALLED) $(NEWEST) ## the tests that train for minutes, and all with the newest transformers and no optimum-habana
	$(BIN)/python -m pytest -m slow $(ARGS)
	.venv-newest/bin/python -m pytest $(ARGS)
	.venv-newest/bin/python -m pytest -m slow tests/engines tests/e2e/test_launch.py $(ARGS)

docs: $(INSTALLED) ## build the pages of docs/ into site/
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## remove both environments and caches; outputs/ stays
	rm -rf site .venv .venv-newest .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info

# torch first, by its exact pin: a range would bring gigabytes of CUDA packages
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gaudi,digits,phonemes,dev]'
	@touch $@

# what optimum-habana's last release holds back: the newest transformers, for trainer.engine=transformers
$(NEWEST): pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet "$$(grep '^torch==' constraints-newest.txt)"
	.venv-newest/bin/pip install --quiet --constraint constraints-newest.txt --editable '.[digits,phonemes,dev]'
	@touch $@
