"""An opened peak count matrix (regions x cells) of any format: its rows and columns, and its entries in blocks.

One `open_*` function a format gives a `CountMatrix`; `open_matrix` takes the one that a path's ending names. Region
names are `chr:start-end`, `chr-start-end` or `chr_start_end`, taken as BED's coordinates: 0-based half-open, the habit
of 10x, Signac and Descartes.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from data_prep.errors import InputError, one_line
from data_prep.peaks import Regions

BLOCK_ENTRIES = 1_000_000  # some 150 MB while a block is read and checked
PEAKS = "Peaks"  # 10x's feature type of a region
NO_CELL_TYPE = ("", "NA", "NaN", "nan")
MARKET_SUFFIXES = (".mtx", ".mtx.gz")
KNOWN_FORMATS = (
    "MatrixMarket .mtx and .mtx.gz, AnnData .h5ad, R .rds of a dgCMatrix, 10x .h5, and 10x folders "
    "(matrix.mtx, barcodes.tsv, and features.tsv or peaks.bed)"
)
# What gzip and pandas, and beside them h5py, raise on a file that is damaged or of another kind.
UNREADABLE_TEXT = (OSError, EOFError, ValueError, OverflowError, zlib.error)
UNREADABLE_HDF5 = (*UNREADABLE_TEXT, KeyError, RuntimeError, TypeError, AttributeError)
_REGION_NAME = re.compile(r"(.+)[:_-]([0-9]{1,18})[_-]([0-9]{1,18})")


@dataclass(frozen=True)
class Block:
    """Stored entries of a matrix as triplets, arrays of one length: feature (row of the file), cell (its column) and
    count, of any numeric type."""

    feature: np.ndarray
    cell: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class CountMatrix:
    """A matrix whose entries are read when `blocks` is called, each time anew.

    regions: of the rows that are peaks, in the file's order; region_of_feature: int64 [n_features], each row's index in
    `regions`, -1 for a row that is no peak (a gene of a multiome matrix); entries: how many `blocks` gives in all;
    cell_types: by barcode, where the file itself tells; genome: the assembly's name, where the file tells.
    """

    path: str
    regions: Regions
    region_of_feature: np.ndarray
    barcodes: list[str]
    entries: int
    blocks: Callable[[], Iterator[Block]]
    cell_types: dict[str, str] | None = None
    genome: str | None = None

    @property
    def features_left_out(self) -> int:
        """Rows that are no peaks."""
        return len(self.region_of_feature) - len(self.regions)

    def nonzero(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Region and cell of each entry above zero, int64, a block at a time; within a block each pair comes once.

        So it does in all blocks together where the file's entries are in order; one in no order may repeat an entry of
        an earlier block. Raises `InputError` for an entry outside the matrix, one that stands twice, as far as that is
        seen, and a count of a region that is negative or not a number.
        """
        with tqdm(
            total=self.entries, desc=Path(self.path).name, unit=" entries", unit_scale=True, disable=None, leave=False
        ) as bar:
            last = None
            for block in self.blocks():
                bar.update(len(block.count))
                feature, cell = block.feature.astype(np.int64, copy=False), block.cell.astype(np.int64, copy=False)
                self._check_places(feature, cell)
                # A file in order repeats an entry with the next one, which may be the next block's first.
                first, end = ((int(feature[at]), int(cell[at])) for at in (0, -1))
                if first == last:
                    raise self._repeated(*first)
                last = end
                region = self.region_of_feature[feature]
                above = (region >= 0) & (block.count != 0)
                region, cell, count = region[above], cell[above], block.count[above]
                self._check_counts(region, cell, count)
                yield region, cell

    def _check_places(self, feature: np.ndarray, cell: np.ndarray) -> None:
        n_features, n_cells = len(self.region_of_feature), len(self.barcodes)
        outside = (feature < 0) | (feature >= n_features) | (cell < 0) | (cell >= n_cells)
        if outside.any():
            at = int(outside.argmax())
            raise InputError(
                f"{self.path}: an entry at row {feature[at] + 1}, column {cell[at] + 1} (counted from 1) lies outside "
                f"the matrix of {n_features} features x {n_cells} cells; write the file again"
            )
        place = cell * n_features + feature
        if (np.diff(place) > 0).all() or (np.diff(feature * n_cells + cell) > 0).all():
            return
        place = np.sort(place)
        repeated = np.flatnonzero(np.diff(place) == 0)
        if len(repeated):
            at_cell, at_feature = divmod(int(place[repeated[0]]), n_features)
            raise self._repeated(at_feature, at_cell)

    def _repeated(self, feature: int, cell: int) -> InputError:
        return InputError(
            f"{self.path}: the entry at row {feature + 1}, column {cell + 1} (counted from 1) stands there more than "
            "once; sum the repeated entries and write the file again"
        )

    def _check_counts(self, region: np.ndarray, cell: np.ndarray, count: np.ndarray) -> None:
        bad = ~(count > 0)  # zeros are gone: negative, or not a number
        if bad.any():
            at = int(bad.argmax())
            raise InputError(
                f"{self.path}: the count of {name_of(self.regions, region[at])} in cell {self.barcodes[cell[at]]!r} is "
                f"{count[at]}; give raw peak counts, not scaled values"
            )


def is_market(path: str) -> bool:
    """Whether a matrix is a MatrixMarket file, which takes its regions and barcodes from files beside it."""
    return str(path).lower().endswith(MARKET_SUFFIXES) and not Path(path).is_dir()


def files_of(path: str) -> list[Path]:
    """The files that a matrix is read from: itself, or those of a 10x folder. Raises `InputError` for none."""
    if Path(path).is_dir():
        from data_prep.tenx import folder_files

        return folder_files(path)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file or 10x folder")
    if not str(path).lower().endswith((*MARKET_SUFFIXES, ".h5ad", ".h5", ".rds")):
        raise InputError(f"{path}: not a name of a known matrix format; known are {KNOWN_FORMATS}")
    return [Path(path)]


def open_matrix(
    path: str,
    regions: str | None = None,
    barcodes: str | None = None,
    cell_type_key: str | None = None,
    known: Collection[str] = (),
) -> CountMatrix:
    """Open a matrix by its path's ending. Raises `InputError` where it cannot be read or contradicts itself.

    regions, barcodes: paths of what a MatrixMarket file needs beside it; cell_type_key: column of an .h5ad's obs, None
    if its cell types are not wanted; known: barcodes, by which a header of `barcodes` is told from a first cell.
    """
    name = str(path).lower()
    files_of(path)  # says what is wrong with a path that cannot be opened
    if Path(path).is_dir():
        from data_prep.tenx import open_folder

        matrix = open_folder(path)
    elif is_market(path):
        from data_prep.matrix_market import open_market

        matrix = open_market(path, regions, barcodes, known)
    elif name.endswith(".h5ad"):
        from data_prep.anndata_matrix import open_h5ad

        matrix = open_h5ad(path, cell_type_key)
    elif name.endswith(".rds"):
        from data_prep.r_matrix import open_rds

        matrix = open_rds(path)
    else:
        from data_prep.tenx import open_h5

        matrix = open_h5(path)
    _check_unique(matrix, barcodes or path)
    return matrix


def compressed_blocks(
    data: Sequence | None, indices: Sequence, indptr: np.ndarray, major: Literal["feature", "cell"]
) -> Iterator[Block]:
    """Blocks of a compressed sparse matrix whose compressed axis is `major`.

    data, indices: [n_entries], arrays or HDF5 datasets, read a range at a time; data None: every entry is 1; indptr:
    int64 [n_majors + 1].
    """
    for first in range(0, int(indptr[-1]), BLOCK_ENTRIES):
        last = min(first + BLOCK_ENTRIES, int(indptr[-1]))
        low = int(np.searchsorted(indptr, first, side="right")) - 1
        high = int(np.searchsorted(indptr, last, side="left"))
        majors = np.repeat(np.arange(low, high), np.diff(np.clip(indptr[low : high + 1], first, last)))
        minors = np.asarray(indices[first:last]).astype(np.int64)
        count = np.ones(last - first, np.int8) if data is None else np.asarray(data[first:last])
        yield Block(minors, majors, count) if major == "cell" else Block(majors, minors, count)


def check_compressed(path: str, indptr: np.ndarray, n_majors: int, *lengths: int) -> np.ndarray:
    """`indptr` as int64, if it divides as many entries as each of `lengths` says among `n_majors`, in order."""
    indptr = np.asarray(indptr).astype(np.int64)
    right = len(indptr) == n_majors + 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
    if not right or any(length != indptr[-1] for length in lengths):
        raise InputError(
            f"{path}: its sparse matrix contradicts itself: pointers for {len(indptr) - 1} rows or columns and "
            f"{indptr[-1] if len(indptr) else 0} entries, where it holds {n_majors} and "
            f"{' or '.join(map(str, dict.fromkeys(lengths)))}; write it again"
        )
    return indptr


def regions_from_names(names: Iterable[str], path: str) -> Regions:
    """Regions named `chr:start-end`, `chr-start-end` or `chr_start_end`, split from the right, as a chromosome's own
    name may hold - and _. Raises `InputError` with the row for a name that is none."""
    chromosomes, start, end = [], [], []
    for row, name in enumerate(names, 1):
        match = _REGION_NAME.fullmatch(name)
        if not match:
            raise InputError(
                f"{path}: row {row} is named {name!r}, which is no region: chr:start-end, chr-start-end or "
                "chr_start_end; give a matrix of peaks whose rows are named so"
            )
        chromosomes.append(match[1])
        start.append(int(match[2]))
        end.append(int(match[3]))
    return regions_from_columns(chromosomes, start, end, path)


def regions_from_columns(chromosomes: Sequence[str], start: Sequence[int], end: Sequence[int], path: str) -> Regions:
    """Regions of three columns. Raises `InputError` for an interval that is none."""
    names: dict[str, int] = {}
    codes = np.array([names.setdefault(name, len(names)) for name in chromosomes], np.int32)
    regions = Regions(codes, np.array(start, np.int64), np.array(end, np.int64), tuple(names))
    wrong = (regions.start < 0) | (regions.start >= regions.end)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}: row {row + 1}, {name_of(regions, row)}, is no interval (0 <= start < end); correct the region"
        )
    return regions


def peaks_of(feature_types: Sequence[str], path: str) -> np.ndarray:
    """Rows whose feature type is `Peaks`, int64. Raises `InputError` where there are none."""
    types = np.asarray(feature_types, dtype=object)
    rows = np.flatnonzero(types == PEAKS)
    if not len(rows):
        found = ", ".join(f"{name!r}" for name in sorted(set(types.tolist())))
        raise InputError(
            f"{path}: has no feature of the type {PEAKS!r}, only {found}; give the matrix of the ATAC peaks"
        )
    return rows


def one_genome(names: Iterable[str], path: str) -> str | None:
    """The assembly that all of a matrix's peaks name; None where they name none."""
    genomes = sorted(set(names) - {""})
    if len(genomes) > 1:
        raise InputError(
            f"{path}: holds peaks of more than one genome ({', '.join(genomes)}); give a matrix of one assembly"
        )
    return genomes[0] if genomes else None


def numbered(rows: np.ndarray, n_features: int) -> np.ndarray:
    """`region_of_feature` of a matrix whose regions are the features `rows`, in their order."""
    region_of_feature = np.full(n_features, -1, np.int64)
    region_of_feature[rows] = np.arange(len(rows))
    return region_of_feature


def check_shape(path: str, shape: tuple[int, int], n_features: int, n_cells: int, of: str) -> None:
    """Raise `InputError` where a matrix's shape is not what `of` (words) has."""
    if tuple(shape) != (n_features, n_cells):
        raise InputError(
            f"{path}: {shape[0]} x {shape[1]}, but {of} {n_features} regions and {n_cells} barcodes; "
            "the matrix must be regions x cells"
        )


def name_of(regions: Regions, row: int) -> str:
    """A region as messages name it: `chr:start-end`, 0-based half-open."""
    return f"{regions.names[regions.chromosome[row]]}:{regions.start[row]}-{regions.end[row]}"


def read_lines(path: Path | str) -> list[str]:
    """A text file's lines, gunzipped if it is named .gz."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}; decompress it or save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}; copy the file again") from error


def _check_unique(matrix: CountMatrix, barcodes: str) -> None:
    """Raise `InputError` for a barcode or a region that stands there twice. barcodes: the file that holds them."""
    if len(set(matrix.barcodes)) < len(matrix.barcodes):
        first: dict[str, int] = {}
        again, barcode = next(x for x in enumerate(matrix.barcodes) if first.setdefault(x[1], x[0]) != x[0])
        raise InputError(
            f"{barcodes}: barcode {barcode!r} stands there more than once (columns {first[barcode] + 1} and "
            f"{again + 1} of the matrix); barcodes must be unique"
        )
    regions = matrix.regions
    keys = (regions.end, regions.start, regions.chromosome)
    order = np.lexsort(keys)
    repeated = np.flatnonzero(np.all([np.diff(key[order]) == 0 for key in keys], axis=0))
    if len(repeated):
        pair = order[repeated[0] : repeated[0] + 2]
        first_row, again_row = np.flatnonzero(matrix.region_of_feature >= 0)[pair] + 1
        raise InputError(
            f"{matrix.path}: rows {first_row} and {again_row} are the same region, {name_of(regions, pair[0])}; "
            "sum or remove one"
        )
