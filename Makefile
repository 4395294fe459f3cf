# make demo   shows the main job on this machine       make test   checks and tests everything
# make bench  measures it beside its peers             make bench-quick   less of it, in a minute
# make soak   the long forms of tests and bench           make pages       outputs in README and docs
.DEFAULT_GOAL := help
.PHONY: help venv install demo test check unit bench bench-quick soak pages stubs lock format clean

SOURCES := $(shell find client sidecar protos deploy docs -type f -not -name '*.pyc') pyproject.toml $(wildcard *.md)
PATHS := client sidecar tests tools examples

help:
	@sed -n 's/^# make/make/p' Makefile

# The package is installed as a wheel, never from the source tree: what is tested is what ships.
install: .venv/.installed
.venv/.installed: requirements.lock $(SOURCES)
	@venv=$$(tools/venv.sh) && mkdir -p build && rm -rf build/wheel && \
	$$venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel . && \
	$$venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/wheel/*.whl
	@touch $@

demo: install
	@$$(readlink -f .venv)/bin/python examples/demo.py $(if $(INPUT),--input "$(INPUT)")

# Integration tests wait more than they work, so the others run beside them.
test: check unit

check: install
	@.venv/bin/ruff check $(PATHS)
	@.venv/bin/ruff format --check $(PATHS)
	@.venv/bin/mypy $(PATHS)
	@.venv/bin/python tools/generate_stubs.py --check

unit: install
	@tools/system_packages.sh gcc=gcc node=nodejs npm=npm unshare=util-linux setpriv=util-linux useradd=passwd chpasswd=passwd initdb=postgresql protoc=protobuf-compiler
	@mkdir -p build; python=$$(readlink -f .venv)/bin/python; log=build/integration.log; \
	echo "tests/integration runs meanwhile, and writes to $$log"; \
	$$python -m pytest tests/integration >$$log 2>&1 & integration=$$!; \
	trap 'kill $$integration 2>/dev/null' INT TERM EXIT; \
	code=0; $$python -m pytest tests/unit tests/property || code=$$?; \
	wait $$integration || code=$$?; cat $$log; exit $$code

soak: install .venv/.peers
	@tools/system_packages.sh gcc=gcc node=nodejs npm=npm unshare=util-linux setpriv=util-linux useradd=passwd chpasswd=passwd initdb=postgresql $(BENCH_PACKAGES)
	@python=$$(readlink -f .venv)/bin/python; code=0; \
	KEYSIDE_SOAK=1 $$python -m pytest -m soak || code=$$?; \
	$$python tests/bench/run.py --soak || code=$$?; exit $$code

# What Keyside is measured beside; bench.lock agrees with requirements.lock, so nothing else changes.
BENCH_PACKAGES := h2load=nghttp2-client age=age
.venv/.peers: bench.lock .venv/.installed
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r bench.lock
	@touch $@

bench: install .venv/.peers
	@tools/system_packages.sh $(BENCH_PACKAGES)
	@$$(readlink -f .venv)/bin/python tests/bench/run.py

bench-quick: install .venv/.peers
	@tools/system_packages.sh $(BENCH_PACKAGES)
	@$$(readlink -f .venv)/bin/python tests/bench/run.py --quick

# Runs what README and docs show, and writes what it prints into them.
pages: install
	@KEYSIDE_UPDATE_PAGES=1 .venv/bin/python -m pytest tests/integration/test_pages.py tests/unit/test_page_examples.py

stubs: install
	@.venv/bin/python tools/generate_stubs.py

# Needs uv. The lock files hold hashes and no addresses.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra sidecar --group dev --custom-compile-command "make lock" -o requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --group bench --constraints requirements.lock --custom-compile-command "make lock" -o bench.lock

format: install
	@.venv/bin/ruff format $(PATHS)
	@.venv/bin/ruff check --fix $(PATHS)

clean:
	rm -rf build dist "$$(readlink -f .venv)" .venv
