"""SpliceAI's dilated residual CNN in its four published sizes (Jaganathan et al. 2019, Figure 1), as a baseline.

Residual units of two dilated convolutions, each after batch normalisation and ReLU; after every four, the sum so far
is tapped by a 1x1 convolution, and the taps' sum gives the classes. Trained by the loop that trains the encoders, on
the same windows, with SpliceAI's learning rate and its plain cross-entropy.
"""

import shutil
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data_prep.kmers import SPECIAL_TOKENS
from finetune import training
from finetune.encoder import SequenceTokens
from finetune.examples import NO_LABEL
from finetune.model import Target
from finetune.task import Unit

CHANNELS = 32
TAPPED = 4  # residual units between taps
RATE = 1e-3
BASES = SequenceTokens(1)  # ids 5 to 8 are A, T, C, G
# Width and dilation of each stretch of four units; SpliceAI-80nt has the first one, -400nt two, -2k three, -10k all.
STRETCHES = ((11, 1), (11, 4), (21, 10), (41, 25))


def receptive_field(stretches: int) -> int:
    """Nucleotides that the model sees around one, both sides together: 80, 400, 2,000 or 10,000."""
    return sum(2 * TAPPED * dilation * (width - 1) for width, dilation in STRETCHES[:stretches])


def stretches_for(context: int) -> int:
    """Of the smallest published model that sees `context` nucleotides around one; past 10,000 of the largest."""
    sizes = range(1, len(STRETCHES) + 1)
    return next((size for size in sizes if receptive_field(size) >= context), len(STRETCHES))


class ResidualUnit(nn.Module):
    """[batch, CHANNELS, length] to the same."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, width, dilation=dilation, padding="same") for _ in range(2)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        changed = features
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            changed = convolution(F.relu(norm(changed)))
        return features + changed


class DilatedCNN(nn.Module):
    """Classes of the nucleotides in the middle of each sequence."""

    def __init__(self, stretches: int, target: Target):
        """stretches: 1 to 4, the published sizes."""
        super().__init__()
        self.target = target
        self.first = nn.Conv1d(len("ACGT"), CHANNELS, 1)
        self.tap = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.stretches = nn.ModuleList(
            nn.Sequential(*(ResidualUnit(width, dilation) for _ in range(TAPPED)))
            for width, dilation in STRETCHES[:stretches]
        )
        self.taps = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in self.stretches)
        self.head = nn.Conv1d(CHANNELS, len(target.outputs), 1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """As `TaskModel.forward` of nucleotides. input_ids: of `BASES`, all sequences of one length, between [CLS] and
        [SEP]; attention_mask is not read. Gives logits [batch, positions, outputs], and with labels the mean loss."""
        features = self.first(one_hot(input_ids[rows[:, 0, 0], 1:-1]).to(self.first.weight.dtype))
        tapped = self.tap(features)
        for stretch, tap in zip(self.stretches, self.taps, strict=True):
            features = stretch(features)
            tapped = tapped + tap(features)
        first = (tapped.shape[2] - self.target.positions) // 2
        logits = self.head(tapped[:, :, first : first + self.target.positions]).transpose(1, 2).float()
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL)
        return {"loss": loss, "logits": logits}


def one_hot(ids: torch.Tensor) -> torch.Tensor:
    """int64 [batch, 4, length] of tokens [batch, length]; zeros of what is no base."""
    bases = torch.arange(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 4, device=ids.device)
    return (ids[:, None] == bases[:, None]).long()


def predict(unit: Unit) -> np.ndarray:
    """Probabilities over the test split, float64 [n, positions, classes], of the model that fits the table's context,
    trained on its training split. Of the run's configuration it takes epochs, batch size, precision and stopping."""
    table = unit.table
    config = replace(
        unit.config, learning_rate=RATE, optimizer="adamw", freeze=False, lora=None, unfreeze=None, rc=False
    )
    torch.manual_seed(unit.seed)
    model = DilatedCNN(stretches_for(table.bp - table.target.positions), table.target)
    folder = unit.folder / "training"
    trainer = training.trainer(
        model,
        BASES,
        table.bp + 2,
        table.train,
        table.splits.get("dev"),
        config,
        unit.seed,
        folder,
        f"{config.task}-spliceai-{unit.seed}",
    )
    training.fit(trainer)
    found = training.predict(trainer, table.test, both_strands=False)
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    return found
