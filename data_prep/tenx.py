"""10x's peak matrices: the `.h5` of cellranger-atac and cellranger-arc, and the folder of a MatrixMarket file.

A multiome matrix holds genes beside peaks; features whose type is not `Peaks` are left out, and counted.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.count_matrix import (
    UNREADABLE_HDF5,
    Block,
    CountMatrix,
    check_compressed,
    check_shape,
    compressed_blocks,
    numbered,
    one_genome,
    peaks_of,
    read_lines,
    regions_from_columns,
    regions_from_names,
)
from data_prep.errors import InputError, one_line
from data_prep.matrix_market import market_blocks, read_barcodes, read_header
from data_prep.peaks import Regions, read_regions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

# A folder's files by what they hold, each also as .gz.
MATRIX, BARCODES, FEATURES = ("matrix.mtx",), ("barcodes.tsv",), ("features.tsv", "peaks.bed")


def folder_files(path: Path | str) -> list[Path]:
    """Matrix, barcodes and features of a 10x folder. Raises `InputError` where one is missing or there twice."""
    files = []
    for names in (MATRIX, BARCODES, FEATURES):
        found = [Path(path) / f"{name}{ending}" for name in names for ending in ("", ".gz")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise InputError(
                f"{path}: a folder without {' or '.join(names)} (or .gz), so no 10x matrix of peaks; give the folder "
                "that holds matrix.mtx, barcodes.tsv, and features.tsv or peaks.bed"
            )
        if len(found) > 1 and found[1].name == f"{found[0].name}.gz":
            raise InputError(f"{path}: holds both {found[0].name} and {found[1].name}; remove one")
        files.append(found[0])
    return files


def open_folder(path: Path | str) -> CountMatrix:
    """A folder of `matrix.mtx`, `barcodes.tsv`, and `features.tsv` or `peaks.bed`, each gzipped or not, none with a
    header."""
    matrix, barcodes, features = folder_files(path)
    header = read_header(matrix)
    if features.name.startswith("peaks"):
        regions = read_regions(features)
        rows = np.arange(len(regions))
        n_features = len(rows)
    else:
        regions, rows, n_features = read_features(features)
    cells = read_barcodes(barcodes)
    check_shape(str(matrix), (header.n_rows, header.n_columns), n_features, len(cells), "the files beside it have")
    return CountMatrix(
        str(path),
        regions,
        numbered(rows, n_features),
        cells,
        header.entries,
        lambda: market_blocks(matrix, header),
    )


def read_features(path: Path) -> tuple[Regions, np.ndarray, int]:
    """Regions of a features.tsv, the rows that they are, and the number of all rows.

    Columns: id, name and, in files of cellranger-arc, type, chromosome, start, end. Without a type, all are peaks.
    """
    table = [line.split("\t") for line in read_lines(path) if line.strip()]
    widths = {len(fields) for fields in table}
    if len(widths) != 1:
        raise InputError(f"{path}: {'is empty' if not table else 'its lines have unlike numbers of columns'}")
    width = widths.pop()
    rows = peaks_of([fields[2] for fields in table], str(path)) if width > 2 else np.arange(len(table))
    peaks = [table[row] for row in rows]
    if width < 6:
        return regions_from_names([fields[0] for fields in peaks], str(path)), rows, len(table)
    try:
        start, end = ([int(fields[column]) for fields in peaks] for column in (4, 5))
    except ValueError as error:
        raise InputError(f"{path}: columns 5 and 6 must be start and end of each peak: {error}") from error
    return regions_from_columns([fields[3] for fields in peaks], start, end, str(path)), rows, len(table)


def open_h5(path: str) -> CountMatrix:
    """A `.h5` of cellranger-atac or cellranger-arc: group `matrix`, features x barcodes, compressed by barcode."""
    import h5py

    try:
        with h5py.File(path) as file:
            if "matrix" not in file or "features" not in file["matrix"]:
                raise InputError(
                    f"{path}: no 10x matrix: it has {', '.join(file) or 'nothing'} where matrix/features should be; "
                    "name an AnnData file .h5ad, and give the peak matrix of cellranger-atac or -arc"
                )
            group = file["matrix"]
            features = group["features"]
            ids, barcodes = strings(features["id"]), strings(group["barcodes"])
            kinds = strings(features["feature_type"]) if "feature_type" in features else None
            genomes = strings(features["genome"]) if "genome" in features else [""] * len(ids)
            shape = tuple(int(size) for size in group["shape"][()])
            indptr = check_compressed(path, group["indptr"][()], shape[1], len(group["indices"]), len(group["data"]))
    except UNREADABLE_HDF5 as error:
        raise _unreadable(path, error) from error
    check_shape(path, shape, len(ids), len(barcodes), "matrix/features and matrix/barcodes have")
    rows = np.arange(len(ids)) if kinds is None else peaks_of(kinds, path)
    return CountMatrix(
        path,
        regions_from_names((ids[row] for row in rows), path),
        numbered(rows, len(ids)),
        barcodes,
        int(indptr[-1]),
        lambda: _h5_blocks(path, indptr),
        genome=one_genome((genomes[row] for row in rows), path),
    )


def strings(dataset: "h5py.Dataset") -> list[str]:
    """A dataset of strings, read as UTF-8."""
    return dataset.asstr()[()].tolist()


def _h5_blocks(path: str, indptr: np.ndarray) -> "Iterator[Block]":
    import h5py

    try:
        with h5py.File(path) as file:
            group = file["matrix"]
            yield from compressed_blocks(group["data"], group["indices"], indptr, major="cell")
    except UNREADABLE_HDF5 as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: BaseException) -> InputError:
    return InputError(f"{path}: cannot be read as a 10x HDF5 matrix: {one_line(error)}; copy the file again")
