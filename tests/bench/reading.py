"""Speed of reading shards, as CSV on stdout, the machine first.

    python tests/bench/reading.py
    python tests/bench/reading.py --shards data/shards > reading.csv

The index reader, the micro-batches of training made of what it reads, the DataLoader of training with one worker, and
plain webdataset on the same shards, in one run: repetitions take turns, so that other load meets all alike. `warm`
reads from the page cache, `cold` drops the files from it first; disk_mb says what one pass got from the disk. Then what
each takes its time for. Without --shards, a simulated set of the real sizes: regions of 505 bp on average, 579 motifs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from webdataset import WebDataset

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported below, would print what it looks for

from data_prep import shard_reader
from data_prep.checksum import sha256_of_file
from data_prep.output_folder import MANIFEST, write_json
from data_prep.shard_format import FORMAT, FORMAT_VERSION, index_path, npy_bytes, shard_name, write_shard
from data_prep.shard_reader import ShardReader
from pretrain import batches
from pretrain.batches import MicroBatches, loader
from pretrain.data_order import DataOrder
from pretrain.ds_config import BatchLayout
from tests.bench.machine import describe_machine
from tests.bench.print_csv import Row, print_csv

MICRO_BATCH, K, MAX_TOKENS = 64, 6, 512
MICRO_BATCHES = 400  # a pass of the DataLoader
SAMPLES_PER_SHARD = 1000
REGIONS, REGION_BP, MOTIFS, CELL_TYPES = 10, 505, 579, 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="folder of shards; default: a simulated one, removed at the end")
    parser.add_argument("--samples", type=int, default=6000, help="samples of the simulated set")
    parser.add_argument("--repetitions", type=int, default=5, help="passes of each measurement")
    arguments = parser.parse_args()
    print(describe_machine())
    print(f"# torch {torch.__version__}, webdataset {version('webdataset')}", flush=True)
    print_csv(measure(arguments.shards, arguments.samples, arguments.repetitions))


def measure(shards: Path | str | None = None, samples: int = 6000, repetitions: int = 5) -> list[Row]:
    """One row a measurement: samples/s of the best pass and of the median one, microseconds a sample, and MB/s of the
    samples' own content; a share of a pass has the microseconds alone."""
    if shards is None:
        with tempfile.TemporaryDirectory() as folder:
            simulate(Path(folder), samples)
            return measure(folder, samples, repetitions)
    bench = Bench(Path(shards))
    for step in bench.passes.values():  # code, caches and pages
        step()
    seconds: dict[str, list[float]] = {name: [] for name in bench.passes}
    disk: dict[str, float] = {}
    for _ in range(repetitions):
        for name, step in bench.passes.items():
            if name.endswith("cold"):
                bench.drop_pages()
            before = read_from_disk()
            seconds[name].append(step())
            disk[name] = (read_from_disk() - before) / 1e6
    rows = [
        row(name, min(taken), statistics.median(taken), bench.mb_per_sample, disk[name])
        for name, taken in seconds.items()
    ]
    return rows + [row(f"of the {name}", None, taken) for name, taken in bench.shares(repetitions)]


def row(
    what: str, best: float | None, median: float, mb_per_sample: float | None = None, disk_mb: float | None = None
) -> Row:
    """From seconds a sample."""
    return {
        "what": what,
        "samples_per_s": 1 / best if best else "",
        "median_samples_per_s": 1 / median if best else "",
        "MB_per_s": mb_per_sample / best if best else "",
        "us_per_sample": median * 1e6,
        "disk_mb": disk_mb if disk_mb is not None else "",
    }


class Bench:
    """passes: by name, a function that reads, and gives the seconds that a sample took."""

    def __init__(self, shards: Path):
        self.reader = ShardReader(shards, "train")
        self.files = [shards / entry["name"] for entry in self.reader.shards]
        self.dataset = MicroBatches(self.reader, k=K, max_tokens=MAX_TOKENS, seed=0)
        order = DataOrder([entry["samples"] for entry in self.reader.shards], 0)
        self.numbers = order.epoch(0).tolist()
        layout = BatchLayout.of(MICRO_BATCH, 1, MICRO_BATCH)
        self.asked = list(order.micro_batches(layout, 0, range(MICRO_BATCHES)))
        self.in_an_epoch = self.asked[: max(1, len(self.numbers) // MICRO_BATCH)]
        first, last = self.reader.index["offset"][:, 0], self.reader.index["offset"][:, -1]
        self.extents = [
            (int(np.searchsorted(self.reader.first_of_shard, number, side="right")) - 1, int(first[number]), int(size))
            for number, size in enumerate(last + self.reader.index["size"][:, -1] - first)
        ]
        self.mb_per_sample = float(self.reader.index["size"].sum(axis=1).mean()) / 1e6
        self.passes = {
            "pread alone, warm": self.pread,
            "pread alone, cold": self.pread,
            "index reader, whole samples, warm": self.samples,
            "index reader, arrays, warm": self.arrays,
            "index reader, arrays, cold": self.arrays,
            "webdataset, warm": self.stream,
            "webdataset, cold": self.stream,
            "micro-batches in one process, warm": self.micro_batches,
            "DataLoader of micro-batches, 1 worker, warm": self.loader,
            "DataLoader of webdataset, 1 worker, warm": self.stream_loader,
        }

    def drop_pages(self) -> None:
        for path in self.files:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def pread(self) -> float:
        handles = [os.open(path, os.O_RDONLY) for path in self.files]
        extents = [self.extents[number] for number in self.numbers]
        started = time.perf_counter()
        for shard, offset, size in extents:
            os.pread(handles[shard], size, offset)
        taken = time.perf_counter() - started
        for handle in handles:
            os.close(handle)
        return taken / len(extents)

    def samples(self) -> float:
        return per_item(map(self.reader.__getitem__, self.numbers))

    def arrays(self) -> float:
        return per_item(map(self.reader.arrays, self.numbers))

    def stream(self) -> float:
        return per_item(iter(self._webdataset()))

    def micro_batches(self) -> float:
        return per_item(map(self.dataset.__getitem__, self.in_an_epoch)) / MICRO_BATCH

    def loader(self) -> float:
        return per_item(loader(self.dataset, self.asked, 1, pin_memory=False), skip=1) / MICRO_BATCH

    def stream_loader(self) -> float:
        data = self._webdataset()
        return per_item(iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=64)), skip=64)

    def _webdataset(self) -> WebDataset:
        return WebDataset([str(path) for path in self.files], shardshuffle=False).decode()

    def shares(self, repetitions: int) -> Iterator[tuple[str, float]]:
        """Seconds a sample of each part of a warm pass, the median over passes, and what is left."""
        parts = {
            "index reader, whole samples": (
                self.samples,
                len(self.numbers),
                {"pread": (os, "pread"), "npy decode": (shard_reader, "npy_array"), "json": (json, "loads")},
            ),
            "micro-batches in one process": (
                self.micro_batches,
                MICRO_BATCH * len(self.in_an_epoch),
                {
                    "reading arrays": (self.dataset, "_read"),
                    "random draws": (batches, "draw"),
                    "windows": (batches, "window_kmers"),
                    "packing bases": (batches, "packed"),
                    "stacking (numpy.concatenate)": (np, "concatenate"),
                },
            ),
        }
        for name, (step, n, functions) in parts.items():
            found: dict[str, list[float]] = {part: [] for part in (*functions, "the rest")}
            for _ in range(repetitions):
                with ExitStack() as stack:
                    timers = {part: stack.enter_context(timed(*where)) for part, where in functions.items()}
                    whole = step()
                for part, timer in timers.items():
                    found[part].append(timer.seconds / n)
                found["the rest"].append(whole - sum(timer.seconds for timer in timers.values()) / n)
            for part, taken in found.items():
                yield f"{name}: {part}", statistics.median(taken)


class Timer:
    seconds = 0.0


@contextmanager
def timed(owner: object, name: str) -> Iterator[Timer]:
    """While it is open, the time spent in a function of `owner` is summed up."""
    function, timer = getattr(owner, name), Timer()
    own = name in vars(owner)

    def wrapper(*arguments, **named):
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            timer.seconds += time.perf_counter() - started

    setattr(owner, name, wrapper)
    try:
        yield timer
    finally:
        if own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)


def per_item(items: Iterator, skip: int = 0) -> float:
    """Seconds an item, from the one after the first `skip` on."""
    for _ in range(skip):
        next(items)
    n, started = 0, time.perf_counter()
    for _ in items:
        n += 1
    return (time.perf_counter() - started) / n


def read_from_disk() -> int:
    """Bytes that this process has had to get from a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def simulate(folder: Path, n_samples: int) -> None:
    """Shards of random samples of the real sizes."""
    rng = np.random.default_rng(0)
    shards = []
    for first in range(0, n_samples, SAMPLES_PER_SHARD):
        path = folder / shard_name("train", len(shards))
        n = write_shard(
            path, (simulated(rng, number) for number in range(first, min(first + SAMPLES_PER_SHARD, n_samples)))
        )
        entry = {"name": path.name, "split": "train", "samples": n, "bytes": path.stat().st_size}
        index = index_path(path)
        shards.append(
            entry | {"sha256": sha256_of_file(path), "index": index.name, "index_sha256": sha256_of_file(index)}
        )
    cell_types = [{"name": f"cell_{number}"} for number in range(CELL_TYPES)]
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": "simulated"}
    write_json(folder / MANIFEST, manifest | {"cell_types": cell_types, "shards": shards})


def simulated(rng: np.random.Generator, number: int) -> tuple[str, int, int, list[bytes]]:
    lengths = np.clip(rng.lognormal(np.log(REGION_BP) - 0.125, 0.5, REGIONS), 60, 3000).astype(np.int32)
    starts = np.cumsum(rng.integers(5000, 50_000, REGIONS))
    cell_type = int(rng.integers(CELL_TYPES))
    meta = {
        "cell_type": f"cell_{cell_type}",
        "chromosome": "chr1",
        "starts": starts.tolist(),
        "ends": (starts + lengths).tolist(),
        "index": number,
    }
    bases = rng.integers(0, 4, lengths.sum(), dtype=np.uint8)
    binding = rng.random((REGIONS, MOTIFS), dtype=np.float32).astype(np.float16)
    contents = [*map(npy_bytes, (bases, lengths, binding)), json.dumps(meta).encode()]
    return f"{number:09d}", cell_type, 0, contents


if __name__ == "__main__":
    main()
