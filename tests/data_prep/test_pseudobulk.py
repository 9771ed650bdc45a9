import gzip
import json
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


HEADER = "%%MatrixMarket matrix coordinate integer general\n"
FILES = {"matrix": "counts.mtx", "regions": "regions.bed", "barcodes": "barcodes.tsv", "cell_types": "cells.tsv"}


@pytest.fixture
def small(tmp_path) -> dict[str, str]:
    """Options of a command on a matrix of 4 regions x 4 cells, with an explicit zero."""
    texts = {
        "matrix": HEADER + "4 4 5\n1 1 0\n1 2 1\n2 1 3\n3 3 1\n4 4 2\n",
        "regions": "chr10\t5\t9\nchr2\t7\t9\nchr10\t1\t3\nchr2\t100\t130\n",
        "barcodes": "one\ntwo\nthree\nfour\n",
        "cell_types": "cell_type\tbatch\tid\nT cell\t1\tone\nB/NK\t1\ttwo\nT cell\t2\tthree\nNA\t2\tfour\n",
    }
    for name, text in texts.items():
        (tmp_path / FILES[name]).write_text(text)
    return {f"--{name}": str(tmp_path / file) for name, file in FILES.items()} | {
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
    (tmp_path / "barcodes.tsv").write_text("barcode\tdepth\none\t5\ntwo\t6\nthree\t7\nfour\t8\n")
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
        ("matrix", HEADER + "3 4 1\n1 1 1\n", "3 x 4"),
        ("matrix", HEADER + "4 3 1\n1 1 1\n", "4 x 3"),
        ("matrix", HEADER + "4 4 2\n1 1 1\n", "1 entries"),
        ("matrix", HEADER + "4 4 1\n1 1 1\n2 1 1\n", "2 entries"),
        ("matrix", HEADER + "4 4 1\n5 1 1\n", "row 5, column 1"),
        ("matrix", HEADER + "4 4 1\n1 0 1\n", "row 1, column 0"),
        ("matrix", HEADER + "4 4 1\n1 1 -1\n", "chr10:5-9 in cell 'one' is -1"),
        ("matrix", HEADER + "4 4 2\n1 1 1\n2 3 nan\n", "chr2:7-9 in cell 'three' is nan"),
        ("matrix", HEADER + "4 4 3\n1 1 1\n2 1 1\n1 1 1\n", "row 1, column 1"),
        ("matrix", HEADER + "4 4 2\n1 1 1\n2 1\n", ":4: '2 1'"),
        ("matrix", HEADER + "4 4 2\n1 1 1\n2 1 1 1\n", ":4: '2 1 1 1'"),
        ("matrix", HEADER + "4 4 2\n1 1 1\n\n2 x 1\n", ":5: '2 x 1'"),
        ("matrix", HEADER + "4 4 0\n", "no count above zero"),
        ("matrix", HEADER + "4 4\n", ":2: "),
        ("matrix", HEADER.replace("general", "symmetric") + "4 4 1\n1 1 1\n", "symmetric"),
        ("matrix", HEADER.replace("coordinate", "array") + "4 4\n1\n", "array"),
        ("matrix", HEADER.replace("integer", "complex") + "4 4 1\n1 1 1 0\n", "complex"),
        ("regions", "chr10\t5\t9\nchr2\t7\t9\nchr10\t5\t9\nchr2\t100\t130\n", "rows 1 and 3"),
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
        "too many entries",
        "row out of range",
        "column zero",
        "negative count",
        "count that is no number",
        "repeated entry",
        "short line",
        "long line",
        "no whole number",
        "no entries",
        "no size line",
        "symmetric",
        "dense",
        "complex",
        "one region twice",
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
    path = tmp_path / FILES[name]
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    del small["--out"]
    line = refused(*flat(small))
    assert str(small["--matrix"] if said.startswith("rows") else path) in line
    assert said in line


def test_two_cell_types_of_one_file_name_are_refused(small, tmp_path, refused):
    (tmp_path / "cells.tsv").write_text("cell_type\tbatch\tid\nT cell\t1\tone\nT/cell\t1\ttwo\n")
    del small["--out"]
    assert "T cell, T/cell" in refused(*flat(small))


def test_file_names_hold_no_spaces_or_slashes():
    assert file_stems(["B/NK  cell", "neuron", "a\\b"]) == {
        "B/NK  cell": "B_NK_cell",
        "neuron": "neuron",
        "a\\b": "a_b",
    }


@pytest.fixture
def atlas(tmp_path) -> tuple[list[str], np.ndarray, list[tuple[str, int, int]], list[str]]:
    """Options of a command on 3 tissues of one cell atlas; counts [50 regions, 90 cells], regions, cell types."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.uniform(0.02, 0.5, size=(50, 1)), size=(50, 90))
    regions = [("chr1", 100 * i, 100 * i + 60) for i in range(50)]
    labels = ["common"] * 45 + ["rare"] * 3 + ["other"] * 42
    order = rng.permutation(90)
    labels = [labels[i] for i in order]
    options: dict[str, list[str]] = {"--matrix": [], "--regions": [], "--barcodes": []}
    for part in range(3):
        cells = range(30 * part, 30 * part + 30)
        entries = [f"{row + 1} {cell - cells[0] + 1} {counts[row, cell]}\n" for cell in cells for row in range(50)]
        texts = (
            f"{HEADER}50 30 1500\n{''.join(entries)}",
            "".join("{}\t{}\t{}\n".format(*region) for region in regions),
            "".join(f"cell{cell}\n" for cell in cells),
        )
        for option, text in zip(options, texts, strict=True):
            path = tmp_path / f"{part}_{FILES[option.strip('-')]}"
            path.write_text(text)
            options[option].append(str(path))
        rows = "".join(f"cell{cell}\t{labels[cell]}\n" for cell in cells)
        (tmp_path / f"{part}_cells.tsv").write_text(f"barcode\tcell_type\n{rows}")
    rows = "".join(f"cell{cell}\t{label}\n" for cell, label in enumerate(labels))
    (tmp_path / "cells.tsv").write_text(f"barcode\tcell_type\n{rows}")
    command = [x for option, paths in options.items() for x in (option, *paths)]
    return ["pseudobulk", *command], counts, regions, labels


@pytest.mark.parametrize(
    ("min_cells", "min_fraction"), [(1, 0.0), (2, 0.0), (1, 0.2), (1, 1 / 3), (5, 0.1), (3, 0.3), (1, 1.0)]
)
def test_thresholds_hold_on_the_pooled_cells(atlas, tmp_path, capsys, min_cells, min_fraction):
    command, counts, regions, labels = atlas
    thresholds = ["--min-cells", str(min_cells), "--min-fraction", str(min_fraction)]
    main([*command, "--cell-types", str(tmp_path / "cells.tsv"), *thresholds, "--out", str(tmp_path / "peaks")])

    expected, empty = {}, []
    for name in set(labels):
        own = counts[:, [label == name for label in labels]] > 0
        keep = (own.sum(axis=1) >= min_cells) & (own.mean(axis=1) >= min_fraction)
        rows = ["{}\t{}\t{}".format(*region) for region, kept in zip(regions, keep, strict=True) if kept]
        expected |= {name: rows} if rows else {}
        empty += [] if rows else [name]
    assert found_beds(tmp_path / "peaks") == expected
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "peaks" / MANIFEST).read_text())
    for name in set(labels):
        rows = expected.get(name, [])
        assert summary["cell_types"][name] == {
            "file": f"{name}.bed" if rows else None,
            "cells": labels.count(name),
            "regions": len(rows),
            "bp": 60 * len(rows),
        }
        assert [name, str(labels.count(name)), str(len(rows)), f"{60 * len(rows):,}"] in [
            x.split() for x in said.splitlines()
        ]
    assert ("WARNING: no accessible region" in said) == bool(empty)
    assert all(name in said.split("WARNING")[-1] for name in empty)
    assert summary["thresholds"] == {"min_cells": min_cells, "min_fraction": min_fraction}
    assert [matrix["nonzero_entries"] for matrix in summary["matrices"]] == [
        (counts[:, part : part + 30] > 0).sum() for part in (0, 30, 60)
    ]


def test_some_threshold_leaves_a_cell_type_empty(atlas, tmp_path, capsys):
    main([*atlas[0], "--cell-types", str(tmp_path / "cells.tsv"), "--min-cells", "4", "--out", str(tmp_path / "peaks")])
    assert sorted(found_beds(tmp_path / "peaks")) == ["common", "other"]
    assert "no BED, for: rare" in capsys.readouterr().out


def test_a_table_for_each_matrix_is_as_one_for_all(atlas, tmp_path):
    tables = [str(tmp_path / f"{part}_cells.tsv") for part in range(3)]
    main([*atlas[0], "--cell-types", *tables, "--out", str(tmp_path / "each")])
    main([*atlas[0], "--cell-types", str(tmp_path / "cells.tsv"), "--out", str(tmp_path / "all")])
    assert found_beds(tmp_path / "each") == found_beds(tmp_path / "all")


def test_one_barcode_in_two_matrices_needs_a_table_for_each(atlas, tmp_path, refused):
    path = tmp_path / "2_barcodes.tsv"
    path.write_text(path.read_text().replace("cell60\n", "cell7\n"))
    line = refused(*atlas[0], "--cell-types", tmp_path / "cells.tsv")
    assert "'cell7'" in line
    assert "0_counts.mtx" in line
    assert "one table for each matrix" in line
    own = tmp_path / "2_cells.tsv"
    own.write_text(own.read_text().replace("cell60\t", "cell7\t"))
    tables = [str(tmp_path / f"{part}_cells.tsv") for part in range(3)]
    main([*atlas[0], "--cell-types", *tables, "--out", str(tmp_path / "each")])
    summary = json.loads((tmp_path / "each" / MANIFEST).read_text())
    assert sum(entry["cells"] for entry in summary["cell_types"].values()) == 90


def test_another_threshold_is_not_up_to_date(atlas, tmp_path, capsys):
    command = [*atlas[0], "--cell-types", str(tmp_path / "cells.tsv"), "--out", str(tmp_path / "peaks")]
    main(command)
    with pytest.raises(SystemExit):
        main([*command, "--min-cells", "2"])
    capsys.readouterr()
    main(command)
    assert "up to date" in capsys.readouterr().out


def test_a_table_as_r_writes_it_is_read(small, tmp_path):
    """Row names first, without a name over them; text in quotes; gzipped."""
    main(flat(small))
    before = found_beds(tmp_path / "peaks")
    rows = '"cell_type"\t"depth"\n"one"\t"T cell"\t5\n"two"\t"B/NK"\t6\n"three"\t"T cell"\t7\n"four"\tNA\t8\n'
    (tmp_path / "r.tsv.gz").write_bytes(gzip.compress(rows.encode()))
    del small["--barcode_key"]
    main([*flat(small | {"--cell_types": str(tmp_path / "r.tsv.gz"), "--out": str(tmp_path / "again")})])
    assert found_beds(tmp_path / "again") == before


def test_unsorted_regions_and_types_without_cells_are_said(small, tmp_path, capsys):
    with (tmp_path / "cells.tsv").open("a") as file:
        file.write("monocyte\t3\tfive\n")
    main(flat(small))
    said = capsys.readouterr().out
    assert "regions of counts.mtx are not in order of position" in said
    assert "no cell of the matrix has: monocyte" in said
    (tmp_path / "regions.bed").write_text("chr2\t7\t9\nchr2\t100\t130\nchr10\t1\t3\nchr10\t5\t9\n")
    main([*flat(small), "--overwrite"])
    assert "not in order" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--min_cells": "0"}, "--min_cells"),
        ({"--min_fraction": "1.5"}, "--min_fraction"),
        ({"--min_fraction": "nan"}, "--min_fraction"),
        ({"--min_cells": "3"}, "no cell type has a region"),
        ({"--regions": None}, "--regions: 0 given, 1 needed"),
        ({"--barcodes": None}, "--barcodes: 0 given, 1 needed"),
        ({"--cell_types": None}, "--cell_types: needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(small, refused, changes, said):
    del small["--out"]
    options = {key: value for key, value in (small | changes).items() if value is not None}
    assert said in refused(*flat(options))


def test_lists_that_do_not_match_the_matrices_are_refused(atlas, tmp_path, refused):
    command, table = atlas[0], tmp_path / "cells.tsv"
    assert "2 tables for 3 matrices" in refused(*command, "--cell-types", table, tmp_path / "0_cells.tsv")
    assert "--barcodes: 2 given, 3 needed" in refused(*command[:-1], "--cell-types", table)
    again = [x.replace("1_counts", "0_counts") for x in command]
    assert "more than once" in refused(*again, "--cell-types", table)


@pytest.mark.parametrize("spelling", ["dots", "link", "another working folder"])
def test_a_matrix_given_under_two_names_is_refused(atlas, tmp_path, refused, monkeypatch, spelling):
    command, table, first = atlas[0], tmp_path / "cells.tsv", str(tmp_path / "0_counts.mtx")
    other = {"dots": f"{tmp_path}/../{tmp_path.name}/0_counts.mtx", "another working folder": "0_counts.mtx"}
    other |= {"link": str(tmp_path / "link.mtx")}
    (tmp_path / "link.mtx").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    again = [x.replace(str(tmp_path / "1_counts.mtx"), other[spelling]) for x in command]
    line = refused(*again, "--cell-types", table)
    assert f"--matrix: {other[spelling]} is given more than once, as {first} too" in line


def test_a_folder_and_its_own_matrix_are_one(small, tmp_path, refused):
    (tmp_path / "10x").mkdir()
    for name, file in (("matrix.mtx", "counts.mtx"), ("barcodes.tsv", "barcodes.tsv"), ("peaks.bed", "regions.bed")):
        (tmp_path / "10x" / name).write_bytes((tmp_path / file).read_bytes())
    matrix = tmp_path / "10x" / "matrix.mtx"
    del small["--out"], small["--matrix"]
    line = refused(*flat(small), "--matrix", tmp_path / "10x", matrix)
    assert f"{matrix} is given more than once, as {tmp_path / '10x'} too" in line
