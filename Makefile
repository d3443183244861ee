# What a person does with this repository. Each target does its own set-up (README says where).
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

RUN := .venv/bin
READY := .venv/.adloop-ready

# The tiny model is trained once and kept here, under the hash of what it was made from.
export ADLOOP_CACHE ?= $(CURDIR)/.cache

DATA ?=
DIR ?= data
PORT ?= 8080
KAFKA_PORT ?= 9092
FAULTS ?=
EACH ?= 50
# Processes that share the tests' files; each starts a broker of its own. Much of the tests' time is waiting for one.
TEST_WORKERS ?= 2
ARGS ?=
# 1: the demo's four roles as processes of their own over a broker of their own; HOST:PORT: over that broker.
KAFKA ?=

.PHONY: bench-bait bench-worlds bench-sparse bench-drift bench-cold bench-delay bench-proxy bench-clean test-faults test-fault-series bench-stream bench-learning bench-ablations bench-staleness bench-update bench-freshness help setup demo up replay kafka kafka-stop test lint type check bench lock clean

help: ## this list
	@echo 'Adloop: ad copy that learns from its clicks.'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo 'More options for a target go into ARGS: make demo ARGS="--seed 2 --json"'

setup: $(READY) ## install everything into .venv, from requirements.lock, hashes checked

$(READY): requirements.lock pyproject.toml scripts/setup
	@scripts/setup

demo: $(READY) ## train or load the tiny model, serve a simulated market, end with a summary and a report (KAFKA=1)
	@case '$(KAFKA)' in \
	  '') exec $(RUN)/python -m simulators demo $(ARGS) ;; \
	  1) exec scripts/kafka run $(RUN)/python -m simulators demo --log 'kafka://BROKER?prefix=demo.' $(ARGS) ;; \
	  *) exec $(RUN)/python -m simulators demo --log "kafka://$(KAFKA)?prefix=demo-$$(date +%s)." $(ARGS) ;; \
	esac

up: $(READY) ## serve for real: all four roles in one process (DIR=data PORT=8080)
	@exec $(RUN)/python -m serving --all --data '$(DIR)' --port '$(PORT)' $(ARGS)

replay: $(READY) ## play real headline tests through the same parts: make replay DATA=upworthy.csv.gz
	@test -n '$(DATA)' || { echo 'make: replay needs the file of tests: make replay DATA=PATH/upworthy.csv.gz' >&2; exit 2; }
	@exec $(RUN)/python -m simulators replay --data '$(DATA)' $(ARGS)

kafka: $(READY) ## start a Kafka broker on 127.0.0.1 (KAFKA_PORT=9092), for development; prints HOST:PORT
	@exec scripts/kafka start --port '$(KAFKA_PORT)' $(ARGS)

kafka-stop: $(READY) ## stop it; what it holds stays in .cache/kafka
	@exec scripts/kafka stop $(ARGS)

test: $(READY) ## every test, in TEST_WORKERS=2 processes; one file: make test ARGS="tests/unit/test_joiner.py" TEST_WORKERS=0
	@scripts/browser
	@scripts/kafka fetch
	@OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" exec $(RUN)/python -m pytest -n '$(TEST_WORKERS)' --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: $(READY) ## 120 SIGKILLs and 5 broker restarts over 100,000 impressions; 10,000 permutations (20 minutes)
	@scripts/kafka fetch
	@mkdir -p .cache
	@ADLOOP_LAW_EXAMPLES=10000 $(RUN)/python -m pytest -q tests/laws/test_joiner_laws.py -k any_order >.cache/laws.log 2>&1 & \
	  laws=$$!; $(RUN)/python -m tests.faults kills $(ARGS); kills=$$?; wait $$laws; laws=$$?; tail -n 1 .cache/laws.log; \
	  exit $$((kills | laws))

test-fault-series: $(READY) ## 50 faults of each kind (FAULTS="cut latency half-open broker added frozen" EACH=50; an hour)
	@scripts/kafka fetch
	@exec $(RUN)/python -m tests.faults series $(FAULTS) --each '$(EACH)' $(ARGS)

lint: $(READY) ## ruff: rules and format
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .

type: $(READY) ## mypy --strict, tests included
	@exec $(RUN)/python -m mypy --strict optimizer serving simulators tests bench scripts/*.py

check: lint type test ## lint, type and test

bench: $(READY) ## measure what needs no broker: serving, the joiner's core and its scale
	@set -e; for name in serving stream_core stream_scale; do echo "== bench.$$name"; $(RUN)/python -m "bench.$$name" $(ARGS); done

bench-stream: $(READY) ## the joiner on a real broker beside bare loops and Quix Streams, and its latency (some minutes)
	@scripts/kafka fetch
	@exec $(RUN)/python -m bench.stream $(ARGS)

bench-freshness: $(READY) ## from an event to the first decision that has learnt from it: one process, then four over Kafka
	@$(RUN)/python -m bench.freshness $(ARGS)
	@exec scripts/kafka run $(RUN)/python -m bench.freshness --log 'kafka://BROKER?prefix=freshness.' $(ARGS)

bench-learning: $(READY) ## Adloop beside its peers, 10 seeds, over an hour: a table, an HTML report (DIR=data), JSON last
	@exec $(RUN)/python -m simulators compare --world phrases --impressions 20480 --seeds 10 --json \
	  --report '$(DIR)/bench-learning.html' $(ARGS)

bench-worlds: $(READY) ## hours: the questions of single worlds, one after the other
	@set -e; for name in sparse drift cold delay proxy clean; do $(RUN)/python -m simulators.experiments "$$name" $(ARGS); done

bench-sparse: $(READY) ## does a lift at 0.5 % clicks get significant
	@exec $(RUN)/python -m simulators.experiments sparse $(ARGS)

bench-drift: $(READY) ## how fast is it back when tastes swap
	@exec $(RUN)/python -m simulators.experiments drift $(ARGS)

bench-cold: $(READY) ## what do old campaigns teach a new one
	@exec $(RUN)/python -m simulators.experiments cold $(ARGS)

bench-delay: $(READY) ## what do late conversions cost
	@exec $(RUN)/python -m simulators.experiments delay $(ARGS)

bench-proxy: $(READY) ## does learning halt before bait does harm
	@exec $(RUN)/python -m simulators.experiments proxy $(ARGS)

bench-clean: $(READY) ## does it halt where nothing is wrong
	@exec $(RUN)/python -m simulators.experiments clean $(ARGS)

bench-bait: $(READY) ## what the watch for bait sees in made-up traffic of which the truth is known
	@exec $(RUN)/python -m bench.bait $(ARGS)

bench-ablations: $(READY) ## what each part of learning is worth, taken out one at a time (an hour)
	@exec $(RUN)/python -m bench.ablations $(ARGS)

bench-staleness: $(READY) ## what weight rewards keep in the gradient that come many versions late
	@exec $(RUN)/python -m bench.staleness $(ARGS)

bench-update: $(READY) ## an increment of the language model beside TRL's GRPO step and transformers' generate
	@exec $(RUN)/python -m bench.update $(ARGS)

lock: $(READY) ## pin pyproject.toml's dependencies anew (ARGS=--upgrade: to the newest) and install them
	@$(RUN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --extra fast --extra gym --extra peers --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' --output-file requirements.lock $(ARGS) pyproject.toml
	@scripts/setup

clean: ## remove .venv, .cache and what the tools left
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
