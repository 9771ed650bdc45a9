"""Figures of held-out embeddings: how sequences match regions, and a map of [CLS] by cell type.

As a program it draws them and the run's curves, for `pretrain.drawing`.
"""

import json
import sys
import threading
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pretrain import curves
from pretrain.drawing import Embeddings
from pretrain.pre_emption import end_with
from pretrain.run_record import FIGURES, figure_path

IN_HEAT_MAP = 64  # samples
LARGEST_MAP = 2000  # points: seconds on one core
FEWEST_IN_MAP = 10
COMPONENTS = 30  # of the principal components that t-SNE takes
MOST_COLOURS = 20  # cell types with a colour of their own, the most frequent ones


def main() -> None:
    """The argument is a job of `Drawing`, as JSON."""
    job = json.loads(sys.argv[1])
    threading.Thread(target=end_with, args=(job["parent"],), daemon=True).start()
    curves.draw(Path(job["run_dir"]), job["global_batch"], job["k"])
    if job["embeddings"]:
        with np.load(job["embeddings"]) as arrays:
            embeddings = Embeddings(**(dict.fromkeys(("sequence", "region")) | dict(arrays)))
        draw(Path(job["run_dir"]), job["step"], embeddings)


def draw(run_dir: Path, step: int, embeddings: Embeddings) -> dict[str, Path]:
    """Draw an evaluation's figures into RUN_DIR/figures, over those of the same step; paths by name."""
    (run_dir / FIGURES).mkdir(exist_ok=True)
    drawn = {}
    if embeddings.region is not None:
        drawn["similarity"] = figure_path(run_dir, "similarity", step)
        draw_similarity(drawn["similarity"], step, embeddings)
    points = tsne(embeddings.cls[:LARGEST_MAP]) if len(embeddings.cls) >= FEWEST_IN_MAP else None
    if points is not None:
        drawn["tsne"] = figure_path(run_dir, "tsne", step)
        draw_map(drawn["tsne"], step, points, embeddings.cell_type[:LARGEST_MAP])
    return drawn


def draw_similarity(path: Path, step: int, embeddings: Embeddings) -> None:
    """Cosine of each sequence with each region, of the first samples, sorted by cell type; pairs on the diagonal."""
    order = np.argsort(embeddings.cell_type[:IN_HEAT_MAP], kind="stable")
    cosine = embeddings.sequence[order] @ embeddings.region[order].T
    cell_type = embeddings.cell_type[order]
    figure, axis = plt.subplots(figsize=(6.6, 5.6), layout="constrained")
    largest = max(float(np.nanmax(np.abs(cosine), initial=0)), 1e-3)
    image = axis.imshow(cosine, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    names, first, counts = np.unique(cell_type, return_index=True, return_counts=True)
    for edge in first[1:]:
        axis.axhline(edge - 0.5, color="black", lw=0.4)
        axis.axvline(edge - 0.5, color="black", lw=0.4)
    centres = first + (counts - 1) / 2
    axis.set_yticks(centres, [shortened(name) for name in names], fontsize=7)
    axis.set_xticks(centres, [shortened(name) for name in names], fontsize=7, rotation=90)
    axis.set(xlabel="regions' binding", ylabel="sequences")
    axis.set_title(f"step {step:,}: {len(order)} held-out pairs", fontsize=10)
    figure.colorbar(image, ax=axis, label="cosine", shrink=0.8)
    curves.save(figure, path)


def draw_map(path: Path, step: int, points: np.ndarray, cell_type: np.ndarray) -> None:
    """A map of [CLS], one point a sample, coloured by cell type. points: [n, 2]; cell_type: [n], names."""
    names, counts = np.unique(cell_type, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    figure, axis = plt.subplots(figsize=(7.4, 5.6), layout="constrained")
    others = ~np.isin(cell_type, names[:MOST_COLOURS])
    if others.any():
        axis.scatter(*points[others].T, s=9, lw=0, color="#bbbbbb", label=f"{len(names) - MOST_COLOURS} others")
    for name, colour in zip(names[:MOST_COLOURS], colours(min(len(names), MOST_COLOURS)), strict=True):
        axis.scatter(*points[cell_type == name].T, s=9, lw=0, color=colour, label=shortened(name))
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axis.set_title(f"step {step:,}: [CLS] of {len(points):,} held-out samples", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7, markerscale=2)
    curves.save(figure, path)


def tsne(vectors: np.ndarray) -> np.ndarray | None:
    """t-SNE (van der Maaten and Hinton 2008) of the principal components, always the same; [n, d] to [n, 2].

    None where all vectors are the same, or not all are finite.
    """
    n, d = vectors.shape
    centred = vectors - vectors.mean(0)
    spread = float(centred.std())
    if not 0 < spread < np.inf:
        return None
    components = PCA(min(COMPONENTS, n, d), random_state=0).fit_transform(centred / spread)
    start = np.zeros((n, 2), dtype=np.float32)
    start[:, : components.shape[1]] = components[:, :2] / components[:, 0].std() * 1e-4
    embedding = TSNE(perplexity=min(30.0, (n - 1) / 3), init=start, max_iter=500, random_state=0, n_jobs=1)
    return embedding.fit_transform(components)


def colours(n: int) -> list:
    """Paul Tol's, up to seven; above, matplotlib's 20."""
    if n <= 7:
        return ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#555555"][:n]
    return list(plt.get_cmap("tab20").colors[:n])


def shortened(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


if __name__ == "__main__":
    main()
