"""`inspect`: what shards hold, printed and drawn, so that a person sees at a glance whether an atlas makes sense.

    python data_prep/main.py inspect data/shards
    python data_prep/main.py inspect data/shards --verify --genome hg19.fa

Prints samples, region lengths, GC content and the most specific motifs of each cell type; writes overview.png,
motifs.png, sample.png and the numbers, inspect.json. With --verify it checks the shards instead (`verify_shards`).

The specificity of a motif for a cell type is a standardised mean difference (Cohen's d): its mean affinity over the
cell type's regions, minus that over the regions of all other cell types, in units of their pooled standard deviation.
A region counts once for each cell type that it is accessible in, so what cell types share pulls the difference to zero.
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np
from tqdm import tqdm

from data_prep.bases import LETTERS, OTHER
from data_prep.errors import InputError
from data_prep.output_folder import check_writable, write_json
from data_prep.remote_file import is_remote, url
from data_prep.shard_format import REGIONS_PER_SAMPLE, SPLITS, Sample
from data_prep.shard_set import ShardSet
from data_prep.text_table import aligned

NUMBERS = "inspect.json"
FIGURES = ("overview.png", "motifs.png", "sample.png")
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # per cent
TOP_MOTIFS = 5
MOST_LINES = 40  # of chromosomes printed
CHANCE = 0.05  # that any motif's difference is as large as `by_chance`
_SEED = 0  # of the samples drawn with --max-samples


@dataclass(frozen=True)
class InspectConfig:
    out: str | None = field(
        default=None, metadata={"help": "Folder for figures and numbers; default: SHARDS.inspect, beside the shards."}
    )
    max_samples: int = field(
        default=20_000, metadata={"help": "Most samples to read, drawn evenly over all shards; 20,000 take seconds."}
    )
    sample: int | None = field(
        default=None,
        metadata={
            "help": "Number of the sample whose binding matrix is drawn: training samples first, then validation; "
            "default: one of median length."
        },
    )
    genome: str | None = field(
        default=None, metadata={"help": "FASTA to compare every base with; for --verify, plain or bgzip."}
    )
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Processes that verify."})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a configuration's fields cannot be: the shards' folder without a flag, and a flag that takes no value."""
    parser.add_argument("shards", nargs="?", metavar="SHARDS", default="data/shards", help="Folder of the shards.")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Instead of drawing, check every shard's sha256 and every sample, its bases against --genome.",
    )


@dataclass(frozen=True)
class Statistics:
    """Of the samples read. c cell types, m motifs, r regions.

    cell_type, length, gc, other: int64 [r], each region's cell type, bp, bases G or C, and letters outside ACGT;
    total, squares: float64 [c, m], sums of the affinities and of their squares.
    """

    cell_type: np.ndarray
    length: np.ndarray
    gc: np.ndarray
    other: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @property
    def regions(self) -> np.ndarray:
        """Regions of each cell type, int64 [c]."""
        return np.bincount(self.cell_type, minlength=len(self.total))

    @property
    def gc_share(self) -> np.ndarray:
        """Each region's share of G and C among its letters ACGT, float64 [r]; NaN for one of N alone."""
        known = self.length - self.other
        return np.where(known > 0, self.gc / np.maximum(known, 1), np.nan)


def run(config: InspectConfig, shards: str, verify: bool) -> None:
    """Print and draw what `shards` hold, or verify them. Raises `InputError` for bad input or a fault."""
    if config.max_samples < 1 or config.workers < 1:
        raise InputError("--max_samples and --workers must be at least 1")
    if verify:
        from data_prep.verify_shards import verify_shards

        verify_shards(shards, config.genome, config.workers)
        return
    if config.genome:
        raise InputError("--genome: it is --verify that compares the shards with a FASTA; give both")
    out = output_place(config.out, shards)
    shard_set = ShardSet(shards)
    if config.sample is not None and not 0 <= config.sample < len(shard_set):
        raise InputError(f"--sample {config.sample}: {shards} holds samples 0 to {len(shard_set) - 1}")
    numbers = drawn(len(shard_set), config.max_samples)
    progress = tqdm(numbers, desc="reading samples", unit="sample", disable=None)
    statistics = read_statistics(
        ((shard_set.index["cell_type"][number], shard_set[number]) for number in progress),
        len(shard_set.cell_types),
        len(shard_set.manifest["motifs"]),
    )
    bp = statistics.length.reshape(-1, REGIONS_PER_SAMPLE).sum(axis=1)
    shown = int(numbers[np.argsort(bp, kind="stable")[len(bp) // 2]]) if config.sample is None else config.sample
    difference = specificity(statistics.regions, statistics.total, statistics.squares)
    summary = summarise(shard_set, statistics, difference, shown)
    written = write(out, summary, shard_set, statistics, difference)
    print("\n".join([*report(summary), "", f"figures and numbers: {', '.join(map(str, written))}"]))


def output_place(out: str | None, shards: str) -> Path:
    """The folder to write to. Raises `InputError` where figures cannot or must not be written there."""
    if is_remote(shards):
        if out is None:
            raise InputError(f"{url(shards)}: lies behind a URL; say with --out where the figures are to go")
        folder = Path(out)
    else:
        own = Path(shards).resolve()
        named = Path(shards) if Path(shards).name not in ("", "..") else own
        folder = Path(out) if out else named.with_name(f"{named.name}.inspect")
        if own in (folder.resolve(), *folder.resolve().parents):
            raise InputError(
                f"{folder}: lies in the shards' own folder, which holds nothing else; choose another --out"
            )
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in (NUMBERS, *FIGURES)):
        raise InputError(f"{folder}: holds files that are not of this program; choose another folder with --out")
    return folder


def drawn(n: int, most: int) -> np.ndarray:
    """Numbers of the samples to read, sorted: all n, or `most` of them drawn without replacement by a fixed seed."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(_SEED).choice(n, most, replace=False))


def read_statistics(samples: Iterable[tuple[int, Sample]], n_cell_types: int, n_motifs: int) -> Statistics:
    """Statistics of samples given with their cell type's number; one sample in memory at a time."""
    total, squares = np.zeros((n_cell_types, n_motifs)), np.zeros((n_cell_types, n_motifs))
    cell_types, lengths, gc, other = [], [], [], []
    for cell_type, sample in samples:
        binding = sample.binding.astype(np.float64)
        total[cell_type] += binding.sum(axis=0)
        squares[cell_type] += (binding**2).sum(axis=0)
        cell_types.append(cell_type)
        lengths.append(sample.lengths)
        of_gc, of_other = composition(sample.bases, sample.lengths)
        gc.append(of_gc)
        other.append(of_other)
    of_region = np.repeat(np.array(cell_types, dtype=np.int64), REGIONS_PER_SAMPLE)
    per_region = (np.concatenate(values).astype(np.int64) for values in (lengths, gc, other))
    return Statistics(of_region, *per_region, total, squares)


def composition(bases: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bases G or C, and letters outside ACGT, of each region: int64 [len(lengths)] both.

    bases: uint8 [sum(lengths)], the regions' base codes one after another.
    """
    ends = np.cumsum(lengths)
    is_gc = (bases == LETTERS.index("G")) | (bases == LETTERS.index("C"))
    sums = [np.concatenate([[0], np.cumsum(letter)])[np.append(0, ends)] for letter in (is_gc, bases == OTHER)]
    return np.diff(sums[0]), np.diff(sums[1])


def specificity(regions: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Cohen's d of every motif's affinity, each cell type's regions against those of all others, float64 [c, m].

    regions: int64 [c]; total, squares: float64 [c, m], sums of affinities and of their squares. d is the difference of
    the two means over sqrt((SS + SS') / (n + n' - 2)), SS the sums of squared deviations from each mean. It is 0 where
    nothing varies, and NaN for a cell type with no regions, or where no other has any.
    """
    n = regions[:, None].astype(np.float64)
    rest = n.sum(axis=0) - n
    others, other_squares = total.sum(axis=0) - total, squares.sum(axis=0) - squares
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = squares - total**2 / n + other_squares - others**2 / rest
        pooled = np.sqrt(np.maximum(deviation, 0.0) / (n + rest - 2))
        difference = total / n - others / rest
        return np.where(pooled > 1e-6, difference / pooled, np.where(np.isnan(difference), np.nan, 0.0))


def by_chance(regions: np.ndarray, n_motifs: int) -> np.ndarray:
    """The size that the largest of `n_motifs` differences has with a chance of 5% where there are none, float64 [c].

    Bonferroni's bound, for independent regions: the normal quantile at 0.05 / 2m, times sqrt(1 / n + 1 / n').
    """
    rest = regions.sum() - regions
    with np.errstate(divide="ignore"):
        return -NormalDist().inv_cdf(CHANCE / (2 * n_motifs)) * np.sqrt(1.0 / regions + 1.0 / rest)


def summarise(shard_set: ShardSet, statistics: Statistics, difference: np.ndarray, shown: int) -> dict:
    """All numbers of `inspect.json`; shares are of 1, lengths in bp, None where a cell type has no regions read."""
    manifest, regions = shard_set.manifest, statistics.regions
    chance = by_chance(regions, len(manifest["motifs"]))
    cell_types = []
    for number, cell_type in enumerate(manifest["cell_types"]):
        mine = statistics.cell_type == number
        row = {
            "name": cell_type["name"],
            "samples": {split: cell_type["samples"][split] for split in SPLITS},
            **lengths_and_composition(statistics, mine),
            "by_chance": rounded(chance[number]),
            "specific_motifs": [],
        }
        if np.isfinite(difference[number]).all():
            row["specific_motifs"] = [
                {
                    "motif": manifest["motifs"][motif],
                    "name": manifest["motif_names"][motif],
                    "difference": rounded(difference[number, motif]),
                }
                for motif in np.argsort(-difference[number], kind="stable")[: 2 * TOP_MOTIFS]
            ]
        cell_types.append(row)
    in_split = {
        split: np.bincount(rows["chromosome"], minlength=len(manifest["chromosomes"]))
        for split, rows in zip(SPLITS, np.split(shard_set.index, [shard_set.n_train]), strict=True)
    }
    chromosomes = [
        {"name": name, "samples": {split: int(in_split[split][number]) for split in SPLITS}}
        for number, name in enumerate(manifest["chromosomes"])
        if any(in_split[split][number] for split in SPLITS)
    ]
    meta = shard_set[shown].meta
    return {
        "shards": shard_set.path("").rstrip("/"),
        "fingerprint": manifest.get("fingerprint"),
        "genome": manifest["genome"],
        "simulated": "simulated" in manifest["genome"]["name"].lower(),
        "samples": {split: manifest["samples"][split] for split in SPLITS},
        "samples_read": len(statistics.length) // REGIONS_PER_SAMPLE,
        "bytes": sum(entry["bytes"] for entry in shard_set.entries),
        "n_shards": len(shard_set.entries),
        "affinity": manifest["affinity"],
        "all": lengths_and_composition(statistics, np.ones(len(statistics.length), dtype=bool)),
        "cell_types": cell_types,
        "chromosomes": chromosomes,
        "motifs": manifest["motifs"],
        "motif_names": manifest["motif_names"],
        "specificity": [[rounded(value) for value in row] for row in difference],
        "sample_drawn": {"number": shown, "split": shard_set.split(shown), **meta},
    }


def lengths_and_composition(statistics: Statistics, mine: np.ndarray) -> dict:
    """regions, bp, mean length, its quantiles, GC among ACGT and the share of N, of the regions `mine` (bool [r])."""
    length, gc, other = statistics.length[mine], statistics.gc[mine].sum(), statistics.other[mine].sum()
    bp = int(length.sum())
    quantiles = np.percentile(length, QUANTILES) if bp else [np.nan] * len(QUANTILES)
    return {
        "regions_read": len(length),
        "bp_read": bp,
        "mean_length": rounded(length.mean()) if bp else None,
        "length_quantiles": {f"{q}%": rounded(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "gc": rounded(gc / (bp - other)) if bp > other else None,
        "n_share": float(other / bp) if bp else None,
    }


def rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def write(out: Path, summary: dict, shard_set: ShardSet, statistics: Statistics, difference: np.ndarray) -> list[Path]:
    """Write the figures, then the numbers; the heat map of motifs needs two cell types with regions. The files."""
    from data_prep import shard_figures

    overview, motifs, sample = (out / name for name in FIGURES)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / NUMBERS, motifs):
            path.unlink(missing_ok=True)
        shard_figures.draw_overview(overview, summary, statistics)
        if np.isfinite(difference).any():
            shard_figures.draw_motifs(motifs, summary, difference)
        shard_figures.draw_sample(sample, summary, shard_set[summary["sample_drawn"]["number"]], shard_set.manifest)
        write_json(out / NUMBERS, summary)
    except OSError as error:
        raise InputError(
            f"{out}: could not be written: {error.strerror}; make room, or choose another --out"
        ) from error
    return [path for path in (overview, motifs, sample, out / NUMBERS) if path.exists()]


def report(summary: dict) -> list[str]:
    """What is printed: tables over all, by cell type, of specific motifs, and by chromosome."""
    everything, samples = summary["all"], summary["samples"]
    n, read = sum(samples.values()), summary["samples_read"]
    simulated = " (simulated data)" if summary["simulated"] else ""
    lines = [
        f"{summary['shards']}{simulated}",
        *aligned(
            [
                ["samples", f"{n:,} ({samples['train']:,} train, {samples['val']:,} val)"],
                ["regions", f"{n * REGIONS_PER_SAMPLE:,} in samples, of {len(summary['cell_types'])} cell types"],
                ["motifs", f"{len(summary['motifs'])}, affinity: {summary['affinity']}"],
                ["genome", f"{summary['genome']['name']}, sha256 {summary['genome']['sha256'][:12]}..."],
                ["size", f"{summary['bytes'] / 1e6:,.1f} MB in {summary['n_shards']} shards"],
                ["bp", f"{everything['bp_read']:,}" + (f" in the {read:,} samples read" if read < n else "")],
                ["GC", f"{share(everything['gc'])} of A, C, G, T; N: {share(everything['n_share'])} of all letters"],
                [
                    "region length",
                    f"mean {everything['mean_length']:,.0f} bp; "
                    + ", ".join(f"{q} {value:,.0f}" for q, value in everything["length_quantiles"].items()),
                ],
            ]
        ),
    ]
    if read < n:
        lines.append(f"  Lengths, GC and motifs are of {read:,} of {n:,} samples, drawn evenly (--max-samples).")
    header = ["cell type", "train", "val", "mean bp", "median bp", "GC", "N"]
    rows = [
        [
            row["name"],
            *(f"{row['samples'][split]:,}" for split in SPLITS),
            *(f"{bp:,.0f}" if bp else "-" for bp in (row["mean_length"], row["length_quantiles"]["50%"])),
            *(share(row[key]) for key in ("gc", "n_share")),
        ]
        for row in summary["cell_types"]
    ]
    lines += ["", *aligned([header, *rows], right=range(1, len(header)))]
    lines += ["", *motif_lines(summary)]
    shown = sorted(summary["chromosomes"], key=lambda row: -sum(row["samples"].values()))[:MOST_LINES]
    rows = [
        [row["name"], *(f"{row['samples'][split]:,}" for split in SPLITS)]
        for row in summary["chromosomes"]
        if row in shown
    ]
    lines += ["", *aligned([["chromosome", *SPLITS], *rows], right=(1, 2))]
    if len(shown) < len(summary["chromosomes"]):
        lines.append(f"  and {len(summary['chromosomes']) - len(shown)} with fewer samples, see {NUMBERS}")
    return lines


def motif_lines(summary: dict) -> list[str]:
    """The most specific motifs of each cell type, under a sentence that says what the numbers are."""
    with_motifs = [row for row in summary["cell_types"] if row["specific_motifs"]]
    if not with_motifs:
        return ["Motif specificity: none, as it compares cell types, and only one has regions here."]
    rows = [
        [
            row["name"],
            f"{row['by_chance']:.2f}",
            *(f"{motif['name']} {motif['difference']:+.2f}" for motif in row["specific_motifs"][:TOP_MOTIFS]),
        ]
        for row in with_motifs
    ]
    header = ["cell type", "by chance", "most specific motifs", *[""] * (len(rows[0]) - 3)]
    return [
        "Motif specificity: mean affinity over the cell type's regions minus that over all other cell types' regions,",
        "in pooled standard deviations (Cohen's d). by chance: how large the largest of "
        f"{len(summary['motifs'])} gets, once in 20",
        "times, where regions are independent and nothing differs.",
        *aligned([header, *rows], right=(1,)),
    ]


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}" if value == 0 or value >= 0.0005 else f"{value:.1g}"
