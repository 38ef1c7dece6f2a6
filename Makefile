# Needs nothing but make and Python 3.11 to 3.13; works on a fresh clone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/default
PROMPT ?=
ARGS   ?=

.PHONY: help install run test test-all lint docs bench sanitize fuzz chaos clean

help:            ## list the targets
	@sed -n 's/^\([a-z-]*\): *[^#]*## /  make \1	/p' Makefile

install: $(VENV)/.installed  ## create .venv and install the package and its dependencies

run: $(VENV)/.installed  ## train on WikiText-2 (offline: on Python's own documentation), then generate text
	$(BIN)/python train.py $(if $(wildcard $(RUN)/training.json),--resume) --out $(RUN) $(ARGS)
	$(BIN)/python run.py $(RUN) --prompt "$(PROMPT)" --max-tokens 200

test: $(VENV)/.dev  ## run the tests that take less than two seconds each (four minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-all: $(VENV)/.dev  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright

chaos: $(VENV)/.dev  ## inject every fault that training must survive: kills, full disks, flipped bits, lost processes
	$(BIN)/python tests/chaos/run.py $(ARGS)

docs: $(VENV)/.dev  ## build the documentation site into build/docs; a broken link is an error
	$(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.dev  ## compare the speed of the layers with LSTM, GRU and ncps
	$(BIN)/python benchmarks/speed.py

sanitize: $(VENV)/.dev  ## run the CPU kernels and their bindings under the address and undefined-behaviour sanitizers
	$(BIN)/python tests/kernels/sanitize.py

fuzz: $(VENV)/.dev  ## feed mutated files of every format to what reads them: no crash, hang or traceback
	$(BIN)/python tests/fuzz/run.py $(ARGS)

clean:           ## remove everything the targets above made except runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis ltc_textgen/kernels/*.so

$(VENV)/.installed: requirements.txt pyproject.toml setup.py $(wildcard ltc_textgen/kernels/*/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
