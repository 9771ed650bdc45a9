"""ROC and precision-recall curves of every model of a task, on one page."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def roc_and_pr(path: Path, labels: np.ndarray, scores: dict[str, np.ndarray], title: str) -> None:
    """Draw both curves. labels: [n], 0 or 1; scores: by model, [n], higher for class 1."""
    figure, (roc, pr) = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    for (name, score), colour in zip(scores.items(), COLOURS, strict=False):
        false_positive, true_positive, _ = roc_curve(labels, score)
        roc.plot(false_positive, true_positive, color=colour, label=f"{name} (AUC {roc_auc_score(labels, score):.3f})")
        precision, recall, _ = precision_recall_curve(labels, score)
        area = average_precision_score(labels, score)
        pr.plot(recall, precision, color=colour, label=f"{name} (AP {area:.3f})")
    roc.plot([0, 1], [0, 1], ls=":", color="grey")
    pr.axhline(labels.mean(), ls=":", color="grey")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    pr.set(xlabel="recall", ylabel="precision", title="precision-recall", ylim=(0, 1.02))
    for axis, place in ((roc, "lower right"), (pr, "lower left")):
        axis.legend(frameon=False, fontsize=9, loc=place)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
