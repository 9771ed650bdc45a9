"""What a task's splits hold, whatever the task: rows of sequences, with what is to be predicted of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.bases import decode, encode, reverse_complement

NO_LABEL = -100  # of a nucleotide: it counts nowhere, in PyTorch's cross-entropy as in the scores


@dataclass(frozen=True)
class Examples:
    """One split.

    sequences: a pool, letters; rows: int32 [n, haplotypes, regions], numbers in the pool of each row's sequences, which
    for all tasks of one sequence a row is [n, 1, 1]; targets: int64 [n] classes, int64 [n, nucleotides] classes in the
    middle of each sequence, or float32 [n, outputs]; names: of each row; path: the file it came from; features:
    float32 [n, features] that a baseline alone reads; binding: float16 [len(sequences), n_motifs], scanned from them.
    """

    sequences: Sequence[str]
    rows: np.ndarray
    targets: np.ndarray
    names: Sequence[str]
    path: Path
    features: np.ndarray | None = None
    binding: np.ndarray | None = None

    @classmethod
    def of_sequences(
        cls, sequences: Sequence[str], targets: np.ndarray, path: Path, names: Sequence[str] | None = None
    ) -> "Examples":
        """Rows of one sequence each; their names are their sequences unless given."""
        rows = np.arange(len(sequences), dtype=np.int32).reshape(-1, 1, 1)
        return cls(sequences, rows, targets, sequences if names is None else names, path)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sequence_of_each(self) -> list[str]:
        """The sequence of each row, of a task that has one."""
        assert self.rows.shape[1:] == (1, 1)
        return [self.sequences[number] for number in self.rows.ravel()]

    def take(self, rows: np.ndarray) -> "Examples":
        """These rows; the pool stays."""
        return replace(
            self,
            rows=self.rows[rows],
            targets=self.targets[rows],
            names=[self.names[row] for row in rows],
            features=None if self.features is None else self.features[rows],
        )

    def sequence(self, number: int) -> str:
        """A sequence of the pool; numbers from its size on are the same sequences' reverse complements."""
        strand, place = divmod(number, len(self.sequences))
        letters = self.sequences[place]
        return decode(reverse_complement(encode(letters))) if strand else letters
