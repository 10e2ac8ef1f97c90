# The two commands of the README. Each sets up the environment first.
PYTHON ?= python3
VENV ?= .venv

.PHONY: train test

train:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e .
	$(VENV)/bin/minigpt train model=rope

test:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python scripts/check.py
