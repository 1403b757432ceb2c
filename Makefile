# make demo: install, write the embedded sketches, train a small model on them.
# make test: install, lint, run the tests.
PYTHON ?= python3.11
VENV ?= .venv
DEMO ?= demo

DEMO_OPTIONS = categories=[fish,flower,house,sailboat,smiley,snowman,tree,umbrella],batch_size=32,$\
	dec_rnn_size=256,z_size=64,num_mixture=30,graph_picture_size=128,num_steps=600

.PHONY: demo test clean

demo: $(VENV)/installed
	$(VENV)/bin/python doodles.py --data_dir=$(DEMO)/data --train=400 --valid=40 --test=40
	$(VENV)/bin/python train.py --data_dir=$(DEMO)/data --log_root=$(DEMO)/model \
		--resume_training=True --hparams="$(DEMO_OPTIONS)"
	@echo
	@echo "Sketches:        $(DEMO)/data/<category>.npz"
	@echo "Model:           $(DEMO)/model (best.npz, latest.npz, model_config.json)"
	@echo "Learning curves: $(DEMO)/model/metrics.csv, or"
	@echo "                 $(VENV)/bin/tensorboard --logdir $(DEMO)/model/tensorboard"

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

clean:
	rm -rf $(DEMO)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
