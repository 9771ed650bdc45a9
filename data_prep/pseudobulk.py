"""`pseudobulk`: a peak count matrix (regions x cells) to one BED of accessible regions a cell type."""

import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse

from data_prep.errors import InputError
from data_prep.genome import sha256_of_file
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.peaks import Regions, read_regions


@dataclass(frozen=True)
class PseudobulkConfig:
    matrix: str = field(metadata={"help": "Peak counts, regions x cells, MatrixMarket (.mtx, .mtx.gz)."})
    regions: str = field(metadata={"help": "BED of the matrix's rows, in their order."})
    barcodes: str = field(metadata={"help": "Barcodes of the matrix's columns, one a line (first column), in order."})
    cell_types: str = field(metadata={"help": "TSV with a header: barcode and cell type of each cell."})
    cell_type_key: str = field(default="cell_type", metadata={"help": "Column of the cell type in --cell_types."})
    barcode_key: str | None = field(
        default=None, metadata={"help": "Column of the barcode in --cell_types; default: its first column."}
    )
    out: str = field(default="data/peaks", metadata={"help": "Folder to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: PseudobulkConfig) -> None:
    """Write one sorted BED a cell type, or say that they are there. Raises `InputError` for bad input."""
    out = Path(config.out)
    inputs = (config.matrix, config.regions, config.barcodes, config.cell_types)
    for path in inputs:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
    made_from = fingerprint(
        inputs=[sha256_of_file(path) for path in inputs], keys=[config.cell_type_key, config.barcode_key]
    )
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return

    counts = read_matrix(config.matrix)
    regions = read_regions(config.regions)
    cell_type_of = read_cell_types(config.cell_types, config.cell_type_key, config.barcode_key)
    barcodes = read_barcodes(config.barcodes, counts.shape[1], cell_type_of)
    if counts.shape != (len(regions), len(barcodes)):
        raise InputError(
            f"{config.matrix}: {counts.shape[0]} x {counts.shape[1]}, but {config.regions} has {len(regions)} regions "
            f"and {config.barcodes} {len(barcodes)} barcodes; the matrix must be regions x cells"
        )
    labels = [cell_type_of.get(barcode) for barcode in barcodes]
    names = sorted({label for label in labels if label})
    if not names:
        raise InputError(f"{config.cell_types}: has a cell type for none of the {len(barcodes)} barcodes of the matrix")
    accessible = accessible_by_cell_type(counts, labels, names)
    stems = file_stems(names)

    with output_folder(out) as folder:
        summary = {}
        for column, name in enumerate(names):
            here = sorted_by_name(regions.take(np.flatnonzero(accessible[:, column])))
            (folder / f"{stems[name]}.bed").write_text(bed_text(here))
            summary[name] = {"file": f"{stems[name]}.bed", "cells": labels.count(name), "regions": len(here)}
        without = sum(label is None for label in labels)
        write_json(
            folder / MANIFEST,
            {"fingerprint": made_from, "cell_types": summary, "barcodes": len(barcodes), "without_cell_type": without},
        )
    total = sum(entry["regions"] for entry in summary.values())
    print(
        f"{out}: {len(names)} cell types, {total:,} accessible regions, from {counts.shape[0]:,} regions x "
        f"{len(barcodes):,} cells; {without:,} barcodes without a cell type left out"
    )


def read_matrix(path: str) -> scipy.sparse.csc_array:
    """A MatrixMarket matrix of counts, sparse. Raises `InputError` where it is not one, or a count is negative."""
    try:
        matrix = scipy.io.mmread(path, spmatrix=False)
    except (ValueError, OSError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: not a MatrixMarket matrix: {error}") from error
    matrix = scipy.sparse.csc_array(matrix)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise InputError(f"{path}: holds counts that are negative or not numbers; give raw peak counts")
    return matrix


def read_barcodes(path: str, columns: int, known: Container[str]) -> list[str]:
    """The first column of each line. A header is recognised by its making one line too many for the matrix, and by its
    not being one of the `known` barcodes."""
    lines = [line.split("\t")[0].strip() for line in _lines(path) if line.strip()]
    if len(lines) == columns + 1 and lines[0] not in known:
        print(f"{path}: first line ({lines[0]!r}) taken as a header: one line more than the matrix has columns")
        lines = lines[1:]
    if len(set(lines)) < len(lines):
        repeated = next(name for name in lines if lines.count(name) > 1)
        raise InputError(f"{path}: barcode {repeated!r} stands there more than once; barcodes must be unique")
    return lines


def read_cell_types(path: str, cell_type_key: str, barcode_key: str | None) -> dict[str, str]:
    """Cell type by barcode, for barcodes that have one (not empty, not NA)."""
    lines = _lines(path)
    header = lines[0].split("\t") if lines else []
    for key in filter(None, (cell_type_key, barcode_key)):
        if key not in header:
            raise InputError(
                f"{path}: has no column {key!r}; its columns are {', '.join(header)} "
                "(--cell-type-key and --barcode-key name them)"
            )
    barcode_at = header.index(barcode_key) if barcode_key else 0
    cell_type_at = header.index(cell_type_key)
    cell_types = {}
    for number, line in enumerate(lines[1:], 2):
        fields = line.split("\t")
        if len(fields) <= max(barcode_at, cell_type_at):
            raise InputError(f"{path}:{number}: {len(fields)} columns where the header has {len(header)}")
        if fields[cell_type_at].strip() not in ("", "NA"):
            barcode, cell_type = fields[barcode_at].strip(), fields[cell_type_at].strip()
            if cell_types.setdefault(barcode, cell_type) != cell_type:
                raise InputError(f"{path}:{number}: barcode {barcode!r} has another cell type above; remove one")
    return cell_types


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}; decompress it or save it as UTF-8") from error


def accessible_by_cell_type(counts: scipy.sparse.csc_array, labels: list[str | None], names: list[str]) -> np.ndarray:
    """bool [n_regions, n_cell_types]: columns summed by cell type, then binarised; unlabelled columns are left out."""
    position = {name: column for column, name in enumerate(names)}
    pairs = [(cell, position[label]) for cell, label in enumerate(labels) if label in position]
    cells, columns = zip(*pairs, strict=True)
    indicator = scipy.sparse.csc_array((np.ones(len(pairs)), (cells, columns)), shape=(len(labels), len(names)))
    return (counts @ indicator).toarray() > 0


def file_stems(names: list[str]) -> dict[str, str]:
    """A file name for each cell type: letters that a path or a shell would split on become '_'."""
    stems = {name: re.sub(r"[\s/\\]+", "_", name) for name in names}
    if len(set(stems.values())) < len(names):
        raise InputError(f"two cell types would share a file name: {', '.join(sorted(names))}; rename one")
    return stems


def sorted_by_name(regions: Regions) -> Regions:
    """By chromosome name, start and end, as `sort -k1,1 -k2,2n` does."""
    rank = np.argsort(np.argsort(regions.names)).astype(np.int32)
    return regions.take(np.lexsort((regions.end, regions.start, rank[regions.chromosome])))


def bed_text(regions: Regions) -> str:
    """BED3 lines."""
    return "".join(
        f"{regions.names[chromosome]}\t{start}\t{end}\n"
        for chromosome, start, end in zip(regions.chromosome, regions.start, regions.end, strict=True)
    )
