# make demo        everything on a simulated atlas: set-up, data, pre-training, conversion, fine-tuning, summary
# make demo-tasks  the other four tasks, on simulated data of theirs
# make test        unit tests and short end-to-end runs
# make clean-demo  forget what the demo made

PYTHON ?= python3
BIN := .venv/bin
DEMO_STEPS := 400
PRETRAINED := runs/pretrain/checkpoints/step-$(shell printf %06d $(DEMO_STEPS))/state.json

.DELETE_ON_ERROR:
.PHONY: demo demo-tasks test test-slow test-cluster test-cuda lint clean-demo

demo: data/shards.inspect/inspect.json runs/finetune-promoter/results.json
	$(BIN)/python finetune/summary.py

demo-tasks: $(foreach task,tfbs hscr splice expression,runs/finetune-$(task)/results.json)

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data/demo/manifest.json: | .venv/installed
	$(BIN)/python data_prep/main.py simulate --out data/demo

data/peaks/manifest.json: | data/demo/manifest.json
	$(BIN)/python data_prep/main.py pseudobulk --matrix data/demo/atlas/matrix.mtx --regions data/demo/atlas/regions.bed \
	  --barcodes data/demo/atlas/barcodes.tsv --cell-types data/demo/atlas/cell_types.tsv --out data/peaks

data/shards/manifest.json: | data/peaks/manifest.json
	$(BIN)/python data_prep/main.py shards --genome data/demo/simulated_genome.fa --peaks data/peaks/*.bed --out data/shards

data/shards.inspect/inspect.json: | data/shards/manifest.json
	$(BIN)/python data_prep/main.py inspect data/shards

data/promoter/manifest.json data/tfbs/manifest.json data/hscr/manifest.json data/splice/manifest.json \
data/expression/manifest.json: data/%/manifest.json: | data/demo/manifest.json
	$(BIN)/python data_prep/main.py $*

$(PRETRAINED): | data/shards/manifest.json
	DS_ACCELERATOR=cpu $(BIN)/deepspeed --num_gpus 2 pretrain/main.py --ds_config ds_configs/zero2_cpu.json --config genebert-tiny \
	  --steps $(DEMO_STEPS) --eval_every 100 --save_every 100

runs/genebert/genebert.json: | $(PRETRAINED)
	$(BIN)/python pretrain/convert.py runs/pretrain runs/genebert

# More steps than by default, which is meant for large data; chosen on dev sets of another simulated atlas (--seed 1).
runs/finetune-tfbs/results.json: MORE = --epochs 5 --learning_rate 5e-4 --batch_size 8
runs/finetune-hscr/results.json: MORE = --epochs 10 --learning_rate 1e-3 --batch_size 64
runs/finetune-splice/results.json: MORE = --context 80 --epochs 6 --learning_rate 1e-3 --batch_size 4
runs/finetune-expression/results.json: MORE = --learning_rate 1e-3

runs/finetune-%/results.json: | data/%/manifest.json runs/genebert/genebert.json
	$(BIN)/python finetune/run.py --task $* $(MORE)

# The second process runs the Triton kernels, in their interpreter, which must be asked for before Python starts.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m 'triton and not slow' tests/kernels

test-slow: .venv/installed
	$(BIN)/python -m pytest -m 'slow and not triton'
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m 'slow and triton'

test-cluster: .venv/installed
	@$(BIN)/python tests/cluster/cluster.py check
	$(BIN)/python -m pytest -m cluster tests/cluster

test-cuda: .venv/installed
	@$(BIN)/python -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else "error: no CUDA device here")'
	$(BIN)/python -m pytest -m 'not cluster' --ignore tests/kernels/test_compiled.py tests/kernels

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean-demo:
	rm -rf $(foreach task,promoter tfbs hscr splice expression,data/$(task) runs/finetune-$(task)) data/demo data/peaks data/shards data/shards.inspect runs/pretrain runs/genebert
