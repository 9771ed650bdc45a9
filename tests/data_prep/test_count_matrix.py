"""One matrix in every format gives the same BED files; what contradicts itself is refused in one line."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import rdata
import scipy.sparse
from rdata.conversion.to_r import ConverterFromPythonToR, build_r_list, build_r_object
from rdata.parser import RData, RExtraInfo, RObject, RObjectType, RVersions
from rdata.unparser._unparser import pack_r_object_info
from rdata.unparser._xdr import UnparserXDR

from data_prep import count_matrix
from data_prep.count_matrix import open_matrix, regions_from_names
from data_prep.errors import InputError
from data_prep.main import main

BANNER = "%%MatrixMarket matrix coordinate integer general\n"
GENES = ["ENSG00000243485", "ENSG00000237613"]


@dataclass(frozen=True)
class Matrix:
    """counts: [n_regions, n_cells]; regions: chromosome, start, end of each row; labels: cell type of each column."""

    counts: np.ndarray
    regions: list[tuple[str, int, int]]
    barcodes: list[str]
    labels: list[str | None]

    def columns(self, part: slice) -> "Matrix":
        return Matrix(self.counts[:, part], self.regions, self.barcodes[part], self.labels[part])

    def names(self, form: str = "{}:{}-{}") -> list[str]:
        return [form.format(*region) for region in self.regions]

    def beds(self) -> dict[str, bytes]:
        """By numpy alone: a region is there if a cell of the type has it."""
        beds = {}
        for label in set(self.labels) - {None}:
            has = (self.counts[:, [x == label for x in self.labels]] > 0).any(axis=1)
            rows = sorted(region for region, own in zip(self.regions, has, strict=True) if own)
            beds[label] = "".join("{}\t{}\t{}\n".format(*row) for row in rows).encode()
        return beds


def found(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in out.glob("*.bed")}


def small(seed: int = 0) -> Matrix:
    """Unsorted regions on chromosomes whose names hold - and _, cells without a type, cells and regions without a
    count."""
    rng = np.random.default_rng(seed)
    chromosomes = ["chr10", "chr2", "chrUn_KI270742v1", "HLA-A", "chrX"]
    regions = [(chromosomes[i % 5], 1000 + 70 * (i // 5), 1050 + 70 * (i // 5)) for i in rng.permutation(60)]
    counts = rng.poisson(0.15, size=(60, 40))
    counts[7], counts[:, 11] = 0, 0
    labels = [("B", "T_helper", "NK", None)[i] for i in rng.integers(0, 4, size=40)]
    return Matrix(counts, regions, [f"cell{i}-1" for i in range(40)], labels)


@pytest.fixture(params=["small", "hemato"])
def matrix(request) -> Matrix:
    if request.param == "small":
        return small()
    folder = request.getfixturevalue("shared_data") / "scatac_hemato_hg19"
    lines = [line.split() for line in (folder / "counts.mtx").read_text().splitlines() if not line.startswith("%")]
    counts = np.zeros((int(lines[0][0]), int(lines[0][1])), int)
    for row, column, count in lines[1:]:
        counts[int(row) - 1, int(column) - 1] = int(count)
    regions = [line.split("\t")[:3] for line in (folder / "peaks.bed").read_text().splitlines()]
    header, *cells = [line.split("\t") for line in (folder / "cells.tsv").read_text().splitlines()]
    labels = [cell[header.index("BioClassification")] for cell in cells]
    return Matrix(counts, [(c, int(s), int(e)) for c, s, e in regions], [cell[0] for cell in cells], labels)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def market_text(counts: np.ndarray, field: str = "integer") -> str:
    columns, rows = np.nonzero(counts.T)
    value = {"integer": "{}", "real": "{}.0e0", "pattern": ""}[field]
    entries = [f"{r + 1} {c + 1} {value.format(counts[r, c])}\n" for r, c in zip(rows, columns, strict=True)]
    sizes = f"{counts.shape[0]} {counts.shape[1]} {len(entries)}\n"
    return f"{BANNER.replace('integer', field)}% a comment\n\n{sizes}{''.join(entries)}"


def bed_text(matrix: Matrix) -> str:
    return "".join("{}\t{}\t{}\n".format(*region) for region in matrix.regions)


def table(folder: Path, matrix: Matrix, name: str = "cells.tsv") -> list[str]:
    rows = "".join(f"{b}\t{label or 'NA'}\n" for b, label in zip(matrix.barcodes, matrix.labels, strict=True))
    return ["--cell-types", str(write(folder / name, f"barcode\tcell_type\n{rows}"))]


def market(folder: Path, matrix: Matrix, name: str = "counts.mtx", field: str = "integer") -> list[str]:
    files = [
        write(folder / name, market_text(matrix.counts, field)),
        write(folder / "regions.bed", bed_text(matrix)),
        write(folder / "barcodes.tsv", "\n".join(matrix.barcodes) + "\n"),
    ]
    options = ("--matrix", "--regions", "--barcodes")
    return [str(x) for pair in zip(options, files, strict=True) for x in pair]


def tenx_folder(folder: Path, matrix: Matrix, ending: str = "", genes: int = 0, arc: bool = False) -> list[str]:
    """As cellranger-atac writes it (peaks.bed), or cellranger-arc (features.tsv of six columns, genes first)."""
    counts = np.vstack([np.ones((genes, len(matrix.barcodes)), int), matrix.counts])
    write(folder / "10x" / f"matrix.mtx{ending}", market_text(counts))
    write(folder / "10x" / f"barcodes.tsv{ending}", "\n".join(matrix.barcodes) + "\n")
    if arc:
        rows = [f"{name}\tG\tGene Expression\tchr1\t5\t9\n" for name in GENES[:genes]]
        rows += ["{0}:{1}-{2}\t{0}:{1}-{2}\tPeaks\t{0}\t{1}\t{2}\n".format(*region) for region in matrix.regions]
        write(folder / "10x" / f"features.tsv{ending}", "".join(rows))
    else:
        write(folder / "10x" / f"peaks.bed{ending}", bed_text(matrix))
    return ["--matrix", str(folder / "10x")]


def tenx_h5(folder: Path, matrix: Matrix, genes: int = 0, genome: str = "hg19", name: str = "peaks.h5") -> list[str]:
    counts = scipy.sparse.csc_array(np.vstack([np.ones((genes, len(matrix.barcodes)), int), matrix.counts]))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(counts, key)
        group["shape"] = counts.shape
        group["barcodes"] = np.array(matrix.barcodes, "S")
        group["features/id"] = np.array(GENES[:genes] + matrix.names(), "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * genes + ["Peaks"] * len(matrix.regions), "S")
        group["features/genome"] = np.array([genome] * counts.shape[0], "S")
    return ["--matrix", str(path)]


def as_anndata(matrix: Matrix, x: object = None) -> anndata.AnnData:
    obs = pd.DataFrame({"depth": 1.5, "cell_type": pd.Categorical(matrix.labels)}, index=matrix.barcodes)
    var = pd.DataFrame(index=matrix.names("{}_{}_{}"))
    return anndata.AnnData(scipy.sparse.csr_matrix(matrix.counts.T.astype(np.float32)) if x is None else x, obs, var)


def h5ad(folder: Path, matrix: Matrix, layout: Callable, **options) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    as_anndata(matrix, layout(matrix.counts.T.astype(np.float32))).write_h5ad(folder / "counts.h5ad", **options)
    return ["--matrix", str(folder / "counts.h5ad")]


def h5ad_in_chunks(folder: Path, matrix: Matrix) -> list[str]:
    arguments = h5ad(folder, matrix, np.asarray)
    with h5py.File(arguments[1], "a") as file:
        x, attributes = file["X"][()], dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", data=x, chunks=(9, x.shape[1] // 8), compression="gzip").attrs.update(attributes)
    return arguments


def h5ad_with_columns(folder: Path, matrix: Matrix) -> list[str]:
    """Names that are no regions, beside columns; one row is a gene; a type that is an empty string."""
    atlas = as_anndata(matrix)
    atlas.var = pd.DataFrame(
        matrix.regions, columns=["Chrom", "start", "End"], index=[f"p{i}" for i in range(atlas.n_vars)]
    )
    atlas.var["feature_types"] = "Peaks"
    gene = anndata.AnnData(
        np.ones((atlas.n_obs, 1), np.float32),
        atlas.obs,
        pd.DataFrame({"feature_types": ["Gene Expression"]}, index=["g"]),
    )
    both = anndata.concat([gene, atlas], axis=1, join="outer", merge="first")
    both.obs["cell_type"] = [label or "" for label in matrix.labels]
    both.write_h5ad(folder / "columns.h5ad")
    return ["--matrix", str(folder / "columns.h5ad")]


def h5ad_of_0_6(folder: Path, matrix: Matrix) -> list[str]:
    """Records for obs and var, a categorical's names in uns, no encoding attributes."""
    names = sorted(set(matrix.labels) - {None})
    codes = [names.index(label) if label else -1 for label in matrix.labels]
    sparse = scipy.sparse.csr_matrix(matrix.counts.T)
    with h5py.File(folder / "old.h5ad", "w") as file:
        file["obs"] = np.array(
            list(zip(matrix.barcodes, codes, strict=True)), dtype=[("index", "S40"), ("cell_type", "i1")]
        )
        file["var"] = np.array([(name,) for name in matrix.names("{}-{}-{}")], dtype=[("index", "S60")])
        file["uns/cell_type_categories"] = np.array(names, "S")
        for key in ("data", "indices", "indptr"):
            file[f"X/{key}"] = getattr(sparse, key)
        file["X"].attrs["h5sparse_format"], file["X"].attrs["h5sparse_shape"] = "csr", sparse.shape
    return ["--matrix", str(folder / "old.h5ad")]


class S4Unparser(UnparserXDR):
    """rdata writes no S4 objects; R writes them as their slots."""

    def unparse_r_object(self, obj: RObject) -> None:
        if obj.info.type is not RObjectType.S4:
            return super().unparse_r_object(obj)
        self.unparse_int(pack_r_object_info(obj.info))
        return self.unparse_r_object(obj.attributes)


def rds(folder: Path, matrix: Matrix, kind: str = "dgCMatrix", opened: Callable = gzip.open, **slots) -> list[str]:
    """As R's saveRDS of a Matrix object; `slots` replaces some."""
    folder.mkdir(parents=True, exist_ok=True)
    sparse = scipy.sparse.csc_matrix(matrix.counts)
    triplets = sparse.tocoo()
    all_slots = {
        "i": triplets.row if "T" in kind else sparse.indices,
        **({"j": triplets.col} if "T" in kind else {"p": sparse.indptr}),
        "Dim": np.array(sparse.shape, np.int32),
        "Dimnames": [np.array(matrix.names("{}-{}-{}")), np.array(matrix.barcodes)],
        **({} if kind[0] == "n" else {"x": sparse.data.astype(bool if kind[0] == "l" else float)}),
        "factors": [],
    }
    to_r = ConverterFromPythonToR()
    items = [(to_r.convert_to_r_sym(k), to_r.convert_to_r_object(v)) for k, v in (all_slots | slots).items()]
    class_name = to_r.convert_to_r_object(np.array([kind]))
    class_name.attributes = to_r.convert_to_r_attributes({"package": np.array(["Matrix"])})
    class_name.info.attributes = True
    items.append((to_r.convert_to_r_sym("class"), class_name))
    r_object = build_r_object(RObjectType.S4, is_object=True, attributes=build_r_list(items), gp=16)
    with opened(folder / "counts.rds", "wb") as file:
        S4Unparser(file).unparse_r_data(RData(RVersions(3, 0x40201, 0x30500), RExtraInfo("UTF-8"), r_object))
    return ["--matrix", str(folder / "counts.rds")]


FORMATS = {
    "mtx": market,
    "mtx.gz real": lambda folder, m: market(folder, m, "counts.mtx.gz", "real"),
    "mtx pattern": lambda folder, m: market(folder, m, field="pattern"),
    "10x folder atac": tenx_folder,
    "10x folder arc gz": lambda folder, m: tenx_folder(folder, m, ".gz", genes=2, arc=True),
    "10x h5": tenx_h5,
    "10x h5 multiome": lambda folder, m: tenx_h5(folder, m, genes=2),
    "h5ad csr": lambda folder, m: h5ad(folder, m, scipy.sparse.csr_matrix, compression="gzip"),
    "h5ad csc": lambda folder, m: h5ad(folder, m, scipy.sparse.csc_matrix),
    "h5ad dense": lambda folder, m: h5ad(folder, m, np.asarray),
    "h5ad dense in chunks": h5ad_in_chunks,
    "h5ad columns": h5ad_with_columns,
    "h5ad 0.6": h5ad_of_0_6,
    "rds": rds,
    "rds uncompressed": lambda folder, m: rds(folder, m, opened=open),
    "rds dgT": lambda folder, m: rds(folder, m, "dgTMatrix"),
    "rds lgC": lambda folder, m: rds(folder, m, "lgCMatrix"),
    "rds ngC": lambda folder, m: rds(folder, m, "ngCMatrix"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_beds(matrix, tmp_path, monkeypatch, name):
    monkeypatch.setattr(count_matrix, "BLOCK_ENTRIES", max(7, matrix.counts.size // 1000))
    arguments = FORMATS[name](tmp_path, matrix)
    if "h5ad" not in name:
        arguments += table(tmp_path, matrix)
    main(["pseudobulk", *arguments, "--out", str(tmp_path / "peaks")])
    assert found(tmp_path / "peaks") == matrix.beds()


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_hold_every_entry_once(tmp_path, monkeypatch, name):
    monkeypatch.setattr(count_matrix, "BLOCK_ENTRIES", 7)
    matrix = small()
    arguments = FORMATS[name](tmp_path, matrix)
    arguments = dict(zip(arguments[::2], arguments[1::2], strict=True))
    opened = open_matrix(arguments["--matrix"], arguments.get("--regions"), arguments.get("--barcodes"))
    counted = np.zeros(matrix.counts.shape, int)
    blocks = list(opened.nonzero())
    for region, cell in blocks:
        np.add.at(counted, (region, cell), 1)
    assert (counted == (matrix.counts > 0)).all()
    assert len(blocks) > 10
    assert max(len(region) for region, _ in blocks) <= (9 * 7 if name == "h5ad dense in chunks" else 7)
    assert opened.barcodes == matrix.barcodes


def test_three_tissues_in_three_formats_are_the_whole(matrix, tmp_path, capsys):
    third = len(matrix.barcodes) // 3
    parts = [matrix.columns(slice(at * third, (at + 1) * third if at < 2 else None)) for at in range(3)]
    keep = np.flatnonzero(parts[1].counts.any(axis=1))[::-1]  # a tissue with regions of its own, in its own order
    parts[1] = replace(parts[1], counts=parts[1].counts[keep], regions=[matrix.regions[row] for row in keep])
    _, first = tenx_h5(tmp_path, parts[0])
    _, second = rds(tmp_path, parts[1])
    _, *third_and_beside = market(tmp_path, parts[2])
    arguments = ["--matrix", first, second, *third_and_beside, *table(tmp_path, matrix)]
    main(["pseudobulk", *arguments, "--out", str(tmp_path / "peaks")])
    assert found(tmp_path / "peaks") == matrix.beds()
    assert "from 3 matrices" in capsys.readouterr().out


def test_region_names_are_split_from_the_right():
    names = ["chr1:5-9", "chr1-5-9", "chr1_5_9", "chrUn_KI270742v1_100_600", "HLA-A-1-500", "HLA-A*01:01:01-7-9"]
    regions = regions_from_names(names, "x")
    found = [(regions.names[c], s, e) for c, s, e in zip(regions.chromosome, regions.start, regions.end, strict=True)]
    assert found == [("chr1", 5, 9)] * 3 + [("chrUn_KI270742v1", 100, 600), ("HLA-A", 1, 500), ("HLA-A*01:01:01", 7, 9)]


@pytest.mark.parametrize(
    "name", ["chr1", "chr1:5", "5-9", "chr1:9-5", "chr1:7-7", "chr1:a-b", "chr1:5-9-", "ENSG000001", ""]
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="x: row 2"):
        regions_from_names(["chr1:5-9", name], "x")


@pytest.mark.parametrize(("entry", "said"), [("2 1 1", "row 2, column 1"), ("2 1 x", ":5: '2 1 x'")])
def test_faults_behind_the_first_block_are_found(tmp_path, monkeypatch, entry, said):
    monkeypatch.setattr(count_matrix, "BLOCK_ENTRIES", 2)
    _, path, *beside = market(tmp_path, small())
    write(Path(path), f"{BANNER}60 40 3\n1 1 1\n2 1 1\n{entry}\n")
    with pytest.raises(InputError) as error:
        list(open_matrix(path, *beside[1::2]).nonzero())
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["mtx", "10x h5", "h5ad", "rds"])
def test_an_entry_repeated_where_a_block_ends_is_found(tmp_path, monkeypatch, name):
    """Entries 6 and 7 of the first cell are one; a block holds six."""
    monkeypatch.setattr(count_matrix, "BLOCK_ENTRIES", 6)
    counts = scipy.sparse.csc_array(np.ones((60, 40), int))
    counts.indices[6] = 5
    if name == "mtx":
        arguments = market(tmp_path, small())
        rows = "".join(f"{row + 1} 1 1\n" for row in counts.indices[:60])
        write(tmp_path / "counts.mtx", f"{BANNER}60 40 60\n{rows}")
    elif name == "10x h5":
        arguments = tenx_h5(tmp_path, small())
        with h5py.File(tmp_path / "peaks.h5", "a") as file:
            for key in ("data", "indices", "indptr"):
                del file["matrix"][key]
                file["matrix"][key] = getattr(counts, key)
    elif name == "h5ad":
        arguments = h5ad(tmp_path, replace(small(), counts=np.ones((60, 40))), scipy.sparse.csr_matrix)
        with h5py.File(tmp_path / "counts.h5ad", "a") as file:
            file["X/indices"][6] = 5
    else:
        arguments = rds(tmp_path, small(), i=counts.indices, p=counts.indptr, x=counts.data.astype(float))
    arguments = dict(zip(arguments[::2], arguments[1::2], strict=True))
    opened = open_matrix(arguments["--matrix"], arguments.get("--regions"), arguments.get("--barcodes"))
    with pytest.raises(InputError, match=r"row 6, column 1 \(counted from 1\) stands there more than once"):
        list(opened.nonzero())


@pytest.mark.parametrize("known", [(), ("cell0-1",), ("barcode", "cell0-1")])
def test_a_header_over_the_barcodes_is_told_by_those_that_are_known(tmp_path, known, capsys):
    _, path, *beside = market(tmp_path, small())
    barcodes = tmp_path / "barcodes.tsv"
    barcodes.write_text("barcode\n" + barcodes.read_text())
    if known == ("cell0-1",):
        assert open_matrix(path, *beside[1::2], known=known).barcodes == small().barcodes
        assert "taken as a header" in capsys.readouterr().out
    else:
        with pytest.raises(InputError, match=r"60 x 40, but .* have 60 regions and 41 barcodes"):
            open_matrix(path, *beside[1::2], known=known)


@pytest.mark.parametrize("barcode", ["AACCGTTA", "cell99", "BMM_R2_4838"])
def test_a_barcode_too_many_is_no_header(tmp_path, barcode):
    _, path, *beside = market(tmp_path, small())
    barcodes = tmp_path / "barcodes.tsv"
    barcodes.write_text(f"{barcode}\n" + barcodes.read_text())
    with pytest.raises(InputError, match=r"60 x 40, but .* have 60 regions and 41 barcodes"):
        open_matrix(path, *beside[1::2], known=("cell0-1",))


@pytest.mark.parametrize("shape", [(3, 0), (0, 3)])
def test_a_dense_matrix_without_rows_or_columns_has_no_entries(tmp_path, shape):
    atlas = anndata.AnnData(np.zeros(shape, np.float32))
    atlas.obs_names = [f"cell{i}" for i in range(shape[0])]
    atlas.var_names = [f"chr1:{i}-{i + 1}" for i in range(shape[1])]
    atlas.write_h5ad(tmp_path / "empty.h5ad")
    assert list(open_matrix(str(tmp_path / "empty.h5ad")).nonzero()) == []


def test_memory_does_not_grow_with_the_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(count_matrix, "BLOCK_ENTRIES", 100_000)
    peaks = []
    for n_cells in (500, 3000):
        body = "".join(f"{row} {cell} 1\n" for cell in range(1, n_cells + 1) for row in range(1, 1001))
        path = write(
            tmp_path / f"{n_cells}.mtx",
            f"{BANNER}1000 {n_cells} {n_cells}000\n{body}",
        )
        del body
        regions = write(tmp_path / "regions.bed", "".join(f"chr1\t{i * 10}\t{i * 10 + 5}\n" for i in range(1000)))
        barcodes = write(tmp_path / "barcodes.tsv", "".join(f"cell{i}\n" for i in range(n_cells)))
        matrix = open_matrix(str(path), str(regions), str(barcodes))
        tracemalloc.start()
        assert sum(len(region) for region, _ in matrix.nonzero()) == n_cells * 1000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 3_000_000 * 16  # less than the places alone of all entries


def test_features_that_are_no_peaks_are_counted(tmp_path, capsys):
    matrix = small()
    arguments = [*tenx_h5(tmp_path, matrix, genes=2), *table(tmp_path, matrix)]
    main(["pseudobulk", *arguments, "--out", str(tmp_path / "peaks")])
    assert "2 features that are no peaks left out" in capsys.readouterr().out
    (said,) = json.loads((tmp_path / "peaks" / "manifest.json").read_text())["matrices"]
    assert (said["regions"], said["features_left_out"]) == (60, 2)
    assert said["nonzero_entries"] == (matrix.counts > 0).sum()


def test_a_table_wins_over_obs(tmp_path):
    matrix = small()
    other = replace(matrix, labels=["all"] * 40)
    arguments = [*h5ad(tmp_path, matrix, scipy.sparse.csr_matrix), *table(tmp_path, other)]
    main(["pseudobulk", *arguments, "--out", str(tmp_path / "peaks")])
    assert found(tmp_path / "peaks") == other.beds()


def edited(arguments: list[str], name: str, at: object, value: object) -> list[str]:
    with h5py.File(arguments[1], "a") as file:
        file[name][at] = value
    return arguments


def renamed(arguments: list[str], name: str) -> list[str]:
    return [arguments[0], str(Path(arguments[1]).rename(Path(arguments[1]).with_name(name)))]


def changed(folder: Path, matrix: Matrix, change: Callable[[anndata.AnnData], object]) -> list[str]:
    atlas = as_anndata(matrix)
    atlas = change(atlas) or atlas
    atlas.write_h5ad(folder / "changed.h5ad")
    return ["--matrix", str(folder / "changed.h5ad")]


def with_count(matrix: Matrix, value: float) -> np.ndarray:
    """Cells x regions, with `value` for row 3, column 5 of the matrix."""
    counts = matrix.counts.T.astype(np.float32)
    counts[5, 3] = value
    return counts


def cut(arguments: list[str]) -> list[str]:
    path = Path(arguments[1])
    path = path / "matrix.mtx.gz" if path.is_dir() else path
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])
    return arguments


def with_barcode(arguments: list[str], at: int) -> list[str]:
    """One more barcode in a 10x folder, whose name no table holds."""
    path = Path(arguments[1]) / "barcodes.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:at], "more-1", *lines[at:]]) + "\n")
    return arguments


def named(folder: Path, name: str, content: object = "") -> list[str]:
    if isinstance(content, str):
        write(folder / name, content)
    else:
        rdata.write_rds(folder / name, content)
    return ["--matrix", str(folder / name)]


def setter(name: str, value: object) -> Callable[[anndata.AnnData], None]:
    return lambda atlas: setattr(atlas, name, value)


def swapped(matrix: Matrix) -> Matrix:
    """Two rows of one region."""
    return replace(matrix, regions=[*matrix.regions[:9], matrix.regions[2], *matrix.regions[10:]])


def two(folder: Path, matrix: Matrix, genome: str, chromosome: str) -> list[str]:
    first, second = matrix.columns(slice(0, 20)), matrix.columns(slice(20, None))
    second = replace(second, regions=[(chromosome if c == "chr2" else c, s, e) for c, s, e in second.regions])
    return [*tenx_h5(folder, first), tenx_h5(folder, second, genome=genome, name="second.h5")[1]]


CSR = scipy.sparse.csr_matrix
REFUSED = {
    "h5ad: no such key": (lambda d, m: [*h5ad(d, m, CSR), "--cell-type-key", "kind"], "depth, cell_type"),
    "h5ad: genes": (lambda d, m: changed(d, m, setter("var_names", [f"ENSG{i}" for i in range(60)])), "'ENSG0'"),
    "h5ad: regions x cells": (lambda d, m: changed(d, m, lambda atlas: atlas.T), "adata.T"),
    "h5ad: no X": (lambda d, m: changed(d, m, setter("X", None)), "no X"),
    "h5ad: negative": (lambda d, m: changed(d, m, setter("X", CSR(with_count(m, -1)))), "{region} in cell 'cell5-1'"),
    "h5ad: NaN": (lambda d, m: changed(d, m, setter("X", with_count(m, np.nan))), "{region} in cell 'cell5-1' is nan"),
    "h5ad: a barcode twice": (lambda d, m: changed(d, m, setter("obs_names", ["c", *m.barcodes[:38], "c"])), "'c'"),
    "h5ad: a region twice": (lambda d, m: h5ad(d, swapped(m), CSR), "rows 3 and 10"),
    "h5ad: no counts": (lambda d, m: h5ad(d, replace(m, counts=m.counts * 0), CSR), "no count above zero"),
    "h5ad: another file": (lambda d, m: named(d, "x.h5ad", "text"), "AnnData"),
    "h5ad: cut": (lambda d, m: cut(h5ad(d, m, CSR)), "truncated"),
    "h5ad: no cell type": (lambda d, m: h5ad(d, replace(m, labels=[None] * 40), CSR), "none of the 40 barcodes"),
    "h5: a region twice": (lambda d, m: tenx_h5(d, swapped(m), genes=2), "rows 5 and 12"),
    "h5: no peaks": (lambda d, m: edited(tenx_h5(d, m), "matrix/features/feature_type", ..., b"Gene"), "'Gene'"),
    "h5: shape": (lambda d, m: edited(tenx_h5(d, m), "matrix/shape", 0, 59), "59 x 40"),
    "h5: outside": (lambda d, m: edited(tenx_h5(d, m), "matrix/indices", 3, 60), "row 61"),
    "h5: repeated": (lambda d, m: edited(tenx_h5(d, m), "matrix/indices", slice(2), 9), "row 10, column 1"),
    "h5: pointers": (lambda d, m: edited(tenx_h5(d, m), "matrix/indptr", 3, 9999), "contradicts itself"),
    "h5: AnnData": (lambda d, m: renamed(h5ad(d, m, CSR), "x.h5"), "name an AnnData file .h5ad"),
    "h5: cut": (lambda d, m: cut(tenx_h5(d, m)), "truncated"),
    "h5: another assembly": (lambda d, m: two(d, m, "hg38", "chr2"), "hg38"),
    "h5: another naming": (lambda d, m: two(d, m, "hg19", "2"), "'2'"),
    "rds: Seurat": (lambda d, m: rds(d, m, "Seurat"), 'GetAssayData(object, slot = "counts")'),
    "rds: another experiment": (lambda d, m: rds(d, m, "SingleCellExperiment"), "SingleCellExperiment"),
    "rds: another matrix": (lambda d, m: rds(d, m, "dgRMatrix"), "dgRMatrix"),
    "rds: a data frame": (lambda d, m: named(d, "x.rds", pd.DataFrame({"a": [1]})), "data.frame"),
    "rds: a dense matrix": (lambda d, m: named(d, "x.rds", np.ones((2, 3))), "class matrix"),
    "rds: no dimnames": (lambda d, m: rds(d, m, Dimnames=[None, None]), "row names"),
    "rds: no barcodes": (lambda d, m: rds(d, m, Dimnames=[np.array(m.names()), None]), "column names"),
    "rds: too few names": (lambda d, m: rds(d, m, Dimnames=[np.array(m.names()[1:]), np.array(m.barcodes)]), "60 x 40"),
    "rds: pointers": (lambda d, m: rds(d, m, p=np.array([0, 3], np.int32)), "pointers"),
    "rds: NA": (lambda d, m: rds(d, m, x=np.full((m.counts > 0).sum(), np.nan)), "nan"),
    "rds: another file": (lambda d, m: named(d, "x.rds", "text"), "R's .rds"),
    "rds: cut": (lambda d, m: cut(rds(d, m)), "end-of-stream"),
    "rds: cut, uncompressed": (lambda d, m: cut(rds(d, m, opened=open)), "R's .rds"),
    "folder: cut": (lambda d, m: cut(tenx_folder(d, m, ".gz")), "end-of-stream"),
    "folder: shape": (lambda d, m: tenx_folder(d, replace(m, regions=m.regions[1:])), "60 x 40"),
    "folder: one more first": (
        lambda d, m: with_barcode(tenx_folder(d, m), 0),
        "60 regions and 41 barcodes",
    ),
    "folder: one more last": (
        lambda d, m: with_barcode(tenx_folder(d, m), 40),
        "60 regions and 41 barcodes",
    ),
    "folder: a barcode twice": (lambda d, m: tenx_folder(d, replace(m, barcodes=["c", *m.barcodes[:38], "c"])), "'c'"),
    "folder: empty": (lambda d, m: ["--matrix", str(d)], "matrix.mtx"),
    "regions of its own": (
        lambda d, m: [*tenx_h5(d, m), "--regions", str(write(d / "r.bed", bed_text(m)))],
        "--regions",
    ),
    "unknown format": (lambda d, m: named(d, "counts.loom"), ".h5ad, R .rds"),
    "missing": (lambda d, m: ["--matrix", str(d / "no.h5ad")], "no such file"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line(tmp_path, refused, name):
    matrix = small()
    build, said = REFUSED[name]
    arguments = build(tmp_path, matrix)
    if not name.startswith("h5ad"):
        arguments += table(tmp_path, matrix)
    line = refused("pseudobulk", *arguments)
    assert said.format(region=matrix.names()[3]) in line
    assert arguments[1] in line or arguments[2] in line or "--regions" in line
