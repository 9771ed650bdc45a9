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

# A tile of logits: so small that two programs share a multiprocessor, and one multiplies while the other takes powers.
ROWS, COLUMNS = 128, 64
LOWEST = -1e30  # in place of the cosine of a pair that does not count
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
    """Log-sum-exp of the logits over each row [2, n_rows] and, of these rows, over each column [2, n_columns], and the
    matched cosines [n_rows], all fp32.

    A log-sum-exp is two numbers: the largest cosine c, and the rest r, with lse = scale * c + r. In one number a small
    loss at a large scale would be rounded away. Over nothing but weight 0 they are LOWEST and -inf.
    """
    return dispatch.run(_log_sum_exps_triton, log_sum_exps_reference, panel.rows.device, panel)


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
    return dispatch.run(_gradient_triton, gradient_reference, panel.rows.device, *arguments)


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
    matched = torch.zeros_like(cosines).scatter_(1, _matched_column(panel)[:, None], 1)
    over_row = (panel.scale * (cosines - row_lse[0, :, None]) - row_lse[1, :, None]).exp()
    over_column = (panel.scale * (cosines - column_lse[0]) - column_lse[1]).exp()
    if loss == "clip":
        # w_i (P_ij - d_ij) + w_j (Q_ij - d_ij), with P the softmax over a row and Q that over a column
        row_weight = panel.row_weight[:, None]
        d_logits = row_weight * over_row + panel.column_weight * over_column - 2 * row_weight * matched
    else:
        d_logits = over_row - matched * over_column
    d_logits = factor * d_logits.masked_fill(~_kept(panel), 0)
    return (panel.scale * d_logits).to(panel.rows.dtype), (d_logits * cosines).sum()


def _cosines(panel: Panel) -> torch.Tensor:
    return panel.rows.float() @ panel.columns.float().T


def _matched_column(panel: Panel) -> torch.Tensor:
    return panel.first_column + torch.arange(len(panel.rows), device=panel.rows.device)


def _kept(panel: Panel) -> torch.Tensor:
    return (panel.row_weight > 0)[:, None] & (panel.column_weight > 0)


def _tiles(panel: Panel) -> tuple[int, int]:
    """Tiles that cover the panel, down and across."""
    return -(-len(panel.rows) // ROWS), -(-len(panel.columns) // COLUMNS)


def _arguments(panel: Panel) -> dict:
    """The arguments that both kernels of a panel take, by name."""
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
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
        "DEPTH": DEPTH if panel.rows.dtype == torch.bfloat16 else DEPTH // 2,
        "PRECISION": panel.precision,
        # In Triton's interpreter a product of bf16 is wrong.
        "UPCAST": dispatch.interpreted(),
        "num_warps": 8,
        "num_stages": 3,
    }


def _log_sum_exps_triton(panel: Panel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    device = panel.rows.device
    down, across = _tiles(panel)
    # A program walks over a run of tiles; the runs are short enough that there are programs for every multiprocessor.
    run = -(-across // min(across, -(-PROGRAMS // down), MOST_RUNS))
    runs = -(-across // run)
    row_parts = torch.empty(runs, 2, len(panel.rows), device=device)
    column_parts = torch.empty(down, 2, len(panel.columns), device=device)
    matched = torch.empty(len(panel.rows), device=device)
    _log_sum_exps_kernel[(down, runs)](
        row_parts=row_parts, column_parts=column_parts, matched=matched, RUN=run, **_arguments(panel)
    )
    row_lse, column_lse = torch.empty_like(row_parts[0]), torch.empty_like(column_parts[0])
    blocks = -(-len(panel.rows) // MERGED) + -(-len(panel.columns) // MERGED)
    _merge_kernel[(blocks,)](
        panel.scale,
        row_parts,
        row_lse,
        len(panel.rows),
        column_parts,
        column_lse,
        len(panel.columns),
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
    device = panel.rows.device
    down, across = _tiles(panel)
    # Rows that begin at a multiple of 16 numbers, for wide stores and the matrix products after them.
    stride = -(-len(panel.columns) // 16) * 16
    d_cosines = torch.empty(len(panel.rows), stride, dtype=panel.rows.dtype, device=device)
    d_scale = torch.empty(across, down, device=device)
    _gradient_kernel[(down * across,)](
        row_lse=row_lse.contiguous(),
        column_lse=column_lse.contiguous(),
        factor=factor,
        d_cosines=d_cosines,
        d_cosines_stride=stride,
        d_scale=d_scale,
        CLIP=loss == "clip",
        **_arguments(panel),
    )
    return d_cosines[:, : len(panel.columns)], d_scale.sum()


_LOG2_E, _LOWEST = tl.constexpr(1 / math.log(2)), tl.constexpr(LOWEST)


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

    row_parts: [runs, 2, n_rows], of each row over a run; column_parts: [row tiles, 2, n_columns], of each column over a
    tile: the largest cosine, and the sum of the exponentials of what the others are less.
    """
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    row_kept = tl.load(row_weight + row, mask=row < n_rows, other=0) > 0
    scale = _base_2(scale)
    maximum = tl.full([ROWS], _LOWEST, tl.float32)
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
        cosines = tl.where(row_kept[:, None] & column_kept[None, :], cosines, _LOWEST)

        larger = tl.maximum(maximum, tl.max(cosines, 1))
        total = total * tl.exp2(scale * (maximum - larger)) + tl.sum(tl.exp2(scale * (cosines - larger[:, None])), 1)
        maximum = larger

        largest = tl.max(cosines, 0)
        of_tile = tl.sum(tl.exp2(scale * (cosines - largest[None, :])), 0)
        here = tl.program_id(0).to(tl.int64) * 2 * n_columns + column
        tl.store(column_parts + here, largest, mask=column < n_columns)
        tl.store(column_parts + here + n_columns, of_tile, mask=column < n_columns)

    here = tl.program_id(1).to(tl.int64) * 2 * n_rows + row
    tl.store(row_parts + here, maximum, mask=row < n_rows)
    tl.store(row_parts + here + n_rows, total, mask=row < n_rows)
    # The matched column of a row lies in one run.
    run = (row + matched_shift) // (RUN * COLUMNS)
    tl.store(matched + row, own, mask=(row < n_rows) & (run == tl.program_id(1)))


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
    # Programs that run together share a tile of columns.
    down = tl.cdiv(n_rows, ROWS)
    first_row, first_column = tl.program_id(0) % down * ROWS, tl.program_id(0) // down * COLUMNS
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
    row_there, column_there = row < n_rows, column < n_columns
    row_kept = tl.load(row_weight + row, mask=row_there, other=0.0)
    column_kept = tl.load(column_weight + column, mask=column_there, other=0.0)
    row_rest = _LOG2_E * tl.load(row_lse + n_rows + row, mask=row_there, other=0.0)
    column_rest = _LOG2_E * tl.load(column_lse + n_columns + column, mask=column_there, other=0.0)
    if CLIP:  # times the weights
        row_rest -= tl.log2(row_kept)
        column_rest -= tl.log2(column_kept)
    row_rest = tl.where(row_kept > 0, row_rest, float("inf"))
    column_rest = tl.where(column_kept > 0, column_rest, float("inf"))
    row_largest = tl.load(row_lse + row, mask=row_there, other=0.0)
    column_largest = tl.load(column_lse + column, mask=column_there, other=0.0)

    base_2 = _base_2(scale)
    counted = tl.where((row_kept > 0)[:, None] & (column_kept > 0)[None, :], cosines, _LOWEST)
    over_row = tl.exp2(base_2 * (counted - row_largest[:, None]) - row_rest[:, None])
    over_column = tl.exp2(base_2 * (counted - column_largest[None, :]) - column_rest[None, :])
    is_matched = row[:, None] + matched_shift == column[None, :]
    if CLIP:
        tile = over_row + over_column - tl.where(is_matched, 2 * row_kept[:, None], 0.0)
    else:
        tile = over_row - tl.where(is_matched, over_column, 0.0)
    tile *= tl.load(factor)
    tl.store(d_scale + tl.program_id(0), tl.sum(tile * cosines))
    d_cosines += first_row.to(tl.int64) * d_cosines_stride + first_column
    here = tl.arange(0, ROWS)[:, None] * d_cosines_stride + tl.arange(0, COLUMNS)[None, :]
    tl.store(d_cosines + here, tl.load(scale) * tile, mask=row_there[:, None] & (column < d_cosines_stride)[None, :])


@triton.jit
def _merge_kernel(
    scale,
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
    """From the parts of both to their log-sum-exps, [2, n_rows] and [2, n_columns]."""
    scale = _base_2(scale)
    block, row_blocks = tl.program_id(0), tl.cdiv(n_rows, BLOCK)
    if block < row_blocks:
        _merge(scale, row_parts, row_lse, block, n_rows, ROW_PARTS, PADDED_ROW_PARTS, BLOCK)
    else:
        _merge(scale, column_parts, column_lse, block - row_blocks, n_columns, COLUMN_PARTS, PADDED_COLUMN_PARTS, BLOCK)


@triton.jit
def _merge(scale, parts, lse, block, n, PARTS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    part, i = tl.arange(0, PADDED)[:, None], block * BLOCK + tl.arange(0, BLOCK)
    here = parts + part.to(tl.int64) * 2 * n + i[None, :]
    there = (part < PARTS) & (i < n)[None, :]
    largest = tl.load(here, mask=there, other=_LOWEST)
    total = tl.load(here + n, mask=there, other=0.0)
    maximum = tl.max(largest, 0)
    total = tl.sum(total * tl.exp2(scale * (largest - maximum[None, :])), 0)
    total = tl.where(maximum == _LOWEST, 0.0, total)
    tl.store(lse + i, maximum, mask=i < n)
    tl.store(lse + n + i, tl.log(total), mask=i < n)


@triton.jit
def _base_2(scale):
    """The scale of a power of two, which is cheaper than one of e; above 0, so that to LOWEST it gives 0."""
    return tl.maximum(tl.load(scale), 1e-20) * _LOG2_E


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
