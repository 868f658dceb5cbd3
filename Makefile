# What a reader types. Needs Python 3.11 or newer, make and git; everything else goes into .venv.

PORT ?= 8000
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install book test serve lab clean distclean

help:
	@echo "make book    make .venv, execute the lectures, build the site into _build/html"
	@echo "make test    make book, then every test: library, notebooks, claims, pictures, pages in a browser"
	@echo "make serve   show the site at http://127.0.0.1:$(PORT)/ (PORT=8001 for another port)"
	@echo "make lab     open the lectures in JupyterLab"
	@echo "make clean   remove what was built (make distclean: the environment .venv, too)"
	@echo "Needs Python 3.11 or newer; another one than the first found: make book PYTHON=/path/to/python3.12"

install: $(VENV)/.installed

# The stamp is younger than what decides the contents of the environment; a half-made environment has none.
$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	    found=$$(python3 --version 2>/dev/null || echo "no Python"); \
	    echo "The book needs Python 3.11 or newer, and $$found was found here; install one from python.org or your system's packages, or name it: make book PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$("$(PYTHON)" --version 2>&1 || true); \
	    echo "The book needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not that ($$found); name another one, or leave PYTHON out" >&2; exit 1; \
	fi
	@"$(PYTHON)" tools/install.py $(VENV)
	@touch $@

book: $(VENV)/.installed
	@$(BIN)/python -m cnnlib book

test: book
	@$(BIN)/python -m pytest --nbval -n logical --maxprocesses 4 --dist loadscope

serve: $(VENV)/.installed
	@$(BIN)/python -m cnnlib serve --port $(PORT)

lab: $(VENV)/.installed
	@$(BIN)/jupyter lab book

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)
