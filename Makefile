# One command each; `make` alone lists them. Needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
DEV := requirements/dev.txt
RUN := requirements/run.txt

# Tests wait for servers more than they work, so a few at once; each process has servers of its own.
JOBS ?= 4

# Without compiled modules each process of the service compiles all of them again as it starts.
unexport PYTHONDONTWRITEBYTECODE

# Where Debian has them.
REDIS_SERVER ?= /usr/bin/redis-server
POSTGRESQL_BIN ?= /usr/lib/postgresql/15/bin
NGINX ?= /usr/sbin/nginx
HAPROXY ?= /usr/sbin/haproxy

# An environment whose Python has gone (an upgrade of the system) is made anew.
$(shell [ -x $(BIN)/python ] || rm -f .venv/.run .venv/.dev)

# An environment for development has all that running needs.
INSTALLED := $(if $(wildcard .venv/.dev),.venv/.dev,.venv/.run)

# The crowd of `make loadtest`. Without HOST and PORT: the service that runs on ONSALE_DATA_DIR.
PEOPLE ?= 20000
TICKETS ?= 1000
CANCEL ?= 0.1
PREFER ?=
CROWD_OUT := loadtests/out
CROWD_PORT := $(filter-out 0,$(PORT))
CROWD_HOST := $(if $(HOST)$(CROWD_PORT),--host http://$(or $(HOST),127.0.0.1):$(or $(CROWD_PORT),3000))
CROWD := --people $(PEOPLE) --tickets $(TICKETS) --cancel $(CANCEL) $(if $(PREFER),--prefer $(PREFER)) $(CROWD_HOST)

.DEFAULT_GOAL := help
.PHONY: docs help run demo test test-servers restores examples mutants torture check bench bench-growth loadtest lock clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(INSTALLED) ## Start Onsale on http://127.0.0.1:3000 (PORT), data in ./data; Ctrl-C stops it
	@exec $(BIN)/onsale up

demo: $(INSTALLED) ## Hold a sale: 3,000 people for 300 tickets, on the running service or one of its own
	@exec $(BIN)/onsale demo

# The wheels' servers speak no TLS: what needs it runs on others, in test-servers.
test: .venv/.dev ## Run the whole test suite (WITHOUT="tests/unit …" leaves rooms out)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 15 --durations-min 5 $(foreach room,tests/tls tests/proxies tests/poolers tests/torture $(WITHOUT),--ignore=$(room))

# Without the tests of the wheels themselves, of stand-ins and of fakeredis, which `test` has run.
test-servers: ROOMS := tests/integration tests/lua tests/tls tests/proxies tests/poolers
test-servers: PROXIES = $(if $(filter tests/proxies%,$(ROOMS)),$(NGINX) $(HAPROXY)) $(if $(filter tests/poolers%,$(ROOMS)),$(PGBOUNCER))
test-servers: .venv/.dev ## Run what needs stores on REDIS_SERVER and POSTGRESQL_BIN, TLS, or NGINX, HAPROXY and PGBOUNCER
	@for program in $(REDIS_SERVER) $(POSTGRESQL_BIN)/initdb $(POSTGRESQL_BIN)/postgres $(PROXIES); do \
	  [ -x "$$program" ] || { echo "There is no $$program: set REDIS_SERVER to a redis-server or" \
	    "valkey-server, POSTGRESQL_BIN to the directory of initdb and postgres, NGINX, HAPROXY" \
	    "and PGBOUNCER to the programs" >&2; exit 1; }; \
	done
	ONSALE_TEST_NGINX=$(NGINX) ONSALE_TEST_HAPROXY=$(HAPROXY) ONSALE_TEST_PGBOUNCER=$(PGBOUNCER) ONSALE_TEST_REDIS_SERVER=$(REDIS_SERVER) ONSALE_TEST_POSTGRESQL_BIN=$(POSTGRESQL_BIN) \
	  $(BIN)/pytest -n $(JOBS) --dist worksteal -k "not fakeredis and not broken_script" $(ROOMS) \
	  --ignore=tests/integration/test_embedded.py --ignore=tests/integration/test_supervisor.py \
	  $(foreach room,$(WITHOUT),--ignore=$(room))

# `make test` has one point of each; a seed repeats what was done to a sale, and when.
restores: .venv/.dev ## Put stores back at POINTS random points of a sale (20), or at one SEED
	ONSALE_TEST_POINTS=$(or $(POINTS),20) ONSALE_TEST_SEED=$(SEED) $(BIN)/pytest -n $(JOBS) tests/restores

# `make test` tries a fifth of them.
examples: .venv/.dev ## Try all examples of bodies, media types and batches at random (1 min)
	ONSALE_TEST_EXAMPLES=25000 $(BIN)/pytest -n $(JOBS) tests/http/test_any_bytes.py tests/lua/test_cancel.py

# Each on a Valkey and a PostgreSQL of its own; too many at once, and slowness looks like a catch.
mutants: JOBS := 2
mutants: .venv/.dev ## Take each check out of the code and see a test fail (NAME RULE JOBS)
	$(BIN)/python -m tests.mutants --jobs $(JOBS) $(if $(NAME),--name "$(NAME)") $(if $(RULE),--rule $(RULE))

# Everything takes about an hour and needs a C compiler and Debian's libfaketime; CI runs it BRIEF.
torture: JOBS := 2
torture: .venv/.dev ## Do every fault to a running sale, write docs/reliability.md (FAULTS="NAME=COUNT …" SEED BRIEF RESUME JOBS)
	$(BIN)/python -m tests.torture $(if $(BRIEF),,--full) --jobs $(JOBS) $(if $(SEED),--seed $(SEED)) $(if $(RESUME),--resume $(RESUME)) $(FAULTS)

check: .venv/.dev ## Look at format, lint and types; runs no test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# ONLY="book,no-op" measures these alone in a minute; ROUNDS SECONDS; WRITE=1 keeps what it prints.
# BASE=<commit> measures this tree beside that commit's, in alternating rounds (ONLY="book": 3 min).
bench: .venv/.dev ## Measure bookings and reads beside a no-op, or beside a commit's (20 min; BASE ONLY ROUNDS SECONDS WRITE)
	$(BIN)/python loadtests/bench.py $(if $(BASE),--base $(BASE)) $(if $(ONLY),--only "$(ONLY)") $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SECONDS),--seconds $(SECONDS)) $(if $(WRITE),--write)

bench-growth: .venv/.dev ## Measure scripts by batch size, positions among a million waiters, a rebuild of 200,000 users (5 min)
	$(BIN)/python loadtests/bench_scripts.py
	$(BIN)/python loadtests/bench_positions.py
	$(BIN)/python loadtests/bench_rebuild.py

# What people were told is verified even where Locust found fault with it; its exit code comes first.
loadtest: .venv/.dev ## Send a crowd at the running service and verify it (PEOPLE TICKETS CANCEL PREFER HOST PORT)
	@rm -f $(CROWD_OUT)/answers.jsonl
	@$(BIN)/locust -f loadtests/locustfile.py --headless --only-summary --loglevel WARNING \
	  $(CROWD) --html $(CROWD_OUT)/report.html --answers $(CROWD_OUT)/answers.jsonl; crowd=$$?; \
	[ -f $(CROWD_OUT)/answers.jsonl ] || exit $$crowd; \
	echo "How it went, with charts: $(CROWD_OUT)/report.html"; echo; \
	$(BIN)/python -m loadtests.verify $(CROWD_OUT)/answers.jsonl; verified=$$?; \
	[ $$crowd -eq 0 ] || exit $$crowd; exit $$verified

docs: .venv/.dev ## Write the generated tables of the documentation anew
	$(BIN)/python -m docs.generate

lock: .venv/.dev ## Write requirements/*.txt anew from pyproject.toml
	@$(PIP) install -q --upgrade --target .venv/uv uv
	$(call compile,$(RUN),--group build)
	$(call compile,$(DEV),--group build --group dev)

clean: ## Remove the virtual environment and all caches; ./data stays
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define compile
	.venv/uv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-header pyproject.toml $(2) -o $(1)
endef

# A lock that has changed, or another version of the project, installs again. The project itself
# is installed as a link to this directory, with the build tools of the lock and no others.
define install
	@echo "Installing $(1) into .venv ($(2)) ..."
	@$(have_pip)
	@$(PIP) install -q --require-hashes -r $(1)
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@
endef

# Debian keeps ensurepip in a package of its own: without it a pip of the system serves, if any.
have_pip = $(BIN)/python -m pip --version >/dev/null 2>&1 \
  || $(BIN)/python -m ensurepip >/dev/null 2>&1 \
  || $(PYTHON) -m pip --python $(BIN)/python install -q pip \
  || { echo "$(PYTHON) has neither ensurepip nor pip (on Debian: apt install python3-venv)" >&2; exit 1; }

.venv/.run: $(RUN) pyproject.toml | $(BIN)/python
	$(call install,$(RUN),about 20 s)

.venv/.dev: $(DEV) pyproject.toml | $(BIN)/python
	$(call install,$(DEV),about 40 s)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON): install Python 3.11 or newer, or make PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Onsale needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    "try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear --without-pip .venv
