"""The distinct regions of an atlas on disk: their bases, and their binding matrix, made chunk by chunk by processes.

A chunk is a stretch of neighbouring regions; it is the unit of work and of resuming. Chunks write to
their own places of one file, so that the files are the same whatever the number of processes and interruptions.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import workers
from data_prep.bases import OTHER
from data_prep.binding import Scanner
from data_prep.genome import Genome
from data_prep.peaks import Regions

_CHUNK_REGIONS = 8192
_CHUNK_BP = 8_000_000  # of regions in a chunk
_CHUNK_SPAN = 16_000_000  # bp of the chromosome that a chunk of bases is cut from


@dataclass(frozen=True)
class RegionStore:
    """Bases and binding matrix of sorted regions, in files of `folder`.

    bases.npy    uint8, the regions' base codes one after another: region i is bases[offset[i]:offset[i + 1]]
    others.npy   int32 [n], letters outside ACGT in each region
    binding.npy  float16 [n, n_motifs]
    """

    folder: Path
    regions: Regions
    offset: np.ndarray

    @classmethod
    def of(cls, folder: Path, regions: Regions) -> "RegionStore":
        """The store of `regions` (sorted, each once) in `folder`, whether its files are there yet or not."""
        return cls(folder, regions, np.concatenate([[0], np.cumsum(regions.end - regions.start)]))

    @property
    def bases(self) -> np.ndarray:
        """bases.npy, mapped."""
        return np.load(self.folder / "bases.npy", mmap_mode="r")

    @property
    def binding(self) -> np.ndarray:
        """binding.npy, mapped."""
        return np.load(self.folder / "binding.npy", mmap_mode="r")

    def chunks(self, stretches: bool) -> list["Chunk"]:
        """Chunks of at least one region, else within the bounds above; `stretches`: each on one chromosome."""
        start, chromosome = self.regions.start, self.regions.chromosome
        chunks, first = [], 0
        while first < len(self.regions):
            last = min(
                first + _CHUNK_REGIONS,
                int(np.searchsorted(self.offset, self.offset[first] + _CHUNK_BP, side="right")) - 1,
            )
            if stretches:
                last = min(last, int(np.searchsorted(chromosome, chromosome[first], side="right")))
                last = first + int(np.searchsorted(start[first:last], start[first] + _CHUNK_SPAN))
            last = max(last, first + 1)
            chunks.append((len(chunks), first, last))
            first = last
        return chunks

    def write_bases(self, genome: Genome, n_workers: int) -> np.ndarray:
        """Copy the regions' bases out of the FASTA; each region's share of letters outside ACGT, float64 [n]."""
        bases = _Table(self.folder / "bases.npy", np.uint8, (int(self.offset[-1]),))
        others = _Table(self.folder / "others.npy", np.int32, (len(self.regions),))
        context, tables = (self, genome, bases, others), [bases, others]
        self._each_chunk(self.chunks(stretches=True), _copy_bases, context, tables, n_workers, "reading the genome")
        return np.load(others.path) / np.diff(self.offset)

    def write_binding(self, scanner: Scanner, wanted: np.ndarray, n_workers: int) -> None:
        """Scan the regions that are `wanted` (bool [n]); the others' rows stay 0."""
        binding = _Table(self.folder / "binding.npy", np.float16, (len(self.regions), len(scanner.strands)))
        context = (self, scanner, wanted, self.bases, binding)
        self._each_chunk(self.chunks(stretches=False), _scan, context, [binding], n_workers, "scanning motifs")

    def _each_chunk(
        self, chunks: list["Chunk"], fill: Callable, context: tuple, tables: list["_Table"], n_workers: int, title: str
    ) -> None:
        """Have `fill` write each chunk that is not there yet; a byte a chunk in a file says which are."""
        record = tables[0].path.with_suffix(".chunks")
        if not all(path.exists() for path in (record, *(table.path for table in tables))):
            for table in tables:
                table.create()
            record.with_suffix(".new").write_bytes(bytes(len(chunks)))
            record.with_suffix(".new").rename(record)
        done = np.fromfile(record, dtype=bool)
        left = [chunk for chunk in chunks if not done[chunk[0]]]
        with (
            open(record, "r+b", buffering=0) as written,
            tqdm(total=len(self.regions), desc=title, unit="region", unit_scale=True, disable=None) as progress,
        ):
            progress.update(len(self.regions) - sum(last - first for _, first, last in left))
            for number, first, last in workers.unordered(fill, left, n_workers, context):
                written.seek(number)
                written.write(b"\1")
                progress.update(last - first)


@dataclass(frozen=True)
class _Table:
    """An `.npy` file whose rows are written in any order."""

    path: Path
    dtype: type
    shape: tuple[int, ...]

    def create(self) -> None:
        np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=self.shape)

    def write(self, first: int, rows: np.ndarray) -> None:
        """Put `rows` at row `first`; written rather than mapped, so that a full disk is an error and not a signal."""
        row_bytes = np.dtype(self.dtype).itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        with open(self.path, "r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.seek(first * row_bytes, os.SEEK_CUR)
            file.write(np.ascontiguousarray(rows, dtype=self.dtype))


Chunk = tuple[int, int, int]  # number, first row, last row (half-open)


def _copy_bases(context: tuple[RegionStore, Genome, _Table, _Table], chunk: Chunk) -> Chunk:
    store, genome, bases, others = context
    _, first, last = chunk
    start, end = store.regions.start[first:last], store.regions.end[first:last]
    low, high = int(start[0]), int(end.max())
    stretch = genome.codes(store.regions.names[store.regions.chromosome[first]], low, high)
    regions = [stretch[a:b] for a, b in zip(start - low, end - low, strict=True)]
    bases.write(int(store.offset[first]), np.concatenate(regions))
    others.write(first, np.array([np.count_nonzero(region == OTHER) for region in regions]))
    return chunk


def _scan(context: tuple[RegionStore, Scanner, np.ndarray, np.ndarray, _Table], chunk: Chunk) -> Chunk:
    store, scanner, wanted, bases, binding = context
    _, first, last = chunk
    rows = first + np.flatnonzero(wanted[first:last])
    affinities = np.zeros((last - first, binding.shape[1]), np.float16)
    if len(rows):
        affinities[rows - first] = scanner.scan([bases[store.offset[row] : store.offset[row + 1]] for row in rows])
    binding.write(first, affinities)
    return chunk


def binding_statistics(binding: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each motif's affinity, float64 [n_motifs], over all rows of the given samples.

    binding: float16 [n_regions, n_motifs]; regions: int [n_samples, 10], rows of `binding`.
    """
    uses = np.bincount(regions.ravel(), minlength=len(binding)).astype(np.float64)
    total, squares = np.zeros(binding.shape[1]), np.zeros(binding.shape[1])
    for first in range(0, len(binding), 4096):
        block = binding[first : first + 4096].astype(np.float64)
        weight = uses[first : first + 4096]
        total += weight @ block
        squares += weight @ block**2
    mean = total / uses.sum()
    return mean, np.sqrt(np.maximum(squares / uses.sum() - mean**2, 0.0))
