"""Samples to shards: each shard is a unit of work of its own, so that processes write them side by side."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data_prep import workers
from data_prep.checksum import sha256_of_file
from data_prep.region_store import RegionStore
from data_prep.samples import Samples
from data_prep.shard_format import NPY_HEADER, index_path, npy_bytes, shard_name, write_shard


class Source(Protocol):
    """What shards are written from: `samples` has each one's cell type and chromosome."""

    samples: Samples

    def contents(self, number: int) -> list[bytes]:
        """The members' contents of sample `number`, in the format's order."""


@dataclass(frozen=True)
class SampleSource:
    """The members' contents of each sample, from the store of distinct regions."""

    samples: Samples
    store: RegionStore
    bases: np.ndarray
    binding: np.ndarray
    cell_types: list[str]

    def contents(self, number: int) -> list[bytes]:
        """Of sample `number`, in the format's order."""
        rows = self.samples.region[number]
        starts, ends = self.store.regions.start[rows], self.store.regions.end[rows]
        meta = {
            "cell_type": self.cell_types[self.samples.cell_type[number]],
            "chromosome": self.store.regions.names[self.samples.chromosome[number]],
            "starts": starts.tolist(),
            "ends": ends.tolist(),
            "index": int(self.samples.index[number]),
        }
        offset = self.store.offset
        return [
            npy_bytes(np.concatenate([self.bases[offset[row] : offset[row + 1]] for row in rows.tolist()])),
            npy_bytes((ends - starts).astype(np.int32)),
            npy_bytes(self.binding[rows]),
            json.dumps(meta).encode(),
        ]

    def tar_bytes(self) -> int:
        """Bytes of all samples in tars, to within a percent: members of whole blocks, each with a header of one."""
        lengths = np.diff(self.store.offset)[self.samples.region].sum(axis=1)
        matrix = self.samples.region.shape[1] * self.binding.shape[1] * self.binding.itemsize
        blocks = sum(-(-size // BLOCKSIZE) + 1 for size in (NPY_HEADER + lengths, 1, NPY_HEADER + matrix, 1))
        return BLOCKSIZE * int(blocks.sum())


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: `order` are its samples, `first` the place of its first one in its split."""

    split: str
    number: int
    first: int
    order: np.ndarray

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)


def shard_tasks(orders: dict[str, np.ndarray], per_shard: int) -> list[ShardTask]:
    """The shards of each split, whose samples come in the given order."""
    return [
        ShardTask(split, number, first, order[first : first + per_shard])
        for split, order in orders.items()
        for number, first in enumerate(range(0, len(order), per_shard))
    ]


def write_shards(folder: Path, scratch: Path, tasks: list[ShardTask], source: Source, n_workers: int) -> list[dict]:
    """Write the shards that are not in `folder` yet; returns the entries of all in the manifest.

    A shard is filled in `scratch`, moved to `folder`, and then its entry is written to `scratch`: what has an entry is
    whole.
    """
    left = [task for task in tasks if not _is_written(folder, scratch, task)]
    n_samples = sum(len(task.order) for task in tasks)
    with tqdm(total=n_samples, desc="writing shards", unit="sample", unit_scale=True, disable=None) as progress:
        progress.update(n_samples - sum(len(task.order) for task in left))
        for n in workers.unordered(_write_shard, left, n_workers, (folder, scratch, source)):
            progress.update(n)
    return [json.loads((scratch / f"{task.name}.json").read_text()) for task in tasks]


def _is_written(folder: Path, scratch: Path, task: ShardTask) -> bool:
    entry, tar = scratch / f"{task.name}.json", folder / task.name
    if not (entry.exists() and tar.exists() and index_path(tar).exists()):
        return False
    return json.loads(entry.read_text())["bytes"] == tar.stat().st_size


def _write_shard(context: tuple[Path, Path, Source], task: ShardTask) -> int:
    folder, scratch, source = context
    samples = source.samples

    def members() -> Iterator[tuple[str, int, int, list[bytes]]]:
        for place, number in enumerate(task.order.tolist(), task.first):
            yield f"{place:09d}", samples.cell_type[number], samples.chromosome[number], source.contents(number)

    tar = scratch / task.name
    n = write_shard(tar, members())
    entry = {
        "name": tar.name,
        "split": task.split,
        "samples": n,
        "bytes": tar.stat().st_size,
        "sha256": sha256_of_file(tar),
        "index": index_path(tar).name,
        "index_sha256": sha256_of_file(index_path(tar)),
    }
    for path in (tar, index_path(tar)):
        path.rename(folder / path.name)
    written = scratch / f"{tar.name}.json.new"
    written.write_text(json.dumps(entry))
    written.rename(scratch / f"{tar.name}.json")
    return n


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of n that depends on the seed alone (a raw Philox stream, whatever the version of numpy)."""
    return np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
