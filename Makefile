# SPDX-License-Identifier: Apache-2.0
#
# `make demo` and `make test` prepare the machine themselves (tools/bootstrap.sh); the other targets do, too.

BIN := .venv/bin
# Guests run under a libvirtd of their own, which needs root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n -E)
# As a module of the environment's Python, so that it works wherever .venv's scripts point.
PYTEST := $(AS_ROOT) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
# Each target checks what is installed; two at once would install it twice.
.NOTPARALLEL:
.PHONY: help bootstrap bootstrap-cloud demo cloud cloud-down test lint types unit functional openstack bench \
    docs genconfig clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

bootstrap: ## Install the Debian packages and the Python environment that are missing
	@tools/bootstrap.sh

bootstrap-cloud:
	@tools/bootstrap.sh cloud

demo: bootstrap ## Attest four real guests, alter one, and see it named
	@$(AS_ROOT) $(BIN)/python tools/demo.py

cloud: bootstrap-cloud ## Start a real OpenStack with two hypervisors, and leave it running
	@$(AS_ROOT) $(BIN)/python tools/cloud.py up

cloud-down: bootstrap-cloud ## End it
	@$(AS_ROOT) $(BIN)/python tools/cloud.py down

test: bootstrap-cloud lint types ## Lint, types, unit tests, functional tests, tests on a real OpenStack
	$(PYTEST) tests/unit tests/functional
	$(PYTEST) tests/openstack

lint: bootstrap ## Style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: bootstrap ## Types of the package
	$(BIN)/mypy

unit: bootstrap ## Unit tests
	$(PYTEST) tests/unit

functional: bootstrap ## Tests with real guests, TPMs and services
	$(PYTEST) tests/functional

openstack: bootstrap-cloud ## Tests on a real OpenStack of their own
	$(PYTEST) tests/openstack

bench: bootstrap ## Measure; writes bench/results.json
	$(AS_ROOT) $(BIN)/python -m bench

docs: bootstrap ## Build the manual into doc/build
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -W -b html doc/source doc/build/html

genconfig: bootstrap ## Write sample configuration files into etc/nova-vmi-attest
	@for sample in etc/oslo-config-generator/*.conf; do \
	    $(BIN)/oslo-config-generator --config-file $$sample || exit 1; \
	done
	$(BIN)/oslopolicy-sample-generator --config-file etc/oslo-policy-generator/api.conf

clean: ## Remove what was built, the environment and the cache included; ends the cloud
	@[ ! -x $(BIN)/python ] || [ ! -e .cache/cloud ] || $(AS_ROOT) $(BIN)/python tools/cloud.py down
	$(AS_ROOT) rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .tox build dist doc/build \
	    *.egg-info demo-report.json bench/results.json etc/nova-vmi-attest/*.sample
