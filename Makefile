# make demo       set up, then train the demo: a small pretrained Llama, CDT beside plain CE, report and exported model;
#                 make demo EXPERIMENT=tiny trains a tiny one from scratch and needs no network
# make test       set up, then lint and all tests
# make check      set up, then lint and the tests that start no NeMo, no command and no cluster
# make docs       set up, then write docs/reference from the code and build the site into site/
# make container  install into an NGC NeMo container, whose torch, TE, apex and flash-attn stay as they are
# make lock       resolve requirements.lock anew from pyproject.toml (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# pip's warnings are about this machine's own settings, not about us. --no-compile below: of what is installed little is
# ever imported, and Python compiles that as it does
PIP := python -m pip --quiet --disable-pip-version-check --no-input
.PHONY: demo test check lint setup docs container lock

demo: setup
	$(BIN)/nemo-cdt train experiment=$(if $(EXPERIMENT),$(EXPERIMENT),demo)

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(INSTALLED)

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
