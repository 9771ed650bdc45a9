"""Score new sequence with a fine-tuned model.

    python finetune/predict.py --model runs/finetune-promoter/pretrained --input sequences.fa
    python finetune/predict.py --model runs/finetune-tfbs/K562_CTCF/pretrained --input peaks.bed --genome hg19.fa
    python finetune/predict.py --model runs/finetune-promoter/pretrained --input variants.vcf.gz --genome hg19.fa
    python finetune/predict.py --model runs/finetune-hscr/pretrained --input cohort.vcf.gz --genome hg19.fa

--input is FASTA, a CSV or TSV with a column `sequence`, BED (intervals, read on their strand) or VCF, gzipped or not,
of any size. The output is a TSV: what identifies a row, then the probability of each class but the first, or each
value; of a model of nucleotides, a line for each nucleotide that is likely not of the first class. A VCF gives a line
for each alternative allele: the prediction with the reference, with the allele, and the change; of a model of
nucleotides, the largest gain and loss of each class around it. Of a model of hscr, a VCF gives a line for each person,
over the regions that the model was trained on; sites that it does not list are taken as the reference.
"""

import argparse
import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm
from transformers import HfArgumentParser

from data_prep.bases import OTHER, decode, encode, reverse_complement
from data_prep.errors import InputError, ends_on_input_error, one_line, shown
from data_prep.genome import Genome
from data_prep.labelled_sequences import checked_sequence, read_rows
from data_prep.output_folder import check_writable
from data_prep.promoters import FASTA_SUFFIXES, records
from finetune.people import score_people
from finetune.scoring import Scorer, in_batches
from finetune.variant_effects import score_variants

TABLES, INTERVALS, VARIANTS = (".csv", ".tsv"), (".bed", ".narrowPeak"), (".vcf",)


@dataclass(frozen=True)
class PredictConfig:
    model: str = field(metadata={"help": "Folder of a fine-tuned model, as finetune/run.py saves it."})
    input: str = field(metadata={"help": "FASTA, CSV, TSV, BED, narrowPeak or VCF, by its name; gzipped or not."})
    genome: str | None = field(default=None, metadata={"help": "FASTA of the genome, for BED and VCF."})
    out: str | None = field(default=None, metadata={"help": "TSV to write; default: standard output."})
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Read longer sequences in windows as long as the model's training sequences, so many bp apart; "
            "default: each sequence as it is."
        },
    )
    threshold: float = field(
        default=0.1, metadata={"help": "Of nucleotides: those with a class but the first at least so probable."}
    )
    batch_size: int = field(default=128, metadata={"help": "Sequences, or people, in a batch."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the file --out."})


@dataclass(frozen=True)
class Piece:
    """A sequence that a model reads at once. ids: what identifies it, by the header; first: place of its first
    predicted nucleotide in the sequence that it was cut from; predicted: how many of them are real."""

    ids: tuple[str, ...]
    sequence: str
    first: int = 0
    predicted: int = 0


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        PredictConfig,
        prog="finetune/predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    (config,) = parser.parse_args_into_dataclasses(arguments)
    run(config)


def run(config: PredictConfig) -> None:
    """Score the input. Raises `InputError` for bad input, before or, with its line, where it is read."""
    for name in ("stride", "batch_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: give at least 1")
    kind = kind_of(config)
    scorer = Scorer.of(Path(config.model), config.bf16)
    if scorer.reads_people and kind not in VARIANTS:
        raise InputError(f"--input {config.input}: {config.model} scores people; give a VCF of their genotypes")
    with output(config) as file:
        if kind in VARIANTS:
            score = score_people if scorer.reads_people else score_variants
            score(Path(config.input), Genome(config.genome), scorer, config.batch_size, file)
        else:
            score_sequences(config, scorer, kind, file)


def kind_of(config: PredictConfig) -> str:
    """The input's format, as the ending of its name. Raises `InputError` for one that is none, or lacks its genome."""
    path = Path(config.input)
    if not path.is_file():
        raise InputError(f"--input {path}: no such file")
    known = (*FASTA_SUFFIXES, *TABLES, *INTERVALS, *VARIANTS)
    kind = next((ending for ending in known if path.name.removesuffix(".gz").endswith(ending)), None)
    if kind is None:
        raise InputError(f"--input {path}: its name ends on none of {', '.join(known)} (or these with .gz)")
    if kind in (*INTERVALS, *VARIANTS) and not config.genome:
        raise InputError(f"--input {path}: give the FASTA that its coordinates are of with --genome")
    return kind


@contextmanager
def output(config: PredictConfig) -> Iterator[TextIO]:
    """Standard output, or a file that appears when it is whole."""
    if config.out is None:
        yield sys.stdout
        return
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise InputError(f"--out {out}: is there already; choose another file, or give --overwrite")
    check_writable(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    try:
        with open(partial, "w") as file:
            yield file
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)


def score_sequences(config: PredictConfig, scorer: Scorer, kind: str, file: TextIO) -> None:
    """A line for each sequence, window or likely nucleotide."""
    target, said = scorer.model.target, Counter()
    shown = slice(1 if target.kind != "values" else 0, None)
    columns, whole = sequences(config, kind)
    if target.kind == "nucleotides":
        columns += ("position",)
    elif config.stride:
        columns += ("window_start", "window_end")
    print(*columns, *scorer.outputs[shown], sep="\t", file=file)
    cut = of_nucleotides(scorer) if target.kind == "nucleotides" else of_rows(config.stride, scorer, said)
    shortest = scorer.encoder.k or 1

    def pieces() -> Iterator[Piece]:
        for ids, codes in whole:
            if len(codes) < shortest:
                raise InputError(f"{config.input}: {ids[0]}: {len(codes)} bp; the shortest usable is {shortest}")
            yield from cut(ids, codes)

    for batch in in_batches(tqdm(pieces(), desc=config.input, unit="sequence", disable=None), config.batch_size):
        for piece, found in zip(batch, scorer([piece.sequence for piece in batch]), strict=True):
            if target.kind != "nucleotides":
                print(*piece.ids, *_numbers(found[shown]), sep="\t", file=file)
                continue
            likely = found[: piece.predicted, shown].max(-1) >= config.threshold
            for place in np.flatnonzero(likely).tolist():
                print(*piece.ids, piece.first + place, *_numbers(found[place, shown]), sep="\t", file=file)
    if said["cut"]:
        print(
            f"{said['cut']:,} sequences were cut to what the model reads; --stride reads all of them", file=sys.stderr
        )


def sequences(config: PredictConfig, kind: str) -> tuple[tuple[str, ...], Iterator[tuple[tuple[str, ...], np.ndarray]]]:
    """The columns that identify a sequence, and each one's values of these with its base codes."""
    path = Path(config.input)
    if kind in FASTA_SUFFIXES:
        return ("name",), (((name,), codes) for name, codes in records(path))
    if kind in TABLES:
        rows = read_rows(path, ("sequence",))
        line, first = next(rows, (0, {}))
        if not first:
            raise InputError(f"{path}: holds no row")
        return tuple(first), (
            (tuple(row.values()), encode(checked_sequence(row["sequence"], 1, f"{path}:{number}")))
            for number, row in chain([(line, first)], rows)
        )
    genome = Genome(config.genome)
    return ("chrom", "start", "end", "strand"), intervals(path, genome)


def intervals(path: Path, genome: Genome) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The intervals of a BED file on their strands (column 6; else the forward one).

    Raises `InputError`, with the line, for one that is none, or that the genome does not have.
    """
    for number, fields in read_bed(path):
        chromosome, strand = genome.resolve(fields[0]), fields[5] if len(fields) > 5 else "+"
        start, end = int(fields[1]), int(fields[2])
        if chromosome is None or end > genome.lengths[chromosome]:
            raise InputError(
                f"{path}:{number}: {fields[0]}:{start}-{end} is not in {genome.path}; give the FASTA of its assembly"
            )
        codes = genome.codes(chromosome, start, end)
        yield (*fields[:3], strand), reverse_complement(codes) if strand == "-" else codes


def read_bed(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a BED file by their numbers, as fields. Raises `InputError` for one that is no interval."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith(("#", "track", "browser")):
                    continue
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
                    raise InputError(f"{path}:{number}: no BED line (chromosome, start, end, by tabs): {shown(line)}")
                if int(fields[1]) >= int(fields[2]):
                    raise InputError(f"{path}:{number}: {fields[1]} to {fields[2]} is no interval (BED: start < end)")
                yield number, fields
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as BED: {one_line(error)}") from error


Cutter = Callable[[tuple[str, ...], np.ndarray], Iterator[Piece]]


def of_rows(stride: int | None, scorer: Scorer, said: Counter) -> Cutter:
    """Cuts a sequence into windows `stride` bp apart, the last one at its end; or leaves it, counting what is too long
    to be read whole."""
    k = scorer.encoder.k
    longest = scorer.about["longest"] + k - 3 if k else None

    def cut(ids: tuple[str, ...], codes: np.ndarray) -> Iterator[Piece]:
        if stride is None:
            said["cut"] += bool(longest and len(codes) > longest)
            yield Piece(ids, decode(codes))
            return
        last = max(len(codes) - scorer.bp, 0)
        for start in dict.fromkeys([*range(0, last, stride), last]):
            end = min(start + scorer.bp, len(codes))
            yield Piece((*ids, str(start), str(end)), decode(codes[start:end]))

    return cut


def of_nucleotides(scorer: Scorer) -> Cutter:
    """Cuts a sequence into windows whose predicted nucleotides tile it; beyond its ends there is N."""
    positions = scorer.model.target.positions
    beside = (scorer.bp - positions) // 2

    def cut(ids: tuple[str, ...], codes: np.ndarray) -> Iterator[Piece]:
        padded = np.pad(codes, (beside, beside + positions), constant_values=OTHER)
        for first in range(0, len(codes), positions):
            window = decode(padded[first : first + scorer.bp])
            yield Piece(ids, window, first, min(positions, len(codes) - first))

    return cut


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.6f}" for value in values]


if __name__ == "__main__":
    main()
