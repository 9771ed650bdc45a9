"""`splice`: genes and a genome to a table of transcripts with their splice sites, split as SpliceAI's.

A row is a gene: its sequence on its strand from the transcript's start to its end, with the flanks that a model reads
beside it, and its acceptors (first nucleotides of exons) and donors (last ones) at introns. Tested on are genes of
chr1, 3, 5, 7 and 9 without paralogs; a tenth of the others chooses between models, the rest trains (Jaganathan et al.
2019).
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.bases import OTHER, decode, reverse_complement
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.gene_models import CHOICE, GeneModel, is_gff, read_gene_models
from data_prep.genome import Genome
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder
from data_prep.samples import MAX_N_SHARE
from data_prep.task_table import is_simulated, write_tables

MADE_BY = 1  # to be raised where the same input gives other bytes than before
DEV_SHARE = 0.1  # of the genes outside the test chromosomes
COLUMNS = ("gene", "chrom", "strand", "start", "end", "sequence", "acceptors", "donors")
DONOR, ACCEPTOR = "GT", "AG"  # an intron's first and last letters
LEAST_SHARE = 0.5  # of the sites that read so; by chance it is 1 in 16
JUDGED = 20  # sites, of fewer the share says nothing
LEFT_OUT = ("outside the FASTA", "mostly N", "without introns")
SITES = ("donors", "donors reading GT", "acceptors", "acceptors reading AG")
NOT_OF_TABLES = dict.fromkeys(("genes", "genome", "out", "overwrite"))  # paths: what they hold counts


@dataclass(frozen=True)
class SpliceConfig:
    genes: str = field(
        default="data/demo/splice/genes.txt",
        metadata={"help": "SpliceAI's table of genes (canonical_dataset.txt), or GTF or GFF3; gzipped or not."},
    )
    genome: str = field(
        default="data/demo/simulated_genome.fa",
        metadata={"help": "FASTA of the genome that the genes are of; plain or bgzip."},
    )
    out: str = field(default="data/splice", metadata={"help": "Folder to write."})
    flank: int = field(
        default=1000,
        metadata={"help": "Nucleotides kept on both sides of a gene: half of the largest context to be read."},
    )
    test_chroms: list[str] = field(
        default_factory=lambda: ["chr1", "chr3", "chr5", "chr7", "chr9"],
        metadata={"help": "Chromosomes whose genes without paralogs are the test; the others are for training."},
    )
    seed: int = field(default=0, metadata={"help": "Draws the tenth of the training genes that is dev."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: SpliceConfig) -> None:
    """Write the tables of `config`, or say that they are there. Raises `InputError` for bad input."""
    if config.flank < 0 or config.seed < 0:
        raise InputError("--flank and --seed must not be negative")
    out, path = Path(config.out), Path(config.genes)
    genes, left_out = read_gene_models(path)
    genome = Genome(config.genome)
    made_from = fingerprint(
        made_by=MADE_BY,
        inputs=[sha256_of_file(path), sha256_of_file(genome.path), is_gff(path)],
        config=asdict(config) | NOT_OF_TABLES,
    )
    if is_up_to_date(out, made_from, config.overwrite, [path, genome.path]):
        print(f"{out}: up to date")
        return
    table, counts = transcripts(genes, genome, config.flank)
    check_sites(counts, path, genome)
    splits, paralogs = split_genes(table, config)
    left_out = left_out | {name: counts[name] for name in LEFT_OUT} | {"paralogs on the test's chromosomes": paralogs}
    rule = (
        f"test: genes of {', '.join(config.test_chroms)} without paralogs; dev: a tenth of the others, drawn; "
        "train: the rest"
    )
    about = {
        "fingerprint": made_from,
        "task": "splice",
        "simulated": is_simulated(path, genome.path),
        "genes": path.name,
        "transcripts": CHOICE if is_gff(path) else "as given",
        "genome": genome.name,
        "split": rule,
        "left_out": left_out,
        "sites": {name: counts[name] for name in SITES},
        "config": asdict(config) | NOT_OF_TABLES,
    }
    with output_folder(out) as folder:
        write_tables(folder, {name: rows[list(COLUMNS)] for name, rows in splits.items()}, **about)
    if is_gff(path):
        print(f"{path}: of each gene {CHOICE}; which have paralogs it does not say: all count as having none")
    print(
        f"{path}: {sum(map(len, splits.values())):,} of {len(genes):,} genes; left out: "
        + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
    )
    print(
        f"{path}: introns begin with {DONOR} at {counts['donors reading GT']:,} of {counts['donors']:,} donors and end "
        f"with {ACCEPTOR} at {counts['acceptors reading AG']:,} of {counts['acceptors']:,} acceptors"
    )
    simulated = " (simulated data)" if about["simulated"] else ""
    print(f"{out}: " + ", ".join(f"{len(rows):,} genes to {name}" for name, rows in splits.items()) + simulated)


def transcripts(genes: list[GeneModel], genome: Genome, flank: int) -> tuple[pd.DataFrame, Counter]:
    """A row for each gene that can be used: `COLUMNS` and `paralog`; and counts, `LEFT_OUT` and `SITES`."""
    rows, counts = [], Counter(dict.fromkeys((*LEFT_OUT, *SITES), 0))
    for gene in genes:
        chromosome = genome.resolve(gene.chromosome)
        if chromosome is None or gene.end > genome.lengths[chromosome]:
            counts["outside the FASTA"] += 1
            continue
        if not gene.introns:
            counts["without introns"] += 1
            continue
        codes = flanked(genome, chromosome, gene.start, gene.end, flank)
        if (codes[flank : len(codes) - flank] == OTHER).mean() > MAX_N_SHARE:
            counts["mostly N"] += 1
            continue
        sequence = decode(codes if gene.strand == "+" else reverse_complement(codes))
        counts["donors"] += len(gene.donors)
        counts["acceptors"] += len(gene.acceptors)
        donors, acceptors = ([flank + place for place in places] for places in (gene.donors, gene.acceptors))
        counts["donors reading GT"] += sum(sequence[place + 1 : place + 3] == DONOR for place in donors)
        counts["acceptors reading AG"] += sum(sequence[place - 2 : place] == ACCEPTOR for place in acceptors)
        rows.append(
            {
                "gene": gene.name,
                "chrom": chromosome,
                "strand": gene.strand,
                "start": gene.start,
                "end": gene.end,
                "sequence": sequence,
                "acceptors": ",".join(map(str, gene.acceptors)),
                "donors": ",".join(map(str, gene.donors)),
                "paralog": gene.paralog,
            }
        )
    return pd.DataFrame(rows, columns=[*COLUMNS, "paralog"]), counts


def flanked(genome: Genome, chromosome: str, start: int, end: int, flank: int) -> np.ndarray:
    """Base codes from `start` - `flank` to `end` + `flank`; N past the chromosome's ends."""
    first, last = max(start - flank, 0), min(end + flank, genome.lengths[chromosome])
    return np.pad(
        genome.codes(chromosome, first, last),
        (first - (start - flank), end + flank - last),
        constant_values=OTHER,
    )


def check_sites(counts: Counter, path: Path, genome: Genome) -> None:
    """Raise `InputError` where the sites are not those of this genome."""
    if not counts["donors"]:
        reasons = ", ".join(f"{counts[reason]:,} {reason}" for reason in LEFT_OUT)
        raise InputError(f"{path}: no gene can be used ({reasons}); give the genome that they are of with --genome")
    for site, read, letters in (("donors", SITES[1], DONOR), ("acceptors", SITES[3], ACCEPTOR)):
        if counts[site] >= JUDGED and counts[read] < LEAST_SHARE * counts[site]:
            raise InputError(
                f"{path}: {counts[read]:,} of {counts[site]:,} {site} read {letters} in {genome.path}; the genes are "
                "of another assembly: give theirs with --genome"
            )


def split_genes(table: pd.DataFrame, config: SpliceConfig) -> tuple[dict[str, pd.DataFrame], int]:
    """SpliceAI's rule; also how many genes of the test's chromosomes have paralogs, which are left out. Raises
    `InputError`, naming the flag, for an empty split."""
    held_out = {name.removeprefix("chr") for name in config.test_chroms}
    in_test = table["chrom"].str.removeprefix("chr").isin(held_out)
    others, candidates = table[~in_test], table[in_test]
    drawn = np.random.default_rng(config.seed).permutation(len(others))[: max(round(DEV_SHARE * len(others)), 1)]
    in_dev = np.isin(np.arange(len(others)), drawn)
    splits = {"train": others[~in_dev], "dev": others[in_dev], "test": candidates[~candidates["paralog"]]}
    for name, rows in splits.items():
        if rows.empty:
            there = ", ".join(sorted(table["chrom"].unique())[:6])
            raise InputError(
                f"--test-chroms {' '.join(config.test_chroms)}: no gene is left for {name}, of {len(others)} on other "
                f"chromosomes and {len(candidates)} on these; genes lie on {there}: name some of them"
            )
    return splits, len(candidates) - len(splits["test"])
