"""Binding affinity of regions to transcription factors, by scanning PSSMs over both strands with lightmotif.

lightmotif scores 32 stretches of sequence at once, one a SIMD column. Regions of about one length are laid into those
columns, each followed by N up to a common length: a window over N scores minus infinity, so nothing leaks from a region
to the next one, and a region's affinity is a reduction down its part of a column.
"""

from collections.abc import Callable
from dataclasses import dataclass

import lightmotif
import numpy as np

from data_prep.motifs import Motif

AFFINITIES = ("max", "occupancy", "hits")
HIT_P_VALUE = 1e-4

_COLUMNS = 32  # of lightmotif's striped layout
_BLOCK = 16  # a region's padded length is a multiple of this, for a reduction in two wide steps
_ROWS = 1024  # regions share a column up to about this many rows, to spread the cost of a call
_LETTERS = np.frombuffer(b"ATCGN", dtype=np.uint8)


@dataclass(frozen=True)
class Scanner:
    """Scans regions with a set of motifs.

    affinity:
      `max`        maximum log-odds over positions and strands, over the motif's own maximum, clipped to [0, 1]
      `occupancy`  log2 of the sum over positions and strands of 2**log-odds, clipped below at 0
      `hits`       number of positions and strands that score at p < 1e-4
    A region without a single window free of N has affinity 0.
    """

    strands: list[tuple[lightmotif.ScoringMatrix, lightmotif.ScoringMatrix]]
    maxima: np.ndarray
    thresholds: np.ndarray
    affinity: str

    @classmethod
    def of(cls, motifs: list[Motif], affinity: str = "max") -> "Scanner":
        forward = [_scoring_matrix(motif) for motif in motifs]
        thresholds = [pssm.score(HIT_P_VALUE) for pssm in forward] if affinity == "hits" else [0.0] * len(motifs)
        return cls(
            strands=[(pssm, pssm.reverse_complement()) for pssm in forward],
            maxima=np.array([motif.log_odds.max(axis=0).sum() for motif in motifs], dtype=np.float32),
            thresholds=np.array(thresholds, dtype=np.float32),
            affinity=affinity,
        )

    def scan(self, regions: list[np.ndarray]) -> np.ndarray:
        """Affinities, float16 [len(regions), n_motifs], of regions given as base codes (uint8)."""
        length = padded_length(max(map(len, regions)))
        per_column = -(-len(regions) // _COLUMNS)
        letters = np.full((_COLUMNS * per_column, length), ord("N"), dtype=np.uint8)
        for row, codes in zip(letters, regions, strict=False):
            row[: len(codes)] = _LETTERS[codes]
        striped = lightmotif.stripe(letters.tobytes().decode("ascii"))
        shape = (per_column, length // _BLOCK, _BLOCK, _COLUMNS)
        reduced = np.stack([self._reduce(motif, striped, shape) for motif in range(len(self.strands))])
        by_region = reduced.transpose(2, 1, 0).reshape(_COLUMNS * per_column, len(self.strands))
        return self._finish(by_region[: len(regions)]).astype(np.float16)

    def _reduce(self, motif: int, striped: lightmotif.StripedSequence, shape: tuple[int, ...]) -> np.ndarray:
        """One motif's scores over both strands, reduced to [regions per column, columns]."""
        forward, reverse = (np.asarray(pssm.calculate(striped)).T for pssm in self.strands[motif])
        if self.affinity == "max":
            return np.maximum(_down_columns(np.max, forward, shape), _down_columns(np.max, reverse, shape))
        if self.affinity == "occupancy":
            forward, reverse = np.exp2(forward), np.exp2(reverse)
        else:
            forward, reverse = forward >= self.thresholds[motif], reverse >= self.thresholds[motif]
        return _down_columns(np.sum, forward, shape) + _down_columns(np.sum, reverse, shape)

    def _finish(self, reduced: np.ndarray) -> np.ndarray:
        if self.affinity == "max":
            return np.clip(reduced / self.maxima, 0.0, 1.0)
        if self.affinity == "occupancy":
            return np.log2(np.maximum(reduced, 1.0))
        return reduced


def padded_length(length: int) -> int:
    """Rows that a region of `length` bp takes in a column: at least one N after it, a multiple of 16."""
    return -(-(length + 1) // _BLOCK) * _BLOCK


def batches_by_length(lengths: np.ndarray) -> list[np.ndarray]:
    """Row numbers of regions in batches for `Scanner.scan`: of similar length, about 32 columns of 1024 rows each."""
    order = np.argsort(lengths, kind="stable")[::-1]
    batches, first = [], 0
    while first < len(order):
        size = _COLUMNS * max(1, _ROWS // padded_length(int(lengths[order[first]])))
        batches.append(order[first : first + size])
        first += size
    return batches


def _down_columns(reduce: Callable, scores: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    per_column, blocks, block, columns = shape
    wide = reduce(scores.reshape(per_column, blocks, block * columns), axis=1)
    return reduce(wide.reshape(per_column, block, columns), axis=1)


def _scoring_matrix(motif: Motif) -> lightmotif.ScoringMatrix:
    values = {letter: row.tolist() for letter, row in zip("ACGT", motif.log_odds, strict=True)}
    return lightmotif.ScoringMatrix({**values, "N": [-np.inf] * motif.counts.shape[1]})
