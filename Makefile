.PHONY: check test slow lint
check: lint test

lint:
	ruff check .
	ruff format --check .
	mypy

test:
	pytest

slow:
	pytest -n 0 -m 'slow and not gpu and not network' --timeout=1200
