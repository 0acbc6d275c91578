# make demo   installs and runs the whole pipeline on the example data
# make test   installs and runs the tests
# make slow   runs those that take longer; with SINCE=REV those of what has changed since a commit
# make image    builds a container image for the processor (needs docker)
# make check     lint, types, and the tests that need neither torch nor llama-cpp-python
# make docs      makes a site of the documentation in build/site (needs no torch)
# make mutants   plants known faults one by one, and shows which test catches each
# make torture   everything at full size: every instant, corruption, form, client and architecture (hours; for nights)
# make test-clients   clients of the server as they come, in an environment of their own
# make test-unsloth   the same for unsloth, with the versions it pins, in an environment of its own
# make test-gpu       what needs a GPU, in that environment
#
# On Linux, PyPI's torch is a CUDA build of several GB. On a machine without a GPU, name the index of
# torch's CPU wheels (pytorch.org's install page has it):  make demo TORCH_INDEX=URL

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
UNSLOTH := .venv-unsloth
CLIENTS := .venv-clients
DEMO := demo
IMAGE ?= slmctl
NAME ?= finetune
# three processes for two cores; a file stays with one, so that its fixtures are made once, and the longest come first
PARALLEL ?= --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo image check test slow mutants torture test-clients test-unsloth test-gpu lint types bench readme docs clean

demo: $(VENV)/.demo
	@$(BIN)/python -m examples.demo $(DEMO)

image:
	docker build $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) --tag $(IMAGE) .

test: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) -m "not slow and not gpu and not unsloth and not clients"

check: lint types
	$(BIN)/pytest $(PARALLEL) --light --quiet --ignore tests/hostile

slow: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) $(if $(SINCE),--changed $(SINCE)) -m "slow and not gpu and not unsloth and not clients" || [ $$? -eq 5 ] # none to run

mutants: $(VENV)/.dev
	$(BIN)/python tests/support/mutations/run.py

test-clients: $(VENV)/.dev $(CLIENTS)/.ready
	SLMCTL_CLIENTS=$(abspath $(CLIENTS))/bin/python $(BIN)/pytest tests/server/test_clients.py tests/server/test_calls.py

test-unsloth: $(UNSLOTH)/.ready
	$(UNSLOTH)/bin/pytest -m "unsloth and not gpu" tests/stages/finetune/test_unsloth.py

test-gpu: $(UNSLOTH)/.ready
	$(UNSLOTH)/bin/pytest -m gpu tests/stages/finetune/test_gpu.py

torture: $(VENV)/.dev test-clients test-unsloth
	SLMCTL_TORTURE=1 $(BIN)/pytest --timeout 0 --numprocesses auto --dist load -m "not gpu and not unsloth and not clients"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

readme: $(VENV)/.dev
	$(BIN)/python docs/readme.py

docs: $(VENV)/.docs
	rm -rf build/site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --doctree-dir build/doctrees --conf-dir docs . build/site
	cp build/site/README.html build/site/index.html
	@echo build/site/index.html

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python $(UNSLOTH)/bin/python $(CLIENTS)/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $*

$(VENV)/.torch: | $(VENV)/bin/python
	@echo "installing torch$(if $(TORCH_INDEX), from $(TORCH_INDEX),; without a GPU, TORCH_INDEX=URL of its CPU wheels saves GBs)"
	@$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch>=2.10'
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	@echo "installing slmctl; llama-cpp-python compiles for some minutes"
	@$(BIN)/pip install --quiet --editable '.[all]'
	@$(BIN)/slmctl --quiet doctor --fix > /dev/null
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@$(BIN)/slmctl --quiet doctor --fix > /dev/null
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@echo "installing the peers that are measured beside slmctl"
	@$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

# gguf alone of the extra of that name: llama-cpp-python, which compiles for minutes, is not needed here
$(UNSLOTH)/.ready: pyproject.toml | $(UNSLOTH)/bin/python
	@echo "installing unsloth$(if $(TORCH_INDEX), and torch from $(TORCH_INDEX),; without a GPU, TORCH_INDEX=URL of torch's CPU wheels saves GBs)"
	@$(UNSLOTH)/bin/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[train,cuda,evaluate]' 'gguf>=0.17' 'pytest>=8.3' 'pytest-timeout>=2.3'
	@touch $@

$(CLIENTS)/.ready: | $(CLIENTS)/bin/python
	@echo "installing the clients that docs/clients.md shows"
	@$(CLIENTS)/bin/pip install --quiet dspy instructor 'langchain-openai>=1.7.4' litellm typesafe-sdk
	@touch $@
