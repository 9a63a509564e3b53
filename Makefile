# Every task of this project. `make` without a target lists them.
.DEFAULT_GOAL := help
.PHONY: help install engine llama demo serve test conformance check lock pocket bench docs

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

install:  ## install the gateway into .venv
	@scripts/install

engine:  ## install vLLM for the CPU into .engine
	@scripts/engine

llama:  ## install llama.cpp's server for the CPU into .llama
	@scripts/llama

.venv-dev:
	@scripts/install dev

.PHONY: .venv-dev

demo: .venv-dev engine  ## install all, then show what a policy saves on a real engine
	@.venv/bin/python -m benchmarks.demo

serve: .venv-dev engine  ## install all, then serve the pocket model until interrupted
	@.venv/bin/python -m benchmarks.demo --serve

test: .venv-dev engine  ## install all, then run every test
	-@scripts/llama
	@scripts/test

conformance: .venv-dev engine  ## install all, then run unmodified clients against the gateway
	@scripts/conformance

check: .venv-dev  ## check formatting, lint and types
	@scripts/check

bench: .venv-dev engine  ## measure quality, votes, latency and overhead, into benchmarks/results
	@scripts/bench

pocket: .venv-dev engine  ## train the pocket models again (about an hour each)
	@.engine/bin/python -m benchmarks.pocket.train chains
	@.engine/bin/python -m benchmarks.pocket.train swaps

docs: .venv-dev  ## build the documentation site into build/site
	@scripts/docs

lock:  ## pin every dependency again
	@scripts/lock
