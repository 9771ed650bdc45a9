"""What a task is: what it reads and predicts, how it is scored, and the baselines beside the models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.config import FinetuneConfig
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.model import Target

Scores = dict[str, float | bool]


@dataclass(frozen=True)
class Table:
    """One table of a task, scored as one row of the results.

    splits: train, and dev or test or both; target: what is predicted of a row; bp: of a sequence that a model is to
    read, at most; about: what a saved model must know besides to read new input, for its task.json.
    """

    splits: dict[str, Examples]
    target: Target
    bp: int
    about: dict = field(default_factory=dict)

    @property
    def evaluated_on(self) -> str:
        return "test" if "test" in self.splits else "dev"

    @property
    def train(self) -> Examples:
        return self.splits["train"]

    @property
    def test(self) -> Examples:
        """The split that is scored."""
        return self.splits[self.evaluated_on]


@dataclass(frozen=True)
class Unit:
    """One model of one table, trained with one seed. folder: for what it writes meanwhile."""

    table: Table
    config: FinetuneConfig
    seed: int
    folder: Path


@dataclass(frozen=True)
class Baseline:
    """predict: from a unit to predictions over its test split, shaped as a model's (`training.predict`); seeded:
    whether another seed gives others."""

    predict: Callable[[Unit], np.ndarray]
    seeded: bool = False


@dataclass(frozen=True)
class Task:
    """summary: a line for --help; prepare: the command that makes its data; read: from a folder of one table, the
    encoder and the configuration to tables by name (`""` for one alone); score: from targets and predictions of the
    rows that are scored, and their table, for its outputs and training rows; columns: the scores that are printed;
    stranded: whether a sequence's strand matters, which --rc would undo; resamples: of the bootstrap; draw: figures, as
    (folder, table, predictions by model, title)."""

    summary: str
    prepare: str
    read: Callable[[Path, Encoder, FinetuneConfig], dict[str, Table]]
    score: Callable[[np.ndarray, np.ndarray, Table], Scores]
    columns: Sequence[str]
    draw: Callable[[Path, Table, dict[str, np.ndarray], str], None]
    baselines: dict[str, Baseline] = field(default_factory=dict)
    stranded: bool = False
    resamples: int = 1000
