"""Labelled sequences as splits: CSV or TSV files with columns `sequence` and `label`, one a split, in one folder."""

from pathlib import Path

import numpy as np

from data_prep.labelled_sequences import read_labelled, split_files
from finetune.examples import Examples


def read_splits(folder: Path | str, n_classes: int, shortest: int) -> dict[str, Examples]:
    """train, and whichever of dev and test there are, from `folder`/{train,dev,test}.{csv,tsv}, gzipped or not.

    Raises `InputError` for a missing folder or training file, no file to evaluate on, or rows that cannot be used.
    """
    return {split: read_table(path, n_classes, shortest) for split, path in split_files(Path(folder)).items()}


def read_table(path: Path, n_classes: int, shortest: int) -> Examples:
    """One file. Raises `InputError` as `data_prep.labelled_sequences.read_labelled` does."""
    sequences, labels = read_labelled(path, n_classes, shortest)
    return Examples.of_sequences(sequences, np.array(labels, np.int64), path)
