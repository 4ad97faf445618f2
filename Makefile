# make demo    sixteen images without and with SPELL, on the bundled model
# make test    the tests         make lint    ruff         make types    pyright
# ARGS goes to pytest and to the demo: make test ARGS="-k repel", make demo ARGS="--batch-size 1"
# make format  let ruff rewrite  make wheel   build dist/  make clean    forget what was built

PYTHON ?= python3
VENV   ?= .venv
# Pinned: a plain "torch" may pull gigabytes of CUDA packages. On a GPU: make TORCH=torch
TORCH  ?= torch==2.13.0
PROMPT ?= book
BIN    := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint types format wheel clean

demo: $(VENV)/.installed
	$(BIN)/shielded generate "$(PROMPT)" -n 16 --seed 0 --out demo $(ARGS)
	@echo "The contact sheet is demo/sheet.png and the report is demo/report.html."

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --no-deps -w dist .

clean:
	rm -rf $(VENV) dist build demo

# One install per pyproject.toml; the stamp is written last, so a broken install is tried again.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "shielded-diffusion needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing (on Debian: apt install python3-venv)." >&2; exit 1; }
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	@touch $@
