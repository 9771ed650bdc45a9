"""Windows of one length around sites of a genome, as letters on their strands. Coordinates are 0-based half-open."""

from dataclasses import dataclass

import numpy as np

from data_prep.bases import OTHER, decode, reverse_complement
from data_prep.genome import Genome
from data_prep.peaks import Regions, place, read_regions

MAX_N_SHARE = 0.05  # of a window's letters that are none of ACGT


@dataclass(frozen=True)
class Sites:
    """Intervals of a file on the genome, in its order.

    regions: with chromosomes in FASTA order; rows: int64, the number of each in the file; unknown: chromosomes that
    the FASTA lacks, with their intervals, which are left out.
    """

    regions: Regions
    rows: np.ndarray
    unknown: dict[str, int]

    @classmethod
    def read(cls, path: str, genome: Genome) -> "Sites":
        """Raises `InputError` for a line that is no interval, and for one past its chromosome's end."""
        given = read_regions(path)
        regions, _, unknown = place(given, genome, path)
        known = np.array([name not in unknown for name in given.names], bool)
        rows = np.flatnonzero(known[given.chromosome]) if len(given) else np.zeros(0, np.int64)
        return cls(regions, rows, unknown)


def fitting(codes: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [n] each: which windows of `length` bp lie on the chromosome `codes`, and which are too much N."""
    on = (starts >= 0) & (starts + length <= len(codes))
    over_n = np.zeros(len(starts), bool)
    over_n[on] = (windows(codes, starts[on], length) == OTHER).mean(axis=1) > MAX_N_SHARE
    return on, over_n


def windows(codes: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """uint8 [n, length], of windows that lie on the chromosome."""
    return codes[starts[:, None] + np.arange(length)]


def letters(codes: np.ndarray, starts: np.ndarray, strands: np.ndarray, length: int) -> list[str]:
    """Each window 5' to 3' on its strand, +1 or -1."""
    return [
        decode(window if strand > 0 else reverse_complement(window))
        for window, strand in zip(windows(codes, starts, length), strands.tolist(), strict=True)
    ]
