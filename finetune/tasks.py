"""The tasks: what each reads, how many classes it has, and where its data lie by default.

A task is one entry here; `run.py` treats all alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

from finetune.sequence_table import LabelledSequences, read_splits

Splits = dict[str, LabelledSequences]


@dataclass(frozen=True)
class Task:
    """summary: a line for --help; n_classes: of its label; default_data: folder; read: from a folder and the shortest
    usable sequence (bp) to splits."""

    summary: str
    n_classes: int
    default_data: str
    read: Callable[[str, int], Splits]


def _read_binary(folder: str, shortest: int) -> Splits:
    return read_splits(folder, n_classes=2, shortest=shortest)


TASKS = {
    "promoter": Task(
        summary="promoters against other sequence: {train,dev,test}.csv of sequence,label",
        n_classes=2,
        default_data="data/demo/promoter",
        read=_read_binary,
    ),
}
