import gzip
import io

import numpy as np
import pytest
from Bio import motifs as biopython

from data_prep.errors import InputError
from data_prep.motifs import Motif, load_motifs

COUNTS = np.array([[0, 3, 79, 40, 66], [94, 75, 4, 3, 1], [1, 0, 3, 4, 1], [2, 19, 11, 50, 29]], dtype=float)
MEME = """MEME version 4

ALPHABET= ACGT

strands: + -

Background letter frequencies
A 0.25 C 0.25 G 0.25 T 0.25

MOTIF MA0001.1 first
letter-probability matrix: alength= 4 w= 3{nsites} E= 0
 0.130000 0.270000 0.420000 0.180000
 0.003000 0.990000 0.004000 0.003000
 0.333333 0.333333 0.333334 0.000000
URL http://jaspar.genereg.net/matrix/MA0001.1
"""
FREQUENCIES = np.array([[0.13, 0.27, 0.42, 0.18], [0.003, 0.99, 0.004, 0.003], [0.333333, 0.333333, 0.333334, 0]]).T

# Of MEME's own report and STREME's: the matrix stands among other sections, and the first lines are not the version's.
REPORT = """********************************************************************************
MEME - Motif discovery tool
********************************************************************************
MEME version 5.5.5 (Release date: Thu Sep 14 08:48:04 2023 +1000)

PRIMARY SEQUENCES= peaks.fa
ALPHABET= ACGT

********************************************************************************
MOTIF CTTATC MEME-1	width =   3  sites =  25  llr = 203  p-value = 7.8e-005  E-value = 4.1e-009
********************************************************************************
--------------------------------------------------------------------------------
	Motif CTTATC MEME-1 Description
--------------------------------------------------------------------------------
Simplified        A  :::
pos.-specific     C  a:1

log-odds matrix: alength= 4 w= 3 n= 900 bayes= 7.2 E= 4.1e-009
  -118  -1128    173   -118
  -1128   200  -1128  -1128
     40    40     40  -1128
--------------------------------------------------------------------------------
	Motif CTTATC MEME-1 position-specific probability matrix
--------------------------------------------------------------------------------
letter-probability matrix: alength= 4 w= 3 nsites= 25 E= 4.1e-009
 0.130000  0.270000  0.420000  0.180000
 0.003000  0.990000  0.004000  0.003000
 0.333333  0.333333  0.333334  0.000000
--------------------------------------------------------------------------------
Time  0.30 secs.
********************************************************************************
SUMMARY OF MOTIFS
********************************************************************************
"""

JASPAR_TRANSFAC = """AC MA0001.1
XX
ID AGL3
XX
DE MA0001.1 AGL3 ; From JASPAR
PO	A	C	G	T
01	0.0	94.0	1.0	2.0
02	3.0	75.0	0.0	19.0
03	79.0	4.0	3.0	11.0
04	40.0	3.0	4.0	50.0
05	66.0	1.0	1.0	29.0
XX
CC tax_group:plants
CC pubmed_ids:7632923
XX
//
"""
TRANSFAC = """VV  TRANSFAC MATRIX TABLE, Release 2022.1
XX
//
AC  M00001
XX
ID  V$MYOD_01
XX
DT  19.10.1992 (created); ewi.
XX
NA  MyoD
XX
P0      A      C      G      T
01      1      2      2      0      S
02      2      1      2      0      R
03      0      5      0      0      C
XX
RN  [1]; RE0000231.
RA  Müller J.
XX
//
"""


def load(tmp_path, content: str | bytes) -> list[Motif]:
    path = tmp_path / "motifs"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_motifs(str(path))


@pytest.mark.parametrize(
    "text",
    [
        ">MA0001.1 AGL3\nA  [ 0  3 79 40 66 ]\nC  [94 75  4  3  1 ]\nG  [ 1  0  3  4  1 ]\nT  [ 2 19 11 50 29 ]\n",
        ">MA0001.1\tAGL3\n0\t3\t79\t40\t66\n94\t75\t4\t3\t1\n1\t0\t3\t4\t1\n2\t19\t11\t50\t29\n",
        "# plants\n\n> MA0001.1 AGL3\r\nT [2 19 11 50 29]\r\nG [1 0 3 4 1]\r\n\r\nC [94 75 4 3 1]\r\nA [0 3 79 40 66]",
        "\ufeff>MA0001.1 AGL3\na 0 3 79 40 66\nc 94 75 4 3 1\ng 1 0 3 4 1\nt 2 19 11 50 29\n",
        ">MA0001.1 AGL3\n[0 3 79. 4e1 66.0]\n[94 75 4 3 1]\n[1 0 3 4 1]\n[2 19 11 50 29]\n",
    ],
    ids=["bracketed", "raw", "rows in another order, Windows", "letters alone, byte-order mark", "brackets alone"],
)
def test_jaspar_forms_give_the_same_motif(tmp_path, text):
    (motif,) = load(tmp_path, text)
    assert (motif.matrix_id, motif.name) == ("MA0001.1", "AGL3")
    np.testing.assert_array_equal(motif.counts, COUNTS)


def test_a_jaspar_file_of_a_whole_release_is_as_biopython_reads_it(tmp_path, vertebrate_motifs):
    text = biopython.write(vertebrate_motifs, "jaspar")
    theirs = {motif.matrix_id: motif for motif in biopython.parse(io.StringIO(text), "jaspar")}
    ours = load(tmp_path, text)
    assert len(ours) == len(theirs) == 579
    for motif in ours:
        assert motif.name == theirs[motif.matrix_id].name
        np.testing.assert_array_equal(motif.counts, [theirs[motif.matrix_id].counts[letter] for letter in "ACGT"])


def test_a_title_without_a_name_names_the_motif_by_its_id(tmp_path):
    (motif,) = load(tmp_path, ">zld\n1 2\n3 4\n5 6\n7 8\n")
    assert (motif.matrix_id, motif.name) == ("zld", "zld")


@pytest.mark.parametrize("nsites", [1, 20, 1000, 37.5, None])
def test_a_meme_file_gives_its_frequencies_times_its_sites(tmp_path, nsites):
    (motif,) = load(tmp_path, MEME.format(nsites="" if nsites is None else f" nsites= {nsites}"))
    assert (motif.matrix_id, motif.name) == ("MA0001.1", "first")
    np.testing.assert_array_equal(motif.counts, FREQUENCIES * (20 if nsites is None else nsites))


@pytest.mark.parametrize("comments", [0, 100])
def test_a_report_of_meme_is_read_too(tmp_path, comments):
    (motif,) = load(tmp_path, "# STREME - Sensitive, Thorough\n" * comments + REPORT)
    assert (motif.matrix_id, motif.name) == ("CTTATC", "MEME-1")
    np.testing.assert_array_equal(motif.counts, FREQUENCIES * 25)


@pytest.mark.parametrize("alphabet", ["", "ALPHABET= ACGT", "ALPHABET=ACGT", 'ALPHABET "DNA" DNA-LIKE\nEND ALPHABET'])
def test_a_dna_alphabet_may_be_said_or_not(tmp_path, alphabet):
    (motif,) = load(tmp_path, MEME.format(nsites="").replace("ALPHABET= ACGT", alphabet))
    np.testing.assert_array_equal(motif.counts, FREQUENCIES * 20)


@pytest.mark.parametrize("alphabet", ["= ACDEFGHIKLMNPQRSTVWY", "= ACGU", ' "RNA" RNA-LIKE', ' "Protein"', ""])
def test_another_alphabet_is_refused_by_its_name(tmp_path, alphabet):
    with pytest.raises(InputError, match=rf"motifs:3: .*ALPHABET{alphabet}.*: not DNA; give motifs of ALPHABET= ACGT"):
        load(tmp_path, MEME.format(nsites="").replace("ALPHABET= ACGT", f"ALPHABET{alphabet}"))


def test_transfac_of_jaspar_is_as_biopython_reads_it(tmp_path):
    (motif,) = load(tmp_path, JASPAR_TRANSFAC)
    (theirs,) = biopython.parse(io.StringIO(JASPAR_TRANSFAC), "transfac", strict=False)
    assert (motif.matrix_id, motif.name) == (theirs["AC"], theirs["ID"])
    np.testing.assert_array_equal(motif.counts, [theirs.counts[letter] for letter in "ACGT"])
    np.testing.assert_array_equal(motif.counts, COUNTS)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_transfac_of_transfac_is_read_by_accession(tmp_path, encoding):
    (motif,) = load(tmp_path, TRANSFAC.encode(encoding))
    assert (motif.matrix_id, motif.name) == ("M00001", "MyoD")
    np.testing.assert_array_equal(motif.counts, [[1, 2, 0], [2, 1, 5], [2, 2, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("fields", "matrix_id", "name"),
    [
        ("AC  M1\nID  V$X\nNA  x", "M1", "x"),
        ("AC  M1\nID  V$X", "M1", "V$X"),
        ("ID  V$X\nNA  x", "V$X", "x"),
        ("AC\nNA  x", "x", "x"),
        ("AC  M1", "M1", "M1"),
    ],
)
def test_a_transfac_entry_is_known_by_accession_identifier_or_name(tmp_path, fields, matrix_id, name):
    (motif,) = load(tmp_path, f"{fields}\nP0 A C G T\n01 1 2 3 4\n//\n")
    assert (motif.matrix_id, motif.name) == (matrix_id, name)


@pytest.mark.parametrize(
    "matrix",
    [
        "P0 T G C A\n01 4 3 2 1\n02 8 7 6 5\n",
        "P0 C A T G IC\n1 2 1 4 3 0.5\n2 6 5 8 7 0.1\n",
        "PO  A  C  G  T\n00  1  2  3  4  N\n01  5  6  7  8  N\n",
    ],
    ids=["another order", "another column", "from 0, with a consensus"],
)
def test_columns_of_transfac_are_taken_by_their_letters(tmp_path, matrix):
    (motif,) = load(tmp_path, f"AC  M1\n{matrix}XX\n//\n")
    np.testing.assert_array_equal(motif.counts, [[1, 5], [2, 6], [3, 7], [4, 8]])


JASPAR_OF = ">M1 x\nA [ {} {} ]\nC [ {} {} ]\nG [ {} {} ]\nT [ {} {} ]\n"
TRANSFAC_OF = "AC M1\nP0 A C G T\n01 {0} {2} {4} {6}\n02 {1} {3} {5} {7}\n//\n"


@pytest.mark.parametrize("form", [JASPAR_OF, TRANSFAC_OF], ids=["jaspar", "transfac"])
@pytest.mark.parametrize(
    ("values", "sites"),
    [
        ((0.1, 0.25, 0.2, 0.25, 0.3, 0.25, 0.4, 0.25), 20),
        ((0.33, 1, 0.33, 0, 0.33, 0, 0, 0), 20),  # 0.99, as frequencies of few digits sum
        ((1, 0, 0, 0, 0, 0, 0, 1), 1),  # one site, as of JASPAR's MA0298.1
        ((0.5, 2, 0.5, 0, 0, 0, 0, 0), 1),
        ((10.5, 20, 9.5, 0, 0, 0, 0, 0), 1),
        ((25, 25, 25, 25, 25, 25, 25, 25), 1),
    ],
    ids=["frequencies", "of few digits", "one site", "one column only", "weighted counts", "per cent"],
)
def test_columns_that_sum_to_1_are_frequencies_among_20_sites(tmp_path, form, values, sites):
    (motif,) = load(tmp_path, form.format(*values))
    np.testing.assert_array_equal(motif.counts, np.array(values, dtype=float).reshape(4, 2) * sites)


def test_a_motif_has_one_log_odds_whatever_the_format_of_its_frequencies(tmp_path):
    forms = [
        ">M1\n" + "\n".join(" ".join(map(str, row)) for row in FREQUENCIES),
        "AC M1\nP0 A C G T\n"
        + "".join(f"{n} {' '.join(map(str, f))}\n" for n, f in enumerate(FREQUENCIES.T, 1))
        + "//",
        MEME.format(nsites=""),
    ]
    first, *others = [load(tmp_path, form)[0].log_odds for form in forms]
    for other in others:
        np.testing.assert_array_equal(other, first)
    np.testing.assert_allclose(first[1, 1], np.log2((0.99 * 20 + 0.1) / 20.4 / 0.25), rtol=1e-12)


def jaspar(*rows: str) -> str:
    return "\n".join([">MA1 x", *rows])


def meme(matrix: str, options: str = "alength= 4 w= 2 nsites= 20") -> str:
    return f"MEME version 4\n\nMOTIF MA1 x\nletter-probability matrix: {options}\n{matrix}"


def transfac(matrix: str, fields: str = "AC  MA1\n", end: str = "//\n") -> str:
    return f"{fields}{matrix}XX\n{end}"


GOOD = "0.5 0.5 0 0\n0 0 1 0\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ": is empty"),
        ("\n \n# nothing\n", ": is empty"),
        (b"\x00\x01\xff>MA1", ": a binary file"),
        (gzip.compress(b">MA1 x\n", mtime=0), ": compressed"),
        (">MA1 x\n".encode("utf-16"), ": a binary file"),
        ("chr1\t0\t100\n", ": not a motif file"),
        (b"\xff\xfe\x80", ": not a motif file"),
        (">chr1\nACGTACGT\n", ":2: motif 'chr1': 'ACGTACGT' is not a count"),
        (">\n1\n1\n1\n1\n", ":1: a motif without an id"),
        (jaspar("A [ 1 x ]", "C [ 1 2 ]", "G [ 1 2 ]", "T [ 1 2 ]"), ":2: motif 'MA1': 'x' is not a count"),
        (jaspar("A [ 1 2 ]", "C [ 1 -2 ]", "G [ 1 2 ]", "T [ 1 2 ]"), ":3: motif 'MA1': '-2' is not a count"),
        (jaspar("1 2", "1 2", "1 nan", "1 2"), ":4: motif 'MA1': 'nan' is not a count"),
        (jaspar("1 2", "1 2", "1 2", "1 1e999"), ":5: motif 'MA1': '1e999' is not a count"),
        (jaspar("A [ 1 2 3 ]", "C [ 1 2 ]", "G [ 1 2 ]", "T [ 1 2 ]"), ":1: motif 'MA1': its rows"),
        (jaspar("A [ 1 2 ]", "C [ 1 2 ]", "G [ 1 2 ]"), ":1: motif 'MA1' has 3 rows"),
        (jaspar("A [ 1 2 ]", "A [ 1 2 ]", "G [ 1 2 ]", "T [ 1 2 ]"), ":3: motif 'MA1': another row of A"),
        (jaspar("A [ 1 2 ]", "C [ 1 2 ]", "G [ 1 2 ]", "U [ 1 2 ]"), ":5: motif 'MA1': a row of U"),
        (jaspar("A [ 1 2", "C [ 1 2 ]", "G [ 1 2 ]", "T [ 1 2 ]"), r":2: motif 'MA1': 'A \[ 1 2' is not a row"),
        (jaspar("A [ 1 2 ] 3 ]", "C [ 1 2 ]"), r":2: motif 'MA1': 'A \[ 1 2 \] 3 \]' is not a row"),
        (jaspar(*["0.97 0.01 0.01 0.01"] * 8), ":6: motif 'MA1': another row of A; .*HOMER"),
        (jaspar("A [ ]", "C [ ]", "G [ ]", "T [ ]"), ":1: motif 'MA1' has no columns"),
        ("MEME version 4\n", ": holds no motif"),
        ("MEME version 4\n\nMOTIF\n", ":3: a motif without an id"),
        ("MEME version 4\n\nMOTIF MA1 x\n", ":3: motif 'MA1' has no line 'letter-probability matrix:'"),
        (meme(GOOD, "alength= 20 w= 2"), ":3: motif 'MA1': alength= 20"),
        (meme(GOOD, "w= 3"), ":3: motif 'MA1': w= 3, but 2 lines"),
        (meme(GOOD, "nsites= 0"), ":3: motif 'MA1': nsites= 0"),
        (meme(GOOD, "nsites= many"), ":3: motif 'MA1': nsites: 'many' is not"),
        (meme("0.5 0.5 0\n"), ":5: motif 'MA1': 3 numbers"),
        (meme("0.5 0.5 0 0\n0.5 0.5 x 0\n"), ":6: motif 'MA1': 'x' is not"),
        (meme("0.5 0.5 0 0\n0.5 0.7 -0.2 0\n"), ":6: motif 'MA1': '-0.2' is not"),
        (meme("10 2 3 4\n1 2 3 4\n"), ":5: motif 'MA1': the four frequencies sum to 19"),
        (meme("0 0 0 0\n"), ":5: motif 'MA1': the four frequencies sum to 0"),
        (transfac("P0 A C G U\n01 1 2 3 4\n"), ":2: motif 'MA1': a matrix begins with"),
        (transfac("P0 A C G\n01 1 2 3\n"), ":2: motif 'MA1': a matrix begins with"),
        (transfac("P0 A C G T A\n01 1 2 3 4 5\n"), ":2: motif 'MA1': a matrix begins with"),
        (transfac("P0 A C G T\n01 1 2 3\n"), ":3: motif 'MA1': row 1 has 3 fields"),
        (transfac("P0 A C G T\n01 1 2 3 4 N 5\n"), ":3: motif 'MA1': row 1 has 6 fields"),
        (transfac("P0 A C G T\n01 1 2 3 4\n03 1 2 3 4\n"), ":4: motif 'MA1': 03 where row 2 is due"),
        (transfac("P0 A C G T\n01 1 2 3 4\nXX\n03 1 2 3 4\n"), ":5: motif 'MA1': 03 where row 2 is due"),
        (transfac("P0 A C G T\n02 1 2 3 4\n"), ":3: motif 'MA1': 02 where row 1 is due"),
        (transfac("P0 A C G T\n01 1 2 3 4\nP0 A C G T\n"), ":4: motif 'MA1': P0 where row 2 is due"),
        (transfac("01 1 2 3 4\nP0 A C G T\n"), ":2: motif 'MA1': a matrix begins with"),
        (transfac("P0 A C G T\n01 1 2 three 4\n"), ":3: motif 'MA1': 'three' is not"),
        (transfac("P0 A C G T\n01 1 -2 3 4\n"), ":3: motif 'MA1': '-2' is not"),
        (transfac("P0 A C G T\n"), ":1: motif 'MA1' has no columns"),
        (transfac("P0 A C G T\n01 1 2 3 4\n", fields="DE x\n"), ":1: an entry without AC, ID or NA"),
        (transfac("P0 A C G T\n01 1 2 3 4\n", end=""), ":4: the last entry does not end with '//'"),
        ("AC M1\n//\n" + transfac("P0 A C G T\n01 1 2 3 4\n"), ":1: motif 'M1' has no matrix"),
        (jaspar(*["1 " * 300_000 + "x"] * 4), ":2: motif 'MA1': 'x' is not a count"),
        (jaspar("1" * 300_000 + "x"), ":2: motif 'MA1': '111"),
    ],
)
def test_what_is_amiss_is_named_with_its_line(tmp_path, content, said):
    with pytest.raises(InputError, match=rf"^{tmp_path}/motifs{said}[^\n]*$") as refused:
        load(tmp_path, content)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere.jaspar", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"^{tmp_path}/?{name}: cannot be read \([A-Z][a-z ]+\); give"):
        load_motifs(str(tmp_path / name))
