# The RG-Flow reproducibility study. `make help` explains.
PROFILE ?= default
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# An active conda environment made from environment.yml is used as it is; otherwise .venv is made.
ifeq ($(CONDA_DEFAULT_ENV),rgflow)
PYTHON := python
SETUP :=
else
PYTHON := .venv/bin/python
SETUP := .venv/installed
endif

# --- Profiles: what is trained, and on how many pictures the rest is measured ----------------
R := runs/$(PROFILE)
PRIORS := laplace gaussian
ifeq ($(PROFILE),smoke)
SETS := msds1
DATA := {sets: [msds1], images: 200, full: false}
TRAIN := {epochs: 2, images_per_epoch: 1920, train_images: 4000, val_images: 100, warmup: 20}
EVAL := {images: 100, seeds: 2}
SPARSITY := {images: 100}
FIELDS := {latents: 5, samples: 4}
LATENT := {pairs: 2}
else ifeq ($(PROFILE),default)
SETS := msds1
DATA := {sets: [msds1], images: 10000, full: true}
TRAIN := {epochs: 8, images_per_epoch: 12800, val_images: 1000}
EVAL := {images: 10000, seeds: 2}
SPARSITY := {images: 2000}
FIELDS := {latents: 24, samples: 32}
LATENT := {pairs: 3}
else ifeq ($(PROFILE),retrain)
SETS := msds1 msds2
DATA := {sets: [msds1, msds2], images: 10000, full: true}
TRAIN := {epochs: 40, val_images: 2000, warmup: 500}
EVAL := {images: 10000, seeds: 3}
SPARSITY := {images: 2000}
FIELDS := {latents: 48, samples: 64}
LATENT := {pairs: 3}
else ifeq ($(PROFILE),paper)
SETS := msds1 msds2
DATA := {sets: [msds1, msds2], images: 10000, full: true}
TRAIN := {model: published, epochs: 60, batch_size: 512, lr: 0.001, betas: [0.9, 0.999], warmup: 0, schedule: constant}
EVAL := {images: 10000, seeds: 3}
SPARSITY := {images: 2000}
FIELDS := {latents: 48, samples: 64}
LATENT := {pairs: 3}
else
$(error PROFILE must be one of smoke, default, retrain, paper, not '$(PROFILE)')
endif
MODELS := $(foreach set,$(SETS),$(foreach prior,$(PRIORS),$(set)_$(prior)))
# Of the model whose target is being made, SET_PRIOR.
MODEL = {dataset: $(firstword $(subst _, ,$*)), prior: $(lastword $(subst _, ,$*)), overrides: $(TRAIN)}
TRAINED := $(MODELS:%=$(R)/02_training_%.ipynb)
ANALYSES := $(R)/03_bpd_evaluation.ipynb $(R)/04_sparsity.ipynb $(R)/05_receptive_fields.ipynb \
	$(R)/06_latent_space.ipynb

# Two notebooks at a time, each on half of the cores: faster than one on all of them, because the
# lean networks are small. Waiting threads of two programs on the same cores would otherwise
# hold each other up (20 times slower, measured); the spin count bounds that too.
CORES := $(shell getconf _NPROCESSORS_ONLN)
ifeq ($(PROFILE),paper)
JOBS := 1
else
JOBS := 2
endif
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif
export OMP_NUM_THREADS ?= $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
export GOMP_SPINCOUNT ?= 10000

# Run a notebook: $(call run,NAME,PARAMETERS,FLAGS). It appears under its target's name when it is
# done. Two run at once, so each line says whose it is; Jupyter's notices about TCP and
# its own shutting down are left out.
define run
@mkdir -p $(R)
@echo "== notebooks/$(1).ipynb -> $@"
@$(PYTHON) -m papermill notebooks/$(1).ipynb $(basename $@).partial.ipynb --no-progress-bar --log-level ERROR --stdout-file /dev/stdout \
	-y '$(2)' -p out $(R) $(3) 2>&1 | sed -u '/^\[IPKernelApp\] \(WARNING\|ERROR | KeyboardInterrupt\)/d; s/^/$(*F)$(if $*,,$(1)): /' || { echo "error: notebook $(1) failed; as far as it came it is in $(basename $@).partial.ipynb" >&2; exit 1; }
@mv $(basename $@).partial.ipynb $@
endef

.PHONY: help
help:  ## Explain the targets
	@echo "RG-Flow reproducibility study. Targets:"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 \t/' | expand -t 24
	@echo "Profiles of make reproduce PROFILE=...:"
	@echo "  smoke    all steps, tiny, under 5 minutes on two cores"
	@echo "  default  two lean models on MSDS1 from scratch, about 15 minutes; fills figures/"
	@echo "  retrain  lean models, both sets and priors, full data: about 10 hours on two cores"
	@echo "  paper    published size and epochs, wants a GPU"

# --- Set-up -----------------------------------------------------------------------------------
.PHONY: setup
setup: $(SETUP)  ## Make .venv from requirements.lock (part of every target)

.venv/installed: requirements.lock pyproject.toml
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

# --- The study ----------------------------------------------------------------------------------
# A finished training is not repeated when code changes; `make clean` first to train anew.
.PHONY: reproduce
ifeq ($(PROFILE),default)
reproduce: $(R)/published  ## Regenerate every number and figure (PROFILE=default)
else
reproduce: $(R)/report.html
endif
	@echo "Done: report $(R)/report.html, numbers $(R)/results.json, figures $(R)/figures/"

CORE := $(wildcard rgflow_core/*.py)
DATA_CORE := $(addprefix rgflow_core/,msds.py datasets.py)

$(R)/01_data.ipynb: notebooks/01_data.ipynb $(DATA_CORE) | $(SETUP)
	$(call run,01_data,$(DATA))

$(R)/02_training_%.ipynb: notebooks/02_training.ipynb $(R)/01_data.ipynb
	$(call run,02_training,$(MODEL))

$(R)/03_bpd_evaluation.ipynb: notebooks/03_bpd_evaluation.ipynb $(TRAINED) $(CORE)
	$(call run,03_bpd_evaluation,$(EVAL),-p weights $(R)/models)
$(R)/04_sparsity.ipynb: notebooks/04_sparsity.ipynb $(TRAINED) $(CORE)
	$(call run,04_sparsity,$(SPARSITY),-p weights $(R)/models)
$(R)/05_receptive_fields.ipynb: notebooks/05_receptive_fields.ipynb $(TRAINED) $(CORE)
	$(call run,05_receptive_fields,$(FIELDS),-p weights $(R)/models)
$(R)/06_latent_space.ipynb: notebooks/06_latent_space.ipynb $(TRAINED) $(CORE)
	$(call run,06_latent_space,$(LATENT),-p weights $(R)/models)

$(R)/07_figures.ipynb: notebooks/07_figures.ipynb $(ANALYSES)
	$(call run,07_figures,{profile: $(PROFILE)})

$(R)/report.html: $(R)/07_figures.ipynb
	@$(PYTHON) -m rgflow_core.report html $< $@

# Only the default profile writes to figures/ and README's table.
$(R)/published: $(R)/report.html
	@mkdir -p figures
	@cp $(R)/figures/*.png $(R)/figures/*.pdf $(R)/results.json figures/
	@$(PYTHON) -m rgflow_core.report readme figures/results.json README.md
	@touch $@

# --- For developers -----------------------------------------------------------------------------
.PHONY: test notebooks lab clean
test notebooks: export OMP_NUM_THREADS = $(CORES)
test: $(SETUP)  ## ruff, pytest, and nbval on the notebooks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest tests
	rm -rf runs/notebooks
	$(PYTHON) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

notebooks: $(SETUP)  ## Run the notebooks in place with their default parameters
	rm -rf runs/notebooks
	$(PYTHON) -m nbconvert --to notebook --execute --inplace --log-level WARN \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

lab: $(SETUP)  ## Open JupyterLab
	$(PYTHON) -m jupyterlab notebooks

clean:  ## Remove the profile's run folder (PROFILE=default)
	rm -rf $(R)
