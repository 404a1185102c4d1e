# Two commands do everything: `make serve` and `make test`. The rest are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles what it imports, which is a small part of what is installed. For pip this 0 means "do not".
export PIP_NO_COMPILE := 0
# For Python any value means "do not", and every start would compile again what it imports: a second and a half.
unexport PYTHONDONTWRITEBYTECODE
export QUINTET_GIT_COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)
.DEFAULT_GOAL := help
.PHONY: help serve test check crash chaos-ledger bench train eval protos format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: train ## Install, fetch, train what is missing, and start the server on 127.0.0.1:50051
	@exec $(BIN)/python -m server

test: $(VENV)/dev ## Install, fetch, train what is missing, and run the tests, with the small language model
	@$(BIN)/python -m training --llm small
	$(BIN)/python -m pytest

check: $(VENV)/dev ## Lint, types, contract, stale stubs, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf lint protos/image.binpb --config protos/buf.yaml
	$(BIN)/python -m pytest tests/contract

crash: $(VENV)/dev ## Kill writers of a collection (500 times) and servers (100) at random moments; check what is left each time
	$(BIN)/python -m tests.crash --kills $(or $(KILLS),500)
	$(BIN)/python -m tests.crash_swaps --kills $(or $(KILLS),100)

chaos-ledger: $(VENV)/dev ## Send CALLS calls (5000) through a server that is killed, and compare the ledger with what was served
	@$(BIN)/python -m training --only embedder
	$(BIN)/python -m tests.chaos_ledger --calls $(or $(CALLS),5000)

bench: $(VENV)/bench ## Measure against the raw engines and other designs, in 10 minutes; needs h2load (nghttp2-client)
	@$(BIN)/python -m training --llm small
	@$(BIN)/python -m tests.bench $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

train: $(VENV)/train ## Fetch weights and data, train, publish; ONLY=name for some, PROFILE=long for more quality
	@$(BIN)/python -m training $(foreach name,$(ONLY),--only $(name)) $(if $(PROFILE),--profile $(PROFILE))

eval: $(VENV)/train ## Measure retrieval on a set of questions and answers, and variations of it
	@$(BIN)/python -m training --only retrieval

protos: $(VENV)/dev ## Generate the stubs of the contract
	$(BIN)/python protos/generate.py

format: $(VENV)/dev ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/dev ## Write requirements.lock from what is installed
	@(head -1 requirements.lock; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > requirements.new
	@mv requirements.new requirements.lock

clean: ## Remove the environment and what was published here; the user's cache stays
	rm -rf $(VENV) data/models data/index

# A pip of before 2026 takes half a minute longer to choose the wheels.
$(VENV)/serve: requirements.lock pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c requirements.lock 'pip>=26' hatchling editables
	$(BIN)/pip install --no-build-isolation -c requirements.lock -e clients/python -e .
	@touch $@

$(VENV)/train: $(VENV)/serve
	$(BIN)/pip install --no-build-isolation -c requirements.lock -e clients/python -e '.[train]'
	@touch $@

$(VENV)/dev: $(VENV)/train
	$(BIN)/pip install --no-build-isolation -c requirements.lock -e clients/python -e '.[train,dev]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(BIN)/pip install --no-build-isolation -c requirements.lock -e clients/python -e '.[train,dev,bench]'
	@touch $@
