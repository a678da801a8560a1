# Everything installs what it needs on first use, into .venv; see infra/dev/setup.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Tests and components start nats-server, which the lock brings into .venv/bin.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHON DATA SPEED
# Packages are installed without byte code: the first import of each has to be allowed to keep it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test slow lint format bench lock clean venv venv-dev

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: venv ## Start everything, trade on the paper exchange, verify the audit; DATA=dump.zip (or a folder; default ./data) SPEED=factor
	@.venv/bin/tallystick demo $${DATA:+--data "$$DATA"} $${SPEED:+--speed "$$SPEED"}

test: venv-dev ## Every test but the slow ones; ARGS="-k name" goes to pytest
	@.venv/bin/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: venv-dev ## The slow ones: crash, chaos and soak
	@.venv/bin/python -m pytest -m slow $(ARGS)

lint: venv-dev ## ruff (rules and format) and mypy --strict
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy src/tallystick tests $(wildcard benchmarks)

format: venv-dev ## Mend what lint can mend by itself
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .

bench: venv-dev ## Measure side by side with the peers; writes no file
	@.venv/bin/python -m benchmarks $(ARGS)

lock: ## Write the locks anew from pyproject.toml; needs pip-compile
	@infra/dev/lock

clean: ## Remove what make built, ./var with its demo deployment included
	@[ ! -d var ] || chmod -R u+rwX var
	@rm -rf .venv build dist var src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@infra/dev/setup runtime

venv-dev:
	@infra/dev/setup dev
