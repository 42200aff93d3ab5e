# make demo       set up, then train the demo: a small pretrained Llama, CDT beside plain CE, report and exported model;
#                 make demo EXPERIMENT=tiny trains a tiny one from scratch and needs no network
# make test       set up, then lint and all tests
# make check      set up, then lint and the tests that start no NeMo, no command and no cluster
# make docs       set up, then write docs/reference from the code and build the site into site/
# make setup FRAMEWORK=bridge, make test FRAMEWORK=bridge
#                 the same for Megatron-Bridge, in .venv-bridge: Python 3.12 (set PYTHON312) and what it needs
# make container  install into an NGC NeMo container, whose torch, TE, apex and flash-attn stay as they are
# make lock       resolve requirements.lock anew from pyproject.toml (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BRIDGE := .venv-bridge
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python /usr/bin/python3.12 /usr/local/bin/python3.12))
# pip's warnings are about this machine's own settings, not about us. --no-compile below: of what is installed little is
# ever imported, and Python compiles that as it does
PIP := python -m pip --quiet --disable-pip-version-check --no-input
.PHONY: demo test check lint setup docs container lock

demo: setup
	$(BIN)/nemo-cdt train experiment=$(if $(EXPERIMENT),$(EXPERIMENT),demo)

ifeq ($(FRAMEWORK),bridge)
test: $(BRIDGE)/.installed
	$(BRIDGE)/bin/python -m pytest tests/bridge
else
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
endif

check: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ifeq ($(FRAMEWORK),bridge)
setup: $(BRIDGE)/.installed
else
setup: $(INSTALLED)
endif

# nvidia-resiliency-ext's wheel of 0.6 asks for a newer glibc than Debian 12 has, and runs without: it is unpacked.
$(BRIDGE)/.installed: requirements-bridge.txt pyproject.toml
	@test -n "$(PYTHON312)" || { echo "error: Megatron-Bridge needs Python 3.12: set PYTHON312=python3.12"; exit 1; }
	@test -x $(BRIDGE)/bin/python || $(PYTHON312) -m venv $(BRIDGE)
	@echo "installing requirements-bridge.txt into $(BRIDGE): a few minutes, once"
	@$(BRIDGE)/bin/$(PIP) install --no-compile -r requirements-bridge.txt 2> $(BRIDGE)/pip.log || { cat $(BRIDGE)/pip.log; exit 1; }
	@$(BRIDGE)/bin/$(PIP) install --no-compile --no-deps megatron-core==0.19.2 megatron-bridge==0.6.2 2> $(BRIDGE)/pip.log || { cat $(BRIDGE)/pip.log; exit 1; }
	@$(BRIDGE)/bin/$(PIP) download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_39_x86_64 --dest $(BRIDGE)/wheels nvidia-resiliency-ext==0.6.0 2> $(BRIDGE)/pip.log || { cat $(BRIDGE)/pip.log; exit 1; }
	@$(BRIDGE)/bin/python -m zipfile -e $(BRIDGE)/wheels/nvidia_resiliency_ext-*.whl $(BRIDGE)/lib/python3.12/site-packages
	@$(BRIDGE)/bin/$(PIP) install --no-deps --editable . 2> $(BRIDGE)/pip.log || { cat $(BRIDGE)/pip.log; exit 1; }
	@touch $@

$(INSTALLED): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 13) else "error: Python 3.10 to 3.12 is needed, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV): a few minutes, once"
	@$(BIN)/$(PIP) install --no-compile -r requirements.lock 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@$(BIN)/$(PIP) install --no-deps --editable . 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

container:
	$(PIP) install --no-deps nemo-toolkit==2.7.3 megatron-core==0.15.3 nemo-run==0.11.1
	python -c 'import hydra' || $(PIP) install hydra-core==1.3.2
	$(PIP) install --no-deps --editable .
	nemo-cdt doctor

# torch names its own CUDA libraries, so they are left out: a CPU build of torch has none.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --quiet --no-annotate --no-header --output-file requirements.lock
	sed -i -E '/^(triton|cuda-toolkit|nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx)[a-z0-9-]*)==/d' requirements.lock
