# `make serve` and `make test` do everything; the other targets are parts of them, or measurements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip need not compile: most installed modules are never imported, and Python compiles the others at their first import.
export PIP_NO_COMPILE := 0
# If this is set, to any value, Python compiles its modules again at every start, which takes 1.5 s.
unexport PYTHONDONTWRITEBYTECODE
export QUINTET_GIT_COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)
.DEFAULT_GOAL := help
.PHONY: help serve test check crash chaos-ledger fuzz campaign-attacks campaign-restart bench train eval protos format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: train ## Install, fetch and train what is missing, then serve on 127.0.0.1:50051
	@exec $(BIN)/python -m server

test: $(VENV)/dev ## Install, fetch and train what is missing, then run all tests with the small language model
	@$(BIN)/python -m training --llm small
	$(BIN)/python -m pytest

check: $(VENV)/dev ## Check lint, format, types, generated stubs, the contract's lint and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf lint protos/image.binpb --config protos/buf.yaml
	$(BIN)/python -m pytest tests/contract

crash: $(VENV)/dev ## Kill collection writers (500 times) and servers that swap models (100); check the data after each
	$(BIN)/python -m tests.campaigns.crash --kills $(or $(KILLS),500)
	$(BIN)/python -m tests.campaigns.crash_swaps --kills $(or $(KILLS),100)

chaos-ledger: $(VENV)/dev ## Send 5000 calls (CALLS=n) to failing providers, kill the server, and check the ledger
	@$(BIN)/python -m training --only embedder
	$(BIN)/python -m tests.campaigns.chaos_ledger --calls $(or $(CALLS),5000)

fuzz: $(VENV)/dev ## Send 1,000,000 mutated payloads (PAYLOADS=n) and broken HTTP/2 to every method in 10 minutes
	@$(BIN)/python -m training --llm small
	$(BIN)/python -m tests.campaigns.fuzz --payloads $(or $(PAYLOADS),1000000)

campaign-attacks: $(VENV)/dev ## Attack servers with and without an API key; show memory and health before, during and after
	$(BIN)/python -m tests.campaigns.attacks

campaign-restart: $(VENV)/dev ## Restart three servers behind Envoy ten times (ROUNDS=n) while clients call; no call may fail
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m tests.campaigns.restarts --rounds $(or $(ROUNDS),10)

bench: $(VENV)/bench ## Measure the server and its baselines in 10 minutes (ROUNDS=n, ONLY="rows"); needs h2load
	@$(BIN)/python -m training --llm small
	@$(BIN)/python -m tests.bench $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

train: $(VENV)/train ## Fetch, train and publish what is missing (ONLY=name; PROFILE=long trains longer)
	@$(BIN)/python -m training $(foreach name,$(ONLY),--only $(name)) $(if $(PROFILE),--profile $(PROFILE))

eval: $(VENV)/train ## Measure retrieval on 172 questions, with variations, and which of 100 answers are called grounded
	@$(BIN)/python -m training --only retrieval --only answers

protos: $(VENV)/dev ## Generate the Python stubs of the contract
	$(BIN)/python protos/generate.py

format: $(VENV)/dev ## Fix lint and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/dev ## Write requirements.lock from the installed packages
	@(head -1 requirements.lock; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > requirements.new
	@mv requirements.new requirements.lock

clean: ## Remove the environment, data/models and data/index; the cache of fetched files stays
	rm -rf $(VENV) data/models data/index

# Versions of pip before 26 take 30 s longer to resolve these packages.
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
