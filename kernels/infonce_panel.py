"""A panel of InfoNCE's logits, some rows x all columns: its log-sum-exps, and the gradient of the loss.

Each in plain PyTorch, which defines it, and as a Triton kernel (`kernels.infonce_kernels`).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from kernels import dispatch
from kernels.infonce_kernels import LOWEST, gradient_triton, log_sum_exps_triton

Loss = Literal["clip", "paper"]
Precision = Literal["ieee", "tf32x3", "tf32"]


@dataclass(frozen=True)
class Panel:
    """The logits of some rows with all columns. Row i is matched with column first_column + i.

    rows: [n_rows, d], columns: [n_columns, d], both fp32 or both bf16, 0 where the weight is 0; row_weight: fp32
    [n_rows]; column_weight: fp32 [n_columns]; scale: fp32 [1].
    """

    rows: torch.Tensor
    columns: torch.Tensor
    row_weight: torch.Tensor
    column_weight: torch.Tensor
    first_column: int
    scale: torch.Tensor
    precision: Precision


def log_sum_exps(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-sum-exp of the logits over each row [2, n_rows] and, of these rows, over each column [2, n_columns], and the
    matched cosines [n_rows], all fp32.

    A log-sum-exp is two numbers: the largest cosine c, and the rest r, with lse = scale * c + r. In one number a small
    loss at a large scale would be rounded away. Over nothing but weight 0 they are LOWEST and -inf.
    """
    return dispatch.run(log_sum_exps_triton, log_sum_exps_reference, panel.rows.device, panel)


def combined(parts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp [2, n] of log-sum-exps [parts, 2, n]."""
    largest, rest = parts.unbind(1)
    maximum = largest.amax(0)
    return torch.stack([maximum, (scale * (largest - maximum) + rest).logsumexp(0)])


def gradient(
    panel: Panel, loss: Loss, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the loss, times `factor`, with respect to the cosines, [n_rows, n_columns] in the rows' dtype, and by
    way of these with respect to the scale, an fp32 scalar.

    row_lse: [2, n_rows], column_lse: [2, n_columns]: for `clip` over each row and column of the whole matrix; for
    `paper` over all pairs, and over the matched ones, repeated. factor: fp32 scalar, for `clip` over twice the sum of
    weights.
    """
    arguments = panel, loss, row_lse, column_lse, factor
    return dispatch.run(gradient_triton, gradient_reference, panel.rows.device, *arguments)


def log_sum_exps_reference(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`log_sum_exps` in plain PyTorch; it defines the result."""
    cosines = _cosines(panel)
    matched = cosines.gather(1, _matched_column(panel)[:, None])[:, 0]
    cosines = cosines.masked_fill(~_kept(panel), LOWEST)

    def over(dim: int) -> torch.Tensor:
        maximum = cosines.amax(dim, keepdim=True)
        total = (panel.scale * (cosines - maximum)).exp().masked_fill(cosines == LOWEST, 0).sum(dim)
        return torch.stack([maximum.squeeze(dim), total.log()])

    return over(1), over(0), matched


def gradient_reference(
    panel: Panel, loss: Loss, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gradient` in plain PyTorch; it defines the result."""
    cosines = _cosines(panel)
    matched = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, _matched_column(panel)[:, None], True)
    over_row = (panel.scale * (cosines - row_lse[0, :, None]) - row_lse[1, :, None]).exp()
    over_column = (panel.scale * (cosines - column_lse[0]) - column_lse[1]).exp()
    if loss == "clip":
        # w_i (P_ij - d_ij) + w_j (Q_ij - d_ij), with P the softmax over a row and Q that over a column
        row_weight = panel.row_weight[:, None]
        d_logits = row_weight * over_row + panel.column_weight * over_column - 2 * row_weight * matched
    else:
        d_logits = over_row - torch.where(matched, over_column, 0)
    d_logits = factor * d_logits.masked_fill(~_kept(panel), 0)
    return (panel.scale * d_logits).to(panel.rows.dtype), (d_logits * cosines).sum()


def _cosines(panel: Panel) -> torch.Tensor:
    return panel.rows.float() @ panel.columns.float().T


def _matched_column(panel: Panel) -> torch.Tensor:
    return panel.first_column + torch.arange(len(panel.rows), device=panel.rows.device)


def _kept(panel: Panel) -> torch.Tensor:
    return (panel.row_weight > 0)[:, None] & (panel.column_weight > 0)
