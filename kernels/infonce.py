"""InfoNCE over the whole global batch (van den Oord et al. 2018; CLIP, Radford et al. 2021), exact for any world size.

Each rank holds some rows of both embeddings. It gathers the other ranks' rows, and the log-sum-exp of every row and
column; with these it forms the gradient of the GLOBAL loss with respect to its own rows by itself, so the backward pass
communicates nothing. Each rank returns its share: the shares, and the gradients of `scale`, add up to the global ones.
"""

from typing import Literal

import torch
import torch.distributed as dist

from kernels.dispatch import implementation

Loss = Literal["clip", "paper"]


def info_nce(
    sequence: torch.Tensor,
    region: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss = "clip",
) -> torch.Tensor:
    """This rank's share of the loss of matching each sequence with its region, a scalar in fp32.

    sequence, region: [local batch, d], normalised rows; scale: [1], the inverse temperature; weight: [local batch],
    0 for padding, which then is neither row nor column, else 1. All ranks give the same shapes.

    clip:  mean over the batch of  (lse_j s_ij + lse_i s_ij - 2 s_ii) / 2,  s = scale * sequence @ region.T
    paper: lse_ij s_ij - lse_i s_ii  (GeneBERT, Eq. 3 read as one softmax over all pairs)
    """
    run = implementation({"reference": _InfoNCE.apply}, sequence.device)
    return run(sequence, region, scale, weight, loss)


def info_nce_reference(
    sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, loss: Loss = "clip"
) -> torch.Tensor:
    """The whole batch in one process, by autograd, in the inputs' dtype; it defines the loss."""
    kept = weight > 0
    logits = scale * sequence[kept] @ region[kept].T
    matched = logits.diagonal()
    if loss == "paper":
        return logits.flatten().logsumexp(0) - matched.logsumexp(0)
    return ((logits.logsumexp(1) + logits.logsumexp(0)) / 2 - matched).mean()


class _InfoNCE(torch.autograd.Function):
    """Local rows against global columns, a [local, global] panel at a time, in fp32."""

    @staticmethod
    def forward(ctx, sequence, region, scale, weight, loss):
        ctx.dtypes = sequence.dtype, region.dtype
        with torch.autocast(sequence.device.type, enabled=False):
            kept = weight > 0
            sequence, region = (torch.where(kept[:, None], rows.float(), 0.0) for rows in (sequence, region))
            all_sequences, all_regions = _gather(sequence), _gather(region)
            all_kept = _gather(kept)
            batch = all_kept.sum()

            matched = scale * (sequence * region).sum(1)
            over_regions = _log_sum_exp(scale, sequence, all_regions, all_kept)
            over_sequences = _log_sum_exp(scale, region, all_sequences, all_kept)
            if loss == "clip":
                share = ((over_regions + over_sequences) / 2 - matched)[kept].sum() / batch
                lse = _gather(over_regions), _gather(over_sequences)
            else:
                lse = tuple(_gather(rows)[all_kept].logsumexp(0) for rows in (over_regions, matched))
                share = (lse[0] - lse[1]) * kept.sum() / batch
        ctx.save_for_backward(sequence, region, scale, kept, all_sequences, all_regions, all_kept, *lse)
        ctx.loss, ctx.first_row = loss, _rank() * len(sequence)
        return share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        sequence, region, scale, kept, all_sequences, all_regions, all_kept, *lse = ctx.saved_tensors
        other = lse[::-1] if ctx.loss == "clip" else lse
        cosine = sequence @ all_regions.T
        of_sequences = _panel_gradient(ctx.loss, scale * cosine, ctx.first_row, kept, all_kept, *lse)
        of_regions = _panel_gradient(ctx.loss, scale * region @ all_sequences.T, ctx.first_row, kept, all_kept, *other)
        d_sequence = upstream * scale * (of_sequences @ all_regions)
        d_region = upstream * scale * (of_regions @ all_sequences)
        d_scale = (upstream * (of_sequences * cosine).sum()).reshape(scale.shape)
        return d_sequence.to(ctx.dtypes[0]), d_region.to(ctx.dtypes[1]), d_scale, None, None


def _panel_gradient(
    loss: Loss,
    logits: torch.Tensor,
    first_row: int,
    kept: torch.Tensor,
    all_kept: torch.Tensor,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the global loss with respect to a panel of logits, [local, global].

    row_lse, column_lse: for `clip` [global], over each row and column of the whole matrix; for `paper` scalars, over
    all pairs and over the matched ones.
    """
    row = torch.arange(len(logits), device=logits.device)
    diagonal = row + first_row
    logits = logits.masked_fill(~(kept[:, None] & all_kept), -torch.inf)
    if loss == "clip":
        # (P_ij + Q_ij - 2 d_ij) / 2B, with P the softmax over a row and Q that over a column
        gradient = (logits - row_lse[diagonal, None]).exp() + (logits - column_lse).exp()
        gradient[row, diagonal] -= 2 * kept
        return gradient / (2 * all_kept.sum())
    gradient = (logits - row_lse).exp()
    gradient[row, diagonal] -= (logits[row, diagonal] - column_lse).exp()
    return gradient


def _log_sum_exp(scale: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return (scale * rows @ columns.T).masked_fill(~kept, -torch.inf).logsumexp(1)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _gather(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, in order of rank; no gradient flows through."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered
