# The two commands of the README: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= data,pretrained
GROUPS ?= dev
CONSTRAINTS ?= .ci/constraints.txt
BIN := $(VENV)/bin
RUN ?= runs/demo
SET ?=

.PHONY: demo test test-beam lint venv clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[$(EXTRAS)]" $(GROUPS:%=--group %)
	touch $@

# Renders videos, builds the dataset, trains, evaluates, reports; killed and run again, it goes on where it was.
# Huge pages for what a step allocates and frees: a fifth less CPU time a step, and no harm to larger networks.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: venv
	$(BIN)/python -m data_prep.demo --config configs/demo.py $(SET)
	$(BIN)/python train.py --config configs/demo.py --workdir $(RUN) $(SET)

test: venv
	$(BIN)/python -m pytest -n 2

# Beam needs older packages than the rest, hence an environment of its own.
test-beam:
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-beam/bin/python -m pip install --quiet -c .ci/constraints-beam.txt -e ".[data,beam]" --group dev
	.venv-beam/bin/python -m pytest tests/test_beam.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-beam runs
