"""`promoter`: tables of promoters against other sequence, from labelled sequences or from start sites and a genome.

Labelled sequences (GUE's and DNABERT's files) are checked and written as they are. Of each transcription start site
(TSS) the window around it becomes a row, on the gene's strand; as many other stretches of the genome, of the same GC
content and over 1 kb from every TSS, are the negatives (`negatives`). Splits are whole chromosomes.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep import bed_columns
from data_prep.checksum import sha256_of_file
from data_prep.chromosome_split import DEV, DEV_HELP, TEST, TEST_HELP, ChromosomeSplit
from data_prep.errors import InputError, shown
from data_prep.genome import Genome
from data_prep.labelled_sequences import ENDINGS, read_labelled, split_files
from data_prep.negatives import Tiles, gc_bins, matched, tiles
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder
from data_prep.task_table import SPLITS, is_simulated, write_tables
from data_prep.windows import Sites, fitting, letters, windows

MADE_BY = 1  # to be raised where the same input gives other bytes than before
SIMULATED = "data/demo/promoter"
SHORTEST = 6  # bp of a sequence: one 6-mer
WINDOWS = {"core": (34, 36), "300": (250, 50)}  # bp upstream of the TSS, and from it on
STRANDS = {"+": 1, "-": -1}
NEGATIVE, POSITIVE = 0, 1


@dataclass(frozen=True)
class PromoterConfig:
    tables: list[str] | None = field(
        default=None,
        metadata={
            "help": "Labelled sequences: train, dev and test as .csv or .tsv (columns sequence and label; k-mer "
            f"sentences too), gzipped or not, or their folder; default, without --tss: {SIMULATED}."
        },
    )
    tss: str | None = field(
        default=None,
        metadata={"help": "BED of 6 columns: start sites, or genes or transcripts, of which the 5' end is taken."},
    )
    genome: str | None = field(default=None, metadata={"help": "With --tss: FASTA of the genome; plain or bgzip."})
    out: str = field(default="data/promoter", metadata={"help": "Folder to write."})
    window: Literal["core", "300"] = field(
        default="core", metadata={"help": "With --tss. core: 34 bp before it and 36 from it on; 300: 250 and 50."}
    )
    dev_chroms: list[str] = field(default_factory=lambda: [DEV], metadata={"help": f"With --tss. {DEV_HELP}"})
    test_chroms: list[str] = field(default_factory=lambda: [TEST], metadata={"help": f"With --tss. {TEST_HELP}"})
    seed: int = field(default=0, metadata={"help": "With --tss. Seed of the negatives."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


@dataclass(frozen=True)
class StartSites:
    """Of promoters whose windows fit, by chromosome and position; all fields [n].

    chromosome: int32, in FASTA order; position: int64, 0-based; strand: int8, +1 or -1.
    """

    chromosome: np.ndarray
    position: np.ndarray
    strand: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def take(self, rows: np.ndarray) -> "StartSites":
        return StartSites(self.chromosome[rows], self.position[rows], self.strand[rows])

    def window_starts(self, upstream: int, downstream: int) -> np.ndarray:
        """The lowest position of each window that reaches so many bp up- and downstream, on the sites' strands."""
        return np.where(self.strand > 0, self.position - upstream, self.position - downstream + 1)


def run(config: PromoterConfig) -> None:
    """Write the tables of `config`, or say that they are there. Raises `InputError` for bad input."""
    if config.tss is None:
        _from_tables(config)
    else:
        _from_start_sites(config)


def _from_tables(config: PromoterConfig) -> None:
    if config.genome is not None:
        raise InputError("--genome: is read with --tss, which was not given")
    out, files = Path(config.out), table_files(config.tables)
    made_from = fingerprint(made_by=MADE_BY, tables={name: sha256_of_file(path) for name, path in files.items()})
    if is_up_to_date(out, made_from, config.overwrite, files.values()):
        print(f"{out}: up to date")
        return
    splits = {}
    for name, path in files.items():
        sequences, labels = read_labelled(path, n_classes=2, shortest=SHORTEST)
        splits[name] = pd.DataFrame({"sequence": sequences, "label": labels})
    _write(out, splits, config, made_from, [*files.values()], {"genome": None, "split": "as given"})


def table_files(given: list[str] | None) -> dict[str, Path]:
    """The file of each split, from a folder or from files named after their splits. Raises `InputError` where there
    are none."""
    if given is None and not Path(SIMULATED).is_dir():
        raise InputError(
            f"{SIMULATED}: no such folder; give --tables, or --tss and --genome, or make simulated ones with: "
            "python data_prep/main.py simulate"
        )
    paths = [Path(path) for path in given or [SIMULATED]]
    if len(paths) == 1 and not paths[0].is_file():
        return split_files(paths[0], "--tables")
    files = {}
    for path in paths:
        split, _, ending = path.name.partition(".")
        if not path.is_file():
            raise InputError(f"{path}: no such file; give train, dev and test, or their folder, with --tables")
        if split not in SPLITS or ending not in ENDINGS:
            raise InputError(f"{path}: name it train, dev or test, with one of .{', .'.join(ENDINGS)}")
        if split in files:
            raise InputError(f"{files[split]} and {path} are both of {split}; give one")
        files[split] = path
    if "train" not in files or len(files) < 2:
        raise InputError(f"--tables: needs train and dev or test; there is {', '.join(files)} alone")
    return {split: files[split] for split in SPLITS if split in files}


def _from_start_sites(config: PromoterConfig) -> None:
    if config.tables is not None:
        raise InputError("--tables and --tss: give one of them")
    if config.genome is None:
        raise InputError("--tss: needs the genome's FASTA too; give it with --genome")
    if config.seed < 0:
        raise InputError("--seed must not be negative")
    if not Path(config.tss).is_file():
        raise InputError(f"{config.tss}: no such BED file; give one with --tss")
    out, genome = Path(config.out), Genome(config.genome)
    split = ChromosomeSplit.of(genome, config.dev_chroms, config.test_chroms)
    made_from = fingerprint(
        made_by=MADE_BY,
        tss=sha256_of_file(config.tss),
        genome=sha256_of_file(genome.path),
        window=config.window,
        split=split.rule,
        seed=config.seed,
    )
    inputs = [config.tss, genome.path]
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return
    sites, counts = read_start_sites(config.tss, genome)
    splits = promoters_and_others(sites, genome, split, config, counts)
    print(
        f"{config.tss}: {counts['tss']:,} start sites; left out: {counts['unknown_chromosome']:,} on chromosomes that "
        f"the FASTA lacks, {counts['duplicate']:,} that repeat one, {counts['off_chromosome']:,} whose window passes "
        f"the chromosome's end, {counts['over_n']:,} with N; {counts['of_another_gc']:,} negatives are of the nearest "
        "GC content for want of the same"
    )
    about = {"genome": genome.name, "split": split.rule, "counts": dict(counts)}
    _write(out, splits, config, made_from, inputs, about)


def read_start_sites(path: str, genome: Genome) -> tuple[StartSites, Counter]:
    """The start sites of a BED file, each once, sorted, and what became of its lines: the 5' ends of its intervals.

    Raises `InputError` for a line without a strand, and where no site is left.
    """
    sites = Sites.read(path, genome)
    strands = []
    for line, strand in bed_columns.column(path, 6):
        if strand not in STRANDS:
            raise InputError(f"{path}:{line}: strand {shown(strand)} in column 6; a start site needs + or -")
        strands.append(STRANDS[strand])
    strand = np.array(strands, np.int8)[sites.rows]
    position = np.where(strand > 0, sites.regions.start, sites.regions.end - 1)
    if not len(position):
        raise InputError(f"{path}: none of its {len(strands):,} start sites lies on a chromosome of {genome.path}")
    distinct = np.unique(np.stack([sites.regions.chromosome, position, strand], axis=1).astype(np.int64), axis=0)
    counts = Counter(
        tss=len(strands), unknown_chromosome=len(strands) - len(position), duplicate=len(position) - len(distinct)
    )
    return StartSites(distinct[:, 0].astype(np.int32), distinct[:, 1], distinct[:, 2].astype(np.int8)), counts


def promoters_and_others(
    sites: StartSites, genome: Genome, split: ChromosomeSplit, config: PromoterConfig, counts: Counter
) -> dict[str, pd.DataFrame]:
    """The rows of each split, promoters first; `counts` goes on. Raises `InputError` where a split has no promoter.

    Negatives come from chromosomes that have a start site: of others, such as scaffolds, they may be unknown.
    """
    names, rng = [*genome.lengths], np.random.default_rng(config.seed)
    upstream, downstream = WINDOWS[config.window]
    length = upstream + downstream
    counts.update(off_chromosome=0, over_n=0, of_another_gc=0)
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in split.splits}
    bins: dict[str, list[np.ndarray]] = {name: [] for name in split.splits}
    others: dict[str, Tiles] = {}
    for number in tqdm(np.unique(sites.chromosome).tolist(), desc="chromosomes", disable=None):
        name = split.of_chromosome(names[number])
        here = sites.take(np.flatnonzero(sites.chromosome == number))
        codes = genome.codes(names[number])
        starts = here.window_starts(upstream, downstream)
        on, over_n = fitting(codes, starts, length)
        counts.update(off_chromosome=int((~on).sum()), over_n=int(over_n.sum()))
        starts, strands = starts[on & ~over_n], here.strand[on & ~over_n]
        rows[name].append(_rows(codes, names[number], starts, strands, length, POSITIVE))
        bins[name].append(gc_bins(windows(codes, starts, length)))
        more = tiles(codes, number, here.position, length, rng)
        others[name] = (others[name] + more if name in others else more).thinned(len(sites))

    tables = {}
    for name in split.splits:
        wanted = np.concatenate([np.zeros(0, np.int64), *bins[name]])
        if not len(wanted):
            raise InputError(f"{config.tss}: {split.where(name)} no start site whose window fits; name others")
        chosen, elsewhere = matched(wanted, others[name], f"{genome.path}, {name}")
        counts.update(of_another_gc=elsewhere)
        for number in np.unique(chosen.chromosome).tolist():
            starts = np.sort(chosen.start[chosen.chromosome == number])
            strands = rng.choice(np.array([1, -1], np.int8), len(starts))
            codes = genome.codes(names[number])
            rows[name].append(_rows(codes, names[number], starts, strands, length, NEGATIVE))
        tables[name] = pd.concat(rows[name], ignore_index=True)
    return tables


def _rows(
    codes: np.ndarray, chromosome: str, starts: np.ndarray, strands: np.ndarray, length: int, label: int
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sequence": letters(codes, starts, strands, length),
            "label": label,
            "chrom": chromosome,
            "start": starts,
            "end": starts + length,
            "strand": np.where(strands > 0, "+", "-"),
        }
    )


def _write(
    out: Path, splits: dict[str, pd.DataFrame], config: PromoterConfig, made_from: str, inputs: list, about: dict
) -> None:
    classes = {name: {"promoters": int(rows.label.sum()), "rows": len(rows)} for name, rows in splits.items()}
    with output_folder(out) as folder:
        write_tables(
            folder,
            splits,
            fingerprint=made_from,
            task="promoter",
            **about,
            classes=classes,
            simulated=is_simulated(*inputs),
            config=asdict(config) | {"out": None, "overwrite": None},
        )
    listed = ", ".join(
        f"{one['rows']:,} rows of {name} ({one['promoters']:,} promoters)" for name, one in classes.items()
    )
    print(f"{out}: {listed}{'; simulated' if is_simulated(*inputs) else ''}")
