# What one does with this project, one line each. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help install engine llama demo serve test conformance check lock pocket bench

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

install:  ## the gateway, into .venv
	@scripts/install

engine:  ## vLLM for the CPU, into .engine
	@scripts/engine

llama:  ## llama.cpp's server for the CPU, into .llama
	@scripts/llama

.venv-dev:
	@scripts/install dev

.PHONY: .venv-dev

demo: .venv-dev engine  ## install all, then show the main job on a real engine
	@.venv/bin/python -m benchmarks.demo

serve: .venv-dev engine  ## install all, then serve the pocket model until interrupted
	@.venv/bin/python -m benchmarks.demo --serve

test: .venv-dev engine  ## install all, then run every test
	-@scripts/llama
	@scripts/test

conformance: .venv-dev engine  ## install all, then point other people's clients at it
	@scripts/conformance

check: .venv-dev  ## formatting, lint and types
	@scripts/check

bench: .venv-dev engine  ## quality, votes, latency and overhead, into benchmarks/results
	@scripts/bench

pocket: .venv-dev engine  ## train the pocket model's tasks anew (about an hour each)
	@.engine/bin/python -m benchmarks.pocket.train chains
	@.engine/bin/python -m benchmarks.pocket.train swaps

lock:  ## pin every dependency anew
	@scripts/lock
