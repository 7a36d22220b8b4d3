# What there is to do here, each with its own set-up: docker/prepare.sh says nothing when all is there.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo lab test check bench freeswitch clean

prepare := docker/prepare.sh
run := docker/prepare.sh run .venv/bin/
# extra words for the command, as in: make test ARGS='-k screening -x'
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## place the demo calls on a real PBX, print who heard what and why, take the lab down
	@$(prepare) venv engine images
	@$(run)pbxguard lab demo $(ARGS)

lab: ## bring the lab up and leave it up (take it down: .venv/bin/pbxguard lab down)
	@$(prepare) venv engine images freeswitch
	@$(run)pbxguard lab up $(ARGS)

# The lab's tests wait for calls most of the time, so that the others run beside them (tests/conftest.py).
test: ## run all tests, the real calls too (ARGS='...' goes to pytest; '-n 0' for one process, as --pdb needs)
	@$(prepare) venv engine images freeswitch test-tools
	@$(run)pytest -n 2 $(ARGS)

check: ## lint, format check, types, import layers
	@$(prepare) venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: ## measure call rates, delays and big lists (several minutes, not part of test)
	@$(prepare) venv engine images freeswitch
	@$(run)python -m pbxguard.lab.bench $(ARGS)

freeswitch: ## build the lab's FreeSWITCH image now (lab, test and bench try once a day; one of yours is taken)
	@$(prepare) engine freeswitch-now

clean: ## take the lab down, remove .venv, caches and the images made here (evidence/ stays)
	@if [ -x .venv/bin/pbxguard ]; then $(run)pbxguard lab down || echo "the lab could not be taken down; going on" >&2; fi
	@$(prepare) images-remove
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
