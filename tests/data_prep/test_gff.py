"""The reader of annotation: GTF and GFF3 alike, and the line that is wrong."""

import gzip
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.gff import attributes_of, read_features

GFF3 = """##gff-version 3
# a comment
1\tsource\tgene\t11\t20\t.\t+\t.\tID=gene:g1;Name=A%3BB

1\tsource\tmRNA\t11\t11\t.\t-\t.\tID=transcript:t1;Parent=gene:g1
###
##FASTA
>1
ACGT
"""
GTF = """#!genome-build
1\tsource\tgene\t11\t20\t.\t+\t.\tgene_id "g1"; gene_name "A;B"; level 2;
1\tsource\ttranscript\t11\t11\t.\t-\t.\tgene_id "g1"; transcript_id "t1"
"""


def write(path: Path, text: str) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_gff3_is_read_to_its_sequence(tmp_path, ending):
    gene, transcript = read_features(write(tmp_path / f"genes.gff3{ending}", GFF3))
    assert gene == (3, "1", "gene", 10, 20, "+", {"ID": "gene:g1", "Name": "A;B"})
    assert transcript == (5, "1", "mRNA", 10, 11, "-", {"ID": "transcript:t1", "Parent": "gene:g1"})


def test_gtf_gives_the_same_intervals(tmp_path):
    gene, transcript = read_features(write(tmp_path / "genes.gtf", GTF))
    assert gene == (2, "1", "gene", 10, 20, "+", {"gene_id": "g1", "gene_name": "A;B", "level": "2"})
    assert (transcript.start, transcript.end, transcript.attributes["transcript_id"]) == (10, 11, "t1")


def test_windows_line_ends_are_none_of_the_attributes(tmp_path):
    (tmp_path / "genes.gtf").write_bytes(GTF.replace("\n", "\r\n").encode())
    assert [feature.attributes for feature in read_features(tmp_path / "genes.gtf")] == [
        feature.attributes for feature in read_features(write(tmp_path / "unix.gtf", GTF))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".", {".": ""}),
        ("", {}),
        ('gene_id "g=1"; note "x; y";', {"gene_id": "g=1", "note": "x; y"}),
        ("ID=g1;Note=two words", {"ID": "g1", "Note": "two words"}),
        ('tag "a"; tag "b"', {"tag": "a,b"}),
    ],
)
def test_attributes(text, expected):
    assert attributes_of(text) == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 source gene 11 20 . + . ID=g", "1 columns separated by tabs"),
        ("1\tsource\tgene\t11\t20", "5 columns"),
        ("1\tsource\tgene\t0\t20\t.\t+\t.\tID=g", "start '0'"),
        ("1\tsource\tgene\t21\t20\t.\t+\t.\tID=g", "no interval"),
        ("1\tsource\tgene\tx\t20\t.\t+\t.\tID=g", "start 'x'"),
        ("1\tsource\tgene\t-3\t20\t.\t+\t.\tID=g", "start '-3'"),
    ],
)
def test_a_line_that_is_no_feature_is_named(tmp_path, line, why):
    path = write(tmp_path / "genes.gff3", f"##gff-version 3\n{line}\n")
    with pytest.raises(InputError, match=why) as error:
        list(read_features(path))
    assert f"{path}:2:" in str(error.value)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = write(tmp_path / "genes.gff3.gz", GFF3)
    path.write_bytes(path.read_bytes()[:40])
    for bad in (path, tmp_path / "none.gtf"):
        with pytest.raises(InputError, match=bad.name):
            list(read_features(bad))
