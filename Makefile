# `make demo` and `make test` each set up all that they need in .venv, and re-use it the next time.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint theory benchmarks experiments clean help

help:
	@echo "make demo        train, calibrate, evaluate and explain on made lesions; opens with demo/report.html"
	@echo "make test        the quick tests, ruff, mypy and the docs' examples"
	@echo "make test-all    the slow tests too (and the real-data ones where CBDC_DATA is set)"
	@echo "make theory      let Coq check the proofs"
	@echo "make experiments DATA=DIR   every experiment that has no results yet (QUICK=1: on made lesions, a few minutes)"
	@echo "make benchmarks  cbdc beside its peers, in one run"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "cbdc needs Python 3.11 or newer, this is " + sys.version + "; give another one with make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e '.[test,giotto]'
	@# giotto-tda has no wheel for Python 3.13, and pins that fit nothing else
	if $(PY) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then $(PY) -m pip install --quiet --no-deps giotto-tda==0.6.2; fi
	@$(PY) -c 'import torchvision; torchvision.ops.nms' || { echo "torch and torchvision do not fit each other; remove $(VENV) and run again"; exit 1; }
	@touch $@

demo: $(STAMP)
	$(PY) -m cbdc demo --out demo

test: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@# one thread each for the two processes: BLAS and torch would start as many as there are processors in both
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not slow" tests cbdc --doctest-modules

test-all: $(STAMP)
	$(PY) -m pytest -q tests cbdc --doctest-modules

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

theory:
	@bash theory/coq/check.sh

benchmarks: $(STAMP)
	$(PY) -m pip install --quiet -e '.[benchmark]'
	$(PY) benchmarks/conformal.py
	$(PY) benchmarks/embed.py
	$(PY) benchmarks/diagnose.py
	$(PY) benchmarks/topology.py
	$(PY) benchmarks/topology_memory.py
	$(PY) benchmarks/heads.py
	$(PY) benchmarks/train.py

experiments: $(STAMP)
	$(PY) -m experiments $(if $(QUICK),--quick,--root "$(DATA)")

clean:
	rm -rf $(VENV) demo build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
