# Needs python3 (3.11 or newer), make and git; everything else is installed into .tools/ and .venv/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench lock build clean

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo-run
# uv from the PATH when there is one, else a private copy in .tools/.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
MEMBERS := shared/contrastive-core packages/cl-foundations packages/cl-graphtext packages/cl-medical \
	packages/cl-retrieval packages/cl-signals packages/cl-video3d apps/bench
THREADS ?= 2

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(UV):
	@echo "==> uv was not found: installing a private copy into .tools/"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "python3 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install --quiet "uv>=0.13,<1"

# The stamp is newer than every file it was made from when nothing has to be done.
.venv/.ready: uv.lock pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS)) | $(UV)
	@echo "==> setting up .venv/ with the locked versions (the first time downloads about 3 GB, most of it torch)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) export --quiet --frozen --all-packages --all-groups --no-emit-workspace -o .venv/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip sync --compile-bytecode --require-hashes .venv/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --no-deps --no-build-isolation $(addprefix -e ,$(MEMBERS))
	@touch $@

setup: .venv/.ready  ## install everything into .venv/, every command on .venv/bin
	@echo "==> ready: $(BIN)/cl-signals --help"

demo: .venv/.ready  ## synthetic pre-training to real series in minutes, ends with a report
	@$(BIN)/cl-signals mantis demo $(DEMO) --overwrite

test: lint  ## lint, types, architecture and all tests
	@echo "==> tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist worksteal

lint: .venv/.ready  ## ruff (lint and format check), mypy, import-linter
	@echo "==> ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: .venv/.ready  ## rewrite the code in the house format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/.ready  ## measure every claim and every speed (tens of minutes)
	@$(BIN)/cl-bench claims --out runs/bench/claims
	@$(BIN)/cl-bench speed --out runs/bench/speed

lock: | $(UV)  ## resolve versions anew and write a lock without addresses
	@rm -f uv.lock.new && cp uv.lock uv.lock.before 2>/dev/null || true
	@$(UV) lock || { mv -f uv.lock.before uv.lock 2>/dev/null; exit 1; }
	@$(PYTHON) scripts/neutral_lock.py uv.lock
	@rm -f uv.lock.before
	@echo "==> uv.lock written, no address in it"

build: .venv/.ready  ## a wheel of every package in dist/
	@for member in $(MEMBERS); do $(UV) build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist $$member || exit 1; done
	@ls dist/*.whl

clean:  ## remove what was built and installed, keep runs
	rm -rf .venv .tools dist .mypy_cache .ruff_cache .import_linter_cache demo-run
