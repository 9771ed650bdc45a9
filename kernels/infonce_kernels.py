"""Triton kernels of `kernels.infonce_panel`: InfoNCE's log-sum-exps and gradient, tile by tile.

The log-sum-exps leave no logits in memory (online softmax, Milakov and Gimelshein 2018); the gradient is written once.
"""

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels import dispatch

if TYPE_CHECKING:
    from kernels.infonce_panel import Panel

# A tile of logits: so small that two programs share a multiprocessor, and one multiplies while the other takes powers.
ROWS, COLUMNS = 128, 64
LOWEST = -1e30  # in place of the cosine of a pair that does not count
PROGRAMS = 512  # that a launch has at least, where there is work for as many
MOST_RUNS = 128  # so that the merge can hold the parts of a row
MERGED = 64  # rows or columns that a program of the merge takes
DEPTH = 64  # embeddings are padded to a multiple of it, so that tiles need no masks along them


def _tiles(panel: "Panel") -> tuple[int, int]:
    """Tiles that cover the panel, down and across."""
    return -(-len(panel.rows) // ROWS), -(-len(panel.columns) // COLUMNS)


def _arguments(panel: "Panel") -> dict:
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


def log_sum_exps_triton(panel: "Panel") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `log_sum_exps_reference` gives."""
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


def gradient_triton(
    panel: "Panel", loss: str, row_lse: torch.Tensor, column_lse: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `gradient_reference` gives."""
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
    row_w = tl.load(row_weight + row, mask=row_there, other=0.0)
    column_w = tl.load(column_weight + column, mask=column_there, other=0.0)
    row_rest = _LOG2_E * tl.load(row_lse + n_rows + row, mask=row_there, other=0.0)
    column_rest = _LOG2_E * tl.load(column_lse + n_columns + column, mask=column_there, other=0.0)
    if CLIP:  # times the weights
        row_rest -= tl.log2(row_w)
        column_rest -= tl.log2(column_w)
    row_rest = tl.where(row_w > 0, row_rest, float("inf"))
    column_rest = tl.where(column_w > 0, column_rest, float("inf"))
    row_largest = tl.load(row_lse + row, mask=row_there, other=0.0)
    column_largest = tl.load(column_lse + column, mask=column_there, other=0.0)

    base_2 = _base_2(scale)
    counted = tl.where((row_w > 0)[:, None] & (column_w > 0)[None, :], cosines, _LOWEST)
    over_row = tl.exp2(base_2 * (counted - row_largest[:, None]) - row_rest[:, None])
    over_column = tl.exp2(base_2 * (counted - column_largest[None, :]) - column_rest[None, :])
    is_matched = row[:, None] + matched_shift == column[None, :]
    if CLIP:
        tile = over_row + over_column - tl.where(is_matched, 2 * row_w[:, None], 0.0)
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
