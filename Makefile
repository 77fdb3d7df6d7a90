# Each target sets up what it needs: Python >= 3.11 and make are all that must be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .oldest
QUANTISED := .quantised
RAY := .ray
READY := $(VENV)/.ready
MLX := $(shell [ "$$(uname -s)" = Linux ] && echo "mlx[cpu]" || echo mlx)

.PHONY: demo demo-loop serve bench-serve test test-fast test-loop test-mlx test-ray test-random fuzz test-oldest lint bench matrix goldens docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml packages/skipstone-pebble/pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[metrics,plot]" -e packages/skipstone-pebble
	touch $@

$(READY): pyproject.toml $(wildcard packages/*/pyproject.toml) research/pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev,metrics,plot,serve,tune]" $(addprefix -e packages/,skipstone-pebble skipstone-bench[peers] skipstone-train skipstone-track[loop]) -e research "$(MLX)"
	touch $(DEMO) $@

demo: $(DEMO)  ## six prompts on the embedded model: pictures, calls, timeline, table
	$(BIN)/skipstone demo --out demo --force

SERVE := $(VENV)/.serve

$(SERVE): $(DEMO)
	$(PIP) -e ".[metrics,plot,serve]" openai
	touch $@

LOOP := $(VENV)/.loop

$(LOOP): $(DEMO) packages/skipstone-track/pyproject.toml
	$(PIP) -e ".[metrics,plot,serve]" -e "packages/skipstone-track[loop]"
	touch $@

demo-loop: $(LOOP)  ## calibrate, register, deploy and audit Pebble, see a drift, and do it again (about 5 minutes)
	$(BIN)/python examples/loop/demo.py

PORT ?= 8000

serve: $(SERVE)  ## the embedded model over HTTP, with a page, at PORT (8000)
	$(BIN)/skipstone serve --port $(PORT)

# One thread for each worker: with two, tiny tensors spend their time waiting for each other.
test: $(READY) $(QUANTISED)/.ready  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
	OMP_NUM_THREADS=1 PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest tests/integrations/guest/test_quantised.py

# Apart from the rest: where they are installed, diffusers imports them, which takes a second and prints warnings.
$(QUANTISED)/.ready: constraints.txt $(READY)
	rm -rf $(QUANTISED)
	$(PIP) --no-deps --target $(QUANTISED) torchao gguf
	touch $@

# Apart from the rest, as above: with Ray come other event loops and parsers for the HTTP server. Engines of Ray listen
# on all addresses for each other, so that the tests have a network of their own where the system allows it.
$(RAY)/.ready: constraints.txt $(READY)
	rm -rf $(RAY)
	$(PIP) --target $(RAY) "ray[serve]"
	touch $@

APART := $(shell unshare -rn true 2>/dev/null && echo yes)

test-ray: $(RAY)/.ready  ## the tests on a real Ray: the server, bench, calibrate, tune (about 5 minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(RAY) \
		$(if $(APART),unshare -rn sh -c 'ip link set lo up && exec "$$0" "$$@"') \
		$(BIN)/python -m pytest tests/on_ray

test-loop: $(READY)  ## the closed loop on Pebble, with a real MLflow server (about 5 minutes)
	OMP_NUM_THREADS=1 SKIPSTONE_LOOP=1 $(BIN)/python -m pytest tests/loop_closed

test-fast: $(READY)  ## the tests of the inner loop: numerics, engine, solvers, policies, layout
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/numerics tests/engine tests/solvers tests/policies \
		tests/test_architecture.py tests/test_goldens.py

ROUNDS ?= 5

test-random: $(READY)  ## the property tests on ROUNDS (5) times other examples; a failure prints the one to keep
	for round in $$(seq $(ROUNDS)); do \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m hypothesis --hypothesis-profile=random || exit 1; \
	done

test-mlx: $(READY)  ## the tests of networks and pipelines on MLX
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/integrations/mlx

FUZZ_MINUTES ?= 60

fuzz: $(READY)  ## hostile specs and files for FUZZ_MINUTES (60)
	end=$$(( $$(date +%s) + 60 * $(FUZZ_MINUTES) )); \
	while [ $$(date +%s) -lt $$end ]; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/fuzz --hypothesis-profile=fuzz || exit 1; \
	done

$(OLDEST)/.ready: constraints-oldest.txt $(READY)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLDEST) -r $<
	touch $@

# Left out is what the bare pipeline fails at too: group offloading with no accelerator and padded prompts of Qwen-Image
# by themselves (diffusers 0.35), masks in float64 (transformers 4); and a run in float64 in which nothing is skipped
# there. The table of schedulers is that of the newest.
test-oldest: $(OLDEST)/.ready  ## the tests of the guest with the oldest diffusers that is supported
	OMP_NUM_THREADS=1 PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -n auto -rfEs tests/integrations/guest \
		--ignore tests/integrations/guest/test_schedulers.py \
		-k "not test_group_offload and not test_other_floats[dtype2] and not on_each_other[qwenimage] \
			and not leaf_offload and not block_offload and not floats_of_64_bits"

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY)  ## engine overhead, start of commands, orders of convergence
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/orders.py

bench-serve: $(READY)  ## pictures a second of the server, and of what others do; on a quiet machine (about 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving_memory.py

matrix: $(READY)  ## the guest: every family under every scheduler, and every promise of diffusers (about 50 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/matrix.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pipeline_checks.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/takeover.py

goldens: $(READY)  ## record the decisions of every policy again
	$(BIN)/python tests/goldens/make_decisions.py

docs: $(READY) $(VENV)/.docs  ## the site, in build/site; its generated pages anew; a warning is an error
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_guest.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[docs]"
	touch $@

clean:  ## what the targets above have made
	rm -rf $(VENV) $(OLDEST) $(QUANTISED) demo loop build dist
