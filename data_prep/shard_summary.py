"""What went into a set of shards and what became of it: `summary.json`, and the table at the end of a run."""

from pathlib import Path

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
