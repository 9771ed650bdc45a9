"""The objectives as sums over samples, for the trainer to divide by their counts in the GLOBAL batch.

So the gradient does not depend on how the batch is cut into micro-batches and ranks: the parts add up.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels.kmer_mask import IGNORED, MaskedBatch
from pretrain.model import Outputs

METRICS = ("mgm_loss", "mgm_correct", "mgm_count", "ngsp_loss", "ngsp_correct", "ngsp_count")


@dataclass(frozen=True)
class TokenObjectives:
    """Sums over each sample, [n], or over a micro-batch, scalars; padding counts nothing."""

    mgm_loss: torch.Tensor
    mgm_correct: torch.Tensor
    mgm_count: torch.Tensor
    ngsp_loss: torch.Tensor
    ngsp_correct: torch.Tensor
    ngsp_count: torch.Tensor

    def sums(self) -> torch.Tensor:
        """fp64 [n, 6] or [6], in the order of METRICS, without gradient."""
        return torch.stack([getattr(self, name).detach().double() for name in METRICS], dim=-1)


def masked_count(batch: MaskedBatch, weight: torch.Tensor) -> torch.Tensor:
    """Masked tokens of the samples of weight above zero."""
    return ((batch.masked_labels != IGNORED) & (weight > 0)[:, None]).sum()


def objectives_by_sample(
    outputs: Outputs, batch: MaskedBatch, follows: torch.Tensor, weight: torch.Tensor
) -> TokenObjectives:
    """Masked-token modelling and, of a model that has it, next genome-segment prediction, of each sample. follows:
    int64 [n]; weight: [n]."""
    labels = batch.masked_labels.masked_fill((weight == 0)[:, None], IGNORED)
    logits = outputs.mgm_logits.flatten(0, 1).float()
    losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)
    mgm = {
        "mgm_loss": losses.sum(1),
        "mgm_correct": (logits.argmax(-1).view_as(labels) == labels).sum(1),
        "mgm_count": (labels != IGNORED).sum(1),
    }
    if outputs.ngsp_logits is None:
        return TokenObjectives(
            **mgm, **dict.fromkeys(("ngsp_loss", "ngsp_correct", "ngsp_count"), torch.zeros_like(weight))
        )
    ngsp_logits = outputs.ngsp_logits.float()
    return TokenObjectives(
        **mgm,
        ngsp_loss=F.cross_entropy(ngsp_logits, follows, reduction="none") * weight,
        ngsp_correct=(ngsp_logits.argmax(-1) == follows) * weight,
        ngsp_count=weight,
    )


def token_objectives(
    outputs: Outputs, batch: MaskedBatch, follows: torch.Tensor, weight: torch.Tensor
) -> TokenObjectives:
    """`objectives_by_sample` over the micro-batch."""
    by_sample = objectives_by_sample(outputs, batch, follows, weight)
    return TokenObjectives(**{name: getattr(by_sample, name).sum() for name in METRICS})


def nearer(rows: torch.Tensor, columns: torch.Tensor, first_row: int, kept: torch.Tensor) -> torch.Tensor:
    """How many other columns are at least as near to each row as its own column, over the columns kept; int64 [local].

    rows: [local, d]; columns: [global, d], of which row i's own is first_row + i; kept: bool [global]. Ties and NaN
    count as nearer: a collapsed encoder recalls nothing. Where the own column is not kept, the largest int64.
    """
    similarity = (rows @ columns.T).masked_fill(~kept, -torch.inf)
    own_column = torch.arange(first_row, first_row + len(rows), device=rows.device)
    own = similarity.gather(1, own_column[:, None])
    others = (~(similarity < own)).sum(1) - 1
    return others.masked_fill(~kept[own_column], torch.iinfo(torch.int64).max)
