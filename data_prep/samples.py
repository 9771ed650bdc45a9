"""From each cell type's regions to samples: ten consecutive regions on one chromosome, and where the rest went."""

from dataclasses import dataclass

import numpy as np

from data_prep.atlas import PeakFile
from data_prep.peaks import Regions
from data_prep.shard_format import REGIONS_PER_SAMPLE

_SHIFT, _LOW = np.uint64(32), np.uint64(2**32 - 1)

MAX_N_SHARE = 0.5  # a region with a larger share of letters outside ACGT is dropped


@dataclass(frozen=True)
class RegionCounts:
    """What became of one cell type's peaks: `peaks` is the sum of all other fields."""

    peaks: int
    duplicate: int
    unknown_chromosome: int
    blacklisted: int
    merged: int
    over_n: int
    remainder: int
    in_samples: int


@dataclass(frozen=True)
class Samples:
    """region: int32 [n, 10], rows of the table of distinct regions; cell_type, chromosome, index (within its cell
    type): int32 [n]."""

    region: np.ndarray
    cell_type: np.ndarray
    chromosome: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.cell_type)


def distinct_regions(by_cell_type: list[Regions]) -> tuple[Regions, list[np.ndarray]]:
    """All regions, each once, sorted, and for each cell type the rows (int32) of its own regions there.

    Each cell type's regions come sorted and merged. One chromosome at a time, and start and end as one number of 64
    bits: a human atlas holds some 17 million regions of cell types.
    """
    names = by_cell_type[0].names
    bounds = [np.searchsorted(one.chromosome, np.arange(len(names) + 1, dtype=np.int32)) for one in by_cell_type]
    n, parts, rows = 0, [], [[np.zeros(0, np.int32)] for _ in by_cell_type]
    for number in np.unique(np.concatenate([np.unique(one.chromosome) for one in by_cell_type])):
        keys = []
        for one, bound in zip(by_cell_type, bounds, strict=True):
            here = slice(bound[number], bound[number + 1])
            keys.append(one.start[here].astype(np.uint64) << _SHIFT | one.end[here].astype(np.uint64))
        distinct = np.unique(np.concatenate(keys))
        for own, key in zip(rows, keys, strict=True):
            own.append((n + np.searchsorted(distinct, key)).astype(np.int32))
        parts.append((np.full(len(distinct), number, np.int32), distinct >> _SHIFT, distinct & _LOW))
        n += len(distinct)
    if not n:
        return by_cell_type[0], [np.concatenate(own) for own in rows]
    chromosome, start, end = map(np.concatenate, zip(*parts, strict=True))
    regions = Regions(chromosome, start.astype(np.int64), end.astype(np.int64), names)
    return regions, [np.concatenate(own) for own in rows]


def group(chromosome: np.ndarray, rows_by_cell_type: list[np.ndarray], usable: np.ndarray) -> Samples:
    """Samples of every cell type, in order of cell type and position.

    chromosome: int32 [n_distinct]; rows_by_cell_type: each cell type's rows, sorted by position; usable: bool
    [n_distinct], False for regions that no sample may hold. The last regions of a chromosome that make no full ten are
    left out.
    """
    region, cell_type, of_chromosome, index = [], [], [], []
    for number, rows in enumerate(rows_by_cell_type):
        rows = rows[usable[rows]]
        in_cell_type = 0
        names, counts = np.unique(chromosome[rows], return_counts=True)
        for name, here in zip(names, np.split(rows, np.cumsum(counts)[:-1]), strict=False):
            n = len(here) // REGIONS_PER_SAMPLE
            region.append(here[: n * REGIONS_PER_SAMPLE].reshape(n, REGIONS_PER_SAMPLE))
            cell_type.append(np.full(n, number, np.int32))
            of_chromosome.append(np.full(n, name, np.int32))
            index.append(np.arange(in_cell_type, in_cell_type + n, dtype=np.int32))
            in_cell_type += n
    if not region:
        empty = np.zeros(0, np.int32)
        return Samples(np.zeros((0, REGIONS_PER_SAMPLE), np.int32), empty, empty, empty)
    return Samples(*map(np.concatenate, (region, cell_type, of_chromosome, index)))


def count_regions(peaks: PeakFile, rows: np.ndarray, usable: np.ndarray, n_samples: int) -> RegionCounts:
    """One cell type's balance of peaks; rows: of its regions; n_samples: it gave."""
    over_n = int((~usable[rows]).sum())
    in_samples = REGIONS_PER_SAMPLE * n_samples
    return RegionCounts(
        peaks=peaks.peaks,
        duplicate=peaks.duplicate,
        unknown_chromosome=peaks.unknown_chromosome,
        blacklisted=peaks.blacklisted,
        merged=peaks.merged,
        over_n=over_n,
        remainder=len(rows) - over_n - in_samples,
        in_samples=in_samples,
    )


def choose_validation(samples: Samples, names: tuple[str, ...]) -> list[str]:
    """The chromosome whose share of the samples is nearest to a twentieth; none where all lie on one chromosome."""
    chromosomes, counts = np.unique(samples.chromosome, return_counts=True)
    if len(chromosomes) < 2:
        return []
    return [names[chromosomes[np.argmin(np.abs(counts / counts.sum() - 0.05))]]]
