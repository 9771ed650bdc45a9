import numpy as np
import pytest
from Bio import motifs as biopython

from data_prep.errors import InputError
from data_prep.motifs import load_motifs, motifs_by_name

MEME = """MEME version 4

ALPHABET= ACGT

strands: + -

Background letter frequencies
A 0.25 C 0.25 G 0.25 T 0.25

MOTIF MA0001.1 first
letter-probability matrix: alength= 4 w= 3 nsites= {nsites} E= 0
 0.130000 0.270000 0.420000 0.180000
 0.003000 0.990000 0.004000 0.003000
 0.333333 0.333333 0.333334 0.000000
"""
FREQUENCIES = np.array([[0.13, 0.27, 0.42, 0.18], [0.003, 0.99, 0.004, 0.003], [0.333333, 0.333333, 0.333334, 0]]).T


def test_the_2018_release_has_579_vertebrate_motifs_sorted_by_id(vertebrate_motifs):
    loaded = load_motifs("JASPAR2018")
    assert len(loaded) == 579
    assert [motif.matrix_id for motif in loaded] == sorted(motif.matrix_id for motif in loaded)
    assert [(m.matrix_id, m.name) for m in loaded] == [(m.matrix_id, m.name) for m in vertebrate_motifs]
    assert {motif.counts.shape[1] for motif in loaded} == set(range(6, 22))


def test_log_odds_are_biopythons_with_a_pseudocount_of_a_tenth(vertebrate_motifs):
    for ours, theirs in zip(load_motifs("JASPAR2018"), vertebrate_motifs, strict=True):
        pssm = theirs.counts.normalize(pseudocounts=0.1).log_odds()
        np.testing.assert_allclose(ours.log_odds, [pssm[letter] for letter in "ACGT"], atol=1e-12)


def test_a_jaspar_file_gives_the_same_motifs_as_the_release(tmp_path, few_motifs):
    (tmp_path / "motifs.jaspar").write_text(biopython.write(few_motifs[::-1], "jaspar"))
    for ours, theirs in zip(load_motifs(str(tmp_path / "motifs.jaspar")), few_motifs, strict=True):
        assert (ours.matrix_id, ours.name) == (theirs.matrix_id, theirs.name)
        np.testing.assert_array_equal(ours.counts, [theirs.counts[letter] for letter in "ACGT"])


@pytest.mark.parametrize("nsites", [1, 20, 1000])
def test_a_meme_file_gives_its_frequencies_times_its_sites(tmp_path, nsites):
    (tmp_path / "motifs.meme").write_text(MEME.format(nsites=nsites))
    (motif,) = load_motifs(str(tmp_path / "motifs.meme"))
    assert motif.matrix_id == "MA0001.1"
    np.testing.assert_allclose(motif.counts, FREQUENCIES * nsites, rtol=1e-6)


def test_a_name_gives_its_motif(vertebrate_motifs):
    found = motifs_by_name("JASPAR2018", ["CTCF", "GATA1::TAL1"])
    assert {name: motif.matrix_id for name, motif in found.items()} == {"CTCF": "MA0139.1", "GATA1::TAL1": "MA0140.2"}


@pytest.mark.filterwarnings("ignore:Zero motifs")
def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"JASPAR2018 CORE: .*'NOSUCHTF'"):
        motifs_by_name("JASPAR2018", ["NOSUCHTF"])


def test_an_unknown_release_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"JASPAR1999: not a JASPAR release; there are .*JASPAR2018.*JASPAR2020"):
        load_motifs("JASPAR1999")


def test_a_repeated_matrix_id_is_refused(tmp_path, few_motifs):
    path = tmp_path / "twice.jaspar"
    path.write_text(biopython.write([few_motifs[0], few_motifs[1], few_motifs[0]], "jaspar"))
    with pytest.raises(InputError, match=f"{path}: motif '{few_motifs[0].matrix_id}'"):
        load_motifs(str(path))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "chr1\t0\t100\n",
        ">MA1\tx\nA [ 1 x ]\nC [ 1 2 ]\nG [ 1 2 ]\nT [ 1 2 ]\n",
        ">MA1\tx\nA [ 1 2 3 ]\nC [ 1 2 ]\nG [ 1 2 ]\nT [ 1 2 ]\n",
        "MEME version 4\n\nMOTIF x\n",
    ],
    ids=["empty", "BED", "no number", "rows of two widths", "MEME without a matrix"],
)
def test_a_file_that_holds_no_motifs_is_named(tmp_path, content):
    path = tmp_path / "bad.motifs"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]+$"):
        load_motifs(str(path))
