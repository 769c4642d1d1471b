# Every target makes its own virtual environment in .venv and installs what it needs. `make help` lists them.
PYTHON ?= python3
WORKERS ?= 2
SEED ?= 0
ARM ?= panda
TASK ?= peg_insert
STEPS ?= 12000
OUT ?= runs/demo-$(TASK)-$(ARM)-seed$(SEED)-$(shell date +%Y%m%d-%H%M%S)

VENV := .venv
BIN := $(VENV)/bin
# setuptools warns at every editable install, of nothing that a user could mend.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
GL_PACKAGES := libegl1 libegl-mesa0 libosmesa6 libgl1 libgles2
USB_PACKAGES := libusb-1.0-0
export MUJOCO_GL ?= egl
SIDE_BY_SIDE = $(BIN)/python -m pytest -m 'not alone' --numprocesses $(WORKERS) --max-worker-restart 0 \
	--dist loadfile --no-loadscope-reorder

.PHONY: help demo test lint format bench clean gl usb
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.base gl  ## train a policy on the twin, draw its curve and film it (TASK, ARM, SEED, STEPS, OUT)
	$(BIN)/robot-rl train --task $(TASK) --arm $(ARM) --agent rlpd --steps $(STEPS) --seed $(SEED) --out $(OUT)
	$(BIN)/robot-rl plot $(OUT) --out $(OUT)/curve.png
	$(BIN)/robot-rl video $(OUT) --out $(OUT)/policy.mp4
	@echo "Look at $(OUT)/curve.png and $(OUT)/policy.mp4; the checkpoint is in $(OUT)/checkpoints."

# Workers are there for speed. A part in which something fails beside another test, or in which a maker's library takes a
# worker's process with it, is run once more with nothing beside it, as all tests once were: that run is what counts.
# Tests of real time run alone; one that the machine's other tenants starved is tried once more.
test: lint gl usb  ## what CI runs: lint, types and every test, side by side (WORKERS)
	@for part in '[a-e]' '[f-r]' '[s-z]'; do \
		$(SIDE_BY_SIDE) tests/test_$$part*.py || $(BIN)/python -m pytest -m 'not alone' tests/test_$$part*.py || exit 1; \
	done
	$(BIN)/python -m pytest -m alone || $(BIN)/python -m pytest -m alone --last-failed --last-failed-no-failures none

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev gl  ## speed of tick, twin and learner, one JSON line each
	$(BIN)/robot-rl bench tick env learner

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("robot-rl needs Python 3.11 or newer; this is %d.%d. Set PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), about a minute"
	@$(INSTALL) --editable .
	@touch $@

# PyTorch comes first and pinned: a resolver left to choose would fetch gigabytes of CUDA.
$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), about two minutes"
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.base

# Software rendering. Training needs none of it; videos and their tests do.
gl:
	@if ldconfig -p 2>/dev/null | grep -q libEGL.so.1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(GL_PACKAGES) >/dev/null; \
	else echo "No libEGL found: videos will fail until you run: sudo apt-get install $(GL_PACKAGES)"; fi

# What librealsense opens cameras with; the tests use its software device.
usb:
	@if ldconfig -p 2>/dev/null | grep -q libusb-1.0.so.0; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(USB_PACKAGES) >/dev/null; \
	else echo "No libusb found: RealSense cameras will fail until you run: sudo apt-get install $(USB_PACKAGES)"; fi
