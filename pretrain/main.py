"""Pre-train GeneBERT on shards, under the DeepSpeed launcher.

    deepspeed --num_nodes 4 pretrain/main.py --ds_config ds_configs/zero2.json
    deepspeed --num_gpus 2 pretrain/main.py --ds_config ds_configs/zero2_cpu.json --config genebert-tiny

Reads data/shards (--shards takes a URL too), writes runs/pretrain: config.json, metrics.jsonl, curves.png, checkpoints.
Run it again with the same arguments to go on from the newest checkpoint.
"""

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import deepspeed
import torch.distributed as dist

from data_prep.bpe import TOKENIZER
from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import check_writable
from data_prep.shard_cache import cache_for
from data_prep.shard_format import PROMOTERS, REGIONS, SPLITS
from data_prep.shard_reader import check_content, read_manifest
from kernels import dispatch
from pretrain import checkpoint, parts, probe, ranks, resumption, speed, starting_weights
from pretrain.atomic_file import write_atomically
from pretrain.config import ModelConfig, RunConfig, parse
from pretrain.ds_config import BatchLayout, read_ds_config, with_layout, with_steps
from pretrain.lamb import lamb_of
from pretrain.run import Run
from pretrain.run_log import RunLog, git_commit
from pretrain.staging import stage_or_verify
from pretrain.start_table import Start, start_table
from pretrain.trainer import Trainer


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says; ends with exit code 2 and one line, for all ranks together, on bad input."""
    with ranks.together():
        model_config, run_config = parse(arguments, __doc__)
        ds_config, steps = with_steps(read_ds_config(run_config.ds_config), run_config.steps, run_config.ds_config)
        check_writable(Path(run_config.out))
        manifest = read_manifest(run_config.shards)
        encoder = model_config.sequence_encoder
        content = PROMOTERS if encoder == "roberta" else REGIONS
        check_content(run_config.shards, manifest, content, f"--sequence_encoder {encoder}")
        deepspeed.utils.logger.setLevel(logging.ERROR)
        ranks.join(run_config.timeout)
        pretrain(model_config, run_config, ds_config, steps, manifest)


def pretrain(model_config: ModelConfig, config: RunConfig, ds_config: dict, steps: int, manifest: dict) -> None:
    """Train to `steps`, from the newest whole checkpoint of the run folder if it holds one."""
    run_dir = Path(config.out)
    kernels = chosen_kernels()
    global_batch, given = ds_config["train_batch_size"], probe.given_micro_batch(config, ds_config)
    BatchLayout.of(global_batch, dist.get_world_size(), given)  # refuses a batch of fewer samples than ranks
    identity = resumption.identity_of(manifest, config, ds_config)
    resumed = checkpoint.newest_whole(run_dir)
    model_config = starting_weights.decide_k(model_config, config, resumed)
    if resumed:
        resumption.check(resumed, model_config, identity, config, steps)
        if checkpoint.read_state(resumed)["step"] == steps:
            ranks.say(f"{run_dir}: complete, {steps} steps were done; give a larger --steps to go on")
            return
    cache = cache_for(config.shards, manifest, config.shard_cache, config.shard_cache_gb)
    stage_or_verify(config.shards, manifest, cache)
    tokenizer = parts.tokenizer_of(config, manifest)
    train, val = (parts.dataset(config, model_config, manifest, cache, split, tokenizer) for split in SPLITS)
    if not len(train):
        raise InputError(f"{config.shards}: holds no training samples")
    model = parts.new_model(model_config, manifest, tokenizer, config.seed)
    if not resumed:
        starting_weights.load(model, config, tokenizer)
    speed.prepare(model, config, ranks.device())
    choice = probe.choose(model, train, config, ds_config)
    layout = BatchLayout.of(global_batch, dist.get_world_size(), choice.samples)
    groups = parts.parameter_groups(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups,
        optimizer=lamb_of(ds_config, groups),
        config=resumption.for_ranks_of_now(with_layout(ds_config, layout), resumed),
    )
    trainer = Trainer(engine, config, layout, steps)
    done = checkpoint.load(engine, resumed) if resumed else 0

    record = {
        "commit": git_commit() if ranks.is_first() else None,
        "model": asdict(model_config),
        "run": asdict(config),
        "ds_config": ds_config,
        "steps": steps,
        "layout": asdict(layout),
        "genome": manifest["genome"],
        "motifs": manifest["motifs"],
        "motif_names": manifest["motif_names"],
        "motif_source": manifest.get("motif_source"),
        "affinity": manifest["affinity"],
        "shards": manifest["fingerprint"],
        "cell_types": {cell_type["name"]: cell_type["samples"] for cell_type in manifest["cell_types"]},
        "tokenizer": manifest.get("tokenizer"),
    }
    log = None
    if ranks.is_first():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.json", json.dumps(record, indent=1))
        if tokenizer:
            write_atomically(run_dir / TOKENIZER, tokenizer.to_str(pretty=True))
        log = RunLog(run_dir, done, record, config.wandb, config.wandb_project)
    resumption.check_shared(run_dir / "config.json")
    samples, genome = (len(train), len(val)), manifest["genome"]["name"]
    start = Start(config, ds_config, layout, choice, steps, done, samples, genome, kernels)
    ranks.say(start_table(start, model))
    state = {"model": asdict(model_config), "run": identity, "config": record}
    if Run(trainer, train, val, run_dir, state, log, resumption.best_of(resumed)).go_on(done):
        ranks.say(f"{run_dir}: {steps} steps done; metrics.jsonl and curves.png are there, checkpoints in checkpoints/")


def chosen_kernels() -> str:
    """Which kernels run here. Raises `InputError` where the environment asks for some that cannot."""
    try:
        return dispatch.chosen(ranks.device())
    except ValueError as error:
        raise InputError(str(error)) from None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
