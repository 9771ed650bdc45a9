"""What of a split is explained: the rows, or the nucleotides, that a model predicts highest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep.errors import InputError
from finetune.attribution import token_spans
from finetune.config import FinetuneConfig
from finetune.examples import NO_LABEL, Examples
from finetune.run import read_tables
from finetune.scoring import Scorer
from finetune.task import Table
from finetune.tasks import TASKS


@dataclass(frozen=True)
class Chosen:
    """table: of rows.tsv, with columns row and predicted among others; sequences: letters of each row; titles: of each,
    for figures; places: of each row's nucleotide among those that the model predicts, 0 for whole rows; firsts: the
    position of each sequence's first base; label: of the axis of positions; among: how many there were to choose from.
    """

    table: pd.DataFrame
    sequences: list[str]
    titles: list[str]
    places: list[int]
    firsts: list[int]
    label: str
    among: int

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def first(self) -> int:
        """The lowest position of any row."""
        return min(self.firsts)


def aligned(of_rows: Iterable[np.ndarray], firsts: list[int]) -> np.ndarray:
    """Arrays [..., bp] of rows of any length by position, float64 [rows, ..., positions], NaN where a row has none.
    firsts: position of each row's first base; the lowest of them is the result's first."""
    arrays = list(of_rows)
    start = min(firsts)
    end = max(first + array.shape[-1] for first, array in zip(firsts, arrays, strict=True))
    every = np.full((len(arrays), *arrays[0].shape[:-1], end - start), np.nan)
    for row, first, array in zip(every, firsts, arrays, strict=True):
        row[..., first - start : first - start + array.shape[-1]] = array
    return every


def table_of(task: str, name: str | None, data: Path, scorer: Scorer) -> tuple[str, Table]:
    """The table's name, and the table as the model reads it. Raises `InputError` where it is not clear which."""
    target = scorer.model.target
    of_model = {"context": [scorer.bp - target.positions]} if target.kind == "nucleotides" else {}
    tables = read_tables(data, TASKS[task], scorer.encoder, FinetuneConfig(task, **of_model))
    if name is None and len(tables) == 1:
        return task, next(iter(tables.values()))
    if name not in tables:
        given = "" if name is None else f" {name}"
        raise InputError(f"--table{given}: {data} holds {', '.join(tables)}; give one of these")
    return f"{task} {name}", tables[name]


def choose(scorer: Scorer, examples: Examples, output: int, n: int, batch_size: int, to_gene: bool) -> Chosen:
    """The n rows of a split, or nucleotides, with the highest predictions of an output, best first. to_gene: whether a
    gene follows the sequences, and positions count from it."""
    predicted = predictions(scorer, examples, output, batch_size)
    if scorer.model.target.kind == "nucleotides":
        return nucleotides(scorer, examples, n, predicted)
    rows = np.argsort(-predicted, kind="stable")[:n]
    names = [examples.names[row] for row in rows]
    sequences = [examples.sequences[number] for number in examples.rows[rows].ravel()]
    return Chosen(
        pd.DataFrame({"row": rows, "name": names, "predicted": predicted[rows]}),
        sequences,
        [f"row {row}" for row in rows],
        [0] * len(rows),
        [-len(sequence) if to_gene else 0 for sequence in sequences],
        "bp from the gene" if to_gene else "bp from the sequence's first base",
        len(predicted),
    )


def nucleotides(scorer: Scorer, examples: Examples, n: int, predicted: np.ndarray) -> Chosen:
    """The n nucleotides with the highest predictions, each in the window in which it was predicted; positions count
    from it. predicted: float64 [windows, positions]."""
    known = examples.targets != NO_LABEL  # past a transcript's end there is none
    best = np.argsort(-np.where(known, predicted, -np.inf), axis=None, kind="stable")[: min(n, known.sum())]
    windows, places = np.divmod(best, predicted.shape[1])
    names = []
    for window, place in zip(windows.tolist(), places.tolist(), strict=True):
        gene, _, first = examples.names[window].rpartition(":")
        names.append(f"{gene}:{int(first) + place}")
    table = pd.DataFrame(
        {
            "row": np.arange(len(best)),
            "name": names,
            "class": [scorer.outputs[number] for number in examples.targets[windows, places]],
            "predicted": predicted[windows, places],
        }
    )
    beside = (scorer.bp - predicted.shape[1]) // 2
    return Chosen(
        table,
        [examples.sequences[window] for window in windows.tolist()],
        names,
        places.tolist(),
        (-beside - places).tolist(),
        "bp from the predicted nucleotide",
        int(known.sum()),
    )


def predictions(scorer: Scorer, examples: Examples, output: int, batch_size: int) -> np.ndarray:
    """One output's of every row: float64 [n], of nucleotides [n, positions]."""
    starts = range(0, len(examples), batch_size)
    return np.concatenate(
        [
            scorer(examples.take(np.arange(i, min(i + batch_size, len(examples)))).sequence_of_each)[..., output]
            for i in tqdm(starts, "predictions", disable=None)
        ]
    )


def say_what_is_cut(scorer: Scorer, sequences: list[str]) -> None:
    """Say how many rows the model does not read to their ends."""
    spans = [token_spans(scorer.encoder.tokens, sequence, scorer.about["longest"]) for sequence in sequences]
    read = [int(one[-2, 1] - one[1, 0]) for one in spans]
    cut = [bp for bp, sequence in zip(read, sequences, strict=True) if bp < len(sequence)]
    if cut:
        print(f"{len(cut):,} of them are not read whole, but {min(cut):,} bp of each at least; the rest scores 0")
