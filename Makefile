# `make fit` trains a model on the embedded corpus; `make test` runs lint, types and tests.
# Each makes .venv and installs what it needs; nothing else is asked of the machine but Python >= 3.11.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
TIME ?= 2m

.PHONY: fit test clean

fit: .venv/.core
	.venv/bin/gptfit fit --time $(TIME)
	@echo "the command lives in .venv: run it as .venv/bin/gptfit, or after: . .venv/bin/activate"

test: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first: once it is there, nothing that depends on it fetches another build.
.venv/.core: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.core
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
