"""Stretches of the genome that are no promoters, as rich in G and C as those that are.

Each chromosome is cut into tiles, one window long, from a random base on; so no two negatives overlap. Tiles near a
transcription start site, or with N, are left out. Of the others as many are drawn, at random, from each bin of GC
content as there are promoters in it.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.bases import LETTERS, OTHER
from data_prep.errors import InputError
from data_prep.windows import MAX_N_SHARE

FAR = 1000  # bp between a negative and any transcription start site
GC_BINS = 50  # of 2% each
_G_OR_C = np.array([letter in "GC" for letter in LETTERS + "N"])


@dataclass(frozen=True)
class Tiles:
    """All fields [n]. chromosome: int32, in FASTA order; start: int64, bp; gc_bin: int64; key: float64, random."""

    chromosome: np.ndarray
    start: np.ndarray
    gc_bin: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> "Tiles":
        return Tiles(self.chromosome[rows], self.start[rows], self.gc_bin[rows], self.key[rows])

    def __add__(self, more: "Tiles") -> "Tiles":
        fields = ("chromosome", "start", "gc_bin", "key")
        return Tiles(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in fields))

    def by_bin(self) -> list[np.ndarray]:
        """Row numbers of each GC bin, in random order."""
        order = np.lexsort((self.key, self.gc_bin))
        return np.split(order, np.searchsorted(self.gc_bin[order], np.arange(1, GC_BINS)))

    def thinned(self, most: int) -> "Tiles":
        """Up to `most` of each GC bin, drawn at random."""
        return self.take(np.concatenate([rows[:most] for rows in self.by_bin()]))


def gc_bins(windows: np.ndarray) -> np.ndarray:
    """The bin of each window's share of G and C among its known letters, int64 [n], of codes [n, bp]."""
    known = np.maximum((windows != OTHER).sum(axis=1), 1)
    return np.minimum(GC_BINS * _G_OR_C[windows].sum(axis=1) // known, GC_BINS - 1)


def tiles(codes: np.ndarray, chromosome: int, start_sites: np.ndarray, length: int, rng: np.random.Generator) -> Tiles:
    """The tiles of `length` bp of a chromosome that may be negatives. start_sites: int64, sorted, bp."""
    first = int(rng.integers(length))
    whole = codes[first : first + max(len(codes) - first, 0) // length * length].reshape(-1, length)
    start = first + length * np.arange(len(whole), dtype=np.int64)
    key = rng.random(len(whole))
    before = np.searchsorted(start_sites, start - FAR)
    until = np.searchsorted(start_sites, start + length - 1 + FAR, side="right")
    rows = np.flatnonzero((before == until) & ((whole == OTHER).mean(axis=1) <= MAX_N_SHARE))
    return Tiles(np.full(len(rows), chromosome, np.int32), start[rows], gc_bins(whole[rows]), key[rows])


def matched(wanted: np.ndarray, tiles: Tiles, where: str) -> tuple[Tiles, int]:
    """As many tiles as there are `wanted` GC bins, int64 [n], and how many of them come from another bin: the nearest
    that has tiles left, where a bin has too few.

    Raises `InputError`, about `where`, with fewer tiles than are wanted.
    """
    if len(tiles) < len(wanted):
        raise InputError(
            f"{where}: has {len(tiles):,} stretches without N and over 1 kb from every start site, but {len(wanted):,} "
            "are wanted as negatives; give the whole genome, or fewer start sites"
        )
    quota = np.bincount(wanted, minlength=GC_BINS)
    taken = [rows[:n] for rows, n in zip(tiles.by_bin(), quota, strict=True)]
    left = [rows[n:] for rows, n in zip(tiles.by_bin(), quota, strict=True)]
    elsewhere = 0
    for number in range(GC_BINS):
        missing = quota[number] - len(taken[number])
        elsewhere += int(missing)
        for other in sorted(range(GC_BINS), key=lambda other: abs(other - number)):
            more, left[other] = left[other][:missing], left[other][missing:]
            taken.append(more)
            missing -= len(more)
    return tiles.take(np.concatenate(taken)), elsewhere
