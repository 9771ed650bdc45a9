"""The figures of `inspect`: an overview of the shards, their most specific motifs, and one sample's binding matrix."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from scipy.cluster.hierarchy import leaves_list, linkage

from data_prep.shard_format import SPLITS, Sample
from data_prep.shard_statistics import Statistics

TRAIN = {"color": "#4477aa", "label": "training"}
VAL = {"color": "#ee6677", "label": "validation", "hatch": "///", "edgecolor": "white", "linewidth": 0}
AFFINITIES = {
    "max": "affinity (max): best log-odds /\nthe motif's own maximum",
    "occupancy": "affinity (occupancy):\nlog2 of the summed odds",
    "hits": "affinity (hits):\nnumber of sites at p < 1e-4",
}
STANDARDISED = "deviations from the motif's mean\nover the training samples"
MOST_CHROMOSOMES = 40
MOST_MOTIFS = 60
MOTIFS_PER_CELL_TYPE = 8
DPI = 110


def draw_overview(path: Path, summary: dict, statistics: Statistics) -> None:
    """Samples, region lengths and GC content by cell type and over all; samples by chromosome."""
    names = [shortened(row["name"]) for row in summary["cell_types"]]
    row_height = 0.34 if len(names) <= 12 else 0.22 if len(names) <= 40 else 0.13
    top_height, bottom_height = 1.5 + row_height * len(names), 3.6
    figure = plt.figure(figsize=(14, top_height + bottom_height + 0.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[top_height, bottom_height])
    samples, lengths, gc = top.subplots(1, 3, sharey=True)

    left = np.zeros(len(names))
    for split, style in zip(SPLITS, (TRAIN, VAL), strict=True):
        counts = np.array([row["samples"][split] for row in summary["cell_types"]])
        samples.barh(np.arange(len(names)), counts, left=left, **style)
        left += counts
    samples.set_yticks(np.arange(len(names)), names, fontsize=label_size(row_height))
    samples.set(xlabel="samples of 10 regions", ylim=(len(names) - 0.5, -0.5))
    headed(samples, "samples by cell type")

    gc_share = 100 * statistics.gc_share
    length_edges, gc_edges = length_bins(statistics.length), gc_bins(gc_share)
    rows_of_histograms(lengths, statistics.cell_type, len(names), statistics.length, length_edges)
    headed(lengths, "region length by cell type")
    rows_of_histograms(gc, statistics.cell_type, len(names), gc_share, gc_edges)
    headed(gc, "GC content by cell type")

    all_lengths, all_gc, chromosomes = bottom.subplots(1, 3)
    for axis, values, edges, name, unit in (
        (all_lengths, statistics.length, length_edges, "region length", " bp"),
        (all_gc, gc_share[~np.isnan(gc_share)], gc_edges, "GC content", "%"),
    ):
        axis.hist(values, bins=edges, color=TRAIN["color"])
        axis.axvline(np.median(values), color="black", ls="--", label=f"median {np.median(values):,.0f}{unit}")
        axis.set_ylabel("regions read")
        headed(axis, f"{name}, all cell types")
    for axis in (lengths, all_lengths):
        axis.set(xlabel="region length (bp)", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter("")
    for axis in (gc, all_gc):
        axis.set_xlabel("GC of a region (% of A, C, G, T)")
    draw_chromosomes(chromosomes, summary["chromosomes"])
    for axis in (samples, all_lengths, all_gc, chromosomes):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(", ".join(title_of(summary)), fontsize=13)
    save(figure, path)


def rows_of_histograms(axis, cell_type: np.ndarray, n_cell_types: int, values: np.ndarray, edges: np.ndarray) -> None:
    """A row of shades for each cell type, the share of its regions in each bin, and a mark at its median."""
    density, medians = np.zeros((n_cell_types, len(edges) - 1)), np.full(n_cell_types, np.nan)
    for number in range(n_cell_types):
        mine = values[(cell_type == number) & ~np.isnan(values)]
        if len(mine):
            density[number] = np.histogram(mine, bins=edges)[0] / len(mine)
            medians[number] = np.median(mine)
    darkest = np.quantile(density[density > 0], 0.995)
    rows = np.arange(n_cell_types)
    axis.pcolormesh(edges, np.arange(n_cell_types + 1) - 0.5, density, cmap="Greys", vmin=0, vmax=darkest)
    axis.vlines(medians, rows - 0.4, rows + 0.4, color=VAL["color"], lw=2, label="median")
    axis.plot([], [], color="dimgrey", marker="s", ms=9, ls="", label="share of its regions")
    axis.tick_params(left=False)


def draw_chromosomes(axis, chromosomes: list[dict]) -> None:
    """Samples by chromosome, in the FASTA's order; validation chromosomes in another colour and hatched."""
    counts = np.array([sum(row["samples"].values()) for row in chromosomes])
    shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CHROMOSOMES])
    held_out = np.array([chromosomes[number]["samples"]["val"] > 0 for number in shown])
    for mine, style in ((~held_out, TRAIN), (held_out, VAL)):
        if mine.any():
            axis.bar(np.flatnonzero(mine), counts[shown][mine], **style)
    labels = [shortened(chromosomes[number]["name"], 16) for number in shown]
    crowded = sum(map(len, labels)) > 45
    axis.set_xticks(np.arange(len(shown)), labels, rotation=90 if crowded else 0, fontsize=7 if crowded else 10)
    axis.set_ylabel("samples of 10 regions")
    rest = len(chromosomes) - len(shown)
    headed(axis, "samples by chromosome" + (f" (and {rest} with fewer)" if rest else ""))


def headed(axis, title: str) -> None:
    """Set a title, and the legend between it and the axis, where it covers nothing."""
    axis.set_title(title, loc="left", pad=24, fontsize=11)
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.1, ncols=2)


def draw_motifs(path: Path, summary: dict, difference: np.ndarray) -> None:
    """The most specific motifs of every cell type as a heat map, motifs x cell types, of Cohen's d [c, m]."""
    kept = np.flatnonzero(np.isfinite(difference).all(axis=1))
    chosen = most_specific(difference[kept])
    block = difference[np.ix_(kept, chosen)]
    cell_order = clustered(block)
    motif_order = np.lexsort((-block.max(axis=0), block[cell_order].argmax(axis=0)))
    block, chosen = block[np.ix_(cell_order, motif_order)], chosen[motif_order]
    names = [shortened(summary["cell_types"][kept[number]]["name"]) for number in cell_order]
    column = max(0.14, min(0.5, 6 / len(names)))
    width, height = max(8.5, 3.5 + column * len(names)), 3.0 + 0.17 * len(chosen)
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    limit = max(np.quantile(np.abs(block), 0.995), 1e-6)
    mesh = axis.imshow(block.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
    axis.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=label_size(column))
    axis.set_yticks(np.arange(len(chosen)), [shortened(summary["motif_names"][m]) for m in chosen], fontsize=8)
    axis.set(xlabel="cell type", ylabel="motif")
    shards, rest = title_of(summary)
    figure.suptitle(f"the most specific motifs of each cell type\n{shards}\n{rest}", fontsize=11)
    bar = figure.colorbar(mesh, ax=axis, extend="both", aspect=30, shrink=0.7)
    bar.set_label("mean affinity against all other cell types' regions\n(pooled standard deviations)")
    save(figure, path)


def most_specific(difference: np.ndarray) -> np.ndarray:
    """Columns to show of d [c, m]: the best ones of each cell type, as many a cell type as leave room for all."""
    per_cell_type = max(1, min(MOTIFS_PER_CELL_TYPE, MOST_MOTIFS // len(difference)))
    best = np.unique(np.argsort(-difference, axis=1, kind="stable")[:, :per_cell_type])
    return best[np.argsort(-difference[:, best].max(axis=0), kind="stable")[:MOST_MOTIFS]]


def draw_sample(path: Path, summary: dict, sample: Sample, manifest: dict) -> None:
    """One sample's binding matrix, as stored, and standardised by each motif's mean and deviation in training.

    Motifs are ordered by clustering of their standardised affinities in this sample; beside each region stand the
    motifs that lie furthest above their mean.
    """
    binding = sample.binding.astype(np.float64)
    mean, std = np.array(manifest["binding_mean"]), np.array(manifest["binding_std"])
    standardised = (binding - mean) / np.where(std > 0, std, 1.0)
    order = clustered(standardised.T)
    meta, shown = sample.meta, summary["sample_drawn"]
    regions = [f"{start:,} ({length:,} bp)" for start, length in zip(meta["starts"], sample.lengths, strict=True)]
    figure, ((stored, scales), (scaled, beside)) = plt.subplots(
        2, 2, figsize=(16, 8), width_ratios=[1, 0.3], layout="constrained"
    )
    limit = max(np.quantile(np.abs(standardised), 0.995), 1e-6)
    top = 1.0 if summary["affinity"] == "max" else max(binding.max(), 1.0)
    for number, (axis, values, title, style, label) in enumerate(
        (
            (
                stored,
                binding,
                "as stored",
                {"cmap": "viridis", "vmin": 0, "vmax": top},
                AFFINITIES[summary["affinity"]],
            ),
            (scaled, standardised, "standardised", {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}, STANDARDISED),
        )
    ):
        mesh = axis.imshow(values[:, order], aspect="auto", interpolation="none", **style)
        axis.set_yticks(np.arange(len(regions)), regions, fontsize=9)
        axis.set_ylabel("region: start (length)")
        axis.set_title(title, loc="left", fontsize=11)
        place = scales.inset_axes([0.02, 0.72 - 0.5 * number, 0.9, 0.07])
        bar = figure.colorbar(mesh, cax=place, orientation="horizontal", extend="both" if number else "neither")
        bar.set_label(label, loc="left")
    scaled.set_xlabel(f"{len(order)} motifs, in the order of a clustering of the lower panel")
    scales.axis("off")
    beside.axis("off")
    beside.set_ylim(scaled.get_ylim())
    beside.set_title("furthest above their mean", loc="left", fontsize=11)
    for row in range(len(regions)):
        best = np.argsort(-standardised[row], kind="stable")[:3]
        named = ", ".join(f"{shortened(manifest['motif_names'][m], 18)} {standardised[row, m]:+.1f}" for m in best)
        beside.text(0.0, row, named, va="center", fontsize=9)
    where = f"{meta['chromosome']}:{meta['starts'][0]:,}-{meta['ends'][-1]:,}"
    figure.suptitle(
        f"binding matrix of sample {shown['number']} ({shown['split']}): {meta['cell_type']}, {where} "
        f"(0-based, half-open)\n{', '.join(title_of(summary))}",
        fontsize=12,
    )
    save(figure, path)


def clustered(rows: np.ndarray) -> np.ndarray:
    """An order of the rows that puts like beside like: leaves of an average-linkage tree, optimally turned."""
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(rows, method="average", metric="euclidean", optimal_ordering=True))


def length_bins(lengths: np.ndarray) -> np.ndarray:
    """Edges of 40 bins of one width in log bp, over all lengths."""
    return np.geomspace(lengths.min() * 0.9, lengths.max() * 1.1, 41)


def gc_bins(gc: np.ndarray) -> np.ndarray:
    """Edges of bins of 2% over all values (in per cent), a hair low: shares of one length fall exactly on an edge."""
    low, high = np.floor(np.nanmin(gc) / 10) * 10, np.ceil((np.nanmax(gc) + 1) / 10) * 10
    return np.arange(low, high + 1, 2) - 1e-6


def label_size(inches: float) -> float:
    """Font size in points of labels that stand `inches` apart."""
    return min(10.0, 0.8 * 72 * inches)


def shortened(name: str, longest: int = 32) -> str:
    """A name of at most `longest` letters, the last of them an ellipsis where it was longer."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def title_of(summary: dict) -> tuple[str, str]:
    """The shards' folder, and what is in them; says so where data are simulated."""
    n = sum(summary["samples"].values())
    read = "" if summary["samples_read"] == n else f" ({summary['samples_read']:,} of them read)"
    simulated = " (simulated data)" if summary["simulated"] else ""
    what = f"{n:,} samples{read} of {len(summary['cell_types'])} cell types, {summary['genome']['name']}{simulated}"
    return summary["shards"], what


def save(figure, path: Path) -> None:
    """Write a figure as PNG, and let it go."""
    try:
        figure.savefig(path, dpi=DPI)
    finally:
        plt.close(figure)
