# Few verbs, one door. `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CACHE := $(or $(QUILL_MODELS_CACHE),$(HOME)/.cache/quillstream)

.DEFAULT_GOAL := help
.PHONY: help setup weights demo test test-models chaos check bench up clean

help: ## list the verbs
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## virtual environment with everything the product and its tests need

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "quillstream needs Python 3.11 to 3.13; this is " + sys.version.split()[0] + ": set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the dependencies (about 3 minutes with a warm package cache)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -e '.[dev]'
	@touch $(INSTALLED)

weights: $(INSTALLED) ## all model weights (1.8 GB, once per machine), ready to serve and to train
	@$(BIN)/python -m infra.models fetch all
	@$(BIN)/python -m infra.llm.weights qwen2.5-coder-0.5b-instruct

demo: weights ## the whole loop on real text; eight minutes on two fast cores the first time, under one after that
	@$(BIN)/quill demo $(ARGS)

test: $(INSTALLED) ## every test; those that need the large weights run where the cache holds them
	@$(BIN)/python -m infra.models fetch smollm2-135m-instruct all-minilm-l6-v2
	@$(BIN)/python -m pytest -q $(ARGS)

test-models: weights ## the tests that need the large weights; a skip is a failure
	@QUILL_TESTS_SKIP_IS_FAILURE=1 $(BIN)/python -m pytest -q -m models $(ARGS)

chaos: $(INSTALLED) ## kills, outages, poison, bit flips and canaries at full size, with their counts; about an hour
	@$(BIN)/python -m infra.models fetch smollm2-135m-instruct all-minilm-l6-v2
	@QUILL_CHAOS=full $(BIN)/python -m pytest -q -s --show-capture=no --timeout=3600 tests/chaos $(ARGS)

check: $(INSTALLED) ## lint, types, room boundaries
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: weights ## measurements against peers, written to benchmarks/results
	@$(BIN)/python -m benchmarks $(ARGS)

up: weights ## API and consumers on loopback
	@$(BIN)/quill up $(ARGS)

clean: ## forget the state of this clone (weights in the user's cache stay)
	rm -rf .quillstream .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
