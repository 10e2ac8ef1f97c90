# Each command sets up the environment first. The first two are those of the README.
PYTHON ?= python3
VENV ?= .venv

.PHONY: train test docs

train:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e .
	$(VENV)/bin/minigpt train model=rope

test:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python scripts/check.py

docs:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[docs]'
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"
