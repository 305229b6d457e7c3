# `make demo` and `make test` are all that a fresh machine needs: they make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint docs format slow bench gpu chaos audit clean

demo: $(INSTALLED)
	$(BIN)/decur demo

# A process a core, of one thread each: most tests are too small for more.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

slow: $(INSTALLED)
	$(BIN)/pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The site, into build/site; a broken link or an undocumented name ends it.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/scenes.py
	$(BIN)/python benchmarks/hha.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/optimiser.py
	$(BIN)/python benchmarks/tsne.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/blocks.py
	$(BIN)/python benchmarks/share.py

# On a machine with CUDA: tests, the paper's step and what falls short, in 15 minutes.
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

# Kills, full disks, flipped bits and fuzzed inputs: minutes, the same ones for the same SEED.
chaos: $(INSTALLED)
	$(BIN)/python benchmarks/chaos.py $(if $(SEED),--seed $(SEED))

# What is installed against the known vulnerabilities; needs a network.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("decur needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "installing into .venv (PyTorch is large: some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
