"""Labelled sequences: CSV or TSV files with columns `sequence` and `label`, one a split, in one folder."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from data_prep.errors import InputError, one_line
from data_prep.task_table import SPLITS

ENDINGS = ("csv", "tsv", "csv.gz", "tsv.gz")
IUPAC = re.compile(r"[ACGTUNRYSWKMBDHV]+", re.IGNORECASE)


def split_files(folder: Path, flag: str = "--data") -> dict[str, Path]:
    """The file of each split in `folder`: train, and whichever of dev and test there are, gzipped or not.

    Raises `InputError` for a missing folder (to be named with `flag`) or training file, no file to evaluate on, or two
    files of a split.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with train.csv and dev.csv or test.csv with {flag}")
    found = {}
    for split in SPLITS:
        paths = [folder / f"{split}.{ending}" for ending in ENDINGS if (folder / f"{split}.{ending}").is_file()]
        if len(paths) > 1:
            raise InputError(f"{folder}: holds {paths[0].name} and {paths[1].name}; remove one")
        if paths:
            found[split] = paths[0]
    if "train" not in found or len(found) < 2:
        there = ", ".join(found) or "none of them"
        raise InputError(f"{folder}: needs train.csv (or .tsv) and dev.csv or test.csv; there is {there}")
    return found


def read_labelled(path: Path, n_classes: int, shortest: int) -> tuple[list[str], list[int]]:
    """The sequences and labels of one file. A sequence is letters, or DNABERT's k-mer sentence, which is joined again.

    Raises `InputError`, with the line, for a missing column, a letter outside IUPAC, a sequence shorter than
    `shortest`, or a label outside 0 ... n_classes - 1; also where only one class occurs.
    """
    sequences, labels = [], []
    for line, row in read_rows(path, ("sequence", "label")):
        sequences.append(checked_sequence(row["sequence"], shortest, f"{path}:{line}"))
        if row["label"] not in map(str, range(n_classes)):
            raise InputError(
                f"{path}:{line}: label {row['label']!r}; this task has {n_classes} classes, 0 to {n_classes - 1}"
            )
        labels.append(int(row["label"]))
    if len(set(labels)) < 2:
        raise InputError(f"{path}: holds {len(labels)} rows of fewer than two classes; nothing can be learnt from it")
    return sequences, labels


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV or TSV file, gzipped or not, with their lines. Raises `InputError` where it has not all of
    `columns`, or cannot be read."""
    separator = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    try:
        opened = (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", newline="", encoding="utf-8-sig", errors="replace"
        )
        with opened as file:
            rows = csv.DictReader(file, delimiter=separator)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path}: has no column {missing[0]!r}; its columns are {', '.join(rows.fieldnames or ())}"
                )
            for row in rows:
                yield rows.line_num, {name: value or "" for name, value in row.items() if name is not None}
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}; make or copy it again") from error


def checked_sequence(text: str, shortest: int, where: str) -> str:
    """The letters of a sequence or k-mer sentence. Raises `InputError` for letters outside IUPAC, and for fewer than
    `shortest` of them."""
    try:
        sequence = joined(text)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not IUPAC.fullmatch(sequence):
        raise InputError(f"{where}: not a DNA sequence: {sequence[:30]!r}")
    if len(sequence) < shortest:
        raise InputError(f"{where}: {len(sequence)} bp; the shortest usable is {shortest}")
    return sequence


def joined(sequence: str) -> str:
    """The letters of a sequence, or of a k-mer sentence (`ACGTAC CGTACG`), upper-case.

    Raises `ValueError` for words that do not overlap by all but one letter.
    """
    words = sequence.upper().split()
    for word, following in pairwise(words):
        if word[1:] != following[:-1]:
            raise ValueError(f"{word} and {following} are no neighbouring k-mers of one sequence")
    return words[0] + "".join(word[-1] for word in words[1:]) if words else ""
