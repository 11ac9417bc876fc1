# Everyday commands. A machine needs python3 (3.11 or newer, with venv) and make; the rest is installed
# into .venv, once, and again when pyproject.toml or constraints.txt change.
#
#   make study     the main job, on the default model     make docs     redraw the pictures
#   make test      lint, types, tests                     make bench    time the hot paths
#   make lint      ruff and mypy only                     make clean    remove what tools left (distclean: .venv too)
#   make coverage  the tests again, counting lines: twice the time
#   make traces    capture the presets again, after a change of a preset or of the capture
#
# As root on Debian, `make test` also installs what simulates RTL (see docs/rtl.md); RTL_TOOLS=no leaves that.
#
#   make study MODEL=mistral-7b OUT=somewhere     make test PYTHON=python3.12     make test JOBS=1

PYTHON ?= python3
MODEL  ?= llama-2-7b
OUT    ?= out
JOBS   ?= auto
export RTL_TOOLS ?= yes
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE := pyproject.toml constraints.txt __init__.py

# Measured data that truth tests compare with; they are skipped, and counted, where it is absent.
export TOKENFAB_TRUTH ?= $(abspath ../shared/truth)
# One thread per test process: xdist already fills the cores.
test coverage bench: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help study test coverage lint format bench traces docs clean distclean

help:
	@sed -n '4,12s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "tokenfab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(RECIPE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(RECIPE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[hf,kernels,fit,rtl,dev]'
	@sh .ci/rtl-tools $(BIN)/python
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/tokenfab  # gives the package its name for mypy
	@touch $@ $(VENV)/.installed

study: $(VENV)/.installed
	$(BIN)/tokenfab study $(MODEL) -o $(OUT)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --benchmark-disable $(PYTEST)

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --benchmark-disable --cov --cov-report=term $(PYTEST)

# Times are compared as ratios to a yardstick timed in the same run, so the baseline holds across machines.
bench: $(VENV)/.installed-dev
	@mkdir -p $(OUT)
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' -q \
	  --benchmark-timer=time.process_time --benchmark-json=$(OUT)/bench.json
	$(BIN)/python benchmarks/compare.py $(OUT)/bench.json benchmarks/baseline.json

traces: $(VENV)/.installed
	$(BIN)/python -m tokenfab.workloads.shipped

docs: $(VENV)/.installed
	for script in docs/draw_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf build .build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage .coverage.*
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
