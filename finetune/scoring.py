"""Predictions of a fine-tuned model, of any sequences or rows of several."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data_prep.bases import encode
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.model import TaskModel, load
from finetune.training import Collator, Row


@dataclass(frozen=True)
class Scorer:
    """A fine-tuned model, ready to read. about: of its task.json."""

    model: TaskModel
    encoder: Encoder
    about: dict
    device: torch.device
    bf16: bool = False

    @classmethod
    def of(cls, folder: Path, bf16: bool = False) -> "Scorer":
        """The model that finetune/run.py saved in a folder, on the GPU where there is one. Raises `InputError` where it
        cannot be read."""
        model, encoder, about = load(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), encoder, about, device, bf16)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.model.target.outputs

    @property
    def bp(self) -> int:
        """Length of the longest sequence that it was trained on; of nucleotides, of every sequence."""
        return self.about["bp"]

    @property
    def reads_people(self) -> bool:
        """Whether a row is a person, both haplotypes over a locus, and no single sequence."""
        return self.about["row_shape"] != [1, 1]

    @cached_property
    def collator(self) -> Collator:
        # A window of new people may be longer than any that was trained on.
        return Collator(self.encoder.tokens, self.encoder.longest if self.reads_people else self.about["longest"])

    def examples(self, sequences: list[str]) -> Examples:
        """Rows of one sequence each, their binding scanned where the model reads it."""
        found = Examples.of_sequences(sequences, np.zeros(len(sequences), np.int64), Path())
        if self.model.region is None:
            return found
        return replace(found, binding=self.encoder.scanner.scan(list(map(encode, sequences))))

    def batch(self, examples: Examples, opposite: bool = False) -> dict[str, torch.Tensor]:
        """What the model takes, on its device."""
        made = self.collator([Row(examples, number, opposite) for number in range(len(examples))])
        del made["labels"]
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    @property
    def strands(self) -> tuple[bool, ...]:
        """Of each strand that the model reads, whether it is the opposite one."""
        return (False, True) if self.about["both_strands"] else (False,)

    def __call__(self, sequences: list[str]) -> np.ndarray:
        """`of_rows` of one sequence each."""
        return self.of_rows(self.examples(sequences))

    @torch.no_grad()
    def of_rows(self, examples: Examples) -> np.ndarray:
        """Probabilities of classes, or values: float64 [n, outputs], of nucleotides [n, positions, outputs]; the mean
        over both strands where the model was trained so."""
        found = [self.logits(examples, opposite).double() for opposite in self.strands]
        if self.model.target.kind != "values":
            found = [logits.softmax(-1) for logits in found]
        return torch.stack(found).mean(0).cpu().numpy()

    def logits(self, examples: Examples, opposite: bool = False) -> torch.Tensor:
        """fp32, of one strand."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(**self.batch(examples, opposite))["logits"].float()


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one of what is left."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
