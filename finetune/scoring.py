"""Predictions of a fine-tuned model, of any sequences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data_prep.bases import encode
from data_prep.errors import InputError
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.model import TaskModel, load
from finetune.training import Collator, Row


@dataclass(frozen=True)
class Scorer:
    """A fine-tuned model that reads sequences, a row each. about: of its task.json."""

    model: TaskModel
    encoder: Encoder
    about: dict
    device: torch.device
    bf16: bool = False

    @classmethod
    def of(cls, folder: Path, bf16: bool = False) -> "Scorer":
        """The model that finetune/run.py saved in a folder, on the GPU where there is one. Raises `InputError` where it
        cannot be read, or is of a task whose rows are more than a sequence."""
        model, encoder, about = load(folder)
        if about["row_shape"] != [1, 1]:
            raise InputError(
                f"{folder}: a model of {about['task']}, which scores people, not sequences; score them with: "
                f"python finetune/run.py --task {about['task']}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), encoder, about, device, bf16)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.model.target.outputs

    @property
    def bp(self) -> int:
        """Length of the longest sequence that it was trained on; of nucleotides, of every sequence."""
        return self.about["bp"]

    @cached_property
    def collator(self) -> Collator:
        return Collator(self.encoder.tokens, self.about["longest"])

    def batch(self, sequences: list[str], opposite: bool = False) -> dict[str, torch.Tensor]:
        """What the model takes, on its device."""
        examples = Examples.of_sequences(sequences, np.zeros(len(sequences), np.int64), Path())
        if self.model.region is not None:
            examples = replace(examples, binding=self.encoder.scanner.scan(list(map(encode, sequences))))
        made = self.collator([Row(examples, number, opposite) for number in range(len(sequences))])
        del made["labels"]
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    @torch.no_grad()
    def __call__(self, sequences: list[str]) -> np.ndarray:
        """Probabilities of classes, or values: float64 [n, outputs], of nucleotides [n, positions, outputs]; the mean
        over both strands where the model was trained so."""
        strands = (False, True) if self.about["both_strands"] else (False,)
        found = [self.logits(sequences, opposite).double() for opposite in strands]
        if self.model.target.kind != "values":
            found = [logits.softmax(-1) for logits in found]
        return torch.stack(found).mean(0).cpu().numpy()

    def logits(self, sequences: list[str], opposite: bool = False) -> torch.Tensor:
        """fp32, of one strand."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(**self.batch(sequences, opposite))["logits"].float()


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one of what is left."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
