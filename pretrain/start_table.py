"""The table that a run prints at its start: what was decided, and what that takes of memory and time."""

import socket
from collections import Counter
from dataclasses import dataclass

import torch

from data_prep.text_table import aligned
from pretrain import device_memory, flops, hosts, ranks
from pretrain.config import ModelConfig, RunConfig
from pretrain.ds_config import BatchLayout, matmul_dtype
from pretrain.matching import embeddings_first
from pretrain.model import GeneBERT
from pretrain.probe import FP32, Choice, EngineMemory, trained

USUAL_MFU = 0.4  # for an estimate before the first step
NAMES_SHOWN = 8
ENCODERS = ("sequence", "region")


@dataclass(frozen=True)
class Start:
    """What a run begins with. done: steps; samples: of training and held out; kernels: which run."""

    config: RunConfig
    ds_config: dict
    layout: BatchLayout
    choice: Choice
    steps: int
    done: int
    samples: tuple[int, int]
    genome: str
    kernels: str


def start_table(start: Start, model: GeneBERT) -> str:
    """One line that says whether the run begins or resumes, then a row for each thing decided. A collective."""
    devices = ranks.gathered(device_memory.device_name())
    # As the hostfile names them, if there is one: the first rank's word counts, for all to go on alike.
    nodes = list(dict.fromkeys(ranks.gathered(hosts.of_ranks())[0] or ranks.gathered(socket.gethostname())))
    config, layout, steps = start.config, start.layout, start.steps
    training, held_out = start.samples
    tokens, padding = layout.global_batch * model.config.max_tokens, layout.slots - layout.global_batch
    rows = {
        "nodes": f"{len(nodes)}: {_listed(nodes)}",
        "ranks": f"{layout.world_size}: {_listed([f'{n} x {name}' for name, n in Counter(devices).items()])}",
        "data": f"{training:,} training and {held_out:,} held-out samples of {start.genome}",
        "steps": f"{steps:,}, {steps * layout.global_batch / training:,.1f} epochs",
        "batch": f"{layout.global_batch:,} samples, {padding} padding",
        "micro-batch": f"{layout.micro_batch} samples, {found(start.choice, layout)}",
        "accumulation": accumulation(start, model.config),
        "tokens a step": f"{tokens:,} at most, {layout.global_batch:,} x {model.config.max_tokens:,}",
        "parameters": parameters(model),
        "compute": f"{ranks.device().type}, {precision(start.ds_config)}, {start.kernels} kernels"
        + (", activation checkpointing" if config.activation_checkpointing else ""),
        "memory": memory(start, model),
        "time": time_left(start, model, devices),
        "seed": str(config.seed),
    }
    begins = f"resuming at step {start.done}" if start.done else "training"
    title = (
        f"{begins}: {config.config}, {steps} steps of {layout.global_batch} samples on {layout.world_size} ranks "
        f"({layout.accumulation} x {layout.micro_batch} each, {padding} padded)"
    )
    return "\n".join([title, *aligned([[name, value] for name, value in rows.items()])])


def found(choice: Choice, layout: BatchLayout) -> str:
    """How the micro-batch came about, and which rank bounds it."""
    if choice.how in ("given", "not measured"):
        return {"given": "as given", "not measured": "a rank's whole share: memory cannot be measured here"}[choice.how]
    share = -(-layout.global_batch // layout.world_size)
    limit = "a rank's whole share" if choice.samples == share else f"at most {choice.samples} fit on rank {choice.rank}"
    return f"{choice.how}: {limit}"


def accumulation(start: Start, model: ModelConfig) -> str:
    """Rounds of micro-batches, and how often each runs forward."""
    rounds = start.layout.accumulation
    if rounds == 1:
        return "1 round"
    twice = embeddings_first(model, start.config, start.layout)
    return f"{rounds} rounds in {'two passes, each pair told from all of the batch' if twice else 'one pass'}"


def parameters(model: GeneBERT) -> str:
    """Parameters of each encoder with its own heads, and of the projections that match them, in millions."""
    counts = {name: trained(getattr(model, name)) for name in ENCODERS if getattr(model, name, None) is not None}
    counts["projections and temperature"] = trained(model) - sum(counts.values())
    parts = ", ".join(f"{name} {count / 1e6:.3g}" for name, count in counts.items() if count)
    return f"{trained(model) / 1e6:.3g} M: {parts}"


def precision(ds_config: dict) -> str:
    """The type in which matrices are multiplied; parameters are fp32."""
    dtype = matmul_dtype(ds_config)
    return "fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.") + " autocast"


def memory(start: Start, model: GeneBERT) -> str:
    """What a rank takes, by what holds it, of what the rank with the least has."""
    engine = EngineMemory.of(trained(model), start.layout.world_size, start.ds_config)
    weights, gradients = (FP32 * count for count in (sum(p.numel() for p in model.parameters()), trained(model)))
    parts = {"weights": weights, "gradients": gradients + engine.reduction, "optimizer": engine.optimizer}
    line, room = start.choice.line, start.choice.room
    if not line:
        return f"{_gib(parts)} GiB on each rank; activations were not measured"
    parts["activations"] = line.of(start.layout.micro_batch)
    total, has = sum(parts.values()) / 2**30, (weights + gradients + room) / 2**30
    return f"{total:.3g} of {has:.3g} GiB, which rank {start.choice.rank} has free, the least: {_gib(parts)}"


def time_left(start: Start, model: GeneBERT, devices: list[str]) -> str:
    """Time of the steps that are left if the slowest GPU's peak is used as such runs use it; a CPU's is not known."""
    dtype = matmul_dtype(start.ds_config)
    peaks = [flops.peak_flops(device, dtype) for device in set(devices)]
    if None in peaks:
        return "measured after the first steps"
    samples = (start.steps - start.done) * start.layout.global_batch
    # Forward, a third of a step's work.
    again = embeddings_first(model.config, start.config, start.layout) + start.config.activation_checkpointing
    each = flops.model_flops(model.config, start.config.mask_rate, getattr(model, "vocabulary", None))
    work = samples * (1 + again / 3) * each
    seconds = work / (USUAL_MFU * min(peaks) * start.layout.world_size)
    return f"{duration(seconds)} if {USUAL_MFU:.0%} of the peak is reached"


def duration(seconds: float) -> str:
    """Seconds as days and hours, hours and minutes, or minutes."""
    minutes = max(round(seconds / 60), 1)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def _gib(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / 2**30:.2g}" for name, size in parts.items())


def _listed(names: list[str]) -> str:
    """Names with commas, the first of many."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
