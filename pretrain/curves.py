"""curves.png: the losses and accuracies of a run, training and held-out, from metrics.jsonl."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pretrain.run_log import read_metrics

PANELS = (
    ("loss/total", "total loss"),
    ("loss/mgm", "masked genome modelling: loss (nats)"),
    ("loss/ngsp", "next genome segment: loss (nats)"),
    ("loss/srm", "sequence-region matching: loss (nats)"),
    ("mgm/accuracy", "masked k-mers predicted"),
    ("ngsp/accuracy", "next segments told from others"),
    ("srm/recall_at_1", "regions matched, first rank"),
    ("optim/lr", "learning rate"),
)


def draw(run_dir: Path, global_batch: int, k: int) -> Path | None:
    """Draw the run's curves, with held-out chance as a dotted line; None where nothing was logged yet."""
    rows = read_metrics(run_dir)
    if not rows:
        return None
    pool = next((1 / row["val/srm/chance"] for row in rows if "val/srm/chance" in row), global_batch)
    chance = {
        "loss/mgm": math.log(4**k),
        "loss/ngsp": math.log(2),
        "loss/srm": math.log(pool),
        "mgm/accuracy": 4.0**-k,
        "ngsp/accuracy": 0.5,
        "srm/recall_at_1": 1 / pool,
    }
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.2), layout="constrained")
    for axis, (name, title) in zip(axes.flat, PANELS, strict=True):
        for prefix, style in (("", {"color": "#4477aa", "lw": 1.0}), ("val/", {"color": "#ee6677", "marker": "o"})):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
            if points:
                axis.plot(*zip(*points, strict=True), **style, ms=3, label="held-out" if prefix else "training")
        if name in chance:
            axis.axhline(chance[name], ls=":", color="grey", label="chance")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[1].legend(frameon=False)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
