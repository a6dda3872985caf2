PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VENV := .venv-torch
TORCH_BIN := $(TORCH_VENV)/bin

.PHONY: demo test test-torch soak check docs clean

# The base, as a user gets it.
$(BIN)/headstart: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(BIN)/pytest: $(BIN)/headstart
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# With the extra torch, in an environment of its own: the other one proves that it needs none. 6 GB.
$(TORCH_BIN)/pytest: pyproject.toml
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_BIN)/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(TORCH_BIN)/python -m pip install --quiet --editable '.[torch,dev]'
	@touch $@

# Handwritten digits, once with the last layer as every tutorial has it, once with the layer that cross-validation picks.
demo: $(BIN)/headstart
	$(BIN)/python examples/digits.py demo/digits
	$(BIN)/headstart train demo/digits --layers top --output demo/top-layer.onnx
	$(BIN)/headstart train demo/digits --output demo/digits.onnx
	$(BIN)/headstart predict demo/digits.onnx demo/digits/3/0003.png demo/digits/7/0007.png --top 3
	@echo "Top layer:    $$($(BIN)/headstart inspect demo/top-layer.onnx | grep ^accuracy)"
	@echo "Chosen layer: $$($(BIN)/headstart inspect demo/digits.onnx | grep ^accuracy)"

test: $(BIN)/pytest
	$(BIN)/python -m pytest -q

# What the extra torch is for or could change; the rest has run without it.
test-torch: $(TORCH_BIN)/pytest
	$(TORCH_BIN)/python -m pytest -q $$(grep -lE 'torch|matplotlib' tests/test_*.py)

# A server under load for five minutes: every request answered, memory flat. Within 10 %, because other work beside it
# moves the figure; alone it is 0.2.
soak: $(BIN)/pytest
	$(BIN)/python examples/digits.py demo/digits
	$(BIN)/headstart train demo/digits --layers top --output demo/soak.onnx
	$(BIN)/python benchmarks/serve_soak.py demo/soak.onnx demo/soak.onnx demo/digits \
		--parts soak --minutes 5 --rate 10 --most-growth 10

check: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/headstart
	$(BIN)/python docs/make_cli_reference.py

clean:
	rm -rf $(VENV) $(TORCH_VENV) demo build .pytest_cache .mypy_cache .ruff_cache
