# make demo   sets up .venv and answers a question about a real video, pruned and unpruned side by side
# make test   sets up .venv and runs the tests; TRANSFORMERS=5.17.0 runs them on that version, in a .venv of its own
# make bench  sets up .venv and times pruning beside what it saves
# make lint   sets up .venv and runs ruff and mypy

PYTHON ?= python3
TRANSFORMERS ?=
VENV := .venv$(if $(TRANSFORMERS),-transformers-$(TRANSFORMERS))
BIN := $(VENV)/bin
READY := $(VENV)/ready

QUESTION ?= What happens in the street?

.PHONY: demo test bench lint clean

demo: $(READY)
	@echo "== demo: a question about a 10 s street video, with AdaTP and without"
	@$(BIN)/adatp run "$$($(BIN)/python tests/sample_video.py)" --question "$(QUESTION)" --compare --overlay demo.png

test: $(READY)
	@echo "== test: $$($(BIN)/python -c 'import torch, transformers as t; print("torch", torch.__version__, "transformers", t.__version__)')"
	$(BIN)/python -m pytest

bench: $(READY)
	@echo "== bench: medians of one run; every number in brackets is a ratio to the fastest of its table"
	$(BIN)/python -m pytest bench/bench_pruning.py --benchmark-columns=median,iqr,rounds --benchmark-sort=mean -q

lint: $(READY)
	@echo "== lint: ruff and mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
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

clean:
	rm -rf .venv .venv-transformers-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
