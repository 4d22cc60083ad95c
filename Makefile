# The two commands of the README: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= data,pretrained
BIN := $(VENV)/bin
RUN ?= runs/demo
SET ?=

.PHONY: demo test lint venv clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e ".[$(EXTRAS)]" --group dev
	touch $@

# Renders videos, builds the dataset, trains, evaluates, reports; killed and run again, it goes on where it was.
demo: venv
	$(BIN)/python -m data_prep.demo --config configs/demo.py $(SET)
	$(BIN)/python train.py --config configs/demo.py --workdir $(RUN) $(SET)

test: venv
	$(BIN)/python -m pytest -n 2

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
