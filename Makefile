# What people and continuous integration call; every target sets up what it needs, quickly when nothing has changed.
#
#   make demo    train a LoRA on real photographs, with a tiny base model, on this machine
#   make demo-visible    teach a tiny base model a few photographs, then a LoRA a cat, and show both in one picture: some twenty minutes
#   make test    pass every test this machine can run, and tell which suites were left out and why
#   make sim     live simulated lives of jobs, in which everything goes wrong by seed: [SEEDS=1000] [SEED=n] [PROFILE=vastai]
#   make storm   kill, cut, fill and stop everything at random: [JOBS=20] [KILLS=6] [WORKERS=3] [SEED=n] [STORE=sqlite|mongo|both]
#   make reliability    try everything that may break a promise, for hours, and write docs/reliability.md
#
# Set TESTS to run a part: make test TESTS="tests/unit -k lifecycle"

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests
# Tests mostly wait: more processes than cores. A file's tests stay together; a part chosen with TESTS is one plain run.
SIDE_BY_SIDE := --numprocesses=4 --dist=loadfile --no-loadscope-reorder
DEMO := demo-output
# Two cores are shared by the worker, its host and PyTorch here: idle threads must not spin.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup servers demo demo-visible test check format bench sim storm reliability docs clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV): PyTorch and the rest, some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,mongo,s3,docker,dev]'
	@touch $@

# Programs that tests talk to, each in an environment of its own outside the checkout, and the disk image of container hosts.
servers:
	@$(PYTHON) -m tests.support.prepare

test: setup servers
	$(BIN)/pytest $(TESTS) $(if $(filter-out tests,$(TESTS)),,$(SIDE_BY_SIDE))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.ci/shellcheck

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A tiny base of random weights stands in for SDXL: the whole way is the same, and the loss falls, in about a minute on two cores.
# What presets do for real bases would only slow that down.
demo: setup $(DEMO)/tiny-sdxl/model_index.json
	$(BIN)/run-training --tool sdxl-lora@1 --driver local --dataset tests/fixtures/muybridge-cat --base $(DEMO)/tiny-sdxl \
	    --set gpus=0 --set python=$(abspath $(BIN)/python) --set targets=locon --set rank=8 --set resolution=64 --set bucket_step=32 \
	    --set steps=60 --set batch_size=4 --set lr=0.003 --set val_every=20 --set checkpoint_every=20 --set sample_steps=4 \
	    --set preset=none --name demo
	$(BIN)/remote-trainer artifacts demo --download $(DEMO)/result

$(DEMO)/tiny-sdxl/model_index.json: scripts/make_tiny_sdxl.py
	$(BIN)/python scripts/make_tiny_sdxl.py $(DEMO)/tiny-sdxl

# The base is taught once, and goes on where it was interrupted; the LoRA is trained each time, the way any is.
demo-visible: setup $(DEMO)/visible-base/model_index.json
	$(BIN)/run-training --tool sdxl-lora@1 --driver local --dataset tests/fixtures/muybridge-cat --base $(DEMO)/visible-base \
	    --set preset=none --set gpus=0 --set python=$(abspath $(BIN)/python) --set targets=locon --set rank=16 --set alpha=16 \
	    --set resolution=80 --set bucket_step=32 --set bucket_min=64 --set bucket_max=96 \
	    --set steps=690 --set batch_size=8 --set lr=0.002 --set lr_schedule=cosine --set warmup=20 \
	    --set val_every=100 --set checkpoint_every=230 --set sample_count=0 --name demo-visible
	rm -rf $(DEMO)/visible
	$(BIN)/remote-trainer artifacts demo-visible --download $(DEMO)/visible
	$(BIN)/python -m demo.picture $(DEMO)/visible-base $(DEMO)/visible $(DEMO)/demo.jpg

$(DEMO)/visible-base/model_index.json: | setup
	$(BIN)/python -m demo.base $(DEMO)/visible-base

bench: setup
	$(BIN)/python -m bench

# Ends with 1 if a promise broke, after the story of that life. SEEDS=100000 is a night's work. It computes
# on all cores, and lets whatever else runs go first.
sim: setup
	nice $(BIN)/python -m remote_trainer.testing.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) $(if $(PROFILE),--profile $(PROFILE))

# Ends with 1 if a promise broke; the seed is printed. With REMOTE_TRAINER_TEST_LONG=1, at night, 200 jobs and 100 kills on both stores.
storm: setup servers
	$(BIN)/python -m tests.storm $(if $(JOBS),--jobs $(JOBS)) $(if $(KILLS),--kills $(KILLS)) $(if $(WORKERS),--workers $(WORKERS)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(STORE),--store $(STORE))

# Everything that tries to break a promise, the heavy rounds too, and the page that tells what came of it: hours, on a quiet machine.
# What fails is told, counted as a violation, and does not keep the rest from running.
reliability: export REMOTE_TRAINER_TEST_EVIDENCE := $(abspath docs/reliability.json)
reliability: export REMOTE_TRAINER_TEST_LONG := 1
reliability: setup servers
	@failed=0; \
	$(BIN)/pytest tests -m fault || failed=1; \
	$(BIN)/python -m remote_trainer.testing.sim --seeds $(or $(SEEDS),20000) --report docs/simulator.json || failed=1; \
	$(MAKE) storm || failed=1; \
	$(BIN)/python -m bench.recover || failed=1; \
	$(MAKE) docs || failed=1; \
	exit $$failed

# The parts of docs/*.md that are made from code, and the page made from what `make reliability` kept.
docs: setup
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(DEMO) dist build .mypy_cache .ruff_cache .import_linter_cache
