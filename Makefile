# Every target sets itself up: nothing is needed but Python 3.10 or newer, make and the package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests use one thread each, and a process for every core; what a file's tests share is made once.
PARALLEL ?= -n auto --dist loadfile

.PHONY: help demo test test-all test-others lint bench figures format docs clean

help:
	@echo "make demo      shrink a shipped text-to-image model to 3.5 bits, with a report (minutes)"
	@echo "make test      the tests (minutes)        make test-all  also the slow ones"
	@echo "make test-others  files for other programs, read in environments of their own (minutes)"
	@echo "make lint      ruff, mypy, layers       make bench     the benchmarks in docs/ (hours)"
	@echo "make figures   pictures and tables of the pages again (under an hour)"
	@echo "make docs      pages and API reference as a web site in build/docs"

# A broken or half-made environment is made anew; the stamp is written last.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# What tests, style checks, benchmarks and the web site need beyond that.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/qua2sedimo demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

test-others: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/interchange/test_other_programs.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks docs/site
	$(BIN)/ruff format --check src tests benchmarks docs/site
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests benchmarks docs/site
	$(BIN)/ruff format src tests benchmarks docs/site

bench: $(VENV)/.installed-dev
	mkdir -p benchmarks/results
	for script in quantizers trace coverage scores fit runtime runtime_block demo measuring workers safety search; do \
	    $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/metrics_images.py
	for model in avatars-pixart avatars-unet; do \
	    $(BIN)/python benchmarks/metrics_images.py --model $$model --steps 4 --guidance 1 || exit 1; done
	$(BIN)/python benchmarks/metrics.py --ratios
	for script in predictor sensitivity additive; do \
	    $(BIN)/python benchmarks/$$script.py benchmarks/results/avatars-pixart || exit 1; done

# Pictures by size and the tables of kept rows; quick choices of three models are made where there are none.
figures: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/pictures.py
	for script in compensation peers full_size; do $(BIN)/python benchmarks/$$script.py --docs || exit 1; done

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/site/build.py

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
