# What maintainers of the template run. `make` in a generated project is another one: template/Makefile.jinja.

PYTHON ?= python3
# The uv of this machine, or else one of our own.
UV := $(or $(shell command -v uv),.tools/uv/bin/uv)
NEEDS_UV := $(filter .tools/%,$(UV))

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(NEEDS_UV) ## Scaffold a project into a temporary folder, run a task on its worker, clean up
	@UV="$(abspath $(UV))" scripts/demo

.PHONY: test
test: lint ## Run all tests: make test ARGS='tests/test_render.py'
	$(UV) run pytest -n 3 --dist loadfile $(ARGS)

.PHONY: bench
bench: $(NEEDS_UV) ## Measure speed and memory: make bench ARGS='--seconds 5', ARGS=--write for docs/benchmarks.md
	$(UV) run python -m benchmarks $(ARGS)

.PHONY: chaos
chaos: $(NEEDS_UV) ## Kill, freeze and fill everything while thousands of tasks run; write docs/reliability.md
	PYTHONPATH=tests $(UV) run python -m support.chaos $(ARGS)

.PHONY: lint
lint: $(NEEDS_UV) ## Check the style and the types of the tests and scripts
	$(UV) run ruff check
	$(UV) run ruff format --check
	$(UV) run mypy

.PHONY: format
format: $(NEEDS_UV) ## Format the tests and scripts
	$(UV) run ruff check --fix
	$(UV) run ruff format

.PHONY: docs
docs: $(NEEDS_UV) ## Bring the tables of Celery's variables in includes/ up to date
	$(UV) run python scripts/variables.py

.tools/uv/bin/uv:
	@echo "Installing uv into .tools/uv"
	@$(PYTHON) -m venv .tools/uv || { echo "$(PYTHON) has no venv; on Debian: apt-get install python3-venv"; exit 1; }
	@.tools/uv/bin/pip install --quiet --disable-pip-version-check uv
