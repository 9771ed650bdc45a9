"""What is predicted of expression: the error in each tissue beside the constant mean's, and genes one by one."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from finetune.figures import COLOURS
from finetune.task import Scores, Table


def draw(
    path: Path,
    table: Table,
    predictions: dict[str, np.ndarray],
    scores: dict[str, Scores],
    floor: Scores,
    title: str,
) -> None:
    """Above, bars of the error of log(TPM + 1) by tissue and model, with lines at that of the constant mean; below,
    predicted against measured of each model, all genes in all tissues. predictions: [n, tissues]; floor: the constant
    mean's scores."""
    shown = [name for name in predictions if name != "mean"] or list(predictions)
    tissues, targets = table.target.outputs, table.test.targets
    figure = plt.figure(figsize=(max(9.0, 2.4 * len(shown)), 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    bars, width = above.subplots(), 0.8 / len(shown)
    levels = [floor[f"mse_log/{tissue}"] for tissue in tissues]
    highest = max(levels)
    for number, name in enumerate(shown):
        places = np.arange(len(tissues)) + (number - (len(shown) - 1) / 2) * width
        heights = [scores[name][f"mse_log/{tissue}"] for tissue in tissues]
        highest = max(highest, *heights)
        bars.bar(places, heights, width, color=COLOURS[number % len(COLOURS)], label=name)
    bars.hlines(levels, np.arange(len(tissues)) - 0.45, np.arange(len(tissues)) + 0.45, color="black", label="mean")
    bars.set_xticks(np.arange(len(tissues)), tissues)
    bars.set(ylabel="MSE of log(TPM + 1)", ylim=(0, min(1.2 * highest, 3 * max(levels))))
    bars.legend(frameon=False, fontsize=9, ncols=len(shown) + 1, loc="upper center")
    bars.spines[["top", "right"]].set_visible(False)

    top = 1.05 * float(targets.max()) or 1.0
    axes = below.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=True):
        extent = (0, top, 0, top)
        axis.hexbin(targets.ravel(), predictions[name].ravel(), gridsize=40, bins="log", extent=extent, cmap="Blues")
        axis.plot([0, top], [0, top], ls=":", color="grey")
        axis.set(title=f"{name} (R² {scores[name]['r2']:.3f})", xlabel="measured", xlim=(0, top), ylim=(0, top))
        axis.set_box_aspect(1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("predicted log(TPM + 1)")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
