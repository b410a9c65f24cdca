# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv from pyproject.toml under constraints.txt.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STORE  ?= store

.PHONY: demo test check bench constraints clean

demo: $(VENV)/.installed
	$(BIN)/raymill run tokens --preset quick --store $(STORE)

test: check
	$(BIN)/pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	# without its dependency torchvision, which the benchmark does not use and which must match torch's build
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps litdata
	@touch $@

# Newest versions that go together; the local part of a version (+cpu) is left to the machine that installs.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet '.[test,bench]'
	build/constraints/bin/python -m pip install --quiet --no-deps litdata
	(echo '# Every version, pinned: two machines install the same. Made by `make constraints`.'; \
	 build/constraints/bin/python -m pip freeze --exclude raymill | sed 's/+[a-z0-9]*$$//') > constraints.txt

clean:
	rm -rf $(VENV) build
