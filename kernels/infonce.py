"""InfoNCE over the whole global batch (van den Oord et al. 2018; CLIP, Radford et al. 2021), exact for any world size.

Each rank holds some rows of both embeddings and gathers those of all ranks. One pass over its part of the logits, local
sequences x global regions, gives the log-sum-exp of its rows, and its part of that of every column. The ranks exchange
these; then each forms the gradient of the GLOBAL loss with respect to its own rows by itself, so the backward pass
communicates nothing. Each rank returns its share: the shares, and the gradients of `scale`, add up to the global ones.

No more than PANEL_ROWS rows of the logits' gradient are in memory, a panel (`kernels.infonce_panel`) that goes into
two matrix products; of the logits themselves Triton holds no more than a tile. All sums have a fixed order: the same
inputs, the same bits.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from kernels.infonce_kernels import DEPTH, LOWEST
from kernels.infonce_panel import Loss, Panel, Precision, combined, gradient, log_sum_exps

PANEL_ROWS = 4096
TINY = 1e-30  # in place of a sum of weights that is 0


def info_nce(
    sequence: torch.Tensor,
    region: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    loss: Loss = "clip",
    input_precision: Precision = "ieee",
) -> torch.Tensor:
    """This rank's share of the loss of matching each sequence with its region, a scalar in fp32.

    sequence, region: [local batch, d], normalised rows; where both are bf16 their products are bf16's, else fp32's;
    scale: [1], the inverse temperature, at least 0; weight: [local batch], at least 0. All ranks give the same shapes.
    Raises `ValueError` where the shapes do not fit.

    clip:  mean over the batch, by weight, of  (lse_j s_ij + lse_i s_ji) / 2 - s_ii,  s = scale * sequence @ region.T
    paper: lse_ij s_ij - lse_i s_ii  (GeneBERT, Eq. 3 read as one softmax over all pairs)

    A sample of weight 0 is padding, neither row nor column, whatever its embeddings hold. `paper` has no mean over
    samples: there all of weight above 0 count alike. The loss of a batch without samples is 0.

    The loss, its log-sum-exps and the gradient of the logits are fp32 sums. input_precision: of the Triton kernels'
    products of fp32 inputs, as `tl.dot` names it. The products that give the embeddings' gradients are PyTorch's: they
    follow `torch.set_float32_matmul_precision`, and in bf16 are rounded to it, a panel at a time.
    """
    if not (sequence.shape == region.shape and sequence.ndim == 2 and weight.shape == sequence.shape[:1]):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (sequence, region, weight))
        raise ValueError(f"sequence, region and weight of shapes {shapes}: give [n, d], [n, d] and [n]")
    if not len(sequence):
        return (sequence.sum() + region.sum() + 0 * scale.sum()).float()
    return _InfoNCE.apply(sequence, region, scale, weight, loss, input_precision)


def info_nce_reference(
    sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, loss: Loss = "clip"
) -> torch.Tensor:
    """The whole batch in one process, by autograd, in the inputs' dtype; it defines the loss."""
    kept = weight > 0
    logits = scale * sequence[kept] @ region[kept].T
    matched = logits.diagonal()
    if loss == "paper":
        return logits.flatten().logsumexp(0) - matched.logsumexp(0)
    terms = (logits.logsumexp(1) + logits.logsumexp(0)) / 2 - matched
    return (weight[kept].to(terms.dtype) * terms).sum() / weight.sum()


class _InfoNCE(torch.autograd.Function):
    """The collectives and the order of the panels, the same for both implementations of what is done to a panel."""

    @staticmethod
    def forward(ctx, sequence, region, scale, weight, loss, precision):
        local, d = sequence.shape
        rank, world = _place()
        own = slice(rank * local, (rank + 1) * local)
        with torch.autocast(sequence.device.type, enabled=False):
            kept, weight, scale = weight > 0, weight.float().contiguous(), scale.float()
            rows = torch.stack([sequence, region], 1).to(_dtype(sequence, region))
            rows = _padded(torch.where(kept[:, None, None], rows, 0))
            all_rows, all_weight = _gather(rows), _gather(weight)
            panel = Panel(rows[:, 0], all_rows[:, 1], weight, all_weight, own.start, scale, precision)

            row_lse, column_lse, matched = _log_sum_exps(panel)
            all_row_lse, all_matched, all_column_lse = row_lse, matched, column_lse
            if world > 1:
                of_ranks = _gather(torch.cat([*row_lse, matched, *column_lse])).reshape(world, -1)
                all_row_lse = of_ranks[:, : 2 * local].reshape(world, 2, local).transpose(0, 1).reshape(2, -1)
                all_matched = of_ranks[:, 2 * local : 3 * local].flatten()
                all_column_lse = combined(of_ranks[:, 3 * local :].reshape(world, 2, -1), scale)
            if loss == "clip":
                lse = all_row_lse, all_column_lse
                factor = 0.5 / all_weight.sum().clamp(min=TINY)
                both = torch.stack([row_lse, all_column_lse[:, own]])
                terms = (scale * (both[:, 0] - matched) + both[:, 1]).sum(0)
                share = torch.dot(weight, torch.where(kept, terms, 0)) * factor
            else:
                all_kept = all_weight > 0
                over_pairs = combined(all_row_lse.T[:, :, None], scale)
                cosines = torch.where(all_kept, all_matched, LOWEST)
                over_matched = combined(torch.stack([cosines, all_kept.log()], 1)[:, :, None], scale)
                lse = over_pairs.expand(2, len(all_kept)), over_matched.expand(2, len(all_kept))
                factor = torch.ones((), device=rows.device)
                term = scale * (over_pairs[0] - over_matched[0]) + over_pairs[1] - over_matched[1]
                share = torch.where(kept, term, 0).sum() / all_kept.sum().clamp(min=1)
        ctx.save_for_backward(rows, all_rows, weight, all_weight, scale, factor, *lse)
        ctx.d, ctx.own, ctx.world, ctx.loss, ctx.precision = d, own, world, loss, precision
        return share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        rows, all_rows, weight, all_weight, scale, factor, row_lse, column_lse = ctx.saved_tensors
        own, world, loss = ctx.own, ctx.world, ctx.loss
        with torch.autocast(rows.device.type, enabled=False):
            factor = upstream * factor
            panel = Panel(rows[:, 0], all_rows[:, 1], weight, all_weight, own.start, scale, ctx.precision)
            d_sequence, d_region, d_scale = _gradients(panel, loss, row_lse[:, own], column_lse, factor, world == 1)
            if world > 1:
                # The columns of its own regions: a panel of its own, cheaper than to add up those of all ranks.
                panel = replace(panel, rows=rows[:, 1], columns=all_rows[:, 0])
                # `clip` changes the roles of rows and columns; `paper` has all pairs and the matched ones in either.
                lse = (column_lse, row_lse) if loss == "clip" else (row_lse, column_lse)
                d_region, *_ = _gradients(panel, loss, lse[0][:, own], lse[1], factor, of_columns=False)
        return d_sequence[:, : ctx.d], d_region[:, : ctx.d], d_scale, None, None, None


def _log_sum_exps(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`log_sum_exps` of a panel of any number of rows."""
    row_lse, matched, column_lse = [], [], None
    for _, piece in _pieces(panel):
        of_rows, of_columns, of_pairs = log_sum_exps(piece)
        row_lse.append(of_rows)
        matched.append(of_pairs)
        column_lse = of_columns if column_lse is None else combined(torch.stack([column_lse, of_columns]), panel.scale)
    return _joined(row_lse, 1), column_lse, _joined(matched)


def _gradients(
    panel: Panel,
    loss: Loss,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
    factor: torch.Tensor,
    of_columns: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Gradient of `factor` times the loss with respect to the rows and, if asked for, the columns, and the scale."""
    d_rows, d_columns, d_scale = [], None, 0
    for here, piece in _pieces(panel):
        d_cosines, of_piece = gradient(piece, loss, row_lse[:, here], column_lse, factor)
        d_rows.append(d_cosines @ panel.columns)
        if of_columns:
            to_columns = d_cosines.T @ piece.rows
            d_columns = to_columns if d_columns is None else d_columns.float().add_(to_columns)
        d_scale = d_scale + of_piece
        del d_cosines  # before the next one is made
    d_columns = None if d_columns is None else d_columns.to(panel.rows.dtype)
    return _joined(d_rows), d_columns, d_scale.reshape(panel.scale.shape)


def _joined(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _pieces(panel: Panel) -> list[tuple[slice, Panel]]:
    """Panels of at most PANEL_ROWS rows, and where each stands."""
    if len(panel.rows) <= PANEL_ROWS:
        return [(slice(None), panel)]
    slices = [slice(first, first + PANEL_ROWS) for first in range(0, len(panel.rows), PANEL_ROWS)]
    return [
        (
            here,
            replace(
                panel,
                rows=panel.rows[here],
                row_weight=panel.row_weight[here],
                first_column=panel.first_column + here.start,
            ),
        )
        for here in slices
    ]


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Embeddings with zeros up to a multiple of DEPTH numbers."""
    missing = -rows.shape[-1] % DEPTH
    return F.pad(rows, (0, missing)) if missing else rows


def _dtype(sequence: torch.Tensor, region: torch.Tensor) -> torch.dtype:
    both = sequence.dtype == region.dtype == torch.bfloat16
    return torch.bfloat16 if both else torch.float32


def _place() -> tuple[int, int]:
    """This process's rank, and the world size."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _gather(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, in order of rank; no gradient flows through."""
    _, world = _place()
    if world == 1:
        return rows
    gathered = rows.new_empty(world * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered
