"""R's `.rds` of a sparse matrix of the package Matrix, regions x cells, with its dimnames.

The format can only be read from its beginning to its end, so the whole matrix is held in memory while its cells are
counted: some 50 bytes an entry at the peak. Nothing in the file is run; `rdata` parses it.
"""

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from data_prep.count_matrix import (
    Block,
    CountMatrix,
    check_compressed,
    check_shape,
    compressed_blocks,
    regions_from_names,
)
from data_prep.errors import InputError, one_line

if TYPE_CHECKING:
    from rdata.parser import RObject

_SPARSE = re.compile(r"[dln]g[CT]Matrix")  # double, logical, pattern; by column or triplets
_AS_DGC = 'save its counts alone in R: saveRDS(as(counts, "CsparseMatrix"), "counts.rds")'
_EXPERIMENT = (
    'export in R: saveRDS(assay(object, "counts"), "counts.rds") and '
    'write.table(as.data.frame(colData(object)), "cells.tsv", sep = "\\t", quote = FALSE)'
)
_SEURAT = (
    'export in R: saveRDS(GetAssayData(object, slot = "counts"), "counts.rds") (Seurat 5: layer = "counts") and '
    'write.table(object[[]], "cells.tsv", sep = "\\t", quote = FALSE)'
)
_EXPORT = {
    "Seurat": _SEURAT,
    "SingleCellExperiment": _EXPERIMENT,
    "SummarizedExperiment": _EXPERIMENT,
    "RangedSummarizedExperiment": _EXPERIMENT,
    "cell_data_set": _EXPERIMENT,
    "pairlist": 'it was saved with save(), as an .RData file: load it in R, and saveRDS(counts, "counts.rds")',
    "Assay": 'export in R: saveRDS(object@counts, "counts.rds")',
    "ChromatinAssay": 'export in R: saveRDS(object@counts, "counts.rds")',
}

_TYPES = {  # what R calls an object without a class, by its type in the file
    "VEC": "list",
    "LIST": "pairlist",
    "STR": "character",
    "REAL": "numeric",
    "INT": "integer",
    "LGL": "logical",
    "NILVALUE": "NULL",
}


def open_rds(path: str) -> CountMatrix:
    """An `.rds` of a dgCMatrix (also dgT, and l or n for d) with dimnames. Raises `InputError` for any other object."""
    kind, slots = _parse(path)
    if not _SPARSE.fullmatch(kind):
        raise InputError(f"{path}: holds an R object of class {kind}, not a dgCMatrix; {_EXPORT.get(kind, _AS_DGC)}")
    try:
        shape = tuple(int(size) for size in slots["Dim"].value)
        names = [_strings(names) for names in slots["Dimnames"].value]
        if None in names:
            missing = "row names (regions)" if names[0] is None else "column names (barcodes)"
            raise InputError(
                f"{path}: its {kind} has no {missing}; set rownames and colnames in R, and save it again with saveRDS"
            )
        check_shape(path, shape, len(names[0]), len(names[1]), "its dimnames have")
        data, indices, indptr = _compressed(path, kind[1:], slots, shape)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: its {kind} cannot be read: {one_line(error)}; save it again with saveRDS") from error

    def blocks() -> Iterator[Block]:
        return compressed_blocks(data, indices, indptr, major="cell")

    regions = regions_from_names(names[0], path)
    return CountMatrix(path, regions, np.arange(len(regions)), names[1], int(indptr[-1]), blocks)


def _parse(path: str) -> tuple[str, dict[str, "RObject"]]:
    """The class of the object in the file, and its attributes."""
    from rdata.parser import parse_file

    try:
        with warnings.catch_warnings(action="ignore"):
            thing = parse_file(path, extension=".rds").object
        slots = _attributes(thing)
        return _class_of(thing, slots), slots
    except MemoryError as error:
        raise InputError(
            f"{path}: does not fit in memory, and an .rds can only be read whole; write it as MatrixMarket in R: "
            "Matrix::writeMM"
        ) from error
    except Exception as error:  # rdata has no error of its own: a damaged file fails wherever its parser stumbles
        raise InputError(
            f"{path}: cannot be read as R's .rds: {one_line(error)}; copy it again, or {_AS_DGC}"
        ) from error


def _attributes(thing: "RObject") -> dict[str, "RObject"]:
    """An object's attributes (of an S4 object, its slots) by name: R keeps them as a linked list."""
    found, node = {}, thing.attributes
    while node is not None and isinstance(node.value, tuple):
        tag = node.tag
        tag = tag.referenced_object or tag  # a name that the file holds above
        found[tag.value.value.decode()] = node.value[0]
        node = node.value[1]
    return found


def _class_of(thing: "RObject", slots: dict[str, "RObject"]) -> str:
    if "class" in slots:
        return (_strings(slots["class"]) or ["?"])[0]
    return "matrix" if "dim" in slots else _TYPES.get(thing.info.type.name, thing.info.type.name.lower())


def _strings(vector: "RObject") -> list[str] | None:
    """A character vector; None for NULL. Raises `ValueError` for one that holds NA."""
    if vector.value is None:
        return None
    if any(item.value is None for item in vector.value):
        raise ValueError("NA among its dimnames")
    return [item.value.decode("utf-8") for item in vector.value]


def _compressed(
    path: str, kind: str, slots: dict[str, "RObject"], shape: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Counts (None where each is 1), row indices and column pointers."""
    rows = np.asarray(slots["i"].value)
    counts = None
    if "x" in slots:
        values = slots["x"].value
        # A logical NA comes masked.
        counts = np.ma.filled(values.astype(np.float32), np.nan) if np.ma.isMaskedArray(values) else np.asarray(values)
    if kind == "gCMatrix":
        return counts, rows, check_compressed(path, slots["p"].value, shape[1], len(rows), *_lengths(counts))
    columns = np.asarray(slots["j"].value)
    # R adds up the triplets of one place, as scipy does.
    counts = np.ones(len(rows), np.float32) if counts is None else counts.astype(np.float64)
    matrix = scipy.sparse.coo_array((counts, (rows, columns)), shape).tocsc()
    return matrix.data, matrix.indices, matrix.indptr.astype(np.int64)


def _lengths(counts: np.ndarray | None) -> list[int]:
    return [] if counts is None else [len(counts)]
