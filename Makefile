# `make help` lists what there is. Everything needs make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# The folder of the data set's original files, for a machine that cannot download them.
MANUAL_DIR ?=
# More options for the experiment behind a target: make demo ARGS="--seeds 0 1 2".
ARGS ?=
# Test processes, each of whole files, whose tests share what they compile and train. XLA gets one
# thread in each, so that they do not fight for the cores.
WORKERS ?= 2

# glibc gives blocks of more than 32 MB back to the system after each use. A step of the CNN that needs
# them anew each time takes a third longer.
export MALLOC_MMAP_THRESHOLD_ ?= 1000000000
export MALLOC_TRIM_THRESHOLD_ ?= 4000000000

REQUIREMENTS := setup.cfg pyproject.toml constraints.txt
COMPARE := $(RUN) -m experiments.compare
MANUAL := $(if $(MANUAL_DIR),--manual-dir "$(MANUAL_DIR)")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo mnist fashion study study-quick test mutants check format docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/experiments.stamp ## train three networks on the embedded digits and compare them
	$(COMPARE) --data digits --methods none gradient hessian --out runs/demo $(ARGS)

mnist: $(VENV)/prepare.stamp ## the comparison on MNIST [MANUAL_DIR=folder of the original files]
	$(COMPARE) --data mnist --out runs/mnist $(MANUAL) $(ARGS)

fashion: $(VENV)/prepare.stamp ## the comparison on Fashion-MNIST [MANUAL_DIR=...]
	$(COMPARE) --data fashion_mnist --out runs/fashion $(MANUAL) $(ARGS)

study: $(VENV)/prepare.stamp ## every method on MNIST and Fashion-MNIST; days on a CPU; goes on [ARGS=...]
	$(RUN) -m experiments.study $(ARGS)

study-quick: $(VENV)/experiments.stamp ## a try of the study on the digits, a quarter of an hour
	$(RUN) -m experiments.study --quick --out runs/study-quick $(ARGS)

test: $(VENV)/dev.stamp ## run every test and doctest [WORKERS=2]
	XLA_FLAGS="$$XLA_FLAGS --xla_cpu_multi_thread_eigen=false" OMP_NUM_THREADS=1 \
	  $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

mutants: $(VENV)/mutants.stamp ## which mutants the tests do not notice; hours; goes on [ARGS=eigen]
	XLA_FLAGS="$$XLA_FLAGS --xla_cpu_multi_thread_eigen=false" OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu \
	  $(RUN) -m tests.mutants $(ARGS)

check: $(VENV)/dev.stamp ## lint, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright

format: $(VENV)/dev.stamp ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/docs.stamp ## build the documentation into build/docs
	$(RUN) -m sphinx --fail-on-warning --quiet docs build/docs

clean: ## remove the environment and the caches; keep runs/
	rm -rf $(VENV) build *.egg-info .hypothesis .pytest_cache .ruff_cache
	find hessjax experiments tests -name __pycache__ -prune -exec rm -rf {} +

# The environment. Each extra of setup.cfg that is installed leaves a stamp. pip takes a
# half-unpacked package for a whole one, so what an interrupted installation left is thrown away.
# Without build isolation the pinned setuptools builds, and nothing unpinned is fetched.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
UNFINISHED := $(wildcard $(VENV)/unfinished)

$(VENV)/%.stamp: $(VENV)/created $(REQUIREMENTS)
	@echo "Installing hessjax[$*] into $(VENV), once; this takes some minutes"
	@touch $(VENV)/unfinished
	$(INSTALL) --no-build-isolation --editable ".[$*]"
	@mv $(VENV)/unfinished $@

ifdef UNFINISHED
.PHONY: $(VENV)/created
endif
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "hessjax needs Python 3.11 or newer, but $(PYTHON) is Python %d.%d;" \
	  " name another, as in: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(if $(UNFINISHED),--clear) $(VENV)
	@touch $(VENV)/unfinished
	$(INSTALL) setuptools
	@mv $(VENV)/unfinished $@
