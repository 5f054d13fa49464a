# Two commands do everything, as root, on a fresh Debian 12 or 13 machine: `make demo` and `make test`.
PYTHON := .venv/bin/python
.PHONY: setup demo test check unit kernel lab bench down clean

setup:
	@./setup.sh run

demo: setup
	@$(PYTHON) -m lab.demo

down:
	@.venv/bin/weft lab down

test:
	@./setup.sh run test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run -Werror bpf/*.c bpf/*.h
	$(PYTHON) -m pytest -q

check unit kernel lab: %:
	@./setup.sh run test
	$(if $(filter check,$@),$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy,$(PYTHON) -m pytest -q -m $@)

bench:
	@./setup.sh run bench
	$(PYTHON) -m bench

clean:
	rm -rf .venv build mesh/proto/*_pb2*.py* mesh/proto/.generated
