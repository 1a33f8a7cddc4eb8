# check  everything that needs no model: lint, format, types, import rules
# test   the test suite without the slow tests; test-slow runs those
# docs   write the generated parts of the documentation
# bench  throughput and latency of the default model on this machine

PYTHON ?= python
BENCH ?= --model smollm2-135m --dtype bfloat16

.PHONY: check format test test-slow docs bench

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	lint-imports
	$(PYTHON) docs/generate.py --check

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:
	$(PYTHON) -m pytest

test-slow:
	$(PYTHON) -m pytest -m slow

docs:
	$(PYTHON) docs/generate.py

bench:
	llm bench throughput --num-prompts 64 --input-len 272 --output-len 128 $(BENCH)
	llm bench latency --batch-size 1 --input-len 128 --output-len 128 $(BENCH)
