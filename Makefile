# The RG-Flow reproducibility study. `make help` explains. It needs no more than GNU make 3.81.
PROFILE ?= default
PROFILES := smoke default study retrain paper
$(if $(filter $(PROFILE),$(PROFILES)),,$(error PROFILE must be one of $(PROFILES), not '$(PROFILE)'))
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help setup reproduce reference bench test test-browser test-faults notebooks lab clean again
R := runs/$(PROFILE)
# An active conda environment made from environment.yml is used as it is; otherwise .venv is made.
PYTHON := $(if $(filter rgflow,$(CONDA_DEFAULT_ENV)),python,.venv/bin/python)
SETUP := $(if $(filter rgflow,$(CONDA_DEFAULT_ENV)),,.venv/installed)
# Two notebooks at a time, each on half of the cores: faster than one on all of them, because the lean networks
# are small.
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS := $(if $(filter paper,$(PROFILE)),1,2)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif
export OMP_NUM_THREADS ?= $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
# `study` lies beside the notebooks, which run in their own folder. The command is for the provenance of results.
export PYTHONPATH := notebooks
export RGFLOW_COMMAND := make $(or $(MAKECMDGOALS),help) PROFILE=$(PROFILE)

help:  ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo "Profiles: smoke (all steps, tiny), default (weights/ and one short training; fills figures/), study (planned"
	@echo "runs without a record, then default), retrain (weights/ from scratch: hours), paper (published size: a GPU)"

setup: $(SETUP)  ## Make .venv from requirements.lock (part of every target)
VERSION := $(shell python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
.venv/installed: requirements.lock pyproject.toml $(if $(wildcard .venv/lib/python$(VERSION)),,again)
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: python3 is $(VERSION) here; wanted is 3.11 or later, first in PATH" >&2; exit 1; }
	test -d .venv/lib/python$(VERSION) || python3 -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --editable . && touch $@

# The models that a profile trains, and those that its analyses read.
WEIGHTS := $(if $(filter default study,$(PROFILE)),$(wildcard weights/*.safetensors))
TRAINED := msds1_gaussian $(if $(WEIGHTS),,msds1_laplace $(if $(filter smoke,$(PROFILE)),,msds2_gaussian msds2_laplace))
MODELS := $(or $(WEIGHTS),$(TRAINED:%=$(R)/02_training_%.ipynb))
ANALYSES := 03_bpd_evaluation 04_sparsity 05_receptive_fields 06_latent_space
FIGURES := fig01_data fig02_lattice fig03_mixing fig04_probes fig05_fields fig06_growth fig07_priors fig08_bits \
	fig09_curves fig10_changes fig11_samples fig12_peers
FIGURES := $(foreach kind,png pdf csv,$(FIGURES:%=figures/%.$(kind))) $(patsubst %,figures/%.npz,$(filter \
	%_data %_fields %_samples %_mixing,$(FIGURES)))

# A rule's product is the executed notebook; where what it left beside that is gone, it runs again.
tables = $(addprefix $(R)/results/$(1),.csv .json .npz)
gone = $(if $(filter-out $(wildcard $(2)),$(2)),$(1))
GONE := $(foreach n,01_data $(ANALYSES),$(call gone,$(R)/$(n).ipynb,$(call tables,$(n)))) $(foreach m,$(TRAINED),$(call \
	gone,$(R)/02_training_$(m).ipynb,$(call tables,02_training_$(m)) $(R)/models/$(m).safetensors)) $(call \
	gone,$(R)/07_figures.ipynb,$(FIGURES:%=$(R)/%)) $(call gone,figures/results.json,$(FIGURES) figures/results.csv)
$(GONE): again

RUN = @$(PYTHON) -m study.run $(basename $(notdir $<)) --profile $(PROFILE)
SHOWING := $(addprefix notebooks/study/,figures.py report.py page.py run.py lattice.py)
CODE := $(filter-out $(SHOWING),$(wildcard rgflow_core/*.py notebooks/study/*.py))
$(R)/01_data.ipynb: notebooks/01_data.ipynb $(filter %/msds.py %/ellipses.py %/datasets.py %/entropy.py,$(CODE)) | $(SETUP)
	$(RUN)
# A finished training is not repeated when code changes; `make clean` first to train anew.
$(TRAINED:%=$(R)/02_training_%.ipynb): $(R)/02_training_%.ipynb: notebooks/02_training.ipynb $(R)/01_data.ipynb
	$(RUN) --model $*
$(R)/03_bpd_evaluation.ipynb: $(addprefix data/,runs.json peers.json published.json) $(wildcard data/records/*.json)
$(ANALYSES:%=$(R)/%.ipynb): $(R)/%.ipynb: notebooks/%.ipynb $(CODE) $(MODELS) $(R)/01_data.ipynb
	$(RUN)
$(R)/07_figures.ipynb: notebooks/07_figures.ipynb $(patsubst %,$(R)/%.ipynb,01_data $(TRAINED:%=02_training_%) \
		$(ANALYSES)) $(addprefix notebooks/study/,figures.py report.py) $(wildcard notebooks/study/templates/*.md) data/ledger.json
	$(RUN)
$(R)/report.html: $(R)/07_figures.ipynb notebooks/study/page.py $(wildcard notebooks/study/templates/page/*)
	@$(PYTHON) -m study.page $< $@

# Only the default profile writes to figures/ and README.
figures/results.json: $(R)/report.html
	@rm -f figures/fig* figures/report.* && cp $(FIGURES:%=$(R)/%) $(R)/report.* figures/
	@$(PYTHON) -m study.results collect $(R)/results figures && $(PYTHON) -m study.report findings claims
ENDS_study := $(R)/01_data.ipynb
ENDS_default := figures/results.json
reproduce: $(or $(ENDS_$(PROFILE)),$(R)/report.html)  ## Regenerate every number and figure
ifeq ($(PROFILE),default)
	@$(PYTHON) -m study.results check figures
else ifeq ($(PROFILE),study)
	set -eo pipefail; for m in records lattice; do $(PYTHON) -m study.$$m | xargs -n 1 -P $(JOBS) $(PYTHON) -m study.$$m; done
	$(MAKE) reproduce PROFILE=default
endif
	@echo "Done: PROFILE=$(PROFILE); report.html and figures are in $(if $(ENDS_$(PROFILE)),figures,$(R))/"
reference: $(SETUP)  ## Make the numbers of figures/results.csv the reference
	$(PYTHON) -m study.results reference figures
ALLCORES := OMP_NUM_THREADS=$(CORES) $(PYTHON)
# What is small gains nothing from more threads, which would wait for each other on a busy machine.
ONE := OMP_NUM_THREADS=1 $(PYTHON)
bench: $(SETUP)  ## Measure speed against the published way; fills figures/A1_benchmarks.csv
	rm -rf runs/bench && $(ALLCORES) -m study.run A1_benchmarks --profile bench
	cp runs/bench/results/A1_benchmarks.{csv,json} figures/ && $(PYTHON) -m study.report speed
test: $(SETUP)  ## ruff, pytest, and nbval on the notebooks
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	$(ONE) -m pytest
	rm -rf runs/notebooks && $(ONE) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=3600 \
		--nbval-kernel-startup-timeout=600 notebooks/*.ipynb
test-browser: $(SETUP)  ## Move the explorer's sliders in headless Chromium
	type chromium chromedriver >/dev/null && $(ALLCORES) -m pytest tests/test_browser.py -m browser -s
test-faults: $(SETUP)  ## Try to break it: kills, full disks, damaged files
	$(PYTHON) -m pytest tests/faults --faults
notebooks: $(SETUP)  ## Run the notebooks in place with their default parameters
	rm -rf runs/notebooks && $(ONE) -m nbconvert --to notebook --execute --inplace --log-level WARN \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.startup_timeout=600 notebooks/*.ipynb
lab: $(SETUP)  ## Open JupyterLab
	$(PYTHON) -m jupyterlab notebooks
clean:  ## Remove the profile's run folder (PROFILE=default)
	rm -rf $(R)
