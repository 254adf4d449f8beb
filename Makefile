# make serve   three tiers on this machine behind one endpoint, with stated seconds and links
# make serve FAMILY=sd15   any family on whatever devices this machine has, nothing stated; a name
#              of stage_models/ or a folder. `diffusion-edge models pull sd15` fetches it first.
# make test    the whole suite            make check   ruff, mypy --strict, import-linter
#              TESTERS=2 make test: two beside each other
# make test-long   the same with what is tried at random tried more often, and all arms of a benchmark
# make theorem the table of docs/theorem.md, measured anew
# make mutants small wrong changes to the core against its tests, a sample of 200; goes on where it was
#              stopped. MINUTES=10 PROCESSES=2 make mutants does a piece of it, SEED=2 another
#              sample, ROWS=beyond one of what is not the core. docs/tests.md
# Each makes the environment in $(VENV) if need be. PORT=9000 make serve moves the endpoint.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
FAMILY ?=
MINUTES ?=
PROCESSES ?= 1
SEED ?= 1
ROWS ?= core
TESTERS ?=
BESIDE = $(if $(TESTERS),-n $(TESTERS) --dist loadgroup)
CONFIG ?= serve_configs/$(if $(FAMILY),machine,local).yaml
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: serve test test-long theorem mutants check format clean

serve: $(VENV)/.core
	@exec $(BIN)/diffusion-edge serve $(CONFIG) --port $(PORT) $(if $(FAMILY),--family $(FAMILY))

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BESIDE)

test-long: $(VENV)/.dev
	OMP_NUM_THREADS=1 LONG_TESTS=1 $(BIN)/python -m pytest $(BESIDE)

theorem: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.theorem

mutants: $(VENV)/.mutants
	@$(BIN)/python -m tests.mutants --rows $(ROWS) --seed $(SEED) --processes $(PROCESSES) \
		$(if $(MINUTES),--minutes $(MINUTES))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# OpenVINO runs models faster on a CPU; where it is not to be had everything works without it.
$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt constraints-common.txt
	$(PIP) -e ".[openvino]" || $(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e ".[test,check,docs]"
	@touch $@

$(VENV)/.mutants: $(VENV)/.dev
	$(PIP) -e ".[mutants]"
	@touch $@
