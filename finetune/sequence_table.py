"""Labelled sequences: CSV or TSV files with columns `sequence` and `label`, one a split, in one folder."""

import csv
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError

SPLITS = ("train", "dev", "test")
IUPAC = re.compile(r"[ACGTUNRYSWKMBDHV]+", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledSequences:
    """One split. sequences: letters; labels: int64 [n], 0 ... n_classes - 1; path: the file it came from."""

    sequences: list[str]
    labels: np.ndarray
    path: Path

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: np.ndarray) -> "LabelledSequences":
        return LabelledSequences([self.sequences[row] for row in rows], self.labels[rows], self.path)


def read_splits(folder: Path | str, n_classes: int, shortest: int) -> dict[str, LabelledSequences]:
    """train, and whichever of dev and test there are, from `folder`/{train,dev,test}.{csv,tsv}.

    Raises `InputError` for a missing folder or training file, no file to evaluate on, or rows that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with train.csv and dev.csv or test.csv with --data")
    found = {}
    for split in SPLITS:
        paths = [folder / f"{split}.{ending}" for ending in ("csv", "tsv") if (folder / f"{split}.{ending}").is_file()]
        if len(paths) > 1:
            raise InputError(f"{folder}: holds {paths[0].name} and {paths[1].name}; remove one")
        if paths:
            found[split] = read_table(paths[0], n_classes, shortest)
    if "train" not in found or len(found) < 2:
        there = ", ".join(found) or "none of them"
        raise InputError(f"{folder}: needs train.csv (or .tsv) and dev.csv or test.csv; there is {there}")
    return found


def read_table(path: Path, n_classes: int, shortest: int) -> LabelledSequences:
    """One file. A sequence is letters, or DNABERT's k-mer sentence, which is joined again.

    Raises `InputError`, with the line, for a missing column, a letter outside IUPAC, a sequence shorter than
    `shortest`, or a label outside 0 ... n_classes - 1; also where only one class occurs.
    """
    sequences, labels = [], []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        missing = {"sequence", "label"} - set(rows.fieldnames or ())
        if missing:
            raise InputError(
                f"{path}: has no column {min(missing)!r}; its columns are {', '.join(rows.fieldnames or ())}"
            )
        for row in rows:
            try:
                sequence = joined(row["sequence"] or "")
            except ValueError as error:
                raise InputError(f"{path}:{rows.line_num}: {error}") from None
            if not IUPAC.fullmatch(sequence):
                raise InputError(f"{path}:{rows.line_num}: not a DNA sequence: {sequence[:30]!r}")
            if len(sequence) < shortest:
                raise InputError(f"{path}:{rows.line_num}: {len(sequence)} bp; the shortest usable is {shortest}")
            if row["label"] not in map(str, range(n_classes)):
                raise InputError(
                    f"{path}:{rows.line_num}: label {row['label']!r}; this task has {n_classes} classes, "
                    f"0 to {n_classes - 1}"
                )
            sequences.append(sequence)
            labels.append(int(row["label"]))
    if len(set(labels)) < 2:
        raise InputError(f"{path}: holds {len(labels)} rows of fewer than two classes; nothing can be learnt from it")
    return LabelledSequences(sequences, np.array(labels, np.int64), path)


def joined(sequence: str) -> str:
    """The letters of a sequence, or of a k-mer sentence (`ACGTAC CGTACG`), upper-case.

    Raises `ValueError` for words that do not overlap by all but one letter.
    """
    words = sequence.upper().split()
    for word, following in pairwise(words):
        if word[1:] != following[:-1]:
            raise ValueError(f"{word} and {following} are no neighbouring k-mers of one sequence")
    return words[0] + "".join(word[-1] for word in words[1:]) if words else ""


def fingerprints(splits: dict[str, LabelledSequences]) -> dict[str, str]:
    """sha256 of each split's file."""
    return {name: sha256_of_file(split.path) for name, split in splits.items()}
