# Everything a contributor needs, each target from a fresh clone and quick the second time.
#   make demo    install, then answer the example table on the CPU, with nothing else needed
#   make test    install what the tests need, a real SGLang too, and run all of them
#   make check   format, lint, types and the quick tests: before every commit
#   make sglang  only build the environment with SGLang, which all clones share (3 GB, once)
#   make servers only install PostgreSQL and Redis, which some tests need, from Debian's packages
#   make bench   the benchmarks, one JSON line per figure; in full with `make bench ARGS=`
#   make clean   forget the virtual environment and what was built, but for SGLang's

PYTHON ?= python3.11
VENV ?= .venv
# Installed before anything that depends on it, so that nothing else chooses a build.
TORCH ?= torch==2.13.0

# Of the benchmarks.
ARGS ?= --quick

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
# A changed pyproject.toml changes the names of the stamps, so that the next target installs again.
KEY := $(shell cksum < pyproject.toml | tr -d ' ')
STAMPS := $(VENV)/.stamps
READY := $(STAMPS)/runtime-$(KEY)
READY_DEV := $(STAMPS)/dev-$(KEY)
DEMO := .tenter/demo
TENTER := $(BIN)/tenter

.DELETE_ON_ERROR:
.PHONY: help demo test check sglang servers bench clean
help:
	@sed -n 's/^#   //p' Makefile

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "tenter needs Python 3.11 or newer, and there is no '$(PYTHON)' here." >&2; \
	  echo "Install it (Debian: apt install python3.11 python3.11-venv), or name another: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make a virtual environment: its module ensurepip is missing." >&2; \
	  echo "Install it (Debian: apt install python3.11-venv) and run make again." >&2; \
	  exit 1; }
	@test -x $(BIN)/python || { echo "making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "bringing pip up to date"
	@$(PIP) install --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: | $(STAMPS)/venv
	@echo "installing $(TORCH) (the largest part; a few minutes on a slow line)"
	@$(PIP) install '$(TORCH)'
	@touch $@

$(READY): | $(STAMPS)/torch
	@echo "installing tenter with its extras"
	@$(PIP) install --editable '.[all]'
	@touch $@

# litellm only for the cl100k vocabulary in it, with which some benchmarks count tokens. OR-tools
# for the exact optimum of small placements.
$(READY_DEV): | $(READY)
	@echo "installing what the tests and checks need"
	@$(PIP) install --group dev
	@$(PIP) install --no-deps litellm || echo "going on without it: benchmarks that count cl100k tokens will ask for it"
	@$(PIP) install --group bench || echo "going on without it: benchmarks/placement.py leaves out its small cases"
	@touch $@

demo: $(READY)
	@mkdir -p $(DEMO)
	@echo
	@echo "$$ tenter explain examples/triage.yaml examples/tickets.csv"
	@$(TENTER) explain examples/triage.yaml examples/tickets.csv
	@echo "$$ tenter map examples/triage.yaml examples/tickets.csv --out $(DEMO)/answers.csv"
	@$(TENTER) map examples/triage.yaml examples/tickets.csv --out $(DEMO)/answers.csv --force \
	  --home $(DEMO) --show 3
	@echo
	@echo "What to try next:"
	@echo "  source $(VENV)/bin/activate"
	@echo "  tenter run examples/triage.yaml ticket='I was charged twice. Thanks, Ada'"
	@echo "  tenter run examples/agent.py question='What is the total price of 2 tables and 3 lamps?'"
	@echo "  tenter graph examples/triage.yaml"
	@echo "  tenter --help"
	@echo "and then docs/tutorial.md."

sglang: | $(STAMPS)/venv
	@$(BIN)/python tests/sglang/environment/build.py

servers:
	@tests/servers.sh

# Tests whose server is missing are skipped, but not here. Those on SGLang's servers have the machine
# for themselves.
test: $(READY_DEV) sglang servers
	@export TENTER_REQUIRE_SGLANG=1 TENTER_REQUIRE_POSTGRES=1 TENTER_REQUIRE_REDIS=1 \
	  TENTER_REQUIRE_RAY=1; status=0; set -x; \
	$(BIN)/python -m pytest -m sglang || status=1; \
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not sglang" || status=1; \
	exit $$status

check: $(READY_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not sglang"

bench: $(READY_DEV) sglang
	@for bench in $$(grep -l -e '"--quick"' benchmarks/*.py); do \
	  echo "== $$bench $(ARGS)" >&2; $(BIN)/python $$bench $(ARGS) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis $(DEMO)
