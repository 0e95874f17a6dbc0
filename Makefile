# Every target sets itself up from a fresh clone: Python >= 3.11, git and make are enough.
SHELL := /bin/sh
PY := .venv/bin/python
.PHONY: help demo test test-slow check format coverage bench bench-streams bench-chaos bench-storage bench-engine s3 lock schemas clean

help:
	@echo "make demo      real photo, speech and video through the example agents -> out/demo/"
	@echo "make test      the test suite"
	@echo "make test-slow the heavy tests"
	@echo "make check     format, lint, types, import arrows"
	@echo "make coverage  make test, with branch coverage of unit and integration tests apart"
	@echo "make bench     speed, as a table beside the machine's commit latency"
	@echo "make bench-streams   streams beside FastAPI, aiohttp, Node, NATS, Redis and C++ (ARGS=--quick)"
	@echo "make bench-chaos     a million records under kill -9, and how available the server was"
	@echo "make bench-storage   gigabytes in and out beside dd, boto3, aiobotocore, tuspyserver and SeaweedFS (ARGS=--quick)"
	@echo "make bench-engine    runs and steps beside Prefect, Dagster, Temporal, Ray Serve and Pipecat (ARGS=--quick)"
	@echo "make s3        an S3 server for development; prints what to export"
	@echo "make lock      renew the lock files     make schemas   write schemas/openapi.json"

demo:
	@scripts/setup.sh runtime
	@$(PY) examples/demo.py

test:
	@scripts/setup.sh dev
	@$(if $(COVERAGE),scripts/coverage.sh,$(PY) -m pytest -n 2 --dist loadfile -m "not slow")

test-slow:
	@scripts/setup.sh dev
	@$(PY) -m pytest -n 2 --dist loadfile -m slow

check:
	@scripts/setup.sh dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports

format:
	@scripts/setup.sh dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

coverage:
	@$(MAKE) --no-print-directory test COVERAGE=1

bench:
	@scripts/setup.sh dev
	@$(PY) -m benchmarks

bench-streams:
	@scripts/setup.sh dev
	@$(PY) -m benchmarks.streams_peers $(ARGS)

bench-chaos:
	@scripts/setup.sh dev
	@$(PY) -m benchmarks.streams_chaos $(ARGS)

bench-storage:
	@scripts/setup.sh dev
	@$(PY) -m benchmarks.storage_peers $(ARGS)

bench-engine:
	@scripts/setup.sh dev
	@$(PY) -m benchmarks.engine_peers $(ARGS)

s3:
	@scripts/setup.sh dev
	@$(PY) -m scripts.s3

# Needs uv; everything else works with plain pip.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-package mentatlab-models --no-emit-package mentatlab
lock:
	$(LOCK) pyproject.toml --extra all --group build -o requirements.lock
	$(LOCK) pyproject.toml --extra all --group build --group dev -c requirements.lock -o requirements-dev.lock

schemas:
	@scripts/setup.sh dev
	@.venv/bin/mentatlab openapi > schemas/openapi.json

clean:
	rm -rf .venv out dist build .pytest_cache .ruff_cache .coverage*
