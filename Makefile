.PHONY: demo test test-all docs lint audit lock setup

demo: ## serve a small model on this machine and ask it; needs no GPU, Docker, SSH or root
	scripts/demo

test: ## style, types and the tests that this machine can run, but the long ones
	scripts/test

test-all: ## the same with the long tests
	RAYCLUSTER_LONG=1 scripts/test

docs: ## the documentation as a site, in site/
	scripts/docs

lint: setup ## style and types alone
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

audit: ## ask the package index for known vulnerabilities of what is locked
	scripts/audit

lock: ## resolve all requirements afresh
	scripts/lock

setup: ## .venv with this project and its development tools
	scripts/setup
