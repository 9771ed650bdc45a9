"""MatrixMarket, the text format of sparse matrices, read as a stream: a line is `row column count`, from 1."""

import csv
import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep import count_matrix
from data_prep.count_matrix import UNREADABLE_TEXT, Block, CountMatrix, check_shape, read_lines
from data_prep.errors import InputError, one_line, shown
from data_prep.peaks import read_regions

_BARCODE_LIKE = re.compile(r"[0-9]|[ACGTN]{8}")
_COLUMNS = {"pattern": 2, "integer": 3, "real": 3}


@dataclass(frozen=True)
class Header:
    """field: `pattern`, `integer` or `real`; lines: how many stand above the first entry."""

    field: str
    n_rows: int
    n_columns: int
    entries: int
    lines: int


def open_market(path: str, regions: str, barcodes: str, known: Collection[str] = ()) -> CountMatrix:
    """A MatrixMarket file with the BED of its rows and the barcodes of its columns beside it.

    Over the barcodes may stand a header: a line too many for the matrix, not one of the `known` barcodes, and without
    the digits or bases of a barcode. Where none are known, every line is a barcode.
    """
    header = read_header(path)
    rows = read_regions(regions)
    columns = read_barcodes(barcodes)
    if (
        known
        and len(columns) == header.n_columns + 1
        and columns[0] not in known
        and not _BARCODE_LIKE.search(columns[0])
    ):
        print(f"{barcodes}: first line ({columns[0]!r}) taken as a header: one line more than the matrix has columns")
        columns = columns[1:]
    check_shape(
        path, (header.n_rows, header.n_columns), len(rows), len(columns), f"{regions} and {barcodes} together have"
    )
    return CountMatrix(path, rows, np.arange(len(rows)), columns, header.entries, lambda: market_blocks(path, header))


def read_barcodes(path: Path | str) -> list[str]:
    """The first column of each line."""
    return [line.split("\t")[0].strip() for line in read_lines(path) if line.strip()]


def read_header(path: Path | str) -> Header:
    """The first lines of a MatrixMarket file, gzipped or not. Raises `InputError` where it is no matrix of counts."""
    try:
        with _opened(path) as file:
            banner = file.readline(1000).decode("utf-8", "replace").lower().split()
            lines, line = 1, b"%"
            while line.startswith(b"%") or (line and not line.strip()):
                line = file.readline(100_000)
                lines += 1
    except UNREADABLE_TEXT as error:
        raise _unreadable(path, error) from error
    if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5:
        raise InputError(
            f"{path}: not a MatrixMarket matrix: its first line is not '%%MatrixMarket matrix coordinate ...'"
        )
    layout, field, symmetry = banner[2:]
    if layout != "coordinate" or field not in _COLUMNS or symmetry != "general":
        raise InputError(
            f"{path}: a MatrixMarket matrix of the kind '{layout} {field} {symmetry}'; write it as 'coordinate' with "
            f"{', '.join(_COLUMNS)} entries, 'general' (R: Matrix::writeMM of a dgCMatrix)"
        )
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise InputError(
            f"{path}:{lines}: {_shown(line)} is no MatrixMarket size line (rows columns entries); copy the file again"
        )
    return Header(field, *map(int, sizes), lines)


def market_blocks(path: Path | str, header: Header) -> Iterator[Block]:
    """The entries, in the file's order, counted from 0. Raises `InputError`, with the line where one is at fault."""
    import pandas as pd

    width, done = _COLUMNS[header.field], 0
    try:
        with _opened(path) as file:
            for _ in range(header.lines):
                file.readline()
            chunks = pd.read_csv(
                _NoNul(file),
                sep=r"\s+",
                header=None,
                dtype=dict(enumerate((np.int64, np.int64, np.float64)[:width])),
                chunksize=count_matrix.BLOCK_ENTRIES,
                quoting=csv.QUOTE_NONE,
            )
            for chunk in chunks:
                count = chunk[2].to_numpy() if chunk.shape[1] == 3 else np.ones(len(chunk), np.int8)
                if chunk.shape[1] != width or np.isnan(count).any():
                    _raise_bad_line(path, header, done, done + len(chunk))
                if chunk.shape[1] != width:
                    raise InputError(f"{path}: lines do not end alike; write the file again, with line feeds alone")
                block = Block(chunk[0].to_numpy() - 1, chunk[1].to_numpy() - 1, count)
                done += len(chunk)
                if done <= header.entries:
                    yield block
    except pd.errors.EmptyDataError:
        pass  # no entry at all: as many as there are, or too few, as below
    except UNREADABLE_TEXT as error:
        _raise_bad_line(path, header, done)
        raise _unreadable(path, error) from error
    if done != header.entries:
        raise InputError(
            f"{path}: holds {done:,} entries where its MatrixMarket size line says {header.entries:,}; "
            f"{'it is cut short: copy it again' if done < header.entries else 'correct the size line'}"
        )


class _NoNul:
    """A file that is not read past a NUL, which pandas would leave out."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        if b"\0" in block:
            raise ValueError("holds a NUL byte")
        return block

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


def _opened(path: Path | str) -> BinaryIO:
    return (gzip.open if str(path).lower().endswith(".gz") else open)(path, "rb")


def _raise_bad_line(path: Path | str, header: Header, first: int, last: int | None = None) -> None:
    """Raise `InputError` for the line of the first entry in [first, last) that is none, if there is one."""
    width = _COLUMNS[header.field]
    try:
        with _opened(path) as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if number > header.lines and line.strip())
            for number, line in islice(lines, first, last):
                if not _is_entry(line.split(), width):
                    raise InputError(
                        f"{path}:{number}: {_shown(line)} is no entry of a MatrixMarket file of {header.field} counts, "
                        f"'row column{' count' if width == 3 else ''}'; correct it, or copy the file again"
                    )
    except (OSError, EOFError, zlib.error):
        return  # the file breaks off here, which what the caller caught tells


def _is_entry(fields: list[bytes], width: int) -> bool:
    try:
        float(fields[-1])
        return len(fields) == width and max(map(int, fields[:2])) < 2**63
    except ValueError:
        return False


def _shown(line: bytes) -> str:
    return shown(line.decode("utf-8", "replace").strip())


def _unreadable(path: Path | str, error: BaseException) -> InputError:
    return InputError(f"{path}: cannot be read as MatrixMarket: {one_line(error)}; copy the file again")
