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
SETS := msds1 msds2
PRIORS := laplace gaussian
# The analyses' models: those in weights/, or those that the profile trains.
MODELS := $(R)/models
DATA := {sets: [msds1, msds2], images: 10000, full: true, angles: 131072}
EVAL := {images: 10000, others: 2000, seeds: 2, iw_images: 100, iw_draws: 64, site_images: 500, \
	temperatures: [0.5, 0.7, 0.9, 1.0, 1.1, 1.2], fakes: 500, angles: 131072}
SPARSITY := {images: 2000, rotations: 4}
FIELDS := {latents: 12, samples: 32}
LATENT := {uniform: [0.8, 0.9, 1.0, 1.1, 1.2], fakes: 200, repeats: 3, real: 1000, mixed: 100, \
	traversed: 6, judges: 4, probed: 3000, changed: 200, restored: 8, search_steps: 60, descent_steps: 20}
ifeq ($(PROFILE),smoke)
SETS := msds1
DATA := {sets: [msds1], images: 200, full: false}
TRAIN := {epochs: 2, images_per_epoch: 1920, train_images: 4000, val_images: 100, warmup: 20}
EVAL := {images: 100, others: 50}
SPARSITY := {images: 100}
FIELDS := {latents: 5, samples: 4}
LATENT := {pairs: 2}
else ifneq ($(filter $(PROFILE),default study),)
# What the committed weights give, and one short training that shows the path.
MODELS := weights
TRAINED := msds1_gaussian
TRAIN := {epochs: 5, images_per_epoch: 4000, val_images: 1000}
else ifeq ($(PROFILE),retrain)
TRAIN := {}
PLANNED := shipped
else ifeq ($(PROFILE),paper)
# IGF23's training: its prior convention and flips; the parity of the first half is the authors'.
TRAIN := {model: published, epochs: 60, batch_size: 512, lr: 0.001, optimizer: adamw, beta2: 0.999, outlier_bpd: null, warmup: 0, schedule: constant, convention: unit_scale, flip: true}
else
$(error PROFILE must be one of smoke, default, study, retrain, paper, not '$(PROFILE)')
endif
TRAINED ?= $(foreach set,$(SETS),$(foreach prior,$(PRIORS),$(set)_$(prior)))
WEIGHTS := $(if $(filter weights,$(MODELS)),$(wildcard weights/*.safetensors),$(TRAINED:%=$(R)/models/%.safetensors))
# Of the model whose target is being made, SET_PRIOR.
MODEL = {dataset: $(firstword $(subst _, ,$*)), prior: $(lastword $(subst _, ,$*)), planned: "$(PLANNED)", overrides: $(TRAIN)}
# What each notebook leaves: its executed copy and its results.
STORED := $(foreach name,03_bpd_evaluation $(TRAINED:%=02_training_%),$(R)/$(name).ipynb \
	$(R)/results/$(name).json) $(foreach name,01_data 04_sparsity 05_receptive_fields \
	06_latent_space,$(R)/$(name).ipynb $(R)/results/$(name).json $(R)/results/$(name).npz)

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
# `study` lies beside the notebooks, which run in their own folder.
export PYTHONPATH := notebooks
# For the provenance of results.
export RGFLOW_COMMAND := make $(or $(MAKECMDGOALS),help) PROFILE=$(PROFILE)

# Run a notebook: $(call run,NAME,PARAMETERS,FLAGS). Its executed copy, $(call done,NAME), appears
# when it is done; until then it has the shell's number in its name, as make may run twice. Two
# notebooks run at once, so each line says whose it is; Jupyter's notices about TCP and
# its own shutting down are left out.
done = $(R)/$(1)$(if $*,_$*)
define run
@mkdir -p $(R)
@echo "== notebooks/$(1).ipynb -> $(done).ipynb"
@partial=$(done).partial-$$$$.ipynb; $(PYTHON) -m papermill notebooks/$(1).ipynb $$partial --cwd notebooks --no-progress-bar --log-level ERROR --stdout-file /dev/stdout \
	-y '$(2)' -p out $(R) $(3) 2>&1 | sed -u '/^\[IPKernelApp\] \(WARNING\|ERROR | KeyboardInterrupt\)/d; s/^/$(or $*,$(1)): /' || { echo "error: notebook $(1) failed; as far as it came it is in $$partial" >&2; exit 1; }; \
	mv $$partial $(done).ipynb
endef

.PHONY: help
help:  ## Explain the targets
	@echo "RG-Flow reproducibility study. Targets:"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 \t/' | expand -t 24
	@echo "Profiles of make reproduce PROFILE=...:"
	@echo "  smoke    all steps, tiny, under 5 minutes on two cores"
	@echo "  default  all analyses of weights/, one short training, under 15 minutes; fills figures/"
	@echo "  study    the study's training runs that have no record in data/records, then default"
	@echo "  retrain  the models of weights/ again from scratch: some hours on two cores"
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
reproduce: figures/results.json  ## Regenerate every number and figure (PROFILE=default)
	@$(PYTHON) -m study.reference check figures/results.json figures/reference.json $(R)/comparison.csv
	@echo "Done: report figures/report.html, numbers and figures in figures/"
else ifeq ($(PROFILE),study)
# Their records name runs; those there are kept. Then the default profile, on what they left.
RECORDS := $(shell sed -n 's|^      "\([a-z0-9_]*\)":.*|data/records/\1.json|p' data/runs.json)
reproduce: $(RECORDS)
	$(MAKE) reproduce PROFILE=default
$(RECORDS): data/records/%.json: | $(SETUP) $(R)/01_data.ipynb
	$(PYTHON) -m study.records $*
else
reproduce: $(R)/report.html
	@echo "Done: report $(R)/report.html, numbers $(R)/results.json, figures $(R)/figures/"
endif

CORE := $(wildcard rgflow_core/*.py notebooks/study/*.py)
DATA_CORE := $(addprefix rgflow_core/,msds.py datasets.py)
N := $(R)/results

# A notebook and the files it makes are remade together (&:, or a pattern rule).
$(R)/01_data.ipynb $(N)/01_data.json $(N)/01_data.npz &: notebooks/01_data.ipynb $(DATA_CORE) | $(SETUP)
	$(call run,01_data,$(DATA))

$(R)/02_training_%.ipynb $(N)/02_training_%.json $(R)/models/%.safetensors: notebooks/02_training.ipynb $(R)/01_data.ipynb
	$(call run,02_training,$(MODEL))

define analysis
$(R)/$(1).ipynb $(N)/$(1).json $(if $(3),$(N)/$(1).npz) &: notebooks/$(1).ipynb $(WEIGHTS) $(CORE) $(R)/01_data.ipynb
	$$(call run,$(1),$$($(2)),-p weights $(MODELS))
endef
$(R)/03_bpd_evaluation.ipynb: $(wildcard data/*.json data/records/*.json)
$(eval $(call analysis,03_bpd_evaluation,EVAL))
$(eval $(call analysis,04_sparsity,SPARSITY,npz))
$(eval $(call analysis,05_receptive_fields,FIELDS,npz))
$(eval $(call analysis,06_latent_space,LATENT,npz))

# Two figures are drawn only where runs have records.
FIGURES := $(sort $(shell grep -o 'fig[0-9][0-9]_[a-z_]*' notebooks/07_figures.ipynb))
ifeq ($(wildcard data/records/msds*_seed*.json),)
FIGURES := $(filter-out %_seeds,$(FIGURES))
endif
ifeq ($(filter-out data/records/ablation_unchanged_%,$(wildcard data/records/ablation_*.json)),)
FIGURES := $(filter-out %_ablations,$(FIGURES))
endif
FIGURES := $(foreach kind,png pdf csv,$(FIGURES:%=$(R)/figures/%.$(kind)))
$(R)/07_figures.ipynb $(R)/results.json $(FIGURES) &: notebooks/07_figures.ipynb $(STORED) $(CORE)
	$(call run,07_figures,{profile: $(PROFILE)})

# And report.pdf, where a Chromium is installed.
$(R)/report.html: $(R)/07_figures.ipynb $(R)/results.json $(FIGURES) notebooks/study/page.py
	@$(PYTHON) -m study.page $< $@

# Only the default profile writes to figures/ and README's table.
figures/results.json: $(R)/report.html
	@mkdir -p figures
	@rm -f figures/fig* figures/report.*
	@cp $(FIGURES) $(R)/report.* figures/
	@$(PYTHON) -m study.report results $(R)/results.json README.md
	@cp $(R)/results.json figures/

.PHONY: reference
reference: $(SETUP)  ## Make the numbers of figures/results.json the reference
	$(PYTHON) -m study.reference write figures/results.json figures/reference.json

# --- Speed ----------------------------------------------------------------------------------------
BENCH := {hidden: 512, batch: 32, pairs: 7, lattices: [16, 32, 64, 128], batches: [8, 32, 128], \
	pictures: 2000, everything: true, judged: 256, compiling: true, steps: 60, lean_images: 6400}
.PHONY: bench
bench: $(SETUP)  ## Measure speed against the published way; fills figures/benchmarks.json
	rm -rf runs/bench
	OMP_NUM_THREADS=$(CORES) $(PYTHON) -m papermill notebooks/A1_benchmarks.ipynb runs/A1_benchmarks.ipynb \
		--cwd notebooks --no-progress-bar --log-level ERROR --stdout-file /dev/stdout -p out runs/bench \
		-y '$(BENCH)'
	cp runs/bench/results/A1_benchmarks.json figures/benchmarks.json
	$(PYTHON) -m study.report speed figures/benchmarks.json README.md

# --- For developers -----------------------------------------------------------------------------
.PHONY: test test-browser test-faults notebooks lab clean
test test-browser notebooks: export OMP_NUM_THREADS = $(CORES)
test: $(SETUP)  ## ruff, pytest, and nbval on the notebooks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest tests
	rm -rf runs/notebooks
	$(PYTHON) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

# The explorer's sliders in JupyterLab, in a real browser.
test-browser: $(SETUP)  ## Move sliders of notebook 06 in headless Chromium
	@for program in chromium chromedriver; do command -v $$program >/dev/null || \
		{ echo "error: test-browser needs $$program, which is not installed (Debian: apt-get install chromium chromium-driver)" >&2; exit 2; }; done
	$(PYTHON) -m pytest tests/test_browser.py -m browser -s

test-faults: $(SETUP)  ## Try to break it: kills, full disks, damaged files; fills figures/faults.json
	$(PYTHON) -m pytest tests/faults --faults figures/faults.json
	$(PYTHON) -m study.report faults figures/faults.json README.md

notebooks: $(SETUP)  ## Run the notebooks in place with their default parameters
	rm -rf runs/notebooks
	$(PYTHON) -m nbconvert --to notebook --execute --inplace --log-level WARN \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb

lab: $(SETUP)  ## Open JupyterLab
	$(PYTHON) -m jupyterlab notebooks

clean:  ## Remove the profile's run folder (PROFILE=default)
	rm -rf $(R)
