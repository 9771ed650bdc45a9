"""AnnData's `.h5ad`, cells x regions, read from the HDF5 file without taking X or its layers into memory.

`anndata.read_h5ad(backed=...)` leaves X on disk but loads layers and obsm; here obs and var alone are read.
"""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_prep import count_matrix
from data_prep.count_matrix import (
    NO_CELL_TYPE,
    UNREADABLE_HDF5,
    Block,
    CountMatrix,
    check_compressed,
    check_shape,
    compressed_blocks,
    numbered,
    one_genome,
    peaks_of,
    regions_from_columns,
    regions_from_names,
)
from data_prep.errors import InputError, one_line
from data_prep.peaks import Regions

if TYPE_CHECKING:
    import h5py
    import pandas as pd

_CHROMOSOME = ("chrom", "chr", "chromosome", "seqnames", "seqname", "contig")
_START = ("start", "chromstart", "chrom_start", "peak_start")
_END = ("end", "chromend", "chrom_end", "stop", "peak_end")
_FEATURE_TYPE = ("feature_types", "feature_type")


def open_h5ad(path: str, cell_type_key: str | None) -> CountMatrix:
    """A `.h5ad` whose X holds counts, sparse by row or column, or dense. Cell types come from obs[cell_type_key], none
    if that is None. Raises `InputError` where the key is missing, or var names no regions."""
    import h5py

    try:
        with h5py.File(path) as file, warnings.catch_warnings(action="ignore"):  # of anndata, at old files
            for name in ("obs", "var", "X"):
                if name not in file:
                    layers = ", ".join(file.get("layers", ()))
                    hint = f"set adata.X to the counts (layers: {layers or 'none'})" if name == "X" else "write it anew"
                    raise InputError(f"{path}: has no {name}; {hint}, and save it with adata.write_h5ad")
            obs, var = read_frame(file, "obs"), read_frame(file, "var")
            layout, shape, indptr, entries = _layout(file["X"], path)
            rows, types = np.arange(len(var)), _column(var, _FEATURE_TYPE)
            if types is not None:
                rows = peaks_of([str(kind) for kind in var[types]], path)
            peaks = var.iloc[rows]
            regions = _regions(peaks, obs, path)
            labels = None if cell_type_key is None else _labels(file, obs, cell_type_key, path)
    except InputError:
        raise
    except Exception as error:  # h5py's errors, and anndata's own for what a newer anndata wrote
        raise _unreadable(path, error) from error
    barcodes = [str(name) for name in obs.index]
    check_shape(path, shape[::-1], len(var), len(barcodes), "as regions x cells, var and obs have")
    genome = one_genome(map(str, peaks["genome"].dropna()), path) if "genome" in peaks else None
    return CountMatrix(
        path,
        regions,
        numbered(rows, len(var)),
        barcodes,
        entries,
        lambda: _blocks(path, layout, shape, indptr),
        None if labels is None else {barcode: x for barcode, x in zip(barcodes, labels, strict=True) if x},
        genome,
    )


def read_frame(file: "h5py.File", name: str) -> "pd.DataFrame":
    """obs or var; before anndata 0.7 it was an array of records whose first field is the index."""
    import pandas as pd
    from anndata.io import read_elem

    frame = read_elem(file[name])
    if isinstance(frame, np.ndarray):
        frame = pd.DataFrame(frame).map(lambda value: value.decode() if isinstance(value, bytes) else value)
        frame = frame.set_index(frame.columns[0])
    return frame


def _layout(x: "h5py.Group | h5py.Dataset", path: str) -> tuple[str, tuple[int, int], np.ndarray | None, int]:
    """`csr`, `csc` or `dense`, X's shape (cells x regions), its indptr, and the number of its entries."""
    import h5py
    from anndata.io import sparse_dataset

    if isinstance(x, h5py.Dataset):
        if x.ndim != 2:
            raise InputError(f"{path}: X has {x.ndim} dimensions; it must be cells x regions")
        return "dense", x.shape, None, x.size
    sparse = sparse_dataset(x)
    shape = tuple(int(size) for size in sparse.shape)
    n_majors = shape[0] if sparse.format == "csr" else shape[1]
    indptr = check_compressed(path, x["indptr"][()], n_majors, len(x["indices"]), len(x["data"]))
    return sparse.format, shape, indptr, int(indptr[-1])


def _labels(file: "h5py.File", obs: "pd.DataFrame", key: str, path: str) -> list[str | None]:
    """Each cell's type as a string; None for one that is missing, empty or NA."""
    import pandas as pd
    from anndata.io import read_elem

    if key not in obs:
        raise InputError(
            f"{path}: obs has no column {key!r}; its columns are {', '.join(map(str, obs)) or 'none'} "
            "(--cell-type-key names it)"
        )
    column = obs[key]
    # Before anndata 0.7 a categorical's names lay in uns.
    if f"uns/{key}_categories" in file and pd.api.types.is_integer_dtype(column):
        column = pd.Series(pd.Categorical.from_codes(column, np.atleast_1d(read_elem(file[f"uns/{key}_categories"]))))
    names = (None if missing else str(name).strip() for name, missing in zip(column, column.isna(), strict=True))
    return [None if name in NO_CELL_TYPE else name for name in names]


def _regions(var: "pd.DataFrame", obs: "pd.DataFrame", path: str) -> Regions:
    """From var's index or, where that names no regions, from its columns of chromosome, start and end."""
    import pandas as pd

    try:
        return regions_from_names(map(str, var.index), path)
    except InputError as error:
        columns = [_column(var, names) for names in (_CHROMOSOME, _START, _END)]
        if None in columns:
            if len(obs) and _names_a_region(str(obs.index[0])):
                raise InputError(f"{path}: its obs are regions and its var cells; save adata.T") from error
            raise InputError(f"{error}, or whose var has columns chrom, start, end") from error
    chromosomes, start, end = (var[column] for column in columns)
    start, end = (pd.to_numeric(column, errors="coerce").to_numpy(np.float64) for column in (start, end))
    whole = (start % 1 == 0) & (end % 1 == 0) & chromosomes.notna().to_numpy()
    if not whole.all():
        row = int((~whole).argmax())
        raise InputError(
            f"{path}: var {var.index[row]!r} has no whole numbers in {columns[1]!r} and {columns[2]!r}, or no "
            f"{columns[0]!r}; correct it"
        )
    return regions_from_columns([str(name) for name in chromosomes], start, end, path)


def _names_a_region(name: str) -> bool:
    try:
        return len(regions_from_names([name], "")) == 1
    except InputError:
        return False


def _column(frame: "pd.DataFrame", names: tuple[str, ...]) -> str | None:
    return next((column for column in frame if str(column).lower() in names), None)


def _blocks(path: str, layout: str, shape: tuple[int, int], indptr: np.ndarray | None) -> Iterator[Block]:
    import h5py

    try:
        with h5py.File(path) as file:
            if layout == "dense":
                yield from _dense_blocks(file["X"])
            else:
                major = "cell" if layout == "csr" else "feature"
                yield from compressed_blocks(file["X/data"], file["X/indices"], indptr, major)
    except UNREADABLE_HDF5 as error:
        raise _unreadable(path, error) from error


def _dense_blocks(x: "h5py.Dataset") -> Iterator[Block]:
    """Tiles of whole HDF5 chunks, so that each chunk is decompressed once."""
    n_cells, n_features = x.shape
    tall, wide = x.chunks or (1, 1)
    size = count_matrix.BLOCK_ENTRIES
    columns = min(max(1, n_features), wide * max(1, size // (tall * wide)))
    rows = tall * max(1, size // (tall * columns))
    for top in range(0, n_cells, rows):
        for left in range(0, n_features, columns):
            tile = x[top : top + rows, left : left + columns]
            cell, feature = np.indices(tile.shape).reshape(2, -1)
            yield Block(feature + left, cell + top, tile.ravel())


def _unreadable(path: str, error: BaseException) -> InputError:
    return InputError(f"{path}: cannot be read as AnnData .h5ad: {one_line(error)}; copy or save it again")
