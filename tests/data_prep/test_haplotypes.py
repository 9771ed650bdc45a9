"""Haplotypes against truth worked by hand, against bcftools, and against a second, simple implementation."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pysam import bcftools

from data_prep.haplotypes import SHORTEST, Change, apply, change, haplotypes, within

REFERENCE = "ACGTACGTAC"  # stands at 100 to 110
START = 100


@pytest.mark.parametrize(
    ("position", "ref", "alt", "expected"),
    [
        (5, "A", "G", Change(5, 6, "G")),
        (5, "A", "ATT", Change(6, 6, "TT")),
        (5, "ATT", "A", Change(6, 8, "")),
        (5, "ATT", "AT", Change(7, 8, "")),  # one of several alleles of a site keeps the letters of the longest
        (5, "ACGT", "ACTT", Change(7, 8, "T")),
        (5, "AC", "GT", Change(5, 7, "GT")),
        (5, "AAA", "AA", Change(7, 8, "")),
        (0, "TA", "A", Change(0, 1, "")),  # of a chromosome's first base, the letter after it stands along
        (5, "ACG", "TTTT", Change(5, 8, "TTTT")),
        (5, "A", "A", Change(6, 6, "")),
    ],
)
def test_an_allele_changes_what_it_does_not_share_with_ref(position, ref, alt, expected):
    assert change(position, ref, alt) == expected


@pytest.mark.parametrize(
    ("records", "expected", "skipped"),
    [
        ([], "ACGTACGTAC", 0),
        ([(102, "G", "T")], "ACTTACGTAC", 0),
        ([(102, "G", "GAA"), (107, "T", "C")], "ACGAATACGCAC", 0),
        ([(101, "CGT", "C")], "ACACGTAC", 0),
        ([(101, "CGT", "C"), (103, "T", "A")], "ACACGTAC", 1),  # within the deletion before it
        ([(101, "CGT", "C"), (104, "A", "G")], "ACGCGTAC", 0),  # next to it
        ([(101, "C", "G"), (101, "C", "T")], "AGGTACGTAC", 1),  # at one place the first of the file
        ([(101, "C", "G"), (101, "C", "CT")], "AGTGTACGTAC", 0),  # a letter and an insertion behind it
        ([(101, "C", "CT"), (101, "C", "CGG")], "ACTGTACGTAC", 1),  # two insertions at one place
        ([(101, "CGTA", "C"), (102, "G", "GTT")], "ACCGTAC", 1),  # into the middle of a deletion
        ([(101, "C", "CT"), (102, "GT", "G")], "ACTGACGTAC", 0),
        ([(100, "ACG", "TTT"), (102, "G", "A")], "TTTTACGTAC", 1),
    ],
)
def test_changes_are_applied_by_position_and_the_first_of_two_that_overlap(records, expected, skipped):
    assert apply(REFERENCE, START, [change(*record) for record in records]) == (expected, skipped)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ((99, "TA", "T"), "CGTACGTAC"),  # deletes the first base
        ((97, "GGTAC", "G"), "GTACGTAC"),  # two bases outside, two inside
        ((108, "ACGG", "A"), "ACGTACGTA"),  # the last base, and two after it
        ((99, "TA", "CG"), "GCGTACGTAC"),  # of two letters the second
        ((109, "CG", "TT"), "ACGTACGTAT"),
        ((109, "C", "CTT"), "ACGTACGTACTT"),  # anchored at the last base
        ((100, "A", "ATT"), "ATTCGTACGTAC"),
        ((99, "T", "TGG"), None),  # anchored before the region
        ((98, "GT", "G"), None),
        ((110, "G", "A"), None),
        ((99, "TAC", "G"), None),  # which of the letters are inside cannot be said
        ((108, "ACGG", "TTTTT"), None),
    ],
)
def test_what_reaches_over_a_border_is_cut_there_where_that_can_be(record, expected):
    one = change(*record)
    if expected is None:
        assert within(one, START, START + len(REFERENCE)) is None
    else:
        assert apply(REFERENCE, START, [one]) == (expected, 0)


def test_a_change_that_begins_before_the_region_comes_before_those_inside():
    deletion, letter = change(98, "GTAC", "G"), change(100, "A", "G")
    assert apply(REFERENCE, START, [letter, deletion]) == ("GTACGTAC", 1)


def test_both_phases_and_every_allele_of_a_site_are_applied():
    sites = [[change(102, "GT", "G"), change(102, "GT", "GTA")], [change(107, "T", "C")]]
    alleles = np.array([[[0, 1], [2, 0], [0, 0]], [[1, 0], [0, 0], [0, 1]]])
    found = haplotypes(REFERENCE, START, sites, alleles)
    assert found.sequences[0] == REFERENCE
    assert [[found.sequences[i] for i in each] for each in found.of_each] == [
        ["ACGTACGCAC", "ACGACGTAC"],
        ["ACGTAACGTAC", REFERENCE],
        [REFERENCE, "ACGTACGCAC"],
    ]
    assert (found.overlapping, found.deleted) == (0, 0)
    assert len(found.sequences) == len(set(found.sequences)) == 4


def test_copies_that_overlap_and_deleted_haplotypes_are_counted():
    sites = [[change(100, "ACGTACG", "A")], [change(103, "T", "C")]]
    alleles = np.array([[[1, 0], [1, 1]], [[1, 1], [0, 1]]])
    found = haplotypes(REFERENCE, START, sites, alleles)
    assert (found.overlapping, found.deleted) == (2, 3)
    gone = "N" * SHORTEST
    assert [[found.sequences[i] for i in each] for each in found.of_each] == [[gone, "ACGCACGTAC"], [gone, gone]]


def test_a_region_without_sites_is_the_reference_of_everybody():
    found = haplotypes(REFERENCE, START, [], np.zeros((0, 3, 2), np.int16))
    assert found.sequences == [REFERENCE]
    assert found.of_each.tolist() == [[0, 0]] * 3


letters = st.text("ACGT", min_size=1, max_size=4)


@st.composite
def chromosomes(draw, n: int = 30) -> tuple[str, list[Change]]:
    """A sequence, and changes in a file's order, as a VCF has them."""
    reference = draw(st.text("ACGT", min_size=n, max_size=n))
    places = draw(st.lists(st.integers(0, n - 1), max_size=8))
    changes = []
    for place in sorted(places):
        ref = reference[place : place + draw(st.integers(1, 5))]
        alt = draw(st.one_of(letters, letters.map(lambda tail, ref=ref: ref + tail), st.just(ref[0])))
        if alt != ref:
            changes.append(change(place, ref, alt))
    return reference, changes


def by_cells(reference: str, changes: list[Change]) -> tuple[str, int]:
    """The same on a row of cells: one for each base, one for each gap. A change takes its cells, or none."""
    cells = [reference[i // 2] if i % 2 else "" for i in range(2 * len(reference) + 1)]
    taken, skipped = set(), 0
    for one in sorted(changes, key=lambda one: (one.start, one.start < one.end)):
        own = [2 * one.start] if one.start == one.end else list(range(2 * one.start + 1, 2 * one.end))
        if taken & set(own):
            skipped += 1
            continue
        taken |= set(own)
        for cell in own:
            cells[cell] = ""
        cells[own[0]] = one.letters
    return "".join(cells), skipped


@given(chromosomes())
@example(("ACGTA" * 6, [Change(0, 1, ""), Change(0, 0, "G")]))
def test_it_is_what_a_simple_implementation_gives(given_):
    reference, changes = given_
    changes = [one for one in changes if one.start > 0 or not one.inserts]
    assert apply(reference, 0, changes) == by_cells(reference, changes)


@given(chromosomes(), st.lists(st.integers(1, 29), min_size=1, max_size=3, unique=True).map(sorted))
def test_touching_regions_joined_are_the_whole(given_, cuts):
    reference, changes = given_
    whole, skipped = apply(reference, 0, [one for one in changes if one.start > 0 or not one.inserts])
    assume(not skipped)
    joined = ""
    for start, end in pairwise([0, *cuts, len(reference)]):
        here = [one for one in changes if within(one, start, end)]
        over = [one for one in changes if max(one.start, start) < min(one.end, end) and one not in here]
        assume(not over)
        joined += apply(reference[start:end], start, here)[0]
    assert joined == whole


def vcf(path: Path, records: list[tuple[int, str, str]], genotypes: list[str]) -> Path:
    lines = ["##fileformat=VCFv4.2", "##contig=<ID=1,length=40>"]
    lines.append('##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">')
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", "a"]))
    for (position, ref, alt), genotype in zip(records, genotypes, strict=True):
        lines.append("\t".join(["1", str(position + 1), ".", ref, alt, ".", ".", ".", "GT", genotype]))
    path.write_text("\n".join(lines) + "\n")
    return Path(pysam.tabix_index(str(path), preset="vcf", force=True))


@pytest.mark.parametrize("copy", [0, 1])
def test_it_is_what_bcftools_consensus_gives(tmp_path, copy):
    reference = "ACGTTGCAACGTACGGATCCATTACGGTACGTTAGCATCG"
    (tmp_path / "one.fa").write_text(f">1\n{reference}\n")
    records = [
        (2, "G", "A"),
        (4, "TG", "T,TGAA"),
        (8, "ACGT", "A"),
        (10, "G", "C"),  # in the deletion
        (14, "G", "GTTT"),
        (18, "CC", "AT"),
        (25, "GG", "G"),
        (30, "G", "C,T"),
        (33, "A", "<DEL>"),
        (35, "C", "CA"),
    ]
    assert all(reference[p : p + len(ref)] == ref for p, ref, _ in records)
    genotypes = ["0|1", "1|2", "1|1", "1|0", "0|1", "1|0", "1|1", "2|1", "0|0", "1|0"]
    path = vcf(tmp_path / "one.vcf", records, genotypes)
    said = bcftools.consensus("-f", str(tmp_path / "one.fa"), "-H", str(copy + 1), "-s", "a", str(path))
    alleles = [int(genotype.split("|")[copy]) for genotype in genotypes]
    changes = [
        change(p, ref, alt.split(",")[allele - 1])
        for (p, ref, alt), allele in zip(records, alleles, strict=True)
        if allele
    ]
    assert apply(reference, 0, changes)[0] == "".join(said.split("\n")[1:])
