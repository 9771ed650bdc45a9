"""`tfbs`: windows on the summits of ChIP-seq peaks, against the same windows with their dinucleotides shuffled.

Each peak file, of one transcription factor in one cell type, gives a table of its own: of each peak the window centred
on the summit (label 1), and a shuffle of it that has every dinucleotide as often (label 0; `dinucleotides`), so that
neither GC content nor CpGs tell them apart. Splits are whole chromosomes, and no window is in two of them.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep import bed_columns
from data_prep.bases import decode
from data_prep.checksum import sha256_of_file
from data_prep.chromosome_split import DEV, DEV_HELP, TEST, TEST_HELP, ChromosomeSplit
from data_prep.dinucleotides import shuffled
from data_prep.errors import InputError, shown
from data_prep.genome import Genome
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.peaks import cell_type_of
from data_prep.task_table import is_simulated, write_tables
from data_prep.text_table import aligned
from data_prep.windows import Sites, fitting, windows

MADE_BY = 1  # to be raised where the same input gives other bytes than before
SIMULATED_PEAKS, SIMULATED_GENOME = "data/demo/tfbs/*.narrowPeak", "data/demo/simulated_genome.fa"
SHORTEST = 6  # bp of a window
SUMMIT = 10  # column of a narrowPeak file: bp from the peak's start
NO_SUMMIT = ("", "-1", ".")
COLUMNS = ("sequence", "label", "chrom", "start", "end")
FATES = ("off_chromosome", "over_n", "duplicate", "unshufflable", "windows", "overlapping")  # of a peak


@dataclass(frozen=True)
class TfbsConfig:
    peaks: list[str] | None = field(
        default=None,
        metadata={
            "help": "narrowPeak or BED files, gzipped or not, one a factor and cell type; the file's stem is its "
            f"table's name; default, without --genome: {SIMULATED_PEAKS}."
        },
    )
    genome: str | None = field(
        default=None, metadata={"help": "FASTA of the genome that the peaks were called on; plain or bgzip."}
    )
    out: str = field(default="data/tfbs", metadata={"help": "Folder to write, with a folder for each peak file."})
    window: int = field(
        default=101, metadata={"help": "bp around a summit; around the peak's middle where the file gives none."}
    )
    dev_chroms: list[str] = field(default_factory=lambda: [DEV], metadata={"help": DEV_HELP})
    test_chroms: list[str] = field(default_factory=lambda: [TEST], metadata={"help": TEST_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of the shuffles."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@dataclass(frozen=True)
class Windows:
    """Of one experiment on one chromosome. chromosome: in FASTA order; starts: int64 [n], sorted, bp; bound, shuffled:
    uint8 [n, length]."""

    chromosome: int
    starts: np.ndarray
    bound: np.ndarray
    shuffled: np.ndarray

    def rows(self, chromosome: str) -> pd.DataFrame:
        """Each window, label 1, followed by its shuffle, label 0."""
        n, length = self.bound.shape
        codes = np.stack([self.bound, self.shuffled], axis=1).reshape(2 * n, length)
        starts = np.repeat(self.starts, 2)
        columns = ([decode(one) for one in codes], np.tile([1, 0], n), chromosome, starts, starts + length)
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


@dataclass(frozen=True)
class Experiment:
    """One peak file. summits: int64 [n], of its sites; counts: what becomes of its peaks; rng: of its shuffles;
    windows: of each chromosome, as far as read."""

    path: Path
    sites: Sites
    summits: np.ndarray
    counts: Counter
    rng: np.random.Generator
    windows: list[Windows] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, genome: Genome, seed: list[int]) -> "Experiment":
        """Raises `InputError` for a line that is no peak, or whose summit lies outside it."""
        sites = Sites.read(path, genome)
        summits, without_summit = summits_of(path, sites)
        unknown = sum(sites.unknown.values())
        counts = Counter(peaks=len(sites.rows) + unknown, unknown_chromosome=unknown)
        counts.update(dict.fromkeys(FATES, 0), without_summit=without_summit)
        return cls(path, sites, summits, counts, np.random.default_rng(seed))

    def add(self, chromosome: int, codes: np.ndarray, length: int) -> None:
        """Take the windows of the peaks on a chromosome, and shuffle them."""
        given = self.summits[self.sites.regions.chromosome == chromosome] - length // 2
        starts = np.unique(given)
        on, over_n = fitting(codes, starts, length)
        self.counts.update(duplicate=len(given) - len(starts), off_chromosome=int((~on).sum()))
        starts = starts[on & ~over_n]
        bound = windows(codes, starts, length)
        shuffles = np.array([shuffled(window, self.rng) for window in bound], np.uint8).reshape(bound.shape)
        mixed = (shuffles != bound).any(axis=1)
        starts = starts[mixed]
        self.counts.update(over_n=int(over_n.sum()), unshufflable=int((~mixed).sum()), windows=len(starts))
        self.counts.update(overlapping=int((np.diff(starts) < length).sum()))
        self.windows.append(Windows(chromosome, starts, bound[mixed], shuffles[mixed]))

    def tables(self, genome: Genome, split: ChromosomeSplit) -> dict[str, pd.DataFrame]:
        """The rows of each split."""
        names = [*genome.lengths]
        rows: dict[str, list[pd.DataFrame]] = {which: [] for which in split.splits}
        for one in self.windows:
            rows[split.of_chromosome(names[one.chromosome])].append(one.rows(names[one.chromosome]))
        return {which: pd.concat(parts) if parts else pd.DataFrame() for which, parts in rows.items()}


def run(config: TfbsConfig) -> None:
    """Write the tables of `config`, or say that they are there. Raises `InputError` for bad input."""
    if config.window < SHORTEST:
        raise InputError(f"--window {config.window}: give at least {SHORTEST}")
    if config.seed < 0:
        raise InputError("--seed must not be negative")
    files, genome_path = inputs(config)
    out, genome = Path(config.out), Genome(genome_path)
    split = ChromosomeSplit.of(genome, config.dev_chroms, config.test_chroms)
    made_from = fingerprint(
        made_by=MADE_BY,
        peaks={name: sha256_of_file(path) for name, path in files.items()},
        genome=sha256_of_file(genome.path),
        window=config.window,
        split=split.rule,
        seed=config.seed,
    )
    if is_up_to_date(out, made_from, config.overwrite, [*files.values(), genome.path]):
        print(f"{out}: up to date")
        return
    about = {
        "task": "tfbs",
        "genome": genome.name,
        "split": split.rule,
        "simulated": is_simulated(*files.values(), genome.path),
        "config": asdict(config) | {"out": None, "overwrite": None},
    }
    # A generator for each file, so that no table depends on the others.
    experiments = {name: Experiment.read(path, genome, [config.seed, *name.encode()]) for name, path in files.items()}
    add_windows([*experiments.values()], genome, config.window)
    described, left_out = {}, {}
    with output_folder(out) as folder:
        for name, experiment in experiments.items():
            splits = experiment.tables(genome, split)
            empty = [which for which in split.splits if splits[which].empty]
            if empty:
                left_out[name] = f"no window for {' and '.join(empty)}"
            else:
                (folder / name).mkdir()
                counts, source = dict(experiment.counts), experiment.path.name
                manifest = write_tables(
                    folder / name, splits, fingerprint=made_from, **about, peaks=source, counts=counts
                )
                described[name] = {key: manifest[key] for key in ("counts", "splits")}
        if not described:
            name, why = next(iter(left_out.items()))
            raise InputError(
                f"{files[name]}: {why}{_and_others(left_out)}; hold out other chromosomes with --dev-chroms and "
                "--test-chroms ('none' for no such split)"
            )
        write_json(folder / MANIFEST, {"fingerprint": made_from, **about, "tables": described, "left_out": left_out})
    report(out, described, left_out, about["simulated"])


def inputs(config: TfbsConfig) -> tuple[dict[str, Path], str]:
    """Peak files by the names of their tables, sorted, and the genome's path. Raises `InputError` for a missing file or
    two of one stem."""
    if config.peaks is None and config.genome is None:
        paths, genome = sorted(Path().glob(SIMULATED_PEAKS)), SIMULATED_GENOME
        if not paths:
            raise InputError(
                f"{SIMULATED_PEAKS}: no such files; give --peaks and --genome, or make simulated ones with: "
                "python data_prep/main.py simulate"
            )
    elif config.peaks is None or config.genome is None:
        raise InputError("--peaks and --genome go together; give both")
    else:
        paths, genome = [Path(path) for path in config.peaks], config.genome
    files: dict[str, Path] = {}
    for path in paths:
        name = cell_type_of(path)
        if not path.is_file():
            raise InputError(f"{path}: no such peak file")
        if name in files:
            raise InputError(f"{files[name]} and {path} would both be table {name!r}; rename one")
        files[name] = path
    return dict(sorted(files.items())), genome


def add_windows(experiments: list[Experiment], genome: Genome, length: int) -> None:
    """Give each experiment the windows of its peaks, one chromosome after another, which is read once for all."""
    used = np.unique(np.concatenate([one.sites.regions.chromosome for one in experiments]))
    names = [*genome.lengths]
    for number in tqdm(used.tolist(), desc="chromosomes", disable=None):
        codes = genome.codes(names[number])
        for one in experiments:
            one.add(number, codes, length)


def summits_of(path: Path, sites: Sites) -> tuple[np.ndarray, int]:
    """The summit of each site, int64 [n], bp on its chromosome, and of how many lines the peak's middle stands for it.

    Raises `InputError` for a summit that is no whole number, or not inside its peak.
    """
    given = [*bed_columns.column(path, SUMMIT)]
    regions, n_middles = sites.regions, 0
    summits = np.zeros(len(regions), np.int64)
    for place, row in enumerate(sites.rows.tolist()):
        line, text = given[row]
        start, end = int(regions.start[place]), int(regions.end[place])
        if text in NO_SUMMIT:
            summits[place] = (start + end) // 2
            n_middles += 1
        elif text.isdecimal() and int(text) < end - start:
            summits[place] = start + int(text)
        else:
            raise InputError(
                f"{path}:{line}: summit {shown(text)} in column {SUMMIT} is not inside a peak of {end - start} bp; "
                "give bp from its start, or -1 for none"
            )
    return summits, n_middles


def report(out: Path, described: dict[str, dict], left_out: dict[str, str], simulated: bool) -> None:
    """Print what became of each file's peaks."""
    fates = ("peaks", "unknown_chromosome", *FATES, "without_summit")
    splits = [*next(iter(described.values()))["splits"]]
    header = ["table", *(name.replace("_", " ") for name in fates), *(f"{name} rows" for name in splits)]
    lines = [
        [
            name,
            *(f"{one['counts'][fate]:,}" for fate in fates),
            *(f"{one['splits'][split]['rows']:,}" for split in splits),
        ]
        for name, one in described.items()
    ]
    print(f"{out}: {len(described):,} tables{'; simulated' if simulated else ''}")
    print(*aligned([header, *lines], right=range(1, len(header))), sep="\n")
    if any(one["counts"]["without_summit"] for one in described.values()):
        print("without summit: the window lies around the peak's middle")
    for name, why in left_out.items():
        print(f"{name}: left out: {why}")


def _and_others(left_out: dict[str, str]) -> str:
    return f", and so it is with {len(left_out) - 1} other files" if len(left_out) > 1 else ""
