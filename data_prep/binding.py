"""Binding affinity of regions to transcription factors, by scanning PSSMs over both strands with lightmotif.

lightmotif scores 32 stretches of sequence at once, one a SIMD column. Regions of about one length are laid into those
columns, each followed by N up to a common length: a window over N scores minus infinity, so nothing leaks from a region
to the next one, and a region's affinity is a reduction down its part of a column. A long region is cut into pieces that
overlap by what the widest motif needs, so that memory does not grow with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import lightmotif
import numpy as np

from data_prep.motifs import Motif

HIT_P_VALUE = 1e-4
_ENUMERATED = 8  # columns of a motif whose sites are all scored for its threshold

_COLUMNS = 32  # of lightmotif's striped layout
_BLOCK = 16  # a piece's padded length is a multiple of this: a reduction down a column goes in two wide steps
_ROWS = 4096  # pieces share a column up to about this many rows: the scores of a call stay in the L2 cache
_SIMILAR = 0.9  # of the longest piece's length: a batch of few pieces takes none much shorter
_STARTS = 4096  # window starts in a piece of a long region
_STEP = 2.0**-14  # log-odds are rounded to it: sums of up to 64 are exact in float32, whatever their order
_LETTERS = np.frombuffer(b"ATCGN", dtype=np.uint8)


@dataclass(frozen=True)
class Scanner:
    """Scans regions with a set of motifs.

    affinity:
      `max`        maximum log-odds over positions and strands, over the motif's own maximum, clipped to [0, 1]
      `occupancy`  log2 of the sum over positions and strands of 2**log-odds, clipped below at 0
      `hits`       number of positions and strands that score at p < 1e-4, 65,504 at most
    A region without a single window free of N has affinity 0; by `max`, so has any region for a flat motif.
    """

    strands: list[tuple[lightmotif.ScoringMatrix, lightmotif.ScoringMatrix]]
    maxima: np.ndarray
    thresholds: np.ndarray
    widest: int
    affinity: str

    @classmethod
    def of(cls, motifs: list[Motif], affinity: str = "max") -> "Scanner":
        log_odds = [np.round(motif.log_odds / _STEP) * _STEP for motif in motifs]
        thresholds = [hit_threshold(values) for values in log_odds] if affinity == "hits" else []
        forward = [_scoring_matrix(values) for values in log_odds]
        return cls(
            strands=[(pssm, pssm.reverse_complement()) for pssm in forward],
            maxima=np.array([values.max(axis=0).sum() for values in log_odds], dtype=np.float32),
            thresholds=np.array(thresholds, dtype=np.float32),
            widest=max(motif.counts.shape[1] for motif in motifs),
            affinity=affinity,
        )

    def scan(self, regions: list[np.ndarray]) -> np.ndarray:
        """Affinities, float16 [len(regions), n_motifs], of regions given as base codes (uint8)."""
        pieces = [
            region[start : start + _STARTS + self.widest - 1]
            for region in regions
            for start in range(0, max(len(region), 1), _STARTS)
        ]
        first_piece = np.cumsum([0, *(-(-max(len(region), 1) // _STARTS) for region in regions[:-1])])
        reduced = np.empty((len(pieces), len(self.strands)), dtype=np.float32)
        for batch in _batches_by_length(np.array([len(piece) for piece in pieces])):
            reduced[batch] = self._reduce_pieces([pieces[number] for number in batch])
        if len(pieces) > len(regions):
            across = np.maximum if self.affinity == "max" else np.add
            reduced = across.reduceat(reduced, first_piece, axis=0)
        return self._finish(reduced).astype(np.float16)

    def _reduce_pieces(self, pieces: list[np.ndarray]) -> np.ndarray:
        """Scores of pieces of about one length, reduced over positions and strands: float32 [n, n_motifs]."""
        length = padded_length(max(map(len, pieces)))
        per_column = -(-len(pieces) // _COLUMNS)
        letters = np.full((_COLUMNS * per_column, length), ord("N"), dtype=np.uint8)
        for row, codes in zip(letters, pieces, strict=False):
            row[: len(codes)] = _LETTERS[codes]
        striped = lightmotif.stripe(letters.tobytes().decode("ascii"))
        shape = (per_column, length // _BLOCK, _BLOCK * _COLUMNS)
        by_motif = np.stack([self._reduce(motif, striped, shape) for motif in range(len(self.strands))])
        return by_motif.transpose(2, 1, 0).reshape(_COLUMNS * per_column, -1)[: len(pieces)]

    def _reduce(self, motif: int, striped: lightmotif.StripedSequence, shape: tuple[int, ...]) -> np.ndarray:
        """One motif's scores over both strands, reduced to [pieces per column, columns]."""
        scores = [np.asarray(pssm.calculate(striped)).T.reshape(shape) for pssm in self.strands[motif]]
        # Rows past _STARTS are the next piece's.
        scores = [strand[:, : _STARTS // _BLOCK] for strand in scores]
        if self.affinity == "max":
            # Floats from 0 up are ordered as their bits are, and reduce faster so; what is below 0 will be clipped.
            combine, terms = np.maximum, [strand.view(np.int32) for strand in scores]
        elif self.affinity == "occupancy":
            # In units of the best site's odds, which alone may pass what a float32 holds.
            combine, terms = np.add, [np.exp2(strand - self.maxima[motif]) for strand in scores]
        else:
            combine, terms = np.add, [(strand >= self.thresholds[motif]).astype(np.float32) for strand in scores]
        forward, reverse = (combine.reduce(strand, axis=1) for strand in terms)
        wide = combine(forward, reverse).reshape(shape[0], _BLOCK, _COLUMNS)
        return combine.reduce(wide, axis=1).view(np.float32)

    def _finish(self, reduced: np.ndarray) -> np.ndarray:
        if self.affinity == "max":
            return np.clip(np.maximum(reduced, 0.0) / np.where(self.maxima > 0, self.maxima, np.inf), 0.0, 1.0)
        if self.affinity == "occupancy":
            odds = np.log2(np.maximum(reduced, np.finfo(np.float32).tiny)) + self.maxima
            return np.where(reduced > 0, np.maximum(odds, 0.0), 0.0)
        return np.minimum(reduced, np.finfo(np.float16).max)


def padded_length(length: int) -> int:
    """Rows that a piece of `length` bp takes in a column: at least one N after it, a multiple of 16."""
    return -(-(length + 1) // _BLOCK) * _BLOCK


def _batches_by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Piece numbers in batches of similar length: whole sets of 32 columns, of up to about 4096 rows."""
    order = np.argsort(lengths, kind="stable")[::-1]
    descending = -lengths[order]
    first = 0
    while first < len(order):
        longest = lengths[order[first]]
        most = max(1, _ROWS // padded_length(int(longest)))
        similar = np.searchsorted(descending, -_SIMILAR * longest, side="right") - first
        size = _COLUMNS * min(most, max(1, round(similar / _COLUMNS)))
        yield order[first : first + size]
        first += size


def hit_threshold(log_odds: np.ndarray) -> float:
    """The score that fewer than 1 in 10,000 random sites reach; infinite where the best site is no rarer than that.

    log_odds: float64 [4, width]. Exact for widths up to 8, whose sites are few; by lightmotif's distribution beyond.
    """
    if log_odds.shape[1] > _ENUMERATED:
        return _scoring_matrix(log_odds).score(HIT_P_VALUE)
    sites = np.zeros(1)
    for column in log_odds.T:
        sites = np.add.outer(sites, column).ravel()
    scores, counts = np.unique(sites, return_counts=True)
    share = np.cumsum(counts[::-1])[::-1] / len(sites)  # of the sites that reach each score
    rare = int((share >= HIT_P_VALUE).sum())
    return scores[rare - 1 : rare + 1].mean() if rare < len(scores) else np.inf


def _scoring_matrix(log_odds: np.ndarray) -> lightmotif.ScoringMatrix:
    values = {letter: row.tolist() for letter, row in zip("ACGT", log_odds, strict=True)}
    return lightmotif.ScoringMatrix({**values, "N": [-np.inf] * log_odds.shape[1]})
