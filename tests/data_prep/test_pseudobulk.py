import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.main import main
from data_prep.output_folder import MANIFEST
from data_prep.pseudobulk import file_stems


def dense_matrix(path: Path) -> np.ndarray:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("%")]
    matrix = np.zeros([int(size) for size in lines[0].split()[:2]])
    for row, column, count in (line.split() for line in lines[1:]):
        matrix[int(row) - 1, int(column) - 1] += int(count)
    return matrix


def column(path: Path, name: str) -> list[str]:
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return [row[header.index(name)] for row in rows]


def expected_beds(matrix: np.ndarray, regions: Path, labels: list[str | None]) -> dict[str, list[str]]:
    """Lines of each cell type's BED, from the dense matrix."""
    rows = ["\t".join(line.split("\t")[:3]) for line in regions.read_text().splitlines()]
    beds = {}
    for name in {label for label in labels if label}:
        summed = matrix[:, [label == name for label in labels]].sum(axis=1)
        own = [row for row, count in zip(rows, summed, strict=True) if count > 0]
        beds[name] = sorted(own, key=lambda row: (row.split("\t")[0], int(row.split("\t")[1])))
    return beds


def found_beds(out: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().splitlines() for path in out.glob("*.bed")}


def assert_sorted(out: Path) -> None:
    """As `sort -k1,1 -k2,2n` leaves them."""
    for path in out.glob("*.bed"):
        check = ["sort", "-c", "-s", "-t", "\t", "-k1,1", "-k2,2n", path]
        assert subprocess.run(check, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}).returncode == 0


def test_bulk_atlas_gives_each_cell_types_regions(shared_data, tmp_path, capsys):
    folder, out = shared_data / "hg19" / "atlas", tmp_path / "peaks"
    files = [folder / name for name in ("matrix.mtx", "regions.bed", "barcodes.tsv", "cell_types.tsv")]
    options = ("--matrix", "--regions", "--barcodes", "--cell-types")
    main(["pseudobulk", *(str(x) for pair in zip(options, files, strict=True) for x in pair), "--out", str(out)])

    table = dict(zip(column(files[3], "barcode"), column(files[3], "cell_type"), strict=True))
    labels = [table.get(barcode) for barcode in files[2].read_text().split()]
    beds = expected_beds(dense_matrix(files[0]), files[1], labels)
    assert len(beds) == 17
    assert found_beds(out) == beds
    assert_sorted(out)
    assert labels.count(None) == 53
    assert "17 cell types" in (said := capsys.readouterr().out)
    assert "53 barcodes without a cell type" in said


def test_single_cells_are_summed_by_the_named_column(shared_data, tmp_path, capsys):
    folder, out = shared_data / "scatac_hemato_hg19", tmp_path / "peaks"
    cells = folder / "cells.tsv"
    arguments = ["--matrix", folder / "counts.mtx", "--regions", folder / "peaks.bed", "--barcodes", cells]
    arguments += ["--cell-types", cells, "--cell-type-key", "BioClassification", "--out", out]
    main(["pseudobulk", *map(str, arguments)])

    labels = column(cells, "BioClassification")
    assert Counter(labels) == dict.fromkeys(labels, 100)
    beds = expected_beds(dense_matrix(folder / "counts.mtx"), folder / "peaks.bed", labels)
    assert len(beds) == 6
    assert found_beds(out) == beds
    assert_sorted(out)
    assert "0 barcodes without a cell type" in capsys.readouterr().out


@pytest.fixture
def small(tmp_path) -> dict[str, str]:
    """Options of a command on a matrix of 4 regions x 4 cells, with an explicit zero and a split entry."""
    files = {
        "matrix": "%%MatrixMarket matrix coordinate integer general\n4 4 6\n1 1 0\n1 2 1\n2 1 3\n3 3 1\n4 4 2\n4 4 2\n",
        "regions": "chr10\t5\t9\nchr2\t7\t9\nchr10\t1\t3\nchr2\t100\t130\n",
        "barcodes": "one\ntwo\nthree\nfour\n",
        "cell_types": "cell_type\tbatch\tid\nT cell\t1\tone\nB/NK\t1\ttwo\nT cell\t2\tthree\nNA\t2\tfour\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return {f"--{name}": str(tmp_path / name) for name in files} | {
        "--barcode_key": "id",
        "--out": str(tmp_path / "peaks"),
    }


def flat(options: dict[str, str]) -> list[str]:
    return ["pseudobulk", *(x for pair in options.items() for x in pair)]


def test_zeros_count_for_nothing_and_unlabelled_cells_are_left_out(small, tmp_path):
    main(flat(small))
    assert found_beds(tmp_path / "peaks") == {"T_cell": ["chr10\t1\t3", "chr2\t7\t9"], "B_NK": ["chr10\t5\t9"]}


def test_a_header_over_the_barcodes_is_recognised_and_said(small, tmp_path, capsys):
    main(flat(small))
    before = found_beds(tmp_path / "peaks")
    (tmp_path / "barcodes").write_text("barcode\tdepth\none\t5\ntwo\t6\nthree\t7\nfour\t8\n")
    main([*flat(small), "--overwrite"])
    assert found_beds(tmp_path / "peaks") == before
    assert "'barcode'" in capsys.readouterr().out


def test_a_second_run_changes_nothing_and_says_so(small, tmp_path, capsys):
    main(flat(small))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "peaks").iterdir()}
    assert MANIFEST in before
    capsys.readouterr()
    main(flat(small))
    assert capsys.readouterr().out == f"{tmp_path / 'peaks'}: up to date\n"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "peaks").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("matrix", "%%MatrixMarket matrix coordinate integer general\n3 4 1\n1 1 1\n", "3 x 4"),
        ("matrix", "%%MatrixMarket matrix coordinate integer general\n4 3 1\n1 1 1\n", "4 x 3"),
        ("matrix", "%%MatrixMarket matrix coordinate integer general\n4 4 2\n1 1 1\n", "MatrixMarket"),
        ("matrix", "%%MatrixMarket matrix coordinate integer general\n4 4 1\n5 1 1\n", "MatrixMarket"),
        ("matrix", "%%MatrixMarket matrix coordinate integer general\n4 4 1\n1 1 -1\n", "negative"),
        ("matrix", "gene,count\n", "MatrixMarket"),
        ("regions", "chr10\t5\t9\nchr2\t9\t7\n", ":2: "),
        ("barcodes", "one\ntwo\ntwo\nfour\n", "'two'"),
        ("barcodes", b"\x1f\x8b\x08\x00one", ""),
        ("cell_types", "cluster\tbatch\tid\nT\t1\tone\n", "'cell_type'"),
        ("cell_types", "cell_type\tbatch\tbarcode\nT\t1\tone\n", "'id'"),
        ("cell_types", "", "'cell_type'"),
        ("cell_types", "cell_type\tbatch\tid\nT\t1\tone\nT\t1\n", ":3: "),
        ("cell_types", "cell_type\tbatch\tid\nT\t1\tfive\n", "none of the 4 barcodes"),
        ("cell_types", "cell_type\tbatch\tid\nT\t1\tone\nB\t1\tone\n", ":3: "),
        ("cell_types", "cell_type\tbatch\tid\nM\u00fcller glia\t1\tone\n".encode("latin-1"), ""),
        ("matrix", None, "no such file"),
        ("regions", None, "no such file"),
        ("barcodes", None, "no such file"),
        ("cell_types", None, "no such file"),
    ],
    ids=[
        "fewer rows than regions",
        "fewer columns than barcodes",
        "truncated",
        "row out of range",
        "negative count",
        "no matrix",
        "backwards region",
        "repeated barcode",
        "compressed barcodes",
        "no such cell type column",
        "no such barcode column",
        "empty table",
        "short row",
        "no barcode in common",
        "two cell types for a barcode",
        "not UTF-8",
        "missing matrix",
        "missing regions",
        "missing barcodes",
        "missing cell types",
    ],
)
def test_bad_input_is_named_in_one_line(small, tmp_path, refused, name, text, said):
    path = tmp_path / name
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    del small["--out"]
    line = refused(*flat(small))
    assert str(path) in line
    assert said in line


def test_two_cell_types_of_one_file_name_are_refused(small, tmp_path, refused):
    (tmp_path / "cell_types").write_text("cell_type\tbatch\tid\nT cell\t1\tone\nT/cell\t1\ttwo\n")
    del small["--out"]
    assert "T cell, T/cell" in refused(*flat(small))


def test_file_names_hold_no_spaces_or_slashes():
    assert file_stems(["B/NK  cell", "neuron", "a\\b"]) == {
        "B/NK  cell": "B_NK_cell",
        "neuron": "neuron",
        "a\\b": "a_b",
    }
