"""The data order: step t is a pure function of the seed and t, on any number of nodes, GPUs and workers.

An epoch's order permutes the shards, then the samples within blocks of shards, so that a step reads few files. Epochs
follow one another without a gap: step t takes samples [t B, (t + 1) B) of that endless order, B the global batch, and
each sample comes once an epoch. Slot (round, rank, i) of a step's layout holds sample
(round * world + rank) * micro + i of its batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kernels.philox import Stream, draw
from pretrain.ds_config import BatchLayout

SHARDS_IN_BLOCK = 16


@dataclass(frozen=True)
class MicroBatch:
    """What a worker is asked to read: sample, epoch: int64 [n]; weight: float32 [n], 0 for padding."""

    sample: np.ndarray
    epoch: np.ndarray
    weight: np.ndarray


class DataOrder:
    """The order of samples 0 ... n - 1, which lie in shards of the given sizes."""

    def __init__(self, shard_sizes: list[int], seed: int):
        self.shard_sizes = np.array(shard_sizes, dtype=np.int64)
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """The samples of one epoch in order, int64 [n], each once."""
        return self._epoch(epoch)

    def batch(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and epochs of a step's global batch, int64 [global_batch] each."""
        place = np.arange(step * global_batch, (step + 1) * global_batch)
        epochs = place // len(self)
        samples = np.concatenate([self.epoch(e)[place[epochs == e] % len(self)] for e in np.unique(epochs)])
        return samples, epochs

    def micro_batches(self, layout: BatchLayout, rank: int, steps: range) -> Iterator[MicroBatch]:
        """One rank's micro-batches: `layout.accumulation` of them for each step."""
        for step in steps:
            samples, epochs = self.batch(step, layout.global_batch)
            yield from split(samples, epochs, layout, rank)

    def _compute_epoch(self, epoch: int) -> np.ndarray:
        first = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        shards = np.argsort(self._keys(epoch, Stream.ORDER_OF_SHARDS, len(self.shard_sizes)), kind="stable")
        keys = self._keys(epoch, Stream.ORDER_OF_SAMPLES, len(self))
        blocks = []
        for block in range(0, len(shards), SHARDS_IN_BLOCK):
            in_block = shards[block : block + SHARDS_IN_BLOCK]
            samples = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in in_block])
            blocks.append(samples[np.argsort(keys[samples], kind="stable")])
        return np.concatenate(blocks)

    def _keys(self, epoch: int, stream: Stream, n: int) -> np.ndarray:
        high, low, *_ = draw(self.seed, epoch, stream, np.arange(n), 0)
        return (high << 31) | (low >> 1)


def split(samples: np.ndarray, epochs: np.ndarray, layout: BatchLayout, rank: int) -> Iterator[MicroBatch]:
    """One rank's micro-batches of a global batch; slots past its end repeat its samples with weight zero."""
    for round_ in range(layout.accumulation):
        first = (round_ * layout.world_size + rank) * layout.micro_batch
        slot = np.arange(first, first + layout.micro_batch)
        sample = slot % len(samples)
        yield MicroBatch(samples[sample], epochs[sample], (slot < len(samples)).astype(np.float32))
