# SPDX-License-Identifier: Apache-2.0
#
# `make demo` and `make test` prepare the machine themselves (tools/bootstrap.sh); the other targets do, too.

BIN := .venv/bin
# Guests run under a libvirtd of their own, which needs root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n -E)
# As a module of the environment's Python, so that it works wherever .venv's scripts point.
PYTEST := $(AS_ROOT) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo test lint types unit functional bench docs genconfig clean

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

bootstrap: ## Install the Debian packages and the Python environment that are missing
	@tools/bootstrap.sh

demo: bootstrap ## Attest four real guests, alter one, and see it named
	@$(AS_ROOT) $(BIN)/python tools/demo.py

test: lint types ## Lint, types, unit tests, functional tests
	$(PYTEST) tests/unit tests/functional

lint: bootstrap ## Style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: bootstrap ## Types of the package
	$(BIN)/mypy

unit: bootstrap ## Unit tests
	$(PYTEST) tests/unit

functional: bootstrap ## Tests with real guests, TPMs and services
	$(PYTEST) tests/functional

bench: bootstrap ## Measure; writes bench/results.json
	$(AS_ROOT) $(BIN)/python -m bench

docs: bootstrap ## Build the manual into doc/build
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/sphinx-build -W -b html doc/source doc/build/html

genconfig: bootstrap ## Write sample configuration files into etc/nova-vmi-attest
	@for service in agent authority verifier; do \
	    $(BIN)/oslo-config-generator --config-file etc/oslo-config-generator/$$service.conf || exit 1; \
	done

clean: ## Remove what was built, the environment and the cache included
	$(AS_ROOT) rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .tox build dist doc/build \
	    *.egg-info demo-report.json bench/results.json etc/nova-vmi-attest/*.sample
