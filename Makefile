# make demo    set up, train the shipped base three ways, write runs/demo/report.html
# make test    set up, run the default test suite
# make test-vllm   what needs vLLM itself, in the environment that MODICUM_VLLM_PYTHON names
# make docs    the documentation as a site, docs/_build/html, which needs no network
# make bench   compare with TRL, step about (33 minutes on 2 cores)
# make bench-layers   what a partial update costs (9 minutes)
# make bench-plan   planned memory beside measured peaks (about half an hour)
# make check   format, lint, types, test: what CI runs
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
BENCH := .venv-bench

DOCS := .venv/docs-installed

.PHONY: setup demo docs test test-slow test-vllm bench bench-layers bench-plan check format lint types clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/modicum demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-vllm: setup
	@test -n "$$MODICUM_VLLM_PYTHON" || { echo "error: set MODICUM_VLLM_PYTHON (scripts/vllm_env.sh)" >&2; exit 2; }
	$(BIN)/python -m pytest -m vllm -n 0

check: setup format lint types test

format: setup
	$(BIN)/ruff format --check .

docs: $(DOCS)
	$(BIN)/python -m sphinx -n -W --keep-going -q -E -a -c docs . docs/_build/html
	@echo docs/_build/html/index.html

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

bench: setup $(BENCH)/installed runs/bench/SmolLM2-135M/config.json
	$(BIN)/python benchmarks/run.py

bench-layers: setup runs/bench/SmolLM2-135M/config.json
	$(BIN)/python benchmarks/layers.py

bench-plan: setup models/SmolLM2-135M-Instruct/config.json
	$(BIN)/python benchmarks/plan.py

$(BENCH)/installed: benchmarks/requirements.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	touch $@

models/SmolLM2-135M-Instruct/config.json: | setup
	$(BIN)/python scripts/fetch_smollm2.py

runs/bench/SmolLM2-135M/config.json: | setup
	$(BIN)/python scripts/fetch_smollm2.py --out runs/bench/SmolLM2-135M

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/pyrefly check

clean:
	rm -rf .venv .venv-bench docs/_build docs/reference runs .pytest_cache .ruff_cache
