"""From each cell type's regions to samples: ten consecutive regions on one chromosome, and where the rest went."""

from dataclasses import dataclass

import numpy as np

from data_prep.peaks import Regions
from data_prep.shard_format import REGIONS_PER_SAMPLE

MAX_N_SHARE = 0.5  # a region with a larger share of letters outside ACGT is dropped


@dataclass(frozen=True)
class RegionCounts:
    """What became of one cell type's peaks: peaks = merged + over_n + remainder + in_samples."""

    peaks: int
    merged: int
    over_n: int
    remainder: int
    in_samples: int


@dataclass(frozen=True)
class Samples:
    """region: int64 [n, 10], rows of the table of distinct regions; cell_type, chromosome, index (within its cell
    type): int32 [n]."""

    region: np.ndarray
    cell_type: np.ndarray
    chromosome: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.cell_type)


def distinct_regions(by_cell_type: list[Regions]) -> tuple[Regions, list[np.ndarray]]:
    """All regions, each once, sorted, and for each cell type the rows of its own (merged, sorted) regions there."""
    table = np.concatenate(
        [np.stack([regions.chromosome, regions.start, regions.end], axis=1) for regions in by_cell_type]
    )
    distinct, row_of = np.unique(table, axis=0, return_inverse=True)
    bounds = np.cumsum([len(regions) for regions in by_cell_type])[:-1]
    chromosome, start, end = distinct.T
    names = by_cell_type[0].names
    return Regions(chromosome.astype(np.int32), start, end, names), np.split(row_of.ravel(), bounds)


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
        for name in np.unique(chromosome[rows]):
            here = rows[chromosome[rows] == name]
            n = len(here) // REGIONS_PER_SAMPLE
            region.append(here[: n * REGIONS_PER_SAMPLE].reshape(n, REGIONS_PER_SAMPLE))
            cell_type.append(np.full(n, number, np.int32))
            of_chromosome.append(np.full(n, name, np.int32))
            index.append(np.arange(in_cell_type, in_cell_type + n, dtype=np.int32))
            in_cell_type += n
    if not region:
        empty = np.zeros(0, np.int32)
        return Samples(np.zeros((0, REGIONS_PER_SAMPLE), np.int64), empty, empty, empty)
    return Samples(*map(np.concatenate, (region, cell_type, of_chromosome, index)))


def count_regions(
    peaks: list[Regions], rows_by_cell_type: list[np.ndarray], usable: np.ndarray, samples: Samples
) -> list[RegionCounts]:
    """Each cell type's balance of peaks."""
    counts = []
    for number, (regions, rows) in enumerate(zip(peaks, rows_by_cell_type, strict=True)):
        over_n = int((~usable[rows]).sum())
        in_samples = REGIONS_PER_SAMPLE * int((samples.cell_type == number).sum())
        counts.append(
            RegionCounts(
                peaks=len(regions),
                merged=len(regions) - len(rows),
                over_n=over_n,
                remainder=len(rows) - over_n - in_samples,
                in_samples=in_samples,
            )
        )
    return counts


def choose_validation(samples: Samples, names: tuple[str, ...]) -> list[str]:
    """The chromosome whose share of the samples is nearest to a twentieth; none where all lie on one chromosome."""
    chromosomes, counts = np.unique(samples.chromosome, return_counts=True)
    if len(chromosomes) < 2:
        return []
    return [names[chromosomes[np.argmin(np.abs(counts / counts.sum() - 0.05))]]]
