# make demo: install, write the embedded sketches, train a small model, heal sketches with it,
#   measure how many lead back to their original.
# make demo-rec: the same, then train a classifier and measure how many it recognises.
# make compare: after the set-up of make demo, three methods on the same sketches, in one table.
# make test: install, lint, run all tests. make test-fast: those that take under a minute together.
# PYTHON=/path/to/python names the Python to use; by default the first that fits is taken.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c '$(FITS)' 2>/dev/null && echo "$$name" && break; done)
VENV ?= .venv
DEMO ?= demo

METHODS = sp_gra2seq sketchhealer sketchlattice
# Whole files of tests, in the order of tests/conftest.py.
TWO_WORKERS = --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: data demo demo-rec compare test test-fast clean

data: $(VENV)/installed
	$(VENV)/bin/python doodles.py --data_dir=$(DEMO)/data --train=700 --valid=32 --test=32 \
		--categories=fish,smiley,umbrella

demo: data
	$(VENV)/bin/python train.py --data_dir=$(DEMO)/data --log_root=$(DEMO)/model \
		--resume_training=True --hparams=@configs/demo
	$(VENV)/bin/python sample.py --data_dir=$(DEMO)/data --model_dir=$(DEMO)/model \
		--output_dir=$(DEMO)/healed --num_per_category=32 --prob=0.1 --temperature=0.1 --batch_size=64
	@echo
	$(VENV)/bin/python retrieval.py --data_dir=$(DEMO)/data --model_dir=$(DEMO)/model \
		--sample_dir=$(DEMO)/healed
	@echo
	@echo "Healed sketches: $(DEMO)/healed/index.html and gallery.png"
	@echo "Model:           $(DEMO)/model (best.npz, latest.npz, model_config.json)"
	@echo "Learning curves: $(DEMO)/model/metrics.csv, or"
	@echo "                 $(VENV)/bin/tensorboard --logdir $(DEMO)/model/tensorboard"
	@echo "Training data:   $(DEMO)/data/<category>.npz"

demo-rec: demo
	@echo
	$(VENV)/bin/python recognition.py --data_dir=$(DEMO)/data --model_dir=$(DEMO)/model \
		--sample_dir=$(DEMO)/healed --per_epoch=250 --epochs=3

compare: data
	for method in $(METHODS); do \
		options=@configs/doodles-patches; \
		[ $$method = sketchlattice ] && options=@configs/doodles; \
		$(VENV)/bin/python train.py --data_dir=$(DEMO)/data --log_root=$(DEMO)/$$method \
			--resume_training=True --hparams="$$options,method=$$method" || exit; \
	done
	$(VENV)/bin/python compare.py --data_dir=$(DEMO)/data --output_dir=$(DEMO)/comparison \
		--models=$(DEMO)/sp_gra2seq,$(DEMO)/sketchhealer,$(DEMO)/sketchlattice \
		--probs=0,0.3 --per_epoch=250 --epochs=3
	@echo "The table and the page: $(DEMO)/comparison/table.md and index.html"

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(TWO_WORKERS)

test-fast: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest $(TWO_WORKERS) -m "not slow"

clean:
	rm -rf $(DEMO)

# An environment whose creation stopped half-way has a Python but no pip, and is made again.
$(VENV)/created:
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { \
		echo "Python 3.11, 3.12 or 3.13 is needed and not found$(if $(PYTHON), as $(PYTHON)): install"\
		"one, or name it with PYTHON=/path/to/python3.12" >&2; exit 1; }
	@if [ -e $(VENV) ] && [ -n "$$(ls -A $(VENV))" ] && [ ! -e $(VENV)/pyvenv.cfg ]; then \
		echo "$(VENV) holds something else than a Python environment: choose another VENV" >&2; \
		exit 1; fi
	"$(PYTHON)" -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
		echo "$(PYTHON) makes environments without pip: install its venv package (on Debian and"\
		"Ubuntu: apt install python3-venv), then repeat this" >&2; exit 1; }
	touch $@

$(VENV)/installed: requirements.txt $(VENV)/created
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt $(VENV)/created
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
