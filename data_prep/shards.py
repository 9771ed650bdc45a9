"""`shards`: a genome and each cell type's accessible regions to WebDataset shards of 10-region samples.

Every distinct region is read and scanned once, whatever number of cell types share it; samples are shuffled once over
the whole split and written to shards that are the same bytes for the same input. What grows with the sequence lies on
disk; a run that was stopped goes on where it was.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep import samples as grouping
from data_prep.atlas import PeakFile, peak_files, read_atlas, read_blacklist
from data_prep.binding import Scanner
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, UnfinishedError
from data_prep.genome import Genome
from data_prep.motifs import load_motifs
from data_prep.output_folder import MANIFEST, SCRATCH, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.region_store import RegionStore, binding_statistics
from data_prep.shard_format import FORMAT, FORMAT_VERSION, MEMBERS, REGIONS_PER_SAMPLE, SPLITS
from data_prep.shard_summary import SUMMARY, print_summary, summarise
from data_prep.shard_writer import SampleSource, shard_tasks, shuffled, write_shards
from data_prep.workers import available

MADE_BY = 2  # to be raised where the same input gives other bytes than before


@dataclass(frozen=True)
class ShardsConfig:
    genome: str = field(metadata={"help": "FASTA of the genome that the peaks were called on; plain or bgzip."})
    peaks: list[str] = field(
        metadata={
            "help": "BED (3 to 12 columns), narrowPeak or broadPeak files, gzipped or not, one a cell type; the file's "
            "stem is its name."
        }
    )
    out: str = field(default="data/shards", metadata={"help": "Folder to write."})
    blacklist: str | None = field(
        default=None, metadata={"help": "BED of regions to leave out, such as ENCODE's blacklist of the assembly."}
    )
    motifs: str = field(
        default="JASPAR2018",
        metadata={"help": "JASPAR release (its CORE collection), or a JASPAR, MEME or TRANSFAC file."},
    )
    tax_group: str = field(
        default="vertebrates", metadata={"help": "Tax group of a JASPAR release: vertebrates, plants, ..., or all."}
    )
    affinity: Literal["max", "occupancy", "hits"] = field(
        default="max",
        metadata={
            "help": "max: best log-odds over the motif's own maximum; occupancy: log2 of the summed odds; "
            "hits: number of sites at p < 1e-4."
        },
    )
    val_chroms: list[str] | None = field(
        default=None,
        metadata={
            "help": "Chromosomes held out for validation, or 'none'; default: the one whose share is nearest to 5%%."
        },
    )
    samples_per_shard: int = field(default=1000, metadata={"help": "Samples in a shard; about 20 kB each."})
    seed: int = field(default=0, metadata={"help": "Seed of the shuffle."})
    workers: int = field(
        default=available(), metadata={"help": "Processes; the output does not depend on their number."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: ShardsConfig) -> None:
    """Write the shards of `config`, or say that they are there. Raises `InputError` for bad input."""
    if config.samples_per_shard < 1 or config.workers < 1:
        raise InputError("--samples_per_shard and --workers must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed}: give a whole number from 0 to 4294967295")
    clock = _Clock()
    out = Path(config.out)
    files = peak_files(config.peaks)
    motifs = load_motifs(config.motifs, config.tax_group)
    genome = Genome(config.genome)
    genome_sha256 = sha256_of_file(genome.path)
    blacklist = read_blacklist(config.blacklist, genome)
    made_from = fingerprint(
        format_version=FORMAT_VERSION,
        made_by=MADE_BY,
        genome=genome_sha256,
        peaks={name: sha256_of_file(path) for name, path in files.items()},
        blacklist=sha256_of_file(config.blacklist) if config.blacklist else None,
        motifs=[[motif.matrix_id, motif.counts.tolist()] for motif in motifs],
        affinity=config.affinity,
        val_chroms=config.val_chroms,
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
    )
    inputs = [genome.path, *files.values(), *([config.blacklist] if config.blacklist else [])]
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return
    clock.lap("inputs")

    by_cell_type, peaks = read_atlas(files, genome, blacklist, config.workers)
    regions, rows_by_cell_type = grouping.distinct_regions(by_cell_type)
    del by_cell_type  # the largest table in memory: some 20 bytes a peak
    if not len(regions):
        raise _no_sample(peaks, files)
    clock.lap("peaks")

    with output_folder(out, resume=made_from) as folder:
        resumed = any((folder / SCRATCH).iterdir())
        store = RegionStore.of(folder / SCRATCH, regions)
        usable = store.write_bases(genome, config.workers) <= grouping.MAX_N_SHARE
        samples = grouping.group(regions.chromosome, rows_by_cell_type, usable)
        if not len(samples):
            raise _no_sample(peaks, files)
        val_chroms = validation_chromosomes(config.val_chroms, samples, genome)
        is_val = np.isin(samples.chromosome, [list(genome.lengths).index(name) for name in val_chroms])
        clock.lap("sequences")

        wanted = np.zeros(len(regions), bool)
        wanted[samples.region.ravel()] = True
        store.write_binding(Scanner.of(motifs, config.affinity), wanted, config.workers)
        source = SampleSource(samples, store, store.bases, store.binding, list(files))
        mean, std = binding_statistics(source.binding, samples.region[~is_val])
        clock.lap("scan")

        check_room(folder, source.tar_bytes())
        by_split = dict(zip(SPLITS, (np.flatnonzero(~is_val), np.flatnonzero(is_val)), strict=True))
        orders = {split: members[shuffled(len(members), config.seed)] for split, members in by_split.items()}
        tasks = shard_tasks(orders, config.samples_per_shard)
        shards = write_shards(folder, folder / SCRATCH, tasks, source, config.workers)
        clock.lap("shards")

        summary = summarise(list(files), peaks, rows_by_cell_type, usable, samples, is_val, regions) | {
            "val_chromosomes": val_chroms,
            "motifs": len(motifs),
            "shards": len(shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "workers": config.workers,
            "resumed": resumed,
            "seconds": clock.laps,  # of this run: what a stopped one took before it is not among them
        }
        write_json(folder / SUMMARY, summary)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": made_from,
            "genome": {"name": genome.name, "sha256": genome_sha256},
            "samples": summary["samples"],
            "regions_per_sample": REGIONS_PER_SAMPLE,
            "members": list(MEMBERS),
            "chromosomes": list(genome.lengths),
            "val_chromosomes": val_chroms,
            "cell_types": summary["cell_types"],
            "motif_source": config.motifs,
            "tax_group": config.tax_group,
            "motifs": [motif.matrix_id for motif in motifs],
            "motif_names": [motif.name for motif in motifs],
            "affinity": config.affinity,
            "binding_mean": mean.tolist(),
            "binding_std": std.tolist(),
            "seed": config.seed,
            "shards": shards,
        }
        write_json(folder / MANIFEST, manifest)
    print_summary(summary, out)


def check_room(folder: Path, needed: int) -> None:
    """Raise `UnfinishedError` where the disk cannot hold the shards, rather than after having written most of them."""
    there = sum(path.stat().st_size for path in folder.glob("*.tar"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise UnfinishedError(
            f"{folder}: the shards take {(needed - there) / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB are free; "
            "make room, or choose another --out"
        )


def _no_sample(peaks: list[PeakFile], files: dict[str, Path]) -> InputError:
    fullest, count = max(zip(files.values(), (one.peaks for one in peaks), strict=True), key=lambda pair: pair[1])
    return InputError(
        f"no cell type has {REGIONS_PER_SAMPLE} accessible regions on any chromosome, so there is no sample to write; "
        f"the fullest of {len(files)} peak files, {fullest}, holds {count} peaks"
    )


class _Clock:
    """Seconds of each phase, and in total."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps |= {name: round(now - self._last, 2), "total": round(now - self._started, 2)}
        self._last = now


def validation_chromosomes(asked: list[str] | None, samples: grouping.Samples, genome: Genome) -> list[str]:
    """Held-out chromosomes by the FASTA's names. Raises `InputError` where one is unknown or none is left to train."""
    names = tuple(genome.lengths)
    if asked is None:
        return grouping.choose_validation(samples, names)
    if asked == ["none"]:
        return []
    resolved = []
    for name in asked:
        if genome.resolve(name) is None:
            raise InputError(f"--val-chroms: {genome.path} has no chromosome {name!r}")
        resolved.append(genome.resolve(name))
    if {names[number] for number in np.unique(samples.chromosome)} <= set(resolved):
        raise InputError("--val-chroms: every chromosome with samples would be held out; nothing is left to train on")
    return resolved
