"""curves.png: the losses, accuracies and rates of a run, training and held-out, from metrics.jsonl."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pretrain.run_record import read_metrics

LEARNING = (
    ("loss/total", "total loss"),
    ("loss/mgm", "masked genome modelling: loss (nats)"),
    ("loss/ngsp", "next genome segment: loss (nats)"),
    ("loss/srm", "sequence-region matching: loss (nats)"),
    ("optim/lr", "learning rate"),
    ("mgm/accuracy", "masked k-mers predicted"),
    ("ngsp/accuracy", "next segments told from others"),
    ("srm/recall_at_1", "regions matched, first rank"),
    ("optim/grad_norm", "gradient norm"),
)
SAMPLES_PER_SECOND = ("perf/samples_per_s", "samples per second")
THROUGHPUT = (
    SAMPLES_PER_SECOND,
    ("perf/tokens_per_s", "tokens per second"),
    ("perf/mfu", "MFU (share of the peak)"),
    ("perf/data_wait_share", "share of time waiting for data"),
    ("perf/memory_gib", "peak memory of a rank (GiB)"),
)
TRAINING = {"color": "#4477aa", "lw": 1.0}
HELD_OUT = {"color": "#ee6677", "marker": "o"}


def draw(run_dir: Path, global_batch: int, k: int | None) -> Path | None:
    """Draw the run's curves, with held-out chance as a dotted line; None where nothing was logged yet.

    k: of the k-mers that are masked; None where other tokens are, of which chance is not known.
    """
    rows = read_metrics(run_dir)
    figure = drawn(rows, (*LEARNING, SAMPLES_PER_SECOND), chance_levels(rows, global_batch, k))
    if figure is None:
        return None
    path = run_dir / "curves.png"
    save(figure, path)
    return path


def save(figure: Figure, path: Path) -> None:
    """As PNG; the file is there whole, or as it was before."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    plt.close(figure)


def chance_levels(rows: list[dict], global_batch: int, k: int | None) -> dict[str, float]:
    """What guessing would give of each metric on held-out data."""
    pool = next((1 / row["val/srm/chance"] for row in rows if "val/srm/chance" in row), global_batch)
    chance = {
        "loss/ngsp": math.log(2),
        "loss/srm": math.log(pool),
        "ngsp/accuracy": 0.5,
        "srm/recall_at_1": 1 / pool,
    }
    return chance | ({"loss/mgm": math.log(4**k), "mgm/accuracy": 4.0**-k} if k else {})


def drawn(rows: list[dict], panels: tuple[tuple[str, str], ...], chance: dict[str, float]) -> Figure | None:
    """A panel for each metric that some row holds, five in a line; None where no row holds any."""
    panels = tuple((name, title) for name, title in panels if any(name in row or f"val/{name}" in row for row in rows))
    if not panels:
        return None
    columns = min(5, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 3.1 * lines), layout="constrained")
    axes = [axes] if len(panels) == 1 else list(axes.flat)
    for axis, (name, title) in zip(axes, panels, strict=False):
        for prefix, style in (("", TRAINING), ("val/", HELD_OUT)):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
            if points:
                axis.plot(*zip(*points, strict=True), **style, ms=3, label="held-out" if prefix else "training")
        if name in chance:
            axis.axhline(chance[name], ls=":", color="grey", label="chance")
        if name.startswith("perf/"):
            axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    with_most = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    if len(with_most.get_legend_handles_labels()[0]) > 1:
        with_most.legend(frameon=False)
    return figure
