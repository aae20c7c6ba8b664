# Each target does all of its own set-up: a virtual environment in .venv, versions from constraints.txt, made once.
# `make` itself exits with 2 where a command failed; the line "exit code N" says what pytest returned (10 UNDECIDED, 11 INVALID).

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
# Named after the content of both files, so that a changed pin installs again and a fresh checkout's time stamps do not.
STAMP  := $(VENV)/.etrm-$(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')

# Run pytest with the given arguments and keep its exit code readable.
pytest = @$(BIN)/python -m pytest $(1) $(ARGS) || { code=$$?; echo "pytest: exit code $$code$$($(BIN)/python -c \
	'import sys; from etrm.experiment.session import EXIT_CODES; print(",", EXIT_CODES.get(int(sys.argv[1]), "unknown"))' $$code)"; exit $$code; }

.DEFAULT_GOAL := help
.PHONY: help setup experiment test lint ci clean

help:
	@echo "make experiment   can this encoder drive this frozen decoder? (pytest -m frozen_decoder --slow)"
	@echo "make test         the fast lane in two processes (pytest -m fast -n 2)"
	@echo "make lint         ruff and mypy"
	@echo "make ci           everything that CI runs"
	@echo "make clean        remove what the tools wrote; .venv and runs/ stay"

setup: $(STAMP)

$(STAMP): # no prerequisites: its name already holds the hash of what it depends on
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "etrm needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$(PYTHON) -m venv failed; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "setting up $(VENV), once: some minutes where torch must be downloaded"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@rm -f $(VENV)/.etrm-* && touch $@

experiment: $(STAMP)
	$(call pytest,-m frozen_decoder --slow)

test: $(STAMP)
	$(call pytest,-m fast -n 2 --dist worksteal)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ci:
	@.ci/run

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	find . -path ./$(VENV) -prune -o -path ./runs -prune -o -type d -name __pycache__ -exec rm -rf {} +
