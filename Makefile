.PHONY: demo test lint lock setup

demo: ## serve a small model on this machine and ask it; needs no GPU, Docker, SSH or root
	scripts/demo

test: ## style, types and every test that this machine can run
	scripts/test

lint: setup ## style and types alone
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

lock: ## resolve all requirements afresh
	scripts/lock

setup: ## .venv with this project and its development tools
	scripts/setup
