"""Sequence classification with a pre-trained or new encoder, trained by Hugging Face's Trainer."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from finetune.sequence_table import LabelledSequences


@dataclass(frozen=True)
class TokenizedSequences(torch.utils.data.Dataset):
    """Rows for the Trainer; token ids are made once."""

    token_ids: list[list[int]]
    labels: np.ndarray

    @classmethod
    def of(cls, data: LabelledSequences, tokenizer: PreTrainedTokenizerBase) -> "TokenizedSequences":
        encoded = tokenizer(data.sequences, truncation=True, return_token_type_ids=False, return_attention_mask=False)
        return cls(encoded["input_ids"], data.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        return {"input_ids": self.token_ids[row], "labels": int(self.labels[row])}


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint / "sequence", local_files_only=True)


def new_model(checkpoint: Path, pretrained: bool, n_classes: int, seed: int) -> PreTrainedModel:
    """The checkpoint's sequence encoder with a new classifier; with `pretrained` off, the same shape, weights drawn."""
    torch.manual_seed(seed)
    folder = checkpoint / "sequence"
    if pretrained:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n_classes, local_files_only=True)
    config = AutoConfig.from_pretrained(folder, num_labels=n_classes, local_files_only=True)
    return AutoModelForSequenceClassification.from_config(config)


def fit_and_predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: LabelledSequences,
    test: LabelledSequences,
    arguments: TrainingArguments,
) -> np.ndarray:
    """Train, going on from a checkpoint of the same output folder if there is one; probabilities over `test`,
    float64 [n, n_classes]."""
    trainer = Trainer(
        model,
        arguments,
        train_dataset=TokenizedSequences.of(train, tokenizer),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_has_whole_checkpoint(Path(arguments.output_dir)) or None)
    logits = trainer.predict(TokenizedSequences.of(test, tokenizer)).predictions
    return torch.from_numpy(logits).double().softmax(1).numpy()


def n_truncated(tokenizer: PreTrainedTokenizerBase, k: int, data: LabelledSequences) -> tuple[int, int]:
    """How many sequences are longer than the encoder reads, and how many bp it reads."""
    longest = tokenizer.model_max_length - 2 + k - 1
    return sum(len(sequence) > longest for sequence in data.sequences), longest


def _has_whole_checkpoint(folder: Path) -> bool:
    """True where there is a checkpoint to go on from; one that a killed run left half-written is removed."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)
    return any(folder.glob("checkpoint-*"))
