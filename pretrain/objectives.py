"""The three objectives as sums over a micro-batch, each divided by its count in the GLOBAL batch.

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
    """Sums over a micro-batch, fp32 scalars; padding counts nothing."""

    mgm_loss: torch.Tensor
    mgm_correct: torch.Tensor
    mgm_count: torch.Tensor
    ngsp_loss: torch.Tensor
    ngsp_correct: torch.Tensor
    ngsp_count: torch.Tensor

    def sums(self) -> torch.Tensor:
        """[6], in the order of METRICS, without gradient."""
        return torch.stack([getattr(self, name).detach().double() for name in METRICS])


def masked_count(batch: MaskedBatch, weight: torch.Tensor) -> torch.Tensor:
    """Masked tokens of the samples of weight above zero."""
    return ((batch.masked_labels != IGNORED) & (weight > 0)[:, None]).sum()


def token_objectives(
    outputs: Outputs, batch: MaskedBatch, follows: torch.Tensor, weight: torch.Tensor
) -> TokenObjectives:
    """Masked-token modelling and, of a model that has it, next genome-segment prediction. follows: int64 [n]; weight:
    [n]."""
    labels = batch.masked_labels.masked_fill((weight == 0)[:, None], IGNORED).flatten()
    logits = outputs.mgm_logits.flatten(0, 1).float()
    mgm = {
        "mgm_loss": F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"),
        "mgm_correct": (logits.argmax(-1) == labels).sum(),
        "mgm_count": (labels != IGNORED).sum(),
    }
    if outputs.ngsp_logits is None:
        return TokenObjectives(
            **mgm, **dict.fromkeys(("ngsp_loss", "ngsp_correct", "ngsp_count"), weight.new_zeros(()))
        )
    ngsp_logits = outputs.ngsp_logits.float()
    return TokenObjectives(
        **mgm,
        ngsp_loss=(F.cross_entropy(ngsp_logits, follows, reduction="none") * weight).sum(),
        ngsp_correct=((ngsp_logits.argmax(-1) == follows) * weight).sum(),
        ngsp_count=weight.sum(),
    )


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
