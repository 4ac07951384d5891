# Two commands: `make run` and `make test`. Each installs what it needs into .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: run test test-newest newest lint wheel benchmark clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(PY) -m launch.codesign configs/fashion_codesign.py $(ARGS)

# What claims bits is compiled as users compile, the rest quickly: see tests/conftest.py.
# Exit code 5 is a part in which ARGS selects nothing. REPORTS keeps durations.
PYTEST := $(PY) -m pytest -n 2 --dist worksteal
REPORT = $(if $(REPORTS),--junitxml $(REPORTS)/$(1).xml)
test: $(VENV)/.test
	JAXCODESIGN_TESTS=exact $(PYTEST) $(call REPORT,exact) $(ARGS) || [ $$? = 5 ]
	JAXCODESIGN_TESTS=quick $(PYTEST) $(call REPORT,quick) $(ARGS) || [ $$? = 5 ]

# Formats and transforms on a second, newer Python, where constraints.txt names the
# newest jax.
NEWEST ?= python3.12
test-newest:
	$(MAKE) .venv-newest/.test VENV=.venv-newest PYTHON=$(NEWEST)
	$(MAKE) newest VENV=.venv-newest
newest:
	JAXCODESIGN_TESTS=newest $(PYTEST) $(call REPORT,newest) tests/numerics tests/programs

lint: $(VENV)/.dev
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m pyright

# Built, installed without this folder in sight, and one function of every room is run:
# first with nothing else, then beside the packages that training needs.
wheel: $(VENV)/.dev
	rm -rf build dist
	$(PY) -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip --disable-pip-version-check install --quiet \
	  -c constraints.txt dist/*.whl
	cd build && clean/bin/python -I ../.ci/rooms.py core
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > build/clean/lib/$$(ls build/clean/lib)/site-packages/train.pth
	cd build && clean/bin/python -I ../.ci/rooms.py all

benchmark: $(VENV)/.run
	$(PY) -m launch.benchmark $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxcodesign needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "this Python lacks venv; try: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: EXTRA = train
$(VENV)/.test: EXTRA = test
$(VENV)/.dev: EXTRA = dev
$(VENV)/.run $(VENV)/.test $(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing jaxcodesign[$(EXTRA)] into $(VENV) (a minute or two the first time)"
	@$(PIP) -e ".[$(EXTRA)]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest build dist *.egg-info
