"""A panel of InfoNCE's logits, some rows x all columns: its log-sum-exps, and the gradient of the loss.

Each in plain PyTorch, which defines it, and as a Triton kernel. The kernels work tile by tile: the log-sum-exps never
leave a tile's logits in memory (online softmax, Milakov and Gimelshein 2018), the gradient is written once.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from kernels import dispatch

Loss = Literal["clip", "paper"]
Precision = Literal["ieee", "tf32x3", "tf32"]

PROGRAMS = 512  # that a launch has at least, where there is work for as many
MOST_RUNS = 128  # so that the merge can hold the parts of a row
MERGED = 64  # rows or columns that a program of the merge takes
DEPTH = 64  # embeddings are padded to a multiple of it, so that tiles need no masks along them


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
    """Log-sum-exp of the logits over each row [n_rows] and, of these rows, over each column [n_columns], and the
    matched logits [n_rows], all fp32. A row or column of weight 0 has -inf, -inf, and a finite matched logit."""
    return dispatch.run(_log_sum_exps_triton, log_sum_exps_reference, panel.rows.device, panel)


def gradient(
    panel: Panel, loss: Loss, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the loss, times `factor`, with respect to the cosines, [n_rows, n_columns] in the rows' dtype, and by
    way of these with respect to the scale, an fp32 scalar.

    row_lse: [n_rows], column_lse: [n_columns]: for `clip` over each row and column of the whole matrix; for `paper`
    over all pairs, and over the matched ones, repeated. factor: fp32 scalar, for `clip` over twice the sum of weights.
    """
    arguments = panel, loss, row_lse, column_lse, factor
    return dispatch.run(_gradient_triton, gradient_reference, panel.rows.device, *arguments)


def log_sum_exps_reference(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`log_sum_exps` in plain PyTorch; it defines the result."""
    logits = panel.scale * _cosines(panel)
    matched = logits.gather(1, _matched_column(panel)[:, None])[:, 0]
    logits = logits.masked_fill(~_kept(panel), -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0), matched


def gradient_reference(
    panel: Panel, loss: Loss, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gradient` in plain PyTorch; it defines the result."""
    cosines = _cosines(panel)
    logits = panel.scale * cosines
    matched = torch.zeros_like(logits).scatter_(1, _matched_column(panel)[:, None], 1)
    if loss == "clip":
        # w_i (P_ij - d_ij) + w_j (Q_ij - d_ij), with P the softmax over a row and Q that over a column
        row_weight, column_weight = panel.row_weight[:, None], panel.column_weight
        d_logits = row_weight * (logits - row_lse[:, None]).exp() + column_weight * (logits - column_lse).exp()
        d_logits -= 2 * row_weight * matched
    else:
        d_logits = (logits - row_lse[:, None]).exp() - matched * (logits - column_lse).exp()
    d_logits = factor * d_logits.masked_fill(~_kept(panel), 0)
    return (panel.scale * d_logits).to(panel.rows.dtype), (d_logits * cosines).sum()


def _cosines(panel: Panel) -> torch.Tensor:
    return panel.rows.float() @ panel.columns.float().T


def _matched_column(panel: Panel) -> torch.Tensor:
    return panel.first_column + torch.arange(len(panel.rows), device=panel.rows.device)


def _kept(panel: Panel) -> torch.Tensor:
    return (panel.row_weight > 0)[:, None] & (panel.column_weight > 0)


@dataclass(frozen=True)
class _Tiles:
    """What a program computes at a time: [rows, columns] logits, `depth` of the embeddings' numbers a step.

    In bf16 128 x 128 is the largest tile that leaves no register to memory; its 96 KiB of shared memory fit every GPU
    from sm_80 on.
    """

    rows: int
    columns: int
    depth: int

    @classmethod
    def of(cls, panel: Panel) -> "_Tiles":
        return cls(128, 128, 64) if panel.rows.dtype == torch.bfloat16 else cls(128, 64, 32)

    def grid(self, panel: Panel) -> tuple[int, int]:
        """Tiles that cover the panel, down and across."""
        return triton.cdiv(len(panel.rows), self.rows), triton.cdiv(len(panel.columns), self.columns)

    def arguments(self, panel: Panel) -> dict:
        """The arguments that both kernels take, by name."""
        return {
            "rows": panel.rows,
            "columns": panel.columns,
            "row_weight": panel.row_weight,
            "column_weight": panel.column_weight,
            "scale": panel.scale,
            "n_rows": len(panel.rows),
            "n_columns": len(panel.columns),
            "matched_shift": panel.first_column,
            "row_stride": panel.rows.stride(0),
            "column_stride": panel.columns.stride(0),
            "D": panel.rows.shape[1],
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "PRECISION": panel.precision,
            # In Triton's interpreter a product of bf16 is wrong.
            "UPCAST": dispatch.interpreted(),
            "num_warps": 8,
            "num_stages": 3,
        }


def _log_sum_exps_triton(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tiles, device = _Tiles.of(panel), panel.rows.device
    down, across = tiles.grid(panel)
    # A program walks over a run of tiles; the runs are short enough that there are programs for every multiprocessor.
    run = triton.cdiv(across, min(across, triton.cdiv(PROGRAMS, down), MOST_RUNS))
    runs = triton.cdiv(across, run)
    row_parts = torch.empty(runs, len(panel.rows), device=device)
    column_parts = torch.empty(down, len(panel.columns), device=device)
    row_lse, matched = (torch.empty(len(panel.rows), device=device) for _ in range(2))
    column_lse = torch.empty(len(panel.columns), device=device)
    _log_sum_exps_kernel[(down, runs)](
        row_parts=row_parts, column_parts=column_parts, matched=matched, RUN=run, **tiles.arguments(panel)
    )
    blocks = triton.cdiv(len(row_lse), MERGED) + triton.cdiv(len(column_lse), MERGED)
    _merge_kernel[(blocks,)](
        row_parts,
        row_lse,
        len(row_lse),
        column_parts,
        column_lse,
        len(column_lse),
        ROW_PARTS=runs,
        COLUMN_PARTS=down,
        BLOCK=MERGED,
        PADDED_ROW_PARTS=triton.next_power_of_2(runs),
        PADDED_COLUMN_PARTS=triton.next_power_of_2(down),
    )
    return row_lse, column_lse, matched


def _gradient_triton(
    panel: Panel, loss: Loss, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tiles, device = _Tiles.of(panel), panel.rows.device
    down, across = tiles.grid(panel)
    # Rows that begin at a multiple of 16 numbers, for wide stores and the matrix products after them.
    stride = triton.cdiv(len(panel.columns), 16) * 16
    d_cosines = torch.empty(len(panel.rows), stride, dtype=panel.rows.dtype, device=device)
    d_scale = torch.empty(across, down, device=device)
    _gradient_kernel[(down, across)](
        row_lse=row_lse,
        column_lse=column_lse,
        factor=factor,
        d_cosines=d_cosines,
        d_cosines_stride=stride,
        d_scale=d_scale,
        CLIP=loss == "clip",
        **tiles.arguments(panel),
    )
    return d_cosines[:, : len(panel.columns)], d_scale.sum()


_LOG2_E, _LN_2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))


@triton.jit
def _log_sum_exps_kernel(
    rows,
    columns,
    row_weight,
    column_weight,
    scale,
    row_parts,
    column_parts,
    matched,
    n_rows,
    n_columns,
    matched_shift,
    row_stride,
    column_stride,
    RUN: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A tile of rows against RUN tiles of columns, by an online log-sum-exp (Milakov and Gimelshein 2018).

    row_parts: [runs, n_rows], of each row over a run; column_parts: [row tiles, n_columns], of each column over a tile.
    """
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    row_kept = tl.load(row_weight + row, mask=row < n_rows, other=0) > 0
    scale = tl.load(scale)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    own = tl.zeros([ROWS], tl.float32)
    for step in range(0, RUN):
        first_column = (tl.program_id(1) * RUN + step) * COLUMNS
        column = first_column + tl.arange(0, COLUMNS)
        column_kept = tl.load(column_weight + column, mask=column < n_columns, other=0) > 0
        cosines = _cosines_of_tile(
            rows,
            columns,
            first_row,
            first_column,
            n_rows,
            n_columns,
            row_stride,
            column_stride,
            D,
            ROWS,
            COLUMNS,
            DEPTH,
            PRECISION,
            UPCAST,
        )
        own += tl.sum(tl.where(row[:, None] + matched_shift == column[None, :], cosines, 0.0), 1)
        # In units of log 2, as all parts are: a power of two is cheaper than one of e.
        logits = tl.where(row_kept[:, None] & column_kept[None, :], (scale * _LOG2_E) * cosines, float("-inf"))

        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        base = _finite(new_maximum)
        total = total * tl.exp2(maximum - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        maximum = new_maximum

        base = _finite(tl.max(logits, 0))
        of_tile = base + tl.log2(tl.sum(tl.exp2(logits - base[None, :]), 0))
        here = tl.program_id(0).to(tl.int64) * n_columns + column
        tl.store(column_parts + here, of_tile, mask=column < n_columns)

    here = tl.program_id(1).to(tl.int64) * n_rows + row
    tl.store(row_parts + here, _finite(maximum) + tl.log2(total), mask=row < n_rows)
    # The matched column of a row lies in one run.
    run = (row + matched_shift) // (RUN * COLUMNS)
    tl.store(matched + row, scale * own, mask=(row < n_rows) & (run == tl.program_id(1)))


@triton.jit
def _gradient_kernel(
    rows,
    columns,
    row_weight,
    column_weight,
    scale,
    row_lse,
    column_lse,
    factor,
    d_cosines,
    d_cosines_stride,
    d_scale,
    n_rows,
    n_columns,
    matched_shift,
    row_stride,
    column_stride,
    CLIP: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A tile of what `gradient_reference` gives. d_scale: [column tiles, row tiles], the sum over each tile."""
    first_row, first_column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    cosines = _cosines_of_tile(
        rows,
        columns,
        first_row,
        first_column,
        n_rows,
        n_columns,
        row_stride,
        column_stride,
        D,
        ROWS,
        COLUMNS,
        DEPTH,
        PRECISION,
        UPCAST,
    )
    scale = tl.load(scale)
    logits = (scale * _LOG2_E) * cosines  # in units of log 2
    row_kept = tl.load(row_weight + row, mask=row < n_rows, other=0)[:, None]
    column_kept = tl.load(column_weight + column, mask=column < n_columns, other=0)[None, :]
    over_row = tl.exp2(logits - _LOG2_E * tl.load(row_lse + row, mask=row < n_rows, other=0.0)[:, None])
    column_lse = _LOG2_E * tl.load(column_lse + column, mask=column < n_columns, other=0.0)
    over_column = tl.exp2(logits - column_lse[None, :])
    is_matched = row[:, None] + matched_shift == column[None, :]
    if CLIP:
        tile = row_kept * over_row + column_kept * over_column - tl.where(is_matched, 2 * row_kept, 0.0)
    else:
        tile = over_row - tl.where(is_matched, over_column, 0.0)
    tile = tl.load(factor) * tl.where((row_kept > 0) & (column_kept > 0), tile, 0.0)
    here = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(d_scale + here, tl.sum(tile * cosines))
    d_cosines += first_row.to(tl.int64) * d_cosines_stride + first_column
    here = tl.arange(0, ROWS)[:, None] * d_cosines_stride + tl.arange(0, COLUMNS)[None, :]
    tl.store(d_cosines + here, scale * tile, mask=(row < n_rows)[:, None] & (column < d_cosines_stride)[None, :])


@triton.jit
def _merge_kernel(
    row_parts,
    row_lse,
    n_rows,
    column_parts,
    column_lse,
    n_columns,
    ROW_PARTS: tl.constexpr,
    COLUMN_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_ROW_PARTS: tl.constexpr,
    PADDED_COLUMN_PARTS: tl.constexpr,
):
    """Log-sum-exp over the first axis of both tables of parts."""
    block, row_blocks = tl.program_id(0), tl.cdiv(n_rows, BLOCK)
    if block < row_blocks:
        _merge(row_parts, row_lse, block, n_rows, ROW_PARTS, PADDED_ROW_PARTS, BLOCK)
    else:
        _merge(column_parts, column_lse, block - row_blocks, n_columns, COLUMN_PARTS, PADDED_COLUMN_PARTS, BLOCK)


@triton.jit
def _merge(parts, lse, block, n, PARTS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    part, i = tl.arange(0, PADDED)[:, None], block * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(parts + part.to(tl.int64) * n + i, mask=(part < PARTS) & (i < n), other=float("-inf"))
    base = _finite(tl.max(values, 0))
    total = tl.sum(tl.exp2(values - base[None, :]), 0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(lse + i, _LN_2 * (base + tl.log2(total)), mask=i < n)


@triton.jit
def _cosines_of_tile(
    rows,
    columns,
    first_row,
    first_column,
    n_rows,
    n_columns,
    row_stride,
    column_stride,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Products of ROWS rows with COLUMNS columns, fp32 [ROWS, COLUMNS]; 0 past the last row or column."""
    # Offsets past 2**31 are in the scalars; those within a tile stay below.
    row, column, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    rows += first_row.to(tl.int64) * row_stride
    columns += first_column.to(tl.int64) * column_stride
    row_at = rows + row[:, None] * row_stride + depth[None, :]
    column_at = columns + column[None, :] * column_stride + depth[:, None]
    row_there, column_there = (first_row + row < n_rows)[:, None], (first_column + column < n_columns)[None, :]
    cosines = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, D, DEPTH):
        a = tl.load(row_at + first, mask=row_there, other=0.0)
        b = tl.load(column_at + first, mask=column_there, other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        cosines = tl.dot(a, b, cosines, input_precision=PRECISION)
    return cosines


@triton.jit
def _finite(maximum):
    """A maximum that can be subtracted: that of nothing but -inf is taken as 0."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)
