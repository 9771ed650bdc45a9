"""`shards`: a genome and each cell type's accessible regions to WebDataset shards of 10-region samples.

Every distinct region is read and scanned once, whatever number of cell types share it; samples are shuffled once over
the whole split and written to shards that are the same bytes for the same input.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from data_prep import samples as grouping
from data_prep.bases import OTHER
from data_prep.binding import Scanner, batches_by_length
from data_prep.errors import InputError
from data_prep.genome import Genome, sha256_of_file
from data_prep.motifs import Motif, load_motifs
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.peaks import Regions, cell_type_of, merge_overlapping, place, read_regions
from data_prep.shard_format import (
    FORMAT,
    FORMAT_VERSION,
    MEMBERS,
    REGIONS_PER_SAMPLE,
    SPLITS,
    index_path,
    npy_bytes,
    shard_name,
    write_shard,
)


@dataclass(frozen=True)
class ShardsConfig:
    genome: str = field(metadata={"help": "FASTA of the genome that the peaks were called on; plain or bgzip."})
    peaks: list[str] = field(
        metadata={"help": "BED or narrowPeak files, gzipped or not, one a cell type; the file's stem is its name."}
    )
    out: str = field(default="data/shards", metadata={"help": "Folder to write."})
    motifs: str = field(
        default="JASPAR2018",
        metadata={"help": "JASPAR release (its CORE vertebrates collection), or a JASPAR or MEME file."},
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
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Processes that scan."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@dataclass(frozen=True)
class DistinctRegions:
    """Base codes of every distinct region: region i is codes[offset[i]:offset[i + 1]], uint8."""

    codes: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.codes[self.offset[row] : self.offset[row + 1]]


def run(config: ShardsConfig) -> None:
    """Write the shards of `config`, or say that they are there. Raises `InputError` for bad input."""
    started = time.monotonic()
    if config.samples_per_shard < 1 or config.workers < 1:
        raise InputError("--samples_per_shard and --workers must be at least 1")
    if config.seed < 0:
        raise InputError("--seed must not be negative")
    out = Path(config.out)
    files = peak_files(config.peaks)
    motifs = load_motifs(config.motifs)
    genome = Genome(config.genome)
    genome_sha256 = sha256_of_file(genome.path)
    made_from = fingerprint(
        format_version=FORMAT_VERSION,
        genome=genome_sha256,
        peaks={name: sha256_of_file(path) for name, path in files.items()},
        motifs=[[motif.matrix_id, motif.counts.tolist()] for motif in motifs],
        affinity=config.affinity,
        val_chroms=config.val_chroms,
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
    )
    if is_up_to_date(out, made_from, config.overwrite, [genome.path, *files.values()]):
        print(f"{out}: up to date")
        return

    peaks = read_peaks(files, genome)
    regions, rows_by_cell_type = grouping.distinct_regions([merge_overlapping(p) for p in peaks])
    sequences = read_sequences(genome, regions)
    usable = n_share(sequences) <= grouping.MAX_N_SHARE
    samples = grouping.group(regions.chromosome, rows_by_cell_type, usable)
    if not len(samples):
        fullest = max(zip(map(len, peaks), map(str, files.values()), strict=True))
        raise InputError(
            f"no cell type has {REGIONS_PER_SAMPLE} accessible regions on any chromosome, so there is no sample to "
            f"write; the fullest of {len(files)} peak files, {fullest[1]}, holds {fullest[0]} peaks"
        )
    val_chroms = validation_chromosomes(config.val_chroms, samples, genome)
    counts = grouping.count_regions(peaks, rows_by_cell_type, usable, samples)

    with output_folder(out) as folder:
        binding = scan(sequences, np.unique(samples.region), motifs, config, folder / "binding.partial.npy")
        is_val = np.isin(samples.chromosome, [list(genome.lengths).index(name) for name in val_chroms])
        mean, std = binding_statistics(binding, samples.region[~is_val])
        shards = []
        for split, members in zip(SPLITS, (np.flatnonzero(~is_val), np.flatnonzero(is_val)), strict=True):
            order = members[shuffled(len(members), config.seed)]
            writer = SampleWriter(samples, regions, sequences, binding, list(files))
            shards += write_split(folder, split, order, writer, config.samples_per_shard)
        del binding
        (folder / "binding.partial.npy").unlink()
        per_split = {split: sum(s["samples"] for s in shards if s["split"] == split) for split in SPLITS}
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": made_from,
            "genome": {"name": genome.name, "sha256": genome_sha256},
            "samples": per_split,
            "regions_per_sample": REGIONS_PER_SAMPLE,
            "members": list(MEMBERS),
            "chromosomes": list(genome.lengths),
            "val_chromosomes": val_chroms,
            "cell_types": [
                {
                    "name": name,
                    "samples": {
                        "train": int((~is_val & (samples.cell_type == number)).sum()),
                        "val": int((is_val & (samples.cell_type == number)).sum()),
                    },
                    "regions": asdict(counts[number]),
                }
                for number, name in enumerate(files)
            ],
            "motif_source": config.motifs,
            "motifs": [motif.matrix_id for motif in motifs],
            "motif_names": [motif.name for motif in motifs],
            "affinity": config.affinity,
            "binding_mean": mean.tolist(),
            "binding_std": std.tolist(),
            "seed": config.seed,
            "shards": shards,
        }
        write_json(folder / MANIFEST, manifest)
    report(manifest, len(regions), time.monotonic() - started, out)


def peak_files(paths: list[str]) -> dict[str, Path]:
    """Peak files by cell type, sorted by it. Raises `InputError` for a missing file or two of one stem."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: no such peak file")
        name = cell_type_of(path)
        if name in files:
            raise InputError(f"{files[name]} and {path} would both be cell type {name!r}; rename one")
        files[name] = path
    return dict(sorted(files.items()))


def read_peaks(files: dict[str, Path], genome: Genome) -> list[Regions]:
    """Each cell type's regions on the genome's chromosomes; says which chromosome names had to be mapped."""
    peaks, renamed = [], {}
    for path in tqdm(files.values(), desc="reading peaks", unit="file", disable=None):
        regions, here = place(read_regions(path), genome, path)
        renamed.update(here)
        peaks.append(regions)
    if renamed:
        pairs = ", ".join(f"{there} -> {here}" for there, here in sorted(renamed.items()))
        print(f"chromosome names of the peaks mapped to the FASTA's: {pairs}")
    return peaks


def read_sequences(genome: Genome, regions: Regions) -> DistinctRegions:
    """Base codes of sorted regions, one chromosome in memory at a time."""
    offset = np.concatenate([[0], np.cumsum(regions.end - regions.start)])
    codes = np.empty(offset[-1], dtype=np.uint8)
    for number in tqdm(np.unique(regions.chromosome), desc="reading the genome", unit="chromosome", disable=None):
        chromosome = genome.codes(list(genome.lengths)[number])
        for row in np.flatnonzero(regions.chromosome == number):
            codes[offset[row] : offset[row + 1]] = chromosome[regions.start[row] : regions.end[row]]
    return DistinctRegions(codes, offset)


def n_share(sequences: DistinctRegions) -> np.ndarray:
    """Each region's share of letters outside ACGT, float64 [n]."""
    others = np.concatenate([[0], np.cumsum(sequences.codes == OTHER)])
    return np.diff(others[sequences.offset]) / np.diff(sequences.offset)


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


def scan(
    sequences: DistinctRegions, rows: np.ndarray, motifs: list[Motif], config: ShardsConfig, path: Path
) -> np.ndarray:
    """Binding affinities of the regions `rows`, in a float16 [n_distinct, n_motifs] array mapped to `path`."""
    binding = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(len(sequences), len(motifs)))
    lengths = np.diff(sequences.offset)[rows]
    batches = [rows[batch] for batch in batches_by_length(lengths)]
    context = multiprocessing.get_context("fork")
    with (
        tqdm(total=len(rows), desc="scanning motifs", unit="region", disable=None) as progress,
        context.Pool(min(config.workers, len(batches)), _start_worker, (sequences, motifs, config.affinity)) as pool,
    ):
        for batch, affinities in pool.imap_unordered(_scan_batch, batches):
            binding[batch] = affinities
            progress.update(len(batch))
    return binding


def binding_statistics(binding: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each motif's affinity, float64 [n_motifs], over all rows of the given samples."""
    uses = np.bincount(regions.ravel(), minlength=len(binding)).astype(np.float64)
    total, squares = np.zeros(binding.shape[1]), np.zeros(binding.shape[1])
    for first in range(0, len(binding), 4096):
        block = binding[first : first + 4096].astype(np.float64)
        weight = uses[first : first + 4096]
        total += weight @ block
        squares += weight @ block**2
    mean = total / uses.sum()
    return mean, np.sqrt(np.maximum(squares / uses.sum() - mean**2, 0.0))


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of n that depends on the seed alone (a raw Philox stream, whatever the version of numpy)."""
    return np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")


@dataclass(frozen=True)
class SampleWriter:
    """The members' contents of each sample, from the table of distinct regions."""

    samples: grouping.Samples
    regions: Regions
    sequences: DistinctRegions
    binding: np.ndarray
    cell_types: list[str]

    def contents(self, number: int) -> list[bytes]:
        rows = self.samples.region[number]
        meta = {
            "cell_type": self.cell_types[self.samples.cell_type[number]],
            "chromosome": self.regions.names[self.samples.chromosome[number]],
            "starts": self.regions.start[rows].tolist(),
            "ends": self.regions.end[rows].tolist(),
            "index": int(self.samples.index[number]),
        }
        return [
            npy_bytes(np.concatenate([self.sequences[row] for row in rows])),
            npy_bytes((self.regions.end[rows] - self.regions.start[rows]).astype(np.int32)),
            npy_bytes(self.binding[rows]),
            json.dumps(meta).encode(),
        ]


def write_split(folder: Path, split: str, order: np.ndarray, writer: SampleWriter, per_shard: int) -> list[dict]:
    """Write one split's shards; returns their entries in the manifest."""
    entries = []
    with tqdm(total=len(order), desc=f"writing {split}", unit="sample", disable=None) as progress:
        for first in range(0, len(order), per_shard):

            def members(first: int = first) -> Iterator[tuple[str, int, int, list[bytes]]]:
                for place_in_split in range(first, min(first + per_shard, len(order))):
                    number = order[place_in_split]
                    cell_type, chromosome = writer.samples.cell_type[number], writer.samples.chromosome[number]
                    yield f"{place_in_split:09d}", cell_type, chromosome, writer.contents(number)
                    progress.update()

            tar = folder / shard_name(split, len(entries))
            n = write_shard(tar, members())
            entries.append(
                {
                    "name": tar.name,
                    "split": split,
                    "samples": n,
                    "bytes": tar.stat().st_size,
                    "sha256": sha256_of_file(tar),
                    "index": index_path(tar).name,
                    "index_sha256": sha256_of_file(index_path(tar)),
                }
            )
    return entries


def report(manifest: dict, n_distinct: int, seconds: float, out: Path) -> None:
    """Print what was written and what became of every peak."""
    totals = {
        key: sum(cell_type["regions"][key] for cell_type in manifest["cell_types"])
        for key in manifest["cell_types"][0]["regions"]
    }
    samples = manifest["samples"]
    without = [c["name"] for c in manifest["cell_types"] if not sum(c["samples"].values())]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    held_out = ", ".join(manifest["val_chromosomes"]) or "no chromosome"
    print(
        f"{out}: {sum(samples.values()):,} samples ({samples['train']:,} train, {samples['val']:,} val on {held_out}) "
        f"of {len(manifest['cell_types'])} cell types x {len(manifest['motifs'])} motifs, "
        f"{len(manifest['shards'])} shards, {size / 1e6:,.1f} MB, {seconds:.1f} s"
    )
    print(
        f"peaks: {totals['peaks']:,} read = {totals['in_samples']:,} in samples "
        f"+ {totals['merged']:,} merged into an overlapping neighbour + {totals['over_n']:,} mostly N "
        f"+ {totals['remainder']:,} left over where a chromosome's last regions made no full "
        f"{manifest['regions_per_sample']}; {n_distinct:,} distinct regions"
    )
    if without:
        print(f"cell types without a sample: {', '.join(without)}")


_sequences: DistinctRegions
_scanner: Scanner


def _start_worker(sequences: DistinctRegions, motifs: list[Motif], affinity: str) -> None:
    global _sequences, _scanner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _sequences, _scanner = sequences, Scanner.of(motifs, affinity)


def _scan_batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows, _scanner.scan([_sequences[row] for row in rows])
