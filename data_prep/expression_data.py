"""`expression`: promoters and a table of TPM to a table of genes, their promoters, and TPM in each tissue (CornBERT).

A promoter is 1,000 bp upstream of a gene on its strand. Genes are split into training, dev and test by a hash of their
promoters, so that equal promoters lie on one side.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data_prep.bases import encode
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError, shown
from data_prep.expression_table import Cells, matched, read_expression
from data_prep.gene_promoters import Promoters, checked_codes, read_promoters, upstream_promoters
from data_prep.genome import Genome
from data_prep.output_folder import fingerprint, is_up_to_date, output_folder
from data_prep.promoters import SHORTEST
from data_prep.task_table import SPLITS, is_simulated, write_tables

MADE_BY = 1  # to be raised where the same input gives other bytes than before
DEMO = {
    "genome": "data/demo/simulated_genome.fa",
    "annotation": "data/demo/expression/genes.gff3",
    "tpm": "data/demo/expression/tpm.tsv",
}
DIGITS = 6  # of TPM after the point
SMALLEST_LABEL = 0.001  # of labels that are log2(TPM + 0.001)

# What a label says, as TPM, by --label_scale; and the same in words.
TPM_OF_LABEL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log2": lambda labels: np.maximum(np.exp2(labels) - SMALLEST_LABEL, 0),
    "log1p": lambda labels: np.maximum(np.expm1(labels), 0),
    "tpm": lambda labels: labels,
}
SCALE = {
    "log2": "TPM = 2**label - 0.001, at least 0; up to the constant of each tissue by which the labels were scaled",
    "log1p": "TPM = exp(label) - 1, at least 0; up to the constant of each tissue by which the labels were scaled",
    "tpm": "labels are TPM",
}


@dataclass(frozen=True)
class ExpressionConfig:
    promoters: str | None = field(
        default=None,
        metadata={
            "help": "FASTA of promoters, named by genes, or a TSV or CSV with columns gene and sequence; or give "
            "--genome and --annotation. With no input at all: the simulated genes of data/demo."
        },
    )
    genome: str | None = field(default=None, metadata={"help": "FASTA of the genome; plain or bgzip."})
    annotation: str | None = field(
        default=None, metadata={"help": "GTF or GFF3 of its genes, gzipped or not; promoters are cut upstream of them."}
    )
    tpm: str | None = field(
        default=None, metadata={"help": "TSV or CSV of TPM in each tissue, genes in rows or in columns."}
    )
    tables: list[str] | None = field(
        default=None,
        metadata={
            "help": "In place of all these: tables with columns sequence and labels ('[0.1, 2.3]', a number for each "
            "tissue). One, to be split, or two, to train and to test on."
        },
    )
    label_scale: Literal["log2", "log1p", "tpm"] = field(
        default="log2",
        metadata={"help": "What the labels of --tables are: log2(TPM + 0.001), natural log(TPM + 1), or TPM."},
    )
    tissues: list[str] | None = field(
        default=None,
        metadata={"help": "Tissues to take from --tpm, default: all; of --tables: their names in the labels' order."},
    )
    bp: int = field(
        default=1000, metadata={"help": "Length of a promoter; of a longer one the last bases stay, next to the gene."}
    )
    test_share: float = field(default=0.3, metadata={"help": "Share of the genes to test on."})
    dev_share: float = field(default=0.1, metadata={"help": "Share of the other genes for dev."})
    seed: int = field(default=0, metadata={"help": "Seed of the split."})
    out: str = field(default="data/expression", metadata={"help": "Folder to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: ExpressionConfig) -> None:
    """Write the tables of `config`, or say that they are there. Raises `InputError` for bad input."""
    check(config)
    if not any((config.promoters, config.genome, config.annotation, config.tpm, config.tables)):
        config = ExpressionConfig(**asdict(config) | DEMO)
    inputs = inputs_of(config)
    out = Path(config.out)
    made_from = fingerprint(
        expression=MADE_BY,
        labelled=bool(config.tables),
        inputs=[[path.name, sha256_of_file(path)] for path in inputs],
        config=asdict(config) | dict.fromkeys(("out", "overwrite", *DEMO, "promoters", "tables")),
    )
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return
    rows, split, about, said = of_tables(config) if config.tables else of_genes(config)
    splits = {name: rows[split == name] for name in SPLITS}
    with output_folder(out) as folder:
        write_tables(
            folder,
            splits,
            fingerprint=made_from,
            task="expression",
            simulated=is_simulated(*inputs),
            tissues=list(rows.columns[2:]),
            **about,
            config=asdict(config) | dict.fromkeys(("out", "overwrite")),
        )
    simulated = " (simulated data)" if is_simulated(*inputs) else ""
    print(
        f"{out}: {len(rows):,} genes in {len(rows.columns) - 2} tissues{simulated}, "
        f"{', '.join(f'{len(here):,} {name}' for name, here in splits.items())}"
    )
    print("\n".join(said))


def check(config: ExpressionConfig) -> None:
    """Raise `InputError` for values that no table can be made with."""
    if config.bp < SHORTEST:
        raise InputError(f"--bp {config.bp}: give at least {SHORTEST}")
    for name in ("test_share", "dev_share"):
        if not 0 < getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: give more than 0 and less than 1")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed}: give a whole number from 0 to 4294967295")


def inputs_of(config: ExpressionConfig) -> list[Path]:
    """The files to read. Raises `InputError` where one is missing, or where they are not those of one way."""
    cut = [config.genome, config.annotation]
    if sum(map(bool, (config.tables, config.promoters, any(cut)))) != 1:
        raise InputError("give one of --promoters, --genome with --annotation, and --tables")
    if any(cut) and not all(cut):
        raise InputError("--genome and --annotation: give both")
    if bool(config.tables) == bool(config.tpm):
        raise InputError("--tpm: give it with promoters, and not with --tables, which hold expression")
    if config.tables and len(config.tables) > 2:
        raise InputError(f"--tables {config.tables[2]}: give one table, or two: to train and to test on")
    paths = [Path(path) for path in (*(config.tables or ()), config.promoters, *cut, config.tpm) if path]
    for path in paths:
        if not path.is_file():
            hint = "; make it with: python data_prep/main.py simulate" if str(path) in DEMO.values() else ""
            raise InputError(f"{path}: no such file{hint}")
    return paths


def of_genes(config: ExpressionConfig) -> tuple[pd.DataFrame, np.ndarray, dict, list[str]]:
    """Rows of gene, sequence and TPM of each tissue; the split of each; what the manifest says; what is printed."""
    if config.promoters:
        promoters, genome = read_promoters(Path(config.promoters), config.bp), None
    else:
        fasta = Genome(config.genome)
        promoters, genome = upstream_promoters(fasta, Path(config.annotation), config.bp), fasta.name
    expression = read_expression(Path(config.tpm), promoters.names, config.tissues)
    kept, tpm, counts = matched(promoters.names, expression)
    names, sequences = ([column[number] for number in kept] for column in (promoters.names, promoters.sequences))
    about = {
        "genome": genome,
        "split_rule": hashed_rule(config),
        "scale": "TPM",
        "counts": {
            **{f"promoters_{fate}": int(count) for fate, count in sorted(promoters.counts.items())},
            "genes_in": expression.genes_in,
            "tpm_genes": len(expression.genes),
            "replicates_averaged": expression.replicates - len(expression.tissues),
            "columns_ignored": expression.ignored,
            **counts,
        },
    }
    said = [
        f"promoters: {promoters.fates()}",
        *([f"{promoters.counts['clipped']:,} cut short by a chromosome's end"] * bool(promoters.counts["clipped"])),
        f"TPM: {len(expression.genes):,} genes in {expression.genes_in}; {counts['tpm_without_promoter']:,} have no "
        f"promoter, {counts['promoters_without_tpm']:,} promoters have no TPM",
        *_notes(expression.replicates, expression.tissues, expression.ignored, counts),
    ]
    return rows_of(names, sequences, expression.tissues, tpm), split_by_hash(sequences, config), about, said


def _notes(replicates: int, tissues: list[str], ignored: list[str], counts: dict[str, int]) -> list[str]:
    notes = []
    if replicates > len(tissues):
        notes.append(f"{replicates:,} replicates averaged to {len(tissues)} tissues")
    if ignored:
        notes.append(f"columns of words ignored: {', '.join(ignored)}")
    if counts["genes_summed_over_transcripts"]:
        notes.append(f"{counts['genes_summed_over_transcripts']:,} genes: TPM summed over their transcripts")
    if counts["promoters_of_other_transcripts"]:
        notes.append(f"{counts['promoters_of_other_transcripts']:,} promoters left out: their gene has an earlier one")
    return notes


def of_tables(config: ExpressionConfig) -> tuple[pd.DataFrame, np.ndarray, dict, list[str]]:
    """As `of_genes`, of tables whose promoters have labels."""
    promoters, labels, source = Promoters.empty(), [], []
    for number, path in enumerate(map(Path, config.tables)):
        cells = Cells.read(path)
        sequence, label = cells.column("sequence"), cells.column("labels")
        for line, row in zip(cells.lines, cells.rows, strict=True):
            where = f"{path}:{line}"
            name = row[cells.column("gene")] if "gene" in cells.header else f"{path.name.partition('.')[0]}:{line}"
            values = labels_of(row[label], len(labels[0]) if labels else None, where)
            if promoters.add(name, checked_codes(row[sequence], where)[-config.bp :]):
                labels.append(values)
                source.append(number)
    promoters.checked(Path(config.tables[0]))
    tissues = config.tissues or [f"tissue{number + 1}" for number in range(len(labels[0]))]
    if len(tissues) != len(labels[0]):
        raise InputError(f"--tissues: {len(tissues)} names, but {config.tables[0]} has labels of {len(labels[0])}")
    with np.errstate(over="ignore"):
        tpm = TPM_OF_LABEL[config.label_scale](np.array(labels))
    wrong = np.flatnonzero(~((tpm >= 0) & (tpm < np.inf)).all(axis=1))
    if len(wrong):
        name = promoters.names[wrong[0]]
        raise InputError(f"{name}: a label that is no TPM by --label_scale {config.label_scale}; give another scale")
    if len(config.tables) == 2:
        split = split_by_hash(promoters.sequences, config, test_share=0.0)
        split[np.array(source) == 1] = "test"
        to_train, to_test = (Path(path).name for path in config.tables)
        rule = (
            f"{to_test} to test; of {to_train}, by a hash of the promoter's bases and seed {config.seed}, a share of "
            f"{config.dev_share:g} to dev, the rest to train"
        )
    else:
        split, rule = split_by_hash(promoters.sequences, config), hashed_rule(config)
    about = {
        "genome": None,
        "split_rule": rule,
        "scale": SCALE[config.label_scale],
        "counts": {f"promoters_{fate}": int(count) for fate, count in sorted(promoters.counts.items())},
    }
    said = [f"promoters: {promoters.fates()}", SCALE[config.label_scale]]
    return rows_of(promoters.names, promoters.sequences, tissues, tpm), split, about, said


def labels_of(text: str, length: int | None, where: str) -> list[float]:
    """A list of numbers. Raises `InputError` where it is none, or has not as many as `length`."""
    try:
        values = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError):
        values = np.zeros(0)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"{where}: labels {shown(text)} are no list of numbers such as [0.5, -1.25]")
    if length is not None and len(values) != length:
        raise InputError(f"{where}: {len(values)} labels, where the rows before it have {length}")
    return values.tolist()


def rows_of(names: list[str], sequences: list[str], tissues: list[str], tpm: np.ndarray) -> pd.DataFrame:
    """One row a gene: gene, sequence, and TPM of each tissue. Raises `InputError` for tissues of one name."""
    columns = ["gene", "sequence", *tissues]
    if len(set(columns)) < len(columns):
        raise InputError(f"tissues {', '.join(tissues)}: give each a name of its own, other than gene and sequence")
    return pd.DataFrame(
        {"gene": names, "sequence": sequences} | dict(zip(tissues, np.round(tpm.T, DIGITS), strict=True))
    )


def split_by_hash(sequences: list[str], config: ExpressionConfig, test_share: float | None = None) -> np.ndarray:
    """The split of each promoter, [n] of `SPLITS`, by a uniform hash of its bases and the seed."""
    test_share = config.test_share if test_share is None else test_share
    key = config.seed.to_bytes(4, "little")
    digests = b"".join(hashlib.blake2b(encode(s).tobytes(), digest_size=8, key=key).digest() for s in sequences)
    uniform = np.frombuffer(digests, "<u8") / 2**64
    in_dev = uniform < test_share + (1 - test_share) * config.dev_share
    return np.where(uniform < test_share, "test", np.where(in_dev, "dev", "train")).astype(object)


def hashed_rule(config: ExpressionConfig) -> str:
    return (
        f"by a hash of the promoter's bases and seed {config.seed}: a share of {config.test_share:g} of the genes to "
        f"test, of the others {config.dev_share:g} to dev, the rest to train"
    )
