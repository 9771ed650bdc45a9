"""Confidence intervals of scores, by resampling the rows that were scored."""

from collections.abc import Callable, Sequence

import numpy as np

LEVEL = 0.95


def intervals(
    score: Callable[[np.ndarray, np.ndarray], dict[str, float | bool]],
    targets: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Lower and upper bounds of the named scores: 95% percentile intervals (Efron and Tibshirani 1993, section 13.3).

    score: from targets [n, ...] and predictions [n, ...]; resamples of which it cannot be computed (of one class alone)
    are left out, and where all are, so is the interval.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        rows = rng.integers(len(targets), size=len(targets))
        if targets.ndim == 1 and len(np.unique(targets[rows])) < len(np.unique(targets)):
            continue
        one = score(targets[rows], predictions[rows])
        for name in names:
            if np.isfinite(one[name]):
                found[name].append(one[name])
    tail = (1 - LEVEL) / 2
    return {name: tuple(map(float, np.quantile(values, [tail, 1 - tail]))) for name, values in found.items() if values}
