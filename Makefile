# The README's commands under short names. Each does its whole set-up.
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
