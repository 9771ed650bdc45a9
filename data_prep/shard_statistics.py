"""The numbers of `inspect`: region lengths, GC content, and how specific each motif is for each cell type.

The specificity of a motif for a cell type is a standardised mean difference (Cohen's d): its mean affinity over the
cell type's regions, minus that over the regions of all other cell types, in units of their pooled standard deviation.
A region counts once for each cell type that it is accessible in, so what cell types share pulls the difference to zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from data_prep.bases import LETTERS, OTHER
from data_prep.shard_format import REGIONS_PER_SAMPLE, Sample

CHANCE = 0.05  # that any motif's difference is as large as `by_chance`


@dataclass(frozen=True)
class Statistics:
    """Of the samples read. c cell types, m motifs, r regions.

    cell_type, length, gc, other: int64 [r], each region's cell type, bp, bases G or C, and letters outside ACGT;
    total, squares: float64 [c, m], sums of the affinities and of their squares.
    """

    cell_type: np.ndarray
    length: np.ndarray
    gc: np.ndarray
    other: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @property
    def regions(self) -> np.ndarray:
        """Regions of each cell type, int64 [c]."""
        return np.bincount(self.cell_type, minlength=len(self.total))

    @property
    def gc_share(self) -> np.ndarray:
        """Each region's share of G and C among its letters ACGT, float64 [r]; NaN for one of N alone."""
        known = self.length - self.other
        return np.where(known > 0, self.gc / np.maximum(known, 1), np.nan)


def read_statistics(samples: Iterable[tuple[int, Sample]], n_cell_types: int, n_motifs: int) -> Statistics:
    """Statistics of samples given with their cell type's number; one sample in memory at a time."""
    total, squares = np.zeros((n_cell_types, n_motifs)), np.zeros((n_cell_types, n_motifs))
    cell_types, lengths, gc, other = [], [], [], []
    for cell_type, sample in samples:
        binding = sample.binding.astype(np.float64)
        total[cell_type] += binding.sum(axis=0)
        squares[cell_type] += (binding**2).sum(axis=0)
        cell_types.append(cell_type)
        lengths.append(sample.lengths)
        of_gc, of_other = composition(sample.bases, sample.lengths)
        gc.append(of_gc)
        other.append(of_other)
    of_region = np.repeat(np.array(cell_types, dtype=np.int64), REGIONS_PER_SAMPLE)
    per_region = (np.concatenate(values).astype(np.int64) for values in (lengths, gc, other))
    return Statistics(of_region, *per_region, total, squares)


def composition(bases: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bases G or C, and letters outside ACGT, of each region: int64 [len(lengths)] both.

    bases: uint8 [sum(lengths)], the regions' base codes one after another.
    """
    ends = np.cumsum(lengths)
    is_gc = (bases == LETTERS.index("G")) | (bases == LETTERS.index("C"))
    sums = [np.concatenate([[0], np.cumsum(letter)])[np.append(0, ends)] for letter in (is_gc, bases == OTHER)]
    return np.diff(sums[0]), np.diff(sums[1])


def specificity(regions: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Cohen's d of every motif's affinity, each cell type's regions against those of all others, float64 [c, m].

    regions: int64 [c]; total, squares: float64 [c, m], sums of affinities and of their squares. d is the difference of
    the two means over sqrt((SS + SS') / (n + n' - 2)), SS the sums of squared deviations from each mean. It is 0 where
    nothing varies, and NaN for a cell type with no regions, or where no other has any.
    """
    n = regions[:, None].astype(np.float64)
    rest = n.sum(axis=0) - n
    others, other_squares = total.sum(axis=0) - total, squares.sum(axis=0) - squares
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = squares - total**2 / n + other_squares - others**2 / rest
        pooled = np.sqrt(np.maximum(deviation, 0.0) / (n + rest - 2))
        difference = total / n - others / rest
        return np.where(pooled > 1e-6, difference / pooled, np.where(np.isnan(difference), np.nan, 0.0))


def by_chance(regions: np.ndarray, n_motifs: int) -> np.ndarray:
    """The size that the largest of `n_motifs` differences has with a chance of 5% where there are none, float64 [c].

    Bonferroni's bound, for independent regions: the normal quantile at 0.05 / 2m, times sqrt(1 / n + 1 / n').
    """
    rest = regions.sum() - regions
    with np.errstate(divide="ignore"):
        return -NormalDist().inv_cdf(CHANCE / (2 * n_motifs)) * np.sqrt(1.0 / regions + 1.0 / rest)
