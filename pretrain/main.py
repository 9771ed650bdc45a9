"""Pre-train GeneBERT on shards, under the DeepSpeed launcher.

    deepspeed --num_nodes 4 pretrain/main.py --ds_config ds_configs/zero2.json
    deepspeed --num_gpus 2 pretrain/main.py --ds_config ds_configs/zero2_cpu.json --config genebert-tiny

Reads data/shards (--shards takes a URL too), writes runs/pretrain: config.json, metrics.jsonl, curves.png, checkpoints.
Run it again with the same arguments to go on from the newest checkpoint.
"""

import json
import logging
import math
import os
import sys
import time
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from tqdm import tqdm

from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import check_writable
from data_prep.remote_file import url
from data_prep.shard_cache import ShardCache, cache_for
from data_prep.shard_reader import ShardReader, read_manifest, verify_shard
from kernels import dispatch
from pretrain import checkpoint, curves, ranks
from pretrain.batches import MicroBatches, loader
from pretrain.config import ModelConfig, RunConfig, parse
from pretrain.data_order import DataOrder
from pretrain.ds_config import BatchLayout, read_ds_config, with_layout, with_steps
from pretrain.model import GeneBERT
from pretrain.run_log import RunLog
from pretrain.trainer import Throughput, Trainer

# Fields of RunConfig that decide what is learnt: a checkpoint goes on only with the same.
OBJECTIVE = (
    *("mask_rate", "late_mask_rate", "late_mask_from", "mask_span"),
    *("mgm_weight", "ngsp_weight", "srm_weight", "srm_loss"),
)

SECONDS_BETWEEN_MEETINGS = 20


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says; ends with exit code 2 and one line, for all ranks together, on bad input."""
    with ranks.one_voice():
        model_config, run_config = parse(arguments, __doc__)
        ds_config, steps = with_steps(read_ds_config(run_config.ds_config), run_config.steps, run_config.ds_config)
        check_writable(Path(run_config.out))
        manifest = read_manifest(run_config.shards)
        deepspeed.utils.logger.setLevel(logging.ERROR)
        ranks.join()
        try:
            pretrain(model_config, run_config, ds_config, steps, manifest)
        finally:
            ranks.leave()


def pretrain(model_config: ModelConfig, config: RunConfig, ds_config: dict, steps: int, manifest: dict) -> None:
    """Train to `steps`, from the newest checkpoint of the run folder if it holds one."""
    run_dir = Path(config.out)
    try:
        kernels = dispatch.chosen(ranks.device())
    except ValueError as error:
        raise InputError(str(error)) from None
    layout = BatchLayout.of(
        ds_config["train_batch_size"], dist.get_world_size(), ds_config.get("train_micro_batch_size_per_gpu")
    )
    identity = {
        "shards": manifest["fingerprint"],
        "seed": config.seed,
        "global_batch": layout.global_batch,
        "world_size": layout.world_size,
        **{name: getattr(config, name) for name in OBJECTIVE},
    }
    resumed = checkpoint.newest(run_dir)
    ranks.check_agreement(str(resumed), f"newest checkpoint of {run_dir}")
    if resumed:
        if not config.resume:
            raise InputError(f"{run_dir}: holds a checkpoint already; choose another --out, or drop --no_resume")
        checkpoint.check_model(resumed, model_config)
        checkpoint.check_run(resumed, identity)
        if checkpoint.read_state(resumed)["step"] >= steps:
            say(f"{run_dir}: complete, {steps} steps were done; give a larger --steps to go on")
            return
    cache = cache_for(config.shards, manifest, config.shard_cache, config.shard_cache_gb)
    stage_or_verify(config.shards, manifest, cache)

    train = dataset(config, model_config, manifest, cache, "train")
    val = dataset(config, model_config, manifest, cache, "val")
    if not len(train):
        raise InputError(f"{config.shards}: holds no training samples")
    torch.manual_seed(config.seed)
    model = GeneBERT(model_config, torch.tensor(manifest["binding_mean"]), torch.tensor(manifest["binding_std"]))
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=parameter_groups(model), config=with_layout(ds_config, layout)
    )
    trainer = Trainer(engine, config, layout, steps)
    done = checkpoint.load(engine, resumed) if resumed else 0
    best = checkpoint.read_state(resumed).get("best") if resumed else None

    record = {
        "model": asdict(model_config),
        "run": asdict(config),
        "ds_config": ds_config,
        "steps": steps,
        "layout": asdict(layout),
        "genome": manifest["genome"],
        "motifs": manifest["motifs"],
        "motif_names": manifest["motif_names"],
        "affinity": manifest["affinity"],
        "shards": manifest["fingerprint"],
    }
    log = None
    if ranks.is_first():
        run_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(run_dir / "config.json", json.dumps(record, indent=1))
        log = RunLog(run_dir, done, record, config.wandb, config.wandb_project)
    say(
        f"{f'resuming at step {done}' if resumed else 'training'}: {config.config}, {steps} steps of "
        f"{layout.global_batch} samples on {layout.world_size} ranks "
        f"({layout.accumulation} x {layout.micro_batch} each, "
        f"{layout.slots - layout.global_batch} padded), {len(train):,} training and {len(val):,} held-out samples of "
        f"{manifest['genome']['name']}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{ranks.device().type}, {kernels} kernels"
    )

    order = DataOrder([shard["samples"] for shard in train.reader.shards], config.seed)
    asked = order.micro_batches(layout, dist.get_rank(), range(done, steps))
    batches = loader(train, asked, config.workers, ranks.on_cuda())
    throughput = Throughput(layout)
    progress = tqdm(
        initial=done, total=steps, unit="step", disable=None if ranks.is_first() else True, dynamic_ncols=True
    )
    for step in range(done, steps):
        number, last = step + 1, step + 1 == steps
        logged = number % config.log_every == 0 or last
        metrics = trainer.step(step, throughput.micro_batches(batches), with_recall=logged)
        progress.update()
        progress.set_postfix({name: f"{metrics[f'loss/{name}']:.3f}" for name in ("mgm", "ngsp", "srm")})
        if logged and log:
            log.write(number, metrics | throughput.read())
        if logged:
            throughput.restart()
        is_best = False
        if len(val) and (number % config.eval_every == 0 or last):
            held_out = trainer.evaluate(val)
            loss = held_out["val/loss/total"]
            is_best = math.isfinite(loss) and (best is None or loss < best["val/loss/total"])
            best = {"step": number, **held_out} if is_best else best
            if log:
                log.write(number, held_out)
                progress.write(summary(number, held_out))
                curves.draw(run_dir, layout.global_batch, model_config.k)
        if number % config.save_every == 0 or last or is_best:
            state = {"model": asdict(model_config), "run": identity, "config": record, "best": best}
            state["epoch"] = number * layout.global_batch // len(train)
            checkpoint.save(engine, run_dir, number, state, config.keep_last)
            throughput.restart()
    progress.close()
    if log:
        log.close()
        curves.draw(run_dir, layout.global_batch, model_config.k)
    say(f"{run_dir}: {steps} steps done; metrics.jsonl and curves.png are there, checkpoints in checkpoints/")


def dataset(
    config: RunConfig, model: ModelConfig, manifest: dict, cache: ShardCache | None, split: str
) -> MicroBatches:
    """The samples of a split, as the model takes them."""
    reader = ShardReader(config.shards, split, manifest, cache)
    return MicroBatches(reader, k=model.k, max_tokens=model.max_tokens, seed=config.seed)


def stage_or_verify(location: str, manifest: dict, cache: ShardCache | None) -> None:
    """Check every shard's sha256, a part of them on each rank. Raises `InputError` on all ranks if one fails.

    Shards of a URL are staged, on each node by its own ranks. Where the cache does not hold them all, only what is
    there already is checked, and readers stage what they need.
    """
    what, check, part, parts = "verifying", partial(verify_shard, location), dist.get_rank(), dist.get_world_size()
    if cache:
        what, check = ("staging", cache.stage) if cache.holds_all else ("verifying", cache.check)
        part = int(os.environ.get("LOCAL_RANK") or 0)
        parts = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        if not cache.holds_all:
            say(
                f"{url(location)}: {cache.n_bytes / 1e9:.3g} GB of shards, the cache may hold "
                f"{cache.limit / 1e9:.3g}: they are staged while the run reads them, and steps wait for the network"
            )
    left = deque(manifest["shards"][part::parts])
    progress = tqdm(
        total=sum(entry["bytes"] for entry in left),
        desc=f"{what} shards",
        unit="B",
        unit_scale=True,
        disable=None if ranks.is_first() else True,
    )
    # Ranks meet every few seconds: one that is done waits no longer for the others than a collective may take.
    while ranks.summed(torch.tensor(len(left), device=ranks.device())):
        failed, until = None, time.monotonic() + SECONDS_BETWEEN_MEETINGS
        try:
            while left and time.monotonic() < until:
                check(left[0])
                progress.update(left.popleft()["bytes"])
        except InputError as error:
            failed = error
        ranks.raise_together(failed)
    progress.close()


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices alone: none for biases (also those by relative position), norms, the temperature."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or "bias" in name else decayed).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def summary(step: int, held_out: dict[str, float]) -> str:
    """The line that is printed of an evaluation."""
    return (
        f"step {step}: held-out loss {held_out['val/loss/total']:.3f}, "
        f"mgm {held_out['val/loss/mgm']:.3f} (accuracy {held_out['val/mgm/accuracy']:.3f}), "
        f"ngsp accuracy {held_out['val/ngsp/accuracy']:.3f}, srm recall@1 {held_out['val/srm/recall_at_1']:.3f}"
    )


def say(message: str) -> None:
    """Print, on the first rank alone."""
    if ranks.is_first():
        print(message, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
