"""What holds for any input: a parser gives the right answer or one line that says what is wrong, and samples are what
their regions and genome make them."""

import gzip
import io
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.bases import encode
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.main import main
from data_prep.motifs import MAX_WIDTH, load_motifs
from data_prep.peaks import read_regions


def examples(n: int) -> settings:
    """The same `n` examples on every run and every machine."""
    return settings(max_examples=n, deadline=None, derandomize=True, database=None)


# No name begins as a line of `track` or `browser` does, which is no region.
NAMES = st.from_regex(r"[A-Zacd0-9][A-Za-z0-9_.:$|-]{0,11}", fullmatch=True)
NEWLINES = st.sampled_from(["\n", "\r\n"])
# What turns one valid file into another, or into one that is invalid in a way that formats stumble over.
BREAKS = ["\n", "\r", "\r\n", "\t", " ", "  ", "\0", "\x85", "\x1c", "\ufeff", "é", ">", "#", "//", "[", "]", "-", "_"]
WORDS = ["0", "1", "1e999", "nan", "inf", "٣", "A", "U", "N", "MOTIF x", "MEME version 4", "P0 A C G T", "XX", "track"]
SNIPPETS = st.sampled_from(BREAKS + WORDS).map(str.encode)


@st.composite
def damaged(draw: st.DrawFn, well_formed: st.SearchStrategy[bytes]) -> bytes:
    """A well-formed file after one to four insertions, deletions, repetitions or cuts."""
    content = bytearray(draw(well_formed))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(1, 40)))
        edit = draw(st.sampled_from(["insert", "insert", "replace", "delete", "repeat", "cut"]))
        if edit in ("insert", "replace"):
            content[at : at if edit == "insert" else at + 1] = draw(SNIPPETS | st.binary(min_size=1, max_size=3))
        elif edit == "delete":
            del content[at:to]
        elif edit == "repeat":
            content[to:to] = content[at:to]
        else:
            del content[at:]
    return bytes(content)


def read_or_refused(read: Callable[[Path], object], name: str, content: bytes) -> object | None:
    """What `read` makes of a file, or None where it refuses it in one line that names it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read(path)
        except InputError as error:
            message = str(error)
        assert str(path) in message
        assert len(message.splitlines()) == 1
        return None


# Peaks

INTERVALS = st.tuples(NAMES, st.integers(0, 2**40), st.integers(1, 2**31)).map(lambda t: (t[0], t[1], t[1] + t[2]))
OTHER_COLUMNS = st.sampled_from(["", "\tpeak", "\tpeak\t960\t+", "\t.\t0\t.\t182\t5.0\t-1", "\t.\t0\t.\t18\t5\t-1\t50"])
NO_REGION = st.sampled_from(["", "", "", "# comment", "track name=x", "browser position chr1:1-2", "  "])


@st.composite
def bed_files(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], bytes]:
    intervals = draw(st.lists(INTERVALS, max_size=20))
    newline, more = draw(NEWLINES), draw(OTHER_COLUMNS)
    lines = []
    for name, start, end in intervals:
        lines += [line for line in [draw(NO_REGION)] if line]
        lines.append(f"{name}\t{start}\t{end}{more}")
    return intervals, (newline.join(lines) + draw(st.sampled_from(["", newline]))).encode()


def intervals_of(path: Path) -> list[tuple[str, int, int]]:
    regions = read_regions(path)
    names = [regions.names[number] for number in regions.chromosome]
    return list(zip(names, regions.start.tolist(), regions.end.tolist(), strict=True))


@pytest.mark.parametrize("ending", ["bed", "narrowPeak.gz"])
@examples(60)
@given(file=bed_files())
def test_regions_are_those_that_were_written(ending, file):
    intervals, content = file
    content = gzip.compress(content) if ending.endswith("gz") else content
    assert read_or_refused(intervals_of, f"cells.{ending}", content) == intervals


@examples(300)
@given(content=damaged(bed_files().map(lambda file: file[1])) | st.binary(max_size=60))
def test_any_bed_file_gives_every_line_or_is_refused(content):
    intervals = read_or_refused(intervals_of, "cells.bed", content)
    if intervals is not None:
        lines = re.split(r"\r\n|\r|\n", content.decode())
        kept = [line for line in lines if line.strip() and not line.startswith(("#", "track", "browser"))]
        assert len(intervals) == len(kept)
        for (name, start, end), line in zip(intervals, kept, strict=True):
            assert [name, start, end] == [line.split("\t")[0], *map(int, line.split("\t")[1:3])]
            assert 0 <= start < end


@examples(150)
@given(content=damaged(bed_files().map(lambda file: gzip.compress(file[1], mtime=0))))
def test_a_damaged_gzip_file_of_peaks_is_refused_or_whole(content):
    intervals = read_or_refused(intervals_of, "cells.bed.gz", content)
    if intervals is not None:
        assert intervals == read_or_refused(intervals_of, "cells.bed", gzip.decompress(content))


# FASTA

SEQUENCES = st.text("ACGTacgtNRYn", min_size=1, max_size=200)


@st.composite
def fasta_files(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    sequences = draw(st.dictionaries(NAMES, SEQUENCES, min_size=1, max_size=4))
    newline, width = draw(NEWLINES), draw(st.integers(1, 80))
    lines = []
    for name, sequence in sequences.items():
        lines += [f">{name}{draw(st.sampled_from(['', ' assembled', '  >x']))}"]
        lines += [sequence[start : start + width] for start in range(0, len(sequence), width)]
    return sequences, (newline.join(lines) + draw(st.sampled_from(["", newline]))).encode()


def sequences_of(path: Path) -> dict[str, list[int]]:
    """Each sequence, read at once and in two parts."""
    genome = Genome(path)
    whole = {name: genome.codes(name).tolist() for name in genome.lengths}
    for name, codes in whole.items():
        middle = len(codes) // 2
        assert [*genome.codes(name, 0, middle), *genome.codes(name, middle)] == codes
    return whole


def in_bgzip(content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with bgzf.open(f"{folder}/file", "wb") as file:
            file.write(content)
        return Path(folder, "file").read_bytes()


@pytest.mark.parametrize("ending", ["fa", "fa.gz"])
@examples(40)
@given(file=fasta_files())
def test_sequences_are_those_that_were_written(ending, file):
    sequences, content = file
    content = in_bgzip(content) if ending.endswith("gz") else content
    read = read_or_refused(sequences_of, f"genome.{ending}", content)
    assert read == {name: encode(sequence).tolist() for name, sequence in sequences.items()}


@examples(250)
@given(content=damaged(fasta_files().map(lambda file: file[1])) | st.binary(max_size=60).map(lambda b: b">x\n" + b))
def test_any_fasta_file_gives_its_letters_or_is_refused(content):
    sequences = read_or_refused(sequences_of, "genome.fa", content)
    if sequences is not None:
        records = re.split(r"^>", content.decode(), flags=re.MULTILINE)[1:]
        titles, _, letters = zip(*(record.partition("\n") for record in records), strict=True)
        expected = [encode(re.sub(r"[\r\n]", "", text)).tolist() for text in letters]
        assert list(sequences.items()) == list(zip([title.split()[0] for title in titles], expected, strict=True))


@examples(150)
@given(content=damaged(fasta_files().map(lambda file: in_bgzip(file[1]))))
def test_a_damaged_bgzip_file_is_refused_or_whole(content):
    sequences = read_or_refused(sequences_of, "genome.fa.gz", content)
    if sequences is not None:
        assert sequences == read_or_refused(sequences_of, "genome.fa", gzip.decompress(content))


# Motifs

VALUES = st.integers(0, 5000) | st.floats(0, 1e6) | st.sampled_from([0.25, 0.5, 1.0])


@st.composite
def matrices(draw: st.DrawFn) -> dict[str, tuple[str, np.ndarray]]:
    """Names and matrices, float64 [4, width], by id; a third of them frequencies."""
    matrices = {}
    for matrix_id in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        width = draw(st.integers(1, 8) | st.just(MAX_WIDTH))
        column = st.lists(VALUES, min_size=4, max_size=4).filter(lambda column: sum(column) > 0)
        columns = draw(st.lists(column, min_size=1, max_size=8))
        values = np.resize(np.array(columns, float), (width, 4)).T
        if draw(st.integers(0, 2)) == 0:
            values = values / values.sum(axis=0)
        matrices[matrix_id] = draw(NAMES), values
    return matrices


def counts_of_text(values: np.ndarray) -> np.ndarray:
    """What JASPAR and TRANSFAC files mean: frequencies among 20 sites where all columns sum to 1, or counts."""
    return values * 20 if (abs(values.sum(axis=0) - 1) <= 0.05).all() and (values % 1).any() else values


@st.composite
def jaspar_files(draw: st.DrawFn) -> tuple[dict[str, tuple[str, np.ndarray]], bytes]:
    motifs, newline = draw(matrices()), draw(NEWLINES)
    lines = []
    for matrix_id, (name, values) in motifs.items():
        lines.append(draw(st.sampled_from([">{} {}", ">{}\t{}", "> {}  {}"])).format(matrix_id, name))
        bracketed = draw(st.booleans())
        for row in draw(st.permutations(range(4))) if bracketed else range(4):
            numbers = " ".join(map("{:.17g}".format, values[row]))
            lines.append(f"{'ACGT'[row]}  [ {numbers} ]" if bracketed else numbers)
        lines += [""] * draw(st.integers(0, 1))
    expected = {matrix_id: (name, counts_of_text(values)) for matrix_id, (name, values) in motifs.items()}
    return expected, newline.join(lines).encode()


@st.composite
def meme_files(draw: st.DrawFn) -> tuple[dict[str, tuple[str, np.ndarray]], bytes]:
    motifs, newline = draw(matrices()), draw(NEWLINES)
    lines = ["MEME version 4", "", *draw(st.sampled_from([[], ["ALPHABET= ACGT", ""]]))]
    if draw(st.booleans()):
        lines += ["Background letter frequencies (from uniform background):", "A 0.25 C 0.25 G 0.25 T 0.25", ""]
    expected = {}
    for matrix_id, (name, values) in motifs.items():
        values = values / values.sum(axis=0)
        sites, width = draw(st.none() | st.integers(1, 10_000)), values.shape[1]
        lines.append(f"MOTIF {matrix_id} {name}")
        options = [
            *([f"alength= 4 w= {width}"] if draw(st.booleans()) else []),
            *([f"nsites= {sites}"] if sites else []),
        ]
        lines.append(" ".join(["letter-probability matrix:", *options, "E= 0"]))
        lines += [" ".join(map("{:.17g}".format, column)) for column in values.T]
        lines += draw(st.sampled_from([[""], ["URL http://jaspar.genereg.net", ""]]))
        expected[matrix_id] = name, values * (sites or 20)
    return expected, newline.join(lines).encode()


@st.composite
def transfac_files(draw: st.DrawFn) -> tuple[dict[str, tuple[str, np.ndarray]], bytes]:
    motifs, newline = draw(matrices()), draw(NEWLINES)
    lines = draw(st.sampled_from([[], ["VV  TRANSFAC MATRIX TABLE", "XX", "//"]]))[:]
    for matrix_id, (name, values) in motifs.items():
        order, first = draw(st.permutations("ACGT")), draw(st.integers(0, 1))
        consensus = draw(st.sampled_from(["", "      N"]))
        lines += [f"AC  {matrix_id}", "XX", f"{draw(st.sampled_from(['ID', 'NA']))}  {name}", "XX"]
        lines.append("      ".join([draw(st.sampled_from(["P0", "PO"])), *order]))
        for number, column in enumerate(values.T, first):
            fields = ["{:.17g}".format(column["ACGT".index(letter)]) for letter in order]
            lines.append("      ".join([f"{number:02}", *fields]) + consensus)
        lines += ["XX", "CC  a comment", "//"]
    expected = {matrix_id: (name, counts_of_text(values)) for matrix_id, (name, values) in motifs.items()}
    return expected, newline.join(lines).encode()


MOTIF_FILES = {"jaspar": jaspar_files(), "meme": meme_files(), "transfac": transfac_files()}


@pytest.mark.parametrize("form", MOTIF_FILES)
@examples(60)
@given(data=st.data())
def test_motifs_are_those_that_were_written(form, data):
    expected, content = data.draw(MOTIF_FILES[form])
    motifs = read_or_refused(lambda path: load_motifs(str(path)), "motifs", content)
    assert [motif.matrix_id for motif in motifs] == sorted(expected)
    for motif in motifs:
        name, counts = expected[motif.matrix_id]
        assert motif.name == name
        np.testing.assert_array_equal(motif.counts, counts)


MARK_OF_A_MOTIF = {"jaspar": r">", "meme": r"MOTIF\b", "transfac": r"P[0O]\s"}


@pytest.mark.parametrize("form", MOTIF_FILES)
@examples(250)
@given(data=st.data())
def test_any_motif_file_gives_every_motif_or_is_refused(form, data):
    content = data.draw(damaged(MOTIF_FILES[form].map(lambda file: file[1])))
    motifs = read_or_refused(lambda path: load_motifs(str(path)), "motifs", content)
    if motifs is not None:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        lines = re.split(r"\r\n|\r|\n", text)
        marks = [sum(bool(re.match(mark, line.strip())) for line in lines) for mark in MARK_OF_A_MOTIF.values()]
        assert len(motifs) in marks
        ids = [motif.matrix_id for motif in motifs]
        assert ids == sorted(set(ids))
        assert all(ids)
        for motif in motifs:
            assert motif.counts.shape[0] == 4
            assert 1 <= motif.counts.shape[1] <= MAX_WIDTH
            assert (motif.counts >= 0).all()
            assert np.isfinite(motif.log_odds).all()


@examples(300)
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_what_is_no_motif_file_is_refused(content):
    assert read_or_refused(lambda path: load_motifs(str(path)), "motifs", content) is None


# MatrixMarket, through the command line: the entries of 5 regions x 4 cells, of cell types a, a, b and none

REGIONS = [("chr1", 5, 90), ("chr1", 100, 150), ("chr1", 100, 160), ("chr2", 7, 8), ("chrX", 0, 500)]
CELL_TYPES = ["a", "a", "b", None]
COUNTS = st.integers(0, 3) | st.sampled_from([0.5, 1e300])
ENTRIES = st.dictionaries(st.tuples(st.integers(1, len(REGIONS)), st.integers(1, len(CELL_TYPES))), COUNTS, max_size=15)


@st.composite
def market_files(draw: st.DrawFn) -> tuple[dict[tuple[int, int], float], bytes]:
    entries, field = draw(ENTRIES), draw(st.sampled_from(["real", "integer", "pattern"]))
    if field != "real":
        entries = {at: int(bool(count)) if field == "integer" else 1 for at, count in entries.items()}
    newline = draw(NEWLINES)
    lines = [
        f"%%MatrixMarket matrix coordinate {field} general",
        *draw(st.sampled_from([[], ["%"], ["% made by", "%"]])),
    ]
    lines.append(f"{len(REGIONS)} {len(CELL_TYPES)} {len(entries)}")
    for (row, column), count in entries.items():
        lines.append(f"{row} {column}" if field == "pattern" else f"{row} {column} {count}")
    return entries, (newline.join(lines) + draw(st.sampled_from(["", newline]))).encode()


def accessible(entries: dict[tuple[int, int], float]) -> dict[str, list[tuple[str, int, int]]]:
    """Regions with a count in each cell type that has any."""
    pairs = {(CELL_TYPES[column - 1], row - 1) for (row, column), count in entries.items() if count > 0}
    by_cell_type = {name: [REGIONS[row] for row in range(len(REGIONS)) if (name, row) in pairs] for name in "ab"}
    return {name: regions for name, regions in by_cell_type.items() if regions}


def pseudobulk(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """What `pseudobulk` writes of a matrix. Raises `InputError` of the one line on stderr where it ends with 2."""
    of_cells = (f"cell{n}\t{name or 'NA'}\n" for n, name in enumerate(CELL_TYPES))
    beside = {
        "regions": "".join("{}\t{}\t{}\n".format(*region) for region in REGIONS),
        "barcodes": "".join(f"cell{n}\n" for n in range(len(CELL_TYPES))),
        "cell-types": "barcode\tcell_type\n" + "".join(of_cells),
    }
    for name, text in beside.items():
        (path.parent / name).write_text(text)
    options = [f"--{name}={path.parent / name}" for name in beside]
    out, err, code = path.parent / "peaks", io.StringIO(), 0
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        try:
            main(["pseudobulk", f"--matrix={path}", *options, f"--out={out}"])
        except SystemExit as exit_:
            code = exit_.code
    if code == 0 or "no cell type has a region" in err.getvalue():
        return {bed.stem: intervals_of(bed) for bed in out.glob("*.bed")}
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err.getvalue())
    raise InputError(err.getvalue().rstrip("\n"))


@pytest.mark.parametrize("ending", ["mtx", "mtx.gz"])
@examples(30)
@given(file=market_files())
def test_accessible_regions_are_those_with_a_count(ending, file):
    entries, content = file
    content = gzip.compress(content) if ending.endswith("gz") else content
    assert (read_or_refused(pseudobulk, f"matrix.{ending}", content) or {}) == accessible(entries)


@examples(150)
@given(content=damaged(market_files().map(lambda file: file[1])))
@example(content=b"%%MatrixMarket matrix coordinate pattern general\n5 4 1\n1\r 1")
@example(content=b"%%MatrixMarket matrix coordinate pattern general\n5 4 1\n1\0 1")
def test_any_matrix_gives_every_entry_or_is_refused(content):
    peaks = read_or_refused(pseudobulk, "matrix.mtx", content)
    if peaks is not None:
        banner, *lines = content.decode("latin-1").split("\n")
        shape, *entries = [line.split() for line in lines if line.strip() and not line.startswith("%")]
        assert [int(size) for size in shape] == [len(REGIONS), len(CELL_TYPES), len(entries)]
        width = 2 if "pattern" in banner else 3
        assert all(len(entry) == width for entry in entries)
        values = {(int(row), int(column)): float(count[0]) if count else 1.0 for row, column, *count in entries}
        assert len(values) == len(entries)
        assert min(values.values()) >= 0
        assert peaks == accessible(values)
