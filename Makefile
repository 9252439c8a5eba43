# `make demo` and `make test` need Python 3.11 or newer, gcc and make; everything else goes into .venv.
# Settings: PYTHON (interpreter), JOBS (test processes), PYTEST_ARGS, and pip's own PIP_* variables.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check

# compiled kernels stay in the checkout: HOME may be missing or read-only. Numba notices a change in the outermost function's
# file only, so the folder is named after all of them
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba/$(shell cat plugins_trt/cpu/*.py | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/project.stamp ## create .venv with pinned versions and this project in it

demo: setup ## make a tiny model, export it, run it on photographs, check parity
	@$(RUN) -m examples.demo

test: setup ## run every test
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup ## format, lint, types and import contracts, changing nothing
	@echo "==> ruff format --check" && $(RUN) -m ruff format --check .
	@echo "==> ruff check" && $(RUN) -m ruff check .
	@echo "==> mypy" && $(RUN) -m mypy
	@echo "==> lint-imports" && $(VENV)/bin/lint-imports

format: setup ## format the code and fix what ruff can fix
	@$(RUN) -m ruff check --fix . ; $(RUN) -m ruff format .

clean: ## remove what tools and the demo have written
	@rm -rf .cache .demo .coverage build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	@rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: say make PYTHON=..." % v[:2])'
	@echo "==> creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/requirements.stamp: requirements/dev.txt requirements/constraints.txt | $(VENV)/bin/python
	@echo "==> installing requirements/dev.txt (once; a few minutes)"
	@$(PIP) install --quiet -r requirements/dev.txt || { echo "==> if pip named torch and triton: it found PyTorch's CUDA build; let it find the CPU build (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL, see README)"; exit 1; }
	@touch $@

$(VENV)/project.stamp: pyproject.toml $(VENV)/requirements.stamp
	@echo "==> installing this project into $(VENV)"
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
