"""Whether predicted risks mean what they say: Brier score, expected calibration error, the reliability diagram."""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from finetune.figures import COLOURS

BINS = 10  # of risk, of equal width


class Reliability(NamedTuple):
    """By bin of predicted risk, float64 [BINS]: people, their mean risk, and the share of cases; NaN of an empty bin's
    last two."""

    people: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def reliability(labels: np.ndarray, risk: np.ndarray) -> Reliability:
    """labels: [n], 1 for a case; risk: [n], in [0, 1]."""
    bin_ = np.minimum((risk * BINS).astype(np.int64), BINS - 1)
    people = np.bincount(bin_, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(bin_, risk, BINS) / people
        observed = np.bincount(bin_, labels, BINS) / people
    return Reliability(people, predicted, observed)


def scores(labels: np.ndarray, risk: np.ndarray) -> dict[str, float]:
    """Brier score, the mean square of risk - label; and expected calibration error (Naeini et al., 2015), the mean over
    people of the distance between predicted and observed in their bins."""
    bins = reliability(labels, risk)
    distance = np.nan_to_num(np.abs(bins.predicted - bins.observed))
    return {
        "brier": float(np.square(risk - labels).mean()),
        "ece": float((bins.people * distance).sum() / bins.people.sum()),
    }


def draw(path: Path, labels: np.ndarray, risks: dict[str, np.ndarray], title: str) -> None:
    """The reliability diagram of every model, and below it how many people each bin holds."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5.2, 6.2), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    above.plot([0, 1], [0, 1], ls=":", color="grey")
    width = 0.8 / BINS / len(risks)
    for number, ((name, risk), colour) in enumerate(zip(risks.items(), COLOURS, strict=False)):
        bins, found = reliability(labels, risk), scores(labels, risk)
        there = bins.people > 0
        label = f"{name} (Brier {found['brier']:.3f}, ECE {found['ece']:.3f})"
        above.plot(bins.predicted[there], bins.observed[there], "o-", ms=4, color=colour, label=label)
        left = (np.arange(BINS) + 0.1) / BINS + number * width
        below.bar(left, bins.people, width, align="edge", color=colour)
    above.axhline(labels.mean(), lw=0.8, color="lightgrey", zorder=0)
    above.set(ylabel="share of cases", xlim=(0, 1), ylim=(-0.02, 1.02))
    above.legend(frameon=False, fontsize=9, loc="lower right")
    below.set(xlabel="predicted risk", ylabel="people")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
