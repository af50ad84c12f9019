# Tasks. `make help` lists them. Everything runs in .venv, which each target makes from pyproject.toml when it is needed.
PYTHON ?= python3
VENV := .venv
PACS_PACKAGES := orthanc orthanc-dicomweb dcmtk dicom3tools openssl
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Of some 300 MB of Python files a task imports a fraction; Python compiles that when it is first imported.
INSTALL := $(PIP) install --quiet --no-compile

.PHONY: help demo test checked tested test-pacs pacs-packages lint format bundle evaluate clean

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /: /' | awk -F': ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/base.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$($(PYTHON) -c 'import tomllib; print(next(p for p in tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"] if p.startswith("torch")))')"
	$(INSTALL) --editable ".[dev]"
	@touch $@

demo: $(VENV)/base.stamp ## set up the lean runtime, make a phantom scan, find its vertebrae
	@mkdir -p demo
	$(BIN)/python -m train.phantom scan demo/phantom.nii.gz --seed 32 --spacing 1.5 --fov whole
	$(BIN)/python -m runtime.infer demo/phantom.nii.gz -o demo/phantom.vertebrae
	@echo
	@echo "Look at demo/phantom.vertebrae/overview.png; the figures are in findings.json, the masks in vertebrae.nii.gz."

test: checked tested ## everything that CI runs: linter, types, tests (make -j2 test: side by side)

checked: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tested: $(VENV)/dev.stamp pacs-packages
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-pacs: $(VENV)/dev.stamp pacs-packages ## the node against a real Orthanc
	$(BIN)/python -m pytest -rs tests/pacs

# Debian's Orthanc and tools, where they can be installed; without them the tests that need them are skipped and say so.
pacs-packages:
	@if command -v Orthanc > /dev/null && command -v dciodvfy > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		(apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y $(PACS_PACKAGES)) > /dev/null 2>&1 \
			|| echo "$(PACS_PACKAGES) could not be installed: tests that need them are skipped"; \
	else echo "no root or no apt-get to install $(PACS_PACKAGES): tests that need them are skipped"; fi

lint: $(VENV)/dev.stamp ## pre-commit's hooks on all files: linter, formatter, types
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

format: $(VENV)/dev.stamp ## format the code
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bundle: $(VENV)/dev.stamp ## train the default networks on phantoms (hours on a CPU, resumable), export, evaluate
	$(BIN)/python -m train locnet -o runs/teacher
	$(BIN)/python -m train locnet --preset half --teacher runs/teacher -o runs/locnet
	$(BIN)/python -m train fracsegnet -o runs/fracsegnet
	$(BIN)/python -m train levelnet -o runs/levelnet
	$(BIN)/python -m export -o runs/bundle
	$(BIN)/python -m train.fit_grades --bundle runs/bundle -o runs/grading
	$(BIN)/python -m train.evaluate --phantoms 200 --true-centres --compare-heatmap --bundle runs/bundle -o runs/eval
	$(BIN)/python -m export -o runs/bundle --accuracy runs/eval/summary.json --grading runs/grading/fit.json
	@echo "The bundle is in runs/bundle. On processors it runs in fp32; where one has bf16, export.verify --record (docs/engines.md) allows that."
	@echo "Copy it to runtime/bundles/default to ship it."

evaluate: $(VENV)/dev.stamp ## the default bundle on 200 held-out phantoms (hours on a CPU, resumable)
	$(BIN)/python -m train.evaluate --phantoms 200 --true-centres --compare-heatmap -o runs/eval-default

clean: ## remove the environment and what was made, but for runs/ and .cache/
	rm -rf $(VENV) build demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
