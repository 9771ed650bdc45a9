"""`hscr`: VCF, phenotypes, FASTA and the regions of a locus to tables of people and their haplotypes.

A person is both haplotypes over every region. The distinct haplotypes of the regions are stored once, with the binding
of each; the tables hold their numbers. Written are {train,dev,test}.tsv.gz with columns sample, label (1: case),
population, haplotype_1 and haplotype_2 (a number for each region) and genotypes (of each allele how many copies, a
digit each, for the polygenic baseline); haplotypes.tsv.gz with columns id, region and sequence; binding.npy, float16
[haplotypes, n_motifs]; manifest.json, which names regions, alleles and motifs in order.
"""

import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.bases import encode
from data_prep.binding import Scanner
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.haplotypes import SHORTEST
from data_prep.locus import names_of, over_regions, read_locus
from data_prep.motifs import load_motifs
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder
from data_prep.phenotypes import Phenotypes, read_phenotypes
from data_prep.task_table import SPLITS, is_simulated, write_tables
from data_prep.vcf import read_genotypes

MADE_BY = 1  # to be raised where the same input gives other bytes than before
HAPLOTYPES, BINDING = "haplotypes.tsv.gz", "binding.npy"
FOLDS = 10  # of the split, by the split that each goes to
SPLIT_OF_FOLD = ("train",) * 7 + ("dev",) + ("test",) * 2
SPLIT_RULE = (
    "70% train, 10% dev, 20% test; people of one family stay together; cases and controls of each population are "
    "spread alike"
)


@dataclass(frozen=True)
class HscrConfig:
    vcf: list[str] = field(
        default_factory=lambda: ["data/demo/hscr/genotypes.vcf.gz"],
        metadata={"help": "VCF or BCF files of the same people: plain, gzip or bgzip."},
    )
    phenotypes: str = field(
        default="data/demo/hscr/samples.tsv",
        metadata={"help": "TSV or CSV of people: sample, status, and if known population and family."},
    )
    regions: str = field(default="data/demo/hscr/locus.bed", metadata={"help": "BED of the locus's regions."})
    genome: str = field(
        default="data/demo/simulated_genome.fa", metadata={"help": "FASTA of the VCF's assembly, plain or bgzip."}
    )
    out: str = field(default="data/hscr", metadata={"help": "Folder to write."})
    long: int = field(
        default=0, metadata={"help": "bp by which each region is widened on both sides; what then overlaps is merged."}
    )
    sample_column: str | None = field(default=None, metadata={"help": "Of --phenotypes; default: guessed."})
    status_column: str | None = field(
        default=None, metadata={"help": "0 control and 1 case, or PLINK's 1 and 2, or in words; default: guessed."}
    )
    population_column: str | None = field(default=None, metadata={"help": "Default: guessed, or all are of one."})
    family_column: str | None = field(default=None, metadata={"help": "Default: guessed, or nobody is related."})
    motifs: str = field(
        default="JASPAR2018", metadata={"help": "JASPAR release, or a motif file, of the checkpoint to fine-tune."}
    )
    tax_group: str = field(default="vertebrates", metadata={"help": "Tax group of the release, or all."})
    affinity: Literal["max", "occupancy", "hits"] = field(default="max", metadata={"help": "As of the shards."})
    seed: int = field(default=0, metadata={"help": "Seed of the split."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: HscrConfig) -> None:
    """Write the tables of `config`, or say that they are there. Raises `InputError` for bad input."""
    if config.long < 0 or not 0 <= config.seed < 2**32:
        raise InputError("--long must be 0 or more, --seed a whole number from 0 to 4294967295")
    named = {what: getattr(config, f"{what}_column") for what in ("sample", "status", "population", "family")}
    vcfs, out = list(map(Path, config.vcf)), Path(config.out)
    if len(set(vcfs)) < len(vcfs):
        raise InputError(f"--vcf {' '.join(config.vcf)}: names a file twice; give each once")
    files = [*vcfs, Path(config.phenotypes), Path(config.regions), Path(config.genome)]
    missing = next((path for path in files if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing}: no such file; give yours, or make the demo's with: data_prep/main.py simulate")
    if Path(config.motifs).is_file():
        files.append(Path(config.motifs))
    phenotypes = read_phenotypes(Path(config.phenotypes), named)
    settings = asdict(config) | dict.fromkeys(("vcf", "phenotypes", "regions", "genome", "out", "overwrite"))
    made_from = fingerprint(made_by=MADE_BY, files=[sha256_of_file(path) for path in files], settings=settings)
    if is_up_to_date(out, made_from, config.overwrite, files):
        print(f"{out}: up to date")
        return

    genome, counts = Genome(config.genome), Counter()
    regions = read_locus(Path(config.regions), genome, config.long, counts)
    genotypes = read_genotypes(vcfs, regions, genome, set(phenotypes.people["sample"]))
    locus = over_regions(genotypes, regions, genome)
    if len(locus.haplotypes) == len(regions):
        raise InputError("no two people differ in the regions of the locus; give more regions, or --long to widen them")
    people = phenotypes.people.set_index("sample").loc[genotypes.samples].reset_index()
    counts |= genotypes.counts | locus.counts
    counts["people"], counts["of unknown status"] = len(people), phenotypes.unknown
    counts["without genotypes"] = len(phenotypes.people) - len(people)
    split = split_people(people, config.seed, Path(config.phenotypes))
    motifs = load_motifs(config.motifs, config.tax_group)
    print_input(counts, phenotypes, config)

    people["haplotype_1"], people["haplotype_2"] = (
        [",".join(map(str, ids)) for ids in locus.of_each[:, copy].tolist()] for copy in (0, 1)
    )
    people["genotypes"] = ["".join(map(str, row)) for row in locus.dosages.tolist()]
    with output_folder(out) as folder:
        locus.haplotypes.to_csv(
            folder / HAPLOTYPES, sep="\t", index=False, compression={"method": "gzip", "mtime": 0, "compresslevel": 6}
        )
        scanner = Scanner.of(motifs, config.affinity)
        np.save(folder / BINDING, scanner.scan([encode(sequence) for sequence in locus.haplotypes["sequence"]]))
        tables = {name: people[split == name].drop(columns="family") for name in SPLITS}
        write_tables(
            folder,
            tables,
            fingerprint=made_from,
            task="hscr",
            simulated=is_simulated(*files),
            genome={"name": genome.name, "sha256": sha256_of_file(genome.path)},
            split_rule=SPLIT_RULE,
            coding=phenotypes.coding,
            counts={name: counts[name] for name in COUNTED},
            cases={name: int(rows["label"].sum()) for name, rows in tables.items()},
            regions=names_of(regions),
            alleles=locus.alleles,
            haplotypes={"rows": len(locus.haplotypes), "sha256": sha256_of_file(folder / HAPLOTYPES)},
            motifs=[motif.matrix_id for motif in motifs],
            affinity=config.affinity,
            binding={"sha256": sha256_of_file(folder / BINDING)},
            config=asdict(config) | {"out": None, "overwrite": None},
        )
    print(
        f"{out}: {len(locus.haplotypes):,} distinct haplotypes of {len(regions):,} regions, {len(locus.alleles):,} "
        f"alleles, {len(motifs):,} motifs"
    )
    for name, rows in tables.items():
        print(f"  {name:<6}{len(rows):>6,} people, {rows['label'].sum():,} of them cases")


def split_people(people: pd.DataFrame, seed: int, source: Path) -> np.ndarray:
    """The split of each person, str [n]. Raises `InputError` where there are too few of either status."""
    labels = people["label"].to_numpy()
    for label, name in enumerate(("controls", "cases")):
        families = people.loc[labels == label, "family"].nunique()
        if families < FOLDS:
            raise InputError(
                f"{source}: {families} families have {name} with genotypes; a split takes {FOLDS} at least: give more "
                "people"
            )
    strata = people["label"].astype(str) + " " + people["population"]
    fold = np.zeros(len(people), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # a rare population
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, strata, people["family"])
        for number, (_, rows) in enumerate(folds):
            fold[rows] = number
    split = np.array(SPLIT_OF_FOLD)[fold]
    for name in SPLITS:
        if len(np.unique(labels[split == name])) < 2:
            raise InputError(f"{source}: {name} would be of one status alone; give another --seed, or more people")
    return split


# Fates of what was read, by the count's name: what print_input says of those that there are.
LEFT_OUT = {
    "people": {
        "without genotypes": "without genotypes",
        "of unknown status": "of unknown status",
        "samples without a phenotype": "without a phenotype",
    },
    "regions": {
        "regions off the FASTA": "on chromosomes that the FASTA lacks",
        "short regions": f"shorter than {SHORTEST} bp",
        "regions over N": "mostly N",
    },
    "sites": {
        "off the FASTA": "on chromosomes that the FASTA lacks",
        "filtered": "by FILTER",
        "mismatched": "with another REF than the FASTA",
        "without an alternative": "without an alternative",
    },
}
ASSUMED = {
    "regions merged": "regions overlap others: merged with them",
    "missing genotypes": "genotypes are missing: taken as REF",
    "haploid genotypes": "genotypes are haploid: taken as two equal alleles",
    "unphased heterozygous genotypes": "heterozygous genotypes have no phase: taken as written, first allele on "
    "haplotype 1",
    "not spelt out": "copies of alleles are not spelt out (*, <DEL>): taken as REF",
    "overlapping": "copies of alleles overlap one applied before them: not applied",
    "over a border": "alleles reach over a region's border and cannot be cut: not applied",
    "cut at a border": "alleles reach over a region's border: cut there",
    "deleted": f"haplotypes of a region are deleted, but for less than {SHORTEST} bp: written as N",
}


COUNTED = (*LEFT_OUT, "records", "in the regions", *(name for of in LEFT_OUT.values() for name in of), *ASSUMED)


def print_input(counts: Counter, phenotypes: Phenotypes, config: HscrConfig) -> None:
    """What was read, what was left out, and what was assumed."""
    columns = ", ".join(f"{what} in {column!r}" for what, column in phenotypes.columns.items())
    print(f"{config.phenotypes}: {columns}; {phenotypes.coding}")
    print("\n".join([*(used(counts, what) for what in LEFT_OUT), *assumed(counts)]))


def used(counts: Counter, what: str) -> str:
    """How many people, regions or sites were used, and how many left out for what reason."""
    gone = [f"{counts[name]:,} {words}" for name, words in LEFT_OUT[what].items() if counts[name]]
    read = f" of {counts['records']:,} records" if what == "sites" else ""
    return f"{what}: {counts[what]:,} used{read}; left out: {', '.join(gone) or 'none'}"


def assumed(counts: Counter) -> list[str]:
    """What was assumed of genotypes and alleles, a line for each assumption that had to be made."""
    return [f"{counts[name]:,} {words}" for name, words in ASSUMED.items() if counts[name]]
