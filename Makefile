# All a newcomer types: make demo, make test. Each makes .venv first; `make help` lists the rest.
SHELL := /bin/bash
BIN := $(CURDIR)/.venv/bin
DEMO_DIR := egs2/mini/bestow1
DEMO_OPTS ?=
TEST_OPTS ?=
BENCH_OPTS ?=
# Test processes. Two keep the suite's memory under that of a small laptop.
TEST_JOBS ?= 2

# Kernels thread poorly next to other processes: one thread each is fastest on small machines.
export OMP_NUM_THREADS ?= 1
# Every start would compile ESPnet, torch and transformers anew, three times the time of the start itself.
unexport PYTHONDONTWRITEBYTECODE

SHELL_FILES = $(shell git ls-files '*.sh' .ci/run)
CXX_FILES = $(wildcard $(addprefix csrc/,*.h *.cpp *.cu *.cuh */*.h */*.cpp */*.cu */*.cuh \
            */*/*.h */*/*.cpp */*/*.cu */*/*.cuh))

.DEFAULT_GOAL := help
.PHONY: help setup setup-here demo test lint format sanitize bench-nemo bench-nemo-step golden-nemo clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13
	@echo 'Options: make demo DEMO_OPTS="--stage 12"; make test TEST_OPTS="-k connector"; PYTHON=python3.12'

setup: ## make .venv with the tested versions (nothing to do the second time)
	@PYTHON="$(PYTHON)" tools/make_venv.sh

setup-here: ## the same with those kernels only that this machine can run: sooner done, enough for the demo
	@BESTOW_BUILD=here PYTHON="$(PYTHON)" tools/make_venv.sh

demo: setup-here ## make the built-in corpus, train, decode, score
	@cd $(DEMO_DIR) && PATH="$(BIN):$$PATH" ./run.sh $(DEMO_OPTS)
	@if [ -e $(DEMO_DIR)/exp/bestow_bidi/.done ]; then \
		echo "results: $(DEMO_DIR)/exp/RESULTS.md; see it listen:"; \
		echo "  .venv/bin/bestow stream $$(find $(DEMO_DIR)/data/audio/test -name '*.wav' | sort | head -n 1)" \
			"--model $(DEMO_DIR)/exp/bestow_bidi"; \
	fi

test: setup ## run the test suite
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile $(TEST_OPTS)

lint: setup ## ruff, mypy, shellcheck, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x $(SHELL_FILES)
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))

format: setup ## let ruff and clang-format rewrite what lint complains about
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

sanitize: setup ## run the CPU kernels under the address and undefined-behaviour sanitizers
	@PATH="$(BIN):$$PATH" $(BIN)/python tools/sanitize.py

bench-nemo: setup ## our streaming encoder beside transformers' and NVIDIA NeMo's (in an environment of its own)
	@tools/make_nemo_venv.sh
	PYTHONPATH=. .venv-nemo/bin/python benchmarks/bench_streaming_encoder.py $(BENCH_OPTS)

bench-nemo-step: setup ## the connector's decode step beside PyTorch's and NVIDIA NeMo's
	@tools/make_nemo_venv.sh
	PYTHONPATH=. .venv-nemo/bin/python benchmarks/bench_decode_step.py $(BENCH_OPTS)

golden-nemo: setup ## write tests/golden/nemo.npz again
	@tools/make_nemo_venv.sh
	PYTHONPATH=. .venv-nemo/bin/python benchmarks/nemo/make_golden.py

clean: ## remove .venv, builds, caches and what the demo made
	rm -rf .venv .venv-nemo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf $(addprefix $(DEMO_DIR)/,data dump exp)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
