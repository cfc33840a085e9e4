# Paths are relative, so that a checkout below a folder with spaces in its name works too.
PY := .venv/bin/python
MODEL := mrfomm/assets/heads-patch
TRY := site/try
STAMP := .venv/.installed
RUNTIME := .venv/.runtime

.PHONY: help venv demo test test-without-nnabla faults hosts lint audit docs web notebook clean
.DELETE_ON_ERROR:
export PYTHON NEWER

help:
	@echo 'make venv   environment in .venv with everything pinned; PYTHON=... chooses the interpreter (a CPython 3.10)'
	@echo 'make demo   three pictures of one head, turned by another head, into demo.mp4; installs only what that needs'
	@echo 'make test   the test suite; ARGS=... is handed to pytest'
	@echo 'make test-without-nnabla  animation on a CPython 3.11 to 3.14, in an environment of its own; NEWER=... chooses it'
	@echo 'make faults what goes wrong in practice, provoked: kills, full disks, broken and hostile files; minutes'
	@echo 'make hosts  two machines rehearsed on this one: killed, cut off, stopped; as root, with ip; minutes'
	@echo 'make lint   ruff: rules and format; mypy; whether the packages installed agree'
	@echo 'make audit  known vulnerabilities of the pinned packages; asks the network'
	@echo 'make docs   the documentation into site/'
	@echo 'make web    the page that animates in the browser into site/try/; asks npm for onnxruntime; MODEL=... is shown'
	@echo 'make notebook  execute the notebook again, in place'
	@echo 'make clean  remove the environment, caches, site/ and demo.mp4'

venv: $(STAMP)

# Stamps are written last: an interrupted installation is taken up again.
$(RUNTIME): setup.py constraints.txt scripts/make_venv.sh
	@rm -f $@ $(STAMP)
	@echo 'installing into .venv: 0.9 GB, some minutes'
	@sh scripts/make_venv.sh .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check 'pip>=21'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx]'
	@touch $@

$(STAMP): $(RUNTIME) pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(RUNTIME)
	$(PY) -m scripts.make_film --subject s1_soft --driver s2_soft --output demo.mp4
	@echo "The result is in $(CURDIR)/demo.mp4"

# Two processes with one thread each.
test: venv
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(ARGS)

# Fetches packages: the network is needed.
test-without-nnabla: venv
	@sh scripts/test_without_nnabla.sh $(ARGS)

# One process: some of these measure time and memory.
faults: venv
	OMP_NUM_THREADS=1 $(PY) -m pytest -m '' tests/faults $(ARGS)

# They print what they measure.
hosts: venv
	OMP_NUM_THREADS=1 $(PY) -m pytest -m long -s -rs tests/faults/test_hosts.py $(ARGS)

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pip check

# In an environment of its own: what pip-audit brings is no part of this project.
audit: venv
	$(PY) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/python -m pip_audit --strict --no-deps --disable-pip -r constraints.txt

docs: venv
	$(PY) scripts/draw_architecture.py -o docs/architecture.svg
	$(PY) -m mkdocs build --quiet
	@$(MAKE) --no-print-directory web || echo 'site/try is missing, the page for browsers: it needs npm and its registry'
	@echo "The site is in $(CURDIR)/site/index.html"

web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Of onnxruntime, only what a page loads; named *.js, as not every host knows what *.mjs is.
ORT := web/node_modules/onnxruntime-web/dist/ort
web: venv web/node_modules/.package-lock.json
	@[ -z "$$(ls -A '$(TRY)' 2>&-)" ] || [ -e '$(TRY)/vendor/ort.js' ] || \
		{ echo '$(TRY): holds something other than this page; choose another TRY' >&2; exit 2; }
	rm -rf '$(TRY)' && mkdir -p '$(TRY)/vendor' '$(TRY)/examples'
	cp $(ORT).wasm.min.mjs '$(TRY)/vendor/ort.js'
	cp web/*.html web/*.css web/*.svg $(filter-out web/eslint.config.js,$(wildcard web/*.js)) '$(TRY)'
	cp $(ORT)-wasm-simd-threaded.mjs '$(TRY)/vendor/ort-threads.js'
	cp $(ORT)-wasm-simd-threaded.wasm '$(TRY)/vendor/ort-threads.wasm'
	cp mrfomm/assets/samples/driving.mp4 mrfomm/assets/samples/reference_*.png '$(TRY)/examples'
	$(PY) -m mrfomm.export '$(MODEL)' -o '$(TRY)/model' --web
	rm '$(TRY)/model/.lock'
	@echo "The page is in $(TRY); serve it, for instance: $(PY) -m http.server -d $(TRY)"

notebook: venv
	.venv/bin/jupyter-execute --inplace notebooks/first_steps.ipynb

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache site web/node_modules demo.mp4
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
