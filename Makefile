# `make` lists what there is. Python 3.11 or newer is all that `make setup` and `make demo` need.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
PACKAGES := feature_store stream_trainer index_refresher simulators
PROMETHEUS := build/prometheus/usr/bin/prometheus

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-books bench-big kafka format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install the pinned dependencies (once)

demo: $(INSTALLED) ## replay reviews, learn, refresh, evaluate; DATA=DIR picks the data, KAFKA=host:port a broker
	$(BIN)/python -m simulators demo $(if $(DATA),--data '$(DATA)') $(if $(KAFKA),--kafka '$(KAFKA)')

test: check prometheus ## all checks and all tests, with a real Kafka broker and a real Prometheus
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

check: $(INSTALLED) ## format, lint, types, import layers, habits
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=tests/benchmarks $(BIN)/mypy tests/benchmarks/*.py
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/test_tidy.py

bench: $(INSTALLED) ## measure positives per second, side by side with plain PyTorch; writes build/bench.json
	$(BIN)/python tests/benchmarks/bench.py

bench-books: $(INSTALLED) ## replay generated logs of up to Amazon Books' size; writes build/bench-books.json (takes long)
	$(BIN)/python tests/benchmarks/books.py

bench-big: $(INSTALLED) ## ten times those users with memory for some of their rows only; writes build/bench-big.json
	$(BIN)/python tests/benchmarks/big.py

kafka: $(INSTALLED) ## run one Kafka broker on 127.0.0.1:9092 until Ctrl-C
	$(BIN)/python deploy/kafka/broker.py

format: $(INSTALLED) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove everything that was built, .venv included
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests deploy -name __pycache__ -type d -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=/path/to/python ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo "$(PYTHON) cannot make virtual environments: install its venv package" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Debian's package, unpacked rather than installed: needs no root and starts no service. Where that cannot be done,
# the test that needs it says so: a failure in CI, a skip elsewhere.
.PHONY: prometheus
prometheus:
	@test -x $(PROMETHEUS) || command -v prometheus > /dev/null || ! command -v apt-get > /dev/null || \
	  deploy/unpack-prometheus || echo "Prometheus could not be fetched: its test will be skipped, or fail in CI" >&2
