# What maintainers of the template run. `make` in a generated project is another one: template/Makefile.jinja.

PYTHON ?= python3
# The uv of this machine, or else one of our own.
UV := $(or $(shell command -v uv),.tools/uv/bin/uv)
NEEDS_UV := $(filter .tools/%,$(UV))
# As pip does, uv trusts the certificates that this machine trusts.
export UV_SYSTEM_CERTS ?= true

# The library has the line length of the project that it stands in.
LIBRARY := --line-length=100 template/runtime/celery_service

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(NEEDS_UV) ## Scaffold a project into a temporary folder, run a task on its worker, clean up
	@UV="$(abspath $(UV))" scripts/demo

# Five processes for two processors, since many tests wait: tests/support/distribution.py says who runs what.
PYTEST = $(UV) run pytest -n 5 --dist loadgroup --no-loadscope-reorder

.PHONY: test
test: lint ## Run all tests, and tell how long each layer took: make test ARGS='tests/behaviour -k once'
	$(PYTEST) $(ARGS)

.PHONY: test-fast
test-fast: $(NEEDS_UV) ## Run the tests that need no server and no installed project, in four minutes
	$(PYTEST) tests/template tests/runtime $(ARGS)

.PHONY: bench
bench: $(NEEDS_UV) ## Measure speed and memory: make bench ARGS='--seconds 5', ARGS=--write for docs/benchmarks.md
	$(UV) run python -m benchmarks $(ARGS)

.PHONY: chaos
chaos: $(NEEDS_UV) ## Kill, freeze and fill everything while thousands of tasks run; write docs/reliability.md
	PYTHONPATH=tests $(UV) run python -m support.chaos $(ARGS)

.PHONY: celery-suite
celery-suite: $(NEEDS_UV) ## Run Celery's own tests of canvases and tasks against a project, on both brokers, in half an hour
	PYTHONPATH=tests $(UV) run python -m support.celery_suite $(ARGS)

.PHONY: lint
lint: $(NEEDS_UV) ## Check the style and the types of the tests and scripts
	$(UV) run ruff check
	$(UV) run ruff check $(LIBRARY)
	$(UV) run ruff format --check
	$(UV) run ruff format --check $(LIBRARY)
	$(UV) run mypy

.PHONY: format
format: $(NEEDS_UV) ## Format the tests and scripts
	$(UV) run ruff check --fix
	$(UV) run ruff check --fix $(LIBRARY)
	$(UV) run ruff format
	$(UV) run ruff format $(LIBRARY)

.PHONY: pins
pins: $(NEEDS_UV) ## Accept what Celery and its companions have changed below the library: tests/runtime/pins.txt
	PYTHONPATH=tests $(UV) run python -m support.pins

.tools/uv/bin/uv:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) can't make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing uv into .tools/uv"
	@$(PYTHON) -m venv .tools/uv
	@.tools/uv/bin/pip install --quiet --disable-pip-version-check uv
