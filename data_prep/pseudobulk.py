"""`pseudobulk`: peak count matrices (regions x cells) to one BED of accessible regions a cell type.

A region is accessible in a cell type if enough of its cells have a non-zero count there, over all matrices. Matrices
are read one after another, a block of entries at a time, into one table of regions x cell types: memory does not grow
with the number of cells. Only an `.rds` has to be read whole, and is let go before the next matrix.
"""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.checksum import sha256_of_file
from data_prep.count_matrix import NO_CELL_TYPE, files_of, is_market, open_matrix, read_lines
from data_prep.errors import InputError
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json
from data_prep.peaks import Regions
from data_prep.pooled_counts import PooledCounts
from data_prep.text_table import aligned


@dataclass(frozen=True)
class PseudobulkConfig:
    """Options of `pseudobulk`."""

    matrix: list[str] = field(
        metadata={
            "help": "Peak counts, one or more files in any of these formats: MatrixMarket (.mtx, .mtx.gz: regions x "
            "cells, with --regions and --barcodes), AnnData (.h5ad: cells x regions), R (.rds of a dgCMatrix with its "
            "dimnames; read whole, at some 50 bytes an entry), 10x (.h5, or a folder of matrix.mtx, barcodes.tsv, and "
            "features.tsv or peaks.bed). Cell types are pooled by name over all."
        }
    )
    regions: list[str] | None = field(
        default=None, metadata={"help": "BED of the rows, in their order: one for each MatrixMarket file of --matrix."}
    )
    barcodes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Barcodes of the columns, one a line (first column), in order: one for each MatrixMarket file."
        },
    )
    cell_types: list[str] | None = field(
        default=None,
        metadata={
            "help": "TSV with a header, barcode and cell type of each cell: one for all matrices, or one for each. "
            "May be left out for .h5ad, whose obs has them."
        },
    )
    cell_type_key: str = field(
        default="cell_type", metadata={"help": "Column of the cell type in --cell_types, or in an .h5ad's obs."}
    )
    barcode_key: str | None = field(
        default=None, metadata={"help": "Column of the barcode in --cell_types; default: its first column."}
    )
    min_cells: int = field(
        default=1, metadata={"help": "A region is accessible if at least so many of the cell type's cells have it."}
    )
    min_fraction: float = field(
        default=0.0, metadata={"help": "And if at least this share of the cell type's cells, 0 to 1, has it."}
    )
    out: str = field(default="data/peaks", metadata={"help": "Folder to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})


def run(config: PseudobulkConfig) -> None:
    """Write one sorted BED a cell type, or say that they are there. Raises `InputError` for bad input."""
    if config.min_cells < 1:
        raise InputError(f"--min_cells must be at least 1, not {config.min_cells}")
    if not 0 <= config.min_fraction <= 1:
        raise InputError(f"--min_fraction must be from 0 to 1, not {config.min_fraction}")
    out = Path(config.out)
    sources = sources_of(config)
    inputs = input_files(sources, config.cell_types or [])
    sha256 = [sha256_of_file(path) for path in inputs]
    thresholds = {"min_cells": config.min_cells, "min_fraction": config.min_fraction}
    made_from = fingerprint(inputs=sha256, keys=[config.cell_type_key, config.barcode_key], thresholds=thresholds)
    if is_up_to_date(out, made_from, config.overwrite, inputs):
        print(f"{out}: up to date")
        return

    tables = [read_cell_types(path, config.cell_type_key, config.barcode_key) for path in config.cell_types or []]
    pooled, matrices = pool(sources, tables, config)
    names = sorted(pooled.cells)
    stems = file_stems(names)
    with output_folder(out) as folder:
        summary = {}
        for name in names:
            here = sorted_by_name(pooled.accessible(name, config.min_cells, config.min_fraction))
            file = f"{stems[name]}.bed" if len(here) else None
            if file:
                (folder / file).write_text(bed_text(here))
            bp = int((here.end - here.start).sum())
            summary[name] = {"file": file, "cells": pooled.cells[name], "regions": len(here), "bp": bp}
        if not any(entry["regions"] for entry in summary.values()):
            raise InputError(
                f"no cell type has a region with --min_cells {config.min_cells} and --min_fraction "
                f"{config.min_fraction}; the largest has {max(pooled.cells.values())} cells: lower the thresholds"
            )
        manifest = {
            "fingerprint": made_from,
            "inputs": [{"path": str(path), "sha256": x} for path, x in zip(inputs, sha256, strict=True)],
            "thresholds": thresholds,
            "cell_types": summary,
            "barcodes": sum(matrix["barcodes"] for matrix in matrices),
            "without_cell_type": sum(matrix["without_cell_type"] for matrix in matrices),
            "matrices": matrices,
        }
        write_json(folder / MANIFEST, manifest)
    unseen = {name for table in tables for name in table.values()} - set(names)
    print(report(out, manifest, len(pooled.regions), sorted(unseen)))


def sources_of(config: PseudobulkConfig) -> list[tuple[str, str | None, str | None]]:
    """Each matrix with its regions and barcodes, None where it holds its own.

    Raises `InputError` where the lists of the options do not match the matrices.
    """
    given_as: dict[Path, str] = {}
    for path in config.matrix:
        file = files_of(path)[0].resolve()
        if file in given_as:
            also = "" if given_as[file] == path else f", as {given_as[file]} too"
            raise InputError(f"--matrix: {path} is given more than once{also}; its cells would be counted twice")
        given_as[file] = path
    markets = [path for path in config.matrix if is_market(path)]
    beside = []
    for option, given in (("--regions", config.regions), ("--barcodes", config.barcodes)):
        if len(given or []) != len(markets):
            if markets:
                needed = (
                    f"{len(markets)} needed, one for each MatrixMarket file ({', '.join(markets)}), in order; "
                    "for a 10x folder, give --matrix the folder"
                )
            else:
                needed = "none needed: .h5ad, .rds, .h5 and 10x folders hold their own; leave it out"
            raise InputError(f"{option}: {len(given or [])} given, {needed}")
        beside.append(iter(given or []))
    n_tables = len(config.cell_types or [])
    without = [path for path in config.matrix if not path.lower().endswith(".h5ad")]
    if not n_tables and without:
        raise InputError(f"--cell_types: needed for {', '.join(without)} (of an .h5ad, obs holds the cell types)")
    if n_tables > 1 and n_tables != len(config.matrix):
        raise InputError(
            f"--cell_types: {n_tables} tables for {len(config.matrix)} matrices; give one for all, or one for each"
        )
    return [(path, *(next(files) if path in markets else None for files in beside)) for path in config.matrix]


def input_files(sources: list[tuple[str, str | None, str | None]], tables: list[str]) -> list[Path]:
    """Every file that is read. Raises `InputError` for one that is missing."""
    files = []
    for matrix, *beside in sources:
        files += files_of(matrix) + [Path(path) for path in beside if path]
    files += [Path(path) for path in tables]
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    return files


def pool(
    sources: list[tuple[str, str | None, str | None]], tables: list[dict[str, str]], config: PseudobulkConfig
) -> tuple[PooledCounts, list[dict]]:
    """All matrices' cells with a count, by region and cell type, and what the manifest says of each matrix.

    Raises `InputError` where none of a matrix's cells has a cell type, and where one table serves several matrices and
    names a barcode that two of them hold.
    """
    pooled, matrices, holder = PooledCounts(), [], {}
    for number, (path, regions, barcodes) in enumerate(sources):
        table = tables[number if len(tables) > 1 else 0] if tables else None
        matrix = open_matrix(path, regions, barcodes, None if tables else config.cell_type_key, table or ())
        cell_types = table if tables else matrix.cell_types
        labels = [cell_types.get(barcode) for barcode in matrix.barcodes]
        if not any(labels):
            source = config.cell_types[number if len(tables) > 1 else 0] if tables else f"{path}: obs"
            raise InputError(
                f"{source}: has a cell type for none of the {len(labels)} barcodes of the matrix {path}, such as "
                f"{next(iter(matrix.barcodes), '')!r}; give the table of these cells (--barcode-key names its column)"
            )
        for barcode in (b for b, label in zip(matrix.barcodes, labels, strict=True) if label and len(tables) == 1):
            if barcode in holder:
                raise InputError(
                    f"{path}: barcode {barcode!r} is also in {holder[barcode]}, so one table of cell types cannot tell "
                    "whose it is; give --cell_types one table for each matrix"
                )
            holder[barcode] = path
        entries = pooled.add(matrix, labels)
        matrices.append(
            {
                "name": Path(path).name,
                "regions": len(matrix.regions),
                "regions_in_order": matrix.regions.by_position,
                "features_left_out": matrix.features_left_out,
                "barcodes": len(labels),
                "without_cell_type": labels.count(None),
                "nonzero_entries": entries,
            }
        )
        del matrix  # an .rds is in memory: let it go before the next is read
    return pooled, matrices


def report(out: Path, manifest: dict, n_regions: int, unseen: list[str]) -> str:
    """What was made of what, and a line for each cell type. `unseen`: cell types of the tables that no cell has."""
    summary, matrices = manifest["cell_types"], manifest["matrices"]
    filled = {name: entry for name, entry in summary.items() if entry["regions"]}
    from_ = f"{len(matrices)} matrices, " if len(matrices) > 1 else ""
    lines = [
        f"{out}: {len(filled)} cell types, {sum(x['regions'] for x in filled.values()):,} accessible regions, from "
        f"{from_}{n_regions:,} regions x {manifest['barcodes']:,} cells; {manifest['without_cell_type']:,} barcodes "
        "without a cell type left out"
    ]
    left_out = sum(matrix["features_left_out"] for matrix in matrices)
    if left_out:
        lines.append(f"{left_out:,} features that are no peaks left out")
    unordered = [matrix["name"] for matrix in matrices if not matrix["regions_in_order"]]
    if unordered:
        lines.append(f"regions of {', '.join(unordered)} are not in order of position: sorted in the BED files")
    rows = [("cell type", "cells", "regions", "bp")]
    rows += [(name, *(f"{entry[key]:,}" for key in ("cells", "regions", "bp"))) for name, entry in summary.items()]
    lines += aligned(rows, right=(1, 2, 3))
    empty = [name for name in summary if name not in filled]
    if empty:
        lines.append(
            f"WARNING: no accessible region at --min_cells {manifest['thresholds']['min_cells']} and --min_fraction "
            f"{manifest['thresholds']['min_fraction']}, so no BED, for: {', '.join(empty)}"
        )
    if unseen:
        lines.append(f"WARNING: cell types of --cell_types that no cell of the matrix has: {', '.join(unseen)}")
    return "\n".join(lines)


def read_cell_types(path: str, cell_type_key: str, barcode_key: str | None) -> dict[str, str]:
    """Cell type by barcode, for barcodes that have one (not empty, not NA), of a TSV, gzipped or not.

    A header that is one column shorter than all lines is what R's write.table makes: row names come first, unnamed.
    """
    reader = csv.reader(read_lines(path), delimiter="\t", strict=True)
    try:
        rows = [(reader.line_num, [x.strip() for x in fields]) for fields in reader if any(fields)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: cannot be read as a TSV: {error}; correct the quotes") from error
    header, rows = (rows[0][1], rows[1:]) if rows else ([], [])
    if rows and all(len(fields) == len(header) + 1 for _, fields in rows):
        header = ["", *header]
    for key in filter(None, (cell_type_key, barcode_key)):
        if key not in header:
            raise InputError(
                f"{path}: has no column {key!r}; its columns are {', '.join(header)} "
                "(--cell-type-key and --barcode-key name them)"
            )
    barcode_at = header.index(barcode_key) if barcode_key else 0
    cell_type_at = header.index(cell_type_key)
    cell_types = {}
    for number, fields in rows:
        if len(fields) <= max(barcode_at, cell_type_at):
            raise InputError(f"{path}:{number}: {len(fields)} columns where the header has {len(header)}")
        barcode, cell_type = fields[barcode_at], fields[cell_type_at]
        if cell_type not in NO_CELL_TYPE and cell_types.setdefault(barcode, cell_type) != cell_type:
            raise InputError(f"{path}:{number}: barcode {barcode!r} has another cell type above; remove one")
    return cell_types


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
