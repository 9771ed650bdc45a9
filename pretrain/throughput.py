"""The rates of a run, and where its time and memory go."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from data_prep.bpe import N_SPECIAL
from pretrain import ranks
from pretrain.batches import Batch
from pretrain.ds_config import BatchLayout
from pretrain.flops import mfu


@dataclass
class Throughput:
    """Rates since the last restart: samples and tokens a second, and the share of time spent waiting for data.

    flops_per_sample: of the model (`pretrain.flops`); peak: operations a second that a rank's device can do.
    """

    layout: BatchLayout
    flops_per_sample: float
    peak: float
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    tokens: int = 0
    steps: int = 0

    def micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The next step's micro-batches, timed."""
        before = time.perf_counter()
        taken = [next(batches) for _ in range(self.layout.accumulation)]
        self.waited += time.perf_counter() - before
        self.tokens += sum(n_tokens(batch) for batch in taken)
        self.steps += 1
        return taken

    def read(self) -> dict[str, float]:
        """The rates of the whole run, from this rank's steps since `restart`."""
        seconds = time.perf_counter() - self.started
        samples_per_s = self.steps * self.layout.global_batch / seconds
        return {
            "perf/samples_per_s": samples_per_s,
            "perf/tokens_per_s": self.tokens * self.layout.world_size / seconds,
            "perf/mfu": mfu(self.flops_per_sample, samples_per_s, self.layout.world_size, self.peak),
            "perf/data_wait_share": self.waited / seconds,
            "perf/memory_gib": memory_gib(),
        }

    def restart(self) -> None:
        self.started, self.waited, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0


def n_tokens(batch: Batch) -> int:
    """Tokens of its samples of weight above zero, without special ones."""
    kept = batch["weight"] > 0
    if "token_ids" in batch:
        return int((batch["token_ids"][kept] >= N_SPECIAL).sum())
    return int(batch["window_kmers"][kept].sum())


def memory_gib() -> float:
    """Peak memory of this rank: the GPU's, or the process's resident size on a CPU."""
    if ranks.on_cuda():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
