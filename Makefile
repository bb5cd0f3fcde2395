# The two commands of the README are `make demo` and `make test`; both make their own environment first.
#   make demo DEVICE=cuda        run on the GPU (installs CuPy for the driver's CUDA version)
#   make demo PYTHON=python3.10  use another Python (3.9 to 3.12)
# `make bench-movies`, `bench-movies-gpu`, `bench-movies-memory`, `bench-movies-formats`, `bench-align`,
# `bench-align-gpu`, `bench-classify-gpu`, `bench-reconstruct` and `bench-reconstruct-gpu` measure: see
# docs/benchmarks.md.

ifneq ($(filter %-gpu,$(MAKECMDGOALS)),)
DEVICE := cuda
endif
DEVICE ?= cpu
VENV ?= .venv
OUTPUT ?= demo-output
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.10 3.9,$(shell python$(v) -c 'import sys, ensurepip, tkinter; print(sys.executable)' 2>/dev/null)) python3)
CUDA_MAJOR := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')
comma := ,
EXTRAS := test$(if $(filter cuda%,$(DEVICE)),$(if $(CUDA_MAJOR),$(comma)cuda$(CUDA_MAJOR)))
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo test lint wheel bench-movies bench-movies-gpu bench-movies-memory bench-movies-formats bench-align bench-align-gpu bench-classify-gpu bench-reconstruct bench-reconstruct-gpu clean

demo: $(INSTALLED)
	$(VENV)/bin/xmipp-accel demo --device $(DEVICE) --output $(OUTPUT)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_imports.py tests/kernels/test_cuda_sources.py

wheel: $(INSTALLED)
	$(VENV)/bin/python -m build --wheel --outdir dist

bench-movies: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.movies

bench-movies-gpu: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.movies_gpu

bench-movies-formats: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.movie_formats --device $(DEVICE)

bench-movies-memory: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.movie_memory --device $(DEVICE)

bench-align: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.align

bench-align-gpu: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.align_gpu

bench-classify-gpu: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.classify_gpu

bench-reconstruct: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.reconstruct

bench-reconstruct-gpu: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.reconstruct_gpu

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not ((3, 9) <= v <= (3, 12)) and "Python 3.9 to 3.12 is needed, this is %d.%d: make PYTHON=..." % v)'
	$(PYTHON) -c 'import ensurepip, tkinter' || { echo "Scipion needs a Python with venv and tkinter: install python3-venv and python3-tk, or make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip<27" "setuptools<81" wheel

$(INSTALLED): $(VENV)/bin/python setup.py constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) $(OUTPUT) build dist *.egg-info
