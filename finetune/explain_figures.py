"""Figures of what a model reads: scores by position, letters of single rows, flipped L-mers, and named motifs."""

from functools import lru_cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, Bbox

from finetune.figures import COLOURS

LETTER_COLOURS = {"A": "#228833", "C": "#4477aa", "G": "#ccbb44", "T": "#ee6677"}
MOST_LETTERS = 80  # of a row that are drawn, around its highest scores
MOTIFS_SHOWN = 8  # of each method
SIGNIFICANT = 0.05  # q of a motif that is drawn full


def draw_profile(path: Path, profiles: dict[str, np.ndarray], first: int, title: str, axis_label: str) -> None:
    """Mean absolute score by position, a line for each method, the highest of each at 1. profiles: [positions] of each;
    first: what the first position is called."""
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for (name, profile), colour in zip(profiles.items(), COLOURS, strict=False):
        highest = np.nanmax(profile)
        scaled = profile / highest if highest > 0 else profile
        axis.plot(first + np.arange(len(profile)), scaled, color=colour, label=name, lw=1.2)
    axis.set(xlabel=axis_label, ylabel="mean absolute score,\nthe highest = 1", ylim=(0, 1.05), title=title)
    axis.margins(x=0)
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_examples(
    path: Path, rows: list[tuple[str, str, int, dict[str, np.ndarray]]], title: str, axis_label: str
) -> None:
    """The letters of rows, as high as their scores, a track for each method. rows: (name, sequence, what its first
    position is called, [bp] by method); of a longer row the 80 bp with the highest scores."""
    methods = list(rows[0][3])
    n = len(rows) * len(methods)
    figure, axes = plt.subplots(n, 1, figsize=(13, 1.15 * n + 0.8), layout="constrained", squeeze=False)
    for number, (axis, (name, sequence, first, scores)) in enumerate(
        zip(axes.ravel(), [row for row in rows for _ in methods], strict=True)
    ):
        method = methods[number % len(methods)]
        start = brightest(list(scores.values()), MOST_LETTERS)
        shown = slice(start, start + MOST_LETTERS)
        draw_letters(axis, sequence[shown], scores[method][shown], first + start)
        axis.set_ylabel(method, fontsize=8)
        if number % len(methods) == 0:
            axis.set_title(name, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel(axis_label)
    figure.suptitle(title)
    _save(figure, path)


def brightest(scores: list[np.ndarray], width: int) -> int:
    """Start of the window in which all methods together score highest, each weighing alike. scores: [bp] of each."""
    scaled = sum(np.abs(one) / max(np.abs(one).max(), 1e-12) for one in scores)
    if len(scaled) <= width:
        return 0
    return int(np.convolve(scaled, np.ones(width), mode="valid").argmax())


def draw_letters(axis: Axes, sequence: str, scores: np.ndarray, first: int) -> None:
    """Letters of the height of their scores, negative ones below zero; the first stands at position `first`."""
    for place, (letter, score) in enumerate(zip(sequence, scores.tolist(), strict=True), first):
        if score and letter in LETTER_COLOURS:
            outline, box = _letter(letter)
            fit = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, score / box.height)
            shape = fit.translate(place - 0.45, 0).transform_path(outline)
            axis.add_patch(PathPatch(shape, color=LETTER_COLOURS[letter], lw=0))
    low, high = min(scores.min(), 0), max(scores.max(), 0)
    axis.set_ylim(*((low * 1.05, high * 1.05) if high > low else (0, 1)))
    axis.set_xlim(first - 0.6, first + max(len(sequence), 1) - 0.4)
    axis.axhline(0, color="grey", lw=0.5)
    axis.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axis.tick_params(labelsize=7)
    axis.yaxis.set_major_locator(MaxNLocator(2))
    axis.spines[["top", "right"]].set_visible(False)


@lru_cache
def _letter(letter: str) -> tuple[TextPath, Bbox]:
    outline = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    return outline, outline.get_extents()


def draw_location(path: Path, change: np.ndarray, first: int, title: str, axis_label: str, what: str) -> None:
    """Mean absolute change of the prediction where L-mers are flipped. change: [L, positions], NaN where none fits;
    first: what the first position is called."""
    figure, axis = plt.subplots(figsize=(10, 2.9), layout="constrained")
    longest, positions = change.shape
    image = axis.imshow(
        change,
        aspect="auto",
        origin="lower",
        cmap="viridis",
        interpolation="nearest",
        extent=(first - 0.5, first + positions - 0.5, 0.5, longest + 0.5),
    )
    axis.set(xlabel=axis_label, ylabel="L (bp flipped)", title=title, yticks=range(1, longest + 1))
    figure.colorbar(image, ax=axis, label=f"mean absolute change\nof {what}")
    _save(figure, path)


def draw_motifs(path: Path, table: pd.DataFrame, title: str) -> None:
    """The best motifs of each method by -log10 p. table: as motifs.tsv."""
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(1, len(methods), figsize=(4.4 * len(methods), 3.4), layout="constrained", squeeze=False)
    for axis, method, colour in zip(axes.ravel(), methods, COLOURS, strict=False):
        best = table[table["method"] == method].head(MOTIFS_SHOWN)[::-1]
        bars = axis.barh(np.arange(len(best)), -np.log10(best["p"].clip(lower=1e-300)), color=colour)
        for bar, q in zip(bars, best["q"], strict=True):
            bar.set_alpha(1.0 if q < SIGNIFICANT else 0.3)
        names = [f"{name} ({matrix})" for name, matrix in zip(best["name"], best["matrix_id"], strict=True)]
        axis.set_yticks(np.arange(len(best)), names, fontsize=7)
        axis.set_xlim(0, None if (best["p"] < 1).any() else 1)
        axis.set_title(f"{method}: {int(best['windows'].iloc[0])} windows", fontsize=9)
        axis.set_xlabel(f"-log10 p (pale: q of {SIGNIFICANT:g} or more)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
