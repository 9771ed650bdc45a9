"""The largest micro-batch that fits, found at start by a short probe unless it is given.

A round takes `fixed + per_sample x samples` bytes beside weights and gradients: activations and workspace. The line is
measured with few samples, forward and backward, on the model that DeepSpeed is to take; what the engine will hold is
added by count (Rajbhandari et al. 2020, ZeRO, section 3). The rank with the least free memory decides for all. On CUDA
an answer that needs more than half of it is tried, with the engine's memory occupied. A CPU out of memory kills the
process instead of saying so: there the line decides alone.

The probe runs eagerly, since a compiled graph for each size would take minutes. The line is kept in
~/.cache/genebert/micro_batch.json ($XDG_CACHE_HOME): free memory, batch and ranks may differ the next time.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch
import torch.distributed as dist
import transformers
from torch import nn

from data_prep.errors import InputError
from kernels import dispatch
from kernels.infonce import PANEL_ROWS
from pretrain import device_memory, ranks
from pretrain.atomic_file import write_atomically
from pretrain.batches import MicroBatches
from pretrain.config import RunConfig
from pretrain.data_order import MicroBatch
from pretrain.ds_config import BatchLayout, matmul_dtype
from pretrain.model import GeneBERT
from pretrain.objectives import token_objectives
from pretrain.trainer import Trainer, to_device

MOST_RUN = 4  # samples; with one and with so many the line is measured
MARGIN = {"cuda": 0.08, "cpu": 0.25}  # of free memory: fragments and NCCL; on a CPU data, workers and the page cache
SURE = 0.5  # of free memory: what takes less need not be tried
BACK_OFF = 0.9  # of a micro-batch that did not fit after all
FP32 = 4  # bytes


@dataclass(frozen=True)
class MemoryLine:
    """Bytes of a round beside weights and gradients, `fixed + per_sample x samples`; ran: the most samples that were
    run."""

    fixed: int
    per_sample: int
    ran: int

    def of(self, samples: int) -> int:
        return self.fixed + self.per_sample * samples

    def samples_in(self, room: int) -> int:
        """The most samples that take no more than `room` bytes."""
        return max(room - self.fixed, 0) // max(self.per_sample, 1)


@dataclass(frozen=True)
class Choice:
    """A micro-batch, and how it was found.

    samples: the most of a round, None for a rank's whole share, where memory cannot be measured; line: None unless it
    was; room: bytes free beside weights and gradients on `rank`, which has the least.
    """

    samples: int | None
    how: Literal["given", "probed", "cached", "not measured"]
    line: MemoryLine | None = None
    room: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that DeepSpeed holds on a rank beside weights and gradients, in fp32.

    optimizer: master weights and two moments; reduction: the gradients of its own part, and buckets of others'.
    """

    optimizer: int
    reduction: int

    @classmethod
    def of(cls, parameters: int, world_size: int, ds_config: dict) -> "EngineMemory":
        """parameters: how many are trained; ZeRO cuts their states into a part for each rank."""
        zero = ds_config.get("zero_optimization", {})
        if not zero.get("stage"):
            return cls(optimizer=2 * FP32 * parameters, reduction=0)
        part, buckets = -(-parameters // world_size), 0
        if zero.get("contiguous_gradients", True):
            buckets = 1 if matmul_dtype(ds_config) == torch.float32 else 2  # one for each type that is sent
            buckets *= 2 if zero.get("overlap_comm") else 1
        bucket = FP32 * int(zero.get("reduce_bucket_size", 500_000_000))
        if not ranks.on_cuda():
            bucket = min(bucket, FP32 * parameters)  # what is never written takes no memory
        return cls(optimizer=3 * FP32 * part, reduction=FP32 * part + buckets * bucket)


def given_micro_batch(config: RunConfig, ds_config: dict) -> int | None:
    """What the command line or the DeepSpeed configuration asks for. Raises `InputError` where they contradict."""
    key = "train_micro_batch_size_per_gpu"
    by_flag, by_file = config.micro_batch, ds_config.get(key)
    if by_flag is not None and by_flag < 1:
        raise InputError(f"--micro_batch {by_flag}: give at least 1, or leave it out for the largest that fits")
    if by_flag and by_file and by_flag != by_file:
        raise InputError(
            f"--micro_batch {by_flag}: {config.ds_config} says {key} {by_file}; give one of them, or neither for the "
            "largest that fits"
        )
    return by_flag or by_file


def choose(model: GeneBERT, dataset: MicroBatches, config: RunConfig, ds_config: dict) -> Choice:
    """The micro-batch of this run, the same on all ranks. A collective.

    model: before DeepSpeed takes it; it is moved to this rank's device, and keeps its weights and buffers. Raises
    `InputError` where not one sample fits, or what is given contradicts itself.
    """
    given = given_micro_batch(config, ds_config)
    if given:
        return Choice(given, "given")
    model.to(ranks.device())
    world, batch = dist.get_world_size(), ds_config["train_batch_size"]
    share = BatchLayout.of(batch, world, None).micro_batch
    held = sum(astuple(EngineMemory.of(trained(model), world, ds_config)))
    held += matching_bytes(batch, share, model.config.projection_size)
    hosts = ranks.gathered(socket.gethostname())
    key = cache_key(model, config, ds_config)
    with probing(model):
        room = device_memory.free_memory(hosts.count(socket.gethostname()))
        return largest(passes(model, dataset, config, ds_config), share, held, room, key)


def largest(run: Callable[[int], None], share: int, held: int, room: int | None, key: str) -> Choice:
    """The most samples, up to `share`, with which a round fits into the memory of every rank. A collective.

    run: a round of so many samples; held: bytes that the engine will hold on each rank; room: bytes free on this one
    for both, None where that is not known; key: of the cache. Raises `InputError` where not one sample fits.
    """
    rooms = ranks.gathered(room)
    if None in rooms:
        return Choice(None, "not measured")
    smallest, margin = min(rooms), MARGIN[ranks.device().type]
    rank, usable = rooms.index(smallest), int(smallest * (1 - margin)) - held
    cached = ranks.gathered(read_cache().get(key) if ranks.is_first() else None)[0]
    line, how = MemoryLine(*cached) if cached else None, "cached"
    if line is None:
        lines, how = ranks.gathered(measured(run, usable)), "probed"
        if None in lines:
            return Choice(None, "not measured")
        line = MemoryLine(
            max(line.fixed for line in lines), max(line.per_sample for line in lines), min(line.ran for line in lines)
        )
    samples = min(share, line.samples_in(usable))
    while ranks.on_cuda() and samples > line.ran and held + line.of(samples) > SURE * smallest:
        how = "probed"
        if all(ranks.gathered(device_memory.fits(partial(run, samples), held + int(margin * room)))):
            line = replace(line, ran=samples)
        else:
            samples = int(BACK_OFF * samples)
            line = replace(line, per_sample=(usable - line.fixed) // samples)
        device_memory.release()
    if samples < 1:
        raise InputError(
            f"not one sample fits into the memory of rank {rank}, {smallest / 2**30:.3g} GiB beside weights and "
            f"gradients: the optimizer takes {held / 2**30:.3g} GiB, a sample {line.of(1) / 2**30:.3g} GiB; give "
            "--activation_checkpointing, a smaller --max_tokens, or more ranks"
        )
    if how == "probed" and ranks.is_first():
        write_cache(key, line)
    return Choice(samples, how, line, smallest, rank)


def measured(run: Callable[[int], None], room: int) -> MemoryLine | None:
    """The line through rounds of one sample and of MOST_RUN on this rank; None where memory cannot be measured.

    Of fewer where so many might not fit into `room` bytes, and through the origin where no two might.
    """
    try:
        meter = device_memory.Meter()
        one = meter.peak(partial(run, 1))
        if one is None:
            return MemoryLine(0, max(room, 0) + 1, 1)
        samples = min(MOST_RUN, room // max(one, 1))
        more = meter.peak(partial(run, samples)) if samples > 1 else None
    except OSError:
        return None
    if more is None:
        return MemoryLine(0, one, 1)
    per_sample = max(more - one, 0) // (samples - 1)
    return MemoryLine(max(one - per_sample, 0), per_sample, samples)


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Lets a model run forward and backward without a trace; its gradients are allocated meanwhile."""
    buffers = [buffer.clone() for buffer in model.buffers()]  # of batch norms, in some region encoders
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter).zero_()  # in memory, not only promised, as zeros_like is
    devices = [ranks.device()] if ranks.on_cuda() else []
    try:
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        model.zero_grad(set_to_none=True)
        device_memory.release()


def passes(model: GeneBERT, dataset: MicroBatches, config: RunConfig, ds_config: dict) -> Callable[[int], None]:
    """A function that runs a round of so many samples forward and backward, as the trainer does.

    Rows have one length, so that the first sample, repeated, takes what any samples take.
    """
    trainer = Trainer(InPrecision(model, ds_config), config, BatchLayout(1, 1, 1, 1), steps=1)
    one = dataset[MicroBatch(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.float32))]

    def run(samples: int) -> None:
        batch = to_device({name: row.repeat_interleave(samples, 0) for name, row in one.items()}, ranks.device())
        rows = trainer.mask(batch, max(config.mask_rate, config.late_mask_rate))
        outputs = trainer._forward(0, 0, batch, rows)
        parts = token_objectives(outputs, rows, batch["follows"], batch["weight"])
        loss = parts.mgm_loss + parts.ngsp_loss
        if outputs.region is not None:
            loss = loss + (outputs.sequence * outputs.region).sum()
        loss.backward()

    return run


@dataclass(frozen=True)
class InPrecision:
    """A model called as DeepSpeed's engine calls it, in the precision of its configuration."""

    module: GeneBERT
    ds_config: dict

    def __call__(self, *arguments: object) -> object:
        dtype = matmul_dtype(self.ds_config)
        with torch.autocast(ranks.device().type, dtype=dtype, enabled=dtype != torch.float32):
            return self.module(*arguments)


def trained(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def matching_bytes(batch: int, share: int, width: int) -> int:
    """What matching a batch takes on a rank, generously: embeddings of all ranks, twice and with their gradients, and
    a panel of logits in its stages."""
    return FP32 * batch * (6 * width + 4 * min(share, PANEL_ROWS))


def cache_key(model: GeneBERT, config: RunConfig, ds_config: dict) -> str:
    """What the line depends on, as a hash: the model, what is computed how, the kinds of devices, the libraries. A
    collective."""
    content = {
        "model": asdict(model.config),
        "parameters": trained(model),
        "precision": ds_config.get("torch_autocast"),
        "mask": [config.mask_span, max(config.mask_rate, config.late_mask_rate)],
        "activation_checkpointing": config.activation_checkpointing,
        "kernels": dispatch.chosen(ranks.device()),
        "devices": sorted(set(ranks.gathered(device_memory.device_name()))),
        "versions": [torch.__version__, transformers.__version__, timm.__version__],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genebert" / "micro_batch.json"


def read_cache() -> dict[str, list[int]]:
    """Lines by key, as (fixed, per_sample, ran). A file that is not there or damaged holds none."""
    try:
        content = json.loads(cache_path().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: line for key, line in content.items() if _is_line(line)}


def write_cache(key: str, line: MemoryLine) -> None:
    """Keep a line; where that cannot be written the next run probes again, and a word says why."""
    try:
        cache_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_path(), json.dumps(read_cache() | {key: astuple(line)}, indent=1))
    except OSError as error:
        ranks.say(f"{cache_path()}: {error.strerror}; the next run will look for its micro-batch again")


def _is_line(content: object) -> bool:
    return isinstance(content, list) and len(content) == 3 and all(type(n) is int and n >= 0 for n in content)
