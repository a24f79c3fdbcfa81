# `make` lists the targets. Needs a Rust toolchain, CPython 3.10 or newer with pip, a C compiler and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# maturin builds with different settings than plain cargo; in a shared folder each would invalidate the other's builds.
MATURIN_TARGET := $(CURDIR)/target/maturin
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust_op -name '*.rs' -o -name '*.toml')
RUST_HOST := --manifest-path examples/rust_host/Cargo.toml
PAGES := $(wildcard *.md) docs models tests/nn/states tests/vectors
WORKFLOWS := $(wildcard .github/workflows/*.yml)
PYTEST_ARGS ?= -n auto

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help all demo test test-rust test-build test-python notebook sanitize lint format bench bench-train bench-edge docs \
	site notices wheel wheel-test versions board board-test board-speed clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "%-14s %s\n", $$1, $$2 }'

# The order: the quickest to fail first, pytest's summary line last. The kernel is one unit of code, which the compiler
# works at on one core: so the tests of the crates are built beside the package.
all: ## What continuous integration runs
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(VENV)/dev.stamp test-build
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory site
	@$(MAKE) --no-print-directory notebook
	@$(MAKE) --no-print-directory wheel-test
	@$(MAKE) --no-print-directory versions
	@$(MAKE) --no-print-directory board-test BOARD_ARGS='--where-possible quick short'
	@$(MAKE) --no-print-directory test

demo: $(VENV)/demo.stamp ## Train, export and run a first model
	$(BIN)/lumina demo

test: test-rust ## All tests
	@$(MAKE) --no-print-directory test-python

test-rust: ## The tests of the crates
	@if cargo nextest --version > /dev/null 2>&1; then \
		cargo nextest run --workspace; \
	else \
		cargo test --workspace; \
	fi

test-build: # What test-rust runs
	cargo test --workspace --no-run --quiet

test-python: $(VENV)/dev.stamp ## The tests of the Python packages (PYTEST_ARGS='...' for pytest)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

notebook: $(VENV)/dev.stamp ## Runs the notebooks in examples/
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 examples

sanitize: ## The tests of the kernel under AddressSanitizer (with a nightly toolchain), else under valgrind; minutes
	tests/sanitize/run

lint: $(VENV)/dev.stamp ## Formatting, lints, types, the stub, pages and workflows
	cargo fmt --all --check
	cargo fmt $(RUST_HOST) --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy $(RUST_HOST) --locked --quiet --target-dir target/rust_host -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc -p lumina-kernel -p lumina-ort --no-deps --document-private-items --quiet
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	cd tests && ../$(BIN)/python -m mypy.stubtest lumina_kernel --allowlist meta/stubtest-allowlist.txt
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pymarkdown scan $(PAGES)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOWS)
	@if command -v actionlint > /dev/null; then actionlint $(WORKFLOWS); fi
	$(BIN)/python rust_op/notices/generate.py --check

format: $(VENV)/dev.stamp ## Formats and fixes what can be fixed
	cargo fmt --all
	cargo fmt $(RUST_HOST)
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

bench: $(VENV)/dev.stamp ## Benchmarks (BENCH_ARGS='...' for the runner)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-train: $(VENV)/dev.stamp ## Benchmarks of training, some minutes (BENCH_ARGS as above)
	$(BIN)/python -m benchmarks --training $(BENCH_ARGS)

bench-edge: $(VENV)/dev.stamp ## Benchmarks in ONNX Runtime, some minutes (BENCH_ARGS as above)
	$(BIN)/python -m benchmarks --edge $(BENCH_ARGS)

docs: $(VENV)/dev.stamp ## Rewrites the generated parts of docs/ and the READMEs
	$(BIN)/python docs/generate.py --plots

site: $(VENV)/dev.stamp ## Builds the documentation into build/site; broken links and warnings fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notices: $(BIN)/python ## Rewrites THIRD-PARTY-NOTICES.txt from the crates that are linked
	$(BIN)/python rust_op/notices/generate.py

wheel: $(BIN)/python ## A wheel for Linux, in dist/ (TARGET=aarch64: for boards; zig links it)
ifeq ($(TARGET),)
	$(BIN)/python -m pip install --quiet 'maturin>=1.9,<2' ziglang
	PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --release --zig --target-dir $(MATURIN_TARGET) --out dist
else ifeq ($(TARGET),aarch64)
	PYTHON=$(CURDIR)/$(BIN)/python tests/board/tools build/board
	PYTHON=$(CURDIR)/$(BIN)/python tests/board/build --wheel dist
else
	$(error TARGET=$(TARGET): allowed is aarch64, or nothing for this machine)
endif

wheel-test: ## Builds the wheel and tests it in clean environments
	PYTHON=$(PYTHON) CARGO_TARGET_DIR=$(MATURIN_TARGET) tests/wheel/run

# The oldest supported release, some in between (1.24 to 1.27 restrict what an `if` may contain), and the newest.
versions: $(VENV)/dev.stamp ## Runs models in other releases of ONNX Runtime, with the library and without
	$(BIN)/python tests/runtime/version_matrix.py 1.17.3 1.20.1 1.23.2 1.24.4 1.26.0 1.27.0 newest

board: $(BIN)/python ## Builds liblumina_ort.so for boards (aarch64 Linux) and tries it under qemu, some minutes
	PYTHON=$(CURDIR)/$(BIN)/python tests/board/run quick

# The parts torch and torch-X.Y need nothing of the development environment, which has a PyTorch of its own.
board-test: $(if $(filter-out quick torch torch-%,$(or $(BOARD_ARGS),full)),$(VENV)/dev.stamp,$(BIN)/python) ## All tests of the library and of the wheel for boards, under qemu
	PYTHON=$(CURDIR)/$(BIN)/python tests/board/run $(or $(BOARD_ARGS),full)

board-speed: $(VENV)/dev.stamp ## Predicts the speed of the Arm tiers' hot loops (llvm-mca), and compares it with bars
	PYTHON=$(CURDIR)/$(BIN)/python tests/board/predict $(SPEED_ARGS)

clean: ## Removes what was built
	rm -rf target build dist $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package is installed in place: changed Python needs no new install, changed Rust does.
$(VENV)/%.stamp: $(BIN)/python pyproject.toml $(RUST_SOURCES)
	CARGO_TARGET_DIR=$(MATURIN_TARGET) $(BIN)/python -m pip install -e '.[$*]'
	@touch $@
