# `make demo` and `make test` each work as the only command in a fresh clone: Python 3.11+, pip and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export TQDM_DISABLE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-real test-all test-methods lint lint-js docs bench clean

# --no-compile: pip would write 400 MB of bytecode, most of which is never read; Python writes the rest at the first import.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/edgepeft demo

# Two processes, each with files of its own, and one thread in each: threads of two would wait for each other by spinning.
# The longest files go first (tests/longest_first.py); pytest-xdist alone would begin with those of the most tests.
# Dozens of processes import torch and transformers, which takes 4 s of CPU with bytecode and 11 without: it is kept, in a folder
# of its own, even where the machine (a container) says that Python is to write none.
BYTECODE := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(abspath $(VENV))/bytecode
TEST := $(BYTECODE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The default suite: offline once the pinned model and data were fetched.
test: $(STAMP)
	$(TEST) -m 'not slow' --durations 25 --durations-min 5

# The slow rest: training on real weights, many processes.
test-real: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-all: $(STAMP)
	$(BIN)/python -m pytest

# Every PEFT method over BERT and Llama, swapped, merged and baked (docs/methods.md).
test-methods: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m '' tests/model/test_methods.py \
		tests/model/test_methods_llama.py tests/model/test_methods_bake.py tests/model/test_prefix.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The JavaScript module: formatted, linted, strictly typed, and its tests that need no bundle. CI must have npm.
WEB := targets/web
$(WEB)/node_modules/.package-lock.json: $(WEB)/package.json $(WEB)/package-lock.json
	npm --prefix $(WEB) ci --ignore-scripts --no-audit --no-fund --loglevel=error

lint-js:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(WEB)/node_modules/.package-lock.json && \
		for script in lint check test; do npm --prefix $(WEB) run --silent $$script || exit 1; done; \
	else echo "no npm: the JavaScript in $(WEB) was not checked" >&2; test -z "$$CI"; fi

# The pages as a site in build/site; a dead link or a page that the navigation lacks fails it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	$(BIN)/python benchmarks/encoder.py

clean:
	rm -rf demo-out build dist .hypothesis .import_linter_cache .pytest_cache .mypy_cache .ruff_cache
