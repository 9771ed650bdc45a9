import re

import numpy as np
import pytest
from Bio import motifs as biopython
from pyjaspar import jaspardb

from data_prep.errors import InputError
from data_prep.motifs import MAX_WIDTH, load_motifs, motifs_by_name


def test_the_2018_release_has_579_vertebrate_motifs_sorted_by_id(vertebrate_motifs):
    loaded = load_motifs("JASPAR2018")
    assert len(loaded) == 579
    assert [motif.matrix_id for motif in loaded] == sorted(motif.matrix_id for motif in loaded)
    assert [(m.matrix_id, m.name) for m in loaded] == [(m.matrix_id, m.name) for m in vertebrate_motifs]
    assert {motif.counts.shape[1] for motif in loaded} == set(range(6, 22))


@pytest.mark.parametrize(
    ("release", "tax_group", "count"),
    [
        # As each release's own paper counts its CORE profiles.
        ("JASPAR2018", "plants", 489),
        ("JASPAR2018", "insects", 133),
        ("JASPAR2018", "nematodes", 26),
        ("JASPAR2018", "fungi", 176),
        ("JASPAR2018", "urochordates", 1),
        ("JASPAR2018", "all", 1404),
        ("JASPAR2020", "vertebrates", 746),
        ("JASPAR2022", "plants", 656),
        ("JASPAR2022", "all", 1956),
        ("JASPAR2024", "vertebrates", 879),
        ("JASPAR2024", "all", 2346),
    ],
)
def test_a_tax_group_gives_its_core_motifs(release, tax_group, count):
    motifs = load_motifs(release, tax_group)
    assert len(motifs) == len({motif.matrix_id for motif in motifs}) == count
    assert all(1 <= motif.counts.shape[1] <= MAX_WIDTH and (motif.counts.sum(axis=0) > 0).all() for motif in motifs)


def test_all_tax_groups_are_the_sum_of_each():
    groups = ["vertebrates", "plants", "insects", "nematodes", "fungi", "urochordates"]
    ids = [motif.matrix_id for group in groups for motif in load_motifs("JASPAR2018", group)]
    assert sorted(ids) == [motif.matrix_id for motif in load_motifs("JASPAR2018", "all")]


@pytest.mark.parametrize(
    ("release", "tax_group", "said"),
    [
        ("JASPAR2018", "mammals", "is not a tax group of JASPAR2018"),
        ("JASPAR2018", "vertebrates' OR '1'='1", "is not a tax group of JASPAR2018"),
        ("JASPAR2018", "diatoms", "is not a tax group of JASPAR2018"),
        ("JASPAR2024", "cnidaria", "has no CORE motif in JASPAR2024"),
    ],
)
def test_a_tax_group_without_motifs_is_refused_with_those_there_are(release, tax_group, said):
    with pytest.raises(InputError, match=r"give one of [a-z, ]+, or all$") as refused:
        load_motifs(release, tax_group)
    assert f"{tax_group!r} {said};" in str(refused.value) or f'"{tax_group}" {said};' in str(refused.value)
    asked = jaspardb(release=release).fetch_motifs(collection="CORE")
    there = re.search("give one of (.*), or all", str(refused.value))[1].split(", ")
    assert there == sorted({motif.tax_group for motif in asked})


def test_log_odds_are_biopythons_with_a_pseudocount_of_a_tenth(vertebrate_motifs):
    for ours, theirs in zip(load_motifs("JASPAR2018"), vertebrate_motifs, strict=True):
        pssm = theirs.counts.normalize(pseudocounts=0.1).log_odds()
        np.testing.assert_allclose(ours.log_odds, [pssm[letter] for letter in "ACGT"], atol=1e-12)


def test_a_file_of_a_release_gives_its_motifs_to_the_last_bit(tmp_path, few_motifs):
    (tmp_path / "motifs.jaspar").write_text(biopython.write(few_motifs[::-1], "jaspar"))
    of_release = {motif.matrix_id: motif for motif in load_motifs("JASPAR2018")}
    loaded = load_motifs(str(tmp_path / "motifs.jaspar"))
    assert [motif.matrix_id for motif in loaded] == [motif.matrix_id for motif in few_motifs]
    for motif in loaded:
        assert motif.name == of_release[motif.matrix_id].name
        np.testing.assert_array_equal(motif.counts, of_release[motif.matrix_id].counts)


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


def of_width(width: int) -> dict[str, str]:
    """The same motif of one column after another in each format."""
    row = " ".join(["5"] * width)
    columns = range(1, width + 1)
    return {
        "jaspar": f">MA1.1 X\nA [ {row} ]\nC [ {row} ]\nG [ {row} ]\nT [ {row} ]\n",
        "raw": f">MA1.1 X\n{row}\n{row}\n{row}\n{row}\n",
        "meme": "MEME version 4\n\nMOTIF MA1.1 X\nletter-probability matrix:\n" + "0.25 0.25 0.25 0.25\n" * width,
        "transfac": "AC  MA1.1\nP0 A C G T\n" + "".join(f"{n:02} 5 5 5 5\n" for n in columns) + "XX\n//\n",
    }


@pytest.mark.parametrize("form", ["jaspar", "raw", "meme", "transfac"])
@pytest.mark.parametrize("width", [0, 1, MAX_WIDTH, MAX_WIDTH + 1, 500])
def test_widths_from_1_to_64_are_taken(tmp_path, form, width):
    path = tmp_path / "motif"
    path.write_text(of_width(width)[form])
    if 1 <= width <= MAX_WIDTH:
        np.testing.assert_array_equal(load_motifs(str(path))[0].counts, np.full((4, width), 5.0))
    else:
        with pytest.raises(InputError, match=rf"^{path}:\d+: motif 'MA1.1'.* (no|0|{width}) (columns|rows)[^\n]*$"):
            load_motifs(str(path))


def test_a_repeated_matrix_id_is_refused(tmp_path, few_motifs):
    path = tmp_path / "twice.jaspar"
    path.write_text(biopython.write([few_motifs[0], few_motifs[1], few_motifs[0]], "jaspar"))
    with pytest.raises(InputError, match=f"^{path}:11: motif '{few_motifs[0].matrix_id}' stands there more than once"):
        load_motifs(str(path))


def test_a_column_of_zeros_is_refused_by_its_number(tmp_path):
    path = tmp_path / "zero.jaspar"
    path.write_text(">MA1.1 X\nA [ 3 0 1 ]\nC [ 3 0 1 ]\nG [ 3 0 1 ]\nT [ 3 0 1 ]\n")
    with pytest.raises(InputError, match=f"^{path}:1: motif 'MA1.1': column 2 sums to 0"):
        load_motifs(str(path))
