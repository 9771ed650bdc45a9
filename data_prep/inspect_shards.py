"""`inspect`: what shards hold, printed and drawn, so that a person sees at a glance whether an atlas makes sense.

    python data_prep/main.py inspect data/shards
    python data_prep/main.py inspect data/shards --verify --genome hg19.fa

Prints samples, region lengths, GC content and the most specific motifs of each cell type; writes overview.png,
motifs.png, sample.png and the numbers, inspect.json. With --verify it checks the shards instead (`verify_shards`).
What the numbers mean is said in `shard_statistics`. Shards behind a URL are staged to a cache first, as for training.
"""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.output_folder import check_writable, write_json
from data_prep.remote_file import is_remote, url
from data_prep.shard_cache import DEFAULT_FOLDER, ShardCache, cache_for
from data_prep.shard_format import REGIONS_PER_SAMPLE, SPLITS
from data_prep.shard_reader import read_manifest
from data_prep.shard_set import ShardSet
from data_prep.shard_statistics import Statistics, by_chance, read_statistics, specificity
from data_prep.text_table import aligned
from data_prep.workers import available

NUMBERS = "inspect.json"
FIGURES = ("overview.png", "motifs.png", "sample.png")
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # per cent
TOP_MOTIFS = 5
MOST_LINES = 40  # of chromosomes printed
_SEED = 0  # of the samples drawn with --max-samples


@dataclass(frozen=True)
class InspectConfig:
    """Options of `inspect`."""

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
    workers: int = field(default=available(), metadata={"help": "Processes that verify."})
    shard_cache: str = field(default=DEFAULT_FOLDER, metadata={"help": "Where shards of a URL are staged."})
    shard_cache_gb: float | None = field(
        default=None, metadata={"help": "GB (1e9 bytes) that --shard_cache may hold; default: no limit."}
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a configuration's fields cannot be: the shards' folder without a flag, and a flag that takes no value."""
    parser.add_argument(
        "shards", nargs="?", metavar="SHARDS", default="data/shards", help="Folder of the shards, or a URL."
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Instead of drawing, check every shard's sha256 and every sample, its bases against --genome.",
    )


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
    if config.shard_cache_gb is not None and not 0 < config.shard_cache_gb < math.inf:
        raise InputError(f"--shard_cache_gb {config.shard_cache_gb}: give more than 0, or leave it out for no limit")
    out = output_place(config.out, shards)
    manifest = read_manifest(shards)
    cache = cache_for(shards, manifest, config.shard_cache, config.shard_cache_gb)
    if cache:
        print(announcement(cache), flush=True)
    shard_set = ShardSet(shards, manifest, cache)
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


def announcement(cache: ShardCache) -> str:
    """What is downloaded where, to be said before it is."""
    kept = "them" if cache.holds_all else f"{cache.limit / 1e9:.3g} GB of them at most"
    return (
        f"{url(cache.location)}: up to {cache.n_bytes / 1e9:.3g} GB of shards are downloaded to {cache.folder}, which "
        f"keeps {kept} (--shard_cache, --shard_cache_gb)"
    )


def drawn(n: int, most: int) -> np.ndarray:
    """Numbers of the samples to read, sorted: all n, or `most` of them drawn without replacement by a fixed seed."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(_SEED).choice(n, most, replace=False))


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
    """To four places, as JSON holds it: None for what is not finite."""
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
    """A share of 1 in per cent, one too small for that as a number, `-` for None."""
    return "-" if value is None else f"{value:.1%}" if value == 0 or value >= 0.0005 else f"{value:.1g}"
