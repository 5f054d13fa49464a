# Two commands do everything, as root, on a fresh Debian 12 or 13 machine: `make demo` and `make test`.
PYTHON := .venv/bin/python
.PHONY: setup demo down test check unit kernel lab peer fuzz soak shake bench bench-hostile image clean

setup:
	@./setup.sh run

demo: setup
	@$(PYTHON) -m lab.walkthrough

down: setup
	@.venv/bin/weft lab down

test: check
	$(PYTHON) -m tests.suite

check:
	@./setup.sh run test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run -Werror bpf/*.c bpf/*.h

unit kernel lab peer:
	@./setup.sh run test
	$(PYTHON) -m pytest -q -m $@

# 60 s for each target: `make fuzz SECONDS=5` for less, `make fuzz TARGETS="dns-query hpack"` for some.
SECONDS := 60
fuzz:
	@./setup.sh run test fuzz
	$(PYTHON) -m tests.fuzz --seconds $(SECONDS) $(TARGETS)

# What moves connections' bytes, under random schedules, and then connections while the mesh changes: `make soak SEED=7` begins with
# that one.
SEED := 1
soak:
	@./setup.sh run test
	$(PYTHON) -m tests.ztunnel.schedules --seconds $(SECONDS) --seed $(SEED)
	$(PYTHON) -m tests.ztunnel.mesh_changes --seconds $(SECONDS) --seed $(SEED)

# Tests that depend on which thread or process comes first: each has TURNS turns while random ones of them stand still.
TURNS := 10
TESTS := tests/wire
shake:
	@./setup.sh run test
	$(PYTHON) -m tests.shaken --turns $(TURNS) $(TESTS)

# IMAGE=1: weft's processes run from the node image's root file system.
bench:
	@./setup.sh run bench
	$(if $(IMAGE),daemonset/image.sh)
	$(PYTHON) -m bench $(if $(IMAGE),--image build/image/root)

bench-hostile:
	@./setup.sh run test
	$(PYTHON) -m tests.lab.bench_hostile

image:
	$(MAKE) -C daemonset image

clean:
	rm -rf .venv build mesh/proto/*_pb2*.py* mesh/proto/.generated
