# make demo    run the workflow on the model in data/demo-moe and print the results
# make test    run the tests that a change needs, 4 minutes
# make test-all    run all tests but those on SLURM, 14 minutes; TESTS="full and not slurm" leaves out those of `make test`
# make test-faults    make random faults, MINUTES=0.5 for each kind, and count what they lead to
# make test-lowest    run the tests of `make test` with the lowest versions that pyproject.toml allows; torch is a large download
# make test-serving    run compressed models in vLLM and transformers 4, 10 minutes, and 10 to install them at first
# make test-slurm    run the SLURM tests on a cluster on this machine, 15 minutes; SLURM_TESTS="a or b" selects some
# make bench   compare all methods at equal size, hours; BENCH="demo few" selects comparisons of benchmarks/methods.py
# make bench-refine    compare methods before and after a refine, an hour or less for each of PIECES="demo_64_50 ..."
# make bench-frontier    compare merging and quantizing at equal bytes, 40 minutes of one core for each of PIECES="demo_select_50 ..."
# make bench-speed    measure solves, captures, forwards and the workflow's overhead, and write benchmarks/results, an hour of one core
# make check   check style, formats, types and imports, and look up known vulnerabilities of the locked packages
# make docs    build the documentation into scratch/site; a broken link or an unknown function fails
# make lock    write envs/*.txt again with the newest versions that pins.txt allows
#
# Each target but lock first installs the locked requirements into .venv if they changed. You need git, make and Python >= 3.11 with
# venv. PYTHON=python3.12 makes .venv with that interpreter. TORCH_INDEX=URL takes torch from that index, for example
# https://download.pytorch.org/whl/cpu, which has a small build for CPUs only.

PYTHON ?= python3
BENCH ?= demo generation code few
TORCH_INDEX ?=
SLURM_TESTS ?= slurm
TESTS ?= not slurm
MINUTES ?= 0.5

# The order is that of tests/conftest.py: long files first.
IN_PROCESSES := --numprocesses auto --dist loadfile --no-loadscope-reorder
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONNOUSERSITE := 1

ifneq ($(words $(CURDIR)),1)
$(error $(CURDIR): the path contains a blank, and Snakemake cannot work there. Move the project to another folder)
endif

.PHONY: demo test test-all test-faults test-lowest test-serving test-slurm bench bench-refine bench-frontier bench-speed check docs lock
.DELETE_ON_ERROR:

demo: .venv/run
	.venv/bin/snakemake --cores all
	.venv/bin/mergemoe table
	@echo "report: results/report/index.html"

test: .venv/dev
	.venv/bin/pytest $(IN_PROCESSES)

test-all: .venv/dev
	.venv/bin/pytest -m "$(TESTS) and not chance and not serving" $(IN_PROCESSES)

test-faults: .venv/dev
	MERGEMOE_FAULTS_MINUTES=$(MINUTES) .venv/bin/pytest -m chance -s tests/faults

# pip cannot choose lowest versions, and uv can. Only what pyproject.toml names is as old as it may be.
test-lowest: .venv/dev
	@mkdir -p scratch
	.venv/bin/uv pip compile --quiet --resolution lowest-direct --all-extras pyproject.toml --output-file scratch/lowest.txt
	.venv/bin/uv venv --quiet --clear --seed --python .venv/bin/python scratch/lowest
	.venv/bin/uv pip install --quiet --python scratch/lowest --requirement scratch/lowest.txt \
		--constraint scratch/lowest.txt --group dev --requirement pyproject.toml 'setuptools>=77'
	.venv/bin/uv pip install --quiet --python scratch/lowest --no-deps --no-build-isolation --editable .
	PATH=$(CURDIR)/scratch/lowest/bin:$$PATH scratch/lowest/bin/pytest $(IN_PROCESSES)

test-serving: .venv/dev
	tests/serving/environments.sh
	.venv/bin/pytest -m serving tests/serving

test-slurm: .venv/dev
	tests/slurm/cluster.sh install
	.venv/bin/pytest -m slurm -k "$(SLURM_TESTS)" --numprocesses 2 --dist load

bench: .venv/run
	@mkdir -p scratch
	set -e; for name in $(BENCH); do \
		.venv/bin/python benchmarks/methods.py params $$name > scratch/$$name.yaml; \
		.venv/bin/snakemake --cores all --configfile scratch/$$name.yaml; \
		cp results/metrics.json benchmarks/methods/$$name.json; \
		.venv/bin/python benchmarks/methods.py table $$name; \
	done

bench-refine: PIECES ?= demo_64_50
bench-frontier: PIECES ?= demo_full_100
bench-refine bench-frontier: bench-%: .venv/run
	@mkdir -p scratch
	set -e; for piece in $(PIECES); do \
		for seed in $$(.venv/bin/python benchmarks/$*.py left $$piece); do \
			.venv/bin/python benchmarks/$*.py params $$piece $$seed > scratch/$$piece.yaml; \
			.venv/bin/snakemake --cores all --configfile scratch/$$piece.yaml; \
			.venv/bin/python benchmarks/$*.py keep $$piece; \
		done; \
	done
	.venv/bin/python benchmarks/$*.py table

bench-speed: .venv/run
	set -e; for name in solve layer rates capture inference overhead; do .venv/bin/python benchmarks/$$name.py; done

check: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/snakefmt --check Snakefile
	.venv/bin/snakemake --lint
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/python envs/audit.py

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --site-dir scratch/site

lock: .venv/made
	.venv/bin/python envs/lock.py

.venv/made:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "$(PYTHON): not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "$(PYTHON): $$($(PYTHON) --version) is too old. Name Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2> /dev/null || \
		{ echo "$(PYTHON): the module venv is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch $@

# One call of pip resolves all requirements, so that no package installs another torch. torch's CPU build needs nothing of
# cuda.txt, which is therefore only a constraint.
.venv/run: .venv/made envs/cpu.txt envs/cuda.txt pyproject.toml
	@echo "installing the locked requirements into .venv; torch is a large download"
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement envs/cpu.txt --constraint envs/cuda.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

.venv/dev: .venv/run envs/dev.txt
	$(PIP) --requirement envs/dev.txt
	@touch $@
