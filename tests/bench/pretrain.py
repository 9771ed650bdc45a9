"""Speed of pre-training, as CSV on stdout, the machine first.

    python tests/bench/pretrain.py
    python tests/bench/pretrain.py --max_tokens 5120 --batch 200
    deepspeed --num_gpus 8 tests/bench/pretrain.py --rows ours --overlap_comm

On CUDA genebert-base at batch 2000; on a CPU genebert-tiny at batch 32. Shards are simulated, with regions of the real
sizes, and read by the loader of training. `ours`: the trainer over DeepSpeed, as pretrain/main.py has it, its encoders
compiled (on CUDA) and not. `baseline`: the same models and losses in plain code: Hugging Face's BERT with its head over
all tokens, timm's Swin, a collator on the CPU, InfoNCE as a matrix, torch's AdamW; eager, in the same precision and
rounds.

MFU counts the model's operations (pretrain/flops.py), not what a first pass or checkpointing computes again; a CPU's
peak is what a product of matrices reaches on it. Memory is the peak of the GPU, or of the process on a CPU. Lines
`# goal` say which goals hold.
"""

# ruff: noqa: E402
import argparse
import itertools
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import Dataset

sys.path[0] = str(Path(__file__).parents[2])  # this file has the package's name, and its folder would come first
ON_CUDA = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
os.environ.setdefault("DS_ACCELERATOR", "cuda" if ON_CUDA else "cpu")

import deepspeed
from transformers import DataCollatorForLanguageModeling

from data_prep.shard_reader import ShardReader, read_manifest
from kernels.kmer_mask import N_SPECIAL, Masking, mask_kmers
from pretrain import flops, ranks, speed
from pretrain.batches import Batch, MicroBatches, loader
from pretrain.config import ModelConfig, RunConfig, read_preset
from pretrain.data_order import DataOrder, MicroBatch
from pretrain.ds_config import BatchLayout, read_ds_config, with_layout
from pretrain.model import GeneBERT, region_image
from pretrain.parts import parameter_groups
from pretrain.throughput import Throughput
from pretrain.trainer import Trainer, to_device
from tests.bench.machine import describe_machine
from tests.bench.masking import tokenizer
from tests.bench.print_csv import Row, print_csv
from tests.bench.reading import MOTIFS, simulate

ROOT = Path(__file__).parents[2]
ROWS = ("baseline", "ours, not compiled", "ours")
TOKENS_AT_ONCE = {"cuda": 100 * 512, "cpu": 16 * 256}  # of a micro-batch, unless it is given
FIGURES = ("samples_per_s", "tokens_per_s", "mfu", "data_wait_share", "memory_gib", "tflop_per_s", "first_step_s")
MASK_RATE, STEPS_OF_RUN = 0.15, 120_000
GOALS = {
    "mfu": (0.45, 1),
    "vs_baseline": (1.8, 1),
    "data_wait_share": (0.02, -1),
}  # of `ours` on one H200: at least, at most


@dataclass(frozen=True)
class Job:
    """One row's run. steps: timed ones, after `warm_up`; compile: `on` or `off`."""

    model: ModelConfig
    run: RunConfig
    overlap_comm: bool
    batch: int
    warm_up: int
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all, on a CPU those not compiled")
    parser.add_argument("--config", default="genebert-base" if ON_CUDA else "genebert-tiny", help="preset")
    parser.add_argument("--batch", type=int, default=2000 if ON_CUDA else 32, help="global batch")
    parser.add_argument("--micro_batch", type=int, help="default: 100 rows of 512 tokens on CUDA")
    parser.add_argument("--max_tokens", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--workers", type=int, default=2, help="processes that read data, for each rank")
    parser.add_argument("--overlap_comm", action="store_true", help="DeepSpeed's overlap_comm, of ours")
    parser.add_argument("--activation_checkpointing", action="store_true", help="of ours")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # of the launcher
    arguments = parser.parse_args()
    world, first = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
    rows = arguments.rows or [row for row in ROWS if ON_CUDA or row != "ours"]
    if world > 1 and (len(rows) > 1 or "baseline" in rows):
        parser.error(f"--rows: give one of {', '.join(ROWS[1:])} to several ranks")
    if first:
        print(describe_machine(("torch", "triton", "transformers", "timm", "deepspeed")), flush=True)
    with ranks.together() if world > 1 else nullcontext(), tempfile.TemporaryDirectory() as shards:
        simulate(Path(shards), max(2 * arguments.batch, 200))
        found = (measured(row, job_of(arguments, shards, row)) for row in rows)
        if first:
            report(print_csv(against_baseline(found)))
        else:
            list(found)


def job_of(arguments: argparse.Namespace, shards: str, row: str) -> Job:
    content = read_preset(arguments.config)
    model = ModelConfig(**{name: content[name] for name in ModelConfig.__dataclass_fields__ if name in content})
    model = replace(model, max_tokens=arguments.max_tokens or model.max_tokens)
    device = "cuda" if ON_CUDA else "cpu"
    run = RunConfig(
        ds_config=str(ROOT / "ds_configs" / ("zero2.json" if ON_CUDA else "zero2_cpu.json")),
        config=arguments.config,
        shards=shards,
        mask_rate=MASK_RATE,
        micro_batch=arguments.micro_batch or max(1, TOKENS_AT_ONCE[device] // model.max_tokens),
        compile="on" if row == "ours" else "off",
        activation_checkpointing=arguments.activation_checkpointing,
        workers=arguments.workers,
    )
    return Job(model, run, arguments.overlap_comm, arguments.batch, warm_up=1, steps=arguments.steps)


def measured(row: str, job: Job) -> Row:
    """A row, by a process of its own, so that none finds memory in use or code compiled; of several ranks, by those."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return {"what": row, **run(row, job)}
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"what": row, **pool.submit(run_alone, row, job).result()}


def run_alone(row: str, job: Job) -> Row:
    with ranks.together():
        return run(row, job)


def run(row: str, job: Job) -> Row:
    """The figures of a row."""
    deepspeed.utils.logger.setLevel(logging.ERROR)
    ranks.join()
    layout = BatchLayout.of(job.batch, dist.get_world_size(), job.run.micro_batch)
    figures: Row = {
        "device": torch.cuda.get_device_name() if ON_CUDA else "cpu",
        "ranks": layout.world_size,
        "batch": layout.global_batch,
        "micro_batch": layout.micro_batch,
        "rounds": layout.accumulation,
        "max_tokens": job.model.max_tokens,
    }
    try:
        return figures | (baseline if row == "baseline" else ours)(job, layout) | {"note": ""}
    except torch.OutOfMemoryError:
        return figures | dict.fromkeys(FIGURES, "") | {"note": "out of memory"}


def ours(job: Job, layout: BatchLayout) -> Row:
    model = build_model(job.model)
    speed.prepare(model, job.run, ranks.device())
    ds_config = with_layout(read_ds_config(job.run.ds_config), layout)
    ds_config["zero_optimization"]["overlap_comm"] = job.overlap_comm
    engine, *_ = deepspeed.initialize(model=model, model_parameters=parameter_groups(model), config=ds_config)
    trainer = Trainer(engine, job.run, layout, STEPS_OF_RUN)

    def step(number: int, batches: list[Batch]) -> None:
        trainer.step(number, batches, with_recall=False)

    return timed(job, layout, micro_batches(job.run, job.model), step)


def baseline(job: Job, layout: BatchLayout) -> Row:
    """Of each step the embeddings of all rounds first, as ours has it, then each round forward and back."""
    device, rounds = ranks.device(), layout.accumulation
    model = build_model(job.model).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=4e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=ON_CUDA)

    def forward(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of tokens and next segments; both embeddings."""
        with autocast:
            outputs = model.sequence(
                batch["input_ids"],
                batch["attention_mask"],
                batch["segment_ids"],
                labels=batch["labels"],
                next_sentence_label=batch["follows"],
                output_hidden_states=True,
            )
            kmers = (batch["input_ids"] >= N_SPECIAL)[..., None]
            mean = (outputs.hidden_states[-1] * kmers).sum(1) / kmers.sum(1)
            image = region_image(batch["binding"], model.binding_mean, model.binding_std, model.image_size)
            sequence, region = model.sequence_projection(mean), model.region_projection(model.region(image))
        return outputs.loss, F.normalize(sequence.float(), dim=1), F.normalize(region.float(), dim=1)

    def info_nce(sequence: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        logits = model.logit_scale.exp() * sequence @ region.T
        own = torch.arange(len(logits), device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def step(_: int, batches: list[Batch]) -> None:
        batches = [to_device(batch, device) for batch in batches]
        optimizer.zero_grad()
        if rounds == 1:
            loss, sequence, region = forward(batches[0])
            (loss + 0.5 * info_nce(sequence, region)).backward()
        else:
            with torch.no_grad():
                embeddings = [forward(batch)[1:] for batch in batches]
            embeddings = [torch.cat(parts).requires_grad_() for parts in zip(*embeddings, strict=True)]
            (0.5 * info_nce(*embeddings)).backward()
            gradients = [whole.grad.split(layout.micro_batch) for whole in embeddings]
            for batch, *of_round in zip(batches, *gradients, strict=True):
                loss, *found = forward(batch)
                matched = sum((one * gradient).sum() for one, gradient in zip(found, of_round, strict=True))
                (loss / rounds + matched).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if ON_CUDA:
            torch.cuda.synchronize()

    return timed(job, layout, Collated(micro_batches(job.run, job.model)), step)


def timed(job: Job, layout: BatchLayout, dataset: Dataset, step) -> Row:
    """Figures of `job.steps` steps, after the first ones. step: of its number and micro-batches; it ends when they are
    computed."""
    reader = ShardReader(job.run.shards, "train")
    order = DataOrder([shard["samples"] for shard in reader.shards], job.run.seed)
    asked = order.micro_batches(layout, dist.get_rank(), itertools.count())
    batches = loader(dataset, asked, job.run.workers, ON_CUDA)
    dtype = torch.bfloat16 if ON_CUDA else torch.float32
    per_sample = flops.model_flops(job.model, MASK_RATE)
    throughput = Throughput(layout, per_sample, flops.attainable_flops(ranks.device(), dtype))
    started = time.perf_counter()
    for number in range(job.warm_up):
        step(number, throughput.micro_batches(batches))
    first_step_s = time.perf_counter() - started
    throughput.restart()
    for number in range(job.warm_up, job.warm_up + job.steps):
        step(number, throughput.micro_batches(batches))
    rates = {name.removeprefix("perf/"): value for name, value in throughput.read().items()}
    of_a_rank = per_sample * rates["samples_per_s"] / layout.world_size
    return rates | {"tflop_per_s": of_a_rank / 1e12, "first_step_s": first_step_s}


def build_model(config: ModelConfig) -> GeneBERT:
    torch.manual_seed(0)
    return GeneBERT(config, torch.full((MOTIFS,), 0.5), torch.full((MOTIFS,), 0.3))


def micro_batches(run: RunConfig, model: ModelConfig) -> MicroBatches:
    reader = ShardReader(run.shards, "train", read_manifest(run.shards))
    return MicroBatches(reader, k=model.k, max_tokens=model.max_tokens, seed=run.seed)


class Collated(Dataset):
    """The same micro-batches as a worker would make them for plain code: tokens, masked by Transformers' collator."""

    def __init__(self, dataset: MicroBatches):
        self.dataset = dataset
        self.unmasked = Masking(k=dataset.k, tokens=dataset.max_tokens, span=1, rate=1e-12, capacity=8, seed=0)
        self.collate = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=MASK_RATE)

    def __getitem__(self, asked: MicroBatch) -> Batch:
        batch = self.dataset[asked]
        given = (batch[name] for name in ("bases", "window_kmers", "sample", "epoch"))
        rows = mask_kmers(*given, self.unmasked)
        masked = self.collate(
            [
                {"input_ids": ids, "attention_mask": mask, "special_tokens_mask": (ids < N_SPECIAL).long()}
                for ids, mask in zip(rows.token_ids, rows.attention_mask, strict=True)
            ]
        )
        return {**batch, **masked, "segment_ids": rows.segment_ids}


def against_baseline(rows):
    """The rows, each beside the baseline's samples a second."""
    plain = None
    for row in rows:
        if row["what"] == "baseline":
            plain = row["samples_per_s"]
        ratio = row["samples_per_s"] / plain if plain and row["samples_per_s"] else ""
        yield {"what": row["what"], "vs_baseline": ratio, **row}


def report(rows: list[Row]) -> None:
    """Which goals hold, of `ours` on one H200."""
    row = next((row for row in rows if row["what"] == "ours" and "H200" in row["device"] and row["ranks"] == 1), {})
    for name, (limit, sign) in GOALS.items():
        figure = row.get(name, "")
        verdict = "not measured" if figure == "" else "holds" if sign * figure >= sign * limit else "does not hold"
        print(f"# goal: {name} {'at least' if sign > 0 else 'at most'} {limit:g}: {verdict} {figure}", flush=True)


if __name__ == "__main__":
    main()
