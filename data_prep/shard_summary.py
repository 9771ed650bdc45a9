"""What went into a set of shards and what became of it: `summary.json`, and the table at the end of a run."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_prep.atlas import PeakFile
from data_prep.peaks import Regions
from data_prep.samples import Samples, count_regions
from data_prep.shard_format import SPLITS
from data_prep.text_table import aligned

SUMMARY = "summary.json"
_ROWS = 40  # of a printed table
_RARE = 0.1  # of an even share of the samples
_CAUSES = {
    "duplicate": "repeated lines",
    "unknown_chromosome": "on chromosomes that the FASTA lacks",
    "blacklisted": "in the blacklist",
    "merged": "merged into an overlapping neighbour",
    "over_n": "mostly N",
    "remainder": "left over where a chromosome's last regions made no full ten",
}


def summarise(
    names: list[str],
    peaks: list[PeakFile],
    rows_by_cell_type: list[np.ndarray],
    usable: np.ndarray,
    samples: Samples,
    is_val: np.ndarray,
    regions: Regions,
) -> dict:
    """Counts of regions and bp by fate, and of samples by split: in all, by cell type and by chromosome.

    names, peaks, rows_by_cell_type: of each cell type, the last its rows of `regions`; usable: bool [n_regions];
    is_val: bool [n_samples].
    """
    lengths = regions.end - regions.start
    by_split = dict(zip(SPLITS, (~is_val, is_val), strict=True))
    cell_types = []
    for number, name in enumerate(names):
        own = samples.cell_type == number
        counts = count_regions(peaks[number], rows_by_cell_type[number], usable, int(own.sum()))
        cell_types.append(
            {
                "name": name,
                "samples": {split: int((own & here).sum()) for split, here in by_split.items()},
                "regions": asdict(counts),
                "bp": {"peaks": peaks[number].bp, "in_samples": int(lengths[samples.region[own]].sum())},
            }
        )
    n = len(regions.names)
    distinct, bp = np.bincount(regions.chromosome, minlength=n), np.bincount(regions.chromosome, lengths, minlength=n)
    on_chromosome = {split: np.bincount(samples.chromosome[here], minlength=n) for split, here in by_split.items()}
    chromosomes = [
        {
            "name": regions.names[number],
            "distinct_regions": int(distinct[number]),
            "bp": int(bp[number]),
            "samples": {split: int(counts[number]) for split, counts in on_chromosome.items()},
        }
        for number in np.flatnonzero(distinct)
    ]
    return {
        "samples": {split: int(here.sum()) for split, here in by_split.items()},
        "regions": {key: sum(one["regions"][key] for one in cell_types) for key in cell_types[0]["regions"]},
        "bp": {key: sum(one["bp"][key] for one in cell_types) for key in cell_types[0]["bp"]},
        "distinct_regions": {"count": len(regions), "bp": int(lengths.sum())},
        "cell_types": cell_types,
        "chromosomes": chromosomes,
    }


def print_summary(summary: dict, out: Path) -> None:
    """The totals in three lines, then a table of cell types and one of chromosomes."""
    totals, samples = summary["regions"], summary["samples"]
    held_out = ", ".join(summary["val_chromosomes"]) or "no chromosome"
    print(
        f"{out}: {sum(samples.values()):,} samples ({samples['train']:,} train, {samples['val']:,} val on {held_out}) "
        f"of {len(summary['cell_types'])} cell types x {summary['motifs']} motifs, "
        f"{summary['shards']} shards, {summary['bytes'] / 1e6:,.1f} MB, {summary['seconds']['total']:.1f} s"
        + (" since it was resumed" if summary["resumed"] else "")
    )
    fates = [f"{totals['in_samples']:,} in samples"]
    fates += [f"{totals[cause]:,} {words}" for cause, words in _CAUSES.items() if totals[cause]]
    print(f"peaks: {totals['peaks']:,} read = {' + '.join(fates)}")
    distinct = summary["distinct_regions"]
    print(f"distinct regions: {distinct['count']:,}, {distinct['bp'] / 1e6:,.1f} Mbp")
    causes = [cause for cause in _CAUSES if totals[cause]]
    rows = [
        [
            one["name"],
            f"{one['regions']['peaks']:,}",
            f"{one['regions']['in_samples']:,}",
            *(f"{one['regions'][cause]:,}" for cause in causes),
            f"{one['bp']['in_samples'] / 1e6:,.2f}",
            *_samples(one, summary["cell_types"]),
        ]
        for one in summary["cell_types"]
    ]
    _print_table(["cell type", "peaks", "used", *causes, "Mbp", *SPLITS, ""], rows)
    rows = [
        [
            one["name"],
            f"{one['distinct_regions']:,}",
            f"{one['bp'] / 1e6:,.2f}",
            *_samples(one, summary["chromosomes"]),
        ]
        for one in summary["chromosomes"]
    ]
    _print_table(["chromosome", "distinct", "Mbp", *SPLITS, ""], rows)


def _samples(one: dict, others: list[dict]) -> list[str]:
    """A row's numbers of samples by split, and a word where they are few."""
    own, total = sum(one["samples"].values()), sum(sum(other["samples"].values()) for other in others)
    word = "no sample" if not own else "rare" if own < _RARE * total / len(others) else ""
    return [*(f"{one['samples'][split]:,}" for split in SPLITS), word]


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns aligned, the first to the left; of many rows those with a word in the last column, and then the first."""
    shown = sorted(range(len(rows)), key=lambda row: (not rows[row][-1], row))[:_ROWS]
    lines = [header, *(rows[row] for row in sorted(shown))]
    print("", *aligned(lines, right=range(1, len(header) - 1)), sep="\n")
    if len(shown) < len(rows):
        print(f"  and {len(rows) - len(shown)} more in {SUMMARY}")
