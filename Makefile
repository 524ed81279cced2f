# `make` lists what can be made. Settings on the command line or in the environment: TIER, ROOT, ONLY, PYTHON.
TIER ?= laptop
ROOT ?= results
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEV_READY := $(VENV)/ready-dev
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help reproduce test figures notebooks sync locks

help:
	@echo "make reproduce [TIER=$(TIER)] [ROOT=$(ROOT)] [ONLY=linear_regression]  train, evaluate, draw and judge; a second call resumes or does nothing"
	@echo "make test       every notebook, every test: what .ci/run runs"
	@echo "make figures    redraw figures/ from the committed records, without training"
	@echo "make notebooks  run the library notebooks in place, then make sync"
	@echo "make sync       export modules, clean notebooks, update twins and README"
	@echo "make locks      renew the requirements files (needs uv)"
	@echo
	@echo "The first call makes $(VENV) with Python 3.11 or newer (choose one with PYTHON=...) and installs the"
	@echo "exact versions of requirements.lock. On Linux that includes PyTorch with CUDA, several GB; without a GPU,"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make reproduce"
	@echo "takes the CPU build."

reproduce: $(READY)
	@$(BIN)/iclrepro reproduce $(ONLY) --tier $(TIER) --root $(ROOT)

figures: $(READY)
	@$(BIN)/iclrepro figures

test: $(DEV_READY)
	@$(BIN)/python .ci/suite.py

notebooks: $(DEV_READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash .ci/sync
	@for notebook in nbs/*.ipynb; do \
	  echo "running $$notebook"; \
	  $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR \
	    --ExecutePreprocessor.extra_arguments=--log-level=ERROR "$$notebook" || exit 1; \
	done
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash .ci/sync

sync: $(DEV_READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash .ci/sync

$(READY): requirements.lock setup.py settings.ini
	@sh .ci/venv $(VENV) $(PYTHON)
	@echo "installing requirements.lock into $(VENV), one to three minutes"
	@$(PIP_INSTALL) -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --use-pep517 -e .
	@touch $@

$(DEV_READY): $(READY) requirements-dev.lock
	@echo "installing requirements-dev.lock into $(VENV)"
	@$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

locks:
	@bash .ci/lock
