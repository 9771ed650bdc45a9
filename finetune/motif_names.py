"""Names for what a model reads: motifs that hit the windows of the highest scores more often than others."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import false_discovery_control, fisher_exact

from data_prep.bases import encode
from data_prep.binding import Scanner
from data_prep.motifs import Motif

WINDOW, FLANK = 12, 8  # bp that are scored; bp on each side of them that are scanned too
PER_SEQUENCE = 2  # windows, at most
RANDOM = 10  # drawn beside each window


@dataclass(frozen=True)
class Window:
    """A stretch of a sequence, half-open: number of the sequence, and bases in it."""

    sequence: int
    start: int
    end: int


def top_windows(scores: np.ndarray, width: int = WINDOW, most: int = PER_SEQUENCE) -> list[int]:
    """Starts of the windows with the highest mean absolute score, best first, none over another; at most `most`.
    scores: [bp]; one window of all bases where there are fewer than `width`."""
    means = sliding_window_view(np.abs(scores), min(width, len(scores))).mean(1)
    found: list[int] = []
    for start in np.argsort(-means, kind="stable").tolist():
        if all(abs(start - other) >= width for other in found):
            found.append(start)
        if len(found) == most:
            break
    return found


def windows_of(scores: list[np.ndarray]) -> list[Window]:
    """The top windows of each sequence, with their flanks as far as the sequence goes. scores: [bp] of each."""
    return [
        Window(number, max(start - FLANK, 0), min(start + WINDOW + FLANK, len(of_bases)))
        for number, of_bases in enumerate(scores)
        for start in top_windows(of_bases)
    ]


def random_windows(windows: list[Window], bp: list[int], rng: np.random.Generator) -> list[Window]:
    """RANDOM windows for each, as long, of the same sequence, anywhere in it. bp: of each sequence."""
    drawn = []
    for window in windows:
        size = window.end - window.start
        starts = rng.integers(0, bp[window.sequence] - size + 1, RANDOM)
        drawn += [Window(window.sequence, start, start + size) for start in starts.tolist()]
    return drawn


def name_scores(
    scores: dict[str, list[np.ndarray]], sequences: list[str], motifs: list[Motif], seed: int
) -> pd.DataFrame:
    """`name_windows` of each method's top windows, after a column `method`, all sorted by p. scores: by method, [bp] of
    each sequence."""
    scanner = Scanner.of(motifs, "hits")
    tables = {
        method: name_windows(windows_of(of_rows), sequences, motifs, scanner, np.random.default_rng(seed))
        for method, of_rows in scores.items()
    }
    table = pd.concat(tables, names=["method", None]).reset_index(level="method")
    return table.sort_values("p", kind="stable", ignore_index=True)


def name_windows(
    windows: list[Window], sequences: list[str], motifs: list[Motif], scanner: Scanner, rng: np.random.Generator
) -> pd.DataFrame:
    """A row for each motif, best first: windows that it hits (p < 1e-4, either strand), against random ones.

    scanner: of the motifs, by `hits`. Columns: matrix_id, name, windows, hit, random, random_hit, odds_ratio, p
    (Fisher's exact test, one-sided), q (Benjamini and Hochberg 1995, over the motifs).
    """
    others = random_windows(windows, [len(sequence) for sequence in sequences], rng)
    codes = [encode(sequence) for sequence in sequences]
    hit, random_hit = (
        (scanner.scan([codes[one.sequence][one.start : one.end] for one in some]) > 0).sum(0)
        for some in (windows, others)
    )
    n, m = len(windows), len(others)
    tests = [
        fisher_exact([[a, n - a], [b, m - b]], alternative="greater") for a, b in zip(hit, random_hit, strict=True)
    ]
    table = pd.DataFrame(
        {
            "matrix_id": [motif.matrix_id for motif in motifs],
            "name": [motif.name for motif in motifs],
            "windows": n,
            "hit": hit,
            "random": m,
            "random_hit": random_hit,
            "odds_ratio": [test.statistic for test in tests],
            "p": [test.pvalue for test in tests],
        }
    )
    table["q"] = false_discovery_control(table["p"])
    return table.sort_values("p", kind="stable", ignore_index=True)
